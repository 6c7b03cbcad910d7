"""`sample_posterior`: draws of the exact posterior of a row for latents of any dimension, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from girih._arrays import Rows
from girih._options import whole
from girih._progress import Progress
from girih._shown import Shown
from girih.networks import Trace
from girih.sampling.annealing import at, pilot
from girih.sampling.modes import Proposal, find_modes
from girih.sampling.motion import Flow, Places
from girih.sampling.row import Model, Row

_POINTS = 2**13  # rows times chains at a time
_MOVES = 2  # between jumps
_AHEAD = 16  # jumps that are drawn at once
_DESCENTS = 16  # of the chains of a row


@dataclass(frozen=True, repr=False)
class PosteriorDraws(Shown):
    """`PosteriorDraws` are draws of the posterior of each row by several chains, and say how good they are.

    Attributes:
        z: `(N, chains, samples, S)`.
        facets: how many facets a trajectory met on average.
    """

    z: Tensor
    facets: float

    @property
    def flat(self) -> Tensor:
        """The draws of all chains, `(N, chains * samples, S)`."""
        return self.z.flatten(1, 2)

    @property
    def mean(self) -> Tensor:
        """Their mean, `(N, S)`."""
        return self.flat.mean(1)

    @property
    def covariance(self) -> Tensor:
        """Their covariance, `(N, S, S)`."""
        off = self.flat - self.mean[:, None]
        return off.mT @ off / (off.shape[1] - 1)

    @property
    def standard_error(self) -> Tensor:
        """The standard error of the `mean`, `(N, S)`."""
        return (self.covariance.diagonal(dim1=1, dim2=2) / self.effective_samples).sqrt()

    @cached_property
    def effective_samples(self) -> Tensor:
        """So many independent draws would tell as much of the mean of each latent, `(N, S)`."""
        return effective_samples(self.z.movedim(3, 1))

    @cached_property
    def r_hat(self) -> Tensor:
        """How much wider all chains are than each of them, `(N, S)`: near 1, or they have not met the same modes."""
        return r_hat(self.z.movedim(3, 1))

    def _facts(self) -> Mapping[str, str]:
        N, chains, samples, S = self.z.shape
        return {
            "rows": f"{N:,}",
            "chains": f"{chains}",
            "samples": f"{samples:,}",
            "S": f"{S}",
            "fewest effective samples": f"{float(self.effective_samples.min()):.0f}",
            "largest r_hat": f"{float(self.r_hat.max()):.3f}",
        }


def sample_posterior(
    net: nn.Module | Trace,
    x: Rows,
    noise: object = None,
    prior: object = None,
    *,
    samples: int = 500,
    chains: int = 16,
    warmup: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorDraws:
    r"""You get draws of the exact posterior `p(z | x)`, `z ~ N(0, prior)`, `x = g(z) + N(0, noise)`, for any S.

    Chains come from the prior by annealing, and then move by Hamiltonian dynamics that is solved exactly within each
    cell of the generator: no step size, no rejection; in one cell consecutive draws are independent. After two such
    moves a Metropolis step may take a chain to another mode, of those that descents have found. Where `r_hat` is above
    1.01, or `effective_samples` few, take more chains rather than more draws: modes far apart are known as well as the
    chains have met them, and one that nothing has met is missing without a sign of it.

    For S <= 3 `girih.DGN(net, noise).posterior(x)` is exact, and draws from it are independent.

    Args:
        net: the generator g, any module that `girih.trace` takes, or a `girih.DGN`, which brings noise and prior.
        x: rows `(N, D)`; NaN where an entry is missing, which is marginalised.
        noise: variance of the noise: a number, `(D,)`, `(D, D)` or a `girih.Covariance`; 1 by default.
        prior: covariance of z; the identity by default.
        samples: draws that each chain keeps.
        chains: for each row.
        warmup: moves of each chain after annealing, before draws are kept.
        seed: of all draws.
        progress: show a bar.

    Returns:
        `PosteriorDraws`: `z (N, chains, samples, S)` with `mean`, `covariance`, `effective_samples` and `r_hat`.

    Raises:
        ParameterError: an option is out of its domain, or a `DGN` has other outputs or another prior.
        GirihError: the errors of `girih.trace` and `girih.DGN` on generator, noise, prior and rows, and where a
            trajectory meets more than 100,000 facets.

    Source:
        girih's own (see `girih.sampling.motion`), after Pakman & Paninski, Exact Hamiltonian Monte Carlo for truncated
        multivariate Gaussians (2014).

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([5, 8, 3], seed=0)
        >>> draws = girih.sample_posterior(net, torch.zeros(2, 3), noise=0.1, samples=100)
        >>> draws.z.shape, bool((draws.r_hat < 1.1).all())
        (torch.Size([2, 16, 100, 5]), True)
    """
    counts = whole(samples, "samples", 4), whole(chains, "chains", 2), whole(warmup, "warmup", 0)
    generator = torch.Generator().manual_seed(whole(seed, "seed", 0))
    model = Model.of(net, noise, prior, "posteriors are sampled")
    rows = model.rows(x)
    z = torch.empty(len(rows), chains, samples, model.trace.latent_dim, dtype=torch.float64)
    met, moves, bar = 0, 0, Progress("draw", len(rows), show=progress)
    try:
        with torch.no_grad():
            for places, row, _ in model.groups(rows, max(1, _POINTS // chains)):
                u, more = draws(row, counts, generator)
                z[places] = u @ model.factor.mT
                met, moves = met + more, moves + u[..., 0].numel()
                bar.show(moves // (chains * samples), "")
    finally:
        bar.close()
    return PosteriorDraws(z, met / moves)


def draws(row: Row, counts: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, int]:
    """Draws in white coordinates, `(N, chains, samples, S)`, and how many facets were met for them."""
    samples, chains, warmup = counts
    places, _ = pilot(row, chains, generator)
    N, S = len(row.y), len(row.factor)
    each = row.take(torch.arange(N).repeat_interleave(chains))
    proposal = Proposal.of(find_modes(row, generator, places.u.reshape(N, chains, S)[:, :_DESCENTS]))
    flow = Flow(each, torch.ones(N * chains, dtype=torch.float64))
    u = torch.empty(N * chains, warmup + samples, S, dtype=torch.float64)
    parts = u.split(_MOVES, 1)
    for part, other in zip(parts, _jumps(each, proposal, generator), strict=False):
        places, distance, part[:] = flow.moves(places, part.shape[1], generator)
        places = _jumped(each, places, distance, proposal, other)
        part[:, -1] = places.u
    met = flow.met * samples // (warmup + samples)
    return u[:, warmup:].reshape(N, chains, samples, S), met


class _Jump(NamedTuple):
    """Where each of the chains `(N C)` may jump to, draws that know nothing of where they are."""

    u: Tensor  # (N C, S)
    log_w: Tensor  # (N C,), log of the posterior by the proposal, less what is common
    level: Tensor  # (N C,), log of a uniform draw


def _jumps(row: Row, proposal: Proposal, generator: torch.Generator) -> Iterator[_Jump]:
    """Jumps without end, some moves' at a time."""
    N, C = len(proposal.place), len(row.y) // len(proposal.place)
    while True:
        u = proposal.draw(C * _AHEAD, generator)
        log_w = -row.energy(u.reshape(N * C, _AHEAD, -1)).flatten() - proposal.log_prob(u).flatten()
        level = torch.rand(len(log_w), dtype=torch.float64, generator=generator).log()
        for parts in zip(*(x.reshape(N * C, _AHEAD, -1).unbind(1) for x in (u, log_w, level)), strict=True):
            yield _Jump(parts[0], parts[1][:, 0], parts[2][:, 0])


def _jumped(row: Row, places: Places, distance: Tensor, proposal: Proposal, to: _Jump) -> Places:
    """A step of Metropolis and Hastings; `distance` is `|y - g|^2 / 2` where the chains are."""
    own = proposal.log_prob(places.u.reshape(len(proposal.place), -1, places.u.shape[1])).flatten()
    log_w = -distance - 0.5 * places.u.square().sum(1) - own
    goes = (to.level < to.log_w - log_w).nonzero()[:, 0]
    u, pattern = places.u.clone(), places.pattern.clone()
    u[goes], pattern[goes] = at(row, to.u[goes])
    return Places(u, pattern)


def _halves(chains: Tensor) -> Tensor:
    """Each chain `(..., C, M)` as two."""
    half = chains.shape[-1] // 2
    return torch.cat((chains[..., :half], chains[..., -half:]), -2)


def _variances(chains: Tensor) -> tuple[Tensor, Tensor]:
    """The variance within chains, and that of all of them together, as if they were stationary."""
    M = chains.shape[-1]
    within = chains.var(-1).mean(-1)
    return within, within * (M - 1) / M + chains.mean(-1).var(-1)


def r_hat(chains: Tensor) -> Tensor:
    """The split R-hat of chains `(..., C, M)`; 1 where they agree.

    Source:
        Gelman & Rubin (1992); split as in Gelman et al., Bayesian data analysis (2013).
    """
    within, total = _variances(_halves(chains))
    return torch.where(within > 0.0, (total / within).sqrt(), torch.where(total > 0.0, torch.inf, 1.0))


def effective_samples(chains: Tensor) -> Tensor:
    """How many independent draws know the mean as well as chains `(..., C, M)` do.

    Sums of autocorrelations up to where the sum of a pair is negative, made monotone; at most `C M log10(C M)`.

    Source:
        Vehtari et al., Rank-normalization, folding, and localization (2021), eq. 10-13, after Geyer (1992).

    Example:
        >>> import torch
        >>> from girih.sampling.posterior import effective_samples
        >>> white = torch.randn(4, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> bool((effective_samples(white) - 2000).abs() < 400)
        True
    """
    halves = _halves(chains)
    C, M = halves.shape[-2:]
    within, total = _variances(halves)
    off = halves - halves.mean(-1, keepdim=True)
    power = torch.fft.rfft(off, 2 * M).abs().square()
    autocovariance = torch.fft.irfft(power, 2 * M)[..., :M].mean(-2) / (M - 1)
    rho = 1.0 - (within[..., None] - autocovariance) / total[..., None].clamp(min=torch.finfo(off.dtype).tiny)
    rho[..., 0] = 1.0
    pairs = rho[..., : M // 2 * 2].unflatten(-1, (-1, 2)).sum(-1)
    kept = (pairs > 0.0).to(rho.dtype).cumprod(-1)
    time = 2.0 * (pairs * kept).cummin(-1).values.clamp(min=0.0).sum(-1) - 1.0
    found: Tensor = C * M / time.clamp(min=1.0 / math.log10(C * M))
    return found
