"""From a torch module to a trace."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, fx, nn

from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks.activations import Abs, Maxout
from girih.networks.builder import Builder
from girih.networks.exported import load_exported, program_input
from girih.networks.steps import AffineStep, KinkStep, MaxStep
from girih.networks.trace import Trace
from girih.networks.walk import SUPPORTED, walk

# The traced map must equal the module to this, relative to the largest output.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
_COARSE = 5e-2
_CHECKED_ROWS = 5


def trace(
    net: nn.Module | Trace | torch.export.ExportedProgram | str | os.PathLike[str], latent_dim: int | None = None
) -> Trace:
    """Read a generator as affine maps, activations with kinks, and maxima.

    Args:
        net: a feed-forward module from `(N, S)` to `(N, ...)` made of linear, convolutional, pooling, upsampling and
            reshaping layers, batch normalisation and dropout in eval mode, sums and concatenations of branches, and
            piecewise-linear activations, as modules or as functions; or a program of `torch.export`, or the path of
            its `.pt2` file. An output of any shape is flattened to D numbers.
        latent_dim: S, where the first layer does not tell it.

    Raises:
        UnsupportedLayerError: names the layer, its type and what to use instead.

    Example:
        >>> import girih, torch
        >>> t = girih.trace(torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)))
        >>> t.latent_dim, t.output_dim, t.hidden_units
        (1, 2, 4)
    """
    if isinstance(net, Trace):
        return net
    if isinstance(net, str | os.PathLike):
        net = load_exported(net)
    batch = None
    root: nn.Module
    if isinstance(net, torch.export.ExportedProgram):
        program: Any = net.module()
        latent_dim, batch = program_input(program)
        graph, root, net = program.graph, program, program
    elif isinstance(net, nn.Module):
        root = nn.Sequential(net) if isinstance(net, nn.Linear | Abs | Maxout) else net  # fx would trace into these
        graph = _graph(root, net)
    else:
        raise UnsupportedLayerError(
            f"expected a torch.nn.Module, got {type(net).__name__}; build one with girih.mlp or torch.nn.Sequential"
        )
    if latent_dim is None:
        latent_dim = _latent_dim(graph, root)
    elif latent_dim < 1:
        raise ParameterError(f"latent_dim must be 1 or more, got {latent_dim}")
    example = next((p for p in (*root.parameters(), *root.buffers()) if p.is_floating_point()), None)
    example = torch.zeros((), dtype=torch.float64) if example is None else example
    builder = Builder(latent_dim, 2 if batch is None else batch, example.device)
    result = Trace(*walk(graph, root, builder))
    _check(result, net if isinstance(net, nn.Module) else root, example, _CHECKED_ROWS if batch is None else batch)
    return result


class _LeafTracer(fx.Tracer):
    """Looks into the user's own modules, but keeps torch's layers and ours whole."""

    proxy_buffer_attributes = True  # else what is computed from a buffer would be a constant, and go stale

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Abs | Maxout) or super().is_leaf_module(m, module_qualified_name)


def _graph(root: nn.Module, net: nn.Module) -> fx.Graph:
    try:
        return _LeafTracer().trace(root)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(net).__name__} could not be traced ({error}); its forward must be a fixed chain of layers and "
            f"branches, without control flow on values. Supported: {SUPPORTED}"
        ) from error


def _latent_dim(graph: fx.Graph, root: nn.Module) -> int:
    """S from the first layer that tells it."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            if isinstance(module, nn.Linear):
                return module.in_features
            if isinstance(module, nn.BatchNorm1d):
                return module.num_features
            if isinstance(module, nn.Unflatten) and isinstance(module.unflattened_size, tuple | list):
                sizes = [n if isinstance(n, int) else n[1] for n in module.unflattened_size]
                return int(torch.tensor(sizes).prod())
        elif node.target is nn.functional.linear and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
            owner, _, name = str(node.args[1].target).rpartition(".")
            if node.args[1].op == "get_attr":
                return int(getattr(root.get_submodule(owner), name).shape[1])
    raise UnsupportedLayerError(
        "the network has no Linear layer, so its latent dimension is unknown; pass latent_dim= to girih.trace"
    )


@torch.no_grad()
def _check(trace: Trace, net: nn.Module, example: Tensor, rows: int) -> None:
    """Compare the traced map with the module on random latents."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, trace.latent_dim, dtype=torch.float64, generator=generator).to(example.device, example.dtype)
    try:
        expected: Any = net(z)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(net).__name__} fails on a batch of {rows} latents of dimension {trace.latent_dim}: {error}; where "
            "its first layer does not tell the latent dimension, pass latent_dim= to girih.trace"
        ) from error
    values = trace.values(z.to(torch.float64))
    expected, found = expected.to(torch.float64).reshape(rows, -1), values[trace.output]
    if not torch.isfinite(expected).all() or not torch.isfinite(found).all():
        return  # overflow in the parameters is reported where they are used
    gap = (expected - found).abs() if expected.shape == found.shape else expected.new_tensor(torch.inf)
    tolerance = _TOLERANCE.get(example.dtype, _COARSE)
    bound = torch.maximum(tolerance * expected.abs().max(), 8 * torch.finfo(example.dtype).eps * _size(trace, values))
    if (gap > bound).any():
        raise UnsupportedLayerError(
            f"the traced map of {type(net).__name__} differs from the module by {float(gap.max()):.1e}; its forward "
            "must not depend on the batch size, on random numbers or on the type of numbers, nor change values in place"
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
