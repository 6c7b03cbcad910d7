"""Functions of torch as steps: one handler for each, with the signature of the function.

A handler takes the builder, then what the function takes: `Feature` for what depends on z, `Source` for
tensors that do not, numbers for the rest. It returns a `Feature`, or a tuple of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from girih.errors import ParameterError
from girih.networks.builder import Builder, Feature
from girih.networks.operators import Combination, Concatenation, Convolution, LinearMap, Normalisation, Scaling
from girih.networks.sources import Derived, Fixed, Method, Source

Handler = Callable[..., Any]

SMOOTH = "; a smooth activation has no cells; use a piecewise-linear one (ReLU, LeakyReLU, Hardtanh, Abs). "


def linear(b: Builder, h: Feature, weight: Source, bias: Source | None = None, module: Any = None) -> Feature:
    """`F.linear`."""
    takes = weight.raw.shape[-1]
    if not h.shape or h.shape[-1] != takes:
        gives = h.shape[-1] if h.shape else 1
        b.refuse(f" takes {takes} features, but the layer before it gives {gives}")
    return b.affine(LinearMap(weight, bias, module), h)


def matmul(b: Builder, h: Any, weight: Any) -> Feature:
    """`h @ weight`."""
    if not isinstance(h, Feature) or not isinstance(weight, Source) or weight.raw.ndim != 2:
        b.refuse(" is supported only for features times a constant matrix; use a Linear layer")
    return linear(b, h, Derived(torch.t, (weight,)))


def addmm(b: Builder, bias: Source, h: Feature, weight: Source) -> Feature:
    """`bias + h @ weight`."""
    return linear(b, h, Derived(torch.t, (weight,)), bias)


def conv(b: Builder, h: Feature, weight: Source, bias: Source | None = None, *args: Any, **kwargs: Any) -> Feature:
    """`F.conv1d`, `F.conv2d`: stride, padding, dilation, groups."""
    dimensions = weight.raw.ndim - 2
    names = ("stride", "padding", "dilation", "groups")
    return _convolve(b, h, weight, bias, f"conv{dimensions}d", dict(zip(names, args, strict=False)) | kwargs)


def conv_transpose(
    b: Builder, h: Feature, weight: Source, bias: Source | None = None, *args: Any, **kwargs: Any
) -> Feature:
    """`F.conv_transpose1d`, `F.conv_transpose2d`: stride, padding, output_padding, groups, dilation."""
    dimensions = weight.raw.ndim - 2
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    options = dict(zip(names, args, strict=False)) | kwargs
    return _convolve(b, h, weight, bias, f"conv_transpose{dimensions}d", options)


def convolution(
    b: Builder,
    h: Feature,
    weight: Source,
    bias: Source | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Feature:
    """`aten.convolution`."""
    if transposed:
        return conv_transpose(b, h, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(b, h, weight, bias, stride, padding, dilation, groups)


def _convolve(
    b: Builder, h: Feature, weight: Source, bias: Source | None, name: str, options: dict[str, Any]
) -> Feature:
    dimensions = weight.raw.ndim - 2
    if len(h.shape) != dimensions + 1:
        b.refuse(f" takes features (channels, ...) with {dimensions} more dimensions, but is given {h.shape}")
    function = partial(_call_convolution, name, None, {k: _plain(v) for k, v in options.items()})
    return b.affine(Convolution(function, weight, bias, dimensions), h)


def _call_convolution(name: str, bias: None, options: dict[str, Any], h: Any, weight: Any) -> Any:
    return getattr(F, name)(h, weight, bias, **options)


def _plain(value: Any) -> Any:
    """The immutable lists of a graph as tuples."""
    return tuple(value) if isinstance(value, list) else value


def batch_norm(
    b: Builder,
    h: Feature,
    mean: Source | None,
    variance: Source | None,
    weight: Source | None = None,
    bias: Source | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Feature:
    """`F.batch_norm` with the running statistics."""
    if training or mean is None or variance is None:
        b.refuse(", which here uses the statistics of the batch; use running statistics, and call net.eval() first")
    return b.affine(Normalisation(mean, variance, weight, bias, eps, len(h.shape) - 1), h)


def piecewise(
    b: Builder,
    h: Feature,
    thresholds: Sequence[float],
    slopes: Sequence[float],
    offsets: Sequence[float],
) -> Feature:
    """An activation with the same pieces for every unit; refused where it jumps."""
    if list(thresholds) != sorted(set(thresholds)):
        b.refuse(" has kinks that coincide or are out of order; its lower bound must lie below its upper bound")
    for k, t in enumerate(thresholds):
        left, right = slopes[k] * t + offsets[k], slopes[k + 1] * t + offsets[k + 1]
        if not math.isclose(left, right, rel_tol=1e-12, abs_tol=1e-12):
            b.refuse(f" jumps at {t:g}, which is not supported; use a continuous activation")
    if not all(math.isfinite(value) for value in (*thresholds, *slopes, *offsets)):
        b.refuse(" has options that are not finite numbers")
    return b.kink(h, thresholds, [float(s) for s in slopes], [float(o) for o in offsets])


def relu(b: Builder, h: Feature, inplace: bool = False) -> Feature:
    """`F.relu`."""
    return piecewise(b, h, (0.0,), (0.0, 1.0), (0.0, 0.0))


def absolute(b: Builder, h: Feature) -> Feature:
    """`torch.abs`."""
    return piecewise(b, h, (0.0,), (-1.0, 1.0), (0.0, 0.0))


def leaky_relu(b: Builder, h: Feature, negative_slope: float = 0.01, inplace: bool = False) -> Feature:
    """`F.leaky_relu`."""
    return piecewise(b, h, (0.0,), (negative_slope, 1.0), (0.0, 0.0))


def rrelu(
    b: Builder, h: Feature, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Feature:
    """`F.rrelu`, whose slope is random in training."""
    if training:
        b.refuse(" in training mode; call net.eval() first")
    return leaky_relu(b, h, (lower + upper) / 2)


def prelu(b: Builder, h: Feature, weight: Source, module: Any = None) -> Feature:
    """`F.prelu`, with one slope or one for each channel."""
    count, channels = weight.raw.numel(), h.shape[0] if h.shape else 1
    if count not in (1, channels):
        raise ParameterError(f"layer '{b.path}' has {count} slopes for {channels} units")
    channel = None
    if count > 1 and len(h.shape) > 1:
        channel = torch.arange(channels, device=b.device).repeat_interleave(math.prod(h.shape[1:]))
    return b.kink(h, (0.0,), (weight, 1.0), (0.0, 0.0), channel, module)


def hardtanh(b: Builder, h: Feature, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Feature:
    """`F.hardtanh`."""
    return piecewise(b, h, (min_val, max_val), (0.0, 1.0, 0.0), (min_val, 0.0, max_val))


def relu6(b: Builder, h: Feature, inplace: bool = False) -> Feature:
    """`F.relu6`."""
    return hardtanh(b, h, 0.0, 6.0)


def hardsigmoid(b: Builder, h: Feature, inplace: bool = False) -> Feature:
    """`F.hardsigmoid`: 0 up to -3, 1 from 3."""
    return piecewise(b, h, (-3.0, 3.0), (0.0, 1 / 6, 0.0), (0.0, 0.5, 1.0))


def softshrink(b: Builder, h: Feature, lambd: float = 0.5) -> Feature:
    """`F.softshrink`."""
    return piecewise(b, h, (-lambd, lambd), (1.0, 0.0, 1.0), (lambd, 0.0, -lambd)) if lambd else h


def hardshrink(b: Builder, h: Feature, lambd: float = 0.5) -> Feature:
    """`F.hardshrink`, which is continuous for lambd = 0 alone."""
    if lambd:
        b.refuse(f" jumps at {lambd:g}, which is not supported; use Softshrink, or lambd = 0")
    return h


def threshold(b: Builder, h: Feature, threshold: float, value: float, inplace: bool = False) -> Feature:
    """`F.threshold`, continuous where both numbers agree."""
    return piecewise(b, h, (threshold,), (0.0, 1.0), (value, 0.0))


def clamp(b: Builder, h: Feature, min: Any = None, max: Any = None) -> Feature:
    """`torch.clamp` with numbers."""
    if isinstance(min, Source | Feature) or isinstance(max, Source | Feature):
        b.refuse(" is supported with numbers as bounds, not tensors")
    if min is None and max is None:
        return h
    if max is None:
        return piecewise(b, h, (min,), (0.0, 1.0), (min, 0.0))
    if min is None:
        return piecewise(b, h, (max,), (1.0, 0.0), (0.0, max))
    return hardtanh(b, h, min, max)


def clamp_max(b: Builder, h: Feature, max: Any) -> Feature:
    """`torch.clamp_max`."""
    return clamp(b, h, None, max)


def add(b: Builder, left: Any, right: Any, alpha: float = 1.0) -> Feature:
    """`left + alpha * right`."""
    if isinstance(left, Feature) and isinstance(right, Feature):
        if len(left.shape) != len(right.shape):
            b.refuse(f" broadcasts {left.shape} to {right.shape}, which is not supported; unsqueeze one of them first")
        return b.affine(Combination((1.0, float(alpha))), left, right)
    if isinstance(left, Feature):
        return _scale(b, left, 1.0, right, sign=float(alpha))
    return _scale(b, right, float(alpha), left)


def subtract(b: Builder, left: Any, right: Any, alpha: float = 1.0) -> Feature:
    """`left - alpha * right`."""
    return add(b, left, right, -alpha)


def reverse_subtract(b: Builder, left: Any, right: Any, alpha: float = 1.0) -> Feature:
    """`right - alpha * left`."""
    return subtract(b, right, left, alpha)


def multiply(b: Builder, left: Any, right: Any) -> Feature:
    """`left * right`, of which one is a constant."""
    if isinstance(left, Feature) and isinstance(right, Feature):
        b.refuse(" multiplies two branches, which is not affine on cells and not supported")
    return _scale(b, left, right, None) if isinstance(left, Feature) else _scale(b, right, left, None)


def divide(b: Builder, left: Any, right: Any, rounding_mode: str | None = None) -> Feature:
    """`left / right`, by a constant."""
    if isinstance(right, Feature) or rounding_mode is not None:
        b.refuse(" divides by a branch or rounds, which is not affine on cells and not supported")
    return _scale(b, left, right, None, divide=True)


def negate(b: Builder, h: Feature) -> Feature:
    """`-h`."""
    return _scale(b, h, -1.0, None)


def _scale(b: Builder, h: Feature, factor: Any, shift: Any, divide: bool = False, sign: float = 1.0) -> Feature:
    shape = torch.Size(h.shape)
    constants = []
    for value in (factor, shift):
        if isinstance(value, Source):
            extra = tuple(value.raw.shape)
            if len(extra) == len(h.shape) + 1 and extra[0] == 1:
                value, extra = Derived(Method("squeeze"), (value, 0)), extra[1:]
            if len(extra) > len(h.shape):
                b.refuse(f" broadcasts {h.shape} to {extra}, which is not supported; unsqueeze the features first")
            shape = torch.broadcast_shapes(shape, extra)
        constants.append(value)
    return b.affine(Scaling(constants[0], constants[1], tuple(shape), divide, sign), h)


def concatenate(b: Builder, tensors: Sequence[Any], dim: int = 0) -> Feature:
    """`torch.cat` of branches."""
    if not all(isinstance(part, Feature) for part in tensors):
        b.refuse(" joins constants to the features, which is not supported; use a Linear layer with a bias")
    dim = dim % (len(tensors[0].shape) + 1)
    return b.affine(Concatenation(dim), *tensors)


def stack(b: Builder, tensors: Sequence[Any], dim: int = 0) -> Feature:
    """`torch.stack` of branches."""
    dim = dim % (len(tensors[0].shape) + 2)
    return concatenate(b, [b.move(part, partial(torch.unsqueeze, dim=dim)) for part in tensors], dim)


def dropout(b: Builder, h: Feature, p: float = 0.5, training: bool = True, inplace: bool = False) -> Feature:
    """`F.dropout` in eval mode."""
    if training:
        b.refuse(" is not supported in training mode; pass training=self.training, and call net.eval() first")
    return h


def same(b: Builder, h: Feature, *args: Any, **kwargs: Any) -> Feature:
    """What leaves the values as they are."""
    return h


def constant(value: Any) -> Any:
    """A tensor as a source; anything else as it is."""
    return Fixed(value) if isinstance(value, torch.Tensor) else value
