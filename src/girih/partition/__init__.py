"""The latent partition: the cells on which a generator is affine."""

from girih.partition.partition import MAX_CELLS, MAX_LATENT_DIM, Partition, check_latent_dim
from girih.partition.walk import LocalCell, walk

__all__ = ["MAX_CELLS", "MAX_LATENT_DIM", "LocalCell", "Partition", "check_latent_dim", "walk"]
