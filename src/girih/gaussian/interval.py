r"""Mass and moments of the standard normal over intervals, accurate in both tails.

Everything is written about the *anchor* of an interval, its point nearest to 0. With `c` the distance of
the anchor and `t >= 0` the distance from the anchor into the interval, the density is proportional to
`exp(-c t - t^2 / 2)`, whatever the distance, so nothing underflows and no digits cancel:

    log P(a < u < b) = -c^2 / 2 - log(2 pi) / 2 + log k0,      k_j = int_0^w t^j exp(-c t - t^2/2) dt

Four regimes give `k0, k1, k2`: intervals on both sides of 0 (error functions), half lines and long
intervals (`erfcx` and a recurrence), and thin ones (Gauss-Legendre).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)
_SQRT_HALF = math.sqrt(0.5)

# The two-term form of k2 loses about (c w + w^2/2)^-3 digits on one-sided intervals; below this exponent
# range the integrand is so smooth that 12 Gauss-Legendre nodes are exact to rounding.
_THIN = 2.0
_NODES, _WEIGHTS = (torch.as_tensor(array) for array in np.polynomial.legendre.leggauss(12))

# From here on the recurrence for k1, k2 would lose c^4 eps / 2; polynomials in 1/c^2 give the ratios instead.
_FAR = 5.0


def _ratio_polynomials(degree: int = 14) -> list[tuple[float, ...]]:
    """Coefficients in s = 1/c^2 on [0, 1/_FAR^2] of `c k1/k0` and `c k2/k1`, exact to 1e-14.

    Interpolated from the continued fraction `k_j / k_{j-1} = j / (c + k_{j+1} / k_j)`, whose terms are all
    positive; 300 terms of it are exact there, but too slow to use on every interval.
    """

    def ratios(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c = 1.0 / np.sqrt(np.maximum(s, 1e-30))
        tail = 0.5 * (np.sqrt(c * c + 1200.0) - c)
        for j in range(300, 1, -1):
            tail = j / (c + tail)
        return c / (c + tail), c * tail

    chebyshev = np.polynomial.chebyshev.Chebyshev
    domain = [0.0, _FAR**-2]
    fits = [chebyshev.interpolate(f, degree, domain=domain) for f in (lambda s: ratios(s)[0], lambda s: ratios(s)[1])]
    return [
        tuple(fit.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]).coef.tolist()) for fit in fits
    ]


_K1_OVER_K0, _K2_OVER_K1 = _ratio_polynomials()


class IntervalMoments(NamedTuple):
    """Log-mass of the standard normal on intervals and moments of the truncated variable.

    All fields have the broadcast shape of the bounds.
    """

    log_mass: Tensor  # log P(a < u < b)
    log_k0: Tensor  # log of the integral of exp(-c t - t^2/2): log_mass without the height of the anchor
    anchor: Tensor  # the point of [a, b] nearest to 0
    mean: Tensor  # E[u - anchor | a < u < b]
    variance: Tensor  # Var[u | a < u < b]


def interval_moments(lower: Tensor, upper: Tensor) -> IntervalMoments:
    r"""Log-mass, mean and variance of `u ~ N(0, 1)` given `lower < u < upper`.

    Args:
        lower: lower bounds, float64; -inf for none.
        upper: upper bounds, `lower <= upper`, of a shape that broadcasts with theirs; +inf for none.

    Returns:
        `IntervalMoments`. The relative error of the mass is a few 1e-15, that of the mean about the anchor
        and of the variance below 1e-11, wherever the interval lies.

    Source:
        EM-DGN, appendix B (there for centred Gaussians, in linear space).

    Example:
        >>> import torch
        >>> from girih.gaussian import interval_moments
        >>> m = interval_moments(torch.tensor(40.0, dtype=torch.float64), torch.tensor(torch.inf, dtype=torch.float64))
        >>> round(m.log_mass.item(), 6), round((m.anchor + m.mean).item(), 6)
        (-804.608442, 40.024969)
    """
    a, b, c, below = _anchored(lower, upper)
    k0, k1, k2 = _moment_integrals(a, b, c)
    mean = k1 / k0
    second = k2 / k0
    empty = b <= a  # an interval of width 0: mass 0, all of it at the anchor
    if empty.any():
        k0 = torch.where(empty, 0.0, k0)
        mean, second = torch.where(empty, 0.0, mean), torch.where(empty, 0.0, second)
    log_k0 = k0.log()
    sign = 1.0 - 2.0 * below
    return IntervalMoments(
        log_mass=log_k0 - 0.5 * c.square() - _HALF_LOG_2PI,
        log_k0=log_k0,
        anchor=sign * c,
        mean=sign * mean,
        variance=(second - mean.square()).clamp(min=0.0),
    )


def interval_log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """`log P(lower < u < upper)` for `u ~ N(0, 1)`, accurate in both tails; -inf for an empty interval.

    Example:
        >>> import torch
        >>> from girih.gaussian import interval_log_mass
        >>> lower = torch.tensor([-1.0, 38.0, 1e6], dtype=torch.float64)
        >>> interval_log_mass(lower, lower + 2.0)
        tensor([-3.8172e-01, -7.2656e+02, -5.0000e+11], dtype=torch.float64)
    """
    nearest = torch.maximum(lower, -upper).clamp(min=0.0)
    return interval_log_k0(lower, upper) - 0.5 * nearest.square() - _HALF_LOG_2PI


def interval_log_k0(lower: Tensor, upper: Tensor) -> Tensor:
    """`log k0` alone, at a third of the cost of `interval_moments`; -inf for an empty interval."""
    a, b, c, _ = _anchored(lower, upper)
    finite = torch.isfinite(b)
    end = torch.where(finite, b, c)
    scaled = torch.special.erfcx(torch.stack((c, end)) * _SQRT_HALF) * _SQRT_HALF_PI
    decay = torch.where(finite, torch.exp(-0.5 * (end - c) * (c + end)), 0.0)
    k0 = torch.where(a < 0, _central_mass(a, b), scaled[0] - decay * scaled[1])
    thin = _is_thin(a, b)
    if thin.any():
        _, density = _thin_density(a[thin], b[thin], c[thin])
        k0 = k0.masked_scatter(thin, density.sum(-1))
    return k0.clamp(min=0.0).log()


def _anchored(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bounds reflected so that intervals left of 0 lie right of it, the anchor's distance, and who was reflected."""
    lower, upper = torch.broadcast_tensors(lower, upper)
    below = upper < 0
    a = torch.where(below, -upper, lower)
    b = torch.where(below, -lower, upper)
    return a, b, a.clamp(min=0.0), below


def _is_thin(a: Tensor, b: Tensor) -> Tensor:
    width = b - a
    return (width * torch.maximum(a.abs(), b.abs()) < _THIN) & (width < 1.0)


def _moment_integrals(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """k0, k1, k2 by the regime of each interval."""
    k: tuple[Tensor, ...] = _half_line_difference(c, b)
    straddles = a < 0
    if straddles.any():
        k = tuple(torch.where(straddles, s, one_sided) for s, one_sided in zip(_straddling(a, b), k, strict=True))
    thin = _is_thin(a, b)
    if thin.any():
        t, density = _thin_density(a[thin], b[thin], c[thin])
        fine = (density.sum(-1), (density * t).sum(-1), (density * t.square()).sum(-1))
        k = tuple(coarse.masked_scatter(thin, f) for f, coarse in zip(fine, k, strict=True))
    return k


def _polynomial(coefficients: tuple[float, ...], s: Tensor) -> Tensor:
    value = torch.full_like(s, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = torch.addcmul(s.new_tensor(coefficient), value, s)
    return value


def _half_line(c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k0, k1, k2 of [c, inf) for c >= 0: `k_{j+1} = j k_{j-1} - c k_j`, and far out its solved form."""
    k0 = _SQRT_HALF_PI * torch.special.erfcx(c * _SQRT_HALF)
    near = c < _FAR
    far = c.clamp(min=_FAR)
    inverse = far.reciprocal()
    s = inverse.square()
    k1_near = 1.0 - c * k0
    k1_far = _polynomial(_K1_OVER_K0, s) * inverse * k0
    k2_far = _polynomial(_K2_OVER_K1, s) * inverse * k1_far
    return k0, torch.where(near, k1_near, k1_far), torch.where(near, k0 - c * k1_near, k2_far)


def _half_line_difference(c: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k0, k1, k2 of [c, b] for 0 <= c as [c, inf) minus [b, inf)."""
    finite = torch.isfinite(b)
    end = torch.where(finite, b, c)
    width = end - c
    (k0, end0), (k1, end1), (k2, end2) = _half_line(torch.stack((c, end)))
    decay = torch.where(finite, torch.exp(-0.5 * width * (c + end)), 0.0)
    return (
        k0 - decay * end0,
        k1 - decay * (width * end0 + end1),
        k2 - decay * (width * (width * end0 + 2.0 * end1) + end2),
    )


def _central_mass(a: Tensor, b: Tensor) -> Tensor:
    return _SQRT_HALF_PI * (torch.special.erf(b * _SQRT_HALF) - torch.special.erf(a * _SQRT_HALF))


def _straddling(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k0, k1, k2 of [a, b] for a < 0 < b, where the anchor is 0 and t = u."""
    height_a, height_b = torch.exp(-0.5 * a.square()), torch.exp(-0.5 * b.square())
    k0 = _central_mass(a, b)
    at_a = torch.where(torch.isfinite(a), a, 0.0) * height_a
    at_b = torch.where(torch.isfinite(b), b, 0.0) * height_b
    return k0, height_a - height_b, k0 + at_a - at_b


def _thin_density(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes `t = u - c` and weighted densities of short intervals, both `(n, nodes)`."""
    half = 0.5 * (b - a)
    nodes, weights = _NODES.to(a.device), _WEIGHTS.to(a.device)
    t = (a - c)[:, None] + half[:, None] * (1.0 + nodes)
    return t, half[:, None] * weights * torch.exp(-t * (c[:, None] + 0.5 * t))
