"""Posteriors over a line in 60 digits, from the very parameters: what rows far off are compared with.

Every number of a network, a noise and a row is a binary fraction, which mpmath takes as it is. The cells are found
anew, and each holds a Gaussian whose mass and moments are error functions; digits are added for distances.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import mpmath
from mpmath import mpf
from torch import Tensor, nn

DIGITS = 60


class Cell(NamedTuple):
    """A cell of the line and the map `x = a z + b` on it."""

    lower: mpf
    upper: mpf
    slope: list[mpf]
    value: list[mpf]


class Exact(NamedTuple):
    """The posterior of one row."""

    log_prob: mpf
    mean: mpf
    variance: mpf
    entropy: mpf
    mode: mpf
    lower: list[mpf]  # lower ends of the cells
    probs: list[mpf]
    log_joint: list[tuple[mpf, mpf, mpf]]  # c0, c1, c2 of `log p(x, z) = c0 + c1 z + c2 z^2` on each cell

    def log_density(self, z: float) -> mpf:
        """log p(z | x)."""
        with mpmath.workdps(DIGITS + 40):
            at = max(i for i, low in enumerate(self.lower) if low <= z)
            c0, c1, c2 = self.log_joint[at]
            return c0 + c1 * mpf(z) + c2 * mpf(z) ** 2 - self.log_prob

    def expected(self, mean: float, deviation: float) -> mpf:
        """`E[log p(z | x)]` under a normal z."""
        with mpmath.workdps(DIGITS + 40):
            m, d, total = mpf(mean), mpf(deviation), mpf(0)
            for i, (c0, c1, c2) in enumerate(self.log_joint):
                upper = self.lower[i + 1] if i + 1 < len(self.lower) else mpmath.inf
                mass, first, second = _integrals((self.lower[i] - m) / d, (upper - m) / d)
                z1, z2 = m * mass + d * first, m**2 * mass + 2 * m * d * first + d**2 * second
                total += (c0 - self.log_prob) * mass + c1 * z1 + c2 * z2
            return total


def cells_of(net: nn.Sequential) -> list[Cell]:
    """The cells of a chain of linear layers and leaky ReLUs (or ReLUs), S = 1."""
    with mpmath.workdps(DIGITS):
        cells = [Cell(-mpmath.inf, mpmath.inf, [mpf(1)], [mpf(0)])]
        for layer in net:
            if isinstance(layer, nn.Linear):
                weight, bias = exact(layer.weight), exact(layer.bias)
                cells = [
                    Cell(c.lower, c.upper, _times(weight, c.slope), _add(_times(weight, c.value), bias)) for c in cells
                ]
            else:
                negative = mpf(getattr(layer, "negative_slope", 0.0))
                cells = [part for cell in cells for part in _bent(cell, negative)]
        return cells


def exact(values: Tensor) -> list:
    """Nested lists of a tensor's numbers as they are."""
    return mpmath.matrix(values.tolist()).tolist() if values.ndim == 2 else [mpf(v) for v in values.tolist()]


def _times(rows: list[list[mpf]], column: list[mpf]) -> list[mpf]:
    return [mpmath.fdot(row, column) for row in rows]


def _add(one: list[mpf], other: list[mpf]) -> list[mpf]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _bent(cell: Cell, negative: mpf) -> list[Cell]:
    roots = {-b / a for a, b in zip(cell.slope, cell.value, strict=True) if a != 0}
    ends = [cell.lower, *sorted(root for root in roots if cell.lower < root < cell.upper), cell.upper]
    out = []
    for low, high in pairwise(ends):
        inside = (low + high) / 2 if mpmath.isfinite(low + high) else (high - 1 if mpmath.isfinite(high) else low + 1)
        inside = mpf(0) if not mpmath.isfinite(inside) else inside
        gain = [mpf(1) if a * inside + b > 0 else negative for a, b in zip(cell.slope, cell.value, strict=True)]
        slope = [g * a for g, a in zip(gain, cell.slope, strict=True)]
        out.append(Cell(low, high, slope, [g * b for g, b in zip(gain, cell.value, strict=True)]))
    return out


def _integrals(low: mpf, high: mpf) -> tuple[mpf, mpf, mpf]:
    """`E[1]`, `E[u]` and `E[u^2]` of a standard normal between two bounds."""
    if low + high > 0:
        mass, first, second = _integrals(-high, -low)
        return mass, -first, second
    mass = (mpmath.erfc(-high / mpmath.sqrt(2)) - mpmath.erfc(-low / mpmath.sqrt(2))) / 2
    at_low, at_high = (mpf(0) if mpmath.isinf(u) else mpmath.npdf(u) for u in (low, high))
    ends = [(mpf(0) if mpmath.isinf(u) else u * f) for u, f in ((low, at_low), (high, at_high))]
    return mass, at_low - at_high, mass + ends[0] - ends[1]


def posterior(cells: list[Cell], noise: Tensor, prior: float, row: Tensor) -> Exact:
    """The posterior of a row, NaN where an entry is missing."""
    seen = [i for i, v in enumerate(row.tolist()) if not math.isnan(v)]
    # masses of 1e-1e17 have to be added up: as many digits more as |log p| has
    with mpmath.workdps(DIGITS + 40):
        full = noise if noise.ndim == 2 else noise.expand(len(row)).diag()
        covariance = mpmath.matrix(full[seen][:, seen].tolist())
        precision, prior_ = covariance**-1, mpf(prior)
        x = mpmath.matrix([mpf(row[i].item()) for i in seen])
        constant = -(len(seen) + 1) * mpmath.log(2 * mpmath.pi) / 2 - mpmath.log(mpmath.det(covariance) * prior_) / 2
        joint, parts = [], []
        for cell in cells:
            a, b = (mpmath.matrix([column[i] for i in seen]) for column in (cell.slope, cell.value))
            off = x - b
            second, first, zeroth = ((u.T * precision * v)[0] for u, v in ((a, a), (a, off), (off, off)))
            second += 1 / prior_
            joint.append((constant - zeroth / 2, first, -second / 2))
            centre, deviation = first / second, 1 / mpmath.sqrt(second)
            mass, one, two = _integrals((cell.lower - centre) / deviation, (cell.upper - centre) / deviation)
            peak = min(max(centre, cell.lower), cell.upper)
            height = constant - zeroth / 2 + first * centre / 2
            scale = mpmath.exp(height) * deviation * mpmath.sqrt(2 * mpmath.pi)
            at_peak = height - second * (peak - centre) ** 2 / 2
            first_z, second_z = (
                centre * mass + deviation * one,
                centre**2 * mass + 2 * centre * deviation * one + deviation**2 * two,
            )
            parts.append((scale * mass, scale * first_z, scale * second_z, at_peak, peak))
        total = mpmath.fsum(p[0] for p in parts)
        log_prob = mpmath.log(total)
        mean = mpmath.fsum(p[1] for p in parts) / total
        square = mpmath.fsum(p[2] for p in parts) / total
        entropy = (
            log_prob
            - mpmath.fsum(c0 * p[0] + c1 * p[1] + c2 * p[2] for (c0, c1, c2), p in zip(joint, parts, strict=True))
            / total
        )
        mode = max(parts, key=lambda p: p[3])[4]
        probs = [p[0] / total for p in parts]
        return Exact(log_prob, mean, square - mean**2, entropy, mode, [c.lower for c in cells], probs, joint)
