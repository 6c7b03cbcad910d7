"""Diagonal Gaussian posteriors with a standard normal prior."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from girih._arrays import check_finite
from girih.vae.gaussians import divergence_from_prior, draw
from girih.vae.posteriors.base import Draws, Layout, PosteriorFamily


def gaussian_layout() -> Layout:
    """Means, then log standard deviations."""
    return Layout(
        1, lambda S: 2 * S, lambda S: f"the mean and the log standard deviation of each of the S = {S} latents"
    )


def standard_normal(latent_dim: int, device: torch.device) -> Independent[Normal]:
    """`N(0, I)` in float64."""
    zero = torch.zeros(latent_dim, dtype=torch.float64, device=device)
    return Independent(Normal(zero, torch.ones_like(zero), validate_args=False), 1, validate_args=False)


def normal_axis(count: int, device: torch.device) -> Tensor:
    """Quantiles of N(0, 1) at equal steps of probability, from 2% to 98%."""
    levels = torch.linspace(0.02, 0.98, count, dtype=torch.float64, device=device)
    return torch.special.ndtri(levels)


class GaussianPosterior(PosteriorFamily):
    """`N(mean, diag(deviation^2))` against `N(0, I)`.

    Args:
        latent_dim: S.

    Example:
        >>> import torch
        >>> from girih.vae.posteriors import GaussianPosterior
        >>> draws = GaussianPosterior(2).draw(torch.zeros(3, 4), samples=5)
        >>> draws.latents.shape, draws.divergence
        (torch.Size([5, 3, 2]), tensor([0., 0., 0.]))
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = latent_dim, torch.Size([latent_dim])

    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """`mean + deviation * e`, and the divergence in closed form."""
        mean, log_deviation = encoded.chunk(2, 1)
        return Draws(draw(mean, log_deviation, samples, generator), divergence_from_prior(mean, log_deviation))

    def posterior(self, encoded: Tensor) -> Independent[Normal]:
        """Event shape `(S,)`."""
        mean, log_deviation = encoded.double().chunk(2, 1)
        deviation = log_deviation.exp()
        check_finite(mean.detach(), "the encoder's mean")
        check_finite(deviation.detach(), "the encoder's standard deviation")
        return Independent(Normal(mean, deviation, validate_args=False), 1, validate_args=False)

    def prior(self, device: torch.device) -> Distribution:
        """`N(0, I)`."""
        return standard_normal(self.latent_dim, device)

    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """Quantiles of the prior."""
        return normal_axis(count, device)

    def values(self, values: Tensor) -> Tensor:
        """Any numbers, `(K,)`."""
        return values.reshape(-1)
