"""Where the posterior of a row is high, for latents of any dimension, and estimates of p(x) from there."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from girih.sampling.row import Row

_STARTS, _STEPS, _HALVINGS = 16, 60, 12
_APART = 1e-3
_LEAST = 30.0  # draws that carry an estimate, below which nothing is known of its error
_WIDER = 1.3  # deviations of a proposal to those of the posterior of the mode's cell
_PRIOR = 0.05  # of the proposals: where no mode was found there may be one


class Modes(NamedTuple):
    """They are places where descents have ended, the best first."""

    place: Tensor  # (m, S)
    energy: Tensor  # (m,)
    slope: Tensor  # (m, K, S)


def find_modes(row: Row, generator: torch.Generator, also: Tensor | None = None) -> Modes:
    """Gauss-Newton descents from 0, from draws of the prior, and from other points `(n, S)`.

    There is no promise that the highest mode is among them.
    """
    S = len(row.factor)
    u = torch.randn(_STARTS, S, dtype=torch.float64, generator=generator)
    u[0] = 0.0
    u = u if also is None else torch.cat((u, also))
    energy, eye = row.energy(u), torch.eye(S, dtype=torch.float64)
    for _ in range(_STEPS):
        residual, slope = row.linear(u)
        pull = (slope.mT @ residual[:, :, None])[:, :, 0] - u
        step = torch.linalg.solve(eye + slope.mT @ slope, pull)
        better = torch.zeros_like(energy, dtype=torch.bool)
        for k in range(_HALVINGS):
            tried = u + 0.5**k * step
            value = torch.where(better, energy, row.energy(tried))
            found = ~better & (value < energy - 1e-12 * (1.0 + energy.abs()))
            u, energy, better = torch.where(found[:, None], tried, u), torch.where(found, value, energy), better | found
            if better.all():
                break
        if not better.any():
            break
    order = energy.argsort()
    kept: list[int] = []
    for i in order.tolist():
        if all(float((u[i] - u[j]).abs().max()) > _APART for j in kept):
            kept.append(i)
    place = u[kept]
    return Modes(place, energy[kept], row.linear(place)[1])


class Proposal(NamedTuple):
    """Gaussians about the modes of each row, a little wider than the posteriors of their cells, and the prior."""

    place: Tensor  # (N, M, S)
    root: Tensor  # (N, M, S, S) lower, of the precisions
    log_share: Tensor  # (N, M), less that of the prior; -inf where a row has fewer modes

    @staticmethod
    def of(modes: list[Modes]) -> Proposal:
        """The proposals of rows with these modes."""
        most = max(len(one.energy) for one in modes)
        place, slope = (pad_sequence([one[i] for one in modes], batch_first=True) for i in (0, 2))
        energy = torch.full((len(modes), most), torch.inf, dtype=torch.float64)
        for row, one in zip(energy, modes, strict=True):
            row[: len(one.energy)] = one.energy
        eye = torch.eye(place.shape[2], dtype=torch.float64)
        root = torch.linalg.cholesky((eye + slope.mT @ slope) / _WIDER**2)
        log_share = torch.log_softmax(-energy - _log_det(root), 1) + math.log1p(-_PRIOR)
        return Proposal(place, root, log_share)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws `(N, count, S)`."""
        N, _, S = self.place.shape
        which = torch.multinomial(self.log_share.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(N, count, S, dtype=torch.float64, generator=generator)
        prior = torch.rand(N, count, dtype=torch.float64, generator=generator) < _PRIOR
        u, each = noise.clone(), torch.arange(N)[:, None].expand(-1, count)
        # one triangle for all draws of a mode: a batch of thin ones is slow
        for n, m in (~torch.isinf(self.log_share)).nonzero().tolist():
            of = (each == n) & (which == m) & ~prior
            u[of] = self.place[n, m] + torch.linalg.solve_triangular(self.root[n, m].mT, noise[of].mT, upper=True).mT
        return u

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-densities of u `(N, C, S)`, `(N, C)`, without the factor `(2 pi)^(-S/2)`."""
        off = (u[:, None] - self.place[:, :, None]) @ self.root
        parts = (self.log_share + _log_det(self.root))[:, :, None] - 0.5 * off.square().sum(3)
        return torch.logaddexp(torch.logsumexp(parts, 1), math.log(_PRIOR) - 0.5 * u.square().sum(2))


def _log_det(root: Tensor) -> Tensor:
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def estimate(row: Row, modes: Modes, count: int, generator: torch.Generator) -> tuple[float, float]:
    """`log int exp(-energy) (2 pi)^(-S/2) du` by importance sampling, and its standard error, both in nats.

    The error is infinite where fewer than thirty draws carry the estimate.
    """
    proposal = Proposal.of([modes])
    u = proposal.draw(count, generator)
    log_weight = -row.energy(u[0]) - proposal.log_prob(u)[0]
    peak = log_weight.max()
    weight = (log_weight - peak).exp()
    mean = weight.mean()
    error = float(weight.std() / (mean * math.sqrt(count)))
    carried = float(weight.sum().square() / weight.square().sum())
    return float(peak + mean.log()), error if carried >= _LEAST else math.inf
