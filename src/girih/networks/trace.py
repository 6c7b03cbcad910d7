"""The view of a generator that everything else in girih works on: steps, patterns, maps of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from girih._arrays import as_rows, as_tensor
from girih.errors import ShapeError, UnsupportedLayerError
from girih.networks.operators import LinearMap
from girih.networks.sources import Live
from girih.networks.stages import Affine, Stage, as_chain, as_stage
from girih.networks.steps import AffineStep, KinkStep, LatentStep, MaxStep, Step


class Jet(NamedTuple):
    """An affine map on each cell, written about a point `o` of the cell: `z -> value + slope (z - o)`."""

    value: Tensor  # (R, H)
    slope: Tensor  # (R, H, S)


class Trace:
    """A generator as affine maps, activations with kinks, and maxima.

    Made by `girih.trace`. On a cell of the latent space with activation pattern q the generator is
    affine, `g(z) = A z + b`; a trace gives the patterns and the maps (EM-DGN, eq. 1-2).

    Attributes:
        steps: in an order in which each follows its inputs; the first is the latent.
        output: the index of the step that is the output.
        latent_dim: S, the dimension of z.
        output_dim: D, the dimension of x; an output of any shape is flattened.
        output_shape: of one x in the module.
        hidden_units: U, the number of units with a kink, and of maxima.
        is_chain: whether the network is a chain of Linear layers and one-kink activations at 0.
        head: the last layer where it is a Linear layer, else `None`.
    """

    def __init__(self, steps: Sequence[Step], output: int, output_shape: Sequence[int] | None = None) -> None:
        self.steps, self.output = list(steps), output
        self.latent_dim = self.steps[0].size
        self.output_dim = self.steps[output].size
        self.output_shape = (self.output_dim,) if output_shape is None else tuple(output_shape)
        self._units: dict[int, slice] = {}
        count = 0
        for index, step in enumerate(self.steps):
            if isinstance(step, KinkStep | MaxStep):
                self._units[index] = slice(count, count + step.size)
                count += step.size
        self.hidden_units = count
        self._chain = as_chain(self.steps, output)
        last = as_stage(self.steps[output])
        self.head: Affine | None = None
        if isinstance(last, Affine) and (self.is_chain or last.in_features <= last.out_features):
            self.head = last

    @property
    def is_chain(self) -> bool:
        """Whether the network is a chain of Linear layers and one-kink activations at 0."""
        return self._chain is not None

    @property
    def stages(self) -> list[Stage]:
        """The layers of a fully connected chain.

        Raises:
            UnsupportedLayerError: the network is not such a chain.
        """
        if self._chain is None:
            raise UnsupportedLayerError(
                "saving and the fast partition of a line need a fully connected chain: Linear layers with ReLU, "
                "LeakyReLU, PReLU or absolute values between them; this network has other layers or branches"
            )
        return self._chain

    @property
    def body(self) -> list[Stage]:
        """The stages of a chain before its head."""
        return self.stages[:-1] if self.head is not None else list(self.stages)

    def tensors(self) -> list[Tensor]:
        """All tensors that the generator is made of, as they are now, in their own types."""
        return [source.raw for step in self.steps for source in step.sources]

    def frozen(self) -> Trace:
        """The generator with the numbers of now, whatever becomes of the module; without gradients."""
        return Trace([step.frozen() for step in self.steps], self.output)

    def units(self, index: int) -> slice:
        """The columns of the patterns that belong to step `index`."""
        return self._units[index]

    @property
    def device(self) -> torch.device:
        """Where the parameters of the generator are."""
        devices = (step.device for step in self.steps if isinstance(step, AffineStep))
        return next((device for device in devices if device is not None), torch.device("cpu"))

    def _latents(self, z: Any) -> Tensor:
        return as_rows(z, "z", self.latent_dim, "the latent dimension S", device=self.device, allow_empty=True)

    def __call__(self, z: Any) -> Tensor:
        """g(z) in float64, `(N, D)`."""
        h = self._latents(z)
        if self._chain is None:
            return self.values(h)[self.output]
        for stage in self._chain:
            if isinstance(stage, Affine):
                h = torch.nn.functional.linear(h, stage.weight, stage.bias)
            else:
                h = h * stage.slopes(h)
        return h

    def values(self, z: Any) -> list[Tensor]:
        """The features after every step, `(N, size)` each."""
        values = [self._latents(z)]
        for step in self.steps[1:]:
            taken = [values[index] for index in step.inputs]
            if isinstance(step, AffineStep):
                values.append(step.linear(*taken) + step.bias)
            elif isinstance(step, KinkStep | MaxStep):
                values.append(step.apply(taken[0]))
        return values

    def hidden_values(self, z: Any) -> Tensor:
        """The last hidden features, `(N, H)`: the input of the head, or g(z) where there is none."""
        if self._chain is None:
            values = self.values(z)
            return values[self.output if self.head is None else self.steps[self.output].inputs[0]]
        h = self._latents(z)
        for stage in self.body:
            h = (
                torch.nn.functional.linear(h, stage.weight, stage.bias)
                if isinstance(stage, Affine)
                else (h * stage.slopes(h))
            )
        return h

    def pattern(self, z: Any) -> Tensor:
        """The code of every hidden unit at each z, `(N, U)` int8.

        It is the sign, +1 or -1, for a unit with one kink (a unit at the kink counts as -1), -1, 0 or +1 for one
        with two, and the place of the first maximum in its window for a maximum.
        """
        h = self._latents(z)
        codes = [torch.empty(h.shape[0], 0, dtype=torch.int8, device=h.device)]
        with torch.no_grad():
            if self._chain is None:
                values = self.values(h)
                for step in self.steps:
                    if isinstance(step, KinkStep | MaxStep):
                        codes.append(step.code(values[step.inputs[0]]))
                return torch.cat(codes, 1)
            for stage in self._chain:
                if isinstance(stage, Affine):
                    h = torch.nn.functional.linear(h, stage.weight, stage.bias)
                else:
                    codes.append(torch.where(h > 0, 1, -1).to(torch.int8))
                    h = h * stage.slopes(h)
        return torch.cat(codes, 1)

    def affine(self, z: Any) -> tuple[Tensor, Tensor]:
        """The affine map of the cell of each z: `A (N, D, S)` and `b (N, D)` with `g(z) = A z + b`.

        Example:
            >>> import girih, torch
            >>> net = girih.mlp([1, 8, 2], seed=0)
            >>> z = torch.tensor([[0.3]], dtype=torch.float64)
            >>> A, b = girih.trace(net).affine(z)
            >>> torch.allclose(A[0] @ z[0] + b[0], net(z)[0])
            True
        """
        return self.maps(self.pattern(z))

    def maps(self, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """The affine maps `A (R, D, S)`, `b (R, D)` of the cells with these patterns `(R, U)`."""
        jet = self.output_jet(patterns, torch.zeros(len(patterns), self.latent_dim, dtype=torch.float64))
        return jet.slope, jet.value

    def output_jet(self, patterns: Tensor, origin: Tensor) -> Jet:
        """The map from z to x on each cell, about the points `origin (R, S)`."""
        if self.is_chain:
            return self.jets(patterns, origin)[-1]
        return self.step_jets(patterns, origin)[self.output]

    def hidden_jet(self, patterns: Tensor, origin: Tensor) -> Jet:
        """The map from z to the last hidden features on each cell, about the points `origin (R, S)`.

        The features are the input of the head, or the output where there is none.
        """
        if self.is_chain:
            return self.jets(patterns, origin)[len(self.body)]
        index = self.output if self.head is None else self.steps[self.output].inputs[0]
        return self.step_jets(patterns, origin)[index]

    def jets(self, patterns: Tensor, origin: Tensor) -> list[Jet]:
        """The map from z to the input of every stage of a chain, and last to the output, on each cell.

        The value is propagated through the layers instead of formed as `A o + b`, so nothing cancels
        for cells far from 0. Differentiable in the parameters with the patterns held fixed.
        """
        patterns, jet = self._first_jet(patterns, origin)
        jets = [jet]
        start = 0
        for stage in self.stages:
            if isinstance(stage, Affine):
                weight = stage.weight
                value = torch.nn.functional.linear(jet.value, weight, stage.bias)
                # one product over all cells and columns: a batch of thin ones is slow
                jet = Jet(value, (jet.slope.mT @ weight.mT).mT)
            else:
                slopes = stage.slopes(patterns[:, start : start + stage.units])
                jet = Jet(jet.value * slopes, jet.slope * slopes[:, :, None])
                start += stage.units
            jets.append(jet)
        return jets

    def step_jets(self, patterns: Tensor, origin: Tensor) -> list[Jet]:
        """The map from z to the features after every step on each cell, about the points `origin (R, S)`.

        Differentiable in the parameters with the patterns held fixed, like `jets`.
        """
        patterns, jet = self._first_jet(patterns, origin)
        jets = [jet]
        for index, step in enumerate(self.steps[1:], start=1):
            jets.append(_advance(step, [jets[i] for i in step.inputs], patterns, self._units.get(index)))
        return jets

    def _first_jet(self, patterns: Tensor, origin: Tensor) -> tuple[Tensor, Jet]:
        device = self.device
        patterns, origin = patterns.to(device), origin.to(device)
        eye = torch.eye(self.latent_dim, dtype=torch.float64, device=device)
        return patterns, Jet(origin, eye.expand(len(patterns), -1, -1))

    def head_parameters(self) -> tuple[Tensor, Tensor]:
        """W `(D, H)` and v `(D,)` of the head; the identity where there is none."""
        if self.head is not None:
            return self.head.weight, self.head.bias
        eye = torch.eye(self.output_dim, dtype=torch.float64, device=self.device)
        return eye, eye.new_zeros(self.output_dim)

    def restrict(self, origin: Any, basis: Any) -> Trace:
        """The generator on an affine subspace, `y -> g(origin + basis y)`.

        The result shares the parameters of this trace; `origin (S,)` and `basis (S, k)` are constants.

        Raises:
            ShapeError: the shapes do not fit the latent dimension.

        Example:
            >>> import girih, torch
            >>> t = girih.trace(girih.mlp([5, 8, 2], seed=0))
            >>> t.restrict(torch.zeros(5), torch.eye(5)[:, :2]).latent_dim
            2
        """
        origin = as_tensor(origin, "origin", self.device).detach()
        basis = as_tensor(basis, "basis", self.device).detach()
        size = self.latent_dim
        if origin.shape != (size,) or basis.ndim != 2 or basis.shape[0] != size or not basis.shape[1]:
            raise ShapeError(
                f"origin must have shape ({size},) and basis ({size}, k), since the latent dimension S is {size}; "
                f"got {tuple(origin.shape)} and {tuple(basis.shape)}"
            )
        k = basis.shape[1]
        plane = nn.utils.skip_init(nn.Linear, k, size, dtype=torch.float64, device=self.device)
        plane.weight, plane.bias = nn.Parameter(basis.clone(), False), nn.Parameter(origin.clone(), False)
        operator = LinearMap(Live(plane, "weight"), Live(plane, "bias"), plane)
        first = AffineStep(operator, (0,), ((k,),), (size,), "the plane")
        rest = [step.rewired([index + 1 for index in step.inputs]) for step in self.steps[1:]]
        return Trace([LatentStep(k), first, *rest], self.output + 1, self.output_shape)


def _advance(step: Step, taken: list[Jet], patterns: Tensor, units: slice | None) -> Jet:
    """The jet after a step, from those of its inputs."""
    if isinstance(step, AffineStep):
        rows, _, size = taken[0].slope.shape
        columns = [jet.slope.mT.reshape(rows * size, -1) for jet in taken]
        slope = step.linear(*columns).reshape(rows, size, step.size).mT
        return Jet(step.linear(*(jet.value for jet in taken)) + step.bias, slope)
    jet, codes = taken[0], patterns[:, units]
    if isinstance(step, KinkStep):
        slopes = step.slopes(codes)
        return Jet(jet.value * slopes + step.offsets(codes), jet.slope * slopes[:, :, None])
    assert isinstance(step, MaxStep)
    chosen = step.chosen(codes)
    slope = jet.slope.gather(1, chosen[:, :, None].expand(-1, -1, jet.slope.shape[2]))
    return Jet(jet.value.gather(1, chosen), slope)
