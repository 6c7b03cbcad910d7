"""A partition as it is found: from cell to cell, or one layer or unit after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import nn

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import ParameterError
from girih.networks import Trace
from girih.partition import Partition
from girih.partition.complex import FAKE, IDEAL
from girih.partition.polygons import Polygons, Window, axis_names, cell_polygons, planar_cells, segments, window
from girih.plots.cells import draw_cells, edge_width
from girih.plots.numbers import Array
from girih.plots.style import BLACK, PALE, VERMILLION, new_figure, styled

_NEW, _OLD, _UNKNOWN = np.array([[0.941, 0.690, 0.549, 1.0], [0.812, 0.890, 0.945, 1.0], [1.0, 1.0, 1.0, 1.0]])
_MOST_PANELS = 12


@styled
def plot_discovery(
    net: nn.Module | Trace | Partition,
    by: Literal["walk", "layer", "unit"] = "walk",
    start: ArrayLike | None = None,
    panels: int = 6,
    span: ArrayLike | None = None,
) -> Figure:
    """Draw step by step how the partition of a latent space with S = 2 is found.

    Args:
        net: a module that `girih.trace` supports, its trace, or its partition.
        by: "walk" starts with the cell of one latent and in each step adds the neighbours of all cells so far;
            "layer" and "unit" add the cell limits of one layer, or one hidden unit, after another. What is new is red.
        start: the latent to walk from, `(2,)`; the origin by default.
        panels: the largest number of panels. Where there are more steps, some are left out, never the last.
        span: the window, as in `plot_cells`.

    Raises:
        LatentDimensionError: S is not 2.
        ParameterError: an unknown `by`, a start outside the domain, or a number of panels that is not 1 to 12.

    Source:
        EM-DGN, appendix A and Fig. 1.

    Example:
        >>> import girih
        >>> figure = girih.plots.plot_discovery(girih.mlp([2, 4, 4, 2], seed=0), by="layer")
        >>> [ax.get_title() for ax in figure.axes]
        ['layer 1: 11 cells', 'layer 2: 38 cells']
    """
    if by not in ("walk", "layer", "unit"):
        raise ParameterError(f'by must be "walk", "layer" or "unit", got {by!r}')
    panels = whole(panels, "panels", 1)
    if panels > _MOST_PANELS:
        raise ParameterError(f"panels must be at most {_MOST_PANELS}, got {panels}")
    part = net if isinstance(net, Partition) else Partition(net, progress=False)
    planar_cells(part)
    view = window(part, span)
    if by == "walk":
        z = as_rows([[0.0, 0.0]] if start is None else start, "start", 2, "the latent dimension S")
        found = walk_steps(part, z)
        steps = _spread(int(found.max()) + 1, panels)
    else:
        stages = _stages(part, by)
        steps = _spread(len(stages), panels)
    figure, axes = _grid(part, view, len(steps))
    if by == "walk":
        polygons = cell_polygons(part, view)
        for ax, step in zip(axes, steps, strict=True):
            _draw_step(ax, polygons, found, step, view)
            ax.plot(*z[0].tolist(), marker="o", ms=2.5, color=BLACK, lw=0)
        return figure
    lines, made = segments(part, view)
    for ax, step in zip(axes, steps, strict=True):
        _draw_stage(ax, part, lines, made, stages, step, by)
    return figure


def walk_steps(part: Partition, start: ArrayLike) -> NDArray[np.int64]:
    """The step at which a walk over facets from one latent finds each cell, 0 for its own; -1 if it never does.

    Example:
        >>> import girih
        >>> from girih.plots.discovery import walk_steps
        >>> walk_steps(girih.Partition(girih.mlp([1, 3, 2], seed=0)), [[-9.0]]).tolist()
        [0, 1, 2, 3]
    """
    first = int(part.locate(start)[0])
    if first < 0:
        raise ParameterError("the start of the walk lies outside the domain of the partition")
    found = np.full(len(part), -1)
    found[first] = 0
    pairs = part.neighbors.cpu().numpy()
    step = 0
    while True:
        known = found[pairs] >= 0
        fresh = np.unique(pairs[known[:, ::-1] & ~known])
        if not len(fresh):
            return found
        step += 1
        found[fresh] = step


def _spread(count: int, panels: int) -> list[int]:
    """Pick at most so many of 0, 1, ..., count - 1, evenly, with the first and the last."""
    if panels == 1:
        return [count - 1]
    return sorted({int(i) for i in np.round(np.linspace(0, count - 1, min(panels, count)))})


def _grid(part: Partition, view: Window, count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3 if count != 4 else 4)
    rows = -(-count // columns)
    (x0, x1), (y0, y1) = view
    width = 7.2 / 3 if columns > 1 else 3.3
    if columns == 4:
        width = 7.2 / 4
    height = (width - 0.35) * min(max((y1 - y0) / (x1 - x0), 0.4), 2.0) + 0.25
    figure = new_figure(width * columns, height * rows + 0.55)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    names = axis_names(part)
    for i, ax in enumerate(axes):
        ax.set(xlim=view[0], ylim=view[1], aspect="equal")
        if i + columns >= count:
            ax.set_xlabel(names[0])
        else:
            ax.set_xticklabels([])
        if i % columns == 0:
            ax.set_ylabel(names[1])
        else:
            ax.set_yticklabels([])
    return figure, axes


def _draw_step(ax: Axes, polygons: Polygons, found: NDArray[np.int64], step: int, view: Window) -> None:
    known = (found >= 0) & (found <= step)
    shown = known[polygons.cell]
    sizes = np.diff(polygons.start)
    some = Polygons(
        polygons.points[np.repeat(shown, sizes)],
        np.concatenate(([0], np.cumsum(sizes[shown]))),
        polygons.cell[shown],
    )
    rgba = np.where((found == step)[:, None], _NEW, np.where(known[:, None], _OLD, _UNKNOWN))
    ticks = [axis.get_major_formatter() for axis in (ax.xaxis, ax.yaxis)]
    draw_cells(ax, some, rgba, view)
    for axis, formatter in zip((ax.xaxis, ax.yaxis), ticks, strict=True):
        axis.set_major_formatter(formatter)
    total = int(known.sum())
    name = "start" if step == 0 else f"step {step}"
    ax.set_title(f"{name}: {total} cell{'s' if total > 1 else ''}")


def _stages(part: Partition, by: str) -> list[int]:
    """The steps of the network with kinks, or the columns of the patterns that change anywhere, in order."""
    cuts = planar_cells(part).cuts
    return sorted({cut.step if by == "layer" else cut.column for cut in cuts})


def _draw_stage(
    ax: Axes, part: Partition, lines: Array, made: NDArray[np.int64], stages: Sequence[int], step: int, by: str
) -> None:
    cells = planar_cells(part)
    stage_of = np.array([stages.index(cut.step if by == "layer" else cut.column) for cut in cells.cuts], np.int64)
    at = np.where(made >= 0, stage_of[np.maximum(made, 0)], -1)
    at[(made == IDEAL) | (made == FAKE)] = len(stages)
    columns = sorted({cut.column for cut, k in zip(cells.cuts, stage_of, strict=True) if k <= step})
    count = len(torch.unique(part.patterns[:, columns], dim=0))
    width = 1.4 * max(edge_width(count), 0.25)
    ax.add_collection(LineCollection(list(lines[at < step]), colors=BLACK, linewidths=width), autolim=False)
    newest = LineCollection(list(lines[at == step]), colors=VERMILLION, linewidths=1.5 * width, zorder=3)
    ax.add_collection(newest, autolim=False)
    ax.set_facecolor(PALE if count == 1 else "white")
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    ax.set_title(f"{by} {step + 1}: {count} cell{'s' if count > 1 else ''}")
