"""One function per picture. Each draws into the axes it is given, or into a figure of its own without pyplot.

For pictures of your own in the same look: `styled`, `new_figure`, `log_scale`, `colour_bar`, `latent_colours`, colours
that every eye tells apart (`BLACK`, ..., `PALE`), `CYCLE` (colour, line and marker of each of seven curves), and the
corners of cells and of their images (`cell_polygons`, `image_points`). What they show, as numbers: `quantity` and
`tints` of cells, `walk_steps`, `weighted_quantiles`, a `Plane` of wide rows and its `limits_around` them, latents to
draw at (`lattice`, `grid_lines`, `spread_latents`) and `posterior_grid`.
"""

from girih._extras import needs

with needs("plots"):
    from girih.partition.polygons import Polygons, cell_polygons
    from girih.plots.cells import TINTS, CellStyle, plot_cells, quantity, tints
    from girih.plots.curves import plot_nll_curve, plot_selection, plot_training_curves
    from girih.plots.densities import plot_marginal, plot_posteriors, posterior_grid
    from girih.plots.discovery import plot_discovery, walk_steps
    from girih.plots.embedding import draw_classes, draw_prior, plot_embedding
    from girih.plots.histograms import percent, plot_angles, plot_histograms, plot_log_volumes, weighted_quantiles
    from girih.plots.images import plot_image_manifold, plot_image_samples, plot_samples
    from girih.plots.manifold import draw_image, grid_lines, image_points, plot_image, plot_manifold
    from girih.plots.maps import (
        plot_basis,
        plot_basis_vectors,
        plot_dimensions,
        plot_disentanglement,
        plot_layer_ranks,
        plot_singular_values,
    )
    from girih.plots.numbers import Plane, lattice, limits_around, plane_of, spread_latents
    from girih.plots.partition import plot_line_partition, plot_line_values, plot_partition, plot_slices
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
        STYLE,
        VERMILLION,
        YELLOW,
        colour_bar,
        latent_colours,
        log_scale,
        new_figure,
        styled,
    )
    from girih.plots.vae import plot_posterior_densities, plot_traversals, plot_vae_embedding

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
    "STYLE",
    "TINTS",
    "VERMILLION",
    "YELLOW",
    "CellStyle",
    "Plane",
    "Polygons",
    "cell_polygons",
    "colour_bar",
    "draw_classes",
    "draw_image",
    "draw_prior",
    "grid_lines",
    "image_points",
    "latent_colours",
    "lattice",
    "limits_around",
    "log_scale",
    "new_figure",
    "percent",
    "plane_of",
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
    "plot_partition",
    "plot_posterior_densities",
    "plot_posteriors",
    "plot_samples",
    "plot_selection",
    "plot_singular_values",
    "plot_slices",
    "plot_training_curves",
    "plot_traversals",
    "plot_vae_embedding",
    "posterior_grid",
    "quantity",
    "spread_latents",
    "styled",
    "tints",
    "walk_steps",
    "weighted_quantiles",
]
