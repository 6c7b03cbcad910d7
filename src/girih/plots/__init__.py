"""One function per picture. Each draws into the axes it is given, or into a figure of its own without pyplot.

For pictures of your own in the same look: `styled`, `new_figure`, `log_scale`, `colour_bar`, `latent_colours`, colours
that every eye tells apart (`BLACK`, ..., `PALE`), `CYCLE` (colour, line and marker of each of seven curves), and the
corners of cells and of their images (`cell_polygons`, `image_points`).
"""

from girih._extras import needs

with needs("plots"):
    from girih.plots.angles import plot_angles
    from girih.plots.basis import plot_basis, plot_basis_vectors
    from girih.plots.cells import plot_cells
    from girih.plots.curves import plot_nll_curve, plot_training_curves
    from girih.plots.density import plot_marginal
    from girih.plots.dimensions import plot_dimensions, plot_layer_ranks
    from girih.plots.discovery import plot_discovery
    from girih.plots.disentanglement import plot_disentanglement
    from girih.plots.embedding import plot_embedding
    from girih.plots.histograms import plot_histograms
    from girih.plots.image import draw_image, image_points, plot_image
    from girih.plots.images import plot_image_manifold, plot_image_samples
    from girih.plots.latents import draw_classes, draw_prior
    from girih.plots.line_values import plot_line_values
    from girih.plots.log_volumes import plot_log_volumes
    from girih.plots.manifold import plot_manifold
    from girih.plots.partition import plot_line_partition
    from girih.plots.polygons import Polygons, cell_polygons
    from girih.plots.posterior import plot_posteriors
    from girih.plots.samples import plot_samples
    from girih.plots.selection import plot_selection
    from girih.plots.singular_values import plot_singular_values
    from girih.plots.slices import plot_slices
    from girih.plots.style import (
        BLACK,
        BLUE,
        CYCLE,
        GREEN,
        GREY,
        LIGHT,
        ORANGE,
        PALE,
        PURPLE,
        SKY,
        VERMILLION,
        YELLOW,
        colour_bar,
        latent_colours,
        log_scale,
        new_figure,
        styled,
    )
    from girih.plots.vae_embedding import plot_vae_embedding
    from girih.plots.vae_posteriors import plot_posterior_densities
    from girih.plots.vae_traversals import plot_traversals

__all__ = [
    "BLACK",
    "BLUE",
    "CYCLE",
    "GREEN",
    "GREY",
    "LIGHT",
    "ORANGE",
    "PALE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "YELLOW",
    "Polygons",
    "cell_polygons",
    "colour_bar",
    "draw_classes",
    "draw_image",
    "draw_prior",
    "image_points",
    "latent_colours",
    "log_scale",
    "new_figure",
    "plot_angles",
    "plot_basis",
    "plot_basis_vectors",
    "plot_cells",
    "plot_dimensions",
    "plot_discovery",
    "plot_disentanglement",
    "plot_embedding",
    "plot_histograms",
    "plot_image",
    "plot_image_manifold",
    "plot_image_samples",
    "plot_layer_ranks",
    "plot_line_partition",
    "plot_line_values",
    "plot_log_volumes",
    "plot_manifold",
    "plot_marginal",
    "plot_nll_curve",
    "plot_posterior_densities",
    "plot_posteriors",
    "plot_samples",
    "plot_selection",
    "plot_singular_values",
    "plot_slices",
    "plot_training_curves",
    "plot_traversals",
    "plot_vae_embedding",
    "styled",
]
