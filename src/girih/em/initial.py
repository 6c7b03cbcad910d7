"""Starting points for EM: kinks spread over the prior, an output on the scale of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from girih.inference import DGN
from girih.networks import Affine

_PROBES = 512
_BATCH = 8192


def column_statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance of the observed entries of each column, `(D,)` each."""
    total, mean, variance = (x.new_zeros(x.shape[1]) for _ in range(3))
    for rows, w in _batches(x, weight):
        total += w @ (~torch.isnan(rows)).to(w)
        mean += w @ torch.nan_to_num(rows)
    mean /= total
    for rows, w in _batches(x, weight):
        variance += w @ torch.nan_to_num(rows - mean).square()
    return mean, variance / total


def _batches(x: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and weights in pieces, so that temporaries stay small beside the data."""
    return zip(x.split(_BATCH), weight.split(_BATCH), strict=True)


def randomise(dgn: DGN, x: Tensor, weight: Tensor, noise_floor: Tensor, generator: torch.Generator) -> None:
    """Draw new parameters, in place.

    Each unit's kink is placed at the image of a latent drawn from the prior, so no unit starts dead. The last map
    sends the features along random directions in which the data vary, about the mean of the data; the noise starts
    at the variance of the data, and EM anneals it.
    """
    device = dgn.trace.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(device)

    mean, variance = column_statistics(x, weight)
    factor = torch.linalg.cholesky(dgn.prior.detach())
    with torch.no_grad():
        h = normal(_PROBES, dgn.latent_dim) @ factor.mT
        for stage in dgn.trace.body:
            if not isinstance(stage, Affine):
                h = h * stage.slopes(h)
                continue
            shape = stage.module.weight.shape
            stage.module.weight.copy_(normal(*shape) * math.sqrt(2.0 / shape[1]))
            if stage.module.bias is not None:
                at = h[torch.randint(_PROBES, (shape[0],), generator=generator).to(device)]
                stage.module.bias.copy_(-(stage.module.weight * at).sum(1))
            h = torch.nn.functional.linear(h, stage.weight, stage.bias)
        head = dgn.trace.head
        if head is not None:
            # covariance times random directions: one pass over the data, the same for repeated and for weighted rows
            scale = torch.where(variance > 0, variance, 1.0).sqrt()
            directions = normal(len(mean), head.in_features) / scale[:, None]
            weights = torch.zeros_like(directions)
            for rows, w in _batches(x, weight):
                centred = torch.nan_to_num(rows - mean)
                weights += centred.mT @ (w[:, None] * (centred @ directions))
            length = weights.norm(dim=0)
            spread = h.std(0)
            size = (variance.sum() / head.in_features).sqrt() / torch.where(spread > 0, spread, 1.0)
            weights = weights * size / torch.where(length > 0, length, 1.0)
            head.module.weight.copy_(weights)
            if head.module.bias is not None:
                head.module.bias.copy_(mean - weights @ h.mean(0))
        start = torch.maximum(variance, noise_floor)
        dgn.noise.copy_({0: start.mean(), 1: start, 2: torch.diag(start)}[dgn.noise.ndim])
