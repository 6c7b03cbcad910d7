r"""EM of a mixture of bent Gaussians: the M-step in closed form, and the loop.

What is raised is the log-likelihood less the priors' penalties: a *kink ridge* `lambda tr(Sigma^-1 W P W^T) / 2`, with P
the identity on the functions that bend (lambda to infinity is a mixture of Gaussians), and an inverse Wishart prior of
each noise, `(nu log|Sigma| + tr(Sigma^-1 Psi)) / 2`, `Psi = rho I + nu Omega`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from girih.tables.mixture import Mixture, Rows, Statistics, statistics

Kind = Literal["full", "diagonal", "spherical", "low_rank"]


@dataclass(frozen=True)
class Prior:
    """How a mixture is kept from learning its rows by heart.

    Attributes:
        kind: of noise.
        tied: whether all components have the same noise.
        ridge: lambda.
        floor: rho.
        strength: nu, rows that the prior of the noise counts for.
        centre: Omega `(D, D)`.
        least: `(D,)`, the least variance of each column.
        rank: of low-rank noise.
    """

    kind: Kind = "full"
    tied: bool = False
    ridge: float = 1.0
    floor: float = 0.01
    strength: float = 0.0
    centre: Tensor | None = None
    least: Tensor | None = None
    rank: int = 1
    concentration: float = 0.5


def penalty(mixture: Mixture, prior: Prior) -> Tensor:
    """What is taken from the log-likelihood."""
    noise = mixture.noise[:1] if prior.tied else mixture.noise
    inverse = torch.linalg.inv(noise)
    bent = mixture.maps * mixture.basis.kinky
    each = torch.linalg.inv(mixture.noise) if prior.tied else inverse
    total = 0.5 * prior.ridge * (each * (bent @ bent.mT)).sum()
    total = total + 0.5 * (inverse * _scale(prior, noise)).sum() + 0.5 * prior.strength * torch.logdet(noise).sum()
    for table in mixture.tables:
        total = total - prior.concentration * table.log().sum()
    return total - prior.concentration * mixture.weights.log().sum()


def _scale(prior: Prior, like: Tensor) -> Tensor:
    D = like.shape[-1]
    out = prior.floor * torch.eye(D, dtype=like.dtype)
    if prior.strength and prior.centre is not None:
        out = out + prior.strength * prior.centre
    return out


def m_step(mixture: Mixture, found: Statistics, prior: Prior) -> Mixture:
    """The parameters that maximise the expected complete log-likelihood less the penalties."""
    W, Sigma, G = mixture.maps, mixture.noise, found.G
    SU = Sigma @ found.U
    P = torch.diag(mixture.basis.kinky) * prior.ridge
    tiny = 1e-9 * torch.eye(mixture.basis.size, dtype=W.dtype)  # components without rows keep their map
    new = torch.linalg.solve(G + P + tiny, W @ G + SU + tiny[0, 0] * W, left=False)
    step = new - W
    scatter = found.counts[:, None, None] * Sigma + Sigma @ found.V @ Sigma
    cross = step @ SU.mT
    scatter = scatter - cross - cross.mT + step @ G @ step.mT
    bent = new * mixture.basis.kinky
    scatter = scatter + prior.ridge * bent @ bent.mT
    weight = found.counts
    if prior.tied:
        scatter, weight = scatter.sum(0, keepdim=True), weight.sum(0, keepdim=True)
    scatter = 0.5 * (scatter + scatter.mT) + _scale(prior, scatter)
    covariance = scatter / (weight + prior.strength)[:, None, None]
    noise = restricted(covariance, prior, mixture.noise)
    if prior.tied:
        noise = noise.expand_as(Sigma)
    a = prior.concentration
    weights = (found.counts + a) / (found.counts + a).sum()
    tables = tuple((t + a) / (t + a).sum(1, keepdim=True) for t in found.tables)
    return replace(mixture, weights=weights, maps=new, noise=noise, tables=tables)


def restricted(covariance: Tensor, prior: Prior, before: Tensor) -> Tensor:
    """The noise of the kind asked for that is likeliest for expected scatters `(K, D, D)`."""
    D = covariance.shape[-1]
    eye = torch.eye(D, dtype=covariance.dtype)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    if prior.kind == "diagonal":
        out = torch.diag_embed(variances)
    elif prior.kind == "spherical":
        out = variances.mean(-1)[:, None, None] * eye
    elif prior.kind == "low_rank":
        out = torch.stack([_factors(c, prior.rank) for c in covariance])
    else:
        out = covariance
    if prior.least is not None:
        short = (prior.least - out.diagonal(dim1=-2, dim2=-1)).clamp(min=0.0)
        out = out + torch.diag_embed(short)
    return out


def _factors(covariance: Tensor, rank: int, steps: int = 8) -> Tensor:
    own = 0.5 * covariance.diagonal()
    for _ in range(steps):
        root = own.sqrt()
        values, vectors = torch.linalg.eigh(covariance / root[:, None] / root)
        loads = root[:, None] * vectors[:, -rank:] * (values[-rank:] - 1.0).clamp(min=0.0).sqrt()
        own = (covariance.diagonal() - loads.square().sum(1)).clamp(min=1e-3 * covariance.diagonal())
    return loads @ loads.mT + torch.diag(own)


def fit(
    mixture: Mixture, rows: Rows, prior: Prior, max_iter: int = 60, tol: float = 1e-4
) -> tuple[Mixture, list[float]]:
    """EM until an iteration gains less than `tol` nats a row; the curve is of the penalised NLL a row."""
    curve: list[float] = []
    total = float(rows.weight.sum())
    for _ in range(max_iter):
        found = statistics(mixture, rows)
        curve.append(float(penalty(mixture, prior) - found.log_likelihood) / total)
        if len(curve) > 1 and curve[-2] - curve[-1] < tol:
            break
        mixture = m_step(mixture, found, prior)
    return mixture, curve
