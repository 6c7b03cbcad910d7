"""Slow and obviously right versions of the polynomial family: integrals in 30 digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import mpmath
import numpy as np


def polynomial(coefficients: Sequence, basis: str) -> Callable:
    """`c . t(z)` at a number of any kind, by powers or by Bonnet's recurrence."""

    def value(z):
        if basis == "monomial":
            return sum(c * z**m for m, c in enumerate(coefficients, 1))
        before, p, total = 1, z, 0
        for n, c in enumerate(coefficients, 1):
            total += c * p
            before, p = p, ((2 * n + 1) * z * p - n * before) / (n + 1)
        return total

    return value


@lru_cache(maxsize=1)
def gauss_legendre(count: int = 24) -> list:
    """Nodes and weights to 30 digits: Newton's steps from NumPy's."""
    with mpmath.workdps(40):
        rule = []
        for start in np.polynomial.legendre.leggauss(count)[0]:
            x = mpmath.mpf(float(start))
            for _ in range(3):
                before, p = mpmath.mpf(1), x
                for n in range(1, count):
                    before, p = p, ((2 * n + 1) * x * p - n * before) / (n + 1)
                slope = count * (x * p - before) / (x * x - 1)
                x -= p / slope
            rule.append((x, 2 / ((1 - x * x) * slope**2)))
        return rule


class Integral:
    """A density exp(c . t(z)) on [-1, 1] as some thousand weighted points.

    Panels are of even width in arccos z, and shrink geometrically, down to 1e-7, towards the ends and `peaks`.
    """

    def __init__(self, coefficients: Sequence[float], basis: str, peaks: Sequence[float] = ()) -> None:
        self.f = polynomial([mpmath.mpf(float(c)) for c in coefficients], basis)
        near = [p + sign * 10.0**k for p in (-1.0, 1.0, *peaks) for sign in (-1, 1) for k in np.arange(-7.0, 0, 0.25)]
        even = -np.cos(np.linspace(0.0, np.pi, 3 * len(coefficients) + 1))
        self.edges = np.unique(np.clip(np.concatenate((even, near, peaks, [-1.0, 1.0])), -1.0, 1.0))
        with mpmath.workdps(30):
            self.top = max(self.f(mpmath.mpf(float(edge))) for edge in self.edges)
            self.points = self._points(self.edges)
            self.mass = sum(w for _, w in self.points)
            self.log_partition = float(self.top + mpmath.log(self.mass))
            self.mean = float(self._mean(lambda z: z))
            exact_mean = self._mean(lambda z: z)
            self.variance = float(self._mean(lambda z: (z - exact_mean) ** 2))
            self.entropy = float(self.top + mpmath.log(self.mass) - self._mean(self.f))

    def _points(self, edges: np.ndarray) -> list:
        points = []
        exact = [mpmath.mpf(float(edge)) for edge in edges]
        for low, high in pairwise(exact):
            if max(self.f(low + (high - low) * k / 4) for k in range(5)) < self.top - 80:
                continue
            half = (high - low) / 2
            nodes = [(low + half * (1 + x), half * w) for x, w in gauss_legendre()]
            points += [(z, w * mpmath.exp(self.f(z) - self.top)) for z, w in nodes]
        return points

    def _mean(self, g: Callable):
        return sum(w * g(z) for z, w in self.points) / self.mass

    def mean_of(self, g: Callable) -> float:
        with mpmath.workdps(30):
            return float(self._mean(g))

    def cdf(self, z: float) -> float:
        with mpmath.workdps(30):
            below = sum(w for _, w in self._points(np.append(self.edges[self.edges < z], z)))
            return float(below / self.mass)
