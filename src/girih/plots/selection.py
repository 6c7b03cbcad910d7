"""The comparison of models: NLL and criterion of each candidate, and the elbow in the latent dimension."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from girih.errors import ParameterError
from girih.plots.style import BLACK, BLUE, COLUMN, GREEN, GREY, ORANGE, PALE, VERMILLION, new_figure, styled
from girih.selection import Row, SelectionResult

_NAMES = {"bic": "BIC", "aic": "AIC", "held_out": "held-out NLL"}


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
