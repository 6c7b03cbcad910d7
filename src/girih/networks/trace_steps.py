"""The steps of a traced network: the latent, affine maps, activations with kinks, and maxima.

Features are flat, `(n, size)` float64, whatever their shape in the module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from girih.networks.affine_maps import AffineMap, LinearMap
from girih.networks.live_tensors import Source, frozen, leaves


class Jet(NamedTuple):
    """An affine map on each cell, written about a point `o` of the cell: `z -> value + slope (z - o)`."""

    value: Tensor  # (R, H)
    slope: Tensor  # (R, H, S)


class Step:
    """One step of a traced network.

    Attributes:
        inputs: indices of the earlier steps whose features it takes.
        size: its number of features.
        path: the name of the layer in the module.
    """

    inputs: tuple[int, ...]
    size: int
    path: str

    @property
    def kind(self) -> str:
        """Its kind in a word."""
        return {LatentStep: "latent", KinkStep: "activation", MaxStep: "maximum"}[type(self)]

    @property
    def sources(self) -> list[Source]:
        """The sources that its numbers come from."""
        return []

    def frozen(self) -> Self:
        """The same step with the numbers of now."""
        return self

    def rewired(self, inputs: Sequence[int]) -> Self:
        """The same step with other inputs."""
        step = copy.copy(self)
        step.inputs = tuple(inputs)
        return step

    def values(self, *taken: Tensor) -> Tensor:
        """Its features, `(n, size)`, from those of its inputs."""
        raise NotImplementedError

    def jet(self, taken: Sequence[Jet], codes: Tensor) -> Jet:
        """The map from z to its features on each cell, from those to its inputs and its columns of the patterns."""
        raise NotImplementedError


class LatentStep(Step):
    """The latent z itself."""

    def __init__(self, size: int) -> None:
        self.inputs, self.size, self.path = (), size, "the latent"


class AffineStep(Step):
    """An affine map of the features of one or more steps.

    Args:
        operator: the map, of shaped features.
        shapes: the shape of each input, without the batch.
        shape: that of the output.
    """

    def __init__(
        self,
        operator: AffineMap,
        inputs: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
        shape: tuple[int, ...],
        path: str,
    ) -> None:
        self.operator, self.shapes, self.shape = operator, tuple(shapes), shape
        self.inputs, self.size, self.path = tuple(inputs), math.prod(shape), path

    @property
    def sources(self) -> list[Source]:
        """The sources that its numbers come from."""
        return leaves(list(vars(self.operator).values()))

    def frozen(self) -> Self:
        """The same step with the numbers of now."""
        step, operator = copy.copy(self), copy.copy(self.operator)
        for name, value in list(vars(operator).items()):
            object.__setattr__(operator, name, frozen(value))  # operators are frozen dataclasses
        step.operator = operator
        return step

    @property
    def kind(self) -> str:
        """The kind of its map in a word."""
        return "linear" if isinstance(self.operator, LinearMap) else type(self.operator).__name__.lower()

    def _apply(self, values: Sequence[Tensor], absolute: bool) -> Tensor:
        shaped = [v.reshape(-1, *shape) for v, shape in zip(values, self.shapes, strict=True)]
        return self.operator.linear(*shaped, absolute=absolute).reshape(-1, self.size)

    def linear(self, *values: Tensor) -> Tensor:
        """The map without its bias, `(n, size)`."""
        return self._apply(values, False)

    def magnitude(self, *values: Tensor) -> Tensor:
        """The map with every coefficient replaced by its absolute value, without bias, `(n, size)`."""
        return self._apply(values, True)

    def values(self, *taken: Tensor) -> Tensor:
        """The map, `(n, size)`."""
        return self.linear(*taken) + self.bias

    def jet(self, taken: Sequence[Jet], codes: Tensor) -> Jet:
        """The map of the values about the origin, and of the columns of the slopes."""
        rows, _, size = taken[0].slope.shape
        # one product over all cells and columns: a batch of thin ones is slow
        columns = [jet.slope.mT.reshape(rows * size, jet.slope.shape[1]) for jet in taken]
        slope = self.linear(*columns).reshape(rows, size, self.size).mT
        return Jet(self.values(*(jet.value for jet in taken)), slope)

    @property
    def bias(self) -> Tensor:
        """The shift that is added, `(size,)`; zeros for nothing."""
        bias = self.operator.bias()
        if bias is None:
            return torch.zeros(self.size, dtype=torch.float64, device=self.device)
        return bias.expand(self.shape).reshape(self.size)

    @property
    def device(self) -> torch.device | None:
        """The device that holds the parameters; `None` when there are none."""
        return next((source.raw.device for source in self.sources), None)


class LinearStep(AffineStep):
    """The map `h -> W h + v` of an `nn.Linear` on flat features.

    Attributes:
        module: the layer.
        in_features: the number of features that it takes.
        out_features: the number that it gives.
    """

    operator: LinearMap

    def __init__(self, operator: LinearMap, source: int, module: nn.Linear, path: str) -> None:
        self.module, self.in_features, self.out_features = module, module.in_features, module.out_features
        super().__init__(operator, (source,), ((self.in_features,),), (self.out_features,), path)

    @property
    def weight(self) -> Tensor:
        """W, `(out, in)`, float64."""
        return self.operator.weight.value

    @property
    def device(self) -> torch.device:
        """The device that holds the parameters."""
        return self.operator.weight.raw.device

    @property
    def has_bias(self) -> bool:
        """Tells whether the layer has a bias of its own."""
        return self.operator.shift is not None

    def values(self, *taken: Tensor) -> Tensor:
        """The map, `(n, out)`."""
        return torch.nn.functional.linear(taken[0], self.weight, self.bias)


class KinkStep(Step):
    """An activation with kinks, unit by unit: `h -> slope_k h + offset_k t` between its thresholds.

    ReLU has one threshold, 0, and slopes 0 and 1; Hardtanh has -1 and 1, slopes 0, 1, 0 and offsets -1, 0, 1.
    `t` is 1 for the activation itself. For other t the thresholds and offsets are multiplied by it, so that
    `apply` is homogeneous in (h, t); at t = 0 it gives the behaviour far away.

    The code of a unit is -1 or +1 for one threshold, -1, 0 or +1 for two, and 0 to K for K of them; a unit at
    a threshold counts as below it.

    Args:
        thresholds: K of them, ascending.
        pieces: the K + 1 slopes; a source holds one for each unit, or for each channel.
        offsets: the K + 1 offsets.
        channel: for slopes by channel, the channel of each unit.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        pieces: Sequence[float | Source],
        offsets: Sequence[float],
        source: int,
        size: int,
        path: str,
        channel: Tensor | None = None,
    ) -> None:
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self.pieces, self.constants, self.channel = tuple(pieces), tuple(offsets), channel
        self.inputs, self.size, self.path = (source,), size, path

    @property
    def sources(self) -> list[Source]:
        """The sources that its numbers come from."""
        return leaves(self.pieces)

    @property
    def bends_at_zero(self) -> bool:
        """Tells whether it is `h` where h > 0 and `slope * h` elsewhere: ReLU, LeakyReLU, PReLU, the absolute value."""
        return self.thresholds == (0.0,) and self.pieces[1] == 1.0 and not any(self.constants) and self.channel is None

    @property
    def slope(self) -> Tensor:
        """The slope below the first threshold, `()` or `(size,)`, float64; read live from a PReLU."""
        slope = self._slope(self.pieces[0], torch.device("cpu"))
        return slope.reshape(()) if slope.numel() == 1 else slope

    def frozen(self) -> Self:
        """The same step with the numbers of now."""
        step = copy.copy(self)
        step.pieces = frozen(self.pieces)
        return step

    def _piece(self, code: Tensor) -> Tensor:
        """The number of the linear piece, 0 to K."""
        kinks = len(self.thresholds)
        return (code > 0).long() if kinks == 1 else code.long() + (1 if kinks == 2 else 0)

    def slopes(self, code: Tensor) -> Tensor:
        """The slope of each unit in cells with these codes, `(..., size)`."""
        values = [self._slope(piece, code.device) for piece in self.pieces]
        if len(values) == 2:
            return torch.where(code > 0, values[1], values[0])
        table = torch.stack([value.expand(self.size) for value in values])
        return table[self._piece(code), torch.arange(self.size, device=code.device)]

    def _slope(self, piece: float | Source, device: torch.device) -> Tensor:
        if not isinstance(piece, Source):
            return torch.tensor(piece, dtype=torch.float64, device=device)
        slope = piece.value.flatten()
        return slope if self.channel is None or slope.numel() == 1 else slope[self.channel.to(slope.device)]

    def offsets(self, code: Tensor) -> Tensor:
        """The offset of each unit in cells with these codes, `(..., size)`."""
        table = torch.tensor(self.constants, dtype=torch.float64, device=code.device)
        return table[self._piece(code)]

    def code(self, h: Tensor, t: float | Tensor = 1.0) -> Tensor:
        """The code of each unit, int8, in the shape of h `(n, size)`; t is a number or `(n, 1)`."""
        if len(self.thresholds) == 1:
            return torch.where(h > self.thresholds[0] * t, 1, -1).to(torch.int8)
        above = torch.zeros_like(h, dtype=torch.int8)
        for threshold in self.thresholds:
            above += (h > threshold * t).to(torch.int8)
        return above - 1 if len(self.thresholds) == 2 else above

    def apply(self, h: Tensor, t: float | Tensor = 1.0) -> Tensor:
        """The activation, homogeneous in (h, t), `(n, size)`."""
        code = h if self.thresholds == (0.0,) else self.code(h, t)  # signs alone are read of the code
        value = self.slopes(code) * h
        return value + self.offsets(code) * t if any(self.constants) else value

    def values(self, *taken: Tensor) -> Tensor:
        """The activation, `(n, size)`."""
        return self.apply(taken[0])

    def jet(self, taken: Sequence[Jet], codes: Tensor) -> Jet:
        """The slope and offset of the piece that each code names."""
        slopes = self.slopes(codes)
        value = taken[0].value * slopes
        return Jet(value + self.offsets(codes) if any(self.constants) else value, taken[0].slope * slopes[:, :, None])


class MaxStep(Step):
    """The maximum over a window of features, for each output.

    The code of an output is the place in its window of the first maximum.

    Args:
        windows: `(size, m)`, the input features of each window.
    """

    def __init__(self, windows: Tensor, source: int, path: str) -> None:
        self.windows = windows
        self.inputs, self.size, self.path = (source,), len(windows), path

    def code(self, h: Tensor) -> Tensor:
        """The place of the first maximum in each window, `(n, size)` int8."""
        return h[:, self.windows.to(h.device)].argmax(2).to(torch.int8)

    def chosen(self, code: Tensor) -> Tensor:
        """The input feature that is the maximum, `(n, size)`, in cells with these codes."""
        windows = self.windows.to(code.device)
        return windows.expand(len(code), -1, -1).gather(2, code.long()[:, :, None])[:, :, 0]

    def apply(self, h: Tensor) -> Tensor:
        """The maxima, `(n, size)`."""
        return h[:, self.windows.to(h.device)].amax(2)

    def values(self, *taken: Tensor) -> Tensor:
        """The maxima, `(n, size)`."""
        return self.apply(taken[0])

    def jet(self, taken: Sequence[Jet], codes: Tensor) -> Jet:
        """The map of the feature that each code names."""
        chosen = self.chosen(codes)
        slope = taken[0].slope.gather(1, chosen[:, :, None].expand(-1, -1, taken[0].slope.shape[2]))
        return Jet(taken[0].value.gather(1, chosen), slope)


def affine_step(
    operator: AffineMap, inputs: Sequence[int], shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...], path: str
) -> AffineStep:
    """An affine step; a `LinearStep` where an `nn.Linear` maps flat features."""
    if isinstance(operator, LinearMap) and operator.module is not None and len(shapes[0]) == 1:
        return LinearStep(operator, inputs[0], operator.module, path)
    return AffineStep(operator, inputs, shapes, shape, path)
