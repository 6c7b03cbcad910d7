"""Histograms of weighted samples: any numbers, angles between neighbouring cells, log-volumes of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from girih._arrays import as_tensor
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.geometry import Angles, Cells, log_volume
from girih.plots.numbers import Array, to_array
from girih.plots.style import BLUE, CYCLE, legend_below, new_axes, styled

T = TypeVar("T")


@styled
def plot_histograms(
    samples: ArrayLike | Mapping[str, ArrayLike],
    label: str,
    ax: Axes | None = None,
    weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
    bins: int | Sequence[float] = 40,
    share: str = "share",
    means: bool = False,
) -> Axes:
    """Draw histograms of one or several weighted samples over the same bins, each with a total of 1.

    Values that are not finite are in no bin: the legend says how much of the sample they are, so that the bars of a
    sample and its legend add up to 1.

    Args:
        samples: values `(N,)`, or several such arrays by name.
        label: what the values are, with their unit.
        ax: axes to draw into; those of a new figure by default.
        weights: of the values, not negative: `(N,)`, or arrays by name; equal by default.
        bins: how many, or their edges.
        share: what the heights are shares of, the label of the y-axis.
        means: mark the mean of the finite values of each sample by a thin line.

    Raises:
        EmptyDataError: a sample without finite values that have weight.
        ShapeError: weights that are not one for each value.
        ParameterError: negative weights, or names of weights that are not those of the samples.

    Example:
        >>> from girih.plots import plot_histograms
        >>> plot_histograms({"few": [1.0, 2.0], "more": [1.0, 1.5, 4.0]}, "length (m)").get_xlabel()
        'length (m)'
    """
    parts = {name: weighted(values, w, name) for name, (values, w) in _pairs(samples, weights).items()}
    finite = np.concatenate([values[np.isfinite(values) & (w > 0)] for values, w in parts.values()])
    edges = np.histogram_bin_edges(finite, bins if isinstance(bins, int) else np.asarray(bins, float))
    own, ax = ax is None, new_axes(ax)
    for (name, (values, weight)), look in zip(parts.items(), _looks(len(parts)), strict=True):
        known = np.isfinite(values)
        height = np.histogram(values[known], edges, weights=weight[known])[0]
        lost = weight[~known].sum()
        where = "" if lost == 0 else f"{percent(lost)} at {_ends(values[~known & (weight > 0)])}"
        if len(parts) == 1:
            ax.stairs(height, edges, fill=True, color=look["color"], alpha=0.25)
        ax.stairs(
            height, edges, label=(f"{name} ({where})" if name and where else name or where) or None, lw=1.2, **look
        )
        if means:
            mean = (weight * np.where(known, values, 0.0)).sum() / weight[known].sum()
            ax.axvline(mean, lw=0.7, **look)
    ax.set(xlabel=label, ylabel=share, ylim=(0.0, None))
    ax.margins(x=0.01)
    if ax.get_legend_handles_labels()[0]:
        legend_below(ax, own)
    return ax


def weighted(values: ArrayLike, weights: ArrayLike | None, name: str) -> tuple[Array, Array]:
    """Values `(N,)` and their weights, which sum to 1."""
    row = to_array(as_tensor(values, name or "samples")).reshape(-1)
    weight = np.ones(len(row)) if weights is None else to_array(as_tensor(weights, "weights")).reshape(-1)
    if weight.shape != row.shape:
        raise ShapeError(f"weights must be one for each of the {len(row)} values, got shape {weight.shape}")
    if not (weight >= 0).all():
        raise ParameterError("weights must be numbers that are not negative")
    if not (weight[np.isfinite(row)] > 0).any():
        raise EmptyDataError(f"{name or 'samples'} has no finite value to draw")
    return row, weight / weight.sum()


def named(value: T | Mapping[str, T]) -> dict[str, T]:
    """Several things by name, or one thing without a name."""
    return dict(value) if isinstance(value, Mapping) else {"": value}


def cell_weights(cells: Cells) -> tuple[Array, str]:
    """The prior masses of cells, rounding below 0 cut, or equal weights where they have none; and what they are."""
    mass = to_array(cells.mass)
    if np.isnan(mass).any():
        return np.ones(len(cells)), "share of cells"
    return np.clip(mass, 0.0, None), "share of the prior"


def weighted_quantiles(values: Array, weights: Array, at: Sequence[float]) -> Array:
    """Quantiles `(len(at), k)` of the columns of values `(N, k)` under weights `(N,)`: values of the sample itself."""
    out = np.empty((len(at), values.shape[1]))
    for k, column in enumerate(values.T):
        order = np.argsort(column, kind="stable")
        total = np.cumsum(weights[order])
        place = np.searchsorted(total, np.asarray(at) * total[-1] * (1.0 - 1e-12), side="left")
        out[:, k] = column[order][np.minimum(place, len(column) - 1)]
    return out


def percent(share: float) -> str:
    """A share as text, not rounded to 0 or 100% unless it is, up to the rounding of sums."""
    if share == 0.0 or share > 1.0 - 1e-9:
        return "0%" if share == 0.0 else "100%"
    if share < 0.001:
        return f"{100 * share:.1g}%"
    return f"{min(100 * share, 99.9):.3g}%" if share < 0.999 else "over 99.9%"


def _pairs(
    samples: ArrayLike | Mapping[str, ArrayLike], weights: ArrayLike | Mapping[str, ArrayLike] | None
) -> dict[str, tuple[ArrayLike, ArrayLike | None]]:
    some: dict[str, ArrayLike] = named(samples)
    given: Mapping[str, ArrayLike | None] = dict.fromkeys(some) if weights is None else named(weights)
    if set(given) != set(some):
        raise ParameterError(f"weights must have the names of the samples, {list(some)}; got {list(given)}")
    return {name: (some[name], given[name]) for name in some}


def _looks(count: int) -> list[dict[str, Any]]:
    if count == 1:
        return [{"color": BLUE}]
    if count > len(CYCLE):
        raise ParameterError(f"at most {len(CYCLE)} samples can be told apart in one picture, got {count}")
    return [{key: value for key, value in look.items() if key != "marker"} for look in CYCLE[:count]]


def _ends(values: Array) -> str:
    low, high = bool((values == -np.inf).any()), bool((values == np.inf).any())
    if np.isnan(values).any():
        return "NaN"
    return "\N{MINUS SIGN}∞ and ∞" if low and high else "\N{MINUS SIGN}∞" if low else "∞"


@styled
def plot_angles(
    angles: Angles | Mapping[str, Angles],
    ax: Axes | None = None,
    weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
    bins: int = 45,
    full: bool = False,
) -> Axes:
    """Draw the distribution of the largest principal angle over pairs of neighbouring cells, in degrees.

    Args:
        angles: of the cells of one generator, or of several by name.
        ax: axes to draw into; those of a new figure by default.
        weights: of the pairs, `(E,)`, or arrays by name; equal by default.
        bins: how many bars.
        full: show 0 to 90 degrees even where all angles are smaller.

    Raises:
        EmptyDataError: there are no pairs.

    Source:
        MAS, appendix A, Theorem 4, Figures 8 and 11.

    Example:
        >>> import girih
        >>> girih.plots.plot_angles(girih.geometry.angles(girih.mlp([2, 8, 3], seed=0))).get_xlabel()
        'largest angle between neighbours (degrees)'
    """
    degrees = {name: np.degrees(to_array(found.largest)) for name, found in named(angles).items()}
    top = 90.0 if full else min(90.0, max(float(value.max(initial=0.0)) for value in degrees.values()) * 1.001 + 1e-9)
    given = weights if weights is None or isinstance(weights, Mapping) else {"": weights}
    ax = plot_histograms(
        degrees,
        "largest angle between neighbours (degrees)",
        ax,
        given,
        np.linspace(0.0, top, bins + 1).tolist(),
        "share of pairs",
        means=True,
    )
    ax.set_xlim(0.0, top)
    return ax


@styled
def plot_log_volumes(
    cells: Cells | Mapping[str, Cells], ax: Axes | None = None, bins: int = 40, tolerance: float = 1e-10
) -> Axes:
    r"""Draw the distribution of `log sqrt det(A^T A)` over the prior, with its mean as a thin line.

    Cells of rank below S are at minus infinity; the legend says how much of the prior they hold. Cells without
    prior masses count once each.

    Args:
        cells: those of one generator, or of several by name.
        ax: axes to draw into; those of a new figure by default.
        bins: how many bars.
        tolerance: of the rank, as in `girih.geometry.log_volume`.

    Raises:
        EmptyDataError: all cells are of rank below S.

    Source:
        MAS, section 5.1, Figures 7 and 10.

    Example:
        >>> import girih
        >>> cells = girih.geometry.sample_cells(girih.mlp([6, 16, 16, 10], seed=0), 200)
        >>> girih.plots.plot_log_volumes(cells).get_ylabel()
        'share of the prior'
    """
    some = named(cells)
    values = {name: log_volume(of, tolerance).values for name, of in some.items()}
    weights = {name: cell_weights(of)[0] for name, of in some.items()}
    share = {cell_weights(of)[1] for of in some.values()}
    return plot_histograms(
        values,
        r"$\log\sqrt{\det A^\top\!A}$ (nats)",
        ax,
        weights,
        bins,
        share.pop() if len(share) == 1 else "share",
        means=True,
    )
