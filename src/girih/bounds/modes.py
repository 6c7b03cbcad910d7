"""Where the posterior of a row is high, for latents of any dimension, and estimates of p(x) from there."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

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


def find_modes(row: Row, generator: torch.Generator) -> Modes:
    """Gauss-Newton descents from 0 and from draws of the prior; no promise that the highest mode is among them."""
    S = len(row.factor)
    u = torch.randn(_STARTS, S, dtype=torch.float64, generator=generator)
    u[0] = 0.0
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


def estimate(row: Row, modes: Modes, count: int, generator: torch.Generator) -> tuple[float, float]:
    """`log int exp(-energy) (2 pi)^(-S/2) du` by importance sampling, and its standard error, both in nats.

    The error is infinite where fewer than thirty draws carry the estimate.
    Proposals are a mixture of Gaussians about the modes, a little wider than the posteriors of their cells, and of the
    prior.
    """
    S = len(row.factor)
    eye = torch.eye(S, dtype=torch.float64)
    precision = (eye + modes.slope.mT @ modes.slope) / _WIDER**2
    root = torch.linalg.cholesky(precision)
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    log_share = torch.log_softmax(-modes.energy - log_det, 0) + math.log1p(-_PRIOR)
    which = torch.multinomial(log_share.exp(), count, replacement=True, generator=generator)
    noise = torch.randn(count, S, dtype=torch.float64, generator=generator)
    u = modes.place[which] + torch.linalg.solve_triangular(root[which].mT, noise[:, :, None], upper=True)[:, :, 0]
    prior = torch.rand(count, dtype=torch.float64, generator=generator) < _PRIOR
    u = torch.where(prior[:, None], noise, u)
    parts = [math.log(_PRIOR) - 0.5 * u.square().sum(1)]
    for share, place, own, det in zip(log_share, modes.place, root, log_det, strict=True):
        parts.append(share + det - 0.5 * ((u - place) @ own).square().sum(1))
    log_weight = -row.energy(u) - torch.logsumexp(torch.stack(parts), 0)
    peak = log_weight.max()
    weight = (log_weight - peak).exp()
    mean = weight.mean()
    error = float(weight.std() / (mean * math.sqrt(count)))
    carried = float(weight.sum().square() / weight.square().sum())
    return float(peak + mean.log()), error if carried >= _LEAST else math.inf
