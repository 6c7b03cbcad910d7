"""Pictures of a VAE: its embedding of rows, its posteriors, and what its latents do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor
from torch.distributions import Distribution, Independent

from girih._arrays import as_tensor
from girih._deprecated import renamed
from girih._options import whole
from girih.errors import ParameterError, ShapeError
from girih.plots.embedding import classes_of, draw_classes, draw_ellipses, draw_prior, frame_plane, view_of
from girih.plots.images import GAP, as_images, draw_tiles
from girih.plots.numbers import Array, label_columns, plain_text, thin, to_array
from girih.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    CYCLE,
    GREY,
    LIGHT,
    latent_colours,
    legend_below,
    new_axes,
    new_figure,
    styled,
)
from girih.vae import BPEF, VAE, CoarseBPEF

_MAX_ROWS = 4_000
_MAX_PANELS = 24
_POINTS = 2001
_MAX_LINES = 40
# Features up to which each has its name below a panel.
_NAMED = 8


@styled
def plot_vae_embedding(
    vae: VAE, X: ArrayLike, labels: ArrayLike | None = None, coordinates: Sequence[int] = (0, 1), ax: Axes | None = None
) -> Axes:
    """Draw the mean of q(z | x) of each row in two coordinates of z, with ellipses of one deviation of q.

    This is what the encoder believes. For what is true, where the decoder is piecewise affine and S at most 3, there is
    `plot_embedding(vae.dgn(), X)`. Dashed are 1 to 3 deviations of a normal prior, or the bounds of latents in [-1, 1].
    More than 4,000 rows are thinned evenly.

    Args:
        vae: `GaussVAE`, `MixtureVAE` or `CGBPEFVAE`, with S of 2 or more.
        X: rows `(N, D)`.
        labels: a class for each row, `(N,)`, at most 20 different; those of X, where it is a `Dataset`, by default.
        coordinates: the two coordinates of z to draw.
        ax: axes to draw into; those of a new figure by default.

    Returns:
        The axes.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError: X or labels do not fit.
        ParameterError: categorical latents, S = 1, coordinates that are not two of z, or more than 20 classes.

    Example:
        >>> from girih.datasets import load
        >>> from girih.plots import plot_vae_embedding
        >>> from girih.vae import CGBPEFVAE
        >>> plot_vae_embedding(CGBPEFVAE([2, 8, 4], seed=0), load("iris")).get_xlabel()
        'latent $z_{1}$'
    """
    chosen = [whole(k, "coordinates", 0) for k in coordinates]
    if len(chosen) != 2 or chosen[0] == chosen[1] or max(chosen) >= vae.latent_dim:
        raise ParameterError(
            f"coordinates must be two different latents from 0 to {vae.latent_dim - 1}; got {list(coordinates)}"
        )
    mean, deviation = (to_array(part) for part in vae.embed(X))
    if mean.ndim != 2:
        raise ParameterError("categorical latents have no place in a plane; draw vae.embed(X)[0] as a table instead")
    classes = classes_of(getattr(X, "labels", None) if labels is None else labels, len(mean))
    index = thin(np.arange(len(mean)), _MAX_ROWS)
    mean, deviation = mean[index][:, chosen], deviation[index][:, chosen]
    own, ax = ax is None, new_axes(ax, height=3.6 if classes is not None else 3.4)
    bounded = hasattr(vae, "prior_coefficients")
    prior = np.eye(2) / 6.25 if bounded else np.eye(2)  # what makes the window hold [-1, 1]
    view = view_of(prior, mean)
    if bounded:
        style: dict[str, Any] = {"color": BLACK, "ls": (0, (4, 2)), "lw": 0.8, "zorder": 1.5}
        ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], label="bounds of z", **style)
    else:
        draw_prior(ax, prior)
    draw_ellipses(ax, mean, _diagonal(deviation), view)
    if classes is None:
        size = float(np.clip(3000.0 / len(mean), 3.0, 12.0))
        drawn = ax.scatter(mean[:, 0], mean[:, 1], s=size, color=BLUE, lw=0, zorder=2, label="mean of q(z | x)")
        drawn.set_rasterized(len(mean) > 500)
    else:
        draw_classes(ax, mean, classes[index])
    frame_plane(ax, view, chosen)
    legend_below(ax, own)
    return ax


def _diagonal(deviation: Array) -> Array:
    """Covariances `(N, 2, 2)` without correlation."""
    return np.asarray(np.square(deviation)[:, :, None] * np.eye(2))


@styled
def plot_posterior_densities(
    posteriors: Distribution,
    prior: Distribution | None = None,
    dimensions: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    columns: int = 2,
    figure: Figure | None = None,
) -> Figure:
    """Draw q(z | x) of a few rows on [-1, 1], in a panel for each latent, over the prior.

    A `CoarseBPEF` is drawn as its probabilities over the distance of two levels, which is comparable with a density.
    Where one peak is so high that the others could not be seen, it is cut off, with its height beside it.

    Args:
        posteriors: as `CGBPEFVAE.encode(x)` gives them, batch shape `(n,)` and event shape `(S,)`; or a `CoarseBPEF` or
            `BPEF` of batch shape `(n,)`, or `(n, S)`. Up to 7 rows.
        prior: of the same latents, as `CGBPEFVAE.prior()`; drawn as an area.
        dimensions: the latents to draw, from 0; by default all of them, or the first 10.
        labels: one for each row; "row 0", "row 1", ... by default.
        columns: how many panels in a line.
        figure: a figure, or subfigure, to draw into; a new one by default.

    Returns:
        The figure.

    Raises:
        ParameterError: another kind of distribution, too many rows or latents, or not one label for each row.

    Source:
        CG-BPEF, eq. 2 and section 3.2.

    Example:
        >>> import torch
        >>> from girih.plots import plot_posterior_densities
        >>> from girih.vae import BPEF, CGBPEFVAE
        >>> vae = CGBPEFVAE([3, 8, 12], seed=0)
        >>> len(plot_posterior_densities(vae.encode(torch.randn(4, 12)), vae.prior()).axes)
        3
        >>> plot_posterior_densities(BPEF(torch.tensor([[0.0, 8.0, 0.0, -9.0]]))).axes[0].get_xlabel()
        'latent z'
    """
    tables = _densities(posteriors, "posteriors")
    if len(tables) > len(CYCLE):
        raise ParameterError(f"{len(tables)} rows are too many to tell apart; pass at most {len(CYCLE)}, e.g. x[:5]")
    labels = [f"row {i}" for i in range(len(tables))] if labels is None else [plain_text(label) for label in labels]
    if len(labels) != len(tables):
        raise ParameterError(f"labels holds {len(labels)} texts for {len(tables)} rows; pass one for each")
    below = None if prior is None else _densities(prior, "prior")[0]
    latents = len(tables[0])
    if below is not None and len(below) != latents:
        raise ParameterError(f"the prior has {len(below)} latents, and the posteriors have {latents}")
    chosen = list(range(min(latents, 10))) if dimensions is None else [whole(k, "dimensions", 0) for k in dimensions]
    if not chosen or max(chosen) >= latents or len(chosen) > _MAX_PANELS:
        raise ParameterError(
            f"dimensions must be latents from 0 to {latents - 1}, from 1 to {_MAX_PANELS} of them; got {chosen}"
        )
    columns = min(whole(columns, "columns"), len(chosen))
    lines = math.ceil(len(chosen) / columns)
    if figure is None:
        figure = new_figure(COLUMN * max(1.0, columns / 2), 0.5 + 1.45 * lines)
    for panel, k in enumerate(chosen):
        ax = figure.add_subplot(lines, columns, panel + 1)
        if below is not None:
            z, density = below[k]
            ax.fill_between(z, density, color=LIGHT, lw=0, label="prior")
        top = _highest([row[k][1].max() for row in tables])
        for style, label, row in zip(CYCLE, labels, tables, strict=False):
            z, density = row[k]
            ax.plot(z, density, color=style["color"], ls=style["linestyle"], lw=1.2, label=label)
            if density.max() > top:
                peak = float(z[density.argmax()])
                side = "right" if peak > 0.0 else "left"
                place = (peak - 0.03 if side == "right" else peak + 0.03, top)
                ax.text(*place, f"{density.max():.3g}", color=style["color"], ha=side, va="top", fontsize=7)
        ax.set(xlim=(-1.0, 1.0), ylim=(0.0, top))
        ax.set_xlabel("latent z" if latents == 1 else f"latent $z_{{{k + 1}}}$")
        ax.set_ylabel("density" if panel % columns == 0 else "")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3 if len(names) in (5, 6) else 4, columnspacing=1.0)
    return figure


def _highest(peaks: list[float]) -> float:
    """The end of the axis: above all peaks, or at 3 times their median if some are higher than that by far."""
    highest, cut = 1.06 * max(peaks), 3.0 * float(np.median(peaks))
    return cut if highest > 1.5 * cut else highest


def _densities(distribution: Distribution, name: str) -> list[list[tuple[Array, Array]]]:
    """Rows, latents and `(z, density)` of a distribution of the family.

    Raises:
        ParameterError: it is of another kind.
    """
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    if not isinstance(base, CoarseBPEF | BPEF):
        raise ParameterError(
            f"{name} must be a CoarseBPEF or a BPEF, or independent ones, as CGBPEFVAE.encode gives; got {type(base)}"
        )
    z, density = _curve(base)
    event = len(distribution.event_shape)
    batch = density.shape[:-1]
    latents = batch[-1] if event or len(batch) > 1 else 1
    table = to_array(density).reshape(-1, latents, len(z))
    return [[(to_array(z), curve) for curve in row] for row in table]


def _curve(base: CoarseBPEF | BPEF) -> tuple[Tensor, Tensor]:
    if isinstance(base, CoarseBPEF):
        return base.levels, base.probs * (0.5 * (len(base.levels) - 1))
    # even steps in arccos z, which resolve a polynomial's peaks at the ends as well as inside
    z = torch.as_tensor(-np.cos(np.linspace(0.0, np.pi, _POINTS)))
    log_p = base.log_prob(z.reshape(-1, *(1,) * len(base.batch_shape)))
    return z, log_p.exp().movedim(0, -1)


@renamed({"count": "values"})
@styled
def plot_traversals(
    vae: VAE,
    start: ArrayLike,
    image_shape: tuple[int, ...] | None = None,
    dimensions: Sequence[int] | None = None,
    values: ArrayLike | int = 9,
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
        values: those that each latent takes, `(K,)`; or K, for as many quantiles of the prior from 2% to 98% or points
            of [-1, 1]. Of categories all are shown.
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
    every = np.ndim(values) == 0
    at = vae.family.axis(0, whole(values, "values"), vae.device) if every else as_tensor(values, "values")
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


def _draw_profiles(ax: Axes, path: Array, colours: Array, names: list[str]) -> None:
    features = np.arange(path.shape[1])
    for profile, colour in zip(path, colours, strict=True):
        ax.plot(features, profile, color=colour, lw=1.0, marker="o" if len(features) <= _NAMED else None, ms=2.5)
    if len(features) <= _NAMED:
        upright = max(map(len, names)) <= 8
        ax.set_xticks(features, names, rotation=0 if upright else 35, ha="center" if upright else "right")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set(xlabel="feature" if len(features) <= _NAMED else "feature, by number from 0", ylabel="E[x | z]")


def _draw_path(ax: Axes, path: Array, colours: Array, names: list[str]) -> None:
    ax.plot(*path.T, color=GREY, lw=0.8, zorder=1)
    ax.scatter(path[:, 0], path[:, 1], c=colours, s=16.0, lw=0, zorder=2)
    ax.set(xlabel=f"E[{names[0]} | z]", ylabel=f"E[{names[1]} | z]")
    ax.set_aspect("equal", adjustable="box")
