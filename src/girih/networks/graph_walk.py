"""Walks the graph of a module and collects its steps, by the rule of each function, method, operator and layer."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from girih.errors import GirihError, UnsupportedLayerError
from girih.networks import activation_rules as kinks
from girih.networks import affine_rules as affine
from girih.networks.activation_rules import SMOOTH
from girih.networks.affine_rules import constant
from girih.networks.layers import Abs, Maxout, StepLayer
from girih.networks.live_tensors import Derived, Live, Method, Source
from girih.networks.torch_graph import ATTRIBUTES, SIZES, call_name, dependent, name_of
from girih.networks.trace_builder import (
    AveragePoolCall,
    Builder,
    ConvolutionCall,
    Feature,
    MaxPoolCall,
    NormalisationCall,
    ResizeCall,
    TransposedCall,
)

# What takes the builder, and the arguments of a call with features and sources in the place of tensors.
Rule = Callable[..., object]


def _with(rule: Rule, call: type) -> Rule:
    """The rule of a function whose arguments after the features are the fields of `call`."""
    return lambda b, h, *args, **named: rule(b, h, call(*args, **named))


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
    **dict.fromkeys(("conv1d", "conv2d"), _with(affine.conv, ConvolutionCall)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), _with(affine.conv_transpose, TransposedCall)),
    "batch_norm": _with(affine.batch_norm, NormalisationCall),
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
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _with(affine.avg_pool, AveragePoolCall)),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), affine.adaptive_avg_pool),
    **dict.fromkeys(("interpolate", "upsample"), _with(affine.interpolate, ResizeCall)),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d"), affine.upsample_nearest),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d"), affine.upsample_linear),
    **dict.fromkeys(("pad", "constant_pad_nd"), affine.pad),
    "mean": affine.mean,
    "sum": affine.total,
    **dict.fromkeys(("max_pool1d", "max_pool2d"), _with(kinks.max_pool, MaxPoolCall)),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), kinks.adaptive_max_pool),
    "amax": kinks.amax,
    "amin": kinks.amin,
    "maximum": kinks.maximum,
    "minimum": kinks.minimum,
    "max": kinks.largest,
    "min": kinks.smallest,
}

ATEN: dict[str, Rule] = {
    "convolution": lambda b, h, w, v, stride, padding, dilation, transposed, output_padding, groups: (
        affine.conv_transpose(b, h, TransposedCall(w, v, stride, padding, output_padding, groups, dilation))
        if transposed
        else affine.conv(b, h, ConvolutionCall(w, v, stride, padding, dilation, groups))
    ),
    "batch_norm": lambda b, h, w, v, mean, var, training, momentum, eps, _: affine.batch_norm(
        b, h, NormalisationCall(mean, var, w, v, training, momentum, eps)
    ),
    "_native_batch_norm_legit_no_training": lambda b, h, w, v, mean, var, momentum, eps: (
        affine.batch_norm(b, h, NormalisationCall(mean, var, w, v, False, momentum, eps)),
    ),
    "constant_pad_nd": lambda b, h, sides, value=0.0: affine.pad(b, h, sides, "constant", value),
    "max_pool2d_with_indices": lambda b, h, *args: (kinks.max_pool(b, h, MaxPoolCall(*args)), None),
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

# Leave the values as they are.
SAME = frozenset((
    "contiguous", "clone", "alias", "to", "_to_copy", "double", "float", "pos", "detach", "type", "type_as", "cpu",
    "cuda", "requires_grad_", "lift_fresh_copy",
))  # fmt: skip

_SPACES = (F, torch, operator)
NAMES: dict[Callable[..., object], str] = {
    getattr(space, name): name
    for name in (*CALLS, *MOVES, *SAME)
    for space in _SPACES
    if callable(getattr(space, name, None))
}
# The boolean dispatch of torch hides the names of these.
NAMES |= {getattr(torch, name): name for name in ("max_pool1d", "max_pool2d", "avg_pool1d", "adaptive_avg_pool1d")}


def _conv(b: Builder, h: Feature, m: nn.Conv1d | nn.Conv2d) -> Feature:
    padding: str | tuple[int, ...] = m.padding
    if m.padding_mode != "zeros":
        h, padding = affine.pad(b, h, m._reversed_padding_repeated_twice, m.padding_mode), (0,) * len(m.kernel_size)
    weights = (Live(m, "weight"), _optional(m, "bias"))
    return affine.conv(b, h, ConvolutionCall(*weights, m.stride, padding, m.dilation, m.groups))


def _conv_transpose(b: Builder, h: Feature, m: nn.ConvTranspose1d | nn.ConvTranspose2d) -> Feature:
    weights = (Live(m, "weight"), _optional(m, "bias"))
    call = TransposedCall(*weights, m.stride, m.padding, m.output_padding, m.groups, m.dilation)
    return affine.conv_transpose(b, h, call)


def _batch_norm(b: Builder, h: Feature, m: nn.BatchNorm1d | nn.BatchNorm2d) -> Feature:
    if m.training:
        b.refuse(" in training mode; call net.eval() first")
    mean, variance = _optional(m, "running_mean"), _optional(m, "running_var")
    call = NormalisationCall(mean, variance, _optional(m, "weight"), _optional(m, "bias"), eps=m.eps)
    return affine.batch_norm(b, h, call)


def _dropout(b: Builder, h: Feature, m: nn.Module) -> Feature:
    if m.training:
        b.refuse(" in training mode; call net.eval() first")
    return h


def _pad(mode: str) -> Rule:
    return lambda b, h, m: affine.pad(b, h, m.padding, mode, getattr(m, "value", None))


def _optional(m: nn.Module, name: str) -> Live | None:
    return None if getattr(m, name) is None else Live(m, name)


def _from_fields(rule: Rule, call: type) -> Rule:
    """The rule of a layer whose attributes are the fields of `call`; those that it has not keep their defaults."""
    names = [field.name for field in fields(call)]
    return lambda b, h, m: rule(b, h, call(**{name: getattr(m, name) for name in names if hasattr(m, name)}))


def _move(b: Builder, h: Feature, m: nn.Module) -> object:
    return b.move(h, m)


LAYERS: dict[type[nn.Module] | tuple[type[nn.Module], ...], Rule] = {
    nn.Linear: lambda b, h, m: affine.linear(b, h, Live(m, "weight"), _optional(m, "bias"), m),
    (nn.Conv1d, nn.Conv2d): _conv,
    (nn.ConvTranspose1d, nn.ConvTranspose2d): _conv_transpose,
    (nn.BatchNorm1d, nn.BatchNorm2d): _batch_norm,
    nn.modules.dropout._DropoutNd: _dropout,
    nn.Identity: lambda b, h, m: h,
    (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle): _move,
    (nn.AvgPool1d, nn.AvgPool2d): _from_fields(affine.avg_pool, AveragePoolCall),
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d): lambda b, h, m: affine.adaptive_avg_pool(b, h, m.output_size),
    (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d): lambda b, h, m: kinks.adaptive_max_pool(
        b, h, m.output_size, m.return_indices
    ),
    (nn.MaxPool1d, nn.MaxPool2d): _from_fields(kinks.max_pool, MaxPoolCall),
    nn.Upsample: _from_fields(affine.interpolate, ResizeCall),
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


def layer_rule(module: nn.Module) -> Rule | None:
    """The rule of a layer of torch or of ours, if there is one."""
    return next((rule for kinds, rule in LAYERS.items() if isinstance(module, kinds)), None)


SUPPORTED = (
    "Linear, Conv1d/2d, ConvTranspose1d/2d, BatchNorm and Dropout in eval mode, AvgPool, MaxPool, Upsample, Flatten, "
    "Unflatten, reshape, permute, sums and torch.cat of branches, scalar arithmetic; ReLU, LeakyReLU, PReLU, Hardtanh, "
    "ReLU6, Hardsigmoid, Softshrink, torch.clamp, girih.networks.Abs and Maxout"
)

_SMOOTH = (
    nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Mish, nn.Softmax, nn.LogSigmoid,
    nn.Tanhshrink, nn.Softsign, nn.Hardswish, nn.LogSoftmax, nn.Softmax2d, nn.Softmin, nn.GLU,
)  # fmt: skip
_SMOOTH_NAMES = {kind.__name__.lower() for kind in _SMOOTH} | {
    "exp", "sin", "cos", "sqrt", "rsqrt", "log", "log1p", "expm1", "pow", "square", "log_softmax", "log_sigmoid", "erf",
    "expit", "arctan", "atan", "norm", "normalize", "reciprocal",
}  # fmt: skip


# After a smooth function these leave it the one that a network ends with.
_AFTER = frozenset(("add", "sub", "rsub", "mul", "div", "truediv", "neg", "negative")) | MOVES | SAME


def final_smooth(last: fx.Node, graph: fx.Graph, root: nn.Module) -> tuple[str, str] | None:
    """The name, as `until` takes it, and the kind of the smooth function that a node ends with, if it does."""
    moving, node = dependent(graph), last
    found = None
    while True:
        sources = [source for source in node.all_input_nodes if source in moving]
        if len(sources) != 1 or node.op not in ("call_module", "call_function", "call_method"):
            return found
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            smooth, kind = isinstance(module, _SMOOTH), type(module).__name__
            passes = isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity)
        else:
            kind = _name(node)
            smooth, passes = kind.rstrip("_") in _SMOOTH_NAMES, kind in _AFTER
        if smooth:
            found = name_of(node), kind
        elif not passes:
            return found
        node = sources[0]


class Walker:
    """Evaluates nodes of a graph as steps, those alone that are asked for and what they need.

    Args:
        graph: of a module.
        root: the module that it reads from.
        builder: collects the steps.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, builder: Builder) -> None:
        self.root, self.builder, self.graph = root, builder, graph
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.values: dict[fx.Node, object] = {inputs[0]: Feature(0, builder.latent_shape)}

    def value(self, wanted: fx.Node) -> object:
        """The value of a node: a feature, a constant, or a tuple of them."""
        needed, waiting = {wanted}, [wanted]
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source not in needed and source not in self.values:
                    needed.add(source)
                    waiting.append(source)
        for node in self.graph.nodes:
            if node in needed and node not in self.values:
                if node.op == "placeholder":
                    raise UnsupportedLayerError("the network takes more than one input; a generator takes z alone")
                self.values[node] = _evaluate(node, self.root, self.builder, self.values)
        return self.values[wanted]


def _evaluate(node: fx.Node, root: nn.Module, b: Builder, values: dict[fx.Node, object]) -> object:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = Live(root.get_submodule(owner), name)
        return value if isinstance(value.raw, torch.Tensor) else value.raw
    if node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), ParametrizationList):
        owner, _, name = f".{node.target}".rpartition(".parametrizations.")  # a weight that the owner's class computes
        return Live(root.get_submodule(owner[1:]), name)
    known: dict[fx.Node, Any] = values
    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda n: known[n] if isinstance(n, fx.Node) else n)
    _name_layer(node, root, b)
    try:
        if node.op == "call_module":
            return _layer(root.get_submodule(str(node.target)), args, kwargs, b)
        return _call(node, list(args), dict(kwargs), b)
    except GirihError:
        raise
    except Exception as error:
        raise UnsupportedLayerError(f"{b.label} could not be traced: {error}") from error


def _name_layer(node: fx.Node, root: nn.Module, b: Builder) -> None:
    """Set how errors name the node, and the path of its step."""
    if node.op == "call_module":
        b.path = name_of(node)
        b.label = f"layer '{b.path}'"
        module = root.get_submodule(str(node.target))
        b.label += (
            f" is {type(module).__name__}" if layer_rule(module) is None and not isinstance(module, StepLayer) else ""
        )
        return
    b.path = name_of(node)
    b.label = f"the call '{_name(node)}' (node '{b.path}')"


def _name(node: fx.Node) -> str:
    return (NAMES.get(node.target) if callable(node.target) else None) or call_name(node)


def _leaves(args: tuple[Any, ...] | list[Any], kwargs: dict[str, Any]) -> list[object]:
    found: list[object] = []
    fx.node.map_aggregate((tuple(args), kwargs), lambda leaf: found.append(leaf))
    return found


def _layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], b: Builder) -> object:
    if type(module).__name__ == "GuardsFn":  # the checks of shapes that torch.export adds
        return None
    if not any(isinstance(leaf, Feature) for leaf in _leaves(args, kwargs)):
        return _derived(module, list(args), kwargs)
    if isinstance(module, StepLayer):
        return b.again(module.step, args)
    rule = layer_rule(module)
    if rule is not None and len(args) == 1 and not kwargs and isinstance(args[0], Feature):
        kind = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm | nn.Hardshrink):
            b.label += f" is {kind}"
        return rule(b, args[0], module)
    if rule is not None:
        b.refuse(" is not called on features alone, which is not supported")
    if isinstance(module, torch.jit.ScriptModule):
        b.refuse(", which torch.jit compiled; put the module that it was made from in its place")
    if isinstance(module, _SMOOTH):
        b.refuse(f", which is not supported{SMOOTH}{_until(b)}Supported: {SUPPORTED}")
    b.refuse(f", which is not supported; write it with supported layers. {_until(b)}Supported: {SUPPORTED}")


def _until(b: Builder) -> str:
    return (
        f"If all up to here is piecewise linear, and it is a head, stop before it: girih.trace(net, until={b.path!r}), "
        f"or --until {b.path} on the command line. "
    )


def _call(node: fx.Node, args: list[Any], kwargs: dict[str, Any], b: Builder) -> object:
    target: Any = node.target
    name = _name(node)
    function = Method(target) if node.op == "call_method" else target
    leaves = _leaves(args, kwargs)
    if not any(isinstance(leaf, Feature) for leaf in leaves):
        if any(isinstance(leaf, Source) for leaf in leaves):
            return _derived(function, args, kwargs)
        return constant(function(*args, **kwargs))  # sizes, ranges
    first = args[0] if args else kwargs.pop("input", None)
    if not args:
        args = [first]
    if name in ("getitem", "getattr", "max", "min") or name in SIZES or name in MOVES:
        if isinstance(first, tuple):
            return first[args[1]] if name == "getitem" else first[0]  # getattr(torch.max(...), "values")
        if name == "getattr" and args[1] in ("mT", "T", "H", "mH"):
            return b.move(first, lambda h: getattr(h, args[1]))
        if name == "getattr" or name in SIZES:
            if isinstance(first, Feature) and (name != "getattr" or args[1] in ATTRIBUTES):
                return constant(function(b.numbered(first), *args[1:], **kwargs))
            b.refuse(f" is not supported. Supported: {SUPPORTED}")
        if name in MOVES and isinstance(first, Feature):
            others = [_tensor(value, b) for value in args[1:]]
            named = {key: _tensor(value, b) for key, value in kwargs.items()}
            moving: Callable[..., Any] = function
            return b.move(first, lambda h: moving(h, *others, **named))
    if name in SAME:
        return first
    aten = isinstance(target, torch._ops.OpOverload)
    rule = (ATEN.get(name) if aten else None) or CALLS.get(name)
    known = aten or node.op == "call_method" or target in NAMES
    if rule is None or not known:
        remedy = f"{SMOOTH}{_until(b)}" if name.rstrip("_") in _SMOOTH_NAMES else f". {_until(b)}"
        b.refuse(f" is not supported{remedy}Supported: {SUPPORTED}")
    return rule(b, *args, **kwargs)


def _tensor(value: object, b: Builder) -> object:
    if isinstance(value, Feature):  # of view_as and expand_as: the size alone
        return b.numbered(value)
    if isinstance(value, tuple | list):
        return type(value)(_tensor(part, b) for part in value)
    return value.raw if isinstance(value, Source) else value


def _derived(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> object:
    """A tensor computed from parameters, read live; its shape or size is a plain number."""
    derived = Derived(function, tuple(args), kwargs)
    value = derived.raw
    return derived if isinstance(value, torch.Tensor) else value
