"""The dimension of what dropout and dropconnect make of a generator, over realisations of the noise and cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girih._options import real, whole
from girih._progress import Progress
from girih.errors import ParameterError
from girih.geometry.cells import enumerate_cells
from girih.geometry.sampling import sample_cells
from girih.geometry.spectrum import RANK_TOLERANCE, intrinsic_dimension
from girih.networks import Abs, Affine, PiecewiseLinear, Trace, trace
from girih.partition import MAX_LATENT_DIM

KINDS = ("dropout", "dropconnect")
_SAMPLED = 2000  # latents for each realisation, as in Figure 2 of the paper


@dataclass(frozen=True)
class DropoutDimensions:
    """How often the cells of noisy generators have each intrinsic dimension.

    Attributes:
        dimensions: 0 to S, `(S + 1,)`.
        mass: prior mass of the cells of each dimension, for every realisation, `(draws, S + 1)`; rows sum to 1.
        count: number of cells of each dimension, `(draws, S + 1)`: of all cells, or of those that were met.
        frequencies: prior mass of each dimension, averaged over realisations, `(S + 1,)`.
        errors: standard errors of `frequencies`, over realisations, `(S + 1,)`; NaN for a single one.
        exact: whether all cells of each realisation were enumerated; the realisations are a sample even then.
    """

    dimensions: Tensor
    mass: Tensor
    count: Tensor
    exact: bool

    @property
    def frequencies(self) -> Tensor:
        """Prior mass of each dimension, averaged over realisations, `(S + 1,)`."""
        return self.mass.mean(0)

    @property
    def errors(self) -> Tensor:
        """Standard errors of `frequencies`, `(S + 1,)`; NaN for a single realisation."""
        if len(self.mass) < 2:
            return torch.full_like(self.mass[0], math.nan)
        return self.mass.std(0) / math.sqrt(len(self.mass))

    @property
    def mean(self) -> float:
        """The average dimension."""
        return float(self.frequencies @ self.dimensions.to(torch.float64))


def dropout_dimensions(
    net: nn.Module | Trace,
    probability: float,
    draws: int = 100,
    cells: int | None = None,
    kind: str = "dropout",
    seed: int = 0,
    prior: Any = 1.0,
    tolerance: float = RANK_TOLERANCE,
    progress: bool = True,
) -> DropoutDimensions:
    r"""The distribution of the intrinsic dimension over noise realisations and the cells of each.

    Every realisation is a generator with cells of its own (see `noisy_generator`). For S <= 3 all of them are
    enumerated, with exact prior masses; otherwise they are those that prior draws meet. A realisation can have cells
    of a larger dimension than all those of the network, contrary to the upper bound of Proposition 2: where a
    dropped unit kept others from being active.

    Args:
        net: a fully connected chain: Linear layers with ReLU, LeakyReLU, PReLU or absolute values.
        probability: of dropping an entry, from 0 to 1.
        draws: the number of realisations.
        cells: sample the cells with so many prior draws for each realisation; by default S <= 3 is enumerated and a
            larger S takes 2000.
        kind: "dropout" drops outputs of hidden layers, "dropconnect" weights of hidden layers.
        seed: of the noise and of the latents.
        prior: of the latents, as in `sample_cells`.
        tolerance: as in `intrinsic_dimension`.
        progress: show a bar.

    Raises:
        UnsupportedLayerError: the network is not a fully connected chain.
        ParameterError: an option is out of its domain.

    Source:
        MAS, section 3.2, Proposition 2 and Figure 2; appendix J, equation 7.

    Example:
        >>> import girih
        >>> net = girih.mlp([2, 4, 5], seed=0)
        >>> found = girih.geometry.dropout_dimensions(net, 0.5, draws=20, seed=0)
        >>> found.dimensions.tolist(), found.mass.shape, found.exact
        ([0, 1, 2], torch.Size([20, 3]), True)
    """
    traced = trace(net)
    draws, seed = whole(draws, "draws"), whole(seed, "seed", 0)
    number = None if cells is None else whole(cells, "cells")
    if number is None and traced.latent_dim > MAX_LATENT_DIM:
        number = _SAMPLED
    noise = torch.Generator().manual_seed(seed)
    mass, count = [], []
    bar = Progress(kind, draws, show=progress)
    try:
        for draw in range(draws):
            noisy = _realisation(traced, probability, kind, noise)
            start = int(torch.randint(1 << 62, (), generator=noise))
            found = enumerate_cells(noisy, prior) if number is None else sample_cells(noisy, number, prior, start)
            rank = intrinsic_dimension(found, tolerance).values.cpu()
            share = (found.mass / found.mass.sum()).cpu()
            mass.append(torch.bincount(rank, share, traced.latent_dim + 1))
            count.append(torch.bincount(rank, minlength=traced.latent_dim + 1))
            bar.show(draw + 1, "")
    finally:
        bar.close()
    return DropoutDimensions(torch.arange(traced.latent_dim + 1), torch.stack(mass), torch.stack(count), number is None)


def noisy_generator(net: nn.Module | Trace, probability: float, kind: str = "dropout", seed: int = 0) -> nn.Sequential:
    r"""One realisation of a generator with dropout or dropconnect: a chain of copied layers, in float64.

    With 0/1 masks r and R, a hidden layer with the activation a becomes `r * a(W h + v)` under dropout and
    `a((R * W) h + v)` under dropconnect. Outputs are not scaled by `1 / (1 - probability)`, as they are not in the
    paper. Dropped units are removed from the chain, since they have no kinks in it; a layer that loses all of them
    keeps one that nothing is made of. The last layer has no noise.

    Args:
        net: a fully connected chain.
        probability: of dropping an entry, from 0 to 1.
        kind: "dropout" or "dropconnect".
        seed: of the masks; the first realisation of `dropout_dimensions` with the same seed.

    Raises:
        UnsupportedLayerError: the network is not a fully connected chain.
        ParameterError: an option is out of its domain.

    Source:
        MAS, appendix J, equation 7 and the one after it.

    Example:
        >>> import girih
        >>> girih.geometry.noisy_generator(girih.mlp([2, 4, 5], seed=0), 0.5, seed=0)
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): LeakyReLU(negative_slope=0.1)
          (2): Linear(in_features=3, out_features=5, bias=True)
        )
    """
    return _realisation(trace(net), probability, kind, torch.Generator().manual_seed(whole(seed, "seed", 0)))


def _realisation(traced: Trace, probability: float, kind: str, noise: torch.Generator) -> nn.Sequential:
    probability = real(probability, "probability", positive=False)
    if probability > 1.0:
        raise ParameterError(f"probability must be from 0 to 1; got {probability}")
    if kind not in KINDS:
        raise ParameterError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    stages = traced.stages
    last = max((i for i, stage in enumerate(stages) if isinstance(stage, Affine)), default=-1)
    kept = torch.ones(traced.latent_dim, dtype=torch.bool)
    silent = False  # whether the one unit that is left of the layer before was dropped, too
    layers: list[nn.Module] = []
    for index, stage in enumerate(stages):
        if isinstance(stage, PiecewiseLinear):
            layers.append(_activation(stage.slope.detach().cpu().expand(stage.units)[kept]))
            continue
        weight, bias = stage.weight.detach().cpu()[:, kept].clone(), stage.bias.detach().cpu()
        if silent:
            weight = torch.zeros_like(weight)
        kept, silent = torch.ones(len(weight), dtype=torch.bool), False
        if index < last:
            if kind == "dropout":
                kept = torch.rand(len(weight), generator=noise, dtype=torch.float64) >= probability
                silent = not bool(kept.any())
                if silent:
                    kept[0], weight[0] = True, 0.0  # a constant, without kinks
            else:
                weight = weight * (torch.rand(weight.shape, generator=noise, dtype=torch.float64) >= probability)
        layers.append(_linear(weight[kept], bias[kept]))
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def _activation(slope: Tensor) -> nn.Module:
    first = float(slope[0])
    if not (slope == first).all():
        layer = nn.PReLU(len(slope), dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(slope)
        return layer
    return nn.ReLU() if first == 0.0 else Abs() if first == -1.0 else nn.LeakyReLU(first)
