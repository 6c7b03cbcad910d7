"""What a VAE makes of one latent after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from girih._arrays import as_tensor
from girih._options import whole
from girih.errors import ParameterError, ShapeError
from girih.plots.data import Array, label_columns, to_array
from girih.plots.images import GAP, as_images, draw_tiles
from girih.plots.style import COLUMN, GREY, latent_colours, new_figure, styled

if TYPE_CHECKING:
    from girih.vae import VAE

_MAX_LINES = 40
_MAX_PANELS = 24
# Features up to which each has its name below a panel.
_NAMED = 8


@styled
def plot_traversals(
    vae: VAE,
    start: Any,
    image_shape: tuple[int, ...] | None = None,
    dimensions: Sequence[int] | None = None,
    values: Any = None,
    count: int = 9,
    feature_names: list[str] | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw `E[x | z]` as each latent in turn moves over its range while the others stay.

    Images are in a grid, with a line for each latent. Other rows are curves over their features, in a panel for each
    latent and coloured by its value; with two features they are the path of x in the plane.

    Args:
        vae: any VAE.
        start: one row x, `(D,)` or `(1, D)`, whose latents are those of its reconstruction; or the latents themselves.
            Where S = D, latents are meant.
        image_shape: `(h, w)`, `(h, w, 1)` or `(h, w, 3)`, where rows are images.
        dimensions: the latents to move, from 0; all of them by default, or the first 10.
        values: those that each latent takes, `(K,)`; by default quantiles of the prior from 2% to 98%, all of [-1, 1],
            or all categories.
        count: K, where `values` is not given.
        feature_names: one for each column of x, where rows are not images.
        figure: a figure, or subfigure, to draw into; a new one by default.

    Returns:
        The figure.

    Raises:
        ShapeError: a start that is not one row, or an image shape that does not hold D values.
        ParameterError: a dimension that is no latent, or too many of them.

    Source:
        CG-BPEF, section 3.1, on exploring extreme cases.

    Example:
        >>> from girih.plots import plot_traversals
        >>> from girih.vae import CGBPEFVAE
        >>> vae = CGBPEFVAE([2, 8, 12], seed=0)
        >>> len(plot_traversals(vae, [0.0, 0.0], (3, 4)).axes), len(plot_traversals(vae, [0.0, 0.0]).axes)
        (1, 3)
    """
    chosen = _dimensions(vae, dimensions, _MAX_LINES if image_shape is not None else _MAX_PANELS)
    at = vae.family.axis(0, whole(count, "count"), vae.device) if values is None else as_tensor(values, "values")
    paths = [to_array(vae.traverse(start, k, at)) for k in chosen]
    if len(paths[0]) != 1:
        raise ShapeError(f"start must be one row; got {len(paths[0])}")
    moved = np.stack(paths)[:, 0]  # (lines, K, D)
    # of categories the points of the simplex: named by the largest
    numbers = to_array(at) if at.ndim == 1 else to_array(at.argmax(-1))
    if image_shape is not None:
        return _draw_images(moved, chosen, numbers, image_shape, figure)
    return _draw_curves(moved, chosen, numbers, label_columns(None, feature_names, vae.output_dim), figure)


def _dimensions(vae: VAE, dimensions: Sequence[int] | None, most: int) -> list[int]:
    if dimensions is None:
        return list(range(min(vae.latent_dim, 10)))
    chosen = [whole(k, "dimensions", 0) for k in dimensions]
    if not chosen or max(chosen) >= vae.latent_dim:
        raise ParameterError(f"dimensions must be latents from 0 to {vae.latent_dim - 1}, at least one; got {chosen}")
    if len(chosen) > most:
        raise ParameterError(f"{len(chosen)} latents are too many for one picture; pass at most {most}")
    return chosen


def _draw_images(
    moved: Array, chosen: list[int], numbers: Array, image_shape: tuple[int, ...], figure: Figure | None
) -> Figure:
    """A line of images for each latent."""
    lines, count, D = moved.shape
    images = as_images(moved.reshape(-1, D), image_shape, "image_shape")
    high = images.shape[1] / images.shape[2]
    own = figure is None
    if figure is None:
        figure = new_figure(COLUMN, 0.45 + (COLUMN - 0.3) * lines * (high + GAP) / (count * (1.0 + GAP)))
    ax = draw_tiles(figure.add_subplot(), images, count, None)
    ax.set_xticks(
        np.arange(count) * (1.0 + GAP) + 0.5, [f"{value:.3g}".replace("-", "\N{MINUS SIGN}") for value in numbers]
    )
    ax.set_yticks(-np.arange(lines) * (high + GAP) - 0.5 * high, [f"$z_{{{k + 1}}}$" for k in chosen])
    ax.tick_params(length=0, labelsize=7.0 if own else 6.5)
    ax.set(xlabel="value of the latent that moves", ylabel="latent")
    return figure


def _draw_curves(moved: Array, chosen: list[int], numbers: Array, names: list[str], figure: Figure | None) -> Figure:
    """A panel for each latent: x over its features, or in the plane if it has two."""
    columns = min(3, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    if figure is None:
        figure = new_figure(COLUMN * max(1.0, 0.72 * columns), 0.6 + 1.7 * lines)
    scale = ScalarMappable(Normalize(numbers.min(), max(numbers.max(), numbers.min() + 1e-12)), latent_colours())
    axes: list[Axes] = []
    for panel, (k, path) in enumerate(zip(chosen, moved, strict=True)):
        ax = figure.add_subplot(
            lines, columns, panel + 1, sharex=axes[0] if axes else None, sharey=axes[0] if axes else None
        )
        ax.set_title(f"$z_{{{k + 1}}}$ moves")
        (_draw_path if path.shape[1] == 2 else _draw_profiles)(ax, path, scale.to_rgba(numbers), names)
        ax.label_outer()
        axes.append(ax)
    bar = figure.colorbar(scale, ax=axes, fraction=0.05, aspect=25 * lines)
    bar.set_label("value of the latent")
    bar.outline.set_visible(False)
    return figure


def _draw_profiles(ax: Axes, path: Array, colours: Any, names: list[str]) -> None:
    features = np.arange(path.shape[1])
    for profile, colour in zip(path, colours, strict=True):
        ax.plot(features, profile, color=colour, lw=1.0, marker="o" if len(features) <= _NAMED else None, ms=2.5)
    if len(features) <= _NAMED:
        upright = max(map(len, names)) <= 8
        ax.set_xticks(features, names, rotation=0 if upright else 35, ha="center" if upright else "right")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set(xlabel="feature" if len(features) <= _NAMED else "feature, by number from 0", ylabel="E[x | z]")


def _draw_path(ax: Axes, path: Array, colours: Any, names: list[str]) -> None:
    ax.plot(*path.T, color=GREY, lw=0.8, zorder=1)
    ax.scatter(path[:, 0], path[:, 1], c=colours, s=16.0, lw=0, zorder=2)
    ax.set(xlabel=f"E[{names[0]} | z]", ylabel=f"E[{names[1]} | z]")
    ax.set_aspect("equal", adjustable="box")
