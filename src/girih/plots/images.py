"""Rows and samples: as images, in sheets and along the latent, or as points over each other."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from numpy.typing import ArrayLike, NDArray

from girih._arrays import as_rows, as_tensor
from girih._options import wholes
from girih.errors import EmptyDataError, LatentDimensionError, ParameterError, ShapeError
from girih.inference import DGN
from girih.plots.numbers import (
    Array,
    fit_figure,
    folded,
    generate,
    label_columns,
    lattice,
    limits_around,
    plane_axes,
    plane_of,
    prior_factor,
    quantiles,
    thin,
    to_array,
)
from girih.plots.style import BLUE, COLUMN, GREY, VERMILLION, legend_below, new_axes, styled

# Between images, in widths of one.
GAP = 0.08
# Images and columns for each latent dimension.
_COUNTS = {1: (16, 8), 2: (100, 10), 3: (27, 9)}
_REACH = 2.5
_MAX_ROWS = 5_000


@styled
def plot_image_manifold(
    dgn: DGN,
    image_shape: tuple[int, ...],
    ax: Axes | None = None,
    count: int | None = None,
    columns: int | None = None,
) -> Axes:
    """Draw g(z) as images: along the latent, over the latent plane, or along each of three axes.

    For S = 1 and 2 the latents are at evenly spaced quantiles of the prior; for S = 2 they form a grid with z1 to the
    right and z2 up. For S = 3 each line has one coordinate from -2.5 to 2.5 prior deviations, the others at 0.

    Args:
        dgn: a model with S = 1, 2 or 3.
        image_shape: `(h, w)`, `(h, w, 1)` or `(h, w, 3)`.
        ax: axes to draw into; those of a new figure by default.
        count: how many images; by default 16, 100 and 27 for S = 1, 2 and 3. Whole lines for S = 2; for S = 3 one
            line for each coordinate.
        columns: how many of them in a line; by default 8, 10 and 9.

    Returns:
        The axes.

    Raises:
        ShapeError: image_shape does not hold D values.
        ParameterError: count or columns below 1.

    Example:
        >>> import girih
        >>> from girih.plots import plot_image_manifold
        >>> dgn = girih.DGN(girih.mlp([1, 8, 64], seed=0), noise=0.01)
        >>> plot_image_manifold(dgn, (8, 8), count=4).get_xlabel()
        'g(z) at prior quantiles of z from 12% to 88%'
    """
    S = dgn.latent_dim
    if S > 3:
        raise LatentDimensionError(f"plot_image_manifold draws models with S = 1, 2 or 3, and this one has S = {S}")
    count = _COUNTS[S][0] if count is None else count
    columns = _COUNTS[S][1] if columns is None else columns
    _check_grid(count, columns)
    if S == 1:
        probabilities = (np.arange(count) + 0.5) / count
        z = quantiles(dgn, probabilities)[:, None]
        columns, captions = min(columns, count), [_number(value) for value in z[:, 0]]
        first, last = (f"{100 * probabilities[i]:.2g}%" for i in (0, -1))
        label = f"g(z) at prior quantiles of z from {first} to {last}"
    elif S == 2:
        lines = math.ceil(count / columns)
        z, captions = lattice(dgn, lines, columns).reshape(-1, 2), None
        label = "g(z) at prior quantiles of $z_1$ (to the right) and $z_2$ (up)"
    else:
        steps = np.linspace(-_REACH, _REACH, columns)
        z = np.concatenate([np.outer(steps, axis) for axis in prior_factor(dgn).T])
        captions = [_number(value) for value in np.tile(steps, 3)]
        label = "g(z) along $z_1$, $z_2$, $z_3$ (lines), in prior deviations"
    ax = draw_tiles(ax, as_images(generate(dgn, z), image_shape, "image_shape"), columns, captions)
    ax.set_xlabel(label)
    return ax


@styled
def plot_image_samples(
    images: ArrayLike,
    image_shape: tuple[int, ...],
    rows: int = 4,
    cols: int = 8,
    ax: Axes | None = None,
    label: str = "samples",
) -> Axes:
    """Draw the first rows x cols images as a sheet. Missing pixels are left grey.

    Args:
        images: rows `(N, D)`.
        image_shape: `(h, w)`, `(h, w, 1)` or `(h, w, 3)`.
        rows: how many lines at most.
        cols: how many images in a line.
        ax: axes to draw into; those of a new figure by default.
        label: what the images are, written below them.

    Returns:
        The axes.

    Raises:
        ShapeError: images are not rows of that shape.
        ParameterError: rows or cols below 1.

    Example:
        >>> from girih.datasets import load
        >>> from girih.plots import plot_image_samples
        >>> plot_image_samples(load("digits-4"), (8, 8), rows=2, label="fours").get_xlabel()
        'fours'
    """
    _check_grid(rows, cols)
    table = to_array(as_tensor(images, "images"))
    if table.ndim == 1 + len(image_shape):
        table = table.reshape(len(table), -1)
    if table.ndim != 2 or len(table) == 0:
        raise ShapeError(f"images must be rows of shape (N, D), at least one; got shape {table.shape}")
    shown = as_images(table[: rows * cols], image_shape, "image_shape")
    ax = draw_tiles(ax, shown, min(cols, len(shown)), None)
    ax.set_xlabel(label)
    return ax


def _check_grid(*numbers: int) -> None:
    if min(numbers) < 1:
        raise ParameterError(f"a grid of images needs at least one line and one column; got {numbers}")


def as_images(table: Array, image_shape: tuple[int, ...], name: str) -> Array:
    """Rows as images, `(n, h, w)` or `(n, h, w, 3)`.

    Raises:
        ShapeError: the shape does not hold D values.
    """
    shape = wholes(image_shape, name, None)
    if math.prod(shape) != table.shape[1] or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise ShapeError(
            f"{name} must be (h, w), (h, w, 1) or (h, w, 3) with D = {table.shape[1]} values in all; got {shape}"
        )
    return table.reshape(len(table), *(shape[:2] if shape[2:] == (1,) else shape))


def draw_tiles(ax: Axes | None, images: Array, columns: int, captions: list[str] | None) -> Axes:
    """Images side by side, in lines, in units of their width, with the same scale of greys for all."""
    lines = math.ceil(len(images) / columns)
    height = images.shape[1] / images.shape[2]
    below = GAP if captions is None else 2.6 / 72.0 * 4.0 * columns / COLUMN  # room for a line of 7 points
    wide, high = columns * (1 + GAP) - GAP, lines * (height + below)
    ax = new_axes(ax, height=0.35 + COLUMN * high / wide)
    grey = images.ndim == 3
    shown = images[np.isfinite(images)]
    low, top = np.percentile(shown, (1.0, 99.5)).tolist() if len(shown) else (0.0, 1.0)
    for i, image in enumerate(images):
        left, up = (i % columns) * (1 + GAP), -(i // columns) * (height + below)
        extent = (left, left + 1.0, up - height, up)
        if grey:
            ax.imshow(image, cmap=_ink(), vmin=low, vmax=max(top, low + 1e-12), extent=extent)
        else:
            ax.imshow(_colours(image), extent=extent)
        if captions is not None:
            ax.text(left + 0.5, up - height - 0.1 * below, captions[i], ha="center", va="top", fontsize=6.5)
    ax.set(xlim=(-0.02, wide + 0.02), ylim=(-high - (0.0 if captions else 0.02), 0.02), xticks=[], yticks=[])
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    return ax


def _ink() -> Colormap:
    """White paper for the smallest value, black for the largest, missing pixels in between."""
    return matplotlib.colormaps["gray_r"].with_extremes(bad="#C9D8E6")


def _colours(image: Array) -> NDArray[np.float64]:
    return np.clip(np.where(np.isnan(image), 0.75, image), 0.0, 1.0)


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


@styled
def plot_samples(
    X: ArrayLike,
    samples: ArrayLike,
    ax: Axes | None = None,
    labels: tuple[str, str] = ("data", "samples"),
    feature_names: list[str] | None = None,
) -> Axes:
    """Draw rows and samples over each other: histograms for D = 1, the plane for D = 2, principal axes for more.

    The principal axes are those of X. Rows with missing entries are left out, since there is no model to impute them;
    more than 5,000 rows are thinned evenly.

    Args:
        X: rows `(N, D)`.
        samples: rows `(M, D)`, e.g. `dgn().sample((M,))`.
        ax: axes to draw into; those of a new figure by default.
        labels: what X and the samples are called in the legend.
        feature_names: D names; those of X by default.

    Returns:
        The axes.

    Raises:
        ShapeError, EmptyDataError, NonFiniteError: the two are not tables of the same width with complete rows.

    Example:
        >>> import girih
        >>> from girih.datasets import load
        >>> from girih.plots import plot_samples
        >>> circle = load("circle")
        >>> plot_samples(circle, load("circle", seed=1)).get_xlabel()
        '$x_{0}$'
    """
    own = ax is None
    data = _complete(X, "X", None)
    drawn = _complete(samples, "samples", data.shape[1])
    names = label_columns(X, feature_names, data.shape[1])
    if data.shape[1] == 1:
        ax = new_axes(ax)
        _histograms(ax, data[:, 0], drawn[:, 0], labels)
        ax.set(xlabel=names[0], ylabel="density")
    else:
        plane = plane_of(data, names)
        data, drawn = plane.project(data), plane.project(drawn)
        ax = plane_axes(ax, limits_around(None, np.concatenate((data, drawn))))
        size = float(np.clip(2500.0 / max(len(data), len(drawn)), 2.0, 10.0))
        raster = len(data) + len(drawn) > 500
        ax.scatter(data[:, 0], data[:, 1], s=size, color=GREY, lw=0, label=labels[0], rasterized=raster)
        options: dict[str, Any] = {"marker": "+", "lw": 0.6, "rasterized": raster}
        ax.scatter(drawn[:, 0], drawn[:, 1], s=1.8 * size, color=BLUE, label=labels[1], **options)
        ax.set(xlabel=plane.labels[0], ylabel=folded(plane.labels[1]))
    legend_below(ax, own)
    if own and data.shape[1] > 1:
        fit_figure(ax)
    return ax


def _complete(value: ArrayLike, name: str, columns: int | None) -> Array:
    rows = to_array(as_rows(value, name, columns, "the number of columns of X", allow_missing=True))
    complete = np.flatnonzero(~np.isnan(rows).any(1))
    if not len(complete):
        raise EmptyDataError(f"{name} has no complete row to draw; impute it first, e.g. with dgn.impute({name})")
    return np.asarray(rows[thin(complete, _MAX_ROWS)])


def _histograms(ax: Axes, data: Array, drawn: Array, labels: tuple[str, str]) -> None:
    both = np.concatenate((data, drawn))
    edges = np.histogram_bin_edges(both, bins=min(60, max(10, int(len(both) ** 0.5)))).tolist()
    ax.hist(data, edges, density=True, color=GREY, alpha=0.5, label=labels[0])
    ax.hist(drawn, edges, density=True, histtype="step", color=VERMILLION, lw=1.3, label=labels[1])
