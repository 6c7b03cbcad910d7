"""The two kinds of stage that a traced generator is made of.

A stage reads its parameters from the module each time it is asked, so a trace never goes stale when
the module is trained, and gradients reach the module's own parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from girih.networks.operators import LinearMap
from girih.networks.sources import Source
from girih.networks.steps import AffineStep, KinkStep, Step


class Affine:
    """A stage `h -> W h + v`, read live from an `nn.Linear`."""

    def __init__(self, module: nn.Linear, weight: Source, shift: Source | None, path: str) -> None:
        self.module, self._weight, self._shift = module, weight, shift
        self.path = path
        self.in_features: int = module.in_features
        self.out_features: int = module.out_features

    @property
    def weight(self) -> Tensor:
        """W, `(out, in)`, float64."""
        return self._weight.value

    @property
    def bias(self) -> Tensor:
        """v, `(out,)`, float64; zeros when the module has none."""
        return self.weight.new_zeros(self.out_features) if self._shift is None else self._shift.value

    @property
    def has_bias(self) -> bool:
        """Whether the module has a bias of its own."""
        return self._shift is not None


class PiecewiseLinear:
    """A stage `h -> h` where `h > 0` and `h -> slope * h` elsewhere, unit by unit.

    ReLU has slope 0, leaky ReLU its negative slope, PReLU a trained one, the absolute value -1.
    """

    def __init__(self, source: float | Source, path: str, units: int) -> None:
        self.source = source
        self.path = path
        self.units = units

    @property
    def slope(self) -> Tensor:
        """The slope on the negative side, `()` or `(units,)`, float64; read live from a PReLU."""
        if isinstance(self.source, Source):
            weight = self.source.value
            return weight if weight.numel() > 1 else weight[0]
        return torch.tensor(self.source, dtype=torch.float64)

    def slopes(self, signs: Tensor) -> Tensor:
        """The derivative of each unit in cells with the given signs, `(..., units)`."""
        slope = self.slope.to(signs.device)
        return torch.where(signs > 0, slope.new_ones(()), slope)


Stage = Affine | PiecewiseLinear


def as_stage(step: Step) -> Stage | None:
    """A step as a stage of a fully connected chain, if it can be one."""
    if isinstance(step, AffineStep) and isinstance(step.operator, LinearMap) and len(step.shapes[0]) == 1:
        module = step.operator.module
        return None if module is None else Affine(module, step.operator.weight, step.operator.shift, step.path)
    if isinstance(step, KinkStep) and step.thresholds == (0.0,) and step.pieces[1] == 1.0 and not any(step.constants):
        below = step.pieces[0]
        if (step.module is not None or isinstance(below, float)) and step.channel is None:
            return PiecewiseLinear(below, step.path, step.size)
    return None


def as_chain(steps: Sequence[Step], output: int) -> list[Stage] | None:
    """The steps after the latent as stages, where each takes the one before it; else `None`."""
    stages: list[Stage] = []
    for index, step in enumerate(steps[1:], start=1):
        stage = as_stage(step)
        if stage is None or step.inputs != (index - 1,):
            return None
        stages.append(stage)
    return stages if output == len(steps) - 1 else None
