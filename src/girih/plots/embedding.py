"""The embedding of the rows: where each lies in the latent space, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from girih.errors import ParameterError, ShapeError
from girih.inference import DGN
from girih.plots.data import Array, plain_text, prior_deviation, quantiles, thin, to_array
from girih.plots.latents import draw_plane
from girih.plots.style import BLACK, BLUE, GREY, LIGHT, VERMILLION, legend_below, new_axes, styled

_MAX_ROWS = 4_000
_MAX_CLASSES = 20
_PRIOR: dict[str, Any] = {"color": BLACK, "ls": (0, (4, 2)), "lw": 1.0, "label": "prior"}


@styled
def plot_embedding(
    dgn: DGN, X: Any, labels: Any = None, ax: Axes | None = None, coordinates: Sequence[int] = (0, 1)
) -> Axes:
    """Draw E[z | x] of each row with its posterior deviation, against the prior.

    For S = 1 the rows are sorted; with labels, each class has a band of its own. The strip above compares the
    posterior means of all rows with the density of the prior.

    For S = 2 and 3 the axes are two coordinates of z, and rows are points coloured by their class, or else by
    log p(x). Ellipses are one posterior deviation wide, circles are 1, 2 and 3 deviations of the prior, and for
    S = 2 thin lines are the cell limits.

    Entries that are NaN are marginalised; more than 4,000 rows are thinned evenly.

    Args:
        dgn: a model with S = 1, 2 or 3.
        X: rows `(N, D)`.
        labels: a class for each row, `(N,)`, at most 20 different; those of X, where it is a `Dataset`, by default.
        ax: axes to draw into; those of a new figure by default.
        coordinates: the two coordinates of z to draw, where S is 2 or 3.

    Returns:
        The axes of the rows.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError: X or labels do not fit.
        ParameterError: more than 20 classes, or coordinates that are not two of z.

    Example:
        >>> import girih
        >>> from girih.datasets import load
        >>> from girih.plots import plot_embedding
        >>> dgn = girih.DGN(girih.mlp([1, 8, 4], seed=0), noise=0.5)
        >>> [tick.get_text() for tick in plot_embedding(dgn, load("iris")).get_yticklabels()]
        ['setosa', 'versicolor', 'virginica']
    """
    rows = dgn.rows(X).detach()
    classes = classes_of(getattr(X, "labels", None) if labels is None else labels, len(rows))
    index = thin(np.arange(len(rows)), _MAX_ROWS)
    posterior = dgn.posterior(rows[index])
    if dgn.latent_dim > 1:
        return draw_plane(dgn, posterior, None if classes is None else classes[index], ax, coordinates)
    mean, deviation = to_array(posterior.mean)[:, 0], to_array(posterior.variance)[:, 0] ** 0.5
    own, ax = ax is None, new_axes(ax, height=3.2)
    if classes is None:
        order = np.argsort(mean, kind="stable")
        height = np.empty(len(mean))
        height[order] = (np.arange(len(mean)) + 0.5) / len(mean)
        _draw_rows(ax, mean, deviation, height, BLUE)
        share = np.linspace(0.001, 0.999, 400)
        ax.plot(quantiles(dgn, share), share, **_PRIOR)
        ax.set(ylim=(0.0, 1.0), ylabel="rank of the row / N")
    else:
        _draw_classes(ax, mean, deviation, classes[index])
        ax.plot([], [], **_PRIOR)
    ax.set_xlabel("latent z")
    ax.set_xlim(*_range(dgn, mean))
    legend_below(ax, own)
    _draw_strip(ax, dgn, mean)
    return ax


def classes_of(labels: Any, count: int) -> NDArray[Any] | None:
    """Labels as an array, one class for each row; `None` where there is nothing to tell apart.

    Raises:
        ShapeError: not one for each row.
        ParameterError: more classes than can be drawn.
    """
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ShapeError(f"labels must hold one class for each of the {count} rows; got shape {array.shape}")
    array = array.astype(str) if array.dtype.kind == "O" else array
    different = len(np.unique(array))
    if different > _MAX_CLASSES:
        raise ParameterError(f"labels holds {different} different classes; at most {_MAX_CLASSES} can be drawn")
    return array if different > 1 else None


def _draw_rows(ax: Axes, mean: Array, deviation: Array, height: Array, colour: str, label: bool = True) -> None:
    bars = np.stack((np.stack((mean - deviation, height), 1), np.stack((mean + deviation, height), 1)), 1)
    raster = len(mean) > 300
    width = float(np.clip(120.0 / len(mean), 0.35, 1.2))
    spread = LineCollection(list(bars), color=GREY, lw=width, alpha=0.6, rasterized=raster, zorder=1)
    ax.add_collection(spread)
    size = float(np.clip(1500.0 / len(mean), 1.5, 9.0))
    ax.scatter(
        mean, height, s=size, color=colour, lw=0, rasterized=raster, zorder=2, label="E[z | x]" if label else None
    )
    if label:
        ax.plot([], [], color=GREY, lw=1.0, label="±1 deviation")


def _draw_classes(ax: Axes, mean: Array, deviation: Array, classes: NDArray[Any]) -> None:
    """A band for each class, rows sorted within it."""
    names = np.unique(classes)
    for band, name in enumerate(names):
        own = np.flatnonzero(classes == name)
        own = own[np.argsort(mean[own], kind="stable")]
        height = band + 0.1 + 0.8 * (np.arange(len(own)) + 0.5) / len(own)
        _draw_rows(ax, mean[own], deviation[own], height, (BLUE, VERMILLION)[band % 2], label=band == 0)
        if band:
            ax.axhline(band, color=LIGHT, lw=0.6, zorder=0)
    ax.set(ylim=(0, len(names)), ylabel="class, rows sorted within", yticks=np.arange(len(names)) + 0.5)
    ax.set_yticklabels([plain_text(name) for name in names])
    ax.tick_params(axis="y", length=0)


def _range(dgn: DGN, mean: Array) -> tuple[float, float]:
    deviation = prior_deviation(dgn)
    low, high = min(-3.0 * deviation, float(mean.min())), max(3.0 * deviation, float(mean.max()))
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def _draw_strip(ax: Axes, dgn: DGN, mean: Array) -> None:
    strip = ax.inset_axes((0.0, 1.04, 1.0, 0.2), sharex=ax)
    low, high = ax.get_xlim()
    bins = int(np.clip(len(mean) ** 0.5 * 1.5, 12, 60))
    strip.hist(mean, np.linspace(low, high, bins + 1).tolist(), density=True, color=LIGHT, edgecolor=GREY, lw=0.4)
    z, deviation = np.linspace(low, high, 300), prior_deviation(dgn)
    density = np.exp(-0.5 * (z / deviation) ** 2) / (deviation * np.sqrt(2.0 * np.pi))
    strip.plot(z, density, **_PRIOR)
    strip.set_ylabel("density\nof E[z | x]", fontsize=7)
    strip.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
    strip.tick_params(axis="x", labelbottom=False, length=0)
