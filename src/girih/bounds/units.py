"""A generator as rectifiers: units `max(a, 0)` of values a that are affine in the latents and in earlier units."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.errors import UnsupportedLayerError
from girih.networks import Trace
from girih.networks.trace_steps import AffineStep, KinkStep, MaxStep, Step


class Units(NamedTuple):
    """They are `r_i = max(a_i, 0)` with `a = weight (u, r) + bias`, where r_i takes only units of earlier blocks.

    The last hidden features are `head (u, r) + shift`.
    """

    weight: Tensor  # (n, S + n)
    bias: Tensor  # (n,)
    blocks: tuple[slice, ...]  # units that do not take each other
    head: Tensor  # (H, S + n)
    shift: Tensor  # (H,)

    @property
    def dim(self) -> int:
        """The latent dimension S."""
        return self.weight.shape[1] - len(self.weight)

    @property
    def absolute(self) -> Units:
        """The same with absolute values of all coefficients."""
        weight, bias, head, shift = (part.abs() for part in (self.weight, self.bias, self.head, self.shift))
        return Units(weight, bias, self.blocks, head, shift)

    @property
    def depth(self) -> Tensor:
        """The block of each unit, `(n,)`."""
        depth = torch.zeros_like(self.bias)
        for i, block in enumerate(self.blocks):
            depth[block] = i
        return depth


def units_of(trace: Trace, factor: Tensor) -> Units:
    """The units of a network at latents `z = factor u`.

    A piecewise affine activation is its first piece and a rectifier for each threshold, `h = s_0 a + o_0 +
    sum_k (s_k - s_(k-1)) max(a - t_k, 0)`, and a maximum is `max(a, b) = a + max(b - a, 0)`.
    """
    S = len(factor)
    n = unit_count(trace)
    builder = _Builder(S, n)
    done = {0: torch.cat((factor.mT, factor.new_zeros(n + 1, S)))}  # (S + n + 1, size): rows are coefficients
    for index, step in enumerate(trace.steps[1 : trace.features + 1], start=1):
        taken = [done[i] for i in step.inputs]
        if isinstance(step, AffineStep):
            done[index] = step.linear(*taken)
            done[index][-1] += step.bias
        elif isinstance(step, KinkStep):
            done[index] = _kinks(step, taken[0], builder)
        elif isinstance(step, MaxStep):
            done[index] = _maxima(step, taken[0], builder)
        else:
            raise UnsupportedLayerError(
                f"{step.path} is not made of rectifiers; girih.bracket takes what girih.trace takes"
            )
    last = done[trace.features]
    rows = torch.cat(builder.rows) if builder.rows else factor.new_zeros(0, S + n + 1)
    return Units(rows[:, :-1], rows[:, -1], tuple(builder.blocks), last[:-1].mT, last[-1])


def values_of(units: Units, u: Tensor) -> tuple[Tensor, Tensor]:
    """Latents with their units `(N, S + n)`, and the values a that these rectify `(N, n)`."""
    S = units.dim
    v, a = torch.cat((u, u.new_zeros(len(u), len(units.bias))), 1), u.new_zeros(len(u), len(units.bias))
    for block in units.blocks:
        before = slice(0, S + block.start)
        a[:, block] = v[:, before] @ units.weight[block, before].mT + units.bias[block]
        v[:, S + block.start : S + block.stop] = a[:, block].clamp(min=0.0)
    return v, a


def unit_count(trace: Trace) -> int:
    """How many rectifiers a network is made of."""
    return sum(map(_count, trace.steps))


def _count(step: Step) -> int:
    if isinstance(step, KinkStep):
        return step.size * len(step.thresholds)
    return step.size * (step.windows.shape[1] - 1) if isinstance(step, MaxStep) else 0


class _Builder:
    """The units so far."""

    def __init__(self, dim: int, count: int) -> None:
        self._dim, self._width = dim, dim + count + 1
        self.rows: list[Tensor] = []
        self.blocks: list[slice] = []

    def rectified(self, value: Tensor) -> Tensor:
        """New units, one for each column of `value` `(S + n + 1, m)`."""
        start = self.blocks[-1].stop if self.blocks else 0
        block = slice(start, start + value.shape[1])
        self.rows.append(value.mT)
        self.blocks.append(block)
        new = torch.zeros(self._width, value.shape[1], dtype=value.dtype)
        new[self._dim + start : self._dim + block.stop] = torch.eye(value.shape[1], dtype=value.dtype)
        return new


def _constant(value: Tensor, shift: Tensor | float) -> Tensor:
    shifted = value.clone()
    shifted[-1] += shift
    return shifted


def _kinks(step: KinkStep, value: Tensor, builder: _Builder) -> Tensor:
    kinks = len(step.thresholds)
    first = -1 if kinks <= 2 else 0
    codes = [first + (2 if kinks == 1 else 1) * k for k in range(kinks + 1)]
    tables = [torch.full((step.size,), code, dtype=torch.int8) for code in codes]
    slopes = [step.slopes(table) for table in tables]
    result = _constant(value * slopes[0], step.offsets(tables[0]))
    for k, threshold in enumerate(step.thresholds):
        result = result + (slopes[k + 1] - slopes[k]) * builder.rectified(_constant(value, -threshold))
    return result


def _maxima(step: MaxStep, value: Tensor, builder: _Builder) -> Tensor:
    highest = value[:, step.windows[:, 0]]
    for k in range(1, step.windows.shape[1]):
        highest = highest + builder.rectified(value[:, step.windows[:, k]] - highest)
    return highest
