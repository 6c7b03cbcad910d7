"""The moments of `interval`, one interval at a time in compiled code; needs Numba.

The same forms are chosen by the same rules, so the two agree to rounding; `interval` is the twin of this.
"""

from __future__ import annotations

import math

import numpy as np

from girih.gaussian.interval import HALF_LOG_2PI, LEVELS, NEAR, RANGE, WIDE
from girih.gaussian.kernels import compiled

_NODE, _WEIGHT = np.concatenate([np.stack(np.polynomial.legendre.leggauss(nodes)) for nodes, _ in LEVELS], 1)
_FIRST = np.cumsum([0, *(nodes for nodes, _ in LEVELS)])
_LIMIT = np.array([limit for _, limit in LEVELS])
_ROOT_HALF = math.sqrt(0.5)
_ROOT_HALF_PI = math.sqrt(0.5 * math.pi)
_FAR = math.sqrt(2.0 * RANGE) + NEAR + 4.0


@compiled
def moments_between(lower: float, upper: float) -> tuple[float, float, float]:
    """`log P(lower < u < upper)`, `E[u | .]` and `Var[u | .]` for `u ~ N(0, 1)`."""
    anchor = min(max(0.0, lower), upper)
    log_k0, mean, variance = anchored(lower - anchor, upper - anchor, anchor)
    return log_k0 - 0.5 * anchor * anchor - HALF_LOG_2PI, anchor + mean, variance


@compiled
def anchored(below: float, above: float, anchor: float) -> tuple[float, float, float]:
    """`interval.anchored_moments` of one interval, whose bounds are counted from its anchor."""
    slope = abs(anchor)
    reach = 2.0 * RANGE / (slope + math.sqrt(2.0 * RANGE + slope * slope))
    start = max(below, -reach)
    half = 0.5 * (min(above, reach) - start)
    if slope <= NEAR and half >= 0.5 * WIDE:
        log_k0, mean, variance = _by_error_functions(anchor + below, anchor + above, anchor)
    else:
        log_k0, mean, variance = _by_nodes(start, half, anchor)
    return log_k0, mean, variance


@compiled
def _by_nodes(start: float, half: float, anchor: float) -> tuple[float, float, float]:
    span = 2.0 * half * (abs(anchor) + half)
    level = 0
    while span > _LIMIT[level]:
        level += 1
    total, first, second = 0.0, 0.0, 0.0
    for j in range(_FIRST[level], _FIRST[level + 1]):
        s = 1.0 + _NODE[j]
        t = start + half * s
        value = _WEIGHT[j] * math.exp(-t * (anchor + 0.5 * t))
        total += value
        first += value * s
        second += value * s * s
    first /= total
    return math.log(half * total), start + half * first, max(half * half * (second / total - first * first), 0.0)


@compiled
def _by_error_functions(lower: float, upper: float, anchor: float) -> tuple[float, float, float]:
    lower, upper = max(lower, -_FAR), min(upper, _FAR)
    near, end = (-upper, -lower) if lower + upper < 0.0 else (lower, upper)
    ratio = math.exp(0.5 * anchor * anchor)
    k0 = _ROOT_HALF_PI * ratio * (math.erfc(near * _ROOT_HALF) - math.erfc(end * _ROOT_HALF))
    low, high = ratio * math.exp(-0.5 * lower * lower), ratio * math.exp(-0.5 * upper * upper)
    k1 = low - high - anchor * k0
    k2 = k0 - anchor * k1 + (lower - anchor) * low - (upper - anchor) * high
    mean = k1 / k0
    return math.log(k0), mean, max(k2 / k0 - mean * mean, 0.0)
