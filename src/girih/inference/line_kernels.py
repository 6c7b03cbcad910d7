"""`line_pairs` in compiled code, row by row; needs Numba. The formulas are said there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.gaussian.interval_kernels import anchored
from girih.gaussian.kernels import compiled

Array = NDArray[Any]


@compiled
def peaks(y: Array, lines: tuple[Array, Array, Array], knots: tuple[Array, Array, Array], prior: float) -> Any:
    """The highest place of each row on each cell.

    Args:
        y: `(n, K)`.
        lines: images of the origins and unit directions of the cells, `(K, R)` each, and their speeds `(R,)`.
        knots: lower and upper ends about the origins, and the origins, `(R,)` each.
        prior: the variance of z.

    Returns:
        Anchors, tilts and energies, `(n, R)` each; an energy that overflowed is infinite.
    """
    start, unit, speed = lines
    lower, upper, origin = knots
    count, K = y.shape
    R = len(speed)
    precision = speed * speed + 1.0 / prior
    deviation, share = 1.0 / np.sqrt(precision), 1.0 + prior * speed * speed
    anchor, tilt, energy = np.empty((count, R)), np.empty((count, R)), np.empty((count, R))
    position = np.empty(R)
    for n in range(count):
        position[:] = 0.0
        for k in range(K):
            for r in range(R):
                position[r] += (y[n, k] - start[k, r]) * unit[k, r]
        total = energy[n]
        for r in range(R):
            along = position[r] + speed[r] * origin[r]
            total[r] = along * along / share[r]
            centre = (speed[r] * position[r] - origin[r] / prior) / precision[r]
            anchor[n, r] = min(max(centre, lower[r]), upper[r])
            tilt[n, r] = (anchor[n, r] - centre) / deviation[r]
            total[r] += tilt[n, r] * tilt[n, r]
        for k in range(K):
            for r in range(R):
                off = y[n, k] - start[k, r] - position[r] * unit[k, r]
                total[r] += off * off
        for r in range(R):
            if math.isnan(total[r]):
                total[r] = math.inf
    return anchor, tilt, energy


@compiled
def integrate(
    log_peak: Array, place: tuple[Array, Array, Array], ends: tuple[Array, Array], below: float, out: Array
) -> None:
    """Write the integrals of the pairs that can matter.

    Args:
        log_peak: `(n, R)`, counted from the highest of each row.
        place: anchors, tilts and deviations, `(n, R)` each.
        ends: lower and upper ends of the cells, `(R,)` each.
        below: nats below a lower bound of the best integral, where a pair is negligible.
        out: `(5, n, R)`: `log p(x, cell)`, mean and variance of t, and of u about the anchor.
    """
    anchor, tilt, deviation = place
    lower, upper = ends
    count, R = log_peak.shape
    height = np.empty(R)
    for n in range(count):
        best = -math.inf
        for r in range(R):
            s = deviation[n, r]
            height[r] = log_peak[n, r] + math.log(s)
            width = min((upper[r] - lower[r]) / s, 1.0 / (1.0 + abs(tilt[n, r])))
            best = max(best, height[r] + math.log(width))
        for r in range(R):
            out[0, n, r] = -math.inf
            out[1, n, r], out[2, n, r], out[3, n, r], out[4, n, r] = 0.0, 0.0, 0.0, 0.0
            if height[r] > best - below:
                s, at = deviation[n, r], anchor[n, r]
                log_k0, mean, variance = anchored((lower[r] - at) / s, (upper[r] - at) / s, tilt[n, r])
                value = height[r] + log_k0
                if value < math.inf:  # an overflowed pair, NaN, counts as infinitely improbable
                    out[0, n, r] = value
                out[1, n, r], out[2, n, r] = at + s * mean, s * s * variance
                out[3, n, r], out[4, n, r] = mean, variance
