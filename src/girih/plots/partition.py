"""A partition: over a latent line g(z), prior masses and values of cells; for more latents planes through the cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.special import ndtri
from torch import Tensor, nn

from girih._arrays import as_rows, as_tensor
from girih._deprecated import gathered
from girih._options import whole, wholes
from girih.errors import CellLimitError, LatentDimensionError, ParameterError, ShapeError
from girih.geometry import Cells, log_volume
from girih.networks import Trace, trace
from girih.partition import Partition
from girih.partition.polygons import Window, cell_polygons
from girih.plots.cells import CellStyle, draw_cells, plot_cells, with_style
from girih.plots.numbers import Array, to_array
from girih.plots.style import (
    BLACK,
    BLUE,
    CYCLE,
    GREY,
    LIGHT,
    latent_colours,
    legend_below,
    new_axes,
    new_figure,
    styled,
)

LOG_VOLUME = r"$\log\sqrt{\det A^\top\!A}$ (nats)"
# More lines than this in one picture cannot be told apart.
_MAX_LINES = 5


@with_style
def plot_partition(
    part: Partition,
    ax: Axes | None = None,
    span: ArrayLike | None = None,
    values: str | ArrayLike | CellStyle | None = None,
    at: float | None = None,
    coordinates: Sequence[int] | None = None,
    mass: ArrayLike | None = None,
) -> Axes:
    """Draw a partition: for S = 1 the generator's output with the cell limits, for S = 2, 3 the cells.

    Args:
        part: the partition.
        ax: axes to draw into; those of a new figure by default.
        span: the window: `(low, high)`, or for S = 2, 3 a pair for each coordinate.
        values: what the colours of cells stand for, S = 2, 3, as in `plot_cells`.
        at: the third coordinate of the plane to draw, S = 3; 0 by default.
        coordinates: which coordinates of g(z) to draw, S = 1, as in `plot_line_partition`.
        mass: of each cell under another prior than that of the partition, S = 1, `(R,)`.

    Raises:
        ParameterError: an option that is for another S, or is out of its domain.

    Example:
        >>> import girih
        >>> from girih.plots import plot_partition
        >>> plot_partition(girih.Partition(girih.mlp([2, 8, 2], seed=0)), span=(-2.0, 2.0)).get_xlabel()
        '$z_1$'
    """
    other = {"values": values, "at": at} if part.latent_dim == 1 else {"coordinates": coordinates, "mass": mass}
    for name, value in other.items():
        if value is not None:
            instead = "; plot_line_values draws values of cells" if name == "values" else ""
            raise ParameterError(f"{name} does not apply to a partition with S = {part.latent_dim}{instead}")
    if part.latent_dim == 1:
        return plot_line_partition(part, ax, span, coordinates, mass)
    return plot_cells(part, ax, values, span, 0.0 if at is None else at)


@styled
def plot_line_partition(
    part: Partition,
    ax: Axes | None = None,
    span: ArrayLike | None = None,
    coordinates: Sequence[int] | None = None,
    mass: ArrayLike | None = None,
) -> Axes:
    """Draw the coordinates of g(z) against z, with cell limits and, in a strip above, the prior mass of each cell.

    Args:
        part: a partition with S = 1.
        ax: axes to draw into; those of a new figure by default.
        span: the z to draw between; 3 prior deviations to either side by default, inside the domain.
        coordinates: which of the D coordinates to draw; by default all, or the five that vary most under the prior.
        mass: of each cell under another prior than that of the partition, `(R,)`.

    Returns:
        The axes of the curves.

    Raises:
        LatentDimensionError: S is not 1.
        ParameterError: an empty span, or a coordinate that does not exist.

    Example:
        >>> import girih
        >>> girih.Partition(girih.mlp([1, 8, 2], seed=0)).plot().get_ylabel()
        'coordinates of g(z)'
    """
    if part.trace.latent_dim != 1:
        raise LatentDimensionError(
            f"plot_line_partition draws S = 1, and this partition has S = {part.trace.latent_dim}"
        )
    low, high = _span(part, span)
    limits = to_array(part.breakpoints)
    inside = limits[(limits > low) & (limits < high)]
    z = np.concatenate(([low], inside, [high]))
    with torch.no_grad():
        values = to_array(part.trace(torch.as_tensor(z[:, None], device=part.trace.device)))
    lines = _lines(part, values.shape[1], coordinates)

    own, ax = ax is None, new_axes(ax, height=2.9)
    for limit in inside:
        ax.axvline(limit, color=GREY, lw=0.5, zorder=0.5)
    for style, line in zip(CYCLE, lines, strict=False):
        drawn = {key: value for key, value in style.items() if key != "marker"}
        ax.plot(z, values[:, line], label=f"$g_{{{line}}}(z)$", **drawn)
    hidden = len(limits) - len(inside)
    beyond = f", {hidden} beyond" if hidden else ""
    ax.plot([], [], color=GREY, lw=0.5, label=f"{len(limits)} cell limits{beyond}")
    ax.set(xlabel="latent z", xlim=(low, high))
    total = values.shape[1]
    ax.set_ylabel("coordinates of g(z)" if len(lines) == total else f"{len(lines)} of {total} coordinates")
    legend_below(ax, own)
    _draw_masses(ax, part, z, to_array(part.prior_mass if mass is None else as_tensor(mass, "mass")))
    return ax


def _span(part: Partition, span: ArrayLike | None) -> tuple[float, float]:
    ends = np.asarray((-3.0 * math.sqrt(part.prior), 3.0 * math.sqrt(part.prior)) if span is None else span)
    if ends.shape != (2,) or not np.issubdtype(ends.dtype, np.number):
        raise ParameterError(f"span must be (low, high), two numbers; got {span!r}")
    low, high = ends.tolist()
    first, last = part.intervals.domain
    low, high = max(float(low), first), min(float(high), last)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        given = "the part of the domain near the prior is empty" if span is None else f"got {span}"
        raise ParameterError(f"span must be (low, high), finite and inside the domain {part.domain}; {given}")
    return low, high


def _lines(part: Partition, total: int, coordinates: Sequence[int] | None) -> list[int]:
    if coordinates is None:
        if total <= _MAX_LINES:
            return list(range(total))
        z = math.sqrt(part.prior) * ndtri((np.arange(200) + 0.5) / 200)
        with torch.no_grad():
            spread = to_array(part.trace(torch.as_tensor(z[:, None], device=part.trace.device))).std(0)
        return sorted(int(i) for i in np.argsort(-spread, kind="stable")[:_MAX_LINES])
    lines = list(wholes(coordinates, "coordinates", None))
    if not 1 <= len(lines) <= len(CYCLE) or min(lines) < 0 or max(lines) >= total:
        raise ParameterError(f"coordinates must be 1 to {len(CYCLE)} of 0 to {total - 1}; got {lines}")
    return lines


def _draw_masses(ax: Axes, part: Partition, z: Array, masses: Array) -> None:
    """A strip above the axes: each cell as a bar as high as its prior mass."""
    strip = ax.inset_axes((0.0, 1.04, 1.0, 0.18), sharex=ax)
    first = int(np.searchsorted(to_array(part.breakpoints), z[0], side="right"))
    mass = masses[first : first + len(z) - 1]
    strip.bar(z[:-1], mass, width=np.diff(z), align="edge", color=LIGHT, edgecolor=BLACK, lw=0.5)
    top = 1.15 * float(mass.max())
    strip.set(ylim=(0.0, top if top > 0 else 1.0))
    strip.set_ylabel("prior\nmass", fontsize=7)
    strip.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
    strip.tick_params(axis="x", labelbottom=False, length=0)


@styled
def plot_line_values(
    part: Partition,
    values: ArrayLike | None = None,
    label: str = LOG_VOLUME,
    ax: Axes | None = None,
    span: tuple[float, float] | None = None,
) -> Axes:
    """Draw a quantity of the cells against z, a step for each cell. Cells where it is not finite are shaded grey.

    Args:
        part: a partition with S = 1.
        values: one number for each cell `(R,)`; the log-volume by default, for S = 1 the log of the speed `|g'(z)|`.
        label: what the numbers are.
        ax: axes to draw into; those of a new figure by default.
        span: the z to draw between; 3 prior deviations to either side by default, inside the domain.

    Raises:
        LatentDimensionError: S is not 1.
        ShapeError: not one value for each cell.
        ParameterError: an empty span.

    Source:
        MAS, section 5.1, Lemma 1.

    Example:
        >>> import girih
        >>> girih.plots.plot_line_values(girih.Partition(girih.mlp([1, 8, 2], seed=0))).get_xlabel()
        'latent z'
    """
    if part.latent_dim != 1:
        raise LatentDimensionError(f"plot_line_values draws S = 1, and this partition has S = {part.latent_dim}")
    numbers = to_array(log_volume(part).values if values is None else as_tensor(values, "values"))
    if numbers.shape != (len(part),):
        raise ShapeError(f"values must hold one number for each of the {len(part)} cells; got shape {numbers.shape}")
    reach = 3.0 * math.sqrt(part.prior)
    first, last = part.intervals.domain
    low, high = (max(-reach, first), min(reach, last)) if span is None else map(float, span)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ParameterError(f"span must be (low, high), finite and not empty; got {(low, high)}")
    limits = to_array(part.breakpoints)
    z = np.concatenate(([low], limits[(limits > low) & (limits < high)], [high]))
    start = int(np.searchsorted(limits, low, side="right"))
    shown = numbers[start : start + len(z) - 1]
    own, ax = ax is None, new_axes(ax)
    known = np.isfinite(shown)
    for k in np.flatnonzero(~known):
        ax.axvspan(z[k], z[k + 1], color=LIGHT, lw=0, label="not finite" if k == np.flatnonzero(~known)[0] else None)
    ax.stairs(np.where(known, shown, np.nan), z, baseline=None, color=BLUE, lw=1.3)
    ax.set(xlabel="latent z", ylabel=label, xlim=(low, high))
    if not known.all():
        legend_below(ax, own)
    return ax


_PROBE = 1.0 / 16.0  # of the window: a small plane that tells how many cells a large one has
_MOST_PLANES = 3
_TINY = 0.04  # of the upper window
Quantity = Callable[[Cells], Tensor]


class Panel(NamedTuple):
    """A plane as it will be drawn: cells, or where these are too many points on a grid."""

    window: Window
    part: Partition | None
    values: Array  # of every cell, or (pixels, pixels)


@gathered({"label": None}, "values", lambda values, former: {former["label"]: values}, "values={label: values}")
@styled
def plot_slices(
    net: nn.Module | Trace,
    planes: Sequence[tuple[int, int]] | None = None,
    reach: float | Sequence[float] = 3.0,
    origin: ArrayLike | None = None,
    values: Quantity | Mapping[str, Quantity] | None = None,
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
        values: takes cells to one number for each, `(R,)`; or that by its name, for the colour bar. By default the
            log-volume.
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
    label, quantity = next(iter(values.items())) if isinstance(values, Mapping) else (None, values)
    if quantity is None:
        label, quantity = label or LOG_VOLUME, lambda cells: log_volume(cells).values
    columns = [_panels(traced, pair, far, centre, quantity, max_cells, pixels) for pair in pairs]
    return _draw(columns, pairs, label or "value of cell")


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
    spots = traced.pattern((start + torch.as_tensor(grid) @ basis.mT).to(traced.device))
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
