"""Affine maps of shaped features: what an affine step computes.

Each has `linear(*values, absolute=False)`, the map without its bias of features `(n, *shape)`, with every
coefficient replaced by its absolute value where asked; and `bias()`, which broadcasts to the output. All that they
hold are numbers, names, tensors and sources of tensors, so that they can be written to files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from girih.networks.live_tensors import Source

Plain: TypeAlias = "bool | int | float | str | tuple[Plain, ...] | None"

_CONVOLUTIONS = {
    name: getattr(F, name) for name in ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
}  # those of functions that compute with tensors and do nothing else: files name them
_FUNCTIONS = {
    **{name: getattr(F, name) for name in ("avg_pool1d", "avg_pool2d", "interpolate", "pad")},
    **{name: getattr(F, name) for name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d")},
    **{name: getattr(torch, name) for name in ("mean", "sum")},
    "einsum": lambda h, equation: torch.einsum(equation, h),
}
_PRODUCTS = {
    "matmul": lambda h, weight, equation: h @ weight,
    "matmul_left": lambda h, weight, equation: weight @ h,
    "einsum": lambda h, weight, equation: torch.einsum(equation, h, weight),
    "einsum_left": lambda h, weight, equation: torch.einsum(equation, weight, h),
}


class AffineMap(Protocol):
    """An affine map of shaped features."""

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The part without the bias."""

    def bias(self) -> Tensor | None:
        """The part that is added, broadcast to `(*shape)`; `None` for nothing."""


def _signed(value: Tensor, absolute: bool) -> Tensor:
    return value.abs() if absolute else value


@dataclass(frozen=True)
class LinearMap:
    """`h -> W h + v` on the last dimension; `module` is the nn.Linear it comes from, if any."""

    weight: Source
    shift: Source | None
    module: nn.Linear | None = None

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The product W h, in the precision of h."""
        return F.linear(values[0], _signed(self.weight.value, absolute).to(values[0].dtype))

    def bias(self) -> Tensor | None:
        """The shift v, `(out,)`."""
        return None if self.shift is None else self.shift.value


@dataclass(frozen=True)
class Convolution:
    """A convolution or transposed convolution; `function` is the name of that of torch, and `options` are its own."""

    function: str
    options: Mapping[str, Plain]
    weight: Source
    shift: Source | None

    @property
    def dimensions(self) -> int:
        """1 for lines, 2 for pictures."""
        return int(self.function[-2])

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The convolution with the kernel."""
        kernel = _signed(self.weight.value, absolute).to(values[0].dtype)
        result: Tensor = _CONVOLUTIONS[self.function](values[0], kernel, None, **self.options)
        return result

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
    """A linear map with coefficients that are at least 0 and hold no parameters: pooling, upsampling, padding, sums.

    `function` is the name of that of torch, and what follows the features in its call are `args` and `options`.
    """

    function: str
    args: tuple[Plain, ...] = ()
    options: Mapping[str, Plain] = field(default_factory=dict)
    padding: Tensor | None = None  # where a constant is put, that constant; 0 elsewhere

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The function of torch, of the features."""
        result: Tensor = _FUNCTIONS[self.function](values[0], *self.args, **self.options)
        return result

    def bias(self) -> Tensor | None:
        """The constant that is put around the features, if any."""
        return self.padding


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
        """There is no bias."""
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
        """There is no bias."""
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
        """The constants in their places, if any."""
        return None if self.shift is None else self.shift.value


@dataclass(frozen=True)
class Product:
    """A product of h and a weight, which is linear in each of them: "matmul", "matmul_left", "einsum", "einsum_left".

    The weight is on the left where the name says so. `equation` is that of einsum.
    """

    function: str
    weight: Source
    equation: str = ""

    def linear(self, *values: Tensor, absolute: bool = False) -> Tensor:
        """The product with the weight."""
        return self.times(values[0], _signed(self.weight.value, absolute).to(values[0].dtype))

    def times(self, h: Tensor, weight: Tensor) -> Tensor:
        """The product with another weight."""
        result: Tensor = _PRODUCTS[self.function](h, weight, self.equation)
        return result

    def bias(self) -> Tensor | None:
        """There is no bias."""
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
        factor: Tensor | float
        factor = self.factor.value.to(values[0].dtype) if isinstance(self.factor, Source) else self.factor
        if absolute:
            factor = factor.abs() if isinstance(factor, Tensor) else abs(factor)
        return (values[0] / factor if self.divide else values[0] * factor).expand(-1, *self.shape)

    def bias(self) -> Tensor | None:
        """The shift, in float64."""
        if self.shift is None:
            return None
        shift = self.shift.value if isinstance(self.shift, Source) else torch.tensor(self.shift, dtype=torch.float64)
        return shift * self.sign
