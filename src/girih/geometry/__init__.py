"""What the maps of a generator's cells say: dimension, volume, angles, density and entropy on the manifold."""

from girih.geometry.angles import Angles, angles, basis, disentanglement, mean_overlap
from girih.geometry.cells import Cells, CellValues, enumerate_cells, sample_cells, segment_cells, walk_cells
from girih.geometry.density import Entropy, ManifoldDensity, density, entropy, folded_entropy, latent_density
from girih.geometry.dimension import (
    dimension_bound,
    intrinsic_dimension,
    layer_ranks,
    log_volume,
    ranks,
    singular_values,
)
from girih.geometry.dropout import DropoutDimensions, dropout_dimensions, noisy_generator
from girih.geometry.elbow import ApproximationElbow, elbow
from girih.geometry.injective import Injectivity, distance_to_span, is_injective
from girih.geometry.invert import Inverse, Preimages, invert, preimages
from girih.geometry.pieces import nearest_in_cell
from girih.geometry.priors import Uniform
from girih.geometry.search import Search
from girih.geometry.smoothing import SmoothGenerator, smooth
from girih.geometry.uniform import ManifoldSample, Uniformity, sample_uniform_on_manifold, uniformity

__all__ = [
    "Angles",
    "ApproximationElbow",
    "CellValues",
    "Cells",
    "DropoutDimensions",
    "Entropy",
    "Injectivity",
    "Inverse",
    "ManifoldDensity",
    "ManifoldSample",
    "Preimages",
    "Search",
    "SmoothGenerator",
    "Uniform",
    "Uniformity",
    "angles",
    "basis",
    "density",
    "dimension_bound",
    "disentanglement",
    "distance_to_span",
    "dropout_dimensions",
    "elbow",
    "entropy",
    "enumerate_cells",
    "folded_entropy",
    "intrinsic_dimension",
    "invert",
    "is_injective",
    "latent_density",
    "layer_ranks",
    "log_volume",
    "mean_overlap",
    "nearest_in_cell",
    "noisy_generator",
    "preimages",
    "ranks",
    "sample_cells",
    "sample_uniform_on_manifold",
    "segment_cells",
    "singular_values",
    "smooth",
    "uniformity",
    "walk_cells",
]
