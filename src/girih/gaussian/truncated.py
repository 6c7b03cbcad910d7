"""Sampling from a normal truncated to an interval, in both tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from girih.gaussian.interval import interval_log_mass

_FAR = 4.0  # anchors beyond which the tail's own form is taken
_NARROW = 1e-3  # nats by which the density falls over an interval on which it is as good as exponential


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
