r"""Differential entropy of toy distributions, in nats, by quadrature.

A noisy curve has the density `p(x) = E_t[N(x; c(t), deviation^2 I)]` and the entropy `-E[log p(x)]`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

# Grid points of the largest quadrature: about a second of work.
_MAX_POINTS = 4_000_000


def circle_entropy(deviation: float, radius: float = 1.0) -> float | None:
    r"""Entropy of a point uniform on a circle plus Gaussian noise, exact to about 1e-12; `None` without noise.

        p(x) = exp(-(r^2 + radius^2) / 2 deviation^2) I_0(r radius / deviation^2) / (2 pi deviation^2)

    with `r = |x|`, so one integral over r is left: `-integral 2 pi r p log p dr`.

    Example:
        >>> from girih.datasets.entropy import circle_entropy
        >>> round(circle_entropy(0.05), 4)
        0.2605
    """
    if deviation <= 0:
        return None
    low, high = max(0.0, radius - 12.0 * deviation), radius + 12.0 * deviation
    nodes, weights = np.polynomial.legendre.leggauss(400)
    r = 0.5 * (high - low) * (nodes + 1.0) + low
    # I_0(a) = ive(0, a) exp(a), and the exponents join to the square of a difference
    argument = r * radius / deviation**2
    log_bessel = np.where(
        argument > 1e8, -0.5 * np.log(2.0 * np.pi * argument), np.log(ive(0, np.minimum(argument, 1e8)))
    )
    log_p = -0.5 * ((r - radius) / deviation) ** 2 + log_bessel
    log_p -= math.log(2.0 * math.pi * deviation**2)
    return float(-0.5 * (high - low) * (weights * 2.0 * np.pi * r * np.exp(log_p) * log_p).sum())


def line_entropy(deviation: float) -> float | None:
    """Entropy of `N(0, 1)` along a line in the plane plus Gaussian noise: closed form."""
    if deviation <= 0:
        return None
    variance = deviation**2
    return math.log(2.0 * math.pi * math.e) + 0.5 * math.log((1.0 + variance) * variance)


def curve_entropy(points: NDArray[np.float64], weights: NDArray[np.float64], deviation: float) -> float | None:
    """Entropy of a noisy plane curve, given by points and their probabilities, or of a mixture of round Gaussians.

    The density is a sum of products over the points, so the grid over the plane is one matrix product. Grid and
    points must be finer than the noise; `None` where that takes too many of them, or without noise.

    Args:
        points: quadrature points of the curve, `(T, 2)`, spaced by less than a deviation; or centres of the mixture.
        weights: their probabilities, `(T,)`.
        deviation: standard deviation of the noise.
    """
    if deviation <= 0:
        return None
    step = 0.4 * deviation
    low, high = points.min(0) - 9.0 * deviation, points.max(0) + 9.0 * deviation
    counts = np.ceil((high - low) / step).astype(int) + 1
    if counts.prod() > _MAX_POINTS or counts.max() * len(points) > 4 * _MAX_POINTS:
        return None
    kernels = []
    for axis in range(2):
        grid = low[axis] + step * np.arange(counts[axis])
        gap = (grid[:, None] - points[None, :, axis]) / deviation
        kernels.append(np.exp(-0.5 * gap**2))
    density = (kernels[0] * weights) @ kernels[1].T / (2.0 * np.pi * deviation**2)
    log_density = np.log(np.where(density > 0, density, 1.0))
    return float(-(density * log_density).sum() * step**2)
