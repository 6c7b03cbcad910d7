"""Pooling, upsampling, padding and sums of torch as steps: rules like those of `girih.networks.affine_rules`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from girih.networks.affine_maps import Average
from girih.networks.trace_builder import Builder, Feature

_LINEAR_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")


def avg_pool(b: Builder, h: Feature, *args: Any, **kwargs: Any) -> Feature:
    """`F.avg_pool1d`, `F.avg_pool2d`."""
    args = tuple(None if isinstance(value, list | tuple) and not value else value for value in args)
    return b.average(h, f"avg_pool{spatial_dimensions(b, h)}d", *args, **kwargs)


def adaptive_avg_pool(b: Builder, h: Feature, output_size: Any) -> Feature:
    """`F.adaptive_avg_pool1d`, `F.adaptive_avg_pool2d`."""
    return b.average(h, f"adaptive_avg_pool{spatial_dimensions(b, h)}d", output_size)


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
    return b.average(h, "interpolate", size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)


def upsample_nearest(b: Builder, h: Feature, output_size: Any, scale_factors: Any = None) -> Feature:
    """`aten.upsample_nearest1d.vec`, `aten.upsample_nearest2d.vec`."""
    return interpolate(b, h, output_size, _listed(scale_factors))


def upsample_linear(
    b: Builder, h: Feature, output_size: Any, align_corners: bool, scale_factors: Any = None
) -> Feature:
    """`aten.upsample_linear1d.vec`, `aten.upsample_bilinear2d.vec`."""
    mode = "linear" if spatial_dimensions(b, h) == 1 else "bilinear"
    return interpolate(b, h, output_size, _listed(scale_factors), mode, align_corners)


def _listed(value: Any) -> Any:
    return None if value is None else list(value)


def pad(b: Builder, h: Feature, pad: Any, mode: str = "constant", value: float | None = None) -> Feature:
    """`F.pad`."""
    sides = tuple(int(side) for side in pad)
    if len(sides) > 2 * len(h.shape):
        b.refuse(" pads the batch, which is not supported")
    padding = Average("pad", (sides, mode))
    if value:
        ones = torch.ones(1, *h.shape, dtype=torch.float64, device=b.device)
        padding = replace(padding, padding=value * (1 - padding.linear(ones)[0]))
    return b.affine(padding, h)


def mean(b: Builder, h: Feature, dim: Any = None, keepdim: bool = False, name: str = "mean", **_: Any) -> Feature:
    """`torch.mean` and `torch.sum` over dimensions other than the batch."""
    return b.average(h, name, dimensions(b, h, dim), keepdim)


def total(b: Builder, h: Feature, dim: Any = None, keepdim: bool = False, **_: Any) -> Feature:
    """`torch.sum`."""
    return mean(b, h, dim, keepdim, "sum")


def dimensions(b: Builder, h: Feature, dim: Any) -> tuple[int, ...]:
    """Dimensions counted with the batch, from the front."""
    every = len(h.shape) + 1
    listed = (dim,) if isinstance(dim, int) else tuple(dim or range(every))
    dims = tuple(sorted(d % every for d in listed))
    if 0 in dims:
        b.refuse(" reduces over the batch; name the dimensions after it, dim=1 and so on")
    return dims


def for_each(value: Any, count: int) -> tuple[int, ...]:
    """A number for each dimension, of one for all or one for each."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * count if len(values) == 1 else values


def spatial_dimensions(b: Builder, h: Feature) -> int:
    """1 for lines, 2 for pictures; anything else is refused."""
    if len(h.shape) not in (2, 3):
        b.refuse(f" takes features (channels, length) or (channels, height, width), but is given {h.shape}")
    return len(h.shape) - 1
