"""Starting points for EM: kinks spread over the prior, an output on the scale of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from girih.em import starts
from girih.em.trained import Trained
from girih.inference import DGN
from girih.networks import LinearStep

_PROBES = 512
_BATCH = 8192


def column_statistics(
    x: Tensor, weight: Tensor, origin: Tensor | float = 0.0, unit: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance of the observed entries of each column of `(x - origin) / unit`, `(D,)` each."""
    total, mean, variance = (x.new_zeros(x.shape[1]) for _ in range(3))
    for rows, w in _batches(x, weight):
        total += w @ (~torch.isnan(rows)).to(w)
        mean += w @ torch.nan_to_num((rows - origin) / unit)
    mean /= total
    for rows, w in _batches(x, weight):
        variance += w @ torch.nan_to_num((rows - origin) / unit - mean).square()
    return mean, variance / total


def column_spread(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An entry in the midst of each column, and the mean from there and the deviation of its entries, `(D,)` each.

    Differences from an entry of the column are exact where an offset is much larger than the spread, so mean and
    deviation are bit for bit those of the column without the offset; nothing overflows. A column whose entries differ
    by rounding alone has the deviation 0; one without entries has the entry NaN. Rows of weight 0 do not count.
    """
    entry = x.new_full((x.shape[1],), torch.nan)
    low, high = torch.full_like(entry, torch.inf), torch.full_like(entry, -torch.inf)
    for rows, w in _batches(x, weight):
        seen = rows.masked_fill((w <= 0)[:, None], torch.nan)
        if bool(torch.isnan(entry).any()):
            entry = torch.where(torch.isnan(entry), seen.nanmedian(0).values, entry)
        low = torch.minimum(low, seen.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0))
        high = torch.maximum(high, seen.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0))
    reach = 0.5 * high - 0.5 * low
    varies = reach > 4.0 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())  # false without entries
    unit = torch.ldexp(torch.ones_like(reach), torch.frexp(torch.where(varies, reach, 1.0)).exponent - 1)
    mean, variance = column_statistics(x, weight, entry, unit)
    return entry, torch.where(varies, unit * mean, 0.0), torch.where(varies, unit * variance.sqrt(), 0.0)


def root_mean_square(values: Tensor) -> float:
    """The root of the mean square of the entries, without overflow on the way."""
    largest = values.abs().max()
    return float(largest * (values / largest).square().mean().sqrt()) if largest > 0 else 0.0


def _batches(x: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and weights in pieces, so that temporaries stay small beside the data."""
    return zip(x.split(_BATCH), weight.split(_BATCH), strict=True)


def randomise(
    dgn: DGN, trained: Trained, x: Tensor, weight: Tensor, noise_floor: Tensor, generator: torch.Generator
) -> None:
    """Draw new parameters, in place.

    Each unit's kink is placed at the image of a latent drawn from the prior, so no unit starts dead. The last map
    sends the features along random directions in which the data vary, about the mean of the data; the noise starts
    at the variance of the data, and EM anneals it. Layers other than Linear draw their weights as their module does;
    without a head, the last layer is scaled to the data.
    """
    mean, variance = column_statistics(x, weight)
    factor = torch.linalg.cholesky(dgn.prior.detach())
    with torch.no_grad():
        z = _normal(generator, dgn.trace.device, _PROBES, dgn.latent_dim) @ factor.mT
        if trained.is_chain:
            h = _randomise_chain(dgn, z, generator)
        else:
            starts.reset(dgn, trained, generator)
            values = starts.place_kinks(dgn, trained, z, generator)
            h = values[dgn.trace.features]
        if trained.head is not None:
            _aim(trained.head, h, x, weight, mean, variance, generator)
        elif not trained.is_chain:
            starts.scale_output(dgn, h, mean, variance)
        dgn.noise.copy_(_in_shape(torch.maximum(variance, noise_floor), dgn.noise))


@torch.no_grad()
def be_constant(dgn: DGN, trained: Trained, x: Tensor, weight: Tensor, noise_floor: Tensor) -> None:
    """Make the generator a constant, the mean of the data, in place; the noise is their variance."""
    mean, variance = column_statistics(x, weight)
    for parameter in trained.weights:
        parameter.zero_()
    assert trained.head is not None
    trained.head.module.bias.copy_(mean)
    dgn.noise.copy_(_in_shape(torch.maximum(variance, noise_floor), dgn.noise))


def _in_shape(variance: Tensor, noise: Tensor) -> Tensor:
    """Variances `(D,)` as a noise in the shape of `noise`."""
    return {0: variance.mean(), 1: variance, 2: torch.diag(variance)}[noise.ndim]


def _normal(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(device)


def _randomise_chain(dgn: DGN, h: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the stages before the head; returns the features after them."""
    device = dgn.trace.device
    for stage in (dgn.trace.chain or ())[: dgn.trace.features]:
        if not isinstance(stage, LinearStep):
            h = h * stage.slopes(h)
            continue
        shape = stage.module.weight.shape
        stage.module.weight.copy_(_normal(generator, device, *shape) * math.sqrt(2.0 / shape[1]))
        if stage.module.bias is not None:
            at = h[torch.randint(_PROBES, (shape[0],), generator=generator).to(device)]
            stage.module.bias.copy_(-(stage.module.weight * at).sum(1))
        h = torch.nn.functional.linear(h, stage.weight, stage.bias)
    return h


def _aim(
    head: LinearStep, h: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, generator: torch.Generator
) -> None:
    """Draw the last map: random directions times the covariance of the data, about its mean.

    One pass over the data, the same for repeated and for weighted rows.
    """
    scale = torch.where(variance > 0, variance, 1.0).sqrt()
    directions = _normal(generator, h.device, len(mean), head.in_features) / scale[:, None]
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
