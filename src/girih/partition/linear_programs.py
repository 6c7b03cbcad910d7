"""Linear programs on polyhedra given by half-spaces: a point well inside, the irredundant ones, points of facets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog

from girih.errors import GirihError
from girih.partition.memory import Array

_OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
_REDUNDANT = 1e-8  # in units of the radius of the cell
_RAYS = 4  # directions to look for facets in, for each half-space


class Box(NamedTuple):
    """A cube."""

    centre: Array  # (S,)
    half: float


class Inner(NamedTuple):
    """A ball inside a polyhedron, or inside a facet of it."""

    centre: Array  # (S,)
    radius: float


def deepest(H: Array, h: Array, near: Array, anchor: Array) -> Inner:
    """The largest ball in `H z <= h`, not much farther from the anchor than the point `near` in the polyhedron.

    The radius is 0 or less where there is none.

    Example:
        >>> import numpy as np
        >>> from girih.partition.linear_programs import deepest
        >>> near = np.array([1.5])
        >>> deepest(np.array([[1.0], [-1.0]]), np.array([3.0, -1.0]), near, near)
        Inner(centre=array([2.]), radius=1.0)
    """
    size = 1.0 + float(np.abs(anchor).max())
    box = Box(anchor, size + 2.0 * float(np.abs(near - anchor).max()))
    inner = _ball(H, h, np.ones(len(h)), near, size, box, None)
    if 0.0 < inner.radius < 1e-2 * size:  # once more, on the scale of the ball, for the digits
        finer = _ball(H, h, np.ones(len(h)), inner.centre, inner.radius, box, None)
        return finer if finer.radius > 0.0 else inner
    return inner


def across(H: Array, h: Array, k: int, inner: Inner, anchor: Array) -> Inner:
    """The largest ball inside facet k of a polyhedron with the ball `inner`, in its part next to the anchor."""
    normal, dim = H[k], len(anchor)
    if dim == 1:
        return Inner(normal * h[k], inner.radius)
    others = np.delete(np.arange(len(h)), k)
    width = np.sqrt(np.maximum(1.0 - (H[others] @ normal) ** 2, 0.0))
    foot = inner.centre + (h[k] - normal @ inner.centre) * normal
    distance = _distance(H[others], h[others] - H[others] @ foot, normal, anchor - foot, inner.radius)
    box = Box(anchor, 1.0 + float(np.abs(anchor).max()) + 2.0 * distance)
    ball = _ball(H[others], h[others], width, foot, inner.radius, box, normal)
    if 0.0 < ball.radius < 1e-2 * inner.radius:
        finer = _ball(H[others], h[others], width, ball.centre, ball.radius, box, normal)
        return finer if finer.radius > 0.0 else ball
    return ball


def _distance(H: Array, gap: Array, normal: Array, anchor: Array, scale: float) -> float:
    """The distance of a facet to the anchor, in the largest coordinate."""
    dim = len(anchor)
    eye, ones = np.eye(dim), np.ones((2 * dim, 1))
    rows = np.concatenate((np.pad(H, ((0, 0), (0, 1))), np.concatenate((np.concatenate((eye, -eye)), -ones), 1)))
    limits = np.concatenate((gap, anchor, -anchor)) / scale
    result = _solve(np.append(np.zeros(dim), 1.0), rows, limits, np.append(normal, 0.0)[None])
    return float(np.abs(anchor).max()) if result is None else float(scale * abs(result[dim]))


def _ball(H: Array, h: Array, width: Array, near: Array, scale: float, box: Box, normal: Array | None) -> Inner:
    """The largest ball; `near` becomes the origin and `scale` the unit of length, and `normal` is that of a facet."""
    dim, eye = len(near), np.eye(len(near))
    rows = np.concatenate((H, eye, -eye))
    column = np.concatenate((width, np.ones(2 * dim)))[:, None]
    limits = np.concatenate((h - H @ near, box.centre + box.half - near, near - box.centre + box.half)) / scale
    equal = None if normal is None else np.append(normal, 0.0)[None]
    result = _solve(np.append(np.zeros(dim), -1.0), np.concatenate((rows, column), 1), limits, equal)
    if result is None:
        return Inner(near, -1.0)
    return Inner(near + scale * result[:dim], float(scale * result[dim]))


def irredundant(H: Array, h: Array, inner: Inner) -> Array:
    """The indices of the half-spaces that have a facet each, ascending; no two of them are equal.

    Facets that a ray from the inside meets first are certain. Any other half-space is tested with the facets known
    so far (Clarkson, 1994), and a point that it cuts off shows a new one.
    """
    if len(h) <= 1:
        return np.arange(len(h))
    gap = (h - H @ inner.centre) / inner.radius  # all are 1 or more
    facets, open_ = _shoot(H, gap), np.ones(len(h), bool)
    open_[list(facets)] = False
    for i in np.argsort(gap, kind="stable"):
        while open_[i]:
            known = sorted(facets)
            point = _beyond(H, gap, known, int(i))
            if point is None:
                open_[i] = False  # redundant, with some of the facets alone
                continue
            hit = _first_hit(H, gap, point)
            if hit is None or hit in facets:
                others = np.flatnonzero((np.arange(len(h)) != i) & open_).tolist() + known
                if _beyond(H, gap, others, int(i)) is not None:
                    facets.add(int(i))
                open_[i] = False
            else:
                facets.add(hit)
                open_[hit] = False
    return np.array(sorted(facets), np.int64)


def _shoot(H: Array, gap: Array) -> set[int]:
    """Half-spaces that a ray from 0 leaves first."""
    count, dim = H.shape
    rays = np.random.default_rng(0).normal(size=(_RAYS * min(count, 250), dim))
    rays = np.concatenate((rays, H, -H))
    speed = (rays @ H.T) / gap
    order = np.argpartition(speed, -2, axis=1)[:, -2:]
    top = np.take_along_axis(speed, order, 1)
    first = np.where(top[:, 0] > top[:, 1], order[:, 0], order[:, 1])
    clear = (top.max(1) > 0) & (top.max(1) - np.maximum(top.min(1), 0.0) > 1e-6 * top.max(1))
    return {int(i) for i in first[clear]}


def _first_hit(H: Array, gap: Array, point: Array) -> int | None:
    """The half-space that the ray from 0 to a point leaves first; `None` where two are as near."""
    speed = (H @ point) / gap
    first, second = np.argsort(speed)[[-1, -2]]
    return int(first) if speed[first] - speed[second] > 1e-6 * speed[first] else None


def _beyond(H: Array, gap: Array, known: list[int], i: int) -> Array | None:
    """A point that satisfies the known half-spaces but not the i-th, if there is one."""
    rows, limits = np.concatenate((H[known], H[i : i + 1])), np.append(gap[known], gap[i] + 1.0)
    point = _solve(-H[i], rows, limits)
    if point is None:
        return None
    return point if H[i] @ point > gap[i] + _REDUNDANT * (1.0 + gap[i]) else None


def _solve(cost: Array, rows: Array, limits: Array, equal: Array | None = None) -> Array | None:
    """The optimum over `rows x <= limits`, and `equal x = 0`; `None` where there is no such x."""
    extra: dict[str, Any] = {} if equal is None else {"A_eq": equal, "b_eq": np.zeros(len(equal))}
    for options in (_OPTIONS, {"presolve": False}, {}):
        result = linprog(cost, rows, limits, bounds=(None, None), method="highs", options=options, **extra)
        if result.status == 0:
            return np.asarray(result.x)
    if result.status == 2:
        return None
    raise GirihError(f"a linear program for a cell of this network failed ({result.message}); rescale the weights")
