"""The boundary of one polytope given by half-spaces: what the polygon and polyhedron codes take.

Every facet is found by clipping: the line where two planes meet (or, in the plane, the line itself) is cut by all other
half-spaces, and what is left is an edge, a ray or nothing. No linear programs, and unbounded polytopes need no box.
The work grows with the cube of the number of half-spaces (S = 3): meant for tens of them.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull, QhullError

from girih.errors import ParameterError

Array = npt.NDArray[np.float64]
_PARALLEL = 1e-14
_SIDE = 1e-12  # how far a generator may be beyond a face of the hull by rounding


class Boundary(NamedTuple):
    """A boundary holds the edges of a polygon (one face) or of the faces of a polyhedron."""

    tail: Array  # (E, S + 1) homogeneous
    head: Array  # (E, S + 1)
    face: npt.NDArray[np.int64]  # (E,)
    normal: Array  # (F, S)
    offset: Array  # (F,)
    empty: bool  # no point satisfies all half-spaces


def tidy(H: Array, h: Array) -> tuple[Array, Array, bool]:
    """Rows of length 1 without repetitions, and whether some row alone forbids every point."""
    length = np.sqrt((H**2).sum(1))
    flat = length == 0
    impossible = bool((h[flat] < 0).any())
    H, h = H[~flat] / length[~flat, None], h[~flat] / length[~flat]
    kept: list[int] = []
    for i in np.argsort(h, kind="stable"):
        if all(((H[i] - H[j]) ** 2).sum() > _PARALLEL**2 for j in kept):
            kept.append(int(i))
    kept.sort()
    return H[kept], h[kept], impossible


def polygon_boundary(H: Array, h: Array) -> Boundary:
    """The edges of `{x: H x <= h}` in the plane, counter-clockwise as a set (in no order)."""
    H, h, impossible = tidy(H, h)
    tails, heads = [], []
    for i in range(len(H)):
        along = np.array([-H[i, 1], H[i, 0]])  # the inside is on the left
        others = np.arange(len(H)) != i
        for a, b in _clip(H[i] * h[i], along, H[others], h[others]):
            tails.append(a)
            heads.append(b)
    empty = impossible or (len(H) > 0 and not tails)
    tail, head = (_rows(ends, 2) for ends in (tails, heads))
    _merge(tail, head)
    return Boundary(tail, head, np.zeros(len(tail), np.int64), H, h, empty)


def polyhedron_boundary(H: Array, h: Array) -> Boundary:
    """The faces of `{x: H x <= h}` in space with their edges, counter-clockwise seen from outside."""
    H, h, impossible = tidy(H, h)
    tails: list[Array] = []
    heads: list[Array] = []
    face: list[int] = []
    alive: list[int] = []
    for i in range(len(H)):
        others = np.arange(len(H)) != i
        N, k = H[others], h[others]
        foot = H[i] * h[i]
        G = N - np.outer(N @ H[i], H[i])  # in the plane of face i
        room = k - N @ foot
        parallel = (G**2).sum(1) <= (10 * _PARALLEL) ** 2
        if (room[parallel] < 0).any():
            continue
        g, room, _ = tidy(G[~parallel], room[~parallel])
        edges = []
        for j in range(len(g)):
            rest = np.arange(len(g)) != j
            along = np.cross(H[i], g[j])  # the inside is on the left, seen from outside
            edges += _clip(g[j] * room[j], along / np.linalg.norm(along), g[rest], room[rest])
        if len(g) and not edges:
            continue
        face += [len(alive)] * len(edges)
        tails += [a + np.append(foot, 0.0) * a[3] for a, _ in edges]
        heads += [b + np.append(foot, 0.0) * b[3] for _, b in edges]
        alive.append(i)
    empty = impossible or (len(H) > 0 and not alive)
    tail, head = (_rows(ends, 3) for ends in (tails, heads))
    _merge(tail, head)
    return Boundary(tail, head, np.array(face, np.int64), H[alive], h[alive], empty)


def _clip(point: Array, along: Array, N: Array, k: Array) -> list[tuple[Array, Array]]:
    """The part of the line `point + t along` that satisfies `N x <= k`, as edges between homogeneous points."""
    speed, room = N @ along, k - N @ point
    still = np.abs(speed) <= _PARALLEL
    if (room[still] < 0).any():
        return []
    forward, back = speed > _PARALLEL, speed < -_PARALLEL
    end = float((room[forward] / speed[forward]).min(initial=np.inf))
    start = float((room[back] / speed[back]).max(initial=-np.inf))
    if end <= start or end - start <= 1e-13 * max(abs(start), abs(end)) < np.inf:
        return []

    def at(t: float) -> Array:
        if np.isinf(t):
            return np.append(along * np.sign(t), 0.0)
        return np.append(point + t * along, 1.0)

    if np.isinf(start) and np.isinf(end):
        return [(at(start), at(0.0)), (at(0.0), at(end))]
    return [(at(start), at(end))]


def _rows(ends: list[Array], dim: int) -> Array:
    return np.array(ends).reshape(-1, dim + 1)


def _merge(tail: Array, head: Array) -> None:
    """Give points that differ by rounding the same coordinates, in place."""
    points = np.concatenate((tail, head))
    finite = np.flatnonzero(points[:, -1] != 0)
    left = list(finite)
    while left:
        near = points[left] - points[left[0]]
        same = np.abs(near).max(1) <= 1e-13 * (1e-300 + np.abs(points[left[0], :-1]).max())
        group = np.array(left)[same]
        points[group] = points[group[0]]
        left = list(np.array(left)[~same])
    tail[:], head[:] = points[: len(tail)], points[len(tail) :]


def halfspaces_of(points: Array, rays: Array) -> tuple[Array, Array]:
    """`(H, h)` with `H x <= h` on the hull of `points (k, S)` plus non-negative multiples of `rays (r, S)`."""
    centre = points.mean(0)
    spread = float(np.abs(points - centre).max()) or 1.0
    y = (points - centre) / spread
    if points.shape[1] == 1:
        H, h = _segment(y, rays)
    elif len(rays):
        H, h = _cone_hull(y, rays)
    else:
        try:
            equations = ConvexHull(y).equations
        except (QhullError, ValueError) as error:
            raise ParameterError(
                f"vertices {points.shape} span no volume: give at least {points.shape[1] + 1} points that do not lie "
                "on a hyperplane, or half-spaces"
            ) from error
        H, h = equations[:, :-1], -equations[:, -1]
    return H, h * spread + H @ centre


def _segment(y: Array, rays: Array) -> tuple[Array, Array]:
    rows = []
    if not (rays > 0).any():
        rows.append((1.0, y.max()))
    if not (rays < 0).any():
        rows.append((-1.0, -y.min()))
    table = np.array(rows).reshape(-1, 2)
    return table[:, :1], table[:, 1]


def _cone_hull(y: Array, rays: Array) -> tuple[Array, Array]:
    """All hyperplanes through S generators (at least one a point) with the others on one side: small inputs only."""
    S = y.shape[1]
    unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    generators = np.concatenate((np.c_[y, np.ones(len(y))], np.c_[unit, np.zeros(len(unit))]))
    if np.linalg.matrix_rank(np.concatenate((y - y[0], unit)), tol=_SIDE) < S:
        raise ParameterError("vertices and rays span no volume: give more of them, or half-spaces")
    rows = []
    for some in combinations(range(len(generators)), S):
        if some[0] >= len(y):
            break
        base = generators[some[0], :-1]
        others = generators[list(some[1:])]
        plane = others[:, :-1] - base * others[:, -1:]
        n = np.array([-plane[0, 1], plane[0, 0]]) if S == 2 else np.cross(plane[0], plane[1])
        length = float(np.linalg.norm(n))
        if length <= _SIDE:
            continue
        n = n / length
        side = generators[:, :-1] @ n - generators[:, -1] * (base @ n)
        for sign in (1.0, -1.0):
            if (sign * side <= _SIDE).all():
                rows.append(np.append(sign * n, sign * (base @ n)))
    table = np.array(rows).reshape(-1, S + 1)
    return table[:, :-1], table[:, -1]
