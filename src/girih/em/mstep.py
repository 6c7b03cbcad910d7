r"""The exact M-steps: last affine map, noise and latent prior, as functions of the statistics.

Writing the expected complete-data log-likelihood in the statistics of `girih.inference.statistics`, a change
`d` of the last map `(W, v)` alters it by `tr(noise^-1 outer d^T) - tr(noise^-1 d features d^T) / 2`: a least
squares problem. Given the map, the noise is the expected scatter of the residuals, and the prior the expected
second moment of z (EM-DGN, appendix G.2, eq. 22-24 with `l = L`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from girih.covariance import Covariance
from girih.em.penalty import WeightPrior, coordinate_descent, pseudo_inverse
from girih.inference.model import Model
from girih.inference.statistics import Statistics


def head_change(model: Model, s: Statistics, has_bias: bool, prior: WeightPrior | None) -> Tensor:
    """The change of `(W, v)` `(D, H + 1)` that maximises the expected log-likelihood (plus the weight prior).

    W and v are solved jointly: they are one regression on the features `(h, 1)`, no dearer than either alone.
    """
    n = s.features.shape[0] if has_bias else s.features.shape[0] - 1
    gram, pull = s.features[:n, :n], s.outer[:, :n]
    if prior is None:
        change = pull @ pseudo_inverse(gram)
    elif prior.family == "gaussian":
        change = _ridge(model, gram, pull, prior)
    else:
        change = _proximal(model, gram, pull, prior)
    return torch.nn.functional.pad(change, (0, s.features.shape[0] - n))


def head_parameters(model: Model, n: int) -> Tensor:
    """The first n columns of `(W, v)`, `(D, n)`."""
    return torch.cat((model.weight, model.bias[:, None]), 1)[:, :n]


def _penalised(model: Model, n: int) -> Tensor:
    return torch.arange(n, device=model.weight.device) < model.weight.shape[1]


def _ridge(model: Model, gram: Tensor, pull: Tensor, prior: WeightPrior) -> Tensor:
    """Row by row in the eigenbasis of the noise, where the rows decouple."""
    n = len(gram)
    current, penalty = head_parameters(model, n), _penalised(model, n).to(gram) / prior.scale**2
    variance, basis = model.noise.eigen()
    if basis is not None:
        current, pull = basis.mT @ current, basis.mT @ pull
    target = pull - variance[:, None] * penalty * current
    if model.noise.kind == "scalar":
        change = target @ pseudo_inverse(gram + variance[0] * torch.diag(penalty))
    else:
        change = torch.stack(
            [t @ pseudo_inverse(gram + v * torch.diag(penalty)) for t, v in zip(target, variance, strict=True)]
        )
    return change if basis is None else basis @ change


def _proximal(model: Model, gram: Tensor, pull: Tensor, prior: WeightPrior) -> Tensor:
    """Lasso and clipping. With a full noise the rows are coupled; a bound on its precision decouples them."""
    n = len(gram)
    variance, basis = model.noise.eigen()
    if basis is not None:
        variance = variance[0].expand(model.output_dim)
        pull = variance[0] * model.noise.solve(pull)
    return coordinate_descent(gram, pull, head_parameters(model, n), _penalised(model, n), prior, variance)


def about(noise: Covariance, s: Statistics, head: Tensor) -> Statistics:
    """The statistics about the residuals after the last map has changed by `head` `(D, H + 1)`."""
    moved = ((head @ s.features - 2.0 * s.outer).mT, head.mT)
    return replace(s, outer=s.outer - head @ s.features, scatter=s.scatter + noise.scatter(moved))


def noise_update(s: Statistics, head: Tensor, noise: Covariance, floor: Tensor) -> Covariance:
    """The noise that maximises the expected log-likelihood once the last map has changed by `head` `(D, H + 1)`.

    `floor` bounds the variances from below: see `Covariance.m_step`.
    """
    return noise.m_step(about(noise, s, head).scatter, s.weight, floor)


def prior_update(s: Statistics) -> Tensor:
    """The latent prior `(S, S)` that maximises the expected log-likelihood: the expected second moment of z."""
    return s.latent / s.weight
