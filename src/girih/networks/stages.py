"""The two kinds of stage that a traced generator is made of.

A stage reads its parameters from the module each time it is asked, so a trace never goes stale when
the module is trained, and gradients reach the module's own parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine:
    """A stage `h -> W h + v`, read live from an `nn.Linear`."""

    def __init__(self, module: nn.Linear, path: str) -> None:
        self.module = module
        self.path = path
        self.in_features: int = module.in_features
        self.out_features: int = module.out_features

    @property
    def weight(self) -> Tensor:
        """W, `(out, in)`, float64."""
        return self.module.weight.to(torch.float64)

    @property
    def bias(self) -> Tensor:
        """v, `(out,)`, float64; zeros when the module has none."""
        if self.module.bias is None:
            return self.weight.new_zeros(self.out_features)
        return self.module.bias.to(torch.float64)

    @property
    def has_bias(self) -> bool:
        """Whether the module has a bias of its own."""
        return self.module.bias is not None


class PiecewiseLinear:
    """A stage `h -> h` where `h > 0` and `h -> slope * h` elsewhere, unit by unit.

    ReLU has slope 0, leaky ReLU its negative slope, PReLU a trained one, the absolute value -1.
    """

    def __init__(self, source: float | nn.PReLU, path: str, units: int) -> None:
        self.source = source
        self.path = path
        self.units = units

    @property
    def slope(self) -> Tensor:
        """The slope on the negative side, `()` or `(units,)`, float64; read live from a PReLU."""
        if isinstance(self.source, nn.PReLU):
            weight = self.source.weight.to(torch.float64)
            return weight if weight.numel() > 1 else weight[0]
        return torch.tensor(self.source, dtype=torch.float64)

    def slopes(self, signs: Tensor) -> Tensor:
        """The derivative of each unit in cells with the given signs, `(..., units)`."""
        slope = self.slope.to(signs.device)
        return torch.where(signs > 0, slope.new_ones(()), slope)


Stage = Affine | PiecewiseLinear
