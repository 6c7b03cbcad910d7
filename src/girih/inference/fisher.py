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
from girih.inference.line import Cells, Model, chunks, log_marginal, pair_up
from girih.inference.statistics import Statistics, accumulate, expectations


class MarginalLogProb(torch.autograd.Function):
    """`log p(x)` `(N,)` from x, the hidden features of the cells, the last affine map, the noise and the prior."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Tensor,
        slope: Tensor,
        weight: Tensor,
        bias: Tensor,
        noise: Tensor,
        prior: Tensor,
        cells: Cells,
    ) -> Tensor:
        """Exact log-densities; `cells` carries the cell limits, which need no gradient."""
        ctx.save_for_backward(x, value, slope, weight, bias, noise, prior)
        ctx.cells = cells
        return log_marginal(_model(cells, value, slope, weight, bias, noise, prior), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Statistics with the upstream gradient as row weights, turned into gradients."""
        x, *parameters = ctx.saved_tensors
        model = _model(ctx.cells, *parameters)
        gradients: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[0]:
            gradients[0] = grad[:, None] * score(model, x)
        if any(ctx.needs_input_grad[1:7]):
            _, statistics = accumulate(model, x, grad)
            gradients[1:] = list(gradient(model, statistics))
        return (*gradients, None)


def _model(
    cells: Cells, value: Tensor, slope: Tensor, weight: Tensor, bias: Tensor, noise: Tensor, prior: Tensor
) -> Model:
    return Model(cells._replace(value=value, slope=slope[:, :, 0]), weight, bias, noise, prior[0, 0])


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
    in_prior = 0.5 * (s.latent / prior - s.weight) / prior
    return s.pull[:, :, 1], s.pull[:, :, 0, None], head[:, :-1], head[:, -1], in_noise, in_prior


def score(model: Model, x: Tensor) -> Tensor:
    """`d log p(x) / dx` `(N, D)`, 0 at missing entries: minus the precision times the expected residual."""
    cells = model.cells
    out = torch.zeros_like(x)
    for index, rows in chunks(model, x):
        _, e = expectations(pair_up(model, rows))
        mean = e.e0 @ cells.value + (e.e0 * e.mean) @ cells.slope
        residual = torch.nan_to_num(rows.x - model.bias) - mean @ model.weight.mT
        if rows.observed is not None:
            residual = rows.observed.complete(residual[:, :, None])[:, :, 0]
        part = -gaussian_noise.solve(model.noise, residual.mT).mT
        out[index] = torch.where(torch.isnan(rows.x), 0.0, part)
    return out
