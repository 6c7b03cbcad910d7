"""The shape of one latent, read from the first layer that tells it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks.layers import StepLayer
from girih.networks.torch_graph import dependent

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_CONVOLVE = {F.conv1d: (1, 1), F.conv2d: (1, 2), F.conv_transpose1d: (0, 1), F.conv_transpose2d: (0, 2)}
_RESHAPES = ("view", "reshape", "unflatten")


def checked_sizes(
    sizes: Sequence[int | None], what: str = "the exported network"
) -> tuple[tuple[int, ...], int | None]:
    """The shape of one latent and the number of rows, where that is fixed, of the input that a file says it takes."""
    shape = tuple(n for n in sizes[1:] if n is not None)
    if not shape or len(shape) < len(sizes) - 1 or min(shape) < 1 or (sizes[0] is not None and sizes[0] < 1):
        shown = ", ".join("N" if n is None else str(n) for n in sizes)
        raise UnsupportedLayerError(
            f"{what} takes an input of shape ({shown}); it must be (N, S), or (N, C, 1, 1), with sizes that are fixed "
            "but for the number of rows"
        )
    return shape, sizes[0]


def given_shape(latent_dim: int | tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape of one latent, where `latent_dim` is given: S, or a shape as (100, 1, 1)."""
    if latent_dim is None:
        return None
    shape = tuple(latent_dim) if isinstance(latent_dim, tuple | list | torch.Size) else (latent_dim,)
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise ParameterError(f"latent_dim must be a whole number, or the shape of one latent; got {latent_dim!r}")
    if min(shape) < 1:
        raise ParameterError(f"latent_dim must be 1 or more, got {latent_dim}")
    return shape


def latent_shape(graph: fx.Graph, root: nn.Module, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of one latent: (S,), or (C, 1, 1) where the first layer is a convolution that takes z itself.

    Args:
        graph: of the network, complete or not.
        root: the module that it reads from.
        given: what the user said: the shape, or (S,).

    Raises:
        UnsupportedLayerError: no layer tells it.
    """
    if given is not None and len(given) > 1:
        return given
    latent_dim = None if given is None else given[0]
    moving = dependent(graph)
    whole = {node for node in graph.nodes if node.op == "placeholder"}  # of which the shape is that of z
    joined = 0  # constants that were appended to z
    for node in graph.nodes:
        source = next((n for n in node.all_input_nodes if n in moving), None)
        if source is None or node.op == "output":
            continue
        told = _told(node, root)
        if told is not None:
            size, dimensions = told
            size -= joined
            if dimensions and source in whole:
                # beyond one number a channel the picture is taken for a square
                rest = 1 if latent_dim is None or latent_dim % size else latent_dim // size
                side = round(rest ** (1 / dimensions))
                return (size, *[side] * dimensions) if side**dimensions == rest else (size * rest,)
            if latent_dim is not None or size >= 1:
                return (latent_dim or size,)
            break
        joined += _appended(node, root, moving)
        if source in whole and _keeps_shape(node, root):
            whole.add(node)
    if latent_dim is not None:
        return (latent_dim,)
    raise UnsupportedLayerError(
        "the network has no Linear layer or convolution that tells its latent dimension; pass latent_dim= to "
        "girih.trace"
    )


def guessed_shape(graph: fx.Graph, root: nn.Module) -> tuple[int, ...]:
    """The shape of one latent while the graph is made: that of the first layer that is there."""
    try:
        return latent_shape(graph, root, None)
    except UnsupportedLayerError:
        for module in root.modules():
            if isinstance(module, nn.Linear):
                return (module.in_features,)
            if isinstance(module, _CONVOLUTIONS):
                return (module.in_channels,)
        raise


def _told(node: fx.Node, root: nn.Module) -> tuple[int, int] | None:
    """The number of features that a node takes, and of the dimensions after them; `None` where it does not tell."""
    if node.op == "call_module":
        return _told_by_layer(root.get_submodule(str(node.target)))
    if node.op == "call_method" and node.target in _RESHAPES:
        return _told_by_sizes(node.args[2:] if node.target != "unflatten" else node.args[2:3])
    target: Any = node.target
    arguments = [*node.args, *[node.kwargs[key] for key in ("weight", "mat2", "other") if key in node.kwargs]]
    if target is F.linear and len(arguments) > 1:
        return _size(arguments[1], root, -1)
    if target in (torch.matmul, torch.mm, operator.matmul, "matmul", "mm") and len(arguments) > 1:
        return _size(arguments[1], root, -2)
    if target in (torch.addmm, "addmm") and len(arguments) > 2:
        return _size(arguments[2], root, -2)
    if target in _CONVOLVE and len(arguments) > 1:
        dim, dimensions = _CONVOLVE[target]
        size = _size(arguments[1], root, dim)
        groups: Any = node.kwargs.get("groups", 1) if dim else 1
        return None if size is None else (size[0] * int(groups), dimensions)
    if target is torch.reshape and len(arguments) > 1 and isinstance(arguments[1], tuple | list):
        return _told_by_sizes(arguments[1][1:])
    return None


def _told_by_layer(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, 0
    if isinstance(module, _CONVOLUTIONS):
        return module.in_channels, len(module.kernel_size)
    if isinstance(module, StepLayer):
        return None if module.takes is None else (module.takes, 0)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.num_features, 2 if isinstance(module, nn.BatchNorm2d) else 0
    if isinstance(module, nn.Unflatten) and isinstance(module.unflattened_size, tuple | list):
        return _told_by_sizes([[n if isinstance(n, int) else n[1] for n in module.unflattened_size]])
    return None


def _told_by_sizes(sizes: Sequence[object]) -> tuple[int, int] | None:
    numbers = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else list(sizes)
    known = [n for n in numbers if isinstance(n, int) and n > 0]
    return (math.prod(known), 0) if known and len(known) == len(numbers) else None


def _size(node: object, root: nn.Module, dim: int) -> tuple[int, int] | None:
    value = _constant(node, root)
    return (int(value.shape[dim]), 0) if isinstance(value, torch.Tensor) and value.ndim >= 2 else None


def _constant(node: object, root: nn.Module) -> object:
    """The value of what depends on the number of rows of z at most; `None` where it cannot be had."""
    if not isinstance(node, fx.Node):
        return node
    graph, needed, waiting = fx.Graph(), {node}, [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                waiting.append(source)
    copies: dict[fx.Node, fx.Node] = {}
    for n in node.graph.nodes:
        if n in needed:
            copies[n] = graph.node_copy(n, lambda source: copies[source])
    graph.output(copies[node])
    with torch.no_grad():
        try:
            return fx.Interpreter(root, graph=graph).run(
                *[torch.zeros(2, 1)] * any(n.op == "placeholder" for n in needed)
            )
        except (RuntimeError, TypeError, ValueError):
            return None  # the walk says what is wrong with it


def _appended(node: fx.Node, root: nn.Module, moving: set[fx.Node]) -> int:
    """The number of constants that a concatenation puts beside z."""
    if node.target not in (torch.cat, torch.concat, torch.concatenate) or not node.args:
        return 0
    parts: Any = node.args[0]
    constants = (
        [_constant(part, root) for part in parts if part not in moving] if isinstance(parts, tuple | list) else []
    )
    return sum(int(value.shape[-1]) for value in constants if isinstance(value, torch.Tensor) and value.ndim)


def _keeps_shape(node: fx.Node, root: nn.Module) -> bool:
    """Tells whether the value of a node has the shape of what it takes, as far as one can see."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return not isinstance(module, nn.Flatten | nn.Unflatten | nn.Linear)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in ("mul", "add", "sub", "div", "truediv", "to", "float", "double", "contiguous", "dropout", "relu")
