"""Collects the steps of a trace while the graph of a module is walked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias, cast

import torch
from torch import Tensor

from girih.errors import UnsupportedLayerError
from girih.networks.affine_maps import AffineMap, Average, Plain, Selection
from girih.networks.live_tensors import Source
from girih.networks.trace_steps import AffineStep, KinkStep, LatentStep, MaxStep, Step, affine_step

# The code of a maximum is an int8.
LONGEST_WINDOW = 127


@dataclass(frozen=True)
class Feature:
    """A value of the graph that depends on z: a step, and the shape of its features in the module."""

    step: int
    shape: tuple[int, ...]


# A factor or summand of a rule: it depends on z, is a constant tensor, or is a number.
Operand: TypeAlias = Feature | Source | float
# A number for all dimensions, or one for each.
Sizes: TypeAlias = int | Sequence[int]


# What functions of torch take after their features: the names, the order and the defaults are torch's.


@dataclass(frozen=True)
class ConvolutionCall:
    """The arguments of `F.conv1d`, `F.conv2d` after the features."""

    weight: Source
    bias: Source | None = None
    stride: Sizes = 1
    padding: Sizes | str = 0
    dilation: Sizes = 1
    groups: int = 1


@dataclass(frozen=True)
class TransposedCall:
    """The arguments of `F.conv_transpose1d`, `F.conv_transpose2d` after the features."""

    weight: Source
    bias: Source | None = None
    stride: Sizes = 1
    padding: Sizes | str = 0
    output_padding: Sizes = 0
    groups: int = 1
    dilation: Sizes = 1


@dataclass(frozen=True)
class NormalisationCall:
    """The arguments of `F.batch_norm` after the features."""

    running_mean: Source | None
    running_var: Source | None
    weight: Source | None = None
    bias: Source | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


@dataclass(frozen=True)
class MaxPoolCall:
    """The arguments of `F.max_pool1d`, `F.max_pool2d` after the features."""

    kernel_size: Sizes
    stride: Sizes | None = None
    padding: Sizes = 0
    dilation: Sizes = 1
    ceil_mode: bool = False
    return_indices: bool = False


@dataclass(frozen=True)
class AveragePoolCall:
    """`F.avg_pool1d`, which has no `divisor_override`, and `F.avg_pool2d`."""

    kernel_size: Sizes
    stride: Sizes | None = None
    padding: Sizes = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None


@dataclass(frozen=True)
class ResizeCall:
    """The arguments of `F.interpolate` after the features."""

    size: Sizes | None = None
    scale_factor: float | Sequence[float] | None = None
    mode: str = "nearest"
    align_corners: bool | None = None
    recompute_scale_factor: bool | None = None
    antialias: bool = False


def plain(value: object) -> Plain:
    """The lists of a graph as tuples."""
    return tuple(plain(part) for part in value) if isinstance(value, tuple | list) else cast("Plain", value)


class Builder:
    """The steps so far.

    Args:
        latent_shape: of one latent, (S,) or (C, 1, 1).
        batch: the number of rows that sizes in the graph were read with.
        device: of the parameters.
    """

    def __init__(self, latent_shape: tuple[int, ...], batch: int, device: torch.device) -> None:
        self.steps: list[Step] = [LatentStep(math.prod(latent_shape))]
        self.latent_shape, self.batch, self.device = latent_shape, batch, device
        self.label = ""  # how errors name the current layer: "layer '1' is Tanh"
        self.path = ""

    def refuse(self, reason: str) -> NoReturn:
        """Stop, with the name of the current layer."""
        raise UnsupportedLayerError(f"{self.label}{reason}")

    def affine(self, operator: AffineMap, *features: Feature) -> Feature:
        """Add an affine step."""
        zeros = [torch.zeros(self.batch, *f.shape, dtype=torch.float64, device=self.device) for f in features]
        with torch.no_grad():
            shape = tuple(operator.linear(*zeros).shape)
        if not shape or shape[0] != self.batch:
            self.refuse(", which mixes the rows of a batch; a generator maps each z by itself")
        step = affine_step(operator, [f.step for f in features], [f.shape for f in features], shape[1:], self.path)
        return self._append(step, shape[1:])

    def average(self, feature: Feature, function: str, *args: object) -> Feature:
        """Add a linear step with coefficients of at least 0 and without parameters."""
        return self.affine(Average(function, tuple(plain(value) for value in args)), feature)

    def kink(
        self,
        feature: Feature,
        thresholds: Sequence[float],
        pieces: Sequence[float | Source],
        offsets: Sequence[float],
        channel: Tensor | None = None,
    ) -> Feature:
        """Add an activation."""
        size = self.steps[feature.step].size
        step = KinkStep(thresholds, pieces, offsets, feature.step, size, self.path, channel)
        return self._append(step, feature.shape)

    def again(self, step: Step, features: Sequence[Feature]) -> Feature:
        """Add a step of a network that was made of steps."""
        added = step.rewired([feature.step for feature in features])
        added.path = self.path
        return self._append(added, step.shape if isinstance(step, AffineStep) else (step.size,))

    def maximum(self, feature: Feature, windows: Tensor, shape: tuple[int, ...]) -> Feature:
        """Add maxima over windows `(size, m)` of the flat features."""
        if windows.shape[1] > LONGEST_WINDOW:
            self.refuse(
                f" over {windows.shape[1]} features, and at most {LONGEST_WINDOW} are supported; "
                "take the maximum in two steps"
            )
        return self._append(MaxStep(windows, feature.step, self.path), shape)

    def move(
        self, feature: Feature, function: Callable[[Tensor], Tensor | Sequence[Tensor]]
    ) -> Feature | tuple[Feature, ...]:
        """The result of a function that only moves, picks or repeats entries; a tuple where it gives one."""
        result = function(self.numbered(feature))
        if isinstance(result, Tensor):
            return self.moved(feature, result)
        return tuple(self.moved(feature, part) for part in result)

    def numbered(self, feature: Feature) -> Tensor:
        """A batch in the shape of the feature, that holds 0, 1, 2, ... and goes on from row to row."""
        size = self.steps[feature.step].size
        entries = torch.arange(self.batch * size, dtype=torch.float64, device=self.device)
        return entries.reshape(self.batch, *feature.shape)

    def moved(self, feature: Feature, result: Tensor) -> Feature:
        """The feature that has these entries of another one, by their numbers there."""
        size = self.steps[feature.step].size
        rows = result.reshape(len(result), -1).long() if result.ndim and result.numel() else None
        start = size * torch.arange(self.batch, device=self.device)[:, None]
        if rows is None or len(rows) != self.batch or not torch.equal(rows - start, rows[:1].expand_as(rows)):
            self.refuse(", which mixes the rows of a batch; a generator maps each z by itself")
        shape = tuple(result.shape[1:])
        index = rows[0]
        if torch.equal(index, torch.arange(size, device=self.device)):
            return Feature(feature.step, shape)
        return self.affine(Selection(index, shape), feature)

    def _append(self, step: Step, shape: tuple[int, ...]) -> Feature:
        self.steps.append(step)
        return Feature(len(self.steps) - 1, tuple(shape))

    def finish(self, output: int) -> tuple[list[Step], int]:
        """The steps that the output depends on, and the index of the output among them."""
        needed = {0}
        waiting = [output]
        while waiting:
            index = waiting.pop()
            if index not in needed:
                needed.add(index)
                waiting.extend(self.steps[index].inputs)
        kept = sorted(needed)
        place = {index: new for new, index in enumerate(kept)}
        return [self.steps[i].rewired([place[j] for j in self.steps[i].inputs]) for i in kept], place[output]
