"""The latent partition: the cells on which a generator is affine."""

from girih.partition.partition import MAX_CELLS, MAX_LATENT_DIM, Partition, check_latent_dim

__all__ = ["MAX_CELLS", "MAX_LATENT_DIM", "Partition", "check_latent_dim"]
