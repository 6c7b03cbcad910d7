"""From a torch module to a trace, and to a new one where the module is no longer built as it was."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from girih.errors import ParameterError, ShapeError, UnsupportedLayerError
from girih.networks.exported_program import Exported, exported_file, exported_program
from girih.networks.graph_walk import SUPPORTED, Walker, final_smooth
from girih.networks.latent_shape import given_shape, guessed_shape, latent_shape
from girih.networks.layers import Abs, Maxout, StepNetwork
from girih.networks.live_tensors import check_hooks, check_tensors, lives
from girih.networks.torch_graph import before, choose, cut, eager, graph_of, one_input, parts_of, unwrapped
from girih.networks.trace import Trace
from girih.networks.trace_builder import Builder, Feature
from girih.networks.trace_steps import AffineStep, KinkStep, MaxStep

_PLAIN = (bool, int, float, complex, str, tuple)  # what is compared by value, of the attributes of a module

# The traced map must equal the module to this, relative to the largest output.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
_COARSE = 5e-2
_CHECKED_ROWS = 5
_ROWS = 2  # that sizes are read with, unless an exported program has others


def trace(
    net: nn.Module | Trace | torch.export.ExportedProgram | str | os.PathLike[str],
    until: str | None = None,
    output: str | int | None = None,
    latent_dim: int | tuple[int, ...] | None = None,
) -> Trace:
    """Read a generator as affine maps, activations with kinks, and maxima.

    Args:
        net: a feed-forward module from `(N, S)` to `(N, ...)` made of linear, convolutional, pooling, upsampling and
            reshaping layers, batch normalisation and dropout in eval mode, sums and concatenations of branches, and
            piecewise-linear activations, as modules or as functions; or a program of `torch.export`, or the path of
            its `.pt2` file or of an `.onnx` file (extra `onnx`), of which no code is run. Arguments of its forward
            other than the first keep their defaults. An output of any shape is flattened to D numbers.
        until: the name of a module or call to stop before: g is what goes into it. For a head that is not piecewise
            linear (Sigmoid, Tanh, Softmax).
        output: which tensor of a network that returns several: a key, the name of a field, or a place; of nested ones
            the names joined by dots.
        latent_dim: S, where the first layer does not tell it; or the shape of one latent, as `(100, 1, 1)`.

    Raises:
        UnsupportedLayerError: names the layer, its type and what to use instead.
        ParameterError: there is no module `until` or output `output`.
        ModelFileError: a file that is damaged.

    Example:
        >>> import girih, torch
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2), torch.nn.Sigmoid()
        ... )
        >>> t = girih.trace(net, until="3")
        >>> t.latent_dim, t.output_dim, t.hidden_units
        (1, 2, 4)
    """
    if isinstance(net, Trace):
        return net
    if isinstance(until, int):  # the second argument once was latent_dim
        warnings.warn("girih.trace(net, S) is now girih.trace(net, latent_dim=S)", DeprecationWarning, stacklevel=2)
        until, latent_dim = None, until
    shape = given_shape(latent_dim)
    if isinstance(net, str | os.PathLike):
        return _trace_exported(exported_file(net), until, output, f"the network in {Path(net).name}")
    if isinstance(net, torch.export.ExportedProgram):
        return _trace_exported(exported_program(net), until, output, "the exported network")
    if not isinstance(net, nn.Module):
        raise UnsupportedLayerError(
            f"expected a torch.nn.Module, got {type(net).__name__}; build one with girih.mlp or torch.nn.Sequential"
        )
    net = unwrapped(net)
    if shape is None and isinstance(net, StepNetwork):
        shape = (net.latent_dim,)
    return _trace_module(net, until, output, shape)


def _trace_exported(program: Exported, until: str | None, output: str | int | None, name: str) -> Trace:
    batch = _ROWS if program.batch is None else program.batch
    builder = Builder(program.shape, batch, _example(program.root).device)
    result, part = _walk(program.graph, program.root, program.outputs, builder, until, output)
    rows = _CHECKED_ROWS if program.batch is None else program.batch
    _check(
        result,
        _part(program.graph, program.root, program.outputs, until, part),
        program.root,
        program.shape,
        rows,
        name,
    )
    return result


def _trace_module(net: nn.Module, until: str | None, output: str | int | None, shape: tuple[int, ...] | None) -> Trace:
    if isinstance(net, torch.jit.ScriptModule):
        raise UnsupportedLayerError(
            f"{type(net).__name__} was compiled by torch.jit; pass the module that it was made from, or a program of "
            "torch.export"
        )
    one_input(net)
    check_tensors(net)
    root = _root(net)
    kind = _example(root)
    with eager():
        graph, full = _module_graph(net, root, shape, _ROWS)
        parts = _returned(graph)
        result, part = _walk(graph, root, parts, Builder(full, _ROWS, kind.device), until, output)
        if until is None:
            run: Callable[[Tensor], Tensor] = partial(_output_part, net, part)
        else:  # made again, since sizes in it may be those of the number of rows
            graph, _ = _module_graph(net, root, shape, _CHECKED_ROWS)
            run = _part(graph, root, _returned(graph), until, part)
        _check(result, run, root, full, _CHECKED_ROWS, type(net).__name__)
        sources = [(s.module, s.name, step.path) for step in result.steps for s in lives(step.sources)]
        check_hooks(net, sources, torch.ones(_CHECKED_ROWS, *full, dtype=kind.dtype, device=kind.device))
    return result


def _root(net: nn.Module) -> nn.Module:
    return nn.Sequential(net) if isinstance(net, nn.Linear | Abs | Maxout) else net  # fx would trace into these


def _module_graph(
    net: nn.Module, root: nn.Module, shape: tuple[int, ...] | None, rows: int
) -> tuple[fx.Graph, tuple[int, ...]]:
    """The graph of a module for so many rows, and the shape of a batch of its latents."""
    kind = _example(root)

    def example(graph: fx.Graph) -> Tensor:
        guess = guessed_shape(graph, root) if shape is None else shape
        return torch.zeros(rows, *guess, dtype=kind.dtype, device=kind.device)

    graph = graph_of(root, net, rows, example, SUPPORTED)
    return graph, latent_shape(graph, root, shape)


def smooth_head(
    net: nn.Module | Trace | torch.export.ExportedProgram | str | os.PathLike[str],
    output: str | int | None = None,
    latent_dim: int | tuple[int, ...] | None = None,
) -> tuple[str, str] | None:
    """Find the smooth function that a generator ends with, such as a Sigmoid, Tanh or Softmax.

    What goes into it may be piecewise affine where what comes out is not: `girih.trace(net, until=name)`.

    Args:
        net: as for `girih.trace`.
        output: as for `girih.trace`.
        latent_dim: as for `girih.trace`.

    Returns:
        Its name, as `until` takes it, and its kind; `None` where the generator does not end with one.

    Raises:
        UnsupportedLayerError, ParameterError, ModelFileError: as `girih.trace`.

    Example:
        >>> import torch
        >>> from girih.networks import smooth_head
        >>> smooth_head(torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Sigmoid(), torch.nn.Flatten()))
        ('1', 'Sigmoid')
    """
    if isinstance(net, Trace):
        return None
    if isinstance(net, nn.Module):
        net, shape = unwrapped(net), given_shape(latent_dim)
        root = _root(net)
        with eager():
            graph, _ = _module_graph(net, root, shape, _ROWS)
        parts = _returned(graph)
    else:
        program = exported_program(net) if isinstance(net, torch.export.ExportedProgram) else exported_file(net)
        graph, root, parts = program.graph, program.root, program.outputs
    name, _ = choose(parts, output, fx.Node)
    return final_smooth(parts[name], graph, root)


def _walk(
    graph: fx.Graph,
    root: nn.Module,
    parts: dict[str, Any],
    builder: Builder,
    until: str | None,
    output: str | int | None,
) -> tuple[Trace, str]:
    """The trace of one output, or of what goes into `until`, and the name of that output."""
    name, rest = choose(parts, output, fx.Node) if output is not None or until is None else ("", "")
    walker = Walker(graph, root, builder)
    value = walker.value(parts[name] if until is None else before(graph, until))
    if isinstance(value, tuple | list) and until is None:
        inner = parts_of(value)
        below, rest = choose(inner, rest or None, Feature)
        value, name = inner[below], f"{name}.{below}".strip(".")
    if rest not in ("", "0"):
        raise ParameterError(f"the network has no output {output!r}; leave output out, since it returns one tensor")
    if not isinstance(value, Feature):
        raise UnsupportedLayerError(f"the output {name!r} of the network does not depend on z".replace(" ''", ""))
    steps, place = builder.finish(value.step)
    return Trace(steps, place, value.shape), name


def _returned(graph: fx.Graph) -> dict[str, Any]:
    """The outputs of a graph, by name."""
    (last,) = (node for node in graph.nodes if node.op == "output")
    return parts_of(last.args[0])


def _part(
    graph: fx.Graph, root: nn.Module, parts: dict[str, Any], until: str | None, name: str
) -> Callable[[Tensor], Tensor]:
    """Computes with the module itself the part of the graph that was traced."""
    if until is not None:
        name, node = "", before(graph, until)
    else:
        known, rest = choose(parts, name, fx.Node) if name else (next(iter(parts)), "")
        name, node = rest, parts[known]
    interpreter = fx.Interpreter(root, graph=cut(graph, node))
    empty = [None] * (sum(n.op == "placeholder" for n in interpreter.graph.nodes) - 1)
    return lambda z: _named_part(interpreter.run(z, *empty), name)


def _output_part(net: nn.Module, name: str, z: Tensor) -> Tensor:
    return _named_part(net(z), name)


def _named_part(value: object, name: str) -> Tensor:
    part: Tensor = parts_of(value)[name]
    return part


def _example(root: nn.Module) -> Tensor:
    """A tensor of the type and on the device of a network."""
    found = next((p for p in (*root.parameters(), *root.buffers()) if p.is_floating_point()), None)
    return torch.zeros((), dtype=torch.float64) if found is None else found


@torch.no_grad()
def _check(
    trace: Trace, run: Callable[[Tensor], Tensor], root: nn.Module, shape: tuple[int, ...], rows: int, name: str
) -> None:
    """Compare the traced map with the module on random latents."""
    example = _example(root)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, trace.latent_dim, dtype=torch.float64, generator=generator).to(example.device, example.dtype)
    try:
        expected = run(z.reshape(rows, *shape))
    except Exception as error:
        raise UnsupportedLayerError(
            f"{name} fails on a batch of {rows} latents of shape {shape}: {error}; where its first layer does not tell "
            "the latent dimension, pass latent_dim= to girih.trace"
        ) from error
    _check_reads(trace)
    values = trace.values(z.to(torch.float64))
    expected, found = expected.to(torch.float64).reshape(rows, -1), values[trace.output]
    if not torch.isfinite(expected).all() or not torch.isfinite(found).all():
        return  # overflow in the parameters is reported where they are used
    gap = (expected - found).abs() if expected.shape == found.shape else expected.new_tensor(torch.inf)
    tolerance = _TOLERANCE.get(example.dtype, _COARSE)
    bound = torch.maximum(tolerance * expected.abs().max(), 8 * torch.finfo(example.dtype).eps * _size(trace, values))
    if (gap > bound).any():
        raise UnsupportedLayerError(
            f"the traced map of {name} differs from the module by {float(gap.max()):.1e}; its forward must not depend "
            "on the batch size, on random numbers or on the type of numbers, nor change values in place"
        )


def _check_reads(trace: Trace) -> None:
    """Refuse weights that are random or change when they are read."""
    for step in trace.steps:
        for source in step.sources:
            first, second = source.raw, source.raw
            if first is not second and not torch.equal(first, second) and torch.isfinite(first).all():
                raise UnsupportedLayerError(
                    f"a weight of layer '{step.path}' changes each time it is read; a generator has the same weights "
                    "at each call: call net.eval() first, or make the weight permanent"
                )


def _size(trace: Trace, values: list[Tensor]) -> Tensor:
    """The size of the terms that the outputs are sums of, to judge their rounding errors by."""
    sizes = [values[0].abs()]
    for step in trace.steps[1:]:
        taken = [sizes[index] for index in step.inputs]
        if isinstance(step, AffineStep):
            sizes.append(step.magnitude(*taken) + step.bias.abs())
        elif isinstance(step, KinkStep):
            code = step.code(values[step.inputs[0]])
            sizes.append(taken[0] * step.slopes(code).abs() + step.offsets(code).abs())
        elif isinstance(step, MaxStep):
            sizes.append(step.apply(taken[0]))
    return sizes[trace.output]


class Followed:
    """The trace of a module, made anew where the module is no longer built as it was.

    What is compared is the modules in it, their attributes (but for tensors, whose values a trace reads each time it
    is asked), their hooks, and the shapes and types of their parameters. What is not noticed: a change inside a list, a
    dict or an object that a module holds, or in the code of its `forward`.

    Args:
        net: any module that `girih.trace` supports.
    """

    def __init__(self, net: nn.Module | Trace) -> None:
        self.net = net
        self._trace: Trace | None = None
        self._parts: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the module alone, and trace it when they are asked."""
        return {"net": self.net, "_trace": None, "_parts": []}

    @property
    def trace(self) -> Trace:
        """The trace of the module as it is built now.

        Raises:
            ShapeError: it has another latent or data dimension than at first.
            UnsupportedLayerError: as `girih.trace`.
        """
        if isinstance(self.net, Trace):
            return self.net
        if self._trace is None or not _alike(_parts(self.net), self._parts):
            old, new = self._trace, trace(self.net)
            if old is not None and (old.latent_dim, old.output_dim) != (new.latent_dim, new.output_dim):
                raise ShapeError(
                    f"the network was changed from S = {old.latent_dim}, D = {old.output_dim} to S = {new.latent_dim}, "
                    f"D = {new.output_dim}, which this model was not made for; make a new one of it"
                )
            self._trace, self._parts = new, _parts(self.net)
        return self._trace


def _parts(net: nn.Module) -> list[Any]:
    """The parts of a module, flat; modules and functions are compared as objects."""
    found: list[Any] = []
    for module in net.modules():
        found += (module, type(module), *module._forward_pre_hooks.values(), *module._forward_hooks.values())
        found += [value for value in vars(module).values() if not isinstance(value, Tensor)]
        for group in (module._parameters, module._buffers):
            for name, tensor in group.items():
                found += (name, None) if tensor is None else (name, tensor.shape, tensor.dtype, tensor.device.type)
    return found


def _alike(new: list[Any], old: list[Any]) -> bool:
    return len(new) == len(old) and all(
        a is b or (isinstance(a, _PLAIN) and type(a) is type(b) and a == b) for a, b in zip(new, old, strict=True)
    )
