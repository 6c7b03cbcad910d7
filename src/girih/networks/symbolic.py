"""The graph of a module: torch.fx, with the things that real decoders do before their first layer."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn.utils.parametrize import is_parametrized

from girih.errors import UnsupportedLayerError
from girih.networks.activations import Abs, Maxout

_FACTORIES = ("zeros", "ones", "full", "empty", "arange", "linspace", "eye", "rand", "randn")


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
    return torch.compiler.set_stance("force_eager")


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
        def call(*args: Any, **kwargs: Any) -> Any:
            found: list[Any] = []
            fx.node.map_aggregate((args, kwargs), lambda leaf: found.append(leaf))
            if any(isinstance(leaf, fx.Proxy) for leaf in found):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

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
        whole = isinstance(m, Abs | Maxout | torch.jit.ScriptModule)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Z alone: other arguments keep their defaults."""
        z = self.create_proxy("placeholder", "z", (), {})
        if "forward" in vars(self.root):  # a forward of the object's own
            return (lambda root, z: root.forward(z)), [self.root, z]
        return root_fn, [self.root, z]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        inner = unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if getattr(m, "_compiled_call_impl", None) is not None:
            forward = m._call_impl
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
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
        """What a node of the graph is for an example."""
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
