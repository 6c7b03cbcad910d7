r"""`log p(x)` with gradients by Fisher's identity.

    grad log p(x) = E[ grad log p(x, z) | x ]

so the gradient in every parameter is a function of the E-step's statistics, with the upstream gradients as row
weights, and no integral is differentiated. Cell limits move with the parameters too, but the integrand is
continuous across them, so they contribute nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from girih.inference import noise as gaussian_noise
from girih.inference.estep import Evidence, chunks, evidence, expect
from girih.inference.model import Model
from girih.inference.statistics import Statistics, accumulate


class MarginalLogProb(torch.autograd.Function):
    """`log p(x)` `(N,)`, with gradients in x, the hidden features on the pieces, the last map, the noise and the prior.

    `model` holds the detached values of all these tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        model: Model,
        x: Tensor,
        value: Tensor,
        slope: Tensor,
        weight: Tensor,
        bias: Tensor,
        noise: Tensor,
        prior: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Exact log-densities, and the bounds on what was left out of them and on their rounding."""
        ctx.save_for_backward(x)
        ctx.model = model
        found: Evidence = evidence(model, x.detach())
        ctx.mark_non_differentiable(found.left_out, found.rounding)
        return found.log_prob, found.left_out, found.rounding

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Statistics with the upstream gradient as row weights, turned into gradients."""
        (x,) = ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[1]:
            gradients[0] = grad[:, None] * score(ctx.model, x)
        if any(ctx.needs_input_grad[2:]):
            statistics = accumulate(ctx.model, x, grad)[1]
            gradients[1:] = list(gradient(ctx.model, statistics))
        return (None, *gradients)


def gradient(model: Model, statistics: Statistics) -> tuple[Tensor, ...]:
    """Gradients of `sum_n g_n log p(x_n)` in (value, slope, weight, bias, noise, prior)."""
    s, noise, prior = statistics, model.noise, model.prior
    head = gaussian_noise.solve(noise, s.outer)
    if noise.ndim == 2:
        identity = torch.eye(len(noise), dtype=noise.dtype, device=noise.device)
        inverse = gaussian_noise.solve(noise, identity)
        in_noise = 0.5 * (inverse @ s.scatter @ inverse - s.weight * inverse)
    else:
        count = s.weight * (model.output_dim if noise.ndim == 0 else 1)
        in_noise = 0.5 * (s.scatter / noise - count) / noise
    precision = torch.cholesky_inverse(torch.linalg.cholesky(prior))
    in_prior = 0.5 * (precision @ s.latent @ precision - s.weight * precision)
    return s.pull[:, :, -1], s.pull[:, :, :-1], head[:, :-1], head[:, -1], in_noise, in_prior


def score(model: Model, x: Tensor) -> Tensor:
    """`d log p(x) / dx` `(N, D)`, 0 at missing entries: minus the precision times the expected residual."""
    out = torch.zeros_like(x)
    for index, rows in chunks(model, x):
        _, e = expect(model, rows)
        residual = torch.nan_to_num(model.without_bias(rows.x)) - e.features(model.cells) @ model.weight.mT
        if rows.observed is not None:
            residual = rows.observed.complete(residual[:, :, None])[:, :, 0]
        part = -gaussian_noise.solve(model.noise, residual.mT).mT
        out[index] = torch.where(torch.isnan(rows.x), 0.0, part)
    return out
