"""Curves of training: one fit, or several methods with their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from girih._arrays import as_tensor
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.plots.data import Array, to_array
from girih.plots.style import BLUE, CYCLE, GREY, LIGHT, legend_below, log_scale, new_axes, styled

NLL_LABEL = "negative log-likelihood (nats per row)"


@styled
def plot_nll_curve(
    curve: Any,
    ax: Axes | None = None,
    xlabel: str = "EM iteration",
    ylabel: str = NLL_LABEL,
    references: Mapping[str, float] | None = None,
) -> Axes:
    """Draw a curve such as `est.nll_curve_` against its index, with the last value in the legend.

    Args:
        curve: values `(K,)`.
        ax: axes to draw into; those of a new figure by default.
        xlabel: what the index counts.
        ylabel: what the values are, with their unit.
        references: horizontal lines by label, e.g. `{"entropy of the truth": dataset.entropy}`.

    Returns:
        The axes.

    Raises:
        ShapeError, EmptyDataError: the curve is not a list of at least one number.

    Example:
        >>> from girih.plots import plot_nll_curve
        >>> plot_nll_curve([3.0, 1.0, 0.5]).get_ylabel()
        'negative log-likelihood (nats per row)'
    """
    y = _vector(curve, "curve")
    own, ax = ax is None, new_axes(ax, height=3.0)
    marker = "o" if len(y) <= 30 else None
    ax.plot(np.arange(len(y)), y, color=BLUE, marker=marker, ms=3, label=f"ends at {y[-1]:.3f}")
    _draw_references(ax, references)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.margins(x=0.02)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    legend_below(ax, own)
    return ax


@styled
def plot_training_curves(
    runs: Mapping[str, Any],
    xlabel: str,
    ylabel: str = NLL_LABEL,
    ax: Axes | None = None,
    logx: bool = False,
    logy: bool = False,
    references: Mapping[str, float] | None = None,
) -> Axes:
    """Draw one line for each method: the median over its seeds, with their range as a band.

    Args:
        runs: label to `(x, y)` with x `(K,)` and y `(K,)` or `(seeds, K)`; or to a list with one `(x, y)`, or one y
            alone, for each seed. Seeds with their own x (seconds, say) are put on a common one, up to the shortest.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        ax: axes to draw into; those of a new figure by default.
        logx: a logarithmic x-axis; values at or below 0 are not drawn.
        logy: a logarithmic y-axis; the values must be positive.
        references: horizontal lines by label.

    Returns:
        The axes.

    Raises:
        ShapeError: x and y of a run do not fit each other.
        EmptyDataError: there are no runs.
        ParameterError: there are more runs than lines that can be told apart, or a value has no logarithm.

    Example:
        >>> import numpy as np
        >>> from girih.plots import plot_training_curves
        >>> x = np.arange(5)
        >>> runs = {"EM": (x, np.exp(-x)), "VAE": [(x, 2.0 - 0.1 * x), (x, 2.2 - 0.1 * x)]}
        >>> plot_training_curves(runs, "epoch").get_xlabel()
        'epoch'
    """
    if not runs:
        raise EmptyDataError("there are no runs to draw")
    if len(runs) > len(CYCLE):
        raise ParameterError(f"{len(runs)} runs are too many to tell apart; draw at most {len(CYCLE)} in one picture")
    own, ax = ax is None, new_axes(ax, height=3.0)
    counts: list[int] = []
    for style, (label, run) in zip(CYCLE, runs.items(), strict=False):
        x, y = _seeds(label, run)
        counts.append(len(y))
        if logy and not (y[np.isfinite(y)] > 0).all():
            raise ParameterError(f"{label!r} has values at or below 0, which a logarithmic axis cannot show")
        if logx:
            x, y = x[x > 0], y[:, x > 0]
        middle = np.nanmedian(y, 0)
        ax.plot(x, middle, **style, ms=3.5, markevery=_marks(x, logx), label=label)
        if len(y) > 1:
            ax.fill_between(x, np.nanmin(y, 0), np.nanmax(y, 0), color=style["color"], alpha=0.18, lw=0)
    if max(counts) > 1:
        number = f"{counts[0]} seeds" if len(set(counts)) == 1 else "seeds"
        ax.fill_between([], [], color=LIGHT, lw=0, label=f"median, range of {number}")
    _draw_references(ax, references)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if logx:
        log_scale(ax, "x")
    if logy:
        log_scale(ax, "y")
    legend_below(ax, own)
    return ax


def _vector(value: Any, name: str) -> Array:
    try:
        vector = to_array(as_tensor(value, name))
    except ShapeError:
        raise ShapeError(f"{name} must be a list of numbers") from None
    if vector.ndim != 1:
        raise ShapeError(f"{name} must be a list of numbers; got shape {vector.shape}")
    if not len(vector):
        raise EmptyDataError(f"{name} has no values to draw")
    return vector


def _seeds(label: str, run: Any) -> tuple[Array, Array]:
    """x `(K,)` and y `(seeds, K)` of one method."""
    if isinstance(run, tuple) and len(run) == 2:
        x = _vector(run[0], f"x of {label!r}")
        y = np.atleast_2d(np.asarray(run[1], dtype=np.float64))
        if y.ndim != 2 or y.shape[1] != len(x):
            raise ShapeError(
                f"{label!r} has x of length {len(x)} and y of shape {y.shape}; y must be (K,) or (seeds, K)"
            )
        return x, y
    if not isinstance(run, Sequence) or not len(run):
        raise ShapeError(f"{label!r} must be (x, y), or a list with one (x, y) or one y for each seed")
    pairs = [_pair(label, part) for part in run]
    longest = max((x for x, _ in pairs), key=len)
    if all(np.array_equal(x, longest[: len(x)]) for x, _ in pairs):
        padded = [np.pad(y, (0, len(longest) - len(y)), constant_values=np.nan) for _, y in pairs]
        return longest, np.stack(padded)
    start, end = max(x[0] for x, _ in pairs), min(x[-1] for x, _ in pairs)
    if not end > start:
        raise ShapeError(f"the seeds of {label!r} have no x in common")
    common = np.unique(np.concatenate([x[(x >= start) & (x <= end)] for x, _ in pairs]))
    return common, np.stack([np.interp(common, x, y) for x, y in pairs])


def _pair(label: str, part: Any) -> tuple[Array, Array]:
    if isinstance(part, tuple) and len(part) == 2:
        x, y = _vector(part[0], f"x of {label!r}"), _vector(part[1], f"y of {label!r}")
        if len(x) != len(y):
            raise ShapeError(f"a seed of {label!r} has x of length {len(x)} and y of length {len(y)}")
        return x, y
    y = _vector(part, f"y of {label!r}")
    return np.arange(len(y), dtype=np.float64), y


def _marks(x: Array, logx: bool) -> list[int]:
    """About eight points to mark, evenly spaced in the picture."""
    if len(x) < 2:
        return [0] if len(x) else []
    at = np.log(x) if logx else x
    return sorted({int(np.abs(at - target).argmin()) for target in np.linspace(at[0], at[-1], 8)})


def _draw_references(ax: Axes, references: Mapping[str, float] | None) -> None:
    for style, (label, value) in zip(((0, (4, 2)), (0, (1, 1.5)), "-"), (references or {}).items(), strict=False):
        ax.axhline(value, color=GREY, ls=style, lw=1.0, label=label)
