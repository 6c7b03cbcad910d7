"""One function per picture. Each draws into the axes it is given, or into a figure of its own without pyplot."""

from girih.plots.cells import plot_cells
from girih.plots.curves import plot_nll_curve, plot_training_curves
from girih.plots.density import plot_marginal
from girih.plots.discovery import plot_discovery
from girih.plots.embedding import plot_embedding
from girih.plots.image import plot_image
from girih.plots.images import plot_image_manifold, plot_image_samples
from girih.plots.manifold import plot_manifold
from girih.plots.partition import plot_line_partition
from girih.plots.posterior import plot_posteriors
from girih.plots.samples import plot_samples
from girih.plots.selection import plot_selection
from girih.plots.style import styled

__all__ = [
    "plot_cells",
    "plot_discovery",
    "plot_embedding",
    "plot_image",
    "plot_image_manifold",
    "plot_image_samples",
    "plot_line_partition",
    "plot_manifold",
    "plot_marginal",
    "plot_nll_curve",
    "plot_posteriors",
    "plot_samples",
    "plot_selection",
    "plot_training_curves",
    "styled",
]
