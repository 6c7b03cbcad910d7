"""The view of a generator that everything else in girih works on: stages, patterns, maps of cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from girih._arrays import as_rows
from girih.networks.stages import Affine, PiecewiseLinear, Stage


class Jet(NamedTuple):
    """An affine map on each cell, written about a point `o` of the cell: `z -> value + slope (z - o)`."""

    value: Tensor  # (R, H)
    slope: Tensor  # (R, H, S)


class Trace:
    """A generator as a chain of affine and piecewise-linear stages.

    Made by `girih.trace`. On a cell of the latent space with activation pattern q the generator is
    affine, `g(z) = A z + b`; a trace gives the patterns and the maps (EM-DGN, eq. 1-2).

    Attributes:
        latent_dim: S, the dimension of z.
        output_dim: D, the dimension of x.
        hidden_units: U, the number of units with a kink.
    """

    def __init__(self, stages: list[Stage], latent_dim: int, output_dim: int) -> None:
        self.stages = stages
        self.latent_dim = latent_dim
        self.output_dim = output_dim
        self.hidden_units = sum(stage.units for stage in stages if isinstance(stage, PiecewiseLinear))
        last = stages[-1] if stages else None
        self.head: Affine | None = last if isinstance(last, Affine) else None
        self.body: list[Stage] = stages[:-1] if self.head is not None else list(stages)

    @property
    def device(self) -> torch.device:
        """Where the parameters of the generator are."""
        return next((s.weight.device for s in self.stages if isinstance(s, Affine)), torch.device("cpu"))

    def _latents(self, z: Any) -> Tensor:
        return as_rows(z, "z", self.latent_dim, "the latent dimension S", device=self.device, allow_empty=True)

    def __call__(self, z: Any) -> Tensor:
        """g(z) in float64, `(N, D)`."""
        h = self._latents(z)
        for stage in self.stages:
            if isinstance(stage, Affine):
                h = torch.nn.functional.linear(h, stage.weight, stage.bias)
            else:
                h = h * stage.slopes(h)
        return h

    def pattern(self, z: Any) -> Tensor:
        """The sign, +1 or -1, of every hidden unit at each z, `(N, U)` int8; a unit at 0 counts as -1."""
        h = self._latents(z)
        signs = [torch.empty(h.shape[0], 0, dtype=torch.int8, device=h.device)]
        with torch.no_grad():
            for stage in self.stages:
                if isinstance(stage, Affine):
                    h = torch.nn.functional.linear(h, stage.weight, stage.bias)
                else:
                    signs.append(torch.where(h > 0, 1, -1).to(torch.int8))
                    h = h * stage.slopes(h)
        return torch.cat(signs, 1)

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
        jets = self.jets(patterns, origin)
        return jets[-1]

    def hidden_jet(self, patterns: Tensor, origin: Tensor) -> Jet:
        """The map from z to the last hidden features on each cell, about the points `origin (R, S)`.

        The features are the input of the last affine stage, or the output where there is none.
        """
        return self.jets(patterns, origin)[len(self.body)]

    def jets(self, patterns: Tensor, origin: Tensor) -> list[Jet]:
        """The map from z to the input of every stage, and last to the output, on each cell.

        The value is propagated through the layers instead of formed as `A o + b`, so nothing cancels
        for cells far from 0. Differentiable in the parameters with the patterns held fixed.
        """
        device = self.device
        patterns, origin = patterns.to(device), origin.to(device)
        eye = torch.eye(self.latent_dim, dtype=torch.float64, device=device)
        jet = Jet(origin, eye.expand(len(patterns), -1, -1))
        jets = [jet]
        start = 0
        for stage in self.stages:
            if isinstance(stage, Affine):
                weight = stage.weight
                jet = Jet(torch.nn.functional.linear(jet.value, weight, stage.bias), weight @ jet.slope)
            else:
                slopes = stage.slopes(patterns[:, start : start + stage.units])
                jet = Jet(jet.value * slopes, jet.slope * slopes[:, :, None])
                start += stage.units
            jets.append(jet)
        return jets

    def head_parameters(self) -> tuple[Tensor, Tensor]:
        """W `(D, H)` and v `(D,)` of the last affine stage; the identity when the last stage is a kink."""
        if self.head is not None:
            return self.head.weight, self.head.bias
        eye = torch.eye(self.output_dim, dtype=torch.float64, device=self.device)
        return eye, eye.new_zeros(self.output_dim)
