"""Sampling from a normal truncated to an interval, in both tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from girih.gaussian.interval import interval_log_mass


def sample_truncated(lower: Tensor, upper: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw `u ~ N(0, 1)` given `lower < u < upper`, one for each pair of bounds.

    By inversion about the anchor (the point of the interval nearest to 0): with `a` its distance,
    `log P(u > t) = log P(u > a) + log1p(-v P(a < u < b) / P(u > a))` for uniform v, solved for t by the
    inverse of `log_ndtr`. Exact far in the tails, where `ndtri(1 - p)` returns infinity.

    Example:
        >>> import torch
        >>> from girih.gaussian import sample_truncated
        >>> lower = torch.full((3,), 40.0, dtype=torch.float64)
        >>> u = sample_truncated(lower, lower + 1.0, torch.Generator().manual_seed(0))
        >>> bool(((u > 40.0) & (u < 40.5)).all())
        True
    """
    lower, upper = torch.broadcast_tensors(lower, upper)
    # reflect so that most of the interval, or its anchor, lies on the left: log_ndtr is accurate there
    mirrored = lower + upper > 0
    a = torch.where(mirrored, -upper, lower)
    b = torch.where(mirrored, -lower, upper)
    v = torch.rand(a.shape, dtype=a.dtype, device=a.device, generator=generator)
    v = v.clamp(min=torch.finfo(a.dtype).tiny)
    log_b = torch.special.log_ndtr(b)
    log_mass = interval_log_mass(a, b)
    # P(u < t) = P(u < b) - v P(a < u < b)
    log_target = log_b + torch.log1p(-v * (log_mass - log_b).exp().clamp(max=1.0))
    t = torch.maximum(torch.minimum(_log_ndtr_inverse(log_target), b), a)
    return torch.where(mirrored, -t, t)


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
