"""Half-spaces of single polytopes: without repetitions, or from points and rays."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull, QhullError

from girih.errors import ParameterError

Array = npt.NDArray[np.float64]
_PARALLEL = 1e-14
_SIDE = 1e-12  # how far a generator may be beyond a face of the hull by rounding


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
