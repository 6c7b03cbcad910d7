"""A flow as tensors and plain values, and back: what `girih.save` writes and `girih.load` reads."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.lazy import LazyTransform
from zuko.nn import Linear
from zuko.transforms import MonotonicAffineTransform

from girih.errors import ModelFileError, ParameterError, ShapeError
from girih.flows.coupling import RADCoupling, check_mask
from girih.flows.dgn import DGNFlow
from girih.flows.flow import Flow, StandardNormal
from girih.flows.rad import ACTIVATIONS, RAD, RealNVP
from girih.flows.scaling import Standardise, Whiten
from girih.geometry.priors import GaussianPrior, Uniform
from girih.training import own_random_state

_FLOWS: dict[str, type[Flow]] = {"RAD": RAD, "RealNVP": RealNVP, "Flow": Flow}
_TYPES = {"float32": torch.float32, "float64": torch.float64}


def flow_parts(flow: Flow) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a flow, and its layers as plain values.

    Raises:
        ModelFileError: it has a layer or a base distribution other than those of `RAD` and `RealNVP`, or such a layer
            with other networks or another type of numbers.
    """
    name = next((name for name, kind in _FLOWS.items() if type(flow) is kind), None)
    number = str(flow._like.dtype).removeprefix("torch.")
    if name is None or type(flow.base) is not StandardNormal or number not in _TYPES:
        raise _refused(f"this {type(flow).__name__}, with base {type(flow.base).__name__} and {number} parameters,")
    tensors: dict[str, Tensor] = dict(flow.state_dict())
    config = {
        "flow": name,
        "features": flow.features,
        "context": flow.context,
        "type": number,
        "stages": [_described(layer) for layer in flow.transforms],
    }
    try:
        with own_random_state(0, torch.device("cpu")):  # zuko draws numbers to print a coupling
            same = repr(flow_from(tensors, config)) == repr(flow)
    except (RuntimeError, ValueError):
        same = False
    if not same:
        raise _refused("this flow has networks that were changed, and")
    return tensors, config


def flow_from(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Flow:
    """The flow that `flow_parts` took apart, on the CPU.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the parts do not fit together.
    """
    features, context, number = config["features"], config["context"], _TYPES[config["type"]]
    _check_sizes(config, sum(tensor.numel() for tensor in tensors.values()))
    with own_random_state(0, torch.device("cpu")):  # initial weights, which are overwritten, are drawn
        layers = [_layer(stage, features, context) for stage in config["stages"]]
    kind = _FLOWS[config["flow"]]
    # the constructors of RAD and RealNVP choose masks and widths, and do no more than that
    flow = kind.__new__(kind)
    Flow.__init__(flow, layers, features, context)
    shapes = {name: tensor.shape for name, tensor in flow.to(number).state_dict().items()}
    stored = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted({*shapes, *stored}):
        if shapes.get(name) != stored.get(name):
            raise ShapeError(f"{name} should have shape {shapes.get(name)} and has {stored.get(name)}")
    flow.load_state_dict(dict(tensors))
    return flow


def _check_sizes(config: Mapping[str, Any], stored: int) -> None:
    """Refuse layers with more numbers than are stored, before they are built.

    Raises:
        ShapeError: there are more.
    """
    for stage in [{}, *config["stages"]]:
        inputs = sum(stage.get("mask", ())) + config["context"]
        widths = [inputs, *stage.get("hidden", ()), stage.get("pieces", 1)]
        numbers = sum(a * b for a, b in pairwise(widths))
        if max(numbers, config["features"], *widths) > stored or min(config["features"], *widths) < 0:
            raise ShapeError(f"widths {str(widths)[:60]} need more numbers than the {stored} that are stored")


def prior_parts(flow: DGNFlow) -> dict[str, Tensor]:
    """The tensors of the prior of a `DGNFlow`."""
    if isinstance(flow.prior, GaussianPrior):
        return {"prior": flow.prior.covariance}
    return {"low": flow.prior.low, "high": flow.prior.high}


def dgn_flow_from(tensors: Mapping[str, Tensor], net: nn.Module) -> DGNFlow:
    """The `DGNFlow` of a generator and the tensors that `prior_parts` gave.

    Raises:
        KeyError, ValueError: the parts do not fit together.
    """
    if "low" in tensors:
        return DGNFlow(net, Uniform(tensors["low"], tensors["high"]))
    return DGNFlow(net, tensors["prior"])


def _described(layer: Any) -> dict[str, Any]:
    """Plain values that are enough to build a layer of the same shape."""
    if type(layer) is Standardise:
        return {"layer": "standardise"}
    if type(layer) is Whiten:
        return {"layer": "whiten"}
    if type(layer) is RADCoupling:
        mask = torch.ones(layer.features, dtype=torch.bool)
        mask[list(layer.folded)] = False
        # the gate sees the folded features, so it always is a network
        return {"layer": "fold", "mask": mask.tolist(), "pieces": layer.pieces, "hidden": _widths(layer.gate_network)}
    affine = getattr(layer, "univariate", None) is MonotonicAffineTransform
    if affine and type(layer) is GeneralCouplingTransform:
        return {"layer": "affine", "mask": layer.mask.tolist(), **_network(layer.hyper)}
    if affine and type(layer) is ElementWiseTransform:  # what zuko makes of a coupling of one feature
        return {"layer": "elementwise", **_network(getattr(layer, "hyper", None))}
    raise _refused(f"this flow has a layer of type {type(layer).__name__}, and")


def _layer(stage: Mapping[str, Any], features: int, context: int) -> LazyTransform:
    kind = stage["layer"]
    if kind == "standardise":
        return Standardise(features)
    if kind == "whiten":
        return Whiten(features)
    widths = tuple(stage["hidden"])
    # flows saved by 0.1.0 say nothing of it, and are ReLU
    network = {"hidden_features": widths, "activation": ACTIVATIONS[stage.get("activation", "relu")]}
    if kind == "elementwise":
        return ElementWiseTransform(features, context, **(network if context else {}))
    mask = check_mask(stage["mask"], features)
    if kind == "fold":
        return RADCoupling(features, context, mask, stage["pieces"], widths)
    if kind != "affine" or not mask.any():
        raise ParameterError(f"there is no layer {kind!r} with this mask")
    return GeneralCouplingTransform(features, context, mask, **network)


def _network(network: nn.Module | None) -> dict[str, Any]:
    """What is needed to build a network of zuko of the same shape."""
    modules = [] if network is None else list(network.modules())
    tanh = any(type(module) is nn.Tanh for module in modules)
    return {"hidden": _widths(network), "activation": "tanh" if tanh else "relu"}


def _widths(network: nn.Module | None) -> list[int]:
    """The widths of the hidden layers of a network of zuko."""
    modules = [] if network is None else list(network.modules())
    return [len(module.weight) for module in modules if isinstance(module, Linear)][:-1]


def _refused(what: str) -> ModelFileError:
    return ModelFileError(
        f"{what} cannot be saved: only stacks of RADCoupling, affine couplings, Standardise and Whiten on a standard "
        "normal are, as RAD and RealNVP build them; for others keep flow.state_dict() and the code that builds the flow"
    )
