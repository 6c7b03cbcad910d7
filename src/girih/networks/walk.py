"""Walks the graph of a module and collects its steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from girih.errors import GirihError, UnsupportedLayerError
from girih.networks.builder import Builder, Feature
from girih.networks.calls import SMOOTH, constant
from girih.networks.registry import ATEN, CALLS, MOVES, NAMES, layer_handler
from girih.networks.sources import Derived, Live, Method, Source
from girih.networks.steps import Step

SUPPORTED = (
    "Linear, Conv1d/2d, ConvTranspose1d/2d, BatchNorm and Dropout in eval mode, AvgPool, MaxPool, Upsample, Flatten, "
    "Unflatten, reshape, permute, sums and torch.cat of branches, scalar arithmetic; ReLU, LeakyReLU, PReLU, Hardtanh, "
    "ReLU6, Hardsigmoid, Softshrink, torch.clamp, girih.networks.Abs and Maxout"
)

_SMOOTH = (
    nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Mish, nn.Softmax, nn.LogSigmoid,
    nn.Tanhshrink, nn.Softsign, nn.Hardswish, nn.LogSoftmax,
)  # fmt: skip
_SMOOTH_NAMES = {kind.__name__.lower() for kind in _SMOOTH} | {"exp", "sin", "cos", "sqrt", "log", "pow", "square"}


def walk(graph: fx.Graph, root: nn.Module, builder: Builder) -> tuple[list[Step], int]:
    """The steps of a graph, and the index of the output among them."""
    values: dict[fx.Node, Any] = {}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UnsupportedLayerError("the network takes more than one input; a generator takes z alone")
    values[inputs[0]] = Feature(0, (builder.latent_dim,))
    for node in graph.nodes:
        if node.op == "output":
            result = values[node.args[0]] if isinstance(node.args[0], fx.Node) else node.args[0]
            if isinstance(result, tuple | list) and len(result) == 1:  # an exported program returns a tuple
                result = values[result[0]] if isinstance(result[0], fx.Node) else result[0]
            if not isinstance(result, Feature):
                raise UnsupportedLayerError("the network must return the output of its last layer, and nothing else")
            return builder.finish(result.step)
        if node.op != "placeholder":
            values[node] = _evaluate(node, root, builder, values)
    raise UnsupportedLayerError("the network returns nothing")


def _evaluate(node: fx.Node, root: nn.Module, b: Builder, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = Live(root.get_submodule(owner), name)
        return value if isinstance(value.raw, torch.Tensor) else value.raw
    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda n: values[n] if isinstance(n, fx.Node) else n)
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
        b.path = str(node.target)
        b.label = f"layer '{b.path}'"
        kind = type(root.get_submodule(b.path)).__name__
        b.label += f" is {kind}" if layer_handler(root.get_submodule(b.path)) is None else ""
        return
    owners = [
        str(entry[0] if isinstance(entry, tuple) else entry) for entry in node.meta.get("nn_module_stack", {}).values()
    ]
    owner = owners[-1] if owners else ""
    b.path = f"{owner}.{node.name}" if owner else node.name
    b.label = f"the call '{_name(node)}' (node '{b.path}')"


def _name(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return NAMES.get(target) or str(getattr(target, "__name__", repr(target)))


def _layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], b: Builder) -> Any:
    if type(module).__name__ == "GuardsFn":  # the checks of shapes that torch.export adds
        return None
    handler = layer_handler(module)
    if handler is not None and len(args) == 1 and not kwargs and isinstance(args[0], Feature):
        kind = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm | nn.Hardshrink):
            b.label += f" is {kind}"
        return handler(b, args[0], module)
    if handler is not None:
        b.refuse(" is not called on features alone, which is not supported")
    if isinstance(module, _SMOOTH):
        b.refuse(f", which is not supported{SMOOTH}Supported: {SUPPORTED}")
    b.refuse(f", which is not supported; write it with supported layers. Supported: {SUPPORTED}")


def _call(node: fx.Node, args: list[Any], kwargs: dict[str, Any], b: Builder) -> Any:
    target: Any = node.target
    name = _name(node)
    function = Method(target) if node.op == "call_method" else target
    leaves: list[Any] = []
    fx.node.map_aggregate((tuple(args), kwargs), lambda leaf: leaves.append(leaf))
    if not any(isinstance(leaf, Feature) for leaf in leaves):
        if any(isinstance(leaf, Source) for leaf in leaves):
            return _derived(function, args, kwargs)
        return constant(function(*args, **kwargs))  # sizes, ranges
    first = args[0] if args else kwargs.pop("input", None)
    if not args:
        args = [first]
    if name in ("getitem", "getattr", "size", "sym_size", "dim", "ndimension", "max", "min") or name in MOVES:
        if isinstance(first, tuple):
            return first[args[1]] if name == "getitem" else first[0]  # getattr(torch.max(...), "values")
        if name in ("getattr", "size", "sym_size", "dim", "ndimension"):
            if isinstance(first, Feature) and (name != "getattr" or args[1] in ("shape", "ndim", "dtype", "device")):
                return function(b.numbered(first), *args[1:], **kwargs)
            b.refuse(f" is not supported. Supported: {SUPPORTED}")
        if name in MOVES and isinstance(first, Feature):
            others = [_tensor(value) for value in args[1:]]
            return b.move(first, lambda h: function(h, *others, **kwargs))
    aten = isinstance(target, torch._ops.OpOverload)
    handler = (ATEN.get(name) if aten else None) or CALLS.get(name)
    known = aten or node.op == "call_method" or target in NAMES
    if handler is None or not known:
        remedy = SMOOTH if name.rstrip("_") in _SMOOTH_NAMES else ". "
        b.refuse(f" is not supported{remedy}Supported: {SUPPORTED}")
    return handler(b, *args, **kwargs)


def _tensor(value: Any) -> Any:
    return value.raw if isinstance(value, Source) else value


def _derived(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A tensor computed from parameters, read live; its shape or size is a plain number."""
    derived = Derived(function, tuple(args), kwargs)
    value = derived.raw
    return derived if isinstance(value, torch.Tensor) else value
