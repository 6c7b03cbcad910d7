r"""Bounds on what a box of latents adds to p(x), from a relaxation of the generator on it.

Latents are `z = F v`, F such that v is standard normal, and turned so that near a mode the image of v_i runs along the
i-th coordinate of the whitened, reduced outputs. On a box with middle c and half-sides r the residual of a row is

    y - g(v) = a - P d - e,    d = v - c,  |d_j| <= r_j,  |e_k| <= w_k.

Forms bound `int_box exp(-|y - g(v)|^2 / 2) phi(v) dv` by products of integrals over the sides; the best one counts.
Far from the row, by distances: with `t = a + s c`, s the diagonal of P, and w larger by what the other sides move, the
integral is between

    prod_k int phi(v) exp(-(|t_k - s_k v| + w_k)^2 / 2) dv,
    prod_k int phi(v) exp(-max(|t_k - s_k v| - w_k, 0)^2 / 2) dv.

By a direction, above: with `u = a / |a|`, the residual is at least `x = u a - u P d - max u e` long, and for any
`x_0 >= 0` the tangent of the concave function `-max(x, 0)^2 / 2` gives `x_0^2 / 2 - x_0 x`, which is linear in d.

Near the row, by curvature: with `b = P^T a` and `H = P^T P`, `|a - P d|^2 = |a|^2 - 2 b d + d^T H d`. Above,
`2 |d_i d_j| <= d_i^2 + d_j^2` makes sums over the sides of the pairs, with `H_ii - sum_j |H_ij|` in the place of H_ii,
and e adds `max (a - P d) e`. Below, Jensen's inequality in the product q of the densities
`phi(v) exp(b d - H_ii d^2 / 2)` on the sides, Z its norm and m its means, has

    log Z - |a|^2 / 2 - sum_{i != j} H_ij m_i m_j / 2 - E_q[max (a - P d) e] - max |e|^2 / 2.

Kinks bend the last hidden features by `|e'_h| <= radius_h`, and `e = T e'`: a direction u sees `|u T| radius` of it.
The other errors near the row are of second order in the sides. Bounds are in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from girih.bounds.relaxation import relax
from girih.gaussian import interval_log_mass, interval_moments
from girih.networks import Trace

_LOG_2PI = math.log(2.0 * math.pi)
_FLAT = 1e-12  # slopes below this are counted as width
_ROUNDING = 1e-12


class Boxes(NamedTuple):
    """Boxes of v, and bounds on what each adds to p(x), less what the row has in common for all v."""

    low: Tensor  # (B, S)
    high: Tensor  # (B, S)
    lower: Tensor  # (B,) nats
    upper: Tensor  # (B,) nats
    about: Tensor  # (B,) nats, what it adds if the density were that of its middle all over
    side: Tensor  # (B,) that should be halved

    def joined(self, other: Boxes) -> Boxes:
        """These and others."""
        return Boxes(*(torch.cat(parts) for parts in zip(self, other, strict=True)))

    def take(self, index: Tensor) -> Boxes:
        """Some of them."""
        return Boxes(*(part[index] for part in self))


class Target(NamedTuple):
    """A row as boxes see it."""

    trace: Trace
    frame: Tensor  # F (S, S)
    head: Tensor  # (K, H): from the last hidden features to the turned outputs, K at least S
    y: Tensor  # (K,)

    def bound(self, low: Tensor, high: Tensor) -> Boxes:
        """Bounds on boxes `(B, S)`, so many at a time as fit into memory."""
        size = max(self.trace.steps[index].size for index in range(self.trace.features + 1))
        per = max(1, 2**23 // (size * low.shape[1]))
        parts = [self._bound(a, b) for a, b in zip(low.split(per), high.split(per), strict=True)]
        return parts[0] if len(parts) == 1 else Boxes(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _bound(self, low: Tensor, high: Tensor) -> Boxes:
        S = low.shape[1]
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        features, blame = relax(self.trace, self.frame, middle, half)
        value, slope = features.value @ self.head.mT, self.head @ features.slope
        size = features.value.abs() + features.reach(half) + features.radius
        radius = (features.radius + _ROUNDING * size) @ self.head.abs().mT
        off = self.y - value
        own = slope[:, :S].diagonal(dim1=1, dim2=2)
        moved = slope.abs() * half[:, None, :]
        across = moved.clone()
        across[:, :S] = across[:, :S] - torch.diag_embed(moved[:, :S].diagonal(dim1=1, dim2=2))
        width = radius + across.sum(2) + _ROUNDING * (1.0 + off.abs())
        rest, rest_width = off[:, S:].abs(), width[:, S:]
        target = off[:, :S] + own * middle
        nearest, farthest = _sides(low, high, own, target, width[:, :S])
        upper = nearest.sum(1) - 0.5 * (rest - rest_width).clamp(min=0.0).square().sum(1)
        lower = farthest.sum(1) - 0.5 * (rest + rest_width).square().sum(1)
        bends = _Bends(self.head, features.radius + _ROUNDING * size)
        curved_lower, curved_upper, mixed, bent = _by_curvature(middle, half, off, slope, bends)
        upper = torch.minimum(upper, torch.minimum(curved_upper, _by_direction(middle, half, off, slope, bends)))
        lower = torch.maximum(lower, curved_lower)
        slack = _ROUNDING * (1.0 + upper.abs() + lower.abs().nan_to_num(0.0, 0.0, 0.0))
        # what is due to kinks is shared among the sides as these have it
        share = blame / blame.sum(1, keepdim=True).clamp(min=torch.finfo(blame.dtype).tiny)
        cost = mixed + bent[:, None] * share + 1e-9 * half  # the last where nothing else decides
        about = interval_log_mass(low, high).sum(1) - 0.5 * off.square().sum(1)
        return Boxes(low, high, torch.minimum(lower, upper) - slack, upper + slack, about, cost.argmax(1))


class _Bends(NamedTuple):
    """They are the errors `e = T e'` that kinks make in the outputs, `|e'_h| <= radius_h`."""

    head: Tensor  # T (K, H)
    radius: Tensor  # (B, H)

    def along(self, weight: Tensor) -> Tensor:
        """The most that `weight e` can be, `(B,)`, for weights `(B, K)`."""
        return ((weight @ self.head).abs() * self.radius).sum(1)

    def half_square(self) -> Tensor:
        """The most that `|e|^2 / 2` can be, `(B,)`."""
        by_outputs = (self.radius @ self.head.abs().mT).square().sum(1)
        by_features = (self.radius @ torch.linalg.vector_norm(self.head, dim=0)).square()
        return 0.5 * torch.minimum(by_outputs, by_features)


def _by_curvature(
    middle: Tensor, half: Tensor, off: Tensor, slope: Tensor, bends: _Bends
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper bound `(B,)` near a row, the errors by pairs of sides `(B, S)` and by kinks `(B,)`."""
    pull, curvature = (slope.mT @ off[:, :, None])[:, :, 0], slope.mT @ slope
    own = curvature.diagonal(dim1=1, dim2=2)
    others = curvature - torch.diag_embed(own)
    height = -0.5 * off.square().sum(1)
    seen, turned = off @ bends.head, slope.mT @ bends.head  # residuals (B, H) and slopes (B, S, H) as e' meets them
    most = seen.abs() + (half[:, None, :] @ turned.abs())[:, 0]
    bent = (bends.radius * most).sum(1)
    log_z, mean, variance = _tilted(middle, half, pull, own)
    residual = (seen - (mean[:, None, :] @ turned)[:, 0]).square() + (variance[:, None, :] @ turned.square())[:, 0]
    lower = height + log_z.sum(1) - 0.5 * ((others @ mean[:, :, None])[:, :, 0] * mean).sum(1)
    lower = lower - (bends.radius * torch.minimum(residual.sqrt(), most)).sum(1) - bends.half_square()
    # an integrand that may grow is held to the ends of its side
    apart = others.abs().sum(2)
    kept = (own - apart).clamp(min=-0.9)
    beyond = 0.5 * ((kept - own + apart) * half.square()).sum(1)
    upper = height + _tilted(middle, half, pull, kept)[0].sum(1) + beyond + bent
    size = _ROUNDING * (1.0 + height.abs() + (pull * half).abs().sum(1) + (own * half.square()).sum(1))
    return lower - size, upper + size, (others.abs() @ half[:, :, None])[:, :, 0] * half, bent


def _by_direction(middle: Tensor, half: Tensor, off: Tensor, slope: Tensor, bends: _Bends) -> Tensor:
    """Upper bound `(B,)` by what the residual is at least along the one in the middle of a box."""
    length = torch.linalg.vector_norm(off, dim=1)
    unit = off / length.clamp(min=torch.finfo(off.dtype).tiny)[:, None]
    least = length - bends.along(unit)
    p = (unit[:, None, :] @ slope)[:, 0]
    best = torch.full_like(length, torch.inf)
    tangent = least.clamp(min=0.0) / (1.0 + (p * half.clamp(max=1.0)).square().sum(1))
    for part in (1.0, 0.5):
        at = part * tangent
        tilted = _tilted(middle, half, at[:, None] * p, torch.zeros_like(p))[0].sum(1)
        size = _ROUNDING * (1.0 + at * length + (at[:, None] * p * half).abs().sum(1))
        best = torch.minimum(best, 0.5 * at.square() - at * least + tilted + size)
    return best


def _tilted(middle: Tensor, half: Tensor, pull: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`log int phi(v) exp(pull d - curvature d^2 / 2) dv` over sides `(B, S)`, and mean and variance of d there.

    With `d = v - middle`; curvatures are above -1.
    """
    # about the middle: phi(v) = phi(middle) exp(-middle d - d^2 / 2)
    precision, lean = 1.0 + curvature, pull - middle
    root, centre = precision.sqrt(), lean / precision
    m = interval_moments((-half - centre) * root, (half - centre) * root)
    highest = (centre + m.anchor / root).clamp(-half, half)  # squares that cancel are never formed
    height = highest * (lean - 0.5 * precision * highest) - 0.5 * middle.square()
    log_z = height + m.log_k0 - 0.5 * (_LOG_2PI + precision.log())
    return log_z, centre + (m.anchor + m.mean) / root, m.variance / precision


def _sides(low: Tensor, high: Tensor, slope: Tensor, target: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Logs of the integrals over sides `(B, S)`: more than there can be, and less."""
    target, slope = torch.where(slope < 0.0, -target, target), slope.abs()
    flat = slope < _FLAT
    width = width + torch.where(flat, slope * torch.maximum(low.abs(), high.abs()), 0.0)
    safe = torch.where(flat, 1.0, slope)
    mass = interval_log_mass(low, high)

    def between(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
        """`log int_a^b phi(v) exp(-(slope v - centre)^2 / 2) dv`; -inf where b is below a."""
        precision = 1.0 + safe.square()
        root, mean = precision.sqrt(), safe * centre / precision
        ends = (a - mean) * root, (b - mean) * root
        out = interval_log_mass(ends[0], torch.maximum(*ends)) - 0.5 * (centre.square() / precision + precision.log())
        return torch.where(b > a, out, -torch.inf)

    first, last = (target - width) / safe, (target + width) / safe
    inner_low, inner_high = torch.maximum(low, first), torch.minimum(high, last)
    inner = interval_log_mass(inner_low, torch.maximum(inner_low, inner_high))
    parts = (
        between(low, torch.minimum(high, first), target - width),
        torch.where(inner_high > inner_low, inner, -torch.inf),
        between(torch.maximum(low, last), high, target + width),
    )
    nearest = torch.logsumexp(torch.stack(parts), 0)
    turn = target / safe
    halves = (
        between(low, torch.minimum(high, turn), target + width),
        between(torch.maximum(low, turn), high, target - width),
    )
    farthest = torch.logaddexp(halves[0], halves[1])
    away = (target.abs() - width).clamp(min=0.0)
    nearest = torch.where(flat, mass - 0.5 * away.square(), nearest)
    farthest = torch.where(flat, mass - 0.5 * (target.abs() + width).square(), farthest)
    return torch.minimum(nearest, mass), farthest


def log_outside(radius: float, dim: int) -> float:
    """Log of at least the mass of a standard normal outside the cube of half-width `radius`, for radius > 1."""
    return math.log(2.0 * dim) - 0.5 * radius * radius - math.log(radius * math.sqrt(2.0 * math.pi))
