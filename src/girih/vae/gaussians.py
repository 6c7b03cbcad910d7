"""The Gaussian pieces of a free energy: the divergence from the prior, the noise, the draw of z."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from girih.errors import NoiseError

_LOG_2PI = math.log(2.0 * math.pi)


def divergence_from_prior(mean: Tensor, log_deviation: Tensor) -> Tensor:
    r"""`KL(N(mean, diag(deviation^2)) || N(0, I))` in nats.

        sum_s (mean_s^2 + deviation_s^2 - 1) / 2 - log deviation_s

    Args:
        mean: `(N, S)`.
        log_deviation: `(N, S)`.

    Returns:
        `(N,)`, never negative up to rounding.

    Source:
        Kingma & Welling, Auto-encoding variational Bayes (2014), appendix B.

    Example:
        >>> import torch
        >>> from girih.vae.gaussians import divergence_from_prior
        >>> divergence_from_prior(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([1.])
    """
    return (0.5 * (mean.square() + torch.expm1(2.0 * log_deviation)) - log_deviation).sum(-1)


def draw(mean: Tensor, log_deviation: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Reparameterised draws `mean + deviation * e`, `e ~ N(0, I)`, `(samples, N, S)`; gradients reach both."""
    shape = (samples, *mean.shape)
    e = torch.randn(shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return torch.addcmul(mean, log_deviation.exp(), e)


def gaussian_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""`-log N(x; mean, variance I)` in nats: `(|x - mean|^2 / variance + D log(2 pi variance)) / 2`.

    Args:
        x: `(N, D)`.
        mean: `(..., N, D)`.
        log_variance: `()`, of the isotropic noise.

    Returns:
        `(..., N)`.

    Example:
        >>> import torch
        >>> from girih.vae.gaussians import gaussian_nll
        >>> x = torch.zeros(1, 2)
        >>> round(gaussian_nll(x, x + 1.0, torch.tensor(0.0)).item(), 6)
        2.837877
    """
    distance = (x - mean).square().sum(-1)
    return 0.5 * (distance * torch.exp(-log_variance) + x.shape[-1] * (log_variance + _LOG_2PI))


def log_variance(noise: Any) -> float:
    """The logarithm of what a user gave as the variance of the noise.

    Raises:
        NoiseError: it is not a positive number.
    """
    try:
        value = float(noise)
    except (TypeError, ValueError, RuntimeError):
        raise NoiseError(f"noise must be one number, the variance of the isotropic noise; got {noise!r}") from None
    if not (math.isfinite(value) and value > 0.0):
        raise NoiseError(f"noise must be a positive, finite variance; got {value:g}")
    return math.log(value)
