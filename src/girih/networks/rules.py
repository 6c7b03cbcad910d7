"""Which rule stands for which function, tensor method, `aten` operator and layer."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from girih.networks import activation_rules as kinks
from girih.networks import affine_rules as affine
from girih.networks import pooling_rules as pooling
from girih.networks.layers import Abs, Maxout
from girih.networks.live_tensors import Live
from girih.networks.trace_builder import Builder, Feature

Rule = Callable[..., Any]

# By the name of the function, or tensor method, or aten operator; aten names with another order of arguments
# than the function's are in ATEN.
CALLS: dict[str, Rule] = {
    "linear": affine.linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), affine.matmul),
    **dict.fromkeys(("addmm", "baddbmm"), affine.addmm),
    "einsum": affine.einsum,
    "lerp": affine.lerp,
    "addcmul": affine.addcmul,
    "where": affine.where,
    "masked_fill": affine.masked_fill,
    **dict.fromkeys(("conv1d", "conv2d"), affine.conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), affine.conv_transpose),
    "batch_norm": affine.batch_norm,
    **dict.fromkeys(("relu", "relu_"), kinks.relu),
    **dict.fromkeys(("abs", "abs_", "absolute"), kinks.absolute),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), kinks.leaky_relu),
    "rrelu": kinks.rrelu,
    "prelu": kinks.prelu,
    **dict.fromkeys(("hardtanh", "hardtanh_"), kinks.hardtanh),
    "relu6": kinks.relu6,
    "hardsigmoid": kinks.hardsigmoid,
    "softshrink": kinks.softshrink,
    "hardshrink": kinks.hardshrink,
    **dict.fromkeys(("threshold", "threshold_"), kinks.threshold),
    **dict.fromkeys(("clamp", "clip", "clamp_"), kinks.clamp),
    "clamp_min": kinks.clamp,
    "clamp_max": kinks.clamp_max,
    **dict.fromkeys(("add", "iadd", "add_"), affine.add),
    **dict.fromkeys(("sub", "isub", "subtract", "sub_"), affine.subtract),
    "rsub": affine.reverse_subtract,
    **dict.fromkeys(("mul", "imul", "multiply", "mul_"), affine.multiply),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide", "div_"), affine.divide),
    **dict.fromkeys(("neg", "negative"), affine.negate),
    **dict.fromkeys(("cat", "concat", "concatenate"), affine.concatenate),
    "stack": affine.stack,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"), affine.dropout),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), affine.dropout),
    **dict.fromkeys(
        ("contiguous", "clone", "alias", "to", "_to_copy", "double", "float", "pos", "detach"), affine.same
    ),
    **dict.fromkeys(("type", "type_as", "cpu", "cuda", "requires_grad_", "lift_fresh_copy"), affine.same),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), pooling.avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), pooling.adaptive_avg_pool),
    **dict.fromkeys(("interpolate", "upsample"), pooling.interpolate),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d"), pooling.upsample_nearest),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d"), pooling.upsample_linear),
    **dict.fromkeys(("pad", "constant_pad_nd"), pooling.pad),
    "mean": pooling.mean,
    "sum": pooling.total,
    **dict.fromkeys(("max_pool1d", "max_pool2d"), kinks.max_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), kinks.adaptive_max_pool),
    "amax": kinks.amax,
    "amin": kinks.amin,
    "maximum": kinks.maximum,
    "minimum": kinks.minimum,
    "max": kinks.maximum_or_reduce,
    "min": lambda b, h, *args, **kwargs: kinks.maximum_or_reduce(b, h, *args, lower=True, **kwargs),
}

ATEN: dict[str, Rule] = {
    "convolution": affine.convolution,
    "batch_norm": lambda b, h, w, v, mean, var, training, momentum, eps, _: affine.batch_norm(
        b, h, mean, var, w, v, training, momentum, eps
    ),
    "_native_batch_norm_legit_no_training": lambda b, h, w, v, mean, var, momentum, eps: (
        affine.batch_norm(b, h, mean, var, w, v, False, momentum, eps),
    ),
    "constant_pad_nd": lambda b, h, sides, value=0.0: pooling.pad(b, h, sides, "constant", value),
    "max_pool2d_with_indices": lambda b, h, *args: (kinks.max_pool(b, h, *args), None),
    **dict.fromkeys(
        ("adaptive_max_pool1d", "adaptive_max_pool2d"),
        lambda b, h, size: (kinks.adaptive_max_pool(b, h, size), None),
    ),
}

# Only move, pick or repeat entries: found out by calling them on numbered entries.
MOVES = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "slice", "select", "narrow", "expand", "repeat", "tile", "split", "chunk", "unbind", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "movedim", "moveaxis", "swapaxes", "swapdims", "flip", "roll", "getitem",
    "index_select", "view_as", "split_with_sizes", "repeat_interleave", "tensor_split",
    "expand_as", "broadcast_to", "squeeze_", "unsqueeze_", "ravel", "rot90", "fliplr", "flipud",
))  # fmt: skip

_SPACES = (F, torch, operator)
NAMES: dict[Any, str] = {
    getattr(space, name): name for name in (*CALLS, *MOVES) for space in _SPACES if callable(getattr(space, name, None))
}
# The boolean dispatch of torch hides the names of these.
NAMES |= {getattr(torch, name): name for name in ("max_pool1d", "max_pool2d", "avg_pool1d", "adaptive_avg_pool1d")}


def _conv(b: Builder, h: Feature, m: Any) -> Feature:
    padding = m.padding
    if m.padding_mode != "zeros":
        h, padding = pooling.pad(b, h, m._reversed_padding_repeated_twice, m.padding_mode), 0
    return affine.conv(b, h, Live(m, "weight"), _optional(m, "bias"), m.stride, padding, m.dilation, m.groups)


def _conv_transpose(b: Builder, h: Feature, m: Any) -> Feature:
    return affine.conv_transpose(
        b, h, Live(m, "weight"), _optional(m, "bias"), m.stride, m.padding, m.output_padding, m.groups, m.dilation
    )


def _batch_norm(b: Builder, h: Feature, m: Any) -> Feature:
    if m.training:
        b.refuse(" in training mode; call net.eval() first")
    mean, variance = _optional(m, "running_mean"), _optional(m, "running_var")
    return affine.batch_norm(b, h, mean, variance, _optional(m, "weight"), _optional(m, "bias"), False, 0.0, m.eps)


def _dropout(b: Builder, h: Feature, m: Any) -> Feature:
    if m.training:
        b.refuse(" in training mode; call net.eval() first")
    return h


def _pad(mode: str) -> Callable[[Builder, Feature, Any], Feature]:
    return lambda b, h, m: pooling.pad(b, h, m.padding, mode, getattr(m, "value", None))


def _optional(m: nn.Module, name: str) -> Live | None:
    return None if getattr(m, name) is None else Live(m, name)


def _max_pool(b: Builder, h: Feature, m: Any) -> Feature:
    return kinks.max_pool(
        b, h, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, return_indices=m.return_indices
    )


def _move(b: Builder, h: Feature, m: Any) -> Any:
    return b.move(h, m)


_INTERPOLATE = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")

LAYERS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Builder, Feature, Any], Any]] = {
    nn.Linear: lambda b, h, m: affine.linear(b, h, Live(m, "weight"), _optional(m, "bias"), m),
    (nn.Conv1d, nn.Conv2d): _conv,
    (nn.ConvTranspose1d, nn.ConvTranspose2d): _conv_transpose,
    (nn.BatchNorm1d, nn.BatchNorm2d): _batch_norm,
    nn.modules.dropout._DropoutNd: _dropout,
    nn.Identity: lambda b, h, m: h,
    (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle): _move,
    nn.AvgPool1d: lambda b, h, m: pooling.avg_pool(
        b, h, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad
    ),
    nn.AvgPool2d: lambda b, h, m: pooling.avg_pool(
        b, h, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d): lambda b, h, m: pooling.adaptive_avg_pool(b, h, m.output_size),
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d): lambda b, h, m: kinks.adaptive_max_pool(
        b, h, m.output_size, m.return_indices
    ),
    (nn.MaxPool1d, nn.MaxPool2d): _max_pool,
    nn.Upsample: lambda b, h, m: pooling.interpolate(b, h, **{name: getattr(m, name) for name in _INTERPOLATE}),
    (nn.ConstantPad1d, nn.ConstantPad2d): _pad("constant"),
    (nn.ReflectionPad1d, nn.ReflectionPad2d): _pad("reflect"),
    (nn.ReplicationPad1d, nn.ReplicationPad2d): _pad("replicate"),
    (nn.CircularPad1d, nn.CircularPad2d): _pad("circular"),
    Maxout: lambda b, h, m: kinks.maxout(b, h, m.pieces),
    Abs: lambda b, h, m: kinks.absolute(b, h),
    nn.ReLU: lambda b, h, m: kinks.relu(b, h),
    nn.LeakyReLU: lambda b, h, m: kinks.leaky_relu(b, h, m.negative_slope),
    nn.RReLU: lambda b, h, m: kinks.rrelu(b, h, m.lower, m.upper, m.training),
    nn.PReLU: lambda b, h, m: kinks.prelu(b, h, Live(m, "weight")),
    nn.Hardtanh: lambda b, h, m: kinks.hardtanh(b, h, m.min_val, m.max_val),
    nn.Hardsigmoid: lambda b, h, m: kinks.hardsigmoid(b, h),
    nn.Softshrink: lambda b, h, m: kinks.softshrink(b, h, m.lambd),
    nn.Hardshrink: lambda b, h, m: kinks.hardshrink(b, h, m.lambd),
    nn.Threshold: lambda b, h, m: kinks.threshold(b, h, m.threshold, m.value),
}


def layer_rule(module: nn.Module) -> Callable[[Builder, Feature, Any], Any] | None:
    """The rule of a layer of torch or of ours, if there is one."""
    return next((rule for kinds, rule in LAYERS.items() if isinstance(module, kinds)), None)
