"""Walks the graph of a module and collects its steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from girih.errors import GirihError, UnsupportedLayerError
from girih.networks.activation_rules import SMOOTH
from girih.networks.affine_rules import constant
from girih.networks.live_tensors import Derived, Live, Method, Source
from girih.networks.rules import ATEN, CALLS, MOVES, NAMES, layer_rule
from girih.networks.step_network import StepLayer
from girih.networks.torch_graph import ATTRIBUTES, SIZES, call_name, name_of
from girih.networks.trace_builder import Builder, Feature

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
        self.values: dict[fx.Node, Any] = {inputs[0]: Feature(0, builder.latent_shape)}

    def value(self, wanted: fx.Node) -> Any:
        """What a node is: a feature, a constant, or a tuple of them."""
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


def _evaluate(node: fx.Node, root: nn.Module, b: Builder, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = Live(root.get_submodule(owner), name)
        return value if isinstance(value.raw, torch.Tensor) else value.raw
    if node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), ParametrizationList):
        owner, _, name = f".{node.target}".rpartition(".parametrizations.")  # a weight that the owner's class computes
        return Live(root.get_submodule(owner[1:]), name)
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


def _leaves(*values: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate(values, lambda leaf: found.append(leaf))
    return found


def _layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], b: Builder) -> Any:
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


def _call(node: fx.Node, args: list[Any], kwargs: dict[str, Any], b: Builder) -> Any:
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
            return b.move(first, lambda h: function(h, *others, **named))
    aten = isinstance(target, torch._ops.OpOverload)
    rule = (ATEN.get(name) if aten else None) or CALLS.get(name)
    known = aten or node.op == "call_method" or target in NAMES
    if rule is None or not known:
        remedy = f"{SMOOTH}{_until(b)}" if name.rstrip("_") in _SMOOTH_NAMES else f". {_until(b)}"
        b.refuse(f" is not supported{remedy}Supported: {SUPPORTED}")
    return rule(b, *args, **kwargs)


def _tensor(value: Any, b: Builder) -> Any:
    if isinstance(value, Feature):  # of view_as and expand_as: the size alone
        return b.numbered(value)
    if isinstance(value, tuple | list):
        return type(value)(_tensor(part, b) for part in value)
    return value.raw if isinstance(value, Source) else value


def _derived(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A tensor computed from parameters, read live; its shape or size is a plain number."""
    derived = Derived(function, tuple(args), kwargs)
    value = derived.raw
    return derived if isinstance(value, torch.Tensor) else value
