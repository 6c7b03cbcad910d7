"""Affine functions of torch, pooling and padding included, as steps: one rule for each, with its signature.

A rule takes the builder, then what the function takes: `Feature` for what depends on z, `Source` for
tensors that do not, numbers for the rest. It returns a `Feature`, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import nn

from girih.networks.affine_maps import (
    Average,
    Combination,
    Concatenation,
    Convolution,
    LinearMap,
    Normalisation,
    Product,
    Scaling,
)
from girih.networks.live_tensors import Derived, Fixed, Method, Source
from girih.networks.trace_builder import (
    AveragePoolCall,
    Builder,
    ConvolutionCall,
    Feature,
    NormalisationCall,
    Operand,
    ResizeCall,
    Sizes,
    TransposedCall,
    plain,
)

Constant: TypeAlias = Source | float


def linear(
    b: Builder, h: Feature, weight: Source, bias: Source | None = None, module: nn.Linear | None = None
) -> Feature:
    """`F.linear` as steps."""
    takes = weight.raw.shape[-1]
    if not h.shape or h.shape[-1] != takes:
        gives = h.shape[-1] if h.shape else 1
        b.refuse(f" takes {takes} features, but the layer before it gives {gives}")
    return b.affine(LinearMap(weight, bias, module), h)


def matmul(b: Builder, left: Operand, right: Operand) -> Feature:
    """`left @ right`, of which one is a constant."""
    if isinstance(left, Feature) and isinstance(right, Source):
        if right.raw.ndim > 2:
            right = _beside(b, right, len(left.shape))
        if right.raw.ndim == 2:
            return linear(b, left, Derived(torch.t, (right,)))
        return _multilinear(b, Product("matmul", right), left)
    if isinstance(right, Feature) and isinstance(left, Source) and len(right.shape) > 1:
        left = _beside(b, left, len(right.shape)) if left.raw.ndim > 2 else left
        return _multilinear(b, Product("matmul_left", left), right)
    b.refuse(" is supported only for features times a constant matrix, row by row; use a Linear layer")


def einsum(b: Builder, equation: str, *operands: Operand | Sequence[Operand]) -> Feature:
    """`torch.einsum` of features and one constant."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if len(operands) == 1 and isinstance(operands[0], Feature):
        return b.average(operands[0], "einsum", equation)
    if len(operands) != 2 or not all(isinstance(part, Feature | Source) for part in operands):
        b.refuse(" is supported for features and one constant")
    first, second = operands
    if isinstance(first, Feature) and isinstance(second, Source):
        return _multilinear(b, Product("einsum", second, equation), first)
    if isinstance(first, Source) and isinstance(second, Feature):
        return _multilinear(b, Product("einsum_left", first, equation), second)
    b.refuse(" multiplies two branches, which is not affine on cells and not supported")


def _multilinear(b: Builder, product: Product, h: Feature) -> Feature:
    """A product of features and a constant, refused where it mixes the rows of a batch."""
    rows = torch.zeros(b.batch, *h.shape, dtype=torch.float64, device=b.device)
    rows[0] = 1.0
    with torch.no_grad():
        out = product.linear(rows, absolute=True)
    if out.ndim < 1 or len(out) != b.batch or (out[1:] != 0).any():
        b.refuse(", which mixes the rows of a batch; a generator maps each z by itself")
    return b.affine(product, h)


def addmm(
    b: Builder, bias: Operand, left: Operand, right: Operand, *, beta: float = 1.0, alpha: float = 1.0
) -> Feature:
    """`beta bias + alpha left @ right`, of matrices or of batches of them."""
    if isinstance(left, Feature) and isinstance(right, Source) and right.raw.ndim == 2 and isinstance(bias, Source):
        shift = _beside(b, bias, len(left.shape))
        if shift.raw.shape in ((), (1,), (right.raw.shape[1],)):
            weight, shift = Derived(torch.t, (right,)), Derived(_expanded, (shift, right.raw.shape[1]))
            if alpha != 1.0:
                weight = Derived(torch.mul, (weight, alpha))
            return linear(b, left, weight, shift if beta == 1.0 else Derived(torch.mul, (shift, beta)))
    product = matmul(b, left, right)
    product = product if alpha == 1.0 else multiply(b, product, alpha)
    return product if beta == 0.0 else add(b, product, bias, beta)


def _expanded(value: torch.Tensor, size: int) -> torch.Tensor:
    return value.expand(size)


def lerp(b: Builder, start: Operand, end: Operand, weight: Operand) -> Feature:
    """`start + weight (end - start)`."""
    if isinstance(weight, Feature):
        b.refuse(" with a weight that depends on z, which is not affine on cells and not supported")
    if isinstance(start, Feature) or isinstance(end, Feature):
        parts = [multiply(b, h, w) if isinstance(h, Feature) else _constant_product(h, w) for h, w in (
            (start, _one_minus(weight)), (end, weight)
        )]  # fmt: skip
        return add(b, parts[0], parts[1])
    b.refuse(" with a weight that depends on z, which is not affine on cells and not supported")


def _one_minus(weight: Constant) -> Constant:
    return Derived(torch.rsub, (weight, 1)) if isinstance(weight, Source) else 1.0 - weight


def _constant_product(left: Constant, right: Constant) -> Constant:
    return Derived(torch.mul, (left, right)) if isinstance(left, Source) or isinstance(right, Source) else left * right


def addcmul(b: Builder, h: Operand, left: Operand, right: Operand, *, value: float = 1.0) -> Feature:
    """`h + value left right`."""
    if isinstance(left, Feature) or isinstance(right, Feature):
        return add(b, multiply(b, left, right), h) if value == 1.0 else add(b, h, multiply(b, left, right), value)
    return add(b, h, _constant_product(left, right), value)


def where(b: Builder, mask: Operand, left: Operand, right: Operand) -> Feature:
    """`torch.where` with a mask that does not depend on z."""
    if not isinstance(mask, Source):
        b.refuse(" by a condition on z, which is supported as an activation alone; use ReLU, LeakyReLU or torch.clamp")
    chosen, rest = Derived(Method("to"), (mask, torch.float64)), Derived(_rest, (mask,))
    parts = [multiply(b, h, m) if isinstance(h, Feature) else _constant_product(h, m) for h, m in (
        (left, chosen), (right, rest)
    )]  # fmt: skip
    return add(b, parts[0], parts[1])


def _rest(mask: torch.Tensor) -> torch.Tensor:
    return 1.0 - mask.to(torch.float64)


def masked_fill(b: Builder, h: Feature, mask: Operand, value: Operand) -> Feature:
    """`h` with `value` where the mask is set."""
    return where(b, mask, value, h)


def conv(b: Builder, h: Feature, call: ConvolutionCall) -> Feature:
    """`F.conv1d`, `F.conv2d`: stride, padding, dilation, groups."""
    return _convolve(b, h, "conv", call)


def conv_transpose(b: Builder, h: Feature, call: TransposedCall) -> Feature:
    """`F.conv_transpose1d`, `F.conv_transpose2d`: stride, padding, output_padding, groups, dilation."""
    return _convolve(b, h, "conv_transpose", call)


def _convolve(b: Builder, h: Feature, name: str, call: ConvolutionCall | TransposedCall) -> Feature:
    dimensions = call.weight.raw.ndim - 2
    if len(h.shape) != dimensions + 1:
        b.refuse(f" takes features (channels, ...) with {dimensions} more dimensions, but is given {h.shape}")
    options = {key: plain(value) for key, value in vars(call).items() if key not in ("weight", "bias")}
    return b.affine(Convolution(f"{name}{dimensions}d", options, call.weight, call.bias), h)


def batch_norm(b: Builder, h: Feature, call: NormalisationCall) -> Feature:
    """`F.batch_norm` with the running statistics."""
    if call.training or call.running_mean is None or call.running_var is None:
        b.refuse(", which here uses the statistics of the batch; use running statistics, and call net.eval() first")
    statistics = (call.running_mean, call.running_var, call.weight, call.bias)
    return b.affine(Normalisation(*statistics, call.eps, len(h.shape) - 1), h)


def add(b: Builder, left: Operand, right: Operand, alpha: float = 1.0) -> Feature:
    """`left + alpha * right`."""
    if isinstance(left, Feature) and isinstance(right, Feature):
        if len(left.shape) != len(right.shape):
            b.refuse(f" broadcasts {left.shape} to {right.shape}, which is not supported; unsqueeze one of them first")
        return b.affine(Combination((1.0, float(alpha))), left, right)
    if isinstance(left, Feature):
        return _scale(b, left, 1.0, right, sign=float(alpha))
    return _scale(b, right, float(alpha), left)


def subtract(b: Builder, left: Operand, right: Operand, alpha: float = 1.0) -> Feature:
    """`left - alpha * right`."""
    return add(b, left, right, -alpha)


def reverse_subtract(b: Builder, left: Operand, right: Operand, alpha: float = 1.0) -> Feature:
    """`right - alpha * left`."""
    return subtract(b, right, left, alpha)


def multiply(b: Builder, left: Operand, right: Operand) -> Feature:
    """`left * right`, of which one is a constant."""
    if isinstance(left, Feature) and isinstance(right, Feature):
        b.refuse(" multiplies two branches, which is not affine on cells and not supported")
    return _scale(b, left, right, None) if isinstance(left, Feature) else _scale(b, right, left, None)


def divide(b: Builder, left: Operand, right: Operand, rounding_mode: str | None = None) -> Feature:
    """`left / right`, by a constant."""
    if isinstance(right, Feature) or rounding_mode is not None:
        b.refuse(" divides by a branch or rounds, which is not affine on cells and not supported")
    return _scale(b, left, right, None, divide=True)


def negate(b: Builder, h: Feature) -> Feature:
    """`-h` as a step."""
    return _scale(b, h, -1.0, None)


def _scale(
    b: Builder, h: Operand, factor: Operand, shift: Operand | None, divide: bool = False, sign: float = 1.0
) -> Feature:
    if not isinstance(h, Feature) or isinstance(factor, Feature) or isinstance(shift, Feature):
        b.refuse(" is supported for features and constants")
    shape = torch.Size(h.shape)
    if isinstance(factor, Source):
        factor = _beside(b, factor, len(h.shape))
        shape = torch.broadcast_shapes(shape, factor.raw.shape)
    if isinstance(shift, Source):
        shift = _beside(b, shift, len(h.shape))
        shape = torch.broadcast_shapes(shape, shift.raw.shape)
    return b.affine(Scaling(factor, shift, tuple(shape), divide, sign), h)


def _beside(b: Builder, value: Source, dimensions: int) -> Source:
    """A constant beside features of so many dimensions, without the dimension of the batch."""
    shape = tuple(value.raw.shape)
    if len(shape) > dimensions + 1 or (len(shape) == dimensions + 1 and shape[0] not in (1, b.batch)):
        b.refuse(
            f" broadcasts features of {dimensions} dimensions to {shape}, which is not supported; unsqueeze the "
            "features first"
        )
    if len(shape) <= dimensions:
        return value
    with torch.no_grad():
        if not torch.equal(value.raw, value.raw[:1].expand_as(value.raw)):
            b.refuse(" has a constant that differs from row to row; a generator maps each z by itself")
    return Derived(Method("select"), (value, 0, 0))


def concatenate(b: Builder, tensors: Sequence[Feature | Source], dim: int = 0) -> Feature:
    """`torch.cat` of branches and constants."""
    first = next(part for part in tensors if isinstance(part, Feature))
    dim = dim % (len(first.shape) + 1)
    features = [part for part in tensors if isinstance(part, Feature)]
    if len(features) == len(tensors):
        return b.affine(Concatenation(dim), *features)
    if dim == 0:
        b.refuse(", which mixes the rows of a batch; a generator maps each z by itself")
    parts = [part if isinstance(part, Feature) else _beside(b, part, len(first.shape)) for part in tensors]
    for part in parts:
        if isinstance(part, Source) and part.raw.ndim != len(first.shape):
            b.refuse(
                f" joins features {first.shape} and a constant {tuple(part.raw.shape)}; expand it to each row first"
            )
    gaps = tuple(part.raw.shape[dim - 1] if isinstance(part, Source) else None for part in parts)
    held = tuple(part.shape if isinstance(part, Feature) else part for part in parts)
    return b.affine(Concatenation(dim, Derived(_joined, (dim - 1, held)), gaps), *features)


def _joined(dim: int, parts: Sequence[torch.Tensor | tuple[int, ...]]) -> torch.Tensor:
    """Constants one after the other, with zeros of a shape between them."""
    like = next(part for part in parts if isinstance(part, torch.Tensor)).to(torch.float64)
    filled = [part.to(like) if isinstance(part, torch.Tensor) else like.new_zeros(part) for part in parts]
    return torch.cat(filled, dim)


def stack(b: Builder, tensors: Sequence[Feature | Source], dim: int = 0) -> Feature:
    """`torch.stack` of branches."""
    dim = dim % (len(next(part for part in tensors if isinstance(part, Feature)).shape) + 2)
    parts = [
        b.moved(part, b.numbered(part).unsqueeze(dim))
        if isinstance(part, Feature)
        else Derived(torch.unsqueeze, (part, dim))
        for part in tensors
    ]
    return concatenate(b, parts, dim)


def dropout(b: Builder, h: Feature, p: float = 0.5, training: bool = True, inplace: bool = False) -> Feature:
    """`F.dropout` in eval mode."""
    if training:
        b.refuse(" is not supported in training mode; pass training=self.training, and call net.eval() first")
    return h


def constant(value: object) -> object:
    """A tensor as a source; anything else as it is."""
    return Fixed(value) if isinstance(value, torch.Tensor) else value


_LINEAR_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")


def avg_pool(b: Builder, h: Feature, call: AveragePoolCall) -> Feature:
    """`F.avg_pool1d`, `F.avg_pool2d` as steps."""
    spatial, stride = spatial_dimensions(b, h), call.stride or None  # aten has an empty list for none
    args = (call.kernel_size, stride, call.padding, call.ceil_mode, call.count_include_pad)
    return b.average(h, f"avg_pool{spatial}d", *args, *[call.divisor_override] * (spatial > 1))


def adaptive_avg_pool(b: Builder, h: Feature, output_size: Sizes | Sequence[int | None]) -> Feature:
    """`F.adaptive_avg_pool1d`, `F.adaptive_avg_pool2d` as steps."""
    return b.average(h, f"adaptive_avg_pool{spatial_dimensions(b, h)}d", output_size)


def interpolate(b: Builder, h: Feature, call: ResizeCall) -> Feature:
    """`F.interpolate` by nearest neighbours or linearly."""
    if call.mode not in _LINEAR_MODES:
        b.refuse(f" in mode '{call.mode}', which is not supported; use one of {', '.join(_LINEAR_MODES)}")
    return b.average(h, "interpolate", *vars(call).values())


def upsample_nearest(
    b: Builder, h: Feature, output_size: Sizes, scale_factors: Sequence[float] | None = None
) -> Feature:
    """`aten.upsample_nearest1d.vec`, `aten.upsample_nearest2d.vec` as steps."""
    return interpolate(b, h, ResizeCall(output_size, scale_factors))


def upsample_linear(
    b: Builder, h: Feature, output_size: Sizes, align_corners: bool, scale_factors: Sequence[float] | None = None
) -> Feature:
    """`aten.upsample_linear1d.vec`, `aten.upsample_bilinear2d.vec` as steps."""
    mode = "linear" if spatial_dimensions(b, h) == 1 else "bilinear"
    return interpolate(b, h, ResizeCall(output_size, scale_factors, mode, align_corners))


def pad(b: Builder, h: Feature, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Feature:
    """`F.pad` as steps."""
    sides = tuple(int(side) for side in pad)
    if len(sides) > 2 * len(h.shape):
        b.refuse(" pads the batch, which is not supported")
    padding = Average("pad", (sides, mode))
    if value:
        ones = torch.ones(1, *h.shape, dtype=torch.float64, device=b.device)
        padding = replace(padding, padding=value * (1 - padding.linear(ones)[0]))
    return b.affine(padding, h)


def mean(
    b: Builder, h: Feature, dim: Sizes | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Feature:
    """`torch.mean` over dimensions other than the batch, in float64 whatever the type that is asked for."""
    return b.average(h, "mean", dimensions(b, h, dim), keepdim)


def total(
    b: Builder, h: Feature, dim: Sizes | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Feature:
    """`torch.sum`, as `mean`."""
    return b.average(h, "sum", dimensions(b, h, dim), keepdim)


def dimensions(b: Builder, h: Feature, dim: Sizes | None) -> tuple[int, ...]:
    """Dimensions counted with the batch, from the front."""
    every = len(h.shape) + 1
    listed = (dim,) if isinstance(dim, int) else tuple(dim or range(every))
    dims = tuple(sorted(d % every for d in listed))
    if 0 in dims:
        b.refuse(" reduces over the batch; name the dimensions after it, dim=1 and so on")
    return dims


def for_each(value: Sizes, count: int) -> tuple[int, ...]:
    """A number for each dimension, of one for all or one for each."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * count if len(values) == 1 else values


def spatial_dimensions(b: Builder, h: Feature) -> int:
    """1 for lines, 2 for pictures; anything else is refused."""
    if len(h.shape) not in (2, 3):
        b.refuse(f" takes features (channels, length) or (channels, height, width), but is given {h.shape}")
    return len(h.shape) - 1
