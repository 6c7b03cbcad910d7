"""The latent partition: the cells on which a generator is affine."""

from girih.partition.cells import Cells
from girih.partition.export import cell_graph, write_mesh
from girih.partition.partition import MAX_CELLS, MAX_LATENT_DIM, Partition, check_latent_dim
from girih.partition.walk import LocalCell, walk

__all__ = [
    "MAX_CELLS",
    "MAX_LATENT_DIM",
    "Cells",
    "LocalCell",
    "Partition",
    "cell_graph",
    "check_latent_dim",
    "walk",
    "write_mesh",
]
