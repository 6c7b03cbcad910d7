r"""Linear relaxations of a generator on boxes: what its features can be there, with a certificate.

On a box of latents `z = F (m + d)`, `|d_j| <= r_j`, the features after each step are enclosed by

    h(z) = value + slope d + e,    |e_u| <= radius_u.

An affine step maps value and slope, and radii by the absolute values of its coefficients. A unit between l and u takes
the chord of its activation from l to u, and half of what the activation is beyond it, at its kinks, is the radius:
exact where no kink is inside. Radii have room for the rounding of each step, so what is computed is enclosed, too.

Source:
    Singh, Gehr, Mirman, Püschel and Vechev (2018), Fast and effective robustness certification (DeepZ), with intervals
    in the place of their noise symbols.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.errors import UnsupportedLayerError
from girih.networks import Trace
from girih.networks.trace_steps import AffineStep, KinkStep, MaxStep

_ROUNDING = 2.0**-51  # of a product and a sum, twice over


class Relaxed(NamedTuple):
    """Features on B boxes are enclosed by this."""

    value: Tensor  # (B, H) at the middles
    slope: Tensor  # (B, H, S)
    radius: Tensor  # (B, H)

    def reach(self, half: Tensor) -> Tensor:
        """How far the linear part goes, `(B, H)`."""
        return (self.slope.abs() @ half[:, :, None])[:, :, 0]

    def limits(self, half: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the most that features can be, `(B, H)`."""
        away = self.reach(half) + self.radius
        return self.value - away, self.value + away


def relax(trace: Trace, frame: Tensor, middle: Tensor, half: Tensor) -> tuple[Relaxed, Tensor]:
    """The last hidden features on boxes, and how much of the radii is due to each side, `(B, S)`, about.

    Args:
        trace: of the generator.
        frame: F `(S, S)`.
        middle: m `(B, S)`.
        half: r `(B, S)`, finite.
    """
    value = middle @ frame.mT
    done = {0: Relaxed(value, frame.expand(len(middle), -1, -1), torch.zeros_like(value))}
    blame = torch.zeros_like(middle)
    for index, step in enumerate(trace.steps[1 : trace.features + 1], start=1):
        taken = [done[i] for i in step.inputs]
        if isinstance(step, AffineStep):
            done[index] = _affine(step, taken, half)
        elif isinstance(step, KinkStep):
            done[index], own = _kinks(step, taken[0], half)
            blame = blame + own
        elif isinstance(step, MaxStep):
            done[index], own = _maxima(step, taken[0], half)
            blame = blame + own
        else:
            raise UnsupportedLayerError(
                f"{step.path} has no linear relaxation; girih.bracket takes what girih.trace takes"
            )
    return done[trace.features], blame


def _affine(step: AffineStep, taken: list[Relaxed], half: Tensor) -> Relaxed:
    count, _, size = taken[0].slope.shape
    columns = [one.slope.mT.reshape(count * size, one.slope.shape[1]) for one in taken]
    slope = step.linear(*columns).reshape(count, size, step.size).mT
    radii = []
    for one in taken:
        terms = _ROUNDING * (one.value.shape[1] + size)
        radii.append(one.radius + terms * (one.value.abs() + one.reach(half) + one.radius))
    value = step.values(*(one.value for one in taken))
    return Relaxed(value, slope, step.magnitude(*radii) + _ROUNDING * value.abs())


def _kinks(step: KinkStep, of: Relaxed, half: Tensor) -> tuple[Relaxed, Tensor]:
    (low, high), reach = of.limits(half), of.reach(half)
    at_low, at_high = step.apply(low), step.apply(high)
    least, most, bent = torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low, dtype=torch.bool)
    width = torch.where(high > low, high - low, 1.0)
    chord = (at_high - at_low) / width
    for threshold in step.thresholds:
        inside = (low < threshold) & (threshold < high)
        kink = torch.full_like(low, threshold)
        beyond = torch.where(inside, step.apply(kink) - at_low - chord * (threshold - low), 0.0)
        least, most, bent = torch.minimum(least, beyond), torch.maximum(most, beyond), bent | inside
    exact = step.slopes(step.code(of.value)).expand_as(low)
    slope = torch.where(bent, chord, exact)
    middle = at_low + chord * (of.value - low) + 0.5 * (least + most)
    value = torch.where(bent, middle, step.apply(of.value))
    own = 0.5 * (most - least)
    size = low.abs() + high.abs()
    radius = slope.abs() * of.radius + own + 8.0 * _ROUNDING * (1.0 + slope.abs()) * size
    # what a unit adds is due to the sides that move it over its kink
    part = own / torch.where(reach > 0.0, reach, 1.0)
    blame = (part[:, None, :] @ of.slope.abs())[:, 0] * half
    return Relaxed(value, of.slope * slope[:, :, None], radius), blame


def _maxima(step: MaxStep, of: Relaxed, half: Tensor) -> tuple[Relaxed, Tensor]:
    low, high = of.limits(half)
    windows = step.windows.to(low.device)
    lows, highs = low[:, windows], high[:, windows]
    best = lows.argmax(2, keepdim=True)
    others = highs.scatter(2, best, -torch.inf).amax(2)
    known = lows.gather(2, best)[:, :, 0] >= others
    chosen = windows.expand(len(low), -1, -1).gather(2, best)[:, :, 0]
    least, most = lows.amax(2), highs.amax(2)
    value = torch.where(known, of.value.gather(1, chosen), 0.5 * (least + most))
    slope = of.slope.gather(1, chosen[:, :, None].expand(-1, -1, half.shape[1]))
    slope = torch.where(known[:, :, None], slope, 0.0)
    own = 0.5 * (most - least)
    radius = torch.where(known, of.radius.gather(1, chosen), own)
    share = half / half.sum(1, keepdim=True).clamp(min=torch.finfo(half.dtype).tiny)
    blame = torch.where(known, 0.0, own).sum(1, keepdim=True) * share
    return Relaxed(value, slope, radius + _ROUNDING * (value.abs() + radius)), blame
