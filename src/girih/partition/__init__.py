"""The latent partition: the cells on which a generator is affine."""

from girih.partition.partition import MAX_LATENT_DIM, Partition, check_latent_dim

__all__ = ["MAX_LATENT_DIM", "Partition", "check_latent_dim"]
