r"""The signed form of masses and moments (`signed`) in compiled code: a set at a time, nothing padded; needs Numba.

The flux of an edge is the integral of an entire function of the place t along it, so Gauss-Legendre nodes need no
care where p or h vanish, as the closed forms do. With q^2 = p^2 + t^2 and r^2 = h^2 + q^2, in the plane and in space

    p / (4 pi) E(q^2),                              E(x) = (1 - exp(-x/2)) / (x/2),
    p h / (4 pi) (G(h^2) - G(r^2)) / q^2,           G(x) = erf(sqrt(x/2)) / sqrt(x).

Both are averages of exponentials, `E(x) = int exp(-x s / 2) ds` and `G(x) = sqrt(2/pi) int exp(-x s^2 / 2) ds` over
[0, 1], so the k-th terms of their Taylor series fall as `(d/2)^k / k!`: ten of them, from tables with steps of 1/2,
are right to 1e-17, and a difference quotient of G at small q is a series at h^2. Beyond `r^2 = 78` the exponential is
below 1e-17 and the rest is an angle, and in space the solid angle of a triangle (van Oosterom and Strackee, 1983).

Each edge has the fewest nodes that integrate it to 1e-16, as found against 240 of them; rounding adds 5e-16. The
absolute error of a set is below 1e-15 for each edge that is near, and 1e-15 of the distance of its farthest vertex:
vertices are rounded. Terms are summed as they come, so parts of a set far below 1e-15 are left to the positive forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


def _kept(function: Callable[..., Any], fastmath: set[str] | bool) -> Any:
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
def _plane_flux(p: float, t0: float, t1: float) -> float:
    """What an edge adds to the mass of a polygon."""
    limit = math.sqrt(max(_R2 - p * p, 0.0))
    low, high = max(t0, -limit), min(t1, limit)
    out: float = 0.0
    if not high > low:
        out = _angle(p, t0, t1) / (2.0 * math.pi)
        return out
    if t0 < low:
        out += _angle(p, t0, low)
    if t1 > high:
        out += _angle(p, high, t1)
    rule, half, middle = _rule(high - low), 0.5 * (high - low), 0.5 * (high + low)
    total, p2 = 0.0, p * p
    for j in range(_FIRST[rule], _FIRST[rule] + _COUNT[rule]):
        t = middle + half * _NODE[j]
        total += _WEIGHT[j] * _series(_E, p2 + t * t)
    return out / (2.0 * math.pi) + p * half * total / _4PI


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
def _space_flux(
    h: float, g: float, p: float, t0: float, t1: float, series: Array, with_area: bool
) -> tuple[float, float]:
    """What an edge adds to the mass of a polyhedron, for h >= 0 and g = G(h^2), and to the mass of its face."""
    p2, h2 = p * p, h * h
    erfc = math.erfc(h * _ROOT_HALF)
    limit = math.sqrt(max(_R2 - h2 - p2, 0.0))
    low, high = max(t0, -limit), min(t1, limit)
    if not high > low:
        volume = _solid_angle(h, p, t0, t1)
        angle = _angle(p, t0, t1) if h2 < _R2 else 0.0
        return (volume - erfc * angle) / _4PI, angle / (2.0 * math.pi)
    volume, area = 0.0, 0.0
    if t0 < low:
        area = _angle(p, t0, low)
        volume = _solid_angle(h, p, t0, low)
    if t1 > high:
        area += _angle(p, high, t1)
        volume += _solid_angle(h, p, high, t1)
    rule, half, middle = _rule(high - low), 0.5 * (high - low), 0.5 * (high + low)
    first, second = 0.0, 0.0
    for j in range(_FIRST[rule], _FIRST[rule] + _COUNT[rule]):
        t = middle + half * _NODE[j]
        q2 = p2 + t * t
        if q2 < _NEAR:
            value = series[_TERMS - 2]
            for i in range(_TERMS - 3, -1, -1):
                value = series[i] + q2 * value
        else:
            value = (g - _series(_G, h2 + q2)) / q2
        first += _WEIGHT[j] * value
        if with_area:
            second += _WEIGHT[j] * _series(_E, q2)
    flux = (volume - erfc * area + p * h * half * first) / _4PI
    return flux, (2.0 * area + p * half * second) / _4PI


@compiled
def _line(t0: float, t1: float) -> tuple[float, float]:
    """`Phi(t1) - Phi(t0)` and `phi(t0) - phi(t1)`."""
    below, above = t0 * _ROOT_HALF, t1 * _ROOT_HALF
    return 0.5 * (math.erf(above) - math.erf(below)), (math.exp(-below * below) - math.exp(-above * above)) / _ROOT_2PI


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
            m += _plane_flux(p, t0, t1)
            if order == 2 and p * p < _R2:
                line, slope = _line(t0, t1)
                density = math.exp(-0.5 * p * p) / _ROOT_2PI
                flux = density * line
                x -= flux * ay
                y += flux * ax
                bx, by = flux * p * ay + density * slope * ax, -flux * p * ax + density * slope * ay
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
def polyhedron_moments(
    start: Array,
    faces: Array,
    edge_start: Array,
    edges: Array,
    opening: Array,
    index: Array,
    centre: Array,
    order: int,
    mass: Array,
    first: Array,
    second: Array,
) -> None:
    """The same in space: faces hold normal, axes, offset and the angle in which they are open."""
    series = np.empty(_TERMS)
    v = np.empty(3)
    b = np.empty(3)
    s = np.empty((3, 3))
    for i in range(len(index)):
        of = index[i]
        c0, c1, c2 = centre[i, 0], centre[i, 1], centre[i, 2]
        m = opening[of]
        for j in range(3):
            v[j] = 0.0
            for k in range(3):
                s[j, k] = 0.0
        for f in range(start[of], start[of + 1]):
            h = faces[f, 9] - (faces[f, 0] * c0 + faces[f, 1] * c1 + faces[f, 2] * c2)
            cx, cy = (
                faces[f, 3] * c0 + faces[f, 4] * c1 + faces[f, 5] * c2,
                faces[f, 6] * c0 + faces[f, 7] * c1 + faces[f, 8] * c2,
            )
            sign, size = math.copysign(1.0, h), abs(h)
            h2 = h * h
            with_area = order == 2 and h2 < _R2
            g = 0.0
            if h2 < _R2:
                g = _series(_G, h2)
                _quotient_series(h2, series)
            flux, area, tx, ty = (
                faces[f, 10] * math.erf(size * _ROOT_HALF) / _4PI,
                faces[f, 10] / (2.0 * math.pi),
                0.0,
                0.0,
            )
            for e in range(edge_start[f], edge_start[f + 1]):
                ax, ay, p, t0, t1 = _seen(edges[e], cx, cy)
                volume, part = _space_flux(size, g, p, t0, t1, series, with_area)
                flux += volume
                area += part
                if with_area and p * p + h2 < _R2:
                    line, _ = _line(t0, t1)
                    line *= math.exp(-0.5 * p * p) / _ROOT_2PI
                    tx -= line * ay
                    ty += line * ax
            m += sign * flux
            if with_area:
                density = math.exp(-0.5 * h2) / _ROOT_2PI
                for j in range(3):
                    b[j] = density * (h * area * faces[f, j] + tx * faces[f, 3 + j] + ty * faces[f, 6 + j])
                for j in range(3):
                    v[j] -= density * area * faces[f, j]
                    for k in range(3):
                        s[j, k] -= faces[f, j] * b[k]
        mass[i] = m
        if order == 2:
            for j in range(3):
                first[i, j] = v[j]
                for k in range(3):
                    second[i, j, k] = 0.5 * (s[j, k] + s[k, j])
                second[i, j, j] += m
