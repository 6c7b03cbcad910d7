"""Pictures of the angles between adjacent cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from girih.plots import BLUE, CYCLE, GREEN, SKY, new_figure, styled

_EDGES = np.linspace(0.0, 0.5 * np.pi, 46).tolist()
_TICKS = ([0.0, 0.25 * np.pi, 0.5 * np.pi], ["0", "π/4", "π/2"])
_FREE = "independent subspaces"

# Angles by S, D, number of hidden layers and width; and those of independent subspaces by S and D.
Sampled = Mapping[tuple[int, int, int, int], np.ndarray]
Free = Mapping[tuple[int, int], np.ndarray]


@styled
def draw_grid(sampled: Sampled, free: Free, depth: int, widths: Sequence[int]) -> Figure:
    """A panel for each S and D, rows by S, with all widths in it."""
    dims = list(free)
    rows = sorted({S for S, _ in dims})
    columns = [[D for s, D in dims if s == S] for S in rows]
    count = max(map(len, columns))
    figure = new_figure(max(2.2 * count + 0.4, 5.0), 1.5 * len(rows) + 0.7)
    axes = figure.subplots(len(rows), count, sharex=True, squeeze=False)
    for i, S in enumerate(rows):
        for j in range(count):
            ax = axes[i, j]
            if j >= len(columns[i]):
                ax.set_axis_off()
                continue
            D = columns[i][j]
            _shade(ax, free[S, D], SKY)
            # colours after the blue of the independent ones
            for k, width in enumerate(widths):
                style = CYCLE[1 + k % (len(CYCLE) - 2)]
                ax.hist(
                    sampled[S, D, depth, width], _EDGES, density=True, histtype="step", color=style["color"],
                    linestyle=style["linestyle"], linewidth=1.1, label=f"width {width}",
                )  # fmt: skip
            ax.set_yscale("symlog", linthresh=1.0)
            ax.set_ylim(0.0, 40.0)
            ax.set_yticks([0, 1, 10], ["0", "1", "10"])
            ax.set_yticks([], minor=True)
            ax.set_title(f"S = {S}, D = {D}")
            ax.set_xticks(*_TICKS)
            if i == len(rows) - 1:
                ax.set_xlabel("largest angle (rad)")
            if j == 0:
                ax.set_ylabel("density (1/rad)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.suptitle(f"{depth} hidden layer{'s' if depth > 1 else ''}", fontsize=9.0)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))
    return figure


@styled
def draw_widths(
    sampled: Sampled, free: Free, S: int, outputs: Sequence[int], depth: int, widths: Sequence[int]
) -> Figure:
    """A row for each width and a column for each D."""
    figure = new_figure(5.6, 0.95 * len(widths) + 1.1)
    axes = figure.subplots(len(widths), len(outputs), sharex=True, squeeze=False)
    for i, width in enumerate(widths):
        for j, D in enumerate(outputs):
            ax = axes[i, j]
            _shade(ax, free[S, D], BLUE)
            ax.hist(
                sampled[S, D, depth, width], _EDGES, density=True, color=GREEN, alpha=0.45, label="adjacent cells"
            )  # fmt: skip
            ax.hist(sampled[S, D, depth, width], _EDGES, density=True, histtype="step", color=GREEN, linewidth=1.0)
            ax.set_xticks(*_TICKS)
            if i == 0:
                ax.set_title(f"S = {S}, D = {D}")
            if i == len(widths) - 1:
                ax.set_xlabel("largest angle (rad)")
            if j == 0:
                ax.set_ylabel(f"width {width}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.suptitle(f"{depth} hidden layer{'s' if depth > 1 else ''}; densities (1/rad)", fontsize=9.0)
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _shade(ax: Axes, angle: np.ndarray, colour: str) -> None:
    ax.hist(angle, _EDGES, density=True, color=colour, alpha=0.35, label=_FREE)
