"""The dimension of what dropout and dropconnect make of a generator, over realisations of the noise and cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girih._options import real, whole
from girih._progress import Progress
from girih.errors import ParameterError, UnsupportedLayerError
from girih.geometry.cells import Shown, enumerate_cells
from girih.geometry.dimension import RANK_TOLERANCE, intrinsic_dimension, ranks
from girih.geometry.priors import Prior, PriorLike, as_prior
from girih.networks import Abs, KinkStep, LinearStep, Trace, trace
from girih.partition import MAX_LATENT_DIM

KINDS = ("dropout", "dropconnect")
_SAMPLED = 2000  # latents for each realisation, as in Figure 2 of the paper
_BUDGET = 1 << 20  # numbers in the largest array of a batch of realisations: 8 MB
_WORD = 62  # bits of a pattern in one whole number


@dataclass(frozen=True, repr=False)
class DropoutDimensions(Shown):
    """The share of the cells of noisy generators that have each intrinsic dimension.

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
    prior: PriorLike = 1.0,
    tolerance: float = RANK_TOLERANCE,
    progress: bool = True,
    output_noise: bool = False,
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
        output_noise: drop outputs (weights) of the last layer, too.

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
    tolerance = real(tolerance, "tolerance", positive=False)
    if tolerance >= 1.0:
        raise ParameterError(f"tolerance must be below 1, got {tolerance}")
    noise = _Noise(traced, probability, kind, output_noise, torch.Generator().manual_seed(seed))
    latent = as_prior(prior, traced.latent_dim)
    size = 1 if number is None else _batch(traced, number)
    found = []
    bar = Progress(kind, draws, show=progress)
    try:
        for start in range(0, draws, size):
            some = min(size, draws - start)
            found.append(
                _enumerated(noise, prior, tolerance)
                if number is None
                else _sampled(noise, some, number, latent, tolerance)
            )
            bar.show(start + some, "")
    finally:
        bar.close()
    mass, count = (torch.cat(part) for part in zip(*found, strict=True))
    return DropoutDimensions(torch.arange(traced.latent_dim + 1), mass, count, number is None)


def noisy_generator(
    net: nn.Module | Trace, probability: float, kind: str = "dropout", seed: int = 0, output_noise: bool = False
) -> nn.Sequential:
    r"""One realisation of a generator with dropout or dropconnect: a chain of copied layers, in float64.

    With 0/1 masks r and R, a hidden layer with the activation a becomes `r * a(W h + v)` under dropout and
    `a((R * W) h + v)` under dropconnect. Outputs are not scaled by `1 / (1 - probability)`, as they are not in the
    paper. Dropped units are removed from the chain, since they have no kinks in it; a layer that loses all of them
    keeps one that nothing is made of. The last layer has no noise by default: it is not a hidden layer, and dropping
    outputs puts the image on coordinate planes. Equation 7 of the paper multiplies it by a mask, too.

    Args:
        net: a fully connected chain.
        probability: of dropping an entry, from 0 to 1.
        kind: "dropout" or "dropconnect".
        seed: of the masks; the first realisation of `dropout_dimensions` with the same seed.
        output_noise: drop outputs (weights) of the last layer, too.

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
    generator = torch.Generator().manual_seed(whole(seed, "seed", 0))
    return _realisation(_Noise(trace(net), probability, kind, output_noise, generator))


class _Noise:
    """A chain and the masks that are drawn for it, one list after the other."""

    def __init__(
        self, traced: Trace, probability: float, kind: str, output_noise: bool, generator: torch.Generator
    ) -> None:
        self.probability = real(probability, "probability", positive=False)
        if self.probability > 1.0:
            raise ParameterError(f"probability must be from 0 to 1; got {probability}")
        if kind not in KINDS:
            raise ParameterError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        self.traced, self.kind, self.generator = traced, kind, generator
        self.stages = _chain_of(traced)
        layers = [stage for stage in self.stages if isinstance(stage, LinearStep)]
        self.weights = [layer.weight.detach().cpu() for layer in layers]
        self.biases = [layer.bias.detach().cpu() for layer in layers]
        self.noisy = len(layers) - (not output_noise)

    def masks(self) -> list[Tensor]:
        """Draws what is kept of each affine layer: of its outputs `(out,)`, or of its weights `(out, in)`."""
        kept = []
        for index, weight in enumerate(self.weights):
            shape = weight.shape[: 1 if self.kind == "dropout" else 2]
            if index < self.noisy:
                kept.append(torch.rand(shape, generator=self.generator, dtype=torch.float64) >= self.probability)
            else:
                kept.append(torch.ones(shape, dtype=torch.bool))
        return kept

    def next_seed(self) -> int:
        """Draws the seed of the latents of a realisation."""
        return int(torch.randint(1 << 62, (), generator=self.generator))


def _chain_of(traced: Trace) -> tuple[LinearStep | KinkStep, ...]:
    if traced.chain is None:
        raise UnsupportedLayerError(
            "masks are drawn for a fully connected chain: Linear layers one after the other, with ReLU, LeakyReLU, "
            "PReLU or absolute values between them; this network has other layers or branches"
        )
    return traced.chain


def _enumerated(noise: _Noise, prior: PriorLike, tolerance: float) -> tuple[Tensor, Tensor]:
    """Masses and counts of one realisation, from all of its cells, `(1, S + 1)`."""
    noisy = _realisation(noise)
    noise.next_seed()  # one for each realisation, so that these do not depend on how cells are found
    found = enumerate_cells(noisy, prior)
    rank = intrinsic_dimension(found, tolerance).values.cpu()
    share, width = (found.mass / found.mass.sum()).cpu(), found.latent_dim + 1
    return torch.bincount(rank, share, width)[None], torch.bincount(rank, minlength=width)[None]


def _sampled(noise: _Noise, size: int, n: int, prior: Prior, tolerance: float) -> tuple[Tensor, Tensor]:
    """The same of several realisations, from the cells that n draws meet in each."""
    masks, latents = [], []
    for _ in range(size):
        masks.append(noise.masks())
        latents.append(prior.sample(n, torch.Generator().manual_seed(noise.next_seed())))
    weights, biases = [], []
    for weight, bias, *kept in zip(noise.weights, noise.biases, *masks, strict=True):
        mask = torch.stack(kept)
        rows = noise.kind == "dropout"  # units without weights and bias are 0, as dropped ones
        weights.append(weight * (mask[..., None] if rows else mask))
        biases.append(bias * mask if rows else bias.expand(size, -1))
    met, count = ranks_met(noise.traced, weights, biases, torch.stack(latents), tolerance)
    return met / n, count


def _batch(traced: Trace, n: int) -> int:
    """The number of realisations that are computed at once."""
    widest = max((stage.out_features for stage in traced.chain or () if isinstance(stage, LinearStep)), default=1)
    return max(1, _BUDGET // (max(widest, traced.latent_dim) * traced.latent_dim * n))


def _realisation(noise: _Noise) -> nn.Sequential:
    """The next one, as a chain without the dropped units."""
    stages = noise.stages
    affine = iter(zip(noise.weights, noise.biases, noise.masks(), strict=True))
    last = max((i for i, stage in enumerate(stages) if isinstance(stage, LinearStep)), default=-1)
    kept = torch.ones(noise.traced.latent_dim, dtype=torch.bool)
    silent = False  # whether the one unit that is left of the layer before was dropped, too
    layers: list[nn.Module] = []
    for index, stage in enumerate(stages):
        if isinstance(stage, KinkStep):
            layers.append(_activation(stage.slope.detach().cpu().expand(stage.size)[kept]))
            continue
        weight, bias, mask = next(affine)
        weight = weight[:, kept].clone()
        if silent:
            weight = torch.zeros_like(weight)
        kept, silent = torch.ones(len(weight), dtype=torch.bool), False
        if noise.kind == "dropconnect":
            weight = weight * mask
        elif index == last:  # an output that is dropped is 0, and no unit to remove
            weight, bias = weight * mask[:, None], bias * mask
        else:
            kept = mask
            silent = not bool(kept.any())
            if silent:
                kept = torch.zeros_like(mask).index_fill(0, torch.tensor(0), True)
                weight[0] = 0.0  # a constant, without kinks
        layers.append(_linear(weight[kept], bias[kept]))
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight), dtype=torch.float64)
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


def ranks_met(
    traced: Trace, weights: Sequence[Tensor], biases: Sequence[Tensor], z: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    r"""The number of draws in cells of each rank, and of these cells, `(B, S + 1)` each.

    The generators are a chain with other parameters in its affine layers. All layers are batched products, and each
    cell is looked at once.

    Args:
        traced: the chain, for the order of layers and the slopes.
        weights: of each affine layer, `(B, out, in)`.
        biases: of each affine layer, `(B, out)`.
        z: the draws, `(B, n, S)`.
        tolerance: as in `intrinsic_dimension`.
    """
    batch, n, S = z.shape
    signs = _signs(traced, weights, biases, z.mT.contiguous())
    owner, first, count = _distinct(signs, batch, n)
    place, most = _places(owner, batch)
    chosen = torch.zeros(batch, most, dtype=torch.int64)
    chosen[owner, place] = first
    rank = ranks(_maps(traced, weights, signs, chosen)[owner, place], tolerance)
    index = owner * (S + 1) + rank
    met = torch.bincount(index, count, batch * (S + 1)).reshape(batch, S + 1)
    return met, torch.bincount(index, minlength=batch * (S + 1)).reshape(batch, S + 1)


def _signs(traced: Trace, weights: Sequence[Tensor], biases: Sequence[Tensor], h: Tensor) -> list[Tensor]:
    """Tells which units are above their kinks at each draw, `(B, units, n)` for each activation."""
    signs = []
    layers = iter(zip(weights, biases, strict=True))
    for stage in traced.chain or ():
        if isinstance(stage, LinearStep):
            weight, bias = next(layers)
            h = torch.baddbmm(bias[:, :, None], weight, h)
        else:
            above = h > 0
            signs.append(above)
            h = torch.where(above, h, h * stage.slope.detach().cpu().reshape(-1, 1))
    return signs


def _distinct(signs: list[Tensor], batch: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The generator of each cell, the index of a draw in it, and the number of its draws, all `(R,)`."""
    code = torch.arange(batch)[:, None].expand(batch, n).reshape(-1)
    bits = torch.cat([torch.empty(batch, 0, n, dtype=torch.bool), *signs], 1)
    for start in range(0, bits.shape[1], _WORD):
        part = bits[:, start : start + _WORD]
        word = torch.zeros(batch, n, dtype=torch.int64)
        for place in range(part.shape[1]):
            word += part[:, place].to(torch.int64) << place
        known, word = word.reshape(-1).unique(return_inverse=True)
        code = (code * len(known) + word).unique(return_inverse=True)[1]
    count = torch.bincount(code)
    first = torch.empty_like(count)
    first[code] = torch.arange(batch * n)
    return first // n, first % n, count.to(torch.float64)


def _places(owner: Tensor, batch: int) -> tuple[Tensor, int]:
    """The place of each cell among those of its generator, and the largest number of cells."""
    order = owner.argsort(stable=True)
    number = torch.bincount(owner, minlength=batch)
    begin = number.cumsum(0) - number
    place = torch.empty_like(owner)
    place[order] = torch.arange(len(owner)) - begin[owner[order]]
    return place, int(number.max())


def _maps(traced: Trace, weights: Sequence[Tensor], signs: list[Tensor], chosen: Tensor) -> Tensor:
    """A at the chosen draws `(B, m)` of each generator, `(B, m, D, S)`."""
    batch, m = chosen.shape
    S = traced.latent_dim
    jet = torch.eye(S, dtype=torch.float64)[None, :, None].expand(batch, S, m, S)
    layers, kinks = iter(weights), iter(signs)
    for stage in traced.chain or ():
        if isinstance(stage, LinearStep):
            weight = next(layers)
            jet = torch.bmm(weight, jet.reshape(batch, jet.shape[1], m * S)).reshape(batch, -1, m, S)
        else:
            above = next(kinks)
            above = above.gather(2, chosen[:, None].expand(batch, above.shape[1], m))
            slope = torch.where(above, 1.0, stage.slope.detach().cpu().reshape(-1, 1))
            jet = jet * slope[..., None]
    return jet.permute(0, 2, 1, 3)
