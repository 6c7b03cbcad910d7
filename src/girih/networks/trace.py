"""The view of a generator that everything else in girih works on: steps, patterns, maps of cells."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows, as_tensor
from girih.errors import ShapeError, UnsupportedLayerError
from girih.networks.affine_maps import Convolution, LinearMap
from girih.networks.live_tensors import Live
from girih.networks.trace_steps import AffineStep, Jet, KinkStep, LatentStep, LinearStep, MaxStep, Step


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
        chain: the steps after the latent where each is a Linear layer, or an activation that bends at 0 alone, and
            takes the one before it; else `None`. Some computations are faster or simpler for such chains.
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
        self._last_use = {i: index for index, step in enumerate(self.steps) for i in step.inputs}
        self.chain = _chain(self.steps, output)
        last = self.steps[output]
        self.head: LinearStep | None = None
        if isinstance(last, LinearStep) and (self.chain is not None or last.in_features <= last.out_features):
            self.head = last

    def __repr__(self) -> str:
        kinds = Counter(step.kind for step in self.steps[1:])
        held = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing"
        sizes = f"S={self.latent_dim}, D={self.output_dim}, U={self.hidden_units}"
        return f"Trace({sizes}: {held})"

    @property
    def is_chain(self) -> bool:
        """Deprecated: whether `chain` is not `None`."""
        _deprecated("is_chain", "chain is not None")
        return self.chain is not None

    @property
    def stages(self) -> list[LinearStep | KinkStep]:
        """Deprecated: `chain`."""
        _deprecated("stages", "chain")
        if self.chain is None:
            raise UnsupportedLayerError("this network is not a chain of Linear layers and activations; use Trace.steps")
        return list(self.chain)

    @property
    def features(self) -> int:
        """The index of the step that gives the last hidden features: the input of the head, or the output."""
        return self.output if self.head is None else self.head.inputs[0]

    @property
    def weights(self) -> list[Tensor]:
        """The weights of the Linear layers and convolutions, each once, read live in float64."""
        found: dict[int, Tensor] = {}
        for step in self.steps:
            if isinstance(step, AffineStep) and isinstance(step.operator, LinearMap | Convolution):
                raw = step.operator.weight.raw
                found.setdefault(id(raw), raw)
        return [raw.to(torch.float64) for raw in found.values()]

    def tensors(self) -> list[Tensor]:
        """All tensors that the generator is made of, as they are now, in their own types."""
        return [source.raw for step in self.steps for source in step.sources]

    def frozen(self) -> Trace:
        """The generator with the numbers of now, whatever becomes of the module; without gradients."""
        return Trace([step.frozen() for step in self.steps], self.output, self.output_shape)

    def units(self, index: int) -> slice:
        """The columns of the patterns that belong to step `index`; none for a step without units."""
        return self._units.get(index, slice(0))

    @property
    def device(self) -> torch.device:
        """The device that holds the parameters of the generator."""
        devices = (step.device for step in self.steps if isinstance(step, AffineStep))
        return next((device for device in devices if device is not None), torch.device("cpu"))

    def _latents(self, z: ArrayLike) -> Tensor:
        return as_rows(z, "z", self.latent_dim, "the latent dimension S", device=self.device, allow_empty=True)

    def __call__(self, z: ArrayLike) -> Tensor:
        """g(z) in float64, `(N, D)`."""
        return self._features(z, self.output)

    def values(self, z: ArrayLike) -> list[Tensor]:
        """The features after every step, `(N, size)` each."""
        h = self._latents(z)
        return [h, *(value for _, _, value in self._passed(h, len(self.steps) - 1))]

    def hidden_values(self, z: ArrayLike) -> Tensor:
        """The last hidden features, `(N, H)`: the input of the head, or g(z) where there is none."""
        return self._features(z, self.features)

    def _features(self, z: ArrayLike, last: int) -> Tensor:
        h = self._latents(z)
        for _, _, value in self._passed(h, last):
            h = value
        return h

    def _passed(self, h: Tensor, last: int) -> Iterator[tuple[Step, list[Tensor], Tensor]]:
        """The steps up to `last`, what each takes and gives; features that no later step takes are let go."""
        values = {0: h}
        for index, step in enumerate(self.steps[1 : last + 1], start=1):
            taken = [values[i] for i in step.inputs]
            values[index] = step.values(*taken)
            yield step, taken, values[index]
            for i in {i for i in step.inputs if self._last_use[i] == index}:
                del values[i]

    def pattern(self, z: ArrayLike) -> Tensor:
        """The code of every hidden unit at each z, `(N, U)` int8.

        It is the sign, +1 or -1, for a unit with one kink (a unit at the kink counts as -1), -1, 0 or +1 for one
        with two, and the place of the first maximum in its window for a maximum.
        """
        h = self._latents(z)
        codes = [torch.empty(len(h), 0, dtype=torch.int8, device=h.device)]
        with torch.no_grad():
            for step, taken, _ in self._passed(h, max(self._units, default=0)):
                if isinstance(step, KinkStep | MaxStep):
                    codes.append(step.code(taken[0]))
        return torch.cat(codes, 1)

    def affine(self, z: ArrayLike) -> tuple[Tensor, Tensor]:
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
        """The affine maps `A (R, D, S)`, `b (R, D)` of the cells with these patterns `(R, U)`.

        In a chain, cells next to each other that share the codes of its first layers share the work up to there.
        """
        if self.chain is not None:
            jet = self._shared_jet(patterns.to(self.device))
        else:
            jet = self.output_jet(patterns, torch.zeros(len(patterns), self.latent_dim, dtype=torch.float64))
        return jet.slope, jet.value

    def _shared_jet(self, patterns: Tensor) -> Jet:
        """`output_jet` of a chain about 0, step by step on one cell of each run of equal codes so far."""
        eye = torch.eye(self.latent_dim, dtype=torch.float64, device=patterns.device)
        jet, of = Jet(eye.new_zeros(1, len(eye)), eye[None]), patterns.new_zeros(len(patterns), dtype=torch.long)
        for index, step in enumerate(self.steps[1:], start=1):
            codes = patterns[:, self.units(index)]
            if codes.shape[1]:
                new = torch.ones_like(of, dtype=torch.bool)
                new[1:] = (codes[1:] != codes[:-1]).any(1) | (of[1:] != of[:-1])
                first = new.nonzero()[:, 0]
                if len(first) > len(jet.value):
                    jet = Jet(jet.value[of[first]], jet.slope[of[first]])
                codes, of = codes[first], new.cumsum(0) - 1
            jet = step.jet([jet], codes)
        return Jet(jet.value[of], jet.slope[of])

    def output_jet(self, patterns: Tensor, origin: Tensor) -> Jet:
        """The map from z to x on each cell, about the points `origin (R, S)`."""
        return self._jets(patterns, origin, self.output)[-1]

    def hidden_jet(self, patterns: Tensor, origin: Tensor) -> Jet:
        """The map from z to the last hidden features on each cell, about the points `origin (R, S)`.

        The features are the input of the head, or the output where there is none.
        """
        return self._jets(patterns, origin, self.features)[-1]

    def jets(self, patterns: Tensor, origin: Tensor, last: int | None = None) -> list[Jet]:
        """The map from z to the features after every step on each cell, about the points `origin (R, S)`.

        Up to step `last`, the output by default.

        The value is propagated through the layers instead of formed as `A o + b`, so nothing cancels
        for cells far from 0. Differentiable in the parameters with the patterns held fixed.
        """
        return self._jets(patterns, origin, len(self.steps) - 1 if last is None else last)

    def _jets(self, patterns: Tensor, origin: Tensor, last: int) -> list[Jet]:
        device = self.device
        patterns, origin = patterns.to(device), origin.to(device)
        eye = torch.eye(self.latent_dim, dtype=torch.float64, device=device)
        jets = [Jet(origin, eye.expand(len(patterns), -1, -1))]
        for index, step in enumerate(self.steps[1 : last + 1], start=1):
            jets.append(step.jet([jets[i] for i in step.inputs], patterns[:, self.units(index)]))
        return jets

    def head_parameters(self) -> tuple[Tensor, Tensor]:
        """The weight W `(D, H)` and shift v `(D,)` of the head; the identity where there is none."""
        if self.head is not None:
            return self.head.weight, self.head.bias
        eye = torch.eye(self.output_dim, dtype=torch.float64, device=self.device)
        return eye, eye.new_zeros(self.output_dim)

    def restrict(self, origin: ArrayLike, basis: ArrayLike) -> Trace:
        """The generator on an affine subspace, `y -> g(origin + basis y)`.

        The result shares the parameters of this trace; `origin (S,)` and `basis (S, k)` are constants.

        Raises:
            ShapeError: the shapes do not fit the latent dimension.

        Example:
            >>> import girih, torch
            >>> t = girih.trace(girih.mlp([5, 8, 2], seed=0))
            >>> t.restrict(torch.zeros(5), torch.eye(5)[:, :2])
            Trace(S=2, D=2, U=8: 3 linear, 1 activation)
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
        first = LinearStep(LinearMap(Live(plane, "weight"), Live(plane, "bias"), plane), 0, plane, "the plane")
        rest = [step.rewired([index + 1 for index in step.inputs]) for step in self.steps[1:]]
        return Trace([LatentStep(k), first, *rest], self.output + 1, self.output_shape)

    def cut_at(self, levels: Tensor) -> Trace:
        """A generator, frozen, whose cells end where an output is at its level too: `|g(z) - levels|`, `(D,)`.

        Its patterns are those of this one, with the side of each level after them; NaN is no level.

        Example:
            >>> import girih, torch
            >>> t = girih.trace(girih.mlp([1, 4, 2], seed=0))
            >>> t.cut_at(torch.tensor([0.5, float("nan")])).hidden_units
            5
        """
        used = (~torch.isnan(levels)).nonzero()[:, 0]
        rows = torch.eye(self.output_dim, dtype=torch.float64, device=self.device)[used]
        plane = nn.utils.skip_init(nn.Linear, *rows.mT.shape, dtype=torch.float64, device=self.device)
        plane.weight, plane.bias = nn.Parameter(rows, False), nn.Parameter(-levels[used], False)
        steps, last = [step.frozen() for step in self.steps], len(self.steps)
        shift = LinearStep(
            LinearMap(Live(plane, "weight"), Live(plane, "bias"), plane), self.output, plane, "the levels"
        )
        return Trace(
            [*steps, shift, KinkStep((0.0,), (-1.0, 1.0), (0.0, 0.0), last, len(used), "the levels")], last + 1
        )


def _chain(steps: Sequence[Step], output: int) -> tuple[LinearStep | KinkStep, ...] | None:
    """The steps after the latent, where each is a stage of a chain and takes the one before it."""
    found: list[LinearStep | KinkStep] = []
    for index, step in enumerate(steps[1:], start=1):
        if step.inputs != (index - 1,) or not isinstance(step, LinearStep | KinkStep):
            return None
        if isinstance(step, KinkStep) and not step.bends_at_zero:
            return None
        found.append(step)
    return tuple(found) if output == len(steps) - 1 else None


def _deprecated(name: str, successor: str) -> None:
    warnings.warn(f"Trace.{name} is deprecated; use Trace.{successor}", DeprecationWarning, stacklevel=3)
