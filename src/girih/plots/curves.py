"""A number along a run: the NLL of EM, what training records, and models of growing size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from girih._arrays import as_tensor
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.plots.numbers import Array, to_array
from girih.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    CYCLE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PALE,
    VERMILLION,
    legend_below,
    log_scale,
    new_axes,
    new_figure,
    styled,
)
from girih.selection import Row, SelectionResult

NLL_LABEL = "negative log-likelihood (nats per row)"
_NAMES = {"bic": "BIC", "aic": "AIC", "held_out": "held-out NLL"}


@styled
def plot_nll_curve(
    curve: ArrayLike,
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
    runs: Mapping[str, object],
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


def _vector(value: object, name: str) -> Array:
    try:
        vector = to_array(as_tensor(value, name))
    except ShapeError:
        raise ShapeError(f"{name} must be a list of numbers") from None
    if vector.ndim != 1:
        raise ShapeError(f"{name} must be a list of numbers; got shape {vector.shape}")
    if not len(vector):
        raise EmptyDataError(f"{name} has no values to draw")
    return vector


def _seeds(label: str, run: object) -> tuple[Array, Array]:
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


def _pair(label: str, part: object) -> tuple[Array, Array]:
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


@styled
def plot_selection(result: SelectionResult, most: int = 24) -> Figure:
    """Draw each candidate's NLL per row, on training and held-out rows, with BIC / 2N, and the elbow in S.

    All three marks are in nats per row and lower is better: BIC / 2N is the NLL of the training rows plus the price of
    the parameters. The bar on a held-out NLL is one standard error of the mean. The panel of the elbow is drawn for
    two or more latent dimensions; its bar is the standard error of the paired difference from the best S.

    Args:
        result: of `girih.select_model`.
        most: candidates to draw at most, those with the best criterion; baselines are always drawn.

    Returns:
        The figure.

    Raises:
        ParameterError: `most` is not positive.

    Example:
        >>> import girih
        >>> from girih.plots import plot_selection
        >>> X = girih.datasets.load("circle", n=60, seed=0).X
        >>> result = girih.select_model(X, hidden=((2,), (4,)), max_iter=5, n_init=1)
        >>> len(plot_selection(result).axes)
        1
    """
    if most < 1:
        raise ParameterError(f"most must be at least 1; got {most}")
    rows, left_out = _shown(result, most)
    elbow = len(result.elbow.points) > 1
    height = 0.9 + 0.19 * max(len(rows), 6)
    figure = new_figure(2.15 * COLUMN if elbow else 1.5 * COLUMN, max(height, 2.6) if elbow else height)
    if elbow:
        panels: Any = figure.subfigures(1, 2, width_ratios=(1.55, 1.0))
        left, right = panels
        _draw_rows(left.add_subplot(), result, rows, left_out)
        upper, lower = right.subplots(2, 1, sharex=True)
        _draw_elbow(upper, lower, result)
    else:
        _draw_rows(figure.add_subplot(), result, rows, left_out)
    return figure


def _shown(result: SelectionResult, most: int) -> tuple[list[Row], int]:
    own = [row for row in result.rows if row.candidate.is_dgn]
    kept = {id(row) for row in sorted(own, key=lambda row: getattr(row, result.criterion))[:most]}
    rows = [row for row in result.rows if id(row) in kept or not row.candidate.is_dgn]
    return rows, len(result.rows) - len(rows)


def _name(row: Row, noises: set[str]) -> str:
    c = row.candidate
    if not c.is_dgn:
        return f"{c.model}, k = {row.components}"
    layers = f"hidden {c.widths}" if c.hidden else "linear"
    return f"S = {c.latent_dim}, {layers}" + (f", {c.noise}" if len(noises) > 1 else "")


def _draw_rows(ax: Axes, result: SelectionResult, rows: list[Row], left_out: int) -> None:
    noises = {row.candidate.noise for row in result.rows if row.candidate.is_dgn}
    at = np.arange(len(rows))
    best = next(i for i, row in enumerate(rows) if row is result.best)
    ax.axhspan(best - 0.45, best + 0.45, color=PALE, lw=0, zorder=0)
    criterion = "aic" if result.criterion == "aic" else "bic"
    price = np.array([0.5 * getattr(row, f"{criterion}_per_row") for row in rows])
    train = np.array([row.nll for row in rows])
    held_out = np.array([row.held_out for row in rows])
    for y, low, high in zip(at, train, np.fmax(price, held_out), strict=True):
        ax.plot((low, high), (y, y), color="#C8C8C8", lw=0.8, zorder=1)
    style: dict[str, Any] = {"ls": "none", "zorder": 3}
    ax.plot(train, at, marker="o", mfc="white", mec=BLUE, ms=4.2, label="NLL, training rows", **style)
    if np.isfinite(held_out).any():
        error = [row.held_out_error if math.isfinite(row.held_out_error) else 0.0 for row in rows]
        ax.errorbar(
            held_out, at, xerr=error, fmt="s", color=VERMILLION, ms=3.8, lw=0.9, zorder=2.5, label="NLL, held-out rows"
        )
    ax.plot(price, at, marker="D", color=BLACK, ms=3.4, label=f"{_NAMES[criterion]} / 2N", **style)
    ax.set_yticks(at, [_name(row, noises) for row in rows])
    ax.get_yticklabels()[best].set_fontweight("bold")
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    more = f"; {left_out} worse ones not drawn" if left_out else ""
    ax.set_xlabel(f"nats per row (best by {_NAMES[result.criterion]}: shaded{more})")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.grid(axis="x", color="#EEEEEE", lw=0.6)
    handles, labels = ax.get_legend_handles_labels()
    parent: Any = ax.get_figure()
    parent.legend(
        handles, labels, loc="outside upper center" if isinstance(parent, Figure) else "upper center", ncols=3
    )
    if not isinstance(parent, Figure):
        ax.set_title(" ", pad=6)  # room for the legend of a subfigure


def _draw_elbow(upper: Axes, lower: Axes, result: SelectionResult) -> None:
    points = result.elbow.points
    dims = [point.latent_dim for point in points]
    gap = np.array([point.gap for point in points])
    error = np.nan_to_num(np.array([point.gap_error for point in points]))
    paired = math.isfinite(points[0].row.held_out)
    upper.errorbar(dims, gap, yerr=error, color=VERMILLION, marker="s", ms=4.0, lw=1.3, elinewidth=0.9)
    upper.axhline(0.0, color=GREY, lw=0.7, zorder=0)
    upper.set_ylabel(("held-out NLL" if paired else f"{_NAMES[result.criterion]} / 2N") + "\nabove the best S")
    lower.plot(dims, [100.0 * point.explained for point in points], color=GREEN, marker="^", ms=4.5)
    lower.set_ylabel("variance\nexplained (%)")
    lower.set_xlabel(f"latent dimension S (suggested: {result.elbow.suggested})")
    lower.set_xticks(dims)
    lower.margins(x=0.12)
    for ax in (upper, lower):
        ax.axvline(result.elbow.suggested, color=ORANGE, lw=4.0, alpha=0.35, zorder=0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
