"""Which handler stands for which function, tensor method, `aten` operator and layer."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from girih.networks import calls, pooling
from girih.networks.activations import Abs, Maxout
from girih.networks.builder import Builder, Feature
from girih.networks.sources import Live

# By the name of the function, or tensor method, or aten operator; aten names with another order of arguments
# than the function's are in ATEN.
CALLS: dict[str, calls.Handler] = {
    "linear": calls.linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), calls.matmul),
    **dict.fromkeys(("addmm", "baddbmm"), calls.addmm),
    "einsum": calls.einsum,
    "lerp": calls.lerp,
    "addcmul": calls.addcmul,
    "where": calls.where,
    "masked_fill": calls.masked_fill,
    **dict.fromkeys(("conv1d", "conv2d"), calls.conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), calls.conv_transpose),
    "batch_norm": calls.batch_norm,
    **dict.fromkeys(("relu", "relu_"), calls.relu),
    **dict.fromkeys(("abs", "abs_", "absolute"), calls.absolute),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), calls.leaky_relu),
    "rrelu": calls.rrelu,
    "prelu": calls.prelu,
    **dict.fromkeys(("hardtanh", "hardtanh_"), calls.hardtanh),
    "relu6": calls.relu6,
    "hardsigmoid": calls.hardsigmoid,
    "softshrink": calls.softshrink,
    "hardshrink": calls.hardshrink,
    **dict.fromkeys(("threshold", "threshold_"), calls.threshold),
    **dict.fromkeys(("clamp", "clip", "clamp_"), calls.clamp),
    "clamp_min": calls.clamp,
    "clamp_max": calls.clamp_max,
    **dict.fromkeys(("add", "iadd", "add_"), calls.add),
    **dict.fromkeys(("sub", "isub", "subtract", "sub_"), calls.subtract),
    "rsub": calls.reverse_subtract,
    **dict.fromkeys(("mul", "imul", "multiply", "mul_"), calls.multiply),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide", "div_"), calls.divide),
    **dict.fromkeys(("neg", "negative"), calls.negate),
    **dict.fromkeys(("cat", "concat", "concatenate"), calls.concatenate),
    "stack": calls.stack,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"), calls.dropout),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), calls.dropout),
    **dict.fromkeys(("contiguous", "clone", "alias", "to", "_to_copy", "double", "float", "pos", "detach"), calls.same),
    **dict.fromkeys(("type", "type_as", "cpu", "cuda", "requires_grad_", "lift_fresh_copy"), calls.same),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), pooling.avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), pooling.adaptive_avg_pool),
    **dict.fromkeys(("interpolate", "upsample"), pooling.interpolate),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d"), pooling.upsample_nearest),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d"), pooling.upsample_linear),
    **dict.fromkeys(("pad", "constant_pad_nd"), pooling.pad),
    "mean": pooling.mean,
    "sum": pooling.total,
    **dict.fromkeys(("max_pool1d", "max_pool2d"), pooling.max_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), pooling.adaptive_max_pool),
    "amax": pooling.amax,
    "amin": pooling.amin,
    "maximum": pooling.maximum,
    "minimum": pooling.minimum,
    "max": pooling.maximum_or_reduce,
    "min": lambda b, h, *args, **kwargs: pooling.maximum_or_reduce(b, h, *args, lower=True, **kwargs),
}

ATEN: dict[str, calls.Handler] = {
    "convolution": calls.convolution,
    "batch_norm": lambda b, h, w, v, mean, var, training, momentum, eps, _: calls.batch_norm(
        b, h, mean, var, w, v, training, momentum, eps
    ),
    "_native_batch_norm_legit_no_training": lambda b, h, w, v, mean, var, momentum, eps: (
        calls.batch_norm(b, h, mean, var, w, v, False, momentum, eps),
    ),
    "constant_pad_nd": lambda b, h, sides, value=0.0: pooling.pad(b, h, sides, "constant", value),
    "max_pool2d_with_indices": lambda b, h, *args: (pooling.max_pool(b, h, *args), None),
    **dict.fromkeys(
        ("adaptive_max_pool1d", "adaptive_max_pool2d"), lambda b, h, size: (pooling.adaptive_max_pool(b, h, size), None)
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
    return calls.conv(b, h, Live(m, "weight"), _optional(m, "bias"), m.stride, padding, m.dilation, m.groups)


def _conv_transpose(b: Builder, h: Feature, m: Any) -> Feature:
    return calls.conv_transpose(
        b, h, Live(m, "weight"), _optional(m, "bias"), m.stride, m.padding, m.output_padding, m.groups, m.dilation
    )


def _batch_norm(b: Builder, h: Feature, m: Any) -> Feature:
    if m.training:
        b.refuse(" in training mode; call net.eval() first")
    mean, variance = _optional(m, "running_mean"), _optional(m, "running_var")
    return calls.batch_norm(b, h, mean, variance, _optional(m, "weight"), _optional(m, "bias"), False, 0.0, m.eps)


def _dropout(b: Builder, h: Feature, m: Any) -> Feature:
    if m.training:
        b.refuse(" in training mode; call net.eval() first")
    return h


def _pad(mode: str) -> Callable[[Builder, Feature, Any], Feature]:
    return lambda b, h, m: pooling.pad(b, h, m.padding, mode, getattr(m, "value", None))


def _optional(m: nn.Module, name: str) -> Live | None:
    return None if getattr(m, name) is None else Live(m, name)


def _max_pool(b: Builder, h: Feature, m: Any) -> Feature:
    return pooling.max_pool(
        b, h, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, return_indices=m.return_indices
    )


def _move(b: Builder, h: Feature, m: Any) -> Any:
    return b.move(h, m)


_INTERPOLATE = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")

LAYERS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Builder, Feature, Any], Any]] = {
    nn.Linear: lambda b, h, m: calls.linear(b, h, Live(m, "weight"), _optional(m, "bias"), m),
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
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d): lambda b, h, m: pooling.adaptive_max_pool(
        b, h, m.output_size, m.return_indices
    ),
    (nn.MaxPool1d, nn.MaxPool2d): _max_pool,
    nn.Upsample: lambda b, h, m: pooling.interpolate(b, h, **{name: getattr(m, name) for name in _INTERPOLATE}),
    (nn.ConstantPad1d, nn.ConstantPad2d): _pad("constant"),
    (nn.ReflectionPad1d, nn.ReflectionPad2d): _pad("reflect"),
    (nn.ReplicationPad1d, nn.ReplicationPad2d): _pad("replicate"),
    (nn.CircularPad1d, nn.CircularPad2d): _pad("circular"),
    Maxout: lambda b, h, m: pooling.maxout(b, h, m.pieces),
    Abs: lambda b, h, m: calls.absolute(b, h),
    nn.ReLU: lambda b, h, m: calls.relu(b, h),
    nn.LeakyReLU: lambda b, h, m: calls.leaky_relu(b, h, m.negative_slope),
    nn.RReLU: lambda b, h, m: calls.rrelu(b, h, m.lower, m.upper, m.training),
    nn.PReLU: lambda b, h, m: calls.prelu(b, h, Live(m, "weight"), m),
    nn.Hardtanh: lambda b, h, m: calls.hardtanh(b, h, m.min_val, m.max_val),
    nn.Hardsigmoid: lambda b, h, m: calls.hardsigmoid(b, h),
    nn.Softshrink: lambda b, h, m: calls.softshrink(b, h, m.lambd),
    nn.Hardshrink: lambda b, h, m: calls.hardshrink(b, h, m.lambd),
    nn.Threshold: lambda b, h, m: calls.threshold(b, h, m.threshold, m.value),
}


def layer_handler(module: nn.Module) -> Callable[[Builder, Feature, Any], Any] | None:
    """The handler of a layer of torch or of ours, if there is one."""
    return next((handler for kinds, handler in LAYERS.items() if isinstance(module, kinds)), None)
