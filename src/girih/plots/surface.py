"""A two-dimensional latent space beside its image: each cell and the flat piece that it is mapped to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]
from numpy.typing import ArrayLike

from girih.errors import LatentDimensionError, ParameterError
from girih.partition import Partition
from girih.plots.cells import cell_style, colouring, draw_cells, scale_bar
from girih.plots.numbers import Array, to_array
from girih.plots.polygons import Polygons, axis_names, cell_polygons, window
from girih.plots.style import new_figure, styled


@styled
def plot_image(
    part: Partition,
    values: str | ArrayLike | None = None,
    span: ArrayLike | None = None,
    edges: bool = True,
    label: str | None = None,
    cmap: str | Colormap | None = None,
    log: bool = False,
    view: tuple[float, float] = (24.0, -58.0),
) -> Figure:
    """Draw the cells of a latent space with S = 2, and beside them their images in data space, in the same colours.

    The image is a surface for D = 3, and for D = 2 polygons in the plane, see-through where they overlap.

    Args:
        part: a partition with S = 2 of a generator with D = 2 or 3.
        values: what colours stand for, as in `plot_cells`.
        span: the window, as in `plot_cells`; the image is that of the window.
        edges: draw the cell limits.
        label: of the colour bar.
        cmap: a colour map or its name.
        log: a logarithmic colour scale.
        view: elevation and azimuth from which the surface is seen, in degrees.

    Raises:
        LatentDimensionError: S is not 2.
        ParameterError: D is not 2 or 3, or as in `plot_cells`.

    Source:
        MAS, Theorem 1 and Fig. 1.

    Example:
        >>> import girih
        >>> part = girih.Partition(girih.mlp([2, 8, 3], seed=0))
        >>> girih.plots.plot_image(part).axes[1].get_title()
        'image g(z)'
    """
    data_dim = check_image(part)
    figure = new_figure(7.0, 3.1)
    left = figure.add_subplot(1, 2, 1)
    right = figure.add_subplot(1, 2, 2, **({"projection": "3d"} if data_dim == 3 else {}))
    draw_image(left, right, part, values, span, edges, label, cmap, log, view)
    return figure


def draw_image(
    left: Axes,
    right: Axes,
    part: Partition,
    values: str | ArrayLike | None = None,
    span: ArrayLike | None = None,
    edges: bool = True,
    label: str | None = None,
    cmap: str | Colormap | None = None,
    log: bool = False,
    view: tuple[float, float] = (24.0, -58.0),
) -> None:
    """Draw latent space and image into axes: plain ones, and for D = 3 on the right those of a 3-D projection."""
    data_dim = check_image(part)
    frame = window(part, span)
    polygons = cell_polygons(part, frame)
    colours = colouring(part, values, label, cmap, log, polygons.cell)
    draw_cells(left, polygons, colours.rgba, frame, edges)
    names = axis_names(part)
    cells = len(polygons.cell)
    count = f"{cells} cells" if cells == len(part) else f"{cells} of {len(part)} cells"
    left.set(xlabel=names[0], ylabel=names[1], title=f"latent space, {count}")
    scale_bar(left, colours)
    points = image_points(part, polygons)
    pieces = np.split(points, polygons.start[1:-1])
    style = cell_style(polygons, colours.rgba, edges)
    low, high = points.min(0), points.max(0)
    room = 0.04 * np.maximum(high - low, 1e-9 * (1.0 + np.abs(high)))
    low, high = low - room, high + room
    right.set_title("image g(z)")
    right.set(xlabel="$x_0$", ylabel="$x_1$", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    if data_dim == 2:
        right.add_collection(PolyCollection(pieces, alpha=0.75, **style), autolim=False)
        right.set_aspect("equal")
        return
    space: Any = right
    space.add_collection3d(Poly3DCollection(pieces, **style))
    space.set(zlabel="$x_2$", zlim=(low[2], high[2]))
    space.view_init(*view)
    space.set_box_aspect((1.0, 1.0, 0.85), zoom=0.92)
    for axis in (space.xaxis, space.yaxis, space.zaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_pane_color((0.97, 0.97, 0.97, 1.0))
        axis._axinfo["grid"].update(color="#DDDDDD", linewidth=0.4)
    space.tick_params(pad=-1.0)
    for axis in (space.xaxis, space.yaxis, space.zaxis):
        axis.labelpad = -2.0


def image_points(part: Partition, polygons: Polygons) -> Array:
    """The images of the corners of polygons, each by the map of its own cell, `(N, D)`."""
    with torch.no_grad():
        slope, offset = (to_array(tensor) for tensor in part.trace.maps(part.patterns[polygons.cell]))
    owner = np.repeat(np.arange(len(polygons.cell)), np.diff(polygons.start))
    result: Array = np.einsum("nds,ns->nd", slope[owner], polygons.points) + offset[owner]
    return result


def check_image(part: Partition) -> int:
    """The data dimension, where it can be drawn."""
    if part.latent_dim != 2:
        raise LatentDimensionError(
            f"plot_image draws the image of a latent space with S = 2, and this one has S = {part.latent_dim}; "
            "girih.Partition.slice(net, origin, u, v) is a plane through it"
        )
    data_dim = part.trace.output_dim
    if data_dim not in (2, 3):
        raise ParameterError(
            f"plot_image draws images in two or three dimensions, and this generator has D = {data_dim}; end it with a "
            "linear map to two or three coordinates"
        )
    return int(data_dim)
