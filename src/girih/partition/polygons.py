"""The cells of a two-dimensional latent space as polygons, cut to a window."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from girih.errors import LatentDimensionError, ParameterError
from girih.partition.memory import Array
from girih.partition.partition import Partition
from girih.partition.polytope_cells import PolytopeCells

Ints = NDArray[np.int64]
Window = tuple[tuple[float, float], tuple[float, float]]

# Prior deviations that a picture shows to each side of the origin, where the domain does not say.
_REACH = 3.0


class Polygons(NamedTuple):
    """The parts of cells inside a window, those that have any, one convex polygon each.

    Attributes:
        points: corners, counter-clockwise within each polygon, `(N, 2)`.
        start: where each polygon begins in `points`, and `N`, `(P + 1,)`.
        cell: the cell of each polygon, `(P,)`.
    """

    points: Array
    start: Ints
    cell: Ints

    def corners(self) -> list[Array]:
        """The corners of each polygon, `(V, 2)`."""
        return np.split(self.points, self.start[1:-1]) if len(self.cell) else []

    def areas(self) -> Array:
        """The area of each polygon."""
        following = _following(self.start)
        x, y = self.points.T
        anchor = np.repeat(self.points[self.start[:-1]], np.diff(self.start), axis=0)
        a, b = self.points - anchor, np.stack((x[following], y[following]), 1) - anchor
        cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
        whose = np.repeat(np.arange(len(self.cell)), np.diff(self.start))
        return np.asarray(0.5 * np.bincount(whose, cross, len(self.cell)), np.float64)


def cell_polygons(part: Partition, span: ArrayLike | None = None) -> Polygons:
    """The polygons of all cells of a partition with S = 2, inside a window.

    Corners are kept in homogeneous coordinates until the window has cut them, so unbounded cells are exact too.

    Args:
        part: a partition with S = 2.
        span: the window; see `window`.

    Example:
        >>> import girih
        >>> from girih.partition.polygons import cell_polygons
        >>> part = girih.Partition(girih.mlp([2, 8, 2], seed=0))
        >>> polygons = cell_polygons(part, (-2.0, 2.0))
        >>> round(float(polygons.areas().sum()), 10)
        16.0
    """
    cells = planar_cells(part)
    (x0, x1), (y0, y1) = window(part, span)
    points, owner = _outlines(cells)
    # each side of the window as a linear function of (z, t) that is positive inside
    for side in ((1.0, 0.0, -x0), (-1.0, 0.0, x1), (0.0, 1.0, -y0), (0.0, -1.0, y1)):
        points, owner = _clip(points, owner, np.array(side))
    if cells.several:
        points, owner = _joined(points, cells.cell_of_piece[owner])
    kept, count = np.unique(owner, return_counts=True)
    whole_plane = np.setdiff1d(np.arange(len(part)), _outlined(cells))
    if len(whole_plane):  # a cell without a finite corner is all there is
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        return Polygons(corners, np.array([0, 4]), whole_plane[:1])
    flat = points[:, :2] / points[:, 2:]
    return Polygons(flat, np.concatenate(([0], np.cumsum(count))), kept)


def planar_cells(part: Partition) -> PolytopeCells:
    """The cells of a partition with S = 2; refuses others."""
    if part.latent_dim != 2:
        raise LatentDimensionError(
            f"this picture is of a latent space with S = 2, and the partition has S = {part.latent_dim}; take a plane "
            "through it with girih.Partition.slice(net, origin, u, v)"
        )
    return part.polytopes


def window(part: Partition, span: ArrayLike | None = None) -> Window:
    """The window of a picture.

    Args:
        part: a partition with S = 2.
        span: `(low, high)` for both coordinates, or a pair for each; by default a bounded domain, or else 3 prior
            deviations to either side.

    Raises:
        ParameterError: a span that is not finite or is empty.
    """
    if span is not None:
        try:
            ends = np.broadcast_to(np.asarray(span, dtype=np.float64), (2, 2))
        except (TypeError, ValueError):
            ends = np.full((2, 2), np.nan)
        if not (np.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
            raise ParameterError(f"span must be (low, high), or one such pair for each coordinate; got {span}")
    else:
        points = planar_cells(part).complex.points
        finite = points[points[:, 2] > 0, :2]
        low, high = finite.min(0), finite.max(0)
        deviation = np.sqrt(np.diag(part.prior_covariance.numpy()))
        if (points[:, 2] == 0).any():
            reach = _REACH * deviation
            inside = part.domain is None or bool((low < reach).all() and (high > -reach).all())
            low, high = (-reach, reach) if inside else (low - reach, high + reach)
        ends = np.stack((low, high), 1)
    return (float(ends[0, 0]), float(ends[0, 1])), (float(ends[1, 0]), float(ends[1, 1]))


def segments(part: Partition, view: Window) -> tuple[Array, Ints]:
    """Every edge as a segment that reaches beyond the window, `(E, 2, 2)`, and what made it: see `Complex.label`."""
    complex_ = planar_cells(part).complex
    ends = complex_.points[complex_.ends.data]
    real = (ends[:, :, 2] > 0).any(1)
    ends = ends[real]
    first = ends[:, :1, 2] > 0  # the finite end first
    tail, head = np.where(first, ends[:, 0], ends[:, 1]), np.where(first, ends[:, 1], ends[:, 0])
    corners = np.array([(x, y) for x in view[0] for y in view[1]])
    reach = np.linalg.norm(tail[:, None, :2] - corners, axis=2).max(1, keepdims=True)
    far = np.where(head[:, 2:] > 0, head[:, :2], tail[:, :2] + 1.1 * reach * head[:, :2])
    return np.stack((tail[:, :2], far), 1), complex_.label.data[real]


def axis_names(part: Partition) -> tuple[str, str]:
    """Names of the two coordinates: those of a slice are a and b."""
    sliced = any(getattr(step, "path", None) == "the plane" for step in part.trace.steps)
    return ("a", "b") if sliced else ("$z_1$", "$z_2$")


def _outer_edges(cells: PolytopeCells) -> tuple[Ints, Ints]:
    """The edges of each cell, but for those between two of its own pieces, and their cells."""
    edges, owner = cells.complex.levels[2].lists(np.arange(cells.complex.count))
    cell = cells.cell_of_piece[owner]
    if not cells.several:
        return edges, cell
    sides = cells.sides[edges]
    inner = (sides >= 0).all(1) & (cells.cell_of_piece[sides[:, 0]] == cells.cell_of_piece[sides[:, 1]])
    return edges[~inner], cell[~inner]


def _outlined(cells: PolytopeCells) -> Ints:
    """The cells that have a finite corner on their boundary."""
    edges, cell = _outer_edges(cells)
    finite = (cells.complex.points[cells.complex.ends.data[edges], 2] > 0).any(1)
    return np.unique(cell[finite])


def _outlines(cells: PolytopeCells) -> tuple[Array, Ints]:
    """The corners of every piece in homogeneous coordinates, counter-clockwise, and the piece of each."""
    vertices, owner = cells.corners
    points = cells.complex.points[vertices]
    around = points[:, :2] - points[:, 2:] * cells.inside[owner]
    order = np.lexsort((np.arctan2(around[:, 1], around[:, 0]), owner))
    return points[order], owner[order]


def _joined(points: Array, owner: Ints) -> tuple[Array, Ints]:
    """The outlines of cells from the corners of their pieces, which all lie on the boundary of the cell."""
    points = points / points[:, 2:]
    count = np.maximum(np.bincount(owner), 1)
    middle = np.stack([np.bincount(owner, points[:, axis]) / count for axis in (0, 1)], 1)
    around = points[:, :2] - middle[owner]
    order = np.lexsort((np.arctan2(around[:, 1], around[:, 0]), owner))
    return points[order], owner[order]


def _following(start: Ints) -> Ints:
    """Find for each corner the next one around its polygon."""
    out = np.arange(1, start[-1] + 1)
    out[start[1:] - 1] = start[:-1]
    return out


def _clip(points: Array, owner: Ints, side: Array) -> tuple[Array, Ints]:
    """Keep the part of every polygon where `side . (z, t) >= 0`."""
    if not len(points):
        return points, owner
    begin = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    following = _following(np.append(begin, len(owner)))
    value = points @ side
    after = value[following]
    crosses = value * after < 0
    share = np.where(crosses, value / np.where(crosses, value - after, 1.0), 0.0)[:, None]
    between = points + share * (points[following] - points)
    both = np.stack((points, between), 1).reshape(-1, 3)
    keep = np.stack((value >= 0, crosses), 1).ravel()
    out, whose = both[keep], np.repeat(owner, 2)[keep]
    # polygons that only touch the window have no area
    count = np.bincount(whose, minlength=int(owner[-1]) + 1)
    inside = np.bincount(owner, value > 0, minlength=int(owner[-1]) + 1)
    solid = ((count > 2) & (inside > 0))[whose]
    return out[solid], whose[solid]
