"""Activations and maxima of torch as steps: rules like those of `girih.networks.affine_rules`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from girih.errors import ParameterError
from girih.networks.affine_rules import concatenate, dimensions, for_each, negate, spatial_dimensions
from girih.networks.live_tensors import Source
from girih.networks.trace_builder import Builder, Feature, MaxPoolCall, Operand, Sizes

SMOOTH = "; a smooth activation has no cells; use a piecewise-linear one (ReLU, LeakyReLU, Hardtanh, Abs). "


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
    """`F.relu` as steps."""
    return piecewise(b, h, (0.0,), (0.0, 1.0), (0.0, 0.0))


def absolute(b: Builder, h: Feature) -> Feature:
    """`torch.abs` as steps."""
    return piecewise(b, h, (0.0,), (-1.0, 1.0), (0.0, 0.0))


def leaky_relu(b: Builder, h: Feature, negative_slope: float = 0.01, inplace: bool = False) -> Feature:
    """`F.leaky_relu` as steps."""
    return piecewise(b, h, (0.0,), (negative_slope, 1.0), (0.0, 0.0))


def rrelu(
    b: Builder, h: Feature, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Feature:
    """`F.rrelu`, whose slope is random in training."""
    if training:
        b.refuse(" in training mode; call net.eval() first")
    return leaky_relu(b, h, (lower + upper) / 2)


def prelu(b: Builder, h: Feature, weight: Source) -> Feature:
    """`F.prelu`, with one slope or one for each channel."""
    count, channels = weight.raw.numel(), h.shape[0] if h.shape else 1
    if count not in (1, channels):
        raise ParameterError(f"layer '{b.path}' has {count} slopes for {channels} units")
    channel = None
    if count > 1 and len(h.shape) > 1:
        channel = torch.arange(channels, device=b.device).repeat_interleave(math.prod(h.shape[1:]))
    return b.kink(h, (0.0,), (weight, 1.0), (0.0, 0.0), channel)


def hardtanh(b: Builder, h: Feature, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Feature:
    """`F.hardtanh` as steps."""
    return piecewise(b, h, (min_val, max_val), (0.0, 1.0, 0.0), (min_val, 0.0, max_val))


def relu6(b: Builder, h: Feature, inplace: bool = False) -> Feature:
    """`F.relu6` as steps."""
    return hardtanh(b, h, 0.0, 6.0)


def hardsigmoid(b: Builder, h: Feature, inplace: bool = False) -> Feature:
    """`F.hardsigmoid`: 0 up to -3, 1 from 3."""
    return piecewise(b, h, (-3.0, 3.0), (0.0, 1 / 6, 0.0), (0.0, 0.5, 1.0))


def softshrink(b: Builder, h: Feature, lambd: float = 0.5) -> Feature:
    """`F.softshrink` as steps."""
    return piecewise(b, h, (-lambd, lambd), (1.0, 0.0, 1.0), (lambd, 0.0, -lambd)) if lambd else h


def hardshrink(b: Builder, h: Feature, lambd: float = 0.5) -> Feature:
    """`F.hardshrink`, which is continuous for lambd = 0 alone."""
    if lambd:
        b.refuse(f" jumps at {lambd:g}, which is not supported; use Softshrink, or lambd = 0")
    return h


def threshold(b: Builder, h: Feature, threshold: float, value: float, inplace: bool = False) -> Feature:
    """`F.threshold`, continuous where both numbers agree."""
    return piecewise(b, h, (threshold,), (0.0, 1.0), (value, 0.0))


def clamp(b: Builder, h: Feature, min: Operand | None = None, max: Operand | None = None) -> Feature:
    """`torch.clamp` with numbers."""
    if isinstance(min, Source | Feature) or isinstance(max, Source | Feature):
        b.refuse(" is supported with numbers as bounds, not tensors")
    if min is not None and max is not None:
        return hardtanh(b, h, min, max)
    if min is not None:
        return piecewise(b, h, (min,), (0.0, 1.0), (min, 0.0))
    return h if max is None else piecewise(b, h, (max,), (1.0, 0.0), (0.0, max))


def clamp_max(b: Builder, h: Feature, max: Operand) -> Feature:
    """`torch.clamp_max` as steps."""
    return clamp(b, h, None, max)


@dataclass(frozen=True)
class Window:
    """A window that moves over lines or pictures: one number for each dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def max_pool(b: Builder, h: Feature, call: MaxPoolCall) -> Feature:
    """`F.max_pool1d`, `F.max_pool2d` as steps."""
    if call.return_indices:
        b.refuse(" with return_indices=True, which is not supported")
    spatial = spatial_dimensions(b, h)
    kernel, padding, dilation = (for_each(v, spatial) for v in (call.kernel_size, call.padding, call.dilation))
    window = Window(kernel, for_each(call.stride, spatial) if call.stride else kernel, padding, dilation)
    zeros = torch.zeros(1, *h.shape, dtype=torch.float64, device=b.device)
    pool = getattr(F, f"max_pool{spatial}d")
    shape = tuple(pool(zeros, *vars(window).values(), call.ceil_mode).shape[1:])
    return b.maximum(h, _members(b, h, window, shape[1:]), shape)


def adaptive_max_pool(b: Builder, h: Feature, output_size: Sizes, return_indices: bool = False) -> Feature:
    """`F.adaptive_max_pool1d`, `F.adaptive_max_pool2d`, where the sizes divide."""
    inputs = h.shape[1:]
    outputs = [n if size is None else size for n, size in zip(inputs, for_each(output_size, len(inputs)), strict=True)]
    if any(n % size for n, size in zip(inputs, outputs, strict=True)):
        b.refuse(f" from {inputs} to {tuple(outputs)}, which is supported only where the sizes divide; use MaxPool")
    kernel = tuple(n // size for n, size in zip(inputs, outputs, strict=True))
    return max_pool(b, h, MaxPoolCall(kernel, return_indices=return_indices))


def maxout(b: Builder, h: Feature, pieces: int) -> Feature:
    """The maximum of each `pieces` consecutive features."""
    if not h.shape or h.shape[-1] % pieces:
        b.refuse(f" of {pieces} pieces is given {h.shape[-1:]} features, which it does not divide")
    shape = (*h.shape[:-1], h.shape[-1] // pieces)
    windows = torch.arange(math.prod(h.shape), device=b.device).reshape(-1, pieces)
    return b.maximum(h, windows, shape)


def amax(b: Builder, h: Feature, dim: Sizes | None = (), keepdim: bool = False) -> Feature:
    """`torch.amax` as steps."""
    dims = dimensions(b, h, dim)
    index = b.numbered(h)[0].long()
    size = math.prod(h.shape[d - 1] for d in dims)
    windows = index.movedim([d - 1 for d in dims], list(range(-len(dims), 0))).reshape(-1, size)
    kept = [n for d, n in enumerate(h.shape, start=1) if d not in dims]
    full = [1 if d in dims else n for d, n in enumerate(h.shape, start=1)]
    return b.maximum(h, windows, tuple(full if keepdim else kept))


def amin(b: Builder, h: Feature, dim: Sizes | None = (), keepdim: bool = False) -> Feature:
    """`torch.amin` as steps."""
    return negate(b, amax(b, negate(b, h), dim, keepdim))


def maximum(b: Builder, left: Operand, right: Operand) -> Feature:
    """`torch.maximum` of two branches."""
    if not isinstance(left, Feature) or not isinstance(right, Feature) or left.shape != right.shape:
        b.refuse(" is supported for two branches of the same shape")
    size = math.prod(left.shape)
    both = concatenate(b, [Feature(f.step, (size,)) for f in (left, right)], 1)
    first = torch.arange(size, device=b.device)
    return b.maximum(both, torch.stack((first, first + size), 1), left.shape)


def minimum(b: Builder, left: Operand, right: Operand) -> Feature:
    """`torch.minimum` of two branches."""
    if not isinstance(left, Feature) or not isinstance(right, Feature):
        b.refuse(" is supported for two branches of the same shape")
    return negate(b, maximum(b, negate(b, left), negate(b, right)))


def largest(
    b: Builder, h: Feature, dim: Sizes | Feature | Source = (), keepdim: bool = False, *, other: Operand | None = None
) -> Feature | tuple[Feature, None]:
    """`torch.max`: of two branches, or over a dimension, where it gives values and places."""
    if isinstance(dim, Feature | Source):
        return maximum(b, h, dim)
    return (amax(b, h, dim, keepdim), None) if other is None else maximum(b, h, other)


def smallest(
    b: Builder, h: Feature, dim: Sizes | Feature | Source = (), keepdim: bool = False, *, other: Operand | None = None
) -> Feature | tuple[Feature, None]:
    """`torch.min`, as `largest`."""
    if isinstance(dim, Feature | Source):
        return minimum(b, h, dim)
    return (amin(b, h, dim, keepdim), None) if other is None else minimum(b, h, other)


def _members(b: Builder, h: Feature, window: Window, outputs: Sequence[int]) -> Tensor:
    """The features in the window of each output, `(size, m)`; windows cut off at the border repeat their last."""
    index = b.numbered(h)[0] + 1  # 0 marks the padding
    if len(window.kernel) == 1:  # a line as a picture of height 1
        index, outputs = index[:, None, :], (1, *outputs)
        window = Window((1, *window.kernel), (1, *window.stride), (0, *window.padding), (1, *window.dilation))
    sides: list[int] = []
    for k, s, p, d, n, size in zip(*vars(window).values(), outputs, index.shape[1:], strict=True):
        extent = (n - 1) * s + d * (k - 1) + 1
        sides = [p, extent - size - p, *sides]  # F.pad counts from the last dimension; below 0 it crops
    padded = F.pad(index[:, None], sides)
    windows = F.unfold(padded, window.kernel, dilation=window.dilation, stride=window.stride)  # (C, m, L)
    members = windows.mT.reshape(-1, windows.shape[1]).long()
    order = (members == 0).sort(dim=1, stable=True).indices
    members = members.gather(1, order)
    count = (members > 0).sum(1, keepdim=True)
    last = members.gather(1, count - 1)
    return torch.where(members > 0, members, last) - 1
