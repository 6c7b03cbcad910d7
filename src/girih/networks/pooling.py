"""Pooling, upsampling, padding and maxima as steps: handlers like those in `girih.networks.calls`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from girih.networks.builder import Builder, Feature
from girih.networks.calls import concatenate, negate
from girih.networks.operators import Average
from girih.networks.sources import Source

_LINEAR_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")


def avg_pool(b: Builder, h: Feature, *args: Any, **kwargs: Any) -> Feature:
    """`F.avg_pool1d`, `F.avg_pool2d`."""
    args = tuple(None if isinstance(value, list | tuple) and not value else value for value in args)
    return b.average(partial(_options_last, f"avg_pool{_spatial(b, h)}d", args, kwargs), h)


def adaptive_avg_pool(b: Builder, h: Feature, output_size: Any) -> Feature:
    """`F.adaptive_avg_pool1d`, `F.adaptive_avg_pool2d`."""
    return b.average(partial(_options_last, f"adaptive_avg_pool{_spatial(b, h)}d", (output_size,), {}), h)


def interpolate(
    b: Builder,
    h: Feature,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Feature:
    """`F.interpolate` by nearest neighbours or linearly."""
    if mode not in _LINEAR_MODES:
        b.refuse(f" in mode '{mode}', which is not supported; use one of {', '.join(_LINEAR_MODES)}")
    options = (size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    return b.average(partial(_options_last, "interpolate", options, {}), h)


def upsample_nearest(b: Builder, h: Feature, output_size: Any, scale_factors: Any = None) -> Feature:
    """`aten.upsample_nearest1d.vec`, `aten.upsample_nearest2d.vec`."""
    return interpolate(b, h, output_size, _listed(scale_factors))


def upsample_linear(
    b: Builder, h: Feature, output_size: Any, align_corners: bool, scale_factors: Any = None
) -> Feature:
    """`aten.upsample_linear1d.vec`, `aten.upsample_bilinear2d.vec`."""
    mode = "linear" if _spatial(b, h) == 1 else "bilinear"
    return interpolate(b, h, output_size, _listed(scale_factors), mode, align_corners)


def _listed(value: Any) -> Any:
    return None if value is None else list(value)


def pad(b: Builder, h: Feature, pad: Any, mode: str = "constant", value: float | None = None) -> Feature:
    """`F.pad`."""
    sides = tuple(int(side) for side in pad)
    if len(sides) > 2 * len(h.shape):
        b.refuse(" pads the batch, which is not supported")
    function = partial(_options_last, "pad", (sides, mode), {})
    if not value:
        return b.average(function, h)
    ones = torch.ones(1, *h.shape, dtype=torch.float64, device=b.device)
    return b.affine(Average(function, mask=value * (1 - function(ones)[0])), h)


def mean(b: Builder, h: Feature, dim: Any = None, keepdim: bool = False, name: str = "mean", **_: Any) -> Feature:
    """`torch.mean` and `torch.sum` over dimensions other than the batch."""
    dims = _dims(b, h, dim)
    return b.average(partial(_reduce, name, dims, keepdim), h)


def total(b: Builder, h: Feature, dim: Any = None, keepdim: bool = False, **_: Any) -> Feature:
    """`torch.sum`."""
    return mean(b, h, dim, keepdim, "sum")


def max_pool(
    b: Builder,
    h: Feature,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Feature:
    """`F.max_pool1d`, `F.max_pool2d`."""
    if return_indices:
        b.refuse(" with return_indices=True, which is not supported")
    spatial = _spatial(b, h)
    kernel, padding, dilation = (_each(v, spatial) for v in (kernel_size, padding, dilation))
    stride = kernel if stride is None or stride == [] or stride == () else _each(stride, spatial)
    zeros = torch.zeros(1, *h.shape, dtype=torch.float64, device=b.device)
    pool = getattr(F, f"max_pool{spatial}d")
    shape = tuple(pool(zeros, kernel, stride, padding, dilation, ceil_mode).shape[1:])
    windows = _windows(b, h, kernel, stride, padding, dilation, shape[1:])
    return b.maximum(h, windows, shape)


def adaptive_max_pool(b: Builder, h: Feature, output_size: Any, return_indices: bool = False) -> Feature:
    """`F.adaptive_max_pool1d`, `F.adaptive_max_pool2d`, where the sizes divide."""
    inputs = h.shape[1:]
    outputs = [n if size is None else size for n, size in zip(inputs, _each(output_size, len(inputs)), strict=True)]
    if any(n % size for n, size in zip(inputs, outputs, strict=True)):
        b.refuse(f" from {inputs} to {tuple(outputs)}, which is supported only where the sizes divide; use MaxPool")
    kernel = tuple(n // size for n, size in zip(inputs, outputs, strict=True))
    return max_pool(b, h, kernel, return_indices=return_indices)


def maxout(b: Builder, h: Feature, pieces: int) -> Feature:
    """The maximum of each `pieces` consecutive features."""
    if not h.shape or h.shape[-1] % pieces:
        b.refuse(f" of {pieces} pieces is given {h.shape[-1:]} features, which it does not divide")
    shape = (*h.shape[:-1], h.shape[-1] // pieces)
    windows = torch.arange(math.prod(h.shape), device=b.device).reshape(-1, pieces)
    return b.maximum(h, windows, shape)


def amax(b: Builder, h: Feature, dim: Any = (), keepdim: bool = False) -> Feature:
    """`torch.amax`."""
    dims = _dims(b, h, dim)
    index = b.numbered(h)[0].long()
    size = math.prod(h.shape[d - 1] for d in dims)
    windows = index.movedim([d - 1 for d in dims], list(range(-len(dims), 0))).reshape(-1, size)
    kept = [n for d, n in enumerate(h.shape, start=1) if d not in dims]
    full = [1 if d in dims else n for d, n in enumerate(h.shape, start=1)]
    return b.maximum(h, windows, tuple(full if keepdim else kept))


def amin(b: Builder, h: Feature, dim: Any = (), keepdim: bool = False) -> Feature:
    """`torch.amin`."""
    return negate(b, amax(b, negate(b, h), dim, keepdim))


def maximum(b: Builder, left: Any, right: Any) -> Feature:
    """`torch.maximum` of two branches."""
    if not isinstance(left, Feature) or not isinstance(right, Feature) or left.shape != right.shape:
        b.refuse(" is supported for two branches of the same shape")
    size = math.prod(left.shape)
    both = concatenate(b, [Feature(f.step, (size,)) for f in (left, right)], 1)
    first = torch.arange(size, device=b.device)
    return b.maximum(both, torch.stack((first, first + size), 1), left.shape)


def minimum(b: Builder, left: Any, right: Any) -> Feature:
    """`torch.minimum` of two branches."""
    if not isinstance(left, Feature) or not isinstance(right, Feature):
        b.refuse(" is supported for two branches of the same shape")
    return negate(b, maximum(b, negate(b, left), negate(b, right)))


def maximum_or_reduce(b: Builder, h: Feature, *args: Any, lower: bool = False, **kwargs: Any) -> Any:
    """`torch.max`: of two branches, or over a dimension, where it gives values and places."""
    if (args and isinstance(args[0], Feature | Source)) or "other" in kwargs:
        return (minimum if lower else maximum)(b, h, *args, **kwargs)
    return ((amin if lower else amax)(b, h, *args, **kwargs), None)


def _windows(
    b: Builder,
    h: Feature,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    outputs: Sequence[int],
) -> Tensor:
    """The features in the window of each output, `(size, m)`; windows cut off at the border repeat their last."""
    index = b.numbered(h)[0] + 1  # 0 marks the padding
    if len(kernel) == 1:  # a line as a picture of height 1
        index = index[:, None, :]
        kernel, stride, padding, dilation, outputs = (
            (one, *rest)
            for one, rest in zip((1, 1, 0, 1, 1), (kernel, stride, padding, dilation, outputs), strict=True)
        )
    sides: list[int] = []
    for k, s, p, d, n, size in zip(kernel, stride, padding, dilation, outputs, index.shape[1:], strict=True):
        extent = (n - 1) * s + d * (k - 1) + 1
        sides = [p, extent - size - p, *sides]  # F.pad counts from the last dimension; below 0 it crops
    padded = F.pad(index[:, None], sides)
    windows = F.unfold(padded, tuple(kernel), dilation=tuple(dilation), stride=tuple(stride))  # (C, m, L)
    members = windows.mT.reshape(-1, windows.shape[1]).long()
    order = (members == 0).sort(dim=1, stable=True).indices
    members = members.gather(1, order)
    count = (members > 0).sum(1, keepdim=True)
    last = members.gather(1, count - 1)
    return torch.where(members > 0, members, last) - 1


def _options_last(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], h: Tensor) -> Tensor:
    return getattr(F, name)(h, *args, **kwargs)


def _reduce(name: str, dims: tuple[int, ...], keepdim: bool, h: Tensor) -> Tensor:
    return getattr(torch, name)(h, dims, keepdim)


def _dims(b: Builder, h: Feature, dim: Any) -> tuple[int, ...]:
    """Dimensions counted with the batch, from the front."""
    every = len(h.shape) + 1
    listed = (dim,) if isinstance(dim, int) else tuple(dim or range(every))
    dims = tuple(sorted(d % every for d in listed))
    if 0 in dims:
        b.refuse(" reduces over the batch; name the dimensions after it, dim=1 and so on")
    return dims


def _each(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * count if len(values) == 1 else values


def _spatial(b: Builder, h: Feature) -> int:
    if len(h.shape) not in (2, 3):
        b.refuse(f" takes features (channels, length) or (channels, height, width), but is given {h.shape}")
    return len(h.shape) - 1
