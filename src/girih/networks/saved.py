"""A traced network as tensors and plain values, and back as a module: what `girih.save` writes, `girih.load` reads.

The plain values are a list of steps, each with the kind of its map and what that map holds; tensors stand there as
numbers of a table, so that what steps share stays shared. Nothing in it is code: kinds and functions are looked up by
name in lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeAlias

import torch
from torch import Tensor, nn

from girih.errors import ShapeError
from girih.networks.affine_maps import (
    AffineMap,
    Average,
    Combination,
    Concatenation,
    Convolution,
    LinearMap,
    Normalisation,
    Product,
    Scaling,
    Selection,
)
from girih.networks.layers import Abs, StepLayer, StepNetwork
from girih.networks.live_tensors import Derived, Fixed, Live, Source
from girih.networks.trace import Trace
from girih.networks.trace_builder import LONGEST_WINDOW
from girih.networks.trace_steps import AffineStep, KinkStep, LatentStep, LinearStep, MaxStep, Step, affine_step

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

_MAPS: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (Average, Combination, Concatenation, Convolution, Normalisation, Product, Scaling, Selection)
} | {"linear": LinearMap}
_KINDS = {kind: name for name, kind in _MAPS.items()}
_MOST_FEATURES = 1 << 31  # of all steps of a network: 16 GB for one latent
_MOST_DIMENSIONS = 8


def network_parts(trace: Trace) -> tuple[dict[str, JSON], dict[str, Tensor]]:
    """The steps of a network as plain values, and its tensors by name, in float64."""
    table = _Table()
    steps: list[JSON] = [_described(step, table) for step in trace.steps[1:]]
    config: dict[str, JSON] = {
        "latent": trace.latent_dim,
        "steps": steps,
        "output": trace.output,
        "shape": list(trace.output_shape),
        "trained": table.trained,
    }
    return config, table.tensors


class _Table:
    """Tensors by name, each once, however many steps read it."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.trained: list[JSON] = []
        self._names: dict[object, str] = {}
        self._kept: list[object] = []  # so that no identity is used twice

    def name_of(self, source: Source) -> str:
        """The name of a source."""
        key: object = (id(source.module), source.name) if isinstance(source, Live) else id(source)
        raw = source.raw
        if isinstance(raw, nn.Parameter) or isinstance(source, Fixed):
            key = id(raw)
        self._kept += (source, raw)
        if key not in self._names:
            self._names[key] = name = self.add(source.value)
            if not isinstance(source, Fixed) and (raw.requires_grad or isinstance(raw, nn.Parameter)):
                self.trained.append(name)
        return self._names[key]

    def add(self, tensor: Tensor) -> str:
        """A new entry."""
        name = f"network.{len(self.tensors)}"
        self.tensors[name] = tensor
        return name


def _described(step: Step, table: _Table) -> dict[str, JSON]:
    described: dict[str, JSON] = {"inputs": list(step.inputs)}
    if isinstance(step, KinkStep):
        channel = None if step.channel is None else table.add(step.channel)
        pieces = [_value(piece, table) for piece in step.pieces]
        thresholds: list[JSON] = list(step.thresholds)
        offsets: list[JSON] = [float(c) for c in step.constants]
        held: dict[str, JSON] = {"thresholds": thresholds, "pieces": pieces, "offsets": offsets, "channel": channel}
        return described | {"kind": "kink", "size": step.size} | held
    if isinstance(step, MaxStep):
        return described | {"kind": "maximum", "windows": table.add(step.windows)}
    assert isinstance(step, AffineStep)
    operator = step.operator
    parts = fields(operator)  # type: ignore[arg-type]
    held = {f.name: _value(getattr(operator, f.name), table) for f in parts if f.name != "module"}
    shapes: list[JSON] = [list(shape) for shape in step.shapes]
    whole = {"layer": True} if isinstance(step, LinearStep) else {}
    kind = _KINDS[type(operator)]
    return described | {"kind": kind, "shapes": shapes, "shape": list(step.shape), "map": held} | whole


def _value(value: object, table: _Table) -> JSON:
    if (
        isinstance(value, Derived)
        and value.function is torch.t
        and not value.kwargs
        and isinstance(value.args[0], Live)
    ):
        return {"transposed": table.name_of(value.args[0])}
    if isinstance(value, Source):
        return {"tensor": table.name_of(value)}
    if isinstance(value, Tensor):
        return {"constant": table.add(value)}
    if isinstance(value, tuple | list):
        return [_value(part, table) for part in value]
    if isinstance(value, Mapping):
        return {"options": {str(name): _value(part, table) for name, part in value.items()}}
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    raise TypeError(f"a step holds a {type(value).__name__}, which cannot be written")


def network_from(config: Mapping[str, JSON], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module of a network that `network_parts` took apart: an `nn.Sequential` of layers where it is a chain.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the parts do not fit together; sizes are checked before anything
            of that size is made.
    """
    steps, layers = _steps(config, tensors)
    output, shape = _whole(config["output"], 0, len(steps) - 1), _shape(config["shape"])
    if math.prod(shape) != steps[output].size:
        raise ShapeError(f"the output has {steps[output].size} features, and its shape is {shape}")
    if Trace(steps, output).chain is not None and any(isinstance(step, LinearStep) for step in steps):
        return nn.Sequential(*layers, *([nn.Unflatten(1, shape)] if len(shape) > 1 else []))
    return StepNetwork(steps, layers, output, shape)


def _steps(config: Mapping[str, JSON], tensors: Mapping[str, Tensor]) -> tuple[list[Step], list[nn.Module]]:
    """All steps, and the layers of those after the latent."""
    reader = _Reader(tensors, {str(name) for name in _listed(config["trained"])})
    steps: list[Step] = [LatentStep(_whole(config["latent"], 1, _MOST_FEATURES))]
    total = steps[0].size
    layers: list[nn.Module] = []
    for described in _listed(config["steps"]):
        if not isinstance(described, dict):
            raise TypeError("a step is no object")
        layer = StepLayer()
        layer.step = step = reader.step(described, steps, layer)
        layers.append(_layer(step, layer))
        total += step.size
        if total > _MOST_FEATURES:
            raise ShapeError(f"the steps have more than {_MOST_FEATURES:,} features")
        steps.append(step)
    return steps, layers


class _Reader:
    """Makes steps of their descriptions.

    Args:
        tensors: by name.
        trained: the names of those that are parameters.
    """

    def __init__(self, tensors: Mapping[str, Tensor], trained: set[str]) -> None:
        self.tensors, self.trained = tensors, trained
        self.shared: dict[str, Tensor] = {}
        self.linears: dict[tuple[str, str | None], nn.Linear] = {}

    def step(self, described: Mapping[str, JSON], before: Sequence[Step], layer: StepLayer) -> Step:
        """One step, which takes those before it, and whose tensors become those of the layer."""
        inputs = [_whole(i, 0, len(before) - 1) for i in _listed(described["inputs"])]
        kind, path = str(described["kind"]), f"layers.{len(before) - 1}"
        if kind == "kink":
            return self._kink(described, inputs, before, layer, path)
        if kind == "maximum":
            (source,) = inputs
            windows = self.constant(described["windows"])
            if windows.ndim != 2 or not 0 < windows.shape[1] <= LONGEST_WINDOW or not len(windows):
                raise ShapeError(f"windows of shape {tuple(windows.shape)}")
            _check_index(windows, before[source].size)
            return MaxStep(windows, source, path)
        shapes = [_shape(shape) for shape in _listed(described["shapes"])]
        if [math.prod(shape) for shape in shapes] != [before[i].size for i in inputs] or not inputs:
            raise ShapeError(f"{path} takes features of other sizes than {shapes}")
        operator = self._operator(_MAPS[kind], described, layer, shapes)
        shape = _shape(described["shape"])
        _check_shape(operator, shapes, shape, path)
        return affine_step(operator, inputs, shapes, shape, path)

    def _kink(
        self, described: Mapping[str, JSON], inputs: list[int], before: Sequence[Step], layer: StepLayer, path: str
    ) -> KinkStep:
        (source,) = inputs
        size = before[source].size
        channel = None if described["channel"] is None else self.constant(described["channel"])
        parts = [self.value(piece, layer, f"slope{i}") for i, piece in enumerate(_listed(described["pieces"]))]
        pieces = [part if isinstance(part, Source) else _real(part) for part in parts]
        thresholds = [_real(t) for t in _listed(described["thresholds"])]
        offsets = [_real(c) for c in _listed(described["offsets"])]
        if not thresholds or thresholds != sorted(set(thresholds)) or len(pieces) != len(thresholds) + 1:
            raise ShapeError(f"{path} has {len(thresholds)} thresholds and {len(pieces)} slopes")
        if len(offsets) != len(pieces) or _whole(described["size"], 1, size) != size:
            raise ShapeError(f"{path} has another size than {size}")
        for piece in pieces:
            if isinstance(piece, Source):
                count = piece.raw.numel()
                if channel is not None:
                    _check_index(channel, count)
                if (size if channel is None else len(channel)) != size or (channel is None and count not in (1, size)):
                    raise ShapeError(f"{path} has {count} slopes for {size} units")
        return KinkStep(thresholds, pieces, offsets, source, size, path, channel)

    def _operator(
        self, kind: type, described: Mapping[str, JSON], layer: StepLayer, shapes: Sequence[tuple[int, ...]]
    ) -> AffineMap:
        held = described["map"]
        if not isinstance(held, dict):
            raise TypeError("the map of a step is no object")
        if kind is LinearMap and described.get("layer"):
            return self._linear(held)
        values = {name: self.value(value, layer, name) for name, value in held.items()}
        operator: AffineMap = kind(**values)
        if isinstance(operator, Selection):
            _check_index(operator.index, math.prod(shapes[0]))
            if operator.index.numel() != math.prod(operator.shape):
                raise ShapeError("a selection of another shape")
        return operator

    def _linear(self, held: Mapping[str, JSON]) -> LinearMap:
        """A Linear layer, the same where both its tensors are."""
        names = (self.name(held["weight"]), None if held["shift"] is None else self.name(held["shift"]))
        if names not in self.linears:
            self.trained.update(name for name in names if name is not None)
            weight = self.parameter(names[0])
            bias = None if names[1] is None else self.parameter(names[1])
            if weight.ndim != 2 or not weight.numel() or (bias is not None and bias.shape != weight.shape[:1]):
                raise ShapeError(f"a layer has a weight of shape {tuple(weight.shape)} and another bias")
            module = nn.Linear(1, 1, bias=bias is not None)
            module.in_features, module.out_features = weight.shape[1], weight.shape[0]
            module.weight = _as_parameter(weight)
            module.bias = None if bias is None else _as_parameter(bias)  # type: ignore[assignment]
            self.linears[names] = module
        module = self.linears[names]
        return LinearMap(Live(module, "weight"), None if names[1] is None else Live(module, "bias"), module)

    def value(self, value: JSON, layer: StepLayer, name: str) -> object:
        """The value of a field of a map; its tensors become those of the layer."""
        if isinstance(value, list):
            return tuple(self.value(part, layer, name) for part in value)
        if not isinstance(value, dict):
            return value
        if "options" in value and isinstance(value["options"], dict):
            return {str(key): self.value(part, layer, str(key)) for key, part in value["options"].items()}
        if "constant" in value:
            return self.constant(value["constant"])
        layer.own(name, self.parameter(self.name(value)))
        live = Live(layer, name)
        return Derived(torch.t, (live,)) if "transposed" in value else live

    def name(self, value: JSON) -> str:
        """The name of the tensor that a value stands for."""
        if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in ("tensor", "transposed"):
            raise TypeError("a tensor is expected")
        return str(next(iter(value.values())))

    def parameter(self, name: str) -> Tensor:
        """The tensor of a name, the same object each time; a parameter where it was trained."""
        if name not in self.shared:
            tensor = self.tensors[name]
            if tensor.dtype != torch.float64:
                raise TypeError(f"{name} is no float64 tensor")
            self.shared[name] = nn.Parameter(tensor.clone()) if name in self.trained else tensor.clone()
        return self.shared[name]

    def constant(self, name: JSON) -> Tensor:
        """The tensor of a name, as it was written."""
        return self.tensors[str(name)]


def _layer(step: Step, layer: StepLayer) -> nn.Module:
    """The layer of torch that a step is, where there is one; else the `StepLayer`."""
    if isinstance(step, LinearStep):
        return step.module
    if isinstance(step, KinkStep) and step.bends_at_zero:
        below = step.pieces[0]
        if not isinstance(below, Source):
            return nn.ReLU() if below == 0.0 else Abs() if below == -1.0 else nn.LeakyReLU(below)
        if isinstance(below, Live):
            prelu = nn.PReLU(below.raw.numel(), dtype=torch.float64)
            prelu.weight = _as_parameter(below.raw if below.raw.ndim == 1 else below.raw.detach().flatten())
            return prelu
    return layer


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)


def _check_shape(operator: AffineMap, shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...], path: str) -> None:
    """Refuse a map that gives another shape; nothing of that size is made.

    Raises:
        ShapeError: it does.
    """
    with torch.no_grad():
        meta = _on_meta(operator)
        found = meta.linear(*(torch.zeros(2, *s, dtype=torch.float64, device="meta") for s in shapes))
        if tuple(found.shape) != (2, *shape):
            raise ShapeError(f"{path} gives {tuple(found.shape[1:])}, not {shape}")
        bias = meta.bias()
        if bias is not None and torch.broadcast_shapes(bias.shape, shape) != shape:
            raise ShapeError(f"{path} adds {tuple(bias.shape)} to {shape}")


def _on_meta(operator: AffineMap) -> AffineMap:
    """The same map with tensors that have sizes and no values."""

    def emptied(value: object) -> object:
        if isinstance(value, Source):
            return Fixed(torch.empty_like(value.raw, device="meta", requires_grad=False))
        return value.to("meta") if isinstance(value, Tensor) else value

    values = {f.name: emptied(getattr(operator, f.name)) for f in fields(operator)}  # type: ignore[arg-type]
    made: AffineMap = type(operator)(**values)
    return made


def _check_index(index: Tensor, count: int) -> None:
    if index.dtype != torch.int64 or not index.numel() or int(index.min()) < 0 or int(index.max()) >= count:
        raise ShapeError(f"an index that is not one of {count} features")


def _listed(value: JSON) -> list[JSON]:
    if not isinstance(value, list):
        raise TypeError(f"a list is expected, not {str(value)[:40]}")
    return value


def _whole(value: JSON, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ShapeError(f"{str(value)[:40]} is no whole number from {least} to {most}")
    return value


def _shape(value: JSON) -> tuple[int, ...]:
    shape = tuple(_whole(n, 1, _MOST_FEATURES) for n in _listed(value))
    if len(shape) > _MOST_DIMENSIONS or math.prod(shape) > _MOST_FEATURES:
        raise ShapeError(f"a shape of {math.prod(shape):,} features")
    return shape


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"a number is expected, not {str(value)[:40]}")
    return float(value)


def chain_from(stages: Sequence[str], tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The network of a file of girih 0.1.0, which wrote chains of Linear layers and activations.

    Raises:
        KeyError, ValueError: the parts do not fit together.
    """
    return nn.Sequential(*(_chain_layer(kind, index, tensors) for index, kind in enumerate(stages)))


def _chain_layer(kind: str, index: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    if kind == "affine":
        weight, bias = tensors[f"{index}.weight"], tensors.get(f"{index}.bias")
        if weight.ndim != 2 or not weight.numel() or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(f"layer {index} has a weight of shape {tuple(weight.shape)} and another bias")
        linear: nn.Linear = nn.utils.skip_init(
            nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        return linear
    if kind != "kink":
        raise ValueError(f"unknown stage {kind!r}")
    slope = tensors[f"{index}.slope"]
    if slope.ndim == 0:
        value = float(slope)
        return nn.ReLU() if value == 0.0 else Abs() if value == -1.0 else nn.LeakyReLU(value)
    if slope.ndim != 1 or not slope.numel():
        raise ValueError(f"layer {index} has slopes of shape {tuple(slope.shape)}")
    prelu = nn.PReLU(len(slope), dtype=torch.float64)
    with torch.no_grad():
        prelu.weight.copy_(slope)
    return prelu
