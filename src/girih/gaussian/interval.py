r"""Mass, moments and draws of the standard normal on intervals, accurate in both tails.

Everything is written about the *anchor* of an interval, its point nearest to 0. With `c` the anchor and `u = c + t`,
the density is proportional to `exp(-c t - t^2 / 2)`, whatever the distance, so nothing underflows or cancels:

    log P(a < u < b) = -c^2 / 2 - log(2 pi) / 2 + log k0,      k_j = int t^j exp(-c t - t^2/2) dt

Where an interval is wide and near 0, error functions give these integrals without much cancellation. Elsewhere they are
sums over Gauss-Legendre nodes: beyond `exp(-35)` of its peak the integrand is negligible, and on what is left the
exponent is a quadratic. 8 nodes integrate it to 1e-13 where its range is at most 3, 16 up to 12, 36 up to 35 on each
side of the anchor: half lines, long and thin intervals, in the centre and in either tail.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih._devices import Constant, room

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
RANGE = 35.0  # exp(-35) is 6e-16

NEAR, WIDE = 4.0, 0.5  # anchors and widths for which the closed form is good
LEVELS = ((8, 3.0), (16, 12.0), (36, math.inf))  # nodes, and the range of the exponent up to which they serve
_CELLS = 1 << 17  # values of the integrand at a time: what fits a cache
_FAR = 4.0  # anchors beyond which draws take the tail's own form
_NARROW = 1e-3  # nats by which the density falls over an interval on which it is as good as exponential


def _rule(nodes: int) -> tuple[Constant, Constant]:
    """Nodes s in [0, 2], and the weights of 1, s and s^2."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    s = torch.as_tensor(1.0 + x)[:, None]
    return Constant(s), Constant(torch.as_tensor(w) * torch.cat((torch.ones_like(s), s, s.square()), 1).mT)


_RULES = tuple((*_rule(nodes), limit) for nodes, limit in LEVELS)


class IntervalMoments(NamedTuple):
    """They are log-masses of the standard normal on intervals and moments of the truncated variable.

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
        `IntervalMoments`. The relative errors of the mass, of the mean about the anchor and of the variance are
        below 1e-11 wherever the interval lies; an interval of width 0 has log-mass -inf and all of it at the anchor.

    Source:
        EM-DGN, appendix B (there for centred Gaussians, in linear space).

    Example:
        >>> import torch
        >>> from girih.gaussian import interval_moments
        >>> m = interval_moments(torch.tensor(40.0, dtype=torch.float64), torch.tensor(torch.inf, dtype=torch.float64))
        >>> round(m.log_mass.item(), 6), round((m.anchor + m.mean).item(), 6)
        (-804.608442, 40.024969)
    """
    lower, upper = torch.broadcast_tensors(lower, upper)
    anchor = torch.zeros_like(lower).clamp(lower, upper)
    flat = anchored_moments((lower - anchor).reshape(-1), (upper - anchor).reshape(-1), anchor.reshape(-1))
    log_k0, mean, variance = (part.view(anchor.shape) for part in flat)
    return IntervalMoments(log_k0 - 0.5 * anchor.square() - HALF_LOG_2PI, log_k0, anchor, mean, variance)


def anchored_moments(below: Tensor, above: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`log_k0`, `mean` and `variance` of `IntervalMoments`, for flat anchors `(n,)`, and bounds counted from them.

    Counted from its anchor an interval keeps its digits where it is narrow and the anchor is far from 0.
    """
    slope = anchor.abs()
    reach = (2.0 * RANGE) / (slope + torch.addcmul(slope.new_full((), 2.0 * RANGE), slope, slope).sqrt())
    start = torch.maximum(below, -reach)
    half = 0.5 * (torch.minimum(above, reach) - start)
    closed = (slope <= NEAR) & (half >= 0.5 * WIDE)
    if closed.all():
        return _by_error_functions(below, above, anchor)
    # on one side of the anchor the exponent runs from 0; on both, it is at most half of this
    range_ = 2.0 * half * (slope + half)
    out = tuple(torch.empty_like(half) for _ in range(3))
    cells = room(_CELLS, anchor.device)
    for part in closed.nonzero()[:, 0].split(cells // 8):
        _write(out, part, _by_error_functions(below[part], above[part], anchor[part]))
    left, least = ~closed, -torch.inf
    for *rule, limit in _RULES:
        nodes, weights = (part.on(anchor.device) for part in rule)
        here = left & (range_ > least) & (range_ <= limit) if limit < torch.inf else left & ~(range_ <= least)
        for part in here.nonzero()[:, 0].split(cells // len(nodes)):
            _write(out, part, _by_nodes(start[part], half[part], anchor[part], nodes, weights))
        least = limit
    return out[0], out[1], out[2]


def _write(out: tuple[Tensor, ...], part: Tensor, values: tuple[Tensor, ...]) -> None:
    for total, some in zip(out, values, strict=True):
        total[part] = some


def _by_nodes(
    start: Tensor, half: Tensor, anchor: Tensor, nodes: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.addcmul(start, half, nodes)  # (nodes, n): this order is the fast one
    total, first, second = weights @ torch.add(-anchor, t, alpha=-0.5).mul_(t).exp_()
    first = first / total
    variance = half.square() * (second / total - first.square())
    return (half * total).log(), torch.addcmul(start, half, first), variance.clamp(min=0.0)


def _by_error_functions(below: Tensor, above: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With `D(t) = exp(-c t - t^2 / 2)`, `k1 = [-D] - c k0` and `k2 = k0 - c k1 - [t D]`."""
    far = math.sqrt(2.0 * RANGE) + NEAR + 4.0
    lower, upper = (anchor + below).clamp(min=-far), (anchor + above).clamp(max=far)
    mirrored = lower + upper < 0  # to the side where the difference does not cancel
    near, end = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    root = math.sqrt(0.5)
    ratio = (0.5 * anchor.square()).exp()
    k0 = math.sqrt(0.5 * math.pi) * ratio * ((near * root).erfc() - (end * root).erfc())
    density_low, density_high = (ratio * (-0.5 * x.square()).exp() for x in (lower, upper))
    k1 = density_low - density_high - anchor * k0
    k2 = k0 - anchor * k1 + (lower - anchor) * density_low - (upper - anchor) * density_high
    mean = k1 / k0
    return k0.log(), mean, (k2 / k0 - mean.square()).clamp(min=0.0)


def interval_log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """`log P(lower < u < upper)` for `u ~ N(0, 1)`, accurate in both tails; -inf for an interval of width 0.

    Example:
        >>> import torch
        >>> from girih.gaussian import interval_log_mass
        >>> lower = torch.tensor([-1.0, 38.0, 1e6], dtype=torch.float64)
        >>> interval_log_mass(lower, lower + 2.0)
        tensor([-3.8172e-01, -7.2656e+02, -5.0000e+11], dtype=torch.float64)
    """
    return interval_moments(lower, upper).log_mass


def sample_truncated(lower: Tensor, upper: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw `u ~ N(0, 1)` given `lower < u < upper`, one for each pair of bounds.

    By inversion about the anchor (the point of the interval nearest to 0), see `sample_anchored`. Exact far in the
    tails, where `ndtri(1 - p)` returns infinity.

    Example:
        >>> import torch
        >>> from girih.gaussian import sample_truncated
        >>> lower = torch.full((3,), 40.0, dtype=torch.float64)
        >>> u = sample_truncated(lower, lower + 1.0, torch.Generator().manual_seed(0))
        >>> bool(((u > 40.0) & (u < 40.5)).all())
        True
    """
    lower, upper = torch.broadcast_tensors(lower, upper)
    anchor = torch.zeros_like(lower).clamp(lower, upper)
    u = anchor + sample_anchored(lower - anchor, upper - anchor, anchor, generator)
    return torch.maximum(torch.minimum(u, upper), lower)


def sample_anchored(below: Tensor, above: Tensor, anchor: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of `u - anchor` for u as in `sample_truncated`, with bounds counted from the anchor.

    A million deviations out a draw differs from its anchor by a millionth, in which the digits of u itself end.
    """
    v = torch.rand(anchor.shape, dtype=anchor.dtype, device=anchor.device, generator=generator)
    v = v.clamp(min=torch.finfo(v.dtype).tiny)
    far = anchor.abs() > _FAR
    out = torch.empty_like(anchor)
    out[~far] = _near(*(part[~far] for part in (below, above, anchor, v)))
    width = torch.where(anchor > 0, above, -below)[far]
    out[far] = anchor[far].sign() * _tail(width, anchor[far].abs(), v[far])
    return out


def _near(below: Tensor, above: Tensor, anchor: Tensor, v: Tensor) -> Tensor:
    """`log P(u > t) = log P(u > a) + log1p(-v P(a < u < b) / P(u > a))` solved for t by the inverse of `log_ndtr`."""
    lower, upper = anchor + below, anchor + above
    # reflect so that most of the interval, or its anchor, lies on the left: log_ndtr is accurate there
    mirrored = lower + upper > 0
    a = torch.where(mirrored, -upper, lower)
    b = torch.where(mirrored, -lower, upper)
    log_b = torch.special.log_ndtr(b)
    # P(u < t) = P(u < b) - v P(a < u < b)
    log_target = log_b + torch.log1p(-v * (interval_log_mass(a, b) - log_b).exp().clamp(max=1.0))
    t = torch.maximum(torch.minimum(_log_ndtr_inverse(log_target), b), a)
    return torch.where(mirrored, -t, t) - anchor


def _tail(width: Tensor, anchor: Tensor, v: Tensor) -> Tensor:
    """The y with `P(u > c + y) = (1 - v) P(u > c) + v P(u > c + width)`, by Newton on the logarithms.

    `log P(u > c + y) - log P(u > c) = -c y - y^2/2 + log(erfcx((c + y) / sqrt 2) / erfcx(c / sqrt 2))` is concave in y.
    """
    root = math.sqrt(0.5)
    at_anchor = torch.special.erfcx(root * anchor)
    hazard = math.sqrt(2.0 / math.pi) / at_anchor

    def fall(y: Tensor) -> tuple[Tensor, Tensor]:
        scaled = torch.special.erfcx(root * (anchor + y))
        return -y * (anchor + 0.5 * y) + (scaled / at_anchor).log(), math.sqrt(2.0 / math.pi) / scaled

    narrow = hazard * width < _NARROW
    whole = torch.where(narrow, -hazard * width, fall(torch.where(torch.isinf(width), 1e150, width))[0])
    target = torch.log1p(v * torch.expm1(whole))
    y = torch.minimum(-target / hazard, width)
    start = y
    for _ in range(4):
        value, slope = fall(y)
        y = torch.minimum((y + (value - target) / slope).clamp(min=0.0), width)
    return torch.where(narrow, start, y)


def _log_ndtr_inverse(y: Tensor) -> Tensor:
    """The t with `log_ndtr(t) = y`, by Newton from the asymptotic form in the tail."""
    central = y > -5.0
    start_tail = -(-2.0 * y - math.log(2.0 * math.pi) - (-2.0 * y).clamp(min=1.0).log()).clamp(min=1.0).sqrt()
    start = torch.where(central, torch.special.ndtri(y.exp().clamp(min=1e-3)), start_tail)
    t = start
    for _ in range(4):
        value = torch.special.log_ndtr(t)
        # d/dt log_ndtr = phi / Phi
        log_slope = -0.5 * t.square() - 0.5 * math.log(2.0 * math.pi) - value
        t = torch.where(torch.isfinite(t), t - (value - y) * (-log_slope).exp(), t)
    return torch.where(central, start, t)
