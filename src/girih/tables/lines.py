r"""One column of a piece, a smeared truncated normal: its exponential moments, distribution function and density.

y = base + slope t + deviation e,    e ~ N(0, 1),    density of t proportional to exp(-c t - t^2 / 2) on [below, above]
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.gaussian.interval import anchored_moments

_FALL = 35.0  # nats below its peak, where the density of t ends
_SURE = 7.0  # deviations, beyond which a normal probability is 0 or 1: 1.3e-12
_CELLS = 1 << 17
_SMALL = 1e-10
_LEVELS = ((10, 4.0), (20, 16.0), (48, math.inf))  # nodes, and the range of the exponent up to which they serve


def _rule(nodes: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.as_tensor(1.0 + x)[:, None], torch.as_tensor(w)


_RULES = tuple((*_rule(nodes), limit) for nodes, limit in _LEVELS)


class Latent(NamedTuple):
    """The latents of E entries, `(E,)` each; see `girih.tables.pieces`."""

    anchor: Tensor  # c
    below: Tensor
    above: Tensor
    log_k0: Tensor

    def some(self, entry: Tensor) -> Latent:
        """Entries chosen by their places or by booleans."""
        return Latent(*(part[entry] for part in self))

    def tilted(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """`log E[exp(h t)]` and the mean of t under the density times `exp(h t)`.

        The product is of the same form, with c - h in place of c; its largest value is at the t nearest to h - c.
        """
        c = self.anchor - h
        top = torch.minimum(torch.maximum(-c, self.below), self.above)
        log_k0, mean, _ = anchored_moments(self.below - top, self.above - top, c + top)
        return log_k0 - top * (c + 0.5 * top) - self.log_k0, top + mean

    def log_central(self, h: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """`log E[exp(h (t - mean))]` and the tilted mean less `mean`.

        Where h is so small that the differences would lose half of their digits, `h^2 Var / 2` and `h Var` are as good.
        """
        value, tilted = self.tilted(h)
        small = h.square() * variance < _SMALL
        value = torch.where(small, 0.5 * h.square() * variance, value - h * mean)
        return value, torch.where(small, h * variance, tilted - mean)

    def support(self) -> tuple[Tensor, Tensor]:
        """The t outside which the density has fallen by exp(-35)."""
        c = self.anchor.abs()
        reach = (2.0 * _FALL) / (c + (c.square() + 2.0 * _FALL).sqrt())
        return torch.maximum(self.below, -reach), torch.minimum(self.above, reach)


class Lines(NamedTuple):
    """E smeared truncated normals, `(E,)` each."""

    latent: Latent
    base: Tensor
    slope: Tensor
    deviation: Tensor

    def some(self, entry: Tensor) -> Lines:
        """Entries chosen by their places or by booleans."""
        return Lines(self.latent.some(entry), self.base[entry], self.slope[entry], self.deviation[entry])

    def mirrored(self) -> Lines:
        """The same with slopes of at least 0."""
        down = self.slope < 0
        c, below, above, log_k0 = self.latent
        below, above = torch.where(down, -above, below), torch.where(down, -below, above)
        return Lines(
            Latent(torch.where(down, -c, c), below, above, log_k0), self.base, self.slope.abs(), self.deviation
        )

    def ends(self) -> tuple[Tensor, Tensor]:
        """The y between which all but 1e-12 of the probability lies."""
        start, end = self.latent.support()
        one, other = self.slope * start, self.slope * end
        room = (_SURE + 1.0) * self.deviation
        return self.base + torch.minimum(one, other) - room, self.base + torch.maximum(one, other) + room

    def cdf(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""`P(Y <= y)` and the density at y, `(E,)`; their errors are below 1e-11 and 1e-11 / deviation.

        With `k = (y - base) / deviation` and `r = slope / deviation >= 0`, the integrand of `E[Phi(k - r t)]` is the
        density of t itself up to where Phi falls below 1, which is closed, and nothing after Phi has reached 0. Between
        the two, and where the density is not negligible, both factors are smooth: one Gauss-Legendre panel has them.
        With r = 0, as of every component without a latent, it is `Phi(k)`.
        """
        level = self.slope == 0.0
        if bool(level.all()):
            return _normal((y - self.base) / self.deviation, self.deviation)
        if bool(level.any()):
            out = torch.empty_like(y), torch.empty_like(y)
            for some in (level, ~level):
                for part, values in zip(out, self.some(some).cdf(y[some]), strict=True):
                    part[some] = values
            return out
        latent, base, slope, deviation = self.mirrored()
        k, r = (y - base) / deviation, slope / deviation
        start, end = latent.support()
        flat = r.clamp(min=1e-200)
        left = torch.minimum(torch.maximum((k - _SURE) / flat, start), end)
        right = torch.minimum(torch.maximum((k + _SURE) / flat, start), end)
        total = torch.where(left >= end, 1.0, torch.zeros_like(k))
        part = ((left > start) & (left < end)).nonzero()[:, 0]
        if len(part):
            c, below, _, log_k0 = latent.some(part)
            top = left[part].clamp(max=0.0)
            log_part = anchored_moments(below - top, left[part] - top, c + top)[0]
            total[part] = (log_part - top * (c + 0.5 * top) - log_k0).exp()
        density = torch.zeros_like(k)
        width = right - left
        # the exponents of both factors at most fall by so much
        range_ = (
            width * (latent.anchor.abs() + torch.maximum(left.abs(), right.abs())) + 0.5 * (0.5 * r * width).square()
        )
        least = -math.inf
        for nodes, weights, limit in _RULES:
            here = (width > 0) & (range_ > least) & ~(range_ > limit)
            for some in here.nonzero()[:, 0].split(_CELLS // len(nodes)):
                half = 0.5 * width[some]
                t = torch.addcmul(left[some], half, nodes)
                height = (-t * (latent.anchor[some] + 0.5 * t) - latent.log_k0[some]).exp_()
                at = torch.addcmul(k[some], r[some], t, value=-1.0)
                total[some] += half * (weights @ (height * torch.special.ndtr(at)))
                normal = (-0.5 * at.square()).exp_() * height
                density[some] = half * (weights @ normal) / (math.sqrt(2.0 * math.pi) * deviation[some])
            least = limit
        return total.clamp(0.0, 1.0), density


def _normal(k: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution function of a normal, k deviations above its mean, and the density there."""
    return torch.special.ndtr(k), (-0.5 * k.square()).exp() / (math.sqrt(2.0 * math.pi) * deviation)
