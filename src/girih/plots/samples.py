"""Samples of a model beside the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from girih._arrays import as_rows
from girih.errors import EmptyDataError
from girih.plots.data import Array, folded, label_columns, thin, to_array
from girih.plots.plane import fit_figure, limits_around, plane_axes, plane_of
from girih.plots.style import BLUE, GREY, VERMILLION, legend_below, new_axes, styled

_MAX_ROWS = 5_000


@styled
def plot_samples(
    X: Any,
    samples: Any,
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


def _complete(value: Any, name: str, columns: int | None) -> Array:
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
