"""Which tensor of a network is traced: one of several outputs, or what goes into a layer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import fx

from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks.builder import Feature

# What reads the size or the type of a tensor, and not its values.
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad")
FILLED = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
SIZES = frozenset(
    ("size", "sym_size", "dim", "ndimension", "numel", "sym_numel", "get_device", "element_size", *FILLED)
)
_LISTED = 12


def parts_of(value: Any) -> dict[str, Any]:
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


def _children(value: Any) -> dict[str, Any] | None:
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
        return outside[0]
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
