"""Affine maps of shaped features: what an affine step computes.

Each has `linear(*values, absolute=False)`, the map without its bias of features `(n, *shape)`, with every
coefficient replaced by its absolute value where asked; and `bias(shape)`, which broadcasts to the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from girih.networks.sources import Source


class Operator(Protocol):
    """An affine map of shaped features."""

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The part without the bias."""

    def bias(self) -> Tensor | None:
        """What is added, broadcast to `(*shape)`; `None` for nothing."""


def _signed(value: Tensor, absolute: bool) -> Tensor:
    return value.abs() if absolute else value


@dataclass(frozen=True)
class LinearMap:
    """`h -> W h + v` on the last dimension; `module` is the nn.Linear it comes from, if any."""

    weight: Source
    shift: Source | None
    module: nn.Linear | None = None

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """W h, in the precision of h."""
        return F.linear(values[0], _signed(self.weight.value, absolute).to(values[0].dtype))

    def bias(self) -> Tensor | None:
        """V."""
        return None if self.shift is None else self.shift.value


@dataclass(frozen=True)
class Convolution:
    """A convolution or transposed convolution; `function` is that of torch with all its options bound."""

    function: Callable[..., Tensor]
    weight: Source
    shift: Source | None
    dimensions: int

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The convolution with the kernel."""
        return self.function(values[0], _signed(self.weight.value, absolute).to(values[0].dtype))

    def bias(self) -> Tensor | None:
        """One number for each channel."""
        return None if self.shift is None else self.shift.value.reshape(-1, *[1] * self.dimensions)


@dataclass(frozen=True)
class Normalisation:
    """Batch normalisation in eval mode, `h -> (h - mean) / sqrt(var + eps) * weight + bias`, by channel."""

    mean: Source
    variance: Source
    weight: Source | None
    shift: Source | None
    eps: float
    dimensions: int

    def _scale(self) -> Tensor:
        scale = (self.variance.value + self.eps).rsqrt()
        return scale if self.weight is None else scale * self.weight.value

    def _shaped(self, value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * self.dimensions)

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The scaling of each channel."""
        return values[0] * self._shaped(_signed(self._scale(), absolute)).to(values[0].dtype)

    def bias(self) -> Tensor | None:
        """One number for each channel."""
        shift = -self.mean.value * self._scale()
        return self._shaped(shift if self.shift is None else shift + self.shift.value)


@dataclass(frozen=True)
class Average:
    """A linear map with coefficients that are at least 0 and hold no parameters: pooling, upsampling, padding."""

    function: Callable[[Tensor], Tensor]
    constant: float = 0.0  # what the function gives for zeros, where it pads with a constant
    mask: Tensor | None = None  # where that constant is

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The function."""
        return self.function(values[0])

    def bias(self) -> Tensor | None:
        """The padding."""
        return self.mask


@dataclass(frozen=True)
class Selection:
    """The entry `index` of the flat features, in the given output shape: permutations, slices, repetition."""

    index: Tensor
    shape: tuple[int, ...]

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The chosen entries."""
        flat = values[0].flatten(1) if values[0].ndim > 1 else values[0][:, None]
        chosen = flat.index_select(1, self.index.to(flat.device))
        return chosen.reshape(-1, *self.shape)

    def bias(self) -> Tensor | None:
        """None."""
        return None


@dataclass(frozen=True)
class Combination:
    """`h_1, h_2, ... -> sum_i c_i h_i` with broadcasting."""

    coefficients: tuple[float, ...]

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The weighted sum."""
        factors = [abs(c) if absolute else c for c in self.coefficients]
        total = values[0] * factors[0] if factors[0] != 1.0 else values[0]
        for factor, value in zip(factors[1:], values[1:], strict=True):
            total = total + (value * factor if factor != 1.0 else value)
        return total

    def bias(self) -> Tensor | None:
        """None."""
        return None


@dataclass(frozen=True)
class Concatenation:
    """The inputs one after the other along a dimension (counted with the batch), with constants between them."""

    dim: int
    shift: Source | None = None  # the constants in their places, zeros elsewhere
    gaps: tuple[int | None, ...] = ()  # for each part the size of a constant, or `None` for an input

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The inputs joined, with zeros for the constants."""
        if not self.gaps:
            return torch.cat(values, self.dim)
        shape, left = list(values[0].shape), iter(values)
        parts = []
        for size in self.gaps:
            if size is None:
                parts.append(next(left))
            else:
                shape[self.dim] = size
                parts.append(values[0].new_zeros(shape))
        return torch.cat(parts, self.dim)

    def bias(self) -> Tensor | None:
        """The constants."""
        return None if self.shift is None else self.shift.value


@dataclass(frozen=True)
class Product:
    """`h -> function(h, weight)`, which is linear in each of them, and a sum of products."""

    function: Callable[[Tensor, Tensor], Tensor]
    weight: Source

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The product."""
        return self.function(values[0], _signed(self.weight.value, absolute).to(values[0].dtype))

    def bias(self) -> Tensor | None:
        """None."""
        return None


@dataclass(frozen=True)
class Scaling:
    """`h -> factor h + shift`, entry by entry with broadcasting to `shape`; either may divide."""

    factor: Source | float
    shift: Source | float | None
    shape: tuple[int, ...]
    divide: bool = False  # h / factor, which rounds otherwise than h * (1 / factor)
    sign: float = 1.0  # of the shift

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The scaled features."""
        factor = _number(self.factor)
        if isinstance(factor, Tensor):
            factor = factor.to(values[0].dtype)
        if absolute:
            factor = abs(factor)
        return (values[0] / factor if self.divide else values[0] * factor).expand(-1, *self.shape)

    def bias(self) -> Tensor | None:
        """The shift."""
        if self.shift is None:
            return None
        shift = _number(self.shift) * self.sign
        return shift if isinstance(shift, Tensor) else torch.tensor(shift, dtype=torch.float64)


def _number(value: Source | float) -> Any:
    if not isinstance(value, Source):
        return value
    tensor = value.value
    return tensor
