"""Planes through a latent space of any dimension, coloured by a quantity of the cells that they meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import CellLimitError, LatentDimensionError, ParameterError
from girih.geometry import Cells, log_volume
from girih.networks import Trace, trace
from girih.partition import Partition
from girih.plots.cells import draw_cells
from girih.plots.numbers import Array, to_array
from girih.plots.polygons import Window, cell_polygons
from girih.plots.style import BLACK, LIGHT, latent_colours, new_figure, styled

_PROBE = 1.0 / 16.0  # of the window: a small plane that tells how many cells a large one has
_MOST_PLANES = 3
_TINY = 0.04  # of the upper window
Quantity = Callable[[Cells], Tensor]


class Panel(NamedTuple):
    """A plane as it will be drawn: cells, or where these are too many points on a grid."""

    window: Window
    part: Partition | None
    values: Array  # of every cell, or (pixels, pixels)


@styled
def plot_slices(
    net: nn.Module | Trace,
    planes: Sequence[tuple[int, int]] | None = None,
    reach: float | Sequence[float] = 3.0,
    origin: ArrayLike | None = None,
    values: Quantity | None = None,
    label: str = r"$\log\sqrt{\det A^\top\!A}$ (nats)",
    max_cells: int = 3000,
    pixels: int = 64,
) -> Figure:
    """Draw planes in which two latents vary, with the cells that they meet, coloured by a quantity of the cells.

    Where a plane has too many cells to be seen, the upper panel shows the quantity at the points of a grid, and the
    lower one all cells in a window around the origin that is small enough: its frame is drawn in the upper one.
    Cells whose quantity is infinite are grey.

    Args:
        net: any module that `girih.trace` supports, with S of 2 or more.
        planes: pairs of latents, counted from 0, up to three; by default those of the first three latents.
        reach: how far the planes go to each side of the origin: a number, or one for each latent.
        origin: a point of all planes `(S,)`; 0 by default.
        values: takes cells to one number for each, `(R,)`; the log-volume by default.
        label: what these numbers are.
        max_cells: about how many cells a panel may show.
        pixels: the side of the grid.

    Raises:
        LatentDimensionError: S = 1.
        ParameterError: planes that are not one to three pairs of different latents, or a reach that is not positive.
        ShapeError: an origin of the wrong length.

    Example:
        >>> import girih
        >>> figure = girih.plots.plot_slices(girih.mlp([5, 8, 3], activation="leaky_relu", seed=0), planes=[(0, 4)])
        >>> figure.axes[0].get_ylabel()
        '$z_{5}$'
    """
    traced = trace(net)
    S = traced.latent_dim
    if S < 2:
        raise LatentDimensionError("a latent space with S = 1 has no plane; use girih.Partition(net).plot()")
    given = combinations(range(min(S, 3)), 2) if planes is None else planes
    pairs = [(whole(i, "planes", None), whole(j, "planes", None)) for i, j in given]
    if not 1 <= len(pairs) <= _MOST_PLANES or any(i == j or not {i, j} <= set(range(S)) for i, j in pairs):
        raise ParameterError(f"planes must be one to three pairs of different latents from 0 to {S - 1}, got {planes}")
    far = np.broadcast_to(np.asarray(reach, float), (S,))
    if not ((far > 0) & np.isfinite(far)).all():
        raise ParameterError(f"reach must be positive, for each of the {S} latents; got {reach}")
    centre = torch.zeros(S, dtype=torch.float64)
    if origin is not None:
        centre = as_rows(origin, "origin", S, "the latent dimension S")[0].detach().cpu()
    quantity = values if values is not None else lambda cells: log_volume(cells).values
    columns = [_panels(traced, pair, far, centre, quantity, max_cells, pixels) for pair in pairs]
    return _draw(columns, pairs, label)


def slice_values(traced: Trace, patterns: Tensor, quantity: Quantity) -> Array:
    """A quantity of the full cells `(R,)` with these patterns, each computed once."""
    used, where = torch.unique(patterns, dim=0, return_inverse=True)
    unknown = torch.full((len(used),), math.nan, dtype=torch.float64)
    points = torch.zeros(len(used), traced.latent_dim, dtype=torch.float64)
    return to_array(quantity(Cells(traced, used, points, unknown, unknown))[where])


def _panels(
    traced: Trace, pair: tuple[int, int], far: Array, centre: Tensor, quantity: Quantity, limit: int, pixels: int
) -> list[Panel]:
    eye = torch.eye(traced.latent_dim, dtype=torch.float64)
    basis = torch.stack((eye[pair[0]], eye[pair[1]]), 1)
    start = centre - basis @ (basis.mT @ centre)
    middle, half = centre[list(pair)].numpy(), far[list(pair)]

    def plane(share: float, most: int) -> Partition:
        box = (torch.as_tensor(middle - share * half), torch.as_tensor(middle + share * half))
        return Partition.slice(traced, start, basis[:, 0], basis[:, 1], box, max_cells=most, progress=False)

    def window(share: float) -> Window:
        (a, b), (c, d) = np.stack((middle - share * half, middle + share * half), 1).tolist()
        return (a, b), (c, d)

    share, part = _fitting(plane, limit)
    cells = Panel(window(share), part, slice_values(traced, part.patterns, quantity))
    if share == 1.0:
        return [cells]
    steps = (np.arange(pixels) + 0.5) / pixels * 2.0 - 1.0
    grid = np.stack(np.meshgrid(middle[0] + half[0] * steps, middle[1] + half[1] * steps), -1).reshape(-1, 2)
    spots = traced.pattern(start + torch.as_tensor(grid) @ basis.mT)
    return [Panel(window(1.0), None, slice_values(traced, spots, quantity).reshape(pixels, pixels)), cells]


def _fitting(plane: Callable[[float, int], Partition], limit: int) -> tuple[float, Partition]:
    """The largest window around the origin, as a share of the whole, that has few enough cells to be seen."""
    share = _PROBE
    while True:  # cells grow with the area of the window
        try:
            count = len(plane(share, 4 * limit))
            break
        except CellLimitError:
            share *= 0.25
    share = min(1.0, share * math.sqrt(limit / max(count, 1.0)))
    share = 1.0 if share > 0.7 else share  # a window that is nearly whole
    while True:
        try:
            return share, plane(share, 2 * limit)
        except CellLimitError:
            share *= 0.7


def _draw(columns: list[list[Panel]], pairs: list[tuple[int, int]], label: str) -> Figure:
    lines = max(len(panels) for panels in columns)
    figure = new_figure(2.35 * len(columns) + 0.9, 2.25 * lines + 0.2)
    axes = figure.subplots(lines, len(columns), squeeze=False)
    numbers = np.concatenate([panel.values.ravel() for panels in columns for panel in panels])
    colours, norm, scale = _scale(numbers[np.isfinite(numbers)])
    for k, (panels, (i, j)) in enumerate(zip(columns, pairs, strict=True)):
        for ax, panel in zip(axes[:, k], panels, strict=False):
            _draw_panel(ax, panel, scale, colours, norm)
            ax.set_ylabel(f"$z_{{{j + 1}}}$", labelpad=1.0)
        axes[len(panels) - 1, k].set_xlabel(f"$z_{{{i + 1}}}$")
        for ax in axes[len(panels) :, k]:
            ax.remove()
        if len(panels) == 2:
            _frame(axes[0, k], panels[1].window)
    if np.isfinite(numbers).any():
        bar = figure.colorbar(scale, ax=axes.ravel().tolist(), fraction=0.05, pad=0.02, aspect=28 * lines)
        bar.set_label(label + (" (grey: infinite)" if not np.isfinite(numbers).all() else ""))
        bar.outline.set_visible(False)
    return figure


def _scale(finite: Array) -> tuple[Colormap, Normalize, ScalarMappable]:
    colours = latent_colours().with_extremes(bad=LIGHT)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    room = 0.0 if high > low else 0.01 * max(abs(low), 1.0)
    norm = Normalize(low - room, high + room)
    return colours, norm, ScalarMappable(norm, colours)


def _draw_panel(ax: Axes, panel: Panel, scale: ScalarMappable, colours: Colormap, norm: Normalize) -> None:
    masked = np.ma.masked_invalid(panel.values)
    ax.tick_params(labelsize=6.5)
    if panel.part is None:
        (x0, x1), (y0, y1) = panel.window
        ax.imshow(masked, cmap=colours, norm=norm, extent=(x0, x1, y0, y1), origin="lower", aspect="auto")
        ax.set_title(f"{panel.values.shape[0]} × {panel.values.shape[1]} points", fontsize=7.5, pad=3.0)
    else:
        polygons = cell_polygons(panel.part, panel.window)
        draw_cells(ax, polygons, np.asarray(scale.to_rgba(masked)), panel.window)
        ax.set_title(f"{len(polygons.cell):,} cells", fontsize=7.5, pad=3.0)
    ax.set(xlim=panel.window[0], ylim=panel.window[1])
    ax.set_box_aspect(1.0)
    ax.set_aspect("auto")
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)


def _frame(ax: Axes, window: Window) -> None:
    """The place of the lower window in the upper one: its frame, or a ring where it is too small to be seen."""
    (x0, x1), (y0, y1) = window
    ax.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=BLACK, lw=0.8)
    low, high = ax.get_xlim()
    if x1 - x0 < _TINY * (high - low):
        ax.plot(0.5 * (x0 + x1), 0.5 * (y0 + y1), marker="o", ms=9, mfc="none", mec=BLACK, mew=0.7)
