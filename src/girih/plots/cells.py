"""The cells of a latent plane, coloured by what is known of each."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm, Colormap, LogNorm, Normalize, to_rgba_array
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from numpy.typing import ArrayLike

from girih._arrays import as_tensor
from girih._deprecated import gathered
from girih.errors import LatentDimensionError, ParameterError
from girih.partition import Partition
from girih.partition.polygons import Ints, Polygons, Window, axis_names, cell_polygons, window
from girih.plots.numbers import Array, to_array
from girih.plots.style import LIGHT, latent_colours, new_axes, styled

# Tints that differ in hue and in lightness; six are enough for any map of cells in the plane.
TINTS = ("#F6F2E4", "#CFE3F1", "#F7D98C", "#AFD8C0", "#F0B08C", "#8DB9DA", "#D7A9C8", "#74AE93")

_LABELS = {
    "log_volume": "log of cell area (natural)",
    "prior_mass": "prior mass of cell",
    "rank": "rank of A",
    "index": "index of cell",
}
_INK = "#333333"
# Vector pictures of more cells than this are slow to open.
_MAX_VECTOR = 5000


@dataclass(frozen=True, eq=False)
class CellStyle:
    """A `CellStyle` says how cells are drawn: what their colours stand for, on which scale, with limits or without.

    Pass it as `values` of `plot_cells`, `plot_image` or `plot_partition` where the values alone do not say enough.

    Args:
        values: one number for each cell, or "log_volume", "prior_mass", "rank" (of A) or "index"; `None` for tints that
            differ between neighbours. Cells without a finite value are grey.
        label: of the colour bar.
        cmap: a colour map or its name.
        log: a logarithmic scale.
        edges: draw the cell limits.

    Example:
        >>> import girih
        >>> from girih.plots import CellStyle, plot_cells
        >>> part = girih.Partition(girih.mlp([2, 8, 2], seed=0))
        >>> plot_cells(part, values=CellStyle("prior_mass", label="mass", log=True)).child_axes[0].get_ylabel()
        'mass'
    """

    values: str | ArrayLike | None = None
    label: str | None = None
    cmap: str | Colormap | None = None
    log: bool = False
    edges: bool = True

    @staticmethod
    def of(values: str | ArrayLike | CellStyle | None) -> CellStyle:
        """The style itself, or the one of values with its defaults."""
        return values if isinstance(values, CellStyle) else CellStyle(values)


# The fields of a style were keywords of every function that draws cells.
with_style = gathered(
    {"label": None, "cmap": None, "log": False, "edges": True},
    "values",
    lambda values, fields: replace(CellStyle.of(values), **fields),
    "values=girih.plots.CellStyle(...)",
)


class Colouring(NamedTuple):
    """A colour for every cell, and the scale they are from, if they stand for a quantity."""

    rgba: Array  # (R, 4)
    scale: ScalarMappable | None
    label: str | None
    integers: list[int] | None  # ticks of a scale with few whole values
    missing: bool  # whether some cells have no finite value


def colouring(part: Partition, style: CellStyle, within: Ints | None = None) -> Colouring:
    """Colours for the cells of a partition.

    Args:
        part: the partition.
        style: what the colours stand for.
        within: the cells that the scale must cover; all by default.

    Raises:
        ParameterError: an unknown name, not one value for each cell, or nothing to show on the scale.

    Example:
        >>> import girih
        >>> from girih.plots.cells import CellStyle, colouring
        >>> part = girih.Partition(girih.mlp([2, 8, 2], seed=0))
        >>> colouring(part, CellStyle("rank")).label, colouring(part, CellStyle()).rgba.shape
        ('rank of A', (37, 4))
    """
    values, log = style.values, style.log
    if values is None:
        return Colouring(to_rgba_array(TINTS)[tints(part)], None, None, None, False)
    label = style.label
    if label is None:
        label = _LABELS.get(values, values) if isinstance(values, str) else "value of cell"
    numbers = quantity(part, values)
    known = np.isfinite(numbers) & ((numbers > 0) if log else True)
    inside = np.ones(len(part), bool) if within is None else np.isin(np.arange(len(part)), within)
    shown = known & inside
    if not shown.any():
        raise ParameterError(f"no cell has a {'positive, ' if log else ''}finite value of {label!r} to colour by")
    colours = _colour_map(style.cmap)
    low, high = float(numbers[shown].min()), float(numbers[shown].max())
    integers = None
    norm: Normalize
    if log:
        norm = LogNorm(low, high if high > low else 1.01 * low)
    elif values is not None and (numbers[shown] == np.round(numbers[shown])).all() and high - low <= 8:
        integers = list(range(int(low), int(high) + 1))
        norm = BoundaryNorm(np.arange(low - 0.5, high + 1.0), len(integers))
        colours = colours.resampled(len(integers))
    else:
        room = 0.0 if high > low else max(abs(low), 1.0) * 0.01
        norm = Normalize(low - room, high + room)
    colours = colours.with_extremes(bad=LIGHT)
    scale = ScalarMappable(norm, colours)
    rgba = np.asarray(scale.to_rgba(np.ma.masked_array(numbers, ~known)))
    return Colouring(rgba, scale, label, integers, not known[inside].all())


def quantity(part: Partition, values: str | ArrayLike) -> Array:
    """A number for each cell, from an array or by name."""
    if isinstance(values, str):
        if values not in _LABELS:
            raise ParameterError(
                f"there is no quantity {values!r} of cells; known are {', '.join(_LABELS)}, or an array"
            )
        if values == "index":
            return np.arange(len(part), dtype=np.float64)
        if values == "prior_mass":
            return to_array(part.prior_mass)
        if values == "rank":
            with torch.no_grad():
                return to_array(torch.linalg.matrix_rank(part.affine[0]))
        with np.errstate(divide="ignore"):
            return np.log(to_array(part.volume))
    numbers = to_array(as_tensor(values, "values"))
    if numbers.shape != (len(part),):
        raise ParameterError(
            f"values must hold one number for each of the {len(part)} cells; got shape {numbers.shape}"
        )
    return numbers


def tints(part: Partition) -> Array:
    """A tint for each cell, other than those of its neighbours, each used about as often.

    Cells are coloured so that each has at most five coloured neighbours by then, which planar maps always allow.
    """
    count, pairs = len(part), part.neighbors.cpu().numpy()
    around: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs.tolist():
        around[a].append(b)
        around[b].append(a)
    degree = [len(others) for others in around]
    heap = [(d, i) for i, d in enumerate(degree)]
    heapq.heapify(heap)
    order, gone = [], [False] * count
    while heap:
        d, i = heapq.heappop(heap)
        if gone[i] or d != degree[i]:
            continue
        gone[i] = True
        order.append(i)
        for j in around[i]:
            if not gone[j]:
                degree[j] -= 1
                heapq.heappush(heap, (degree[j], j))
    out, used = [-1] * count, [0] * len(TINTS)
    for i in reversed(order):
        taken = {out[j] for j in around[i]}
        free = [c for c in range(len(TINTS)) if c not in taken] or list(range(len(TINTS)))
        out[i] = min(free, key=used.__getitem__)
        used[out[i]] += 1
    return np.array(out)


def _colour_map(cmap: str | Colormap | None) -> Colormap:
    if cmap is None:
        return latent_colours()
    try:
        return matplotlib.colormaps[cmap].copy() if isinstance(cmap, str) else cmap.copy()
    except KeyError:
        raise ParameterError(f"matplotlib has no colour map {cmap!r}; see matplotlib.colormaps") from None


@with_style
@styled
def plot_cells(
    part: Partition,
    ax: Axes | None = None,
    values: str | ArrayLike | CellStyle | None = None,
    span: ArrayLike | None = None,
    at: float = 0.0,
) -> Axes:
    """Draw the cells of a two-dimensional latent space; unbounded cells reach to the edge of the window.

    With S = 3 it draws the plane on which the third coordinate is `at`. For other planes, or a larger S, draw
    `girih.Partition.slice(net, origin, u, v)`, whose coordinates are called a and b.

    Args:
        part: a partition with S = 2 or 3.
        ax: axes to draw into; those of a new figure by default.
        values: what colours stand for: one number for each cell, or "log_volume", "prior_mass", "rank" (of A) or
            "index"; or a `CellStyle`. By default colours only tell neighbours apart. Cells without a finite value are
            grey.
        span: the window, `(low, high)` or a pair for each coordinate; by default the domain if it is bounded, or else
            3 prior deviations to either side.
        at: the third coordinate of the plane to draw, S = 3 only.

    Raises:
        LatentDimensionError: S is not 2 or 3.
        ParameterError: values that are not one for each cell, an unknown name, or an empty window.

    Example:
        >>> import girih
        >>> girih.Partition(girih.mlp([2, 8, 2], seed=0)).plot(values="prior_mass").get_xlabel()
        '$z_1$'
    """
    if part.latent_dim == 3:
        plane, style = _plane_of(part, at, CellStyle.of(values))
        ax = plot_cells(plane, ax, style, span)
        ax.set(xlabel="$z_1$", ylabel="$z_2$", title=f"plane $z_3$ = {at:g}: {len(plane)} of {len(part)} cells")
        return ax
    if part.latent_dim != 2:
        raise LatentDimensionError(f"plot_cells draws S = 2 and 3, and this partition has S = {part.latent_dim}")
    view = window(part, span)
    polygons = cell_polygons(part, view)
    style = CellStyle.of(values)
    colours = colouring(part, style, polygons.cell)
    wide, high = (limits[1] - limits[0] for limits in view)
    height = min(max(2.9 * high / wide, 1.4), 5.0)
    ax = new_axes(ax, width=3.9 if colours.scale else 3.3, height=height)
    draw_cells(ax, polygons, colours.rgba, view, style.edges)
    names = axis_names(part)
    ax.set(xlabel=names[0], ylabel=names[1])
    scale_bar(ax, colours)
    return ax


def draw_cells(ax: Axes, polygons: Polygons, rgba: Array, view: Window, edges: bool = True) -> PolyCollection:
    """Fill polygons with the colours of their cells; the axes show the window, at equal scales."""
    raster = len(polygons.cell) > _MAX_VECTOR
    style = cell_style(polygons, rgba, edges)
    drawn = PolyCollection(polygons.corners(), joinstyle="round", rasterized=raster, **style)
    ax.add_collection(drawn, autolim=False)
    ax.set(xlim=view[0], ylim=view[1], aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    return drawn


def cell_style(polygons: Polygons, rgba: Array, edges: bool) -> dict[str, Any]:
    """Faces, edges and their width, for a collection of polygons in the colours of their cells."""
    face = rgba[polygons.cell]
    width = edge_width(len(polygons.cell)) if edges else 0.2
    return {"facecolors": face, "edgecolors": _INK if edges else face, "linewidths": width}


def edge_width(count: int) -> float:
    """The width of cell limits in points, thinner where there are many."""
    return min(0.7, max(0.08, 9.0 / math.sqrt(count + 1.0)))


def scale_bar(ax: Axes, colours: Colouring) -> None:
    """The colour bar of a quantity, and under it what grey stands for; none where colours mean nothing."""
    figure = ax.get_figure(root=True)
    if colours.scale is None or figure is None:
        return
    place = (1.04, 0.14, 0.04, 0.86) if colours.missing else (1.04, 0.0, 0.04, 1.0)
    bar = figure.colorbar(colours.scale, cax=ax.inset_axes(place))
    bar.set_label(colours.label or "")
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    if colours.integers is not None:
        bar.ax.yaxis.set_major_locator(FixedLocator(colours.integers))
    elif not isinstance(colours.scale.norm, matplotlib.colors.LogNorm):
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        bar.ax.yaxis.set_major_locator(LogLocator(numticks=7))
    if colours.missing:
        box = ax.inset_axes((1.04, 0.0, 0.04, 0.06))
        box.set_facecolor(LIGHT)
        box.set(xticks=[], yticks=[0.5], ylim=(0.0, 1.0))
        box.yaxis.tick_right()
        box.set_yticklabels(["none or ∞"])
        box.tick_params(length=0)
        for spine in box.spines.values():
            spine.set_visible(False)


def _plane_of(part: Partition, at: float, style: CellStyle) -> tuple[Partition, CellStyle]:
    """The plane z = (a, b, at) through a partition with S = 3, and the style with the values of its cells."""
    if not math.isfinite(at):
        raise ParameterError(f"at must be a finite third coordinate, got {at}")
    eye = torch.eye(3, dtype=torch.float64)
    domain = None
    faces = part.polytopes.halfspaces
    if faces is not None:
        H, h = (torch.as_tensor(face) for face in faces)
        domain = _in_plane(H, h - at * H[:, 2], at)
    plane = Partition.slice(part.trace, at * eye[2], eye[0], eye[1], domain, progress=False)
    plane.prior_covariance = part.prior_covariance[:2, :2]  # for the default window
    if style.values is None:
        return plane, style
    numbers = quantity(part, style.values)
    spots = torch.nn.functional.pad(plane.interior, (0, 1), value=at)
    index = part.locate(spots).numpy()
    label = style.label
    if label is None and isinstance(style.values, str):
        label = _LABELS[style.values].replace("area", "volume")
    return plane, replace(style, values=np.where(index >= 0, numbers[index], np.nan), label=label)


def _in_plane(H: torch.Tensor, h: torch.Tensor, at: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The half-spaces of a domain within the plane; those parallel to it hold there or nowhere."""
    parallel = H[:, :2].abs().amax(1) == 0
    if (h[parallel] <= 0).any():
        raise ParameterError(f"the plane with the third coordinate at = {at:g} lies outside the domain")
    return (H[~parallel, :2], h[~parallel]) if (~parallel).any() else None
