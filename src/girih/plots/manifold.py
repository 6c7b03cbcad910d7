"""The image of the latent space: over the rows as a curve or a deformed grid, or cell by cell beside its plane."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from girih.errors import LatentDimensionError, ParameterError
from girih.inference import DGN
from girih.partition import Partition
from girih.partition.polygons import Polygons, axis_names, cell_polygons, window
from girih.plots.cells import CellStyle, cell_style, colouring, draw_cells, scale_bar, with_style
from girih.plots.densities import draw_density
from girih.plots.numbers import (
    Array,
    Plane,
    complete_rows,
    curve_latents,
    fit_figure,
    folded,
    generate,
    label_columns,
    limits_around,
    noise_covariance,
    plane_axes,
    plane_of,
    prior_factor,
    quantiles,
    spread_latents,
    to_array,
)
from girih.plots.style import (
    BLACK,
    GREEN,
    GREY,
    PALE,
    VERMILLION,
    colour_bar,
    latent_colours,
    legend_below,
    new_axes,
    new_figure,
    styled,
)

_BAND = "±1 noise deviation"
_MAX_ROWS = 20_000
_COLOURS = (VERMILLION, BLACK, GREEN)
# Lines of the grid for each coordinate of z, and points along each.
_LINES = {2: 9, 3: 3}
_STEPS = 240
# Fewest and most pixels of the density below, for each S.
_PIXELS = {2: (80, 120), 3: (36, 44)}
_TAIL = 0.01


@styled
def plot_manifold(
    dgn: DGN, X: ArrayLike | None = None, ax: Axes | None = None, feature_names: list[str] | None = None
) -> Axes:
    """Draw g(z) between the 0.1% and 99.9% prior quantiles of z, over the rows, with cell limits and the noise.

    For S = 1 and D = 1 the curve is x against z, and a row lies at its posterior mean of z. For D = 2 the plane is
    that of the data, for more their first two principal axes, with the explained variance in the labels. The band is
    one noise standard deviation around the curve, and colour runs along z.

    For S = 2 and 3 it draws the images of a grid of latents instead, lines of one colour for each coordinate of z
    from its 1% to its 99% prior quantile, over the exact density where D = 2; D must be 2 or more.

    Args:
        dgn: a model with S = 1, 2 or 3.
        X: rows `(N, D)`, or `None` for the manifold alone. Missing entries are imputed, and such rows drawn as crosses.
        ax: axes to draw into; those of a new figure by default.
        feature_names: D names; those of X by default.

    Returns:
        The axes.

    Raises:
        ShapeError, NonFiniteError: X does not fit the model.
        LatentDimensionError: D = 1, and S is larger; draw the density with `plot_marginal`.

    Example:
        >>> import girih
        >>> from girih.plots import plot_manifold
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.01)
        >>> plot_manifold(dgn, dgn().sample((50,), seed=0)).get_xlabel()
        '$x_{0}$'
    """
    names = label_columns(X, feature_names, dgn.output_dim)
    own, rows, incomplete = ax is None, None, None
    if X is not None:
        rows, incomplete, _ = complete_rows(dgn, X, _MAX_ROWS)
        rows = rows if len(rows) else None
    if dgn.latent_dim > 1:
        plane = None if dgn.output_dim == 1 else _plane(dgn, rows, names)
        return draw_surface(dgn, plane, rows, incomplete, ax)
    z, limits = curve_latents(dgn, dgn.partition)
    if dgn.output_dim == 1:
        ax = new_axes(ax, height=2.9)
        points, corners = _columns(z, generate(dgn, z)), _columns(limits, generate(dgn, limits))
        if rows is not None:
            rows = _columns(to_array(dgn.posterior(rows).mean), rows)
        deviation = float(noise_covariance(dgn, np.eye(1))[0, 0]) ** 0.5
        ax.fill_between(z, points[:, 1] - deviation, points[:, 1] + deviation, color=PALE, lw=0, label=_BAND)
        ax.set(xlabel="latent z, rows at E[z | x]", ylabel=folded(names[0]))
    else:
        plane = _plane(dgn, rows, names)
        points, corners = plane.project(generate(dgn, z)), plane.project(generate(dgn, limits))
        rows = None if rows is None else plane.project(rows)
        central = points[np.abs(z) <= quantiles(dgn, np.array([0.99]))[0]]
        ax = plane_axes(ax, limits_around(rows, central))
        bends = plane.project(generate(dgn, np.concatenate((z[:1], limits, z[-1:]))))
        _draw_band(ax, bends, noise_covariance(dgn, plane.axes))
        ax.set(xlabel=plane.labels[0], ylabel=folded(plane.labels[1]))
    if rows is not None and incomplete is not None:
        draw_rows(ax, rows, incomplete)
    _draw_curve(ax, z, points, corners)
    legend_below(ax, own)
    if own and dgn.output_dim > 1:
        fit_figure(ax)
    return ax


def _columns(first: Array, second: Array) -> Array:
    return np.stack((first.reshape(-1), second.reshape(-1)), 1)


def _plane(dgn: DGN, rows: Array | None, names: list[str]) -> Plane:
    """The plane of the rows, or of g(z) at prior quantiles where there are too few rows."""
    if rows is not None and len(rows) > 1 and rows.std(0).any():
        return plane_of(rows, names)
    z = quantiles(dgn, (np.arange(400) + 0.5) / 400) if dgn.latent_dim == 1 else spread_latents(dgn)
    return plane_of(generate(dgn, z), names, "g(z)")


def _draw_band(ax: Axes, bends: Array, covariance: Array) -> None:
    """All points within one noise deviation of a polyline: an ellipse at each bend and a strip along each piece."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))  # unit circle -> noise ellipse
    angle = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)
    shapes: list[Array] = list(bends[:, None] + np.stack((np.cos(angle), np.sin(angle)), 1) @ root.T)
    for start, end in itertools.pairwise(bends):
        along = (end - start) @ vectors / np.sqrt(np.clip(values, 1e-300, None))
        length = float(np.hypot(*along))
        if length > 0:
            across = root @ (np.array([-along[1], along[0]]) / length)
            shapes.append(np.stack((start + across, end + across, end - across, start - across)))
    band = PolyCollection(shapes, facecolor=PALE, edgecolor=PALE, lw=0.2, zorder=1, label=_BAND)
    ax.add_collection(band, autolim=False)


def _draw_curve(ax: Axes, z: Array, points: Array, corners: Array) -> None:
    """The curve, coloured along z, with a dot at each cell limit."""
    pieces = np.stack((points[:-1], points[1:]), 1)
    ax.add_collection(LineCollection(list(pieces), color="white", lw=3.2, capstyle="round", zorder=2), autolim=False)
    curve = LineCollection(list(pieces), cmap=latent_colours(), lw=1.8, capstyle="round", zorder=2.1)
    curve.set_array(0.5 * (z[:-1] + z[1:]))
    ax.add_collection(curve)
    if len(corners):
        size = float(np.clip(300.0 / len(corners), 3.0, 13.0))
        style: dict[str, Any] = {"facecolor": "white", "edgecolor": BLACK, "lw": 0.7, "zorder": 2.2}
        ax.scatter(corners[:, 0], corners[:, 1], s=size, label="cell limits", **style)
    colour_bar(ax, curve, "g(z), coloured by z")


def draw_surface(
    dgn: DGN, plane: Plane | None, rows: Array | None, incomplete: NDArray[np.bool_] | None, ax: Axes | None
) -> Axes:
    """Draw the image of a grid of latents, S = 2 or 3, in a plane; see `girih.plots.plot_manifold`."""
    if plane is None:
        raise LatentDimensionError(
            f"plot_manifold needs D of 2 or more where S = {dgn.latent_dim}; draw the density of x with "
            "girih.plots.plot_marginal instead"
        )
    own = ax is None
    factor = prior_factor(dgn)
    flat = None if rows is None else plane.project(rows)
    z = spread_latents(dgn)
    near = np.linalg.norm(np.linalg.solve(factor, z.T), axis=0) < 2.5
    ax = plane_axes(ax, limits_around(flat, plane.project(generate(dgn, z[near]))))
    if dgn.output_dim == 2:
        deviation = np.sqrt(noise_covariance(dgn, np.eye(2)).diagonal())
        draw_density(ax, dgn.model(), deviation, pixels=_PIXELS[dgn.latent_dim])
    if flat is not None and incomplete is not None:
        draw_rows(ax, flat, incomplete, zorder=2.0)
    for axis, colour in zip(range(dgn.latent_dim), _COLOURS, strict=False):
        lines = grid_lines(factor, axis)
        points = plane.project(generate(dgn, lines.reshape(-1, dgn.latent_dim))).reshape(*lines.shape[:2], 2)
        style: dict[str, Any] = {"color": colour, "lw": 0.5, "alpha": 0.7, "zorder": 1.8}
        ax.add_collection(LineCollection(list(points), **style), autolim=False)
        ax.plot([], [], color=colour, lw=1.2, label=f"g(z) along $z_{axis + 1}$")
    ax.set(xlabel=plane.labels[0], ylabel=folded(plane.labels[1]))
    legend_below(ax, own)
    if own:
        fit_figure(ax)
    return ax


def grid_lines(factor: Array, axis: int) -> Array:
    """Lines of latents along one coordinate, the others at even prior quantiles, `(lines, points, S)`."""
    S, count = len(factor), _LINES[len(factor)]
    reach = -float(ndtri(_TAIL))
    along = np.linspace(-reach, reach, _STEPS)
    fixed = ndtri((np.arange(count) + 0.5) / count)
    others = np.stack(np.meshgrid(*[fixed] * (S - 1)), -1).reshape(-1, S - 1)
    lines = np.empty((len(others), _STEPS, S))
    lines[:, :, axis] = along
    lines[:, :, [i for i in range(S) if i != axis]] = others[:, None]
    return np.asarray(lines @ factor.T)


def draw_rows(ax: Axes, rows: Array, incomplete: NDArray[np.bool_], label: str = "rows", zorder: float = 1.5) -> None:
    """Grey dots, and crosses for rows with imputed entries."""
    size = float(np.clip(2000.0 / max(len(rows), 1), 2.0, 9.0))
    options: dict[str, Any] = {"color": GREY, "rasterized": len(rows) > 500, "zorder": zorder}
    ax.scatter(rows[~incomplete, 0], rows[~incomplete, 1], s=size, lw=0, alpha=0.75, label=label, **options)
    if incomplete.any():
        ax.scatter(
            rows[incomplete, 0],
            rows[incomplete, 1],
            s=2.2 * size,
            marker="x",
            lw=0.7,
            label="with imputed entries",
            **options,
        )


@with_style
@styled
def plot_image(
    part: Partition,
    values: str | ArrayLike | CellStyle | None = None,
    span: ArrayLike | None = None,
    view: tuple[float, float] = (24.0, -58.0),
) -> Figure:
    """Draw the cells of a latent space with S = 2, and beside them their images in data space, in the same colours.

    The image is a surface for D = 3, and for D = 2 polygons in the plane, see-through where they overlap.

    Args:
        part: a partition with S = 2 of a generator with D = 2 or 3.
        values: what colours stand for, as in `plot_cells`.
        span: the window, as in `plot_cells`; the image is that of the window.
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
    draw_image(left, right, part, values, span, view)
    return figure


@with_style
def draw_image(
    left: Axes,
    right: Axes,
    part: Partition,
    values: str | ArrayLike | CellStyle | None = None,
    span: ArrayLike | None = None,
    view: tuple[float, float] = (24.0, -58.0),
) -> None:
    """Draw latent space and image into axes.

    Args:
        left: of the latent space.
        right: of the image; for D = 3 those of a 3-D projection.
        part: a partition with S = 2 and D = 2 or 3.
        values: what the colours stand for, as in `plot_cells`.
        span: the window in the latent space.
        view: elevation and azimuth for D = 3, degrees.
    """
    data_dim = check_image(part)
    frame = window(part, span)
    polygons = cell_polygons(part, frame)
    drawn = CellStyle.of(values)
    colours = colouring(part, drawn, polygons.cell)
    draw_cells(left, polygons, colours.rgba, frame, drawn.edges)
    names = axis_names(part)
    cells = len(polygons.cell)
    count = f"{cells} cells" if cells == len(part) else f"{cells} of {len(part)} cells"
    left.set(xlabel=names[0], ylabel=names[1], title=f"latent space, {count}")
    scale_bar(left, colours)
    points = image_points(part, polygons)
    pieces = np.split(points, polygons.start[1:-1])
    style = cell_style(polygons, colours.rgba, drawn.edges)
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
