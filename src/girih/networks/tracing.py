"""From a torch module to a chain of stages."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks.activations import Abs
from girih.networks.stages import Affine, PiecewiseLinear, Stage
from girih.networks.trace import Trace

SUPPORTED = "Linear, ReLU, LeakyReLU, PReLU, girih.networks.Abs, Identity, Dropout in eval mode, and Sequential"


def trace(net: nn.Module | Trace) -> Trace:
    """Read a generator as affine and piecewise-linear stages.

    Args:
        net: a feed-forward module from `(N, S)` to `(N, D)` made of Linear, ReLU, LeakyReLU, PReLU and
            absolute-value layers (as modules or as functions), Identity, and Dropout in eval mode.

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
    if not isinstance(net, nn.Module):
        raise UnsupportedLayerError(
            f"expected a torch.nn.Module, got {type(net).__name__}; build one with girih.mlp or torch.nn.Sequential"
        )
    stages = _stages(net)
    affine = [stage for stage in stages if isinstance(stage, Affine)]
    if not affine:
        raise UnsupportedLayerError("the network has no Linear layer, so its latent dimension is unknown; add one")
    for stage in stages[: stages.index(affine[0])]:
        if isinstance(stage, PiecewiseLinear):
            stage.units = affine[0].in_features
    _check_sizes(stages)
    return Trace(stages, affine[0].in_features, affine[-1].out_features)


class _LeafTracer(fx.Tracer):
    """Looks into the user's own modules, but keeps torch's layers and ours whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Abs) or super().is_leaf_module(m, module_qualified_name)


def _stages(net: nn.Module) -> list[Stage]:
    if isinstance(net, nn.Linear | Abs):  # a lone layer: fx would trace into it
        net = nn.Sequential(net)
    try:
        graph = _LeafTracer().trace(net)
    except Exception as error:
        raise UnsupportedLayerError(
            f"{type(net).__name__} could not be traced ({error}); its forward must be a fixed chain of layers, "
            f"without control flow on values. Supported: {SUPPORTED}"
        ) from error
    modules = dict(net.named_modules())
    stages: list[Stage] = []
    previous: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if previous is not None:
                raise UnsupportedLayerError("the network takes more than one input; a generator takes z alone")
            previous = node
            continue
        if node.op == "output":
            if node.args[0] is not previous:
                raise UnsupportedLayerError("the network must return the output of its last layer, and nothing else")
            break
        if node.op == "get_attr":
            raise UnsupportedLayerError(
                f"the network uses the tensor '{node.target}' directly; wrap it in a Linear layer. "
                f"Supported: {SUPPORTED}"
            )
        inputs = node.all_input_nodes
        if inputs != [previous]:
            raise UnsupportedLayerError(
                f"'{node.name}' joins or branches the chain of layers, which is not supported. Supported: {SUPPORTED}"
            )
        stages.extend(_stage(node, modules, stages))
        previous = node
    return stages


def _units(stages: list[Stage]) -> int:
    for stage in reversed(stages):
        return stage.out_features if isinstance(stage, Affine) else stage.units
    return 0  # set by trace() once the first Linear is known


def _stage(node: fx.Node, modules: dict[str, nn.Module], stages: list[Stage]) -> list[Stage]:
    if node.op == "call_module":
        path = str(node.target)
        module = modules[path]
        if isinstance(module, nn.Linear):
            return [Affine(module, path)]
        if isinstance(module, nn.Identity) or (
            isinstance(module, nn.modules.dropout._DropoutNd) and not module.training
        ):
            return []
        slope = _module_slope(module)
        if slope is not None:
            return [PiecewiseLinear(slope, path, _units(stages))]
        if isinstance(module, nn.modules.dropout._DropoutNd):
            raise UnsupportedLayerError(
                f"layer '{path}' is {type(module).__name__} in training mode; call net.eval() first"
            )
        raise UnsupportedLayerError(
            f"layer '{path}' is {type(module).__name__}, which is not supported; "
            f"{_remedy(module)}Supported: {SUPPORTED}"
        )
    slope = _call_slope(node)
    if slope is None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
        raise UnsupportedLayerError(f"the call '{name}' (node '{node.name}') is not supported. Supported: {SUPPORTED}")
    return [PiecewiseLinear(slope, node.name, _units(stages))]


def _module_slope(module: nn.Module) -> float | nn.PReLU | None:
    if isinstance(module, nn.ReLU):
        return 0.0
    if isinstance(module, nn.LeakyReLU):
        return float(module.negative_slope)
    if isinstance(module, nn.PReLU):
        return module
    if isinstance(module, Abs):
        return -1.0
    return None


def _call_slope(node: fx.Node) -> float | None:
    target: Any = node.target
    if target in ("relu", "relu_", torch.relu, torch.relu_, nn.functional.relu):
        return 0.0
    if target in ("abs", "absolute", torch.abs, torch.absolute, operator.abs):
        return -1.0
    if target is nn.functional.leaky_relu:
        return float(node.kwargs.get("negative_slope", node.args[1] if len(node.args) > 1 else 0.01))  # type: ignore[arg-type]
    return None


_SMOOTH = (nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Mish, nn.Softmax)


def _remedy(module: nn.Module) -> str:
    if isinstance(module, _SMOOTH):
        return "a smooth activation has no cells; use a piecewise-linear one (ReLU, LeakyReLU, Abs). "
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "fold it into the Linear layer before it (torch.nn.utils.fusion.fuse_linear_bn_eval). "
    if isinstance(module, nn.modules.conv._ConvNd):
        return "write the convolution as a Linear layer. "
    return ""


def _check_sizes(stages: list[Stage]) -> None:
    width: int | None = None
    for stage in stages:
        if isinstance(stage, PiecewiseLinear):
            count = stage.slope.numel()
            if count not in (1, stage.units):
                raise ParameterError(f"layer '{stage.path}' has {count} slopes for {stage.units} units")
            continue
        if width is not None and stage.in_features != width:
            raise UnsupportedLayerError(
                f"layer '{stage.path}' takes {stage.in_features} features, but the layer before it gives {width}"
            )
        width = stage.out_features
