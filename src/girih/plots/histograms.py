"""Histograms of weighted samples, several in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes

from girih._arrays import as_tensor
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.geometry import Cells
from girih.plots.data import Array, to_array
from girih.plots.style import BLUE, CYCLE, legend_below, new_axes, styled

T = TypeVar("T")


@styled
def plot_histograms(
    samples: Any,
    label: str,
    ax: Axes | None = None,
    weights: Any = None,
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


def weighted(values: Any, weights: Any, name: str) -> tuple[Array, Array]:
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


def _pairs(samples: Any, weights: Any) -> dict[str, tuple[Any, Any]]:
    some = named(samples)
    given = dict.fromkeys(some) if weights is None else named(weights)
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
