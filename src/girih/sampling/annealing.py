r"""Annealing from the prior to the posterior of a row, by motion that leaves each temperature's distribution as it is.

At inverse temperature b the density is `phi(u) exp(-b l(u))`, `l = |y - g(u)|^2 / 2`. Its norm is 1 at b = 0, where
draws are exact, and `p(x)` over what all latents have in common at b = 1. Along `0 = b_0 < ... < b_T = 1`, with a move
at each temperature between, the weight of a chain

    log w = -sum_t (b_(t+1) - b_t) l(u_t)

has the mean of w without bias, so its logarithm is below log p(x) in expectation. The way back from an exact draw of
the posterior gives weights whose mean is 1 / p(x), and so a number above log p(x) in expectation: for a row that was
drawn from the model with its latent, such a draw is known (bidirectional Monte Carlo).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from girih._arrays import Rows, as_rows
from girih._options import whole
from girih._progress import Progress
from girih._shown import Shown
from girih.errors import ShapeError
from girih.networks import Trace
from girih.sampling.modes import Modes, find_modes, importance, log_mean
from girih.sampling.motion import Flow, Places
from girih.sampling.row import Model, Row

_POINTS = 2**15  # rows times chains at a time
_CARRIED = 0.5  # the share of the chains that carries a step of the pilot
_PILOTS = 32
_LEVELS = 1000  # of a pilot, before it gives up
_DRAWS = 8192  # of importance sampling
_NUMBERS = 2**24  # in the largest array
_STEPS, _CHAINS = 100, 64
_LEAST = 8.0  # chains that carry an estimate, below which nothing is known of its error


@dataclass(frozen=True, repr=False)
class Annealed(Shown):
    """An `Annealed` holds estimates of `log p(x)`, nats, `(N,)` each.

    Attributes:
        log_prob: below log p(x) in expectation; above it where latents were given.
        standard_error: of it, from the spread of the chains; infinite where fewer than eight of them carry it.
        effective_chains: `(sum w)^2 / sum w^2`.
    """

    log_prob: Tensor
    standard_error: Tensor
    effective_chains: Tensor

    def _facts(self) -> Mapping[str, str]:
        return {
            "rows": f"{len(self.log_prob):,}",
            "mean log_prob": f"{float(self.log_prob.mean()):.4f}",
            "largest standard error": f"{float(self.standard_error.max()):.2g}",
            "fewest effective chains": f"{float(self.effective_chains.min()):.3g}",
        }


def annealed(
    net: nn.Module | Trace,
    x: Rows,
    noise: object = None,
    prior: object = None,
    *,
    z: Rows | None = None,
    temperatures: int = 100,
    chains: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Annealed:
    r"""You get `log p(x)` by annealed importance sampling, with its standard error, for any latent dimension.

    Chains go from the prior to the posterior; between temperatures they move by Hamiltonian dynamics that is solved
    exactly within each cell of the generator, so no step is rejected. `exp(log_prob)` has no bias, and log_prob is
    below log p(x) in expectation; the standard error is that of the mean of the chains' weights.

    With `z`, the latents that the rows were made from, chains go back from there, and log_prob is above log p(x) in
    expectation: the two enclose log p(x) of simulated rows, which says how good annealing is for a model.

    Args:
        net: the generator g, any module that `girih.trace` takes, or a `girih.DGN`, which brings noise and prior.
        x: rows `(N, D)`; NaN where an entry is missing, which is marginalised.
        noise: variance of the noise: a number, `(D,)`, `(D, D)` or a `girih.Covariance`; 1 by default.
        prior: covariance of z; the identity by default.
        z: `(N, S)`, an exact draw of the posterior of each row, as the latent is from which a row was drawn.
        temperatures: T, steps from the prior to the posterior. A pilot of 32 chains says where they are needed.
        chains: for each row.
        seed: of all draws.
        progress: show a bar.

    Raises:
        ParameterError: an option is out of its domain, or a `DGN` has other outputs or another prior.
        GirihError: the errors of `girih.trace` and `girih.DGN` on generator, noise, prior and rows, and where a
            trajectory meets more than 100,000 facets.

    Source:
        Neal, Annealed importance sampling (2001); Grosse, Ancha & Roy, Measuring the reliability of MCMC inference with
        bidirectional Monte Carlo (2016); the moves are girih's own: see `girih.sampling.motion`.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([5, 8, 3], seed=0)
        >>> found = girih.sampling.annealed(net, torch.zeros(1, 3), noise=0.1, temperatures=20)
        >>> bool(found.standard_error < 0.2)
        True
    """
    steps, chains = whole(temperatures, "temperatures", 1), whole(chains, "chains", 2)
    generator = torch.Generator().manual_seed(whole(seed, "seed", 0))
    model = Model.of(net, noise, prior, "annealing is")
    rows = model.rows(x)
    latents = None if z is None else as_rows(z, "z", model.trace.latent_dim, "the latent dimension S").detach()
    if latents is not None and len(latents) != len(rows):
        raise ShapeError(f"x has {len(rows)} rows and z {len(latents)}; z is one latent for each row")
    out = torch.empty(3, len(rows), dtype=torch.float64)
    bar, done = Progress("anneal", len(rows), show=progress), 0
    try:
        with torch.no_grad():
            for places, row, common in model.groups(rows, max(1, _POINTS // chains)):
                first = None if latents is None else _white(model, latents[places])
                log_w = weights(row, steps, chains, generator, first)
                sign = 1.0 if first is None else -1.0
                value, error, carried = log_mean(log_w, _LEAST)
                out[:, places] = torch.stack((common + sign * value, error, carried))
                done += len(places)
                bar.show(done, "")
    finally:
        bar.close()
    return Annealed(*out)


def _white(model: Model, z: Tensor) -> Tensor:
    white: Tensor = torch.linalg.solve_triangular(model.factor, z.mT, upper=False)
    return white.mT


def modes_of(row: Row, generator: torch.Generator) -> list[Modes]:
    """Modes by descents from draws of the prior and from chains that annealing has brought to the posterior.

    The latter find those of little weight too, without which importance sampling misses more than its error says.
    """
    places, _ = pilot(row, _PILOTS, generator)
    return find_modes(row, generator, places.u.reshape(len(row.y), _PILOTS, -1))


class Estimates(NamedTuple):
    """Estimates of `log int exp(-energy) (2 pi)^(-S/2) du`, nats, `(N,)` each."""

    value: Tensor
    error: Tensor  # its standard error
    annealed: Tensor  # true where it is from annealing, false where from importance sampling


def estimates(row: Row, modes: list[Modes], generator: torch.Generator, patient: bool = True) -> Estimates:
    """By importance sampling from the modes; by annealing where too few draws carry that, for those who are patient."""
    per = max(1, _NUMBERS // (_DRAWS * len(row.factor) ** 2))
    parts = [
        importance(row.take(of), [modes[n] for n in of.tolist()], _DRAWS, generator)
        for of in torch.arange(len(modes)).split(per)
    ]
    value, error = (torch.cat(part) for part in zip(*parts, strict=True))
    poor = torch.isinf(error)
    if patient and bool(poor.any()):
        log_w = weights(row.take(poor), _STEPS, _CHAINS, generator)
        value[poor], error[poor], _ = log_mean(log_w, _LEAST)
    return Estimates(value, error, poor & patient)


def weights(row: Row, steps: int, chains: int, generator: torch.Generator, first: Tensor | None = None) -> Tensor:
    """Log-weights `(N, C)` of chains from the prior to the posterior, or back from `first (N, S)`."""
    schedule = spread(pilot(row, _PILOTS, generator)[1], steps)
    index = torch.arange(len(row.y)).repeat_interleave(chains)
    each, b = row.take(index), schedule[index]
    if first is None:
        places = from_prior(each, generator)
        order = range(steps)
    else:
        places = at(each, first[index])
        order = range(steps - 1, -1, -1)
        places, _ = Flow(each, b[:, steps]).move(places, generator)
    log_w, distance = torch.zeros_like(b[:, 0]), each.distance(places.u)
    for step, t in enumerate(order):
        log_w = log_w - (b[:, t + 1] - b[:, t]) * distance * (1.0 if first is None else -1.0)
        if step < steps - 1:
            places, distance = Flow(each, b[:, t + 1] if first is None else b[:, t]).move(places, generator)
    return log_w.reshape(-1, chains)


def at(row: Row, u: Tensor) -> Places:
    """Points with their cells."""
    return Places(u, row.trace.pattern(u @ row.factor.mT))


def from_prior(row: Row, generator: torch.Generator) -> Places:
    """A draw of the prior for each row."""
    return at(row, torch.randn(len(row.y), len(row.factor), dtype=torch.float64, generator=generator))


def pilot(row: Row, chains: int, generator: torch.Generator) -> tuple[Places, Tensor]:
    """Chains `(N C)` from the prior to the posteriors, resampled on the way, and their temperatures `(N, T + 1)`.

    At each step half of the chains carry the weights. Rows that have arrived stay at 1.
    """
    N = len(row.y)
    index = torch.arange(N).repeat_interleave(chains)
    each = row.take(index)
    places = from_prior(each, generator)
    distance, b = each.distance(places.u), torch.zeros(N, dtype=torch.float64)
    levels = [b]
    for _ in range(_LEVELS):
        ahead = _next(distance.reshape(N, chains), b)
        log_w = -(ahead - b)[:, None] * distance.reshape(N, chains)
        chosen = _systematic(log_w, generator) + chains * torch.arange(N)[:, None]
        b = ahead
        levels.append(b)
        places = Places(*(part[chosen.flatten()] for part in places))
        places, distance = Flow(each, b[index]).move(places, generator)
        if bool((b >= 1.0).all()):
            break
    return places, torch.stack(levels, 1)


def _next(distance: Tensor, b: Tensor) -> Tensor:
    """The inverse temperature `(N,)` at which a share of the chains `(N, C)` carries the weights; 1 at most."""
    low, high = torch.zeros_like(b), 1.0 - b
    for _ in range(50):
        tried = torch.where(low == 0.0, high, 0.5 * (low + high))
        log_w = -tried[:, None] * distance
        carried = (2.0 * torch.logsumexp(log_w, 1) - torch.logsumexp(2.0 * log_w, 1)).exp() / distance.shape[1]
        good = carried >= _CARRIED
        low = torch.where(good, tried, low)
        high = torch.where(good, high, torch.where(low == 0.0, 0.1 * tried, tried))
    found: Tensor = torch.where(low >= 1.0 - b, 1.0, b + low)
    return found


def _systematic(log_w: Tensor, generator: torch.Generator) -> Tensor:
    """Which of the chains `(N, C)` go on, `(N, C)`, each about as often as its share of the weights."""
    N, C = log_w.shape
    edges = torch.softmax(log_w, 1).cumsum(1)
    offset = torch.rand(N, 1, dtype=torch.float64, generator=generator)
    targets = (torch.arange(C, dtype=torch.float64) + offset) / C * edges[:, -1:]
    return torch.searchsorted(edges, targets).clamp(max=C - 1)


def spread(levels: Tensor, steps: int) -> Tensor:
    """A schedule `(N, steps + 1)` with as many steps between two of the pilot's levels `(N, T + 1)` as elsewhere."""
    N, last = len(levels), (levels < 1.0).sum(1)  # the first place of 1
    place = torch.arange(steps + 1, dtype=torch.float64) / steps * last[:, None]
    lower = place.floor().long().clamp(max=levels.shape[1] - 2)
    part = place - lower
    each = torch.arange(N)[:, None]
    low, high = levels[each, lower], levels[each, lower + 1]
    geometric = (low.clamp(min=1e-300).log() * (1.0 - part) + high.log() * part).exp()
    schedule = torch.where(low > 0.0, geometric, part * high)
    schedule[:, 0], schedule[:, -1] = 0.0, 1.0
    return schedule
