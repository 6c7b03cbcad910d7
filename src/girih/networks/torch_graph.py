"""The graph of a module by torch.fx, with what real decoders do before their first layer, and the parts of it.

A part is one of several outputs, or what goes into a layer.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.fx.node import Argument
from torch.fx.proxy import TraceError
from torch.nn.utils.parametrize import is_parametrized

from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks.layers import Abs, Maxout, StepLayer
from girih.networks.trace_builder import Feature

# What reads the size or the type of a tensor, and not its values.
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad")
FILLED = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
SIZES = frozenset(
    ("size", "sym_size", "dim", "ndimension", "numel", "sym_numel", "get_device", "element_size", *FILLED)
)
_LISTED = 12
_FACTORIES = ("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn")


class Unknown:
    """An `Unknown` is an operator that girih does not know, which is refused by its name where it is needed."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse."""
        raise UnsupportedLayerError(f"the operator '{self.__name__}' is not supported")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and of the wrappers that run it on several devices."""
    while True:
        if "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def eager() -> contextlib.AbstractContextManager[Any]:
    """Run what `torch.compile` was put on as it was written."""
    result: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return result


def one_input(net: nn.Module) -> None:
    """Check that a network can be called with z alone.

    Raises:
        UnsupportedLayerError: it takes no argument, or needs more than one.
    """
    parameters = list(inspect.signature(net.forward).parameters.values())
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in (*places, inspect.Parameter.VAR_POSITIONAL):
        raise UnsupportedLayerError(f"the forward of {type(net).__name__} takes no input; a generator takes z")
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters[1:] if p.default is inspect.Parameter.empty and p.kind not in several]
    if needed:
        raise UnsupportedLayerError(
            f"the network takes more than one input: {parameters[0].name} and {', '.join(needed)}; a generator takes z "
            "alone; wrap it in a module whose forward(z) calls it with the others fixed"
        )


class _Sized(fx.Proxy):
    """A value of the graph, of which sizes may be asked."""

    tracer: _Tracer

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    def __len__(self) -> int:
        if self.node.op == "placeholder":
            return self.tracer.rows
        value = self.tracer.value(self)
        return len(value)

    def __index__(self) -> int:
        return int(self.tracer.known(self))

    def __int__(self) -> int:
        return int(self.tracer.known(self))

    def __float__(self) -> float:
        return float(self.tracer.known(self))


class _Attribute(_Sized, fx.proxy.Attribute):
    """An attribute of a value: a size, or a method."""


@contextlib.contextmanager
def _factories(tracer: _Tracer) -> Iterator[None]:
    """Functions that make tensors from sizes are calls of the graph where a size is one of its values."""
    kept = {name: getattr(torch, name) for name in _FACTORIES}

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Argument, **named: Argument) -> object:
            found: list[object] = []
            fx.node.map_aggregate((args, named), lambda leaf: found.append(leaf))
            if any(isinstance(leaf, fx.Proxy) for leaf in found):
                return tracer.create_proxy("call_function", function, args, named)
            return function(*args, **named)

        return call

    for name, function in kept.items():
        setattr(torch, name, recorded(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch, name, function)


class _Tracer(fx.Tracer):
    """Looks into the user's own modules, but keeps torch's layers and ours whole.

    Sizes that the code decides by (`if z.dim() == 2`, `len(h.shape)`, `range(h.shape[1])`) are those of an example;
    what depends on the values of z is refused.
    """

    proxy_buffer_attributes = True  # else what is computed from a buffer would be a constant, and go stale

    def __init__(self, rows: int, example: Callable[[fx.Graph], torch.Tensor]) -> None:
        super().__init__()
        self.rows, self.example = rows, example
        self._values: dict[fx.Node, Any] = {}
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_parametrized(m):  # its class was made by torch, from that of the user
            return type(m).__mro__[1].__module__.startswith("torch.nn")
        whole = isinstance(m, Abs | Maxout | StepLayer | torch.jit.ScriptModule)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Z alone: other arguments keep their defaults."""
        z = self.create_proxy("placeholder", "z", (), {})
        if "forward" in vars(self.root):  # a forward of the object's own
            return (lambda root, z: root.forward(z)), [self.root, z]
        return root_fn, [self.root, z]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> object:
        if self._running:
            return forward(*args, **kwargs)
        inner = unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if getattr(m, "_compiled_call_impl", None) is not None:
            forward = m._call_impl
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, Any]) -> object:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.known(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        parts: Any = obj
        return iter([parts[i] for i in range(len(self.known(obj)))])

    def known(self, proxy: fx.Proxy) -> Any:
        """A value that does not depend on the values of z: a size, or several tensors as such."""
        value = self.value(proxy)
        if isinstance(value, torch.Tensor):
            raise TraceError("what it does depends on the values of z")
        return value

    def value(self, proxy: fx.Proxy) -> Any:
        """The value of a node of the graph for an example."""
        wanted = proxy.node  # that of an attribute is made when it is asked for
        self._running = True
        try:
            interpreter = fx.Interpreter(self.root, garbage_collect_values=False, graph=self.graph)
            interpreter.env = self._values
            with torch.no_grad():
                for node in self.graph.nodes:
                    if node in self._values:
                        continue
                    if node.op == "placeholder":
                        self._values[node] = self.example(self.graph)
                    else:
                        self._values[node] = interpreter.run_node(node)
        finally:
            self._running = False
        return self._values[wanted]


def graph_of(
    root: nn.Module, net: nn.Module, rows: int, example: Callable[[fx.Graph], torch.Tensor], supported: str
) -> fx.Graph:
    """The graph of a module.

    Args:
        root: the module, or one around it.
        net: the module, for its name.
        rows: the number of rows that sizes are read with, where the code decides by them.
        example: makes z of so many rows, from the graph so far.
        supported: what can be traced, for the error.

    Raises:
        UnsupportedLayerError: the forward is no fixed chain of layers and branches.
    """
    tracer = _Tracer(rows, example)
    try:
        with _factories(tracer):
            return tracer.trace(root)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UnsupportedLayerError(
            f"{type(net).__name__} could not be traced ({text}); its forward must be a fixed chain of layers and "
            f"branches, without control flow on values. Supported: {supported}"
        ) from error


def parts_of(value: object) -> dict[str, Any]:
    """The parts of an output by name: keys, fields, or places, joined by dots where they are nested.

    What is one thing alone has the name "".
    """
    children = _children(value)
    if children is None:
        return {"": value}
    found: dict[str, Any] = {}
    for name, child in children.items():
        for rest, part in parts_of(child).items():
            found[f"{name}.{rest}" if rest else name] = part
    return found


def _children(value: object) -> dict[str, Any] | None:
    if isinstance(value, fx.Node):  # a graph makes a named tuple or a data class by a call of it
        kind: Any = value.target
        if value.op != "call_function" or not isinstance(kind, type):
            return None
        names = getattr(kind, "_fields", None) or ([f.name for f in fields(kind)] if is_dataclass(kind) else None)
        return None if names is None else dict(zip(names, value.args, strict=False)) | dict(value.kwargs)
    if isinstance(value, Mapping):
        return {str(key): child for key, child in value.items()}
    if isinstance(value, Feature):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return {str(place): child for place, child in enumerate(value)}
    return None


def choose(parts: Mapping[str, Any], output: str | int | None, kind: type | tuple[type, ...]) -> tuple[str, str]:
    """The name of the part that is asked for, and what is left of the name: a part may be found to have parts itself.

    Args:
        parts: from `parts_of`.
        output: a name, a place, or `None` where there is but one part of the right kind.
        kind: what a tensor is here.

    Raises:
        UnsupportedLayerError: there are several, and none is asked for.
        ParameterError: there is none of that name.
    """
    tensors = [name for name, part in parts.items() if isinstance(part, kind)]
    if output is None:
        if len(tensors) == 1:
            return tensors[0], ""
        if not tensors:
            raise UnsupportedLayerError("the network returns nothing that depends on z; it must return its output")
        raise UnsupportedLayerError(
            f"the network returns {len(tensors)} tensors ({_listed(tensors)}), and a generator is one of them; say "
            "which: girih.trace(net, output=NAME), or its place as a number (--output on the command line)"
        )
    name = output if isinstance(output, str) else _name_at(parts, output)
    for known in sorted(parts, key=len, reverse=True):
        if known == "" or name == known or name.startswith(f"{known}."):
            return known, name[len(known) :].lstrip(".")
    raise ParameterError(f"the network has no output {output!r}; it has {_listed(list(parts))}")


def _name_at(parts: Mapping[str, Any], place: int) -> str:
    if isinstance(place, bool) or not isinstance(place, int):
        raise ParameterError(f"output must be a name or a place, got {type(place).__name__}")
    tops = list(dict.fromkeys(name.split(".")[0] for name in parts))
    if tops == [""]:
        return str(place)
    if not -len(tops) <= place < len(tops):
        raise ParameterError(f"the network has no output {place}; it has {_listed(list(parts))}")
    return tops[place]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def owners(node: fx.Node) -> list[str]:
    """The names of the modules that a node is inside of, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [plain(str(entry[0] if isinstance(entry, tuple) else entry)) for entry in stack.values()]


def plain(path: str) -> str:
    """The name of a module without the wrappers of `torch.compile`."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def name_of(node: fx.Node) -> str:
    """The name of a node as `until` takes it: the layer's, or the innermost module's and its own."""
    if node.op == "call_module":
        return plain(str(node.target))
    inside = owners(node)
    return f"{inside[-1]}.{node.name}" if inside and inside[-1] else node.name


def call_name(node: fx.Node) -> str:
    """The name of the function, method or operator that a node calls."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def dependent(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values depend on z, not on its size alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        name = call_name(node) if node.op in ("call_function", "call_method") else ""
        sizes = name in SIZES or (name == "getattr" and node.args[1] in ATTRIBUTES)
        if node.op == "placeholder" or (not sizes and any(source in found for source in node.all_input_nodes)):
            found.add(node)
    return found


def before(graph: fx.Graph, until: str) -> fx.Node:
    """The node whose value goes into the module or node of that name.

    Raises:
        ParameterError: there is none, or it takes several things that depend on z.
    """
    moving = dependent(graph)
    names: list[str] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        inside = _inside(node, until)
        names += [name_of(node), *owners(node)]
        outside = [source for source in node.all_input_nodes if source in moving and not _inside(source, until)]
        if not inside or not outside:
            continue
        if len(outside) > 1:
            taken = _listed([source.name for source in outside])
            raise ParameterError(
                f"until={until!r} takes {len(outside)} tensors that depend on z ({taken}); name "
                "what comes after one of them"
            )
        result: fx.Node = outside[0]
        return result
    known = [name for name in dict.fromkeys(names) if name]
    near = difflib.get_close_matches(until, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the last are {_listed(known[-_LISTED:])}"
    raise ParameterError(f"the network has no module or call {until!r} that z reaches; {hint}")


def _inside(node: fx.Node, until: str) -> bool:
    return until in (node.name, name_of(node)) or until in owners(node)


def cut(graph: fx.Graph, last: fx.Node) -> fx.Graph:
    """The graph up to and with a node, whose value is its output."""
    short = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = short.node_copy(node, lambda source: copies[source])
        if node is last:
            break
    short.output(copies[last])
    return short
