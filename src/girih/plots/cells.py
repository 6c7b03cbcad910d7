"""The partition of a two-dimensional latent space, or of a plane through a larger one, cell by cell."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from girih.errors import LatentDimensionError, ParameterError
from girih.partition import Partition
from girih.plots.colouring import Colouring, colouring, quantity
from girih.plots.polygons import Polygons, Window, axis_names, cell_polygons, window
from girih.plots.style import LIGHT, new_axes, styled

_INK = "#333333"
# Vector pictures of more cells than this are slow to open.
_MAX_VECTOR = 5000


@styled
def plot_cells(
    part: Partition,
    ax: Axes | None = None,
    values: Any = None,
    span: Any = None,
    edges: bool = True,
    label: str | None = None,
    cmap: Any = None,
    log: bool = False,
    at: float = 0.0,
) -> Axes:
    """Draw the cells of a two-dimensional latent space; unbounded cells reach to the edge of the window.

    With S = 3 it draws the plane on which the third coordinate is `at`. For other planes, or a larger S, draw
    `girih.Partition.slice(net, origin, u, v)`, whose coordinates are called a and b.

    Args:
        part: a partition with S = 2 or 3.
        ax: axes to draw into; those of a new figure by default.
        values: what colours stand for: one number for each cell, or "log_volume", "prior_mass", "rank" (of A) or
            "index". By default colours only tell neighbours apart. Cells without a finite value are grey.
        span: the window, `(low, high)` or a pair for each coordinate; by default the domain if it is bounded, or else
            3 prior deviations to either side.
        edges: draw the cell limits.
        label: of the colour bar.
        cmap: a colour map or its name.
        log: a logarithmic colour scale.
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
        return _plot_plane(part, at, ax=ax, values=values, span=span, edges=edges, label=label, cmap=cmap, log=log)
    if part.latent_dim != 2:
        raise LatentDimensionError(f"plot_cells draws S = 2 and 3, and this partition has S = {part.latent_dim}")
    view = window(part, span)
    polygons = cell_polygons(part, view)
    colours = colouring(part, values, label, cmap, log, polygons.cell)
    wide, high = (limits[1] - limits[0] for limits in view)
    height = min(max(2.9 * high / wide, 1.4), 5.0)
    ax = new_axes(ax, width=3.9 if colours.scale else 3.3, height=height)
    draw_cells(ax, polygons, colours.rgba, view, edges)
    names = axis_names(part)
    ax.set(xlabel=names[0], ylabel=names[1])
    scale_bar(ax, colours)
    return ax


def draw_cells(
    ax: Axes, polygons: Polygons, rgba: np.ndarray[Any, Any], view: Window, edges: bool = True
) -> PolyCollection:
    """Fill polygons with the colours of their cells; the axes show the window, at equal scales."""
    count = len(polygons.cell)
    face = rgba[polygons.cell]
    drawn = PolyCollection(
        polygons.corners(),
        facecolors=face,
        edgecolors=_INK if edges else face,
        linewidths=edge_width(count) if edges else 0.2,
        joinstyle="round",
        rasterized=count > _MAX_VECTOR,
    )
    ax.add_collection(drawn, autolim=False)
    ax.set(xlim=view[0], ylim=view[1], aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    return drawn


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


def _plot_plane(part: Partition, at: float, values: Any, label: str | None, **options: Any) -> Axes:
    """The plane z = (a, b, at) through a partition with S = 3, with the values of the cells that it meets."""
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
    chosen = values
    if values is not None:
        numbers = quantity(part, values)
        spots = torch.nn.functional.pad(plane.interior, (0, 1), value=at)
        index = part.locate(spots).numpy()
        chosen = np.where(index >= 0, numbers[index], np.nan)
        if label is None and isinstance(values, str):
            label = colouring(part, values).label
            label = label.replace("area", "volume") if label else label
    ax = plot_cells(plane, values=chosen, label=label, **options)
    ax.set(xlabel="$z_1$", ylabel="$z_2$", title=f"plane $z_3$ = {at:g}: {len(plane)} of {len(part)} cells")
    return ax


def _in_plane(H: torch.Tensor, h: torch.Tensor, at: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The half-spaces of a domain within the plane; those parallel to it hold there or nowhere."""
    parallel = H[:, :2].abs().amax(1) == 0
    if (h[parallel] <= 0).any():
        raise ParameterError(f"the plane with the third coordinate at = {at:g} lies outside the domain")
    return (H[~parallel, :2], h[~parallel]) if (~parallel).any() else None
