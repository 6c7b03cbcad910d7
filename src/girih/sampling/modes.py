"""Where the posterior of a row is high, for latents of any dimension, and estimates of p(x) from there."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from girih.sampling.row import Row, root_of

_STARTS, _STEPS, _HALVINGS = 16, 60, 12
_APART = 1e-3
_LEAST = 30.0  # draws that carry an estimate, below which nothing is known of its error
# shares of the proposals of a mode, and their deviations by those of the posterior of its cell: some are wide, for what
# kinks let out of it
_WIDTHS = (0.8, 1.2), (0.2, 2.5)
_PRIOR = 0.05  # of the proposals: where no mode was found there may be one


class Modes(NamedTuple):
    """They are places where descents have ended, the best first."""

    place: Tensor  # (m, S)
    energy: Tensor  # (m,)
    slope: Tensor  # (m, K, S)


def find_modes(row: Row, generator: torch.Generator, also: Tensor | None = None) -> list[Modes]:
    """Gauss-Newton descents for each row from 0, from draws of the prior, and from other points `(N, n, S)`.

    There is no promise that the highest mode is among them.
    """
    N, S = len(row.y), len(row.factor)
    starts = torch.randn(N, _STARTS, S, dtype=torch.float64, generator=generator)
    starts[:, 0] = 0.0
    starts = starts if also is None else torch.cat((starts, also), 1)
    count = starts.shape[1]
    each = row.take(torch.arange(N).repeat_interleave(count))
    u, energy = _descend(each, starts.flatten(0, 1))
    slope = each.linear(u)[1]
    found = []
    for one, height, own in zip(*(part.unflatten(0, (N, count)) for part in (u, energy, slope)), strict=True):
        kept = _distinct(one, height)
        found.append(Modes(one[kept], height[kept], own[kept]))
    return found


def _descend(row: Row, u: Tensor) -> tuple[Tensor, Tensor]:
    """Where descents end, and their energies."""
    energy = row.energy(u)
    for _ in range(_STEPS):
        residual, slope = row.linear(u)
        pull = (slope.mT @ residual[:, :, None])[:, :, 0] - u
        step = torch.cholesky_solve(pull[:, :, None], root_of(slope))[:, :, 0]
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
    return u, energy


def _distinct(u: Tensor, energy: Tensor) -> list[int]:
    """Which of the points of a row are apart, the lowest first."""
    near = ((u[:, None] - u).abs().amax(2) <= _APART).numpy()
    kept: list[int] = []
    for i in energy.argsort().tolist():
        if not near[i, kept].any():
            kept.append(i)
    return kept


class Proposal(NamedTuple):
    """Gaussians about the modes of each row, wider than the posteriors of their cells, and the prior."""

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
        root = root_of(slope)
        log_share = torch.log_softmax(-energy - _log_det(root), 1) + math.log1p(-_PRIOR)
        shares = [log_share + math.log(share) for share, _ in _WIDTHS]
        roots = [root / width for _, width in _WIDTHS]
        return Proposal(torch.cat([place] * len(_WIDTHS), 1), torch.cat(roots, 1), torch.cat(shares, 1))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws `(N, count, S)`."""
        N, M, S = self.place.shape
        which = torch.multinomial(self.log_share.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(N, count, S, dtype=torch.float64, generator=generator)
        prior = torch.rand(N, count, dtype=torch.float64, generator=generator) < _PRIOR
        spread = torch.linalg.inv(self.root).mT.flatten(0, 1)
        of = (which + M * torch.arange(N)[:, None]).flatten()
        about = (spread[of] @ noise.reshape(-1, S, 1))[:, :, 0] + self.place.flatten(0, 1)[of]
        return torch.where(prior[:, :, None], noise, about.reshape(N, count, S))

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-densities of u `(N, C, S)`, `(N, C)`, without the factor `(2 pi)^(-S/2)`."""
        off = (u[:, None] - self.place[:, :, None]) @ self.root
        parts = (self.log_share + _log_det(self.root))[:, :, None] - 0.5 * off.square().sum(3)
        return torch.logaddexp(torch.logsumexp(parts, 1), math.log(_PRIOR) - 0.5 * u.square().sum(2))


def _log_det(root: Tensor) -> Tensor:
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def importance(row: Row, modes: list[Modes], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`log int exp(-energy) (2 pi)^(-S/2) du` by importance sampling, and its standard error, nats, `(N,)` each.

    The error is infinite where fewer than thirty draws carry the estimate.
    """
    proposal = Proposal.of(modes)
    u = proposal.draw(count, generator)
    log_w = -row.energy(u) - proposal.log_prob(u)
    return log_mean(log_w, _LEAST)[:2]


def log_mean(log_w: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """`log mean w` of weights `(N, C)`, its standard error and the number of weights that carry it, `(N,)` each.

    The error is infinite where fewer than `least` weights carry the mean.
    """
    value, error, carried = of_sums(torch.logsumexp(log_w, 1), torch.logsumexp(2.0 * log_w, 1), log_w.shape[1])
    return value, torch.where(carried < least, torch.inf, error), carried


def of_sums(total: Tensor, square: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of `count` weights, from `log sum w` and `log sum w^2`, whatever carries the mean."""
    carried = (2.0 * total - square).exp()
    spread = (count / carried - 1.0).clamp(min=0.0)  # of w / mean(w): below 0 by rounding alone
    return total - math.log(count), (spread / (count - 1)).sqrt(), carried
