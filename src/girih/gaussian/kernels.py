r"""The signed form of masses and moments (`signed`) in compiled code: a set at a time, nothing padded; needs Numba.

The flux of an edge is the integral of an entire function of the place t along it, so Gauss-Legendre nodes need no
care where p or h vanish, as the closed forms do. With q^2 = p^2 + t^2 and r^2 = h^2 + q^2, in the plane and in space

    p / (4 pi) E(q^2),                              E(x) = (1 - exp(-x/2)) / (x/2),
    p h / (4 pi) (G(h^2) - G(r^2)) / q^2,           G(x) = erf(sqrt(x/2)) / sqrt(x).

Both are averages of exponentials, `E(x) = int exp(-x s / 2) ds` and `G(x) = sqrt(2/pi) int exp(-x s^2 / 2) ds` over
[0, 1], so the k-th terms of their Taylor series fall as `(d/2)^k / k!`: ten of them, from tables with steps of 1/2,
are right to 1e-17, and a difference quotient of G at small q is a series at h^2. Beyond `r^2 = 78` the exponential is
below 1e-17 and the rest is an angle, and in space the solid angle of a triangle (van Oosterom and Strackee, 1983).

In space r is the same seen from both faces of an edge: G(r^2) and exp(-r^2 / 2) are found once for them. The latter
is all that moments ask for, too: the mass of a face times exp(-h^2 / 2) is a sum of difference quotients,
`exp(-h^2 / 2) E(q^2) = 2 (exp(-h^2 / 2) - exp(-r^2 / 2)) / q^2`, and that of an edge is a sum over the nodes.

Each edge has the fewest nodes that integrate it to 1e-16, as found against 240 of them; rounding adds 5e-16. The
absolute error of a set is below 1e-15 for each edge that is near, and 1e-15 of the distance of its farthest vertex:
vertices are rounded. Terms are summed as they come, so parts of a set far below 1e-15 are left to the positive forms.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

_R2 = 78.0  # squared distance from which on exp(-r^2 / 2) is nothing
_NEAR = 0.25  # q^2 below which the difference quotient of G is a series
_ROOT_HALF = math.sqrt(0.5)
_ROOT_2PI = math.sqrt(2.0 * math.pi)
_4PI = 4.0 * math.pi
# of a face: h, G(h^2), exp(-h^2 / 2), erfc(|h| / sqrt(2)), and 4 pi exp(-h^2 / 2) times its mass
_HEIGHT, _POTENTIAL, _PEAK, _BEYOND, _AREA = range(5)
_TERMS = 12
_LAST = 156  # of the steps of the tables


def _taylor(power: int, scale: float) -> Array:
    """Coefficients `(steps, terms)` of `scale int exp(-x s^power / 2) ds` at the middles of steps of 1/2 in x."""
    s, w = np.polynomial.legendre.leggauss(80)
    s, w = 0.5 + 0.5 * s, 0.5 * w
    x = 0.25 + 0.5 * np.arange(_LAST + 1)
    rate = -0.5 * s**power
    terms = [rate**k / math.factorial(k) for k in range(_TERMS)]
    return scale * np.exp(x[:, None] * rate) @ (w * np.stack(terms)).T


def _legendre(nodes: int) -> Array:
    """Nodes and weights of a rule, whose weights NumPy gives to 3e-15 only."""
    x: Array = np.polynomial.legendre.leggauss(nodes)[0].astype(np.longdouble)
    for _ in range(2):
        below: Array = np.ones_like(x)
        value = x
        for k in range(2, nodes + 1):
            below, value = value, ((2 * k - 1) * x * value - (k - 1) * below) / k
        slope = nodes * (x * value - below) / (x * x - 1)
        x = x - value / slope
    return np.stack((x, 2 / ((1 - x * x) * slope * slope))).astype(np.float64)


_E, _G = _taylor(1, 1.0), _taylor(2, math.sqrt(2.0 / math.pi))
_EXP = np.exp(-0.5 * (0.25 + 0.5 * np.arange(_LAST + 1)))
_C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10 = ((-0.5) ** k / math.factorial(k) for k in range(1, 11))
# nodes, and the longest part of an edge that they serve; the last is all of a line that is near
_RULES = (
    (4, 0.15),
    (6, 0.6),
    (8, 1.3),
    (10, 2.1),
    (12, 3.0),
    (16, 5.0),
    (20, 7.2),
    (24, 9.2),
    (32, 13.2),
    (40, 2.0 * math.sqrt(_R2)),
)
_LAST_RULE = len(_RULES) - 1
_LIMIT = np.array([length for _, length in _RULES])
_COUNT = np.array([nodes for nodes, _ in _RULES])
_FIRST = np.cumsum(_COUNT) - _COUNT
_NODE, _WEIGHT = np.concatenate([_legendre(nodes) for nodes, _ in _RULES], 1)


def compiled(function: Callable[..., Any], *allowed: str) -> Any:
    """A function compiled at its first call, and kept on disk where there is a folder that can be written to.

    Args:
        function: for Numba.
        allowed: what LLVM may do to sums beyond fused products, as in "reassoc".
    """
    return _kept(function, {"contract", *allowed})


def exactly(function: Callable[..., Any]) -> Any:
    """The same without fused products, which would be rounded otherwise than in NumPy."""
    return _kept(function, False)


def _digest() -> str:
    """What stands in the modules of compiled code, in short."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].glob("*/*kernels.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:8]


_DIGEST = _digest()


def _kept(function: Callable[..., Any], fastmath: set[str] | bool) -> Any:
    # Numba looks whether a function's own module has changed, not those of the functions that it calls: in code kept
    # from before they would be linked to what has the same name now.
    function.__qualname__ += f"_{_DIGEST}"
    settings: dict[str, Any] = {"error_model": "numpy", "fastmath": fastmath, "nogil": True}
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:  # no such folder: compiled again in each process
        return njit(**settings)(function)


@compiled
def _series(table: Array, x: float) -> float:
    """A function of the tables at x in [0, 78]."""
    k = int(2.0 * x) if x < _R2 else _LAST  # that of NaN, too
    y = x - (0.5 * k + 0.25)
    total: float = table[k, 9]
    for j in range(8, -1, -1):
        total = table[k, j] + y * total
    return total


@compiled
def _both(x: float) -> tuple[float, float]:
    """G and `exp(-x / 2)` at x in [0, 78], short sums first: they do not wait for each other."""
    k = int(2.0 * x) if x < _R2 else _LAST
    y = x - (0.5 * k + 0.25)
    y2 = y * y
    y4 = y2 * y2
    g = _G[k, 0] + y * _G[k, 1] + y2 * (_G[k, 2] + y * _G[k, 3])
    g += y4 * (_G[k, 4] + y * _G[k, 5] + y2 * (_G[k, 6] + y * _G[k, 7]) + y4 * (_G[k, 8] + y * _G[k, 9]))
    e = 1.0 + y * _C1 + y2 * (_C2 + y * _C3)
    e += y4 * (_C4 + y * _C5 + y2 * (_C6 + y * _C7) + y4 * (_C8 + y * _C9 + y2 * _C10))
    return g, e * _EXP[k]


@compiled
def _angle(p: float, t0: float, t1: float) -> float:
    """The angle under which the origin sees an edge, with the sign of p."""
    if p == 0.0:
        return 0.0
    if math.isinf(t1):
        return math.copysign(math.atan2(abs(p), t0), p)
    if math.isinf(t0):
        return math.copysign(math.atan2(abs(p), -t1), p)
    return math.atan2(p * (t1 - t0), p * p + t0 * t1)


@compiled
def _solid_angle(h: float, p: float, t0: float, t1: float) -> float:
    """That of the triangle of an edge and the foot of its face, at a distance h >= 0, with the sign of p."""
    q = abs(p)
    if q == 0.0:
        return 0.0
    a2 = h * h + q * q
    if math.isinf(t1) or math.isinf(t0):
        t = t0 if math.isinf(t1) else -t1
        r = math.sqrt(a2 + t * t)
        beside = r + t if t > 0.0 else a2 / (r - t)
        return math.copysign(2.0 * math.atan2(q, beside + h), p)
    r0, r1, both = math.sqrt(a2 + t0 * t0), math.sqrt(a2 + t1 * t1), t0 * t1
    beside = r0 * r1 + both if both > 0.0 else a2 * (t0 * t0 + t1 * t1 + a2) / (r0 * r1 - both)
    return 2.0 * math.atan2(p * (t1 - t0), beside + a2 + h * (r0 + r1))


@compiled
def _rule(width: float) -> int:
    """Which rule serves so long a part of an edge."""
    rule = 0
    while rule < _LAST_RULE and width > _LIMIT[rule]:
        rule += 1
    return rule


@compiled
def _plane_flux(p: float, t0: float, t1: float) -> tuple[float, float]:
    """What an edge adds to the mass of a polygon, and its own mass: the density's integral along it."""
    limit = math.sqrt(max(_R2 - p * p, 0.0))
    low, high = max(t0, -limit), min(t1, limit)
    if not high > low:
        return _angle(p, t0, t1) / (2.0 * math.pi), 0.0
    angle = 0.0
    if t0 < low:
        angle += _angle(p, t0, low)
    if t1 > high:
        angle += _angle(p, high, t1)
    rule, half, middle = _rule(high - low), 0.5 * (high - low), 0.5 * (high + low)
    total, line, p2 = 0.0, 0.0, p * p
    for j in range(_FIRST[rule], _FIRST[rule] + _COUNT[rule]):
        t = middle + half * _NODE[j]
        q2 = p2 + t * t
        value = _series(_E, q2)
        total += _WEIGHT[j] * value
        line += _WEIGHT[j] * (1.0 - 0.5 * q2 * value)
    return angle / (2.0 * math.pi) + p * half * total / _4PI, half * line / (2.0 * math.pi)


@compiled
def _quotient_series(h2: float, out: Array) -> None:
    """`(G(h^2) - G(h^2 + x)) / x` as a polynomial in x."""
    k = int(2.0 * h2)
    y = h2 - (0.5 * k + 0.25)
    for j in range(_TERMS):
        out[j] = _G[k, j]
    for i in range(_TERMS - 1):  # the Taylor shift by y
        for j in range(_TERMS - 2, i - 1, -1):
            out[j] += y * out[j + 1]
    for j in range(_TERMS - 1):
        out[j] = -out[j + 1]


@compiled
def _near_quotients(x: float, f: int, faces: Array, series: Array) -> tuple[float, float]:
    """`(G(h^2) - G(h^2 + x)) / x` and `(exp(-h^2 / 2) - exp(-(h^2 + x) / 2)) / x` of a face, for small x."""
    if series[f, _TERMS - 1] > 0.0:
        _quotient_series(faces[f, _HEIGHT] * faces[f, _HEIGHT], series[f])
        series[f, _TERMS - 1] = -1.0  # found
    value = series[f, _TERMS - 2]
    for k in range(_TERMS - 3, -1, -1):
        value = series[f, k] + x * value
    return value, 0.5 * faces[f, _PEAK] * _series(_E, x)


@compiled
def _far(f: int, faces: Array, p: float, t0: float, t1: float) -> float:
    """What a part of an edge that is not near adds to a polyhedron, times 4 pi; its face's mass is added to `faces`."""
    h = faces[f, _HEIGHT]
    angle = _angle(p, t0, t1) if h * h < _R2 else 0.0
    faces[f, _AREA] += 2.0 * faces[f, _PEAK] * angle
    flux: float = math.copysign(1.0, h) * (_solid_angle(abs(h), p, t0, t1) - faces[f, _BEYOND] * angle)
    return flux


@compiled
def _space_flux(
    one: int, other: int, p: float, q: float, t0: float, t1: float, faces: Array, series: Array
) -> tuple[float, float]:
    """What an edge between two faces adds to a polyhedron, times 4 pi, and its own mass, times 2 pi.

    What it adds to the masses of its faces, times `4 pi exp(-h^2 / 2)`, goes to `faces`.

    Args:
        one: a face.
        other: the other one, negative if there is none.
        p: the distance of the edge from the foot of the centre in the one.
        q: the same in the other.
        t0: where it starts.
        t1: where it ends.
        faces: what is known of them, `(F, 5)`.
        series: room for more, `(F, 12)`.
    """
    p2, q2 = p * p, q * q
    r2 = faces[one, _HEIGHT] * faces[one, _HEIGHT] + p2
    limit = math.sqrt(_R2 - r2) if r2 < _R2 else 0.0
    low, high = max(t0, -limit), min(t1, limit)
    if not high > low:
        flux = _far(one, faces, p, t0, t1)
        if other >= 0:
            flux += _far(other, faces, q, t0, t1)
        return flux, 0.0
    rule, half, middle = _rule(high - low), 0.5 * (high - low), 0.5 * (high + low)
    line = v0 = v1 = a0 = a1 = 0.0
    g0, e0, g1, e1 = faces[one, _POTENTIAL], faces[one, _PEAK], 0.0, 0.0
    if other >= 0:
        g1, e1 = faces[other, _POTENTIAL], faces[other, _PEAK]
    for j in range(_FIRST[rule], _FIRST[rule] + _COUNT[rule]):
        t, weight = middle + half * _NODE[j], _WEIGHT[j]
        t2 = t * t
        g, e = _both(r2 + t2)
        line += weight * e
        x, y = p2 + t2, q2 + t2
        if x < _NEAR:
            v, a = _near_quotients(x, one, faces, series)
            v0 += weight * v
            a0 += weight * a
        else:
            share = weight / x
            v0 += share * (g0 - g)
            a0 += share * (e0 - e)
        if other < 0:
            continue
        if y < _NEAR:
            v, a = _near_quotients(y, other, faces, series)
            v1 += weight * v
            a1 += weight * a
        else:
            share = weight / y
            v1 += share * (g1 - g)
            a1 += share * (e1 - e)
    flux = half * p * faces[one, _HEIGHT] * v0
    faces[one, _AREA] += 2.0 * half * p * a0
    if other >= 0:
        flux += half * q * faces[other, _HEIGHT] * v1
        faces[other, _AREA] += 2.0 * half * q * a1
    for a, b in ((t0, low), (high, t1)):
        if b > a:
            flux += _far(one, faces, p, a, b)
            if other >= 0:
                flux += _far(other, faces, q, a, b)
    return flux, half * line


@compiled
def _density(x: float) -> float:
    """That of the plane at a squared distance x."""
    return _both(x)[1] / (2.0 * math.pi) if x < _R2 else 0.0


@compiled
def _seen(edge: Array, cx: float, cy: float) -> tuple[float, float, float, float, float]:
    """The direction along an edge, and its distance, start and end from a centre in its plane."""
    ax, ay = edge[0], edge[1]
    shift = ax * cx + ay * cy
    return ax, ay, edge[2] - (ay * cx - ax * cy), edge[3] - shift, edge[4] - shift


@compiled
def polygon_moments(
    start: Array,
    edges: Array,
    opening: Array,
    index: Array,
    centre: Array,
    order: int,
    mass: Array,
    first: Array,
    second: Array,
) -> None:
    """Fill in mass, and for order 2 the moments, of sets `index` seen from their centres."""
    for i in range(len(index)):
        of, cx, cy = index[i], centre[i, 0], centre[i, 1]
        m = opening[of]
        x = y = xx = xy = yx = yy = 0.0
        for e in range(start[of], start[of + 1]):
            ax, ay, p, t0, t1 = _seen(edges[e], cx, cy)
            flux, line = _plane_flux(p, t0, t1)
            m += flux
            if order == 2 and p * p < _R2:
                slope = _density(p * p + t0 * t0) - _density(p * p + t1 * t1)
                x -= line * ay
                y += line * ax
                bx, by = line * p * ay + slope * ax, slope * ay - line * p * ax
                xx -= ay * bx
                xy -= ay * by
                yx += ax * bx
                yy += ax * by
        mass[i] = m
        if order == 2:
            first[i, 0], first[i, 1] = x, y
            second[i, 0, 0], second[i, 1, 1] = m + xx, m + yy
            second[i, 0, 1] = second[i, 1, 0] = 0.5 * (xy + yx)


@compiled
def _of_a_face(h: float, opening: float, f: int, out: Array) -> float:
    """What is known of a face at a distance h before its edges; what it adds to the mass, times 4 pi."""
    x = h * h
    out[f, _HEIGHT], out[f, _POTENTIAL], out[f, _PEAK], out[f, _BEYOND] = h, 0.0, 0.0, 0.0
    if x < _R2:
        out[f, _POTENTIAL], out[f, _PEAK] = _both(x)
        out[f, _BEYOND] = 1.0 - abs(h) * out[f, _POTENTIAL]
    out[f, _AREA] = 2.0 * opening * out[f, _PEAK]
    flux: float = math.copysign(1.0, h) * opening * (1.0 - out[f, _BEYOND])
    return flux


@compiled
def polyhedron_moments(
    start: Array,
    faces: Array,
    edge_start: Array,
    edges: Array,
    sides: Array,
    opening: Array,
    index: Array,
    centre: Array,
    order: int,
    mass: Array,
    first: Array,
    second: Array,
) -> None:
    """The same in space, for faces and edges as `space_edges` gives them."""
    most = 1
    for k in range(len(start) - 1):
        most = max(most, start[k + 1] - start[k])
    seen, series = np.empty((most, 5)), np.empty((most, _TERMS))
    for i in range(len(index)):
        of = index[i]
        begin, end = start[of], start[of + 1]
        c0, c1, c2 = centre[i, 0], centre[i, 1], centre[i, 2]
        flux = x = y = z = xx = xy = xz = yy = yz = zz = 0.0
        for f in range(begin, end):
            h = faces[f, 3] - (faces[f, 0] * c0 + faces[f, 1] * c1 + faces[f, 2] * c2)
            flux += _of_a_face(h, faces[f, 4], f - begin, seen)
            series[f - begin, _TERMS - 1] = 1.0  # not found
        for e in range(edge_start[of], edge_start[of + 1]):
            shift = edges[e, 0] * c0 + edges[e, 1] * c1 + edges[e, 2] * c2
            p = edges[e, 8] - (edges[e, 5] * c0 + edges[e, 6] * c1 + edges[e, 7] * c2)
            q = edges[e, 12] - (edges[e, 9] * c0 + edges[e, 10] * c1 + edges[e, 11] * c2)
            t0, t1 = edges[e, 3] - shift, edges[e, 4] - shift
            added, line = _space_flux(sides[e, 0], sides[e, 1], p, q, t0, t1, seen, series)
            flux += added
            xx += line * edges[e, 13]
            xy += line * edges[e, 14]
            xz += line * edges[e, 15]
            yy += line * edges[e, 16]
            yz += line * edges[e, 17]
            zz += line * edges[e, 18]
        m = opening[of] + flux / _4PI
        mass[i] = m
        if order < 2:
            continue
        for f in range(begin, end):
            n0, n1, n2, area = faces[f, 0], faces[f, 1], faces[f, 2], 0.5 * seen[f - begin, _AREA]
            x -= area * n0
            y -= area * n1
            z -= area * n2
            area *= seen[f - begin, _HEIGHT]
            xx -= area * n0 * n0
            xy -= area * n0 * n1
            xz -= area * n0 * n2
            yy -= area * n1 * n1
            yz -= area * n1 * n2
            zz -= area * n2 * n2
        unit = 1.0 / (2.0 * math.pi * _ROOT_2PI)
        first[i, 0], first[i, 1], first[i, 2] = unit * x, unit * y, unit * z
        second[i, 0, 0], second[i, 1, 1], second[i, 2, 2] = m + unit * xx, m + unit * yy, m + unit * zz
        second[i, 0, 1] = second[i, 1, 0] = unit * xy
        second[i, 0, 2] = second[i, 2, 0] = unit * xz
        second[i, 1, 2] = second[i, 2, 1] = unit * yz


@compiled
def space_edges(start: Array, edge_start: Array, tail: Array, head: Array, normal: Array) -> tuple[Array, Array, Array]:
    """The edges of polyhedra, each once for both of its faces.

    Args:
        start: the first face of each polyhedron, `(P + 1,)`.
        edge_start: the first edge of each face, `(F + 1,)`.
        tail: of the edges of faces, homogeneous, `(E, 4)`; those at infinity or of length 0 are left out.
        head: the same.
        normal: of faces, outward, `(F, 3)`.

    Returns:
        The first edge of each polyhedron, `(P + 1,)`; of each edge its direction d, the places of its start and end,
        for each of two faces the direction outward in its plane, o = d x n or n x d, and how far the edge is along
        it, and the upper triangle of the symmetric part of `sum n o^T`, `(19,)`; which faces of the polyhedron these
        are, `(2,)`, the second -1 where no other has the same edge.
    """
    out, sides = np.zeros((len(tail), 19)), np.empty((len(tail), 2), np.int64)
    first, face = np.zeros(len(start), np.int64), np.empty(len(tail), np.int64)
    taken, count = np.zeros(len(tail), np.bool_), 0
    for f in range(len(normal)):
        face[edge_start[f] : edge_start[f + 1]] = f
    for i in range(len(start) - 1):
        last = edge_start[start[i + 1]]
        for e in range(edge_start[start[i]], last):
            if taken[e] or not _along(tail[e], head[e], out[count]):
                continue
            other = _same(e, last, tail, head, face, taken)
            near = tail[e] if _size(tail[e]) <= _size(head[e]) else head[e]
            sides[count, 0], sides[count, 1] = face[e] - start[i], -1
            _side(out[count], 0, 1.0, normal[face[e]], near)
            if other >= 0:
                taken[other], sides[count, 1] = True, face[other] - start[i]
                _side(out[count], 1, -1.0, normal[face[other]], near)
            count += 1
        first[i + 1] = count
    return first, out[:count], sides[:count]


@compiled
def _along(tail: Array, head: Array, out: Array) -> Any:
    """Fill in the direction of an edge, and where it starts and ends; whether it is real."""
    square = 0.0
    for s in range(3):  # a direction is the whole of it
        out[s] = (head[s] if tail[3] > 0.0 else 0.0) - (tail[s] if head[3] > 0.0 else 0.0)
        square += out[s] * out[s]
    if not square > 0.0 or (tail[3] == 0.0 and head[3] == 0.0):
        return False
    out[3] = out[4] = 0.0
    for s in range(3):
        out[s] /= math.sqrt(square)
        out[3] += out[s] * tail[s]
        out[4] += out[s] * head[s]
    if tail[3] == 0.0:
        out[3] = -math.inf
    if head[3] == 0.0:
        out[4] = math.inf
    return True


@compiled
def _size(point: Array) -> float:
    size: float = abs(point[0]) + abs(point[1]) + abs(point[2]) if point[3] > 0.0 else math.inf
    return size


@compiled
def _same(e: int, last: int, tail: Array, head: Array, face: Array, taken: Array) -> int:
    """The place of the same edge in another face, where it runs the other way; -1 if there is none."""
    for k in range(e + 1, last):
        same = not taken[k] and face[k] != face[e]
        for s in range(4):
            same = same and tail[k, s] == head[e, s] and head[k, s] == tail[e, s]
        if same:
            return k
    return -1


@compiled
def _side(out: Array, side: int, sign: float, normal: Array, near: Array) -> None:
    """Fill in what an edge is to one of its faces."""
    w, place = 5 + 4 * side, 13
    for s in range(3):
        out[w + s] = sign * (out[(s + 1) % 3] * normal[(s + 2) % 3] - out[(s + 2) % 3] * normal[(s + 1) % 3])
        out[w + 3] += out[w + s] * near[s]
    for s in range(3):
        for t in range(s, 3):
            out[place] += 0.5 * (normal[s] * out[w + t] + normal[t] * out[w + s])
            place += 1
