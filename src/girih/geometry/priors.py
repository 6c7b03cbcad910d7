"""The latent priors of this subpackage: a centred Gaussian, or uniform on a box."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from girih._arrays import ArrayLike, as_tensor
from girih.errors import ParameterError, ShapeError
from girih.inference.priors import Uniform, UniformPrior
from girih.partition.partition import prior_covariance

__all__ = ["GaussianPrior", "Prior", "PriorLike", "Uniform", "UniformPrior", "as_prior"]


class Prior(Protocol):
    """A latent distribution, by what the quantities ask of it."""

    dim: int

    def log_prob(self, z: Tensor, room: float | Tensor = 0.0) -> Tensor:
        """Log density of latents `(N, S)`, nats, `(N,)`; its support is made larger by `room`."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents `(n, S)`."""

    def entropy(self) -> float:
        """Differential entropy, nats."""


class GaussianPrior:
    """The Gaussian `N(0, covariance)`."""

    def __init__(self, covariance: Tensor) -> None:
        self.covariance, self.dim = covariance, len(covariance)
        self.factor = torch.linalg.cholesky(covariance)

    def log_prob(self, z: Tensor, room: float | Tensor = 0.0) -> Tensor:
        """Log density of latents `(N, S)`, nats; it has no edge, so `room` means nothing."""
        white = torch.linalg.solve_triangular(self.factor.to(z.device), z.mT, upper=False)
        size = float(self.factor.diagonal().log().sum())
        result: Tensor = -0.5 * white.square().sum(0) - size - 0.5 * self.dim * math.log(2 * math.pi)
        return result

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents `(n, S)`."""
        result: Tensor = torch.randn(n, self.dim, generator=generator, dtype=torch.float64) @ self.factor.mT
        return result

    def entropy(self) -> float:
        """`log det(2 pi e covariance) / 2`, nats."""
        return float(self.factor.diagonal().log().sum()) + 0.5 * self.dim * (1.0 + math.log(2 * math.pi))


PriorLike = ArrayLike | Uniform | GaussianPrior | UniformPrior


def as_prior(prior: PriorLike, dim: int) -> GaussianPrior | UniformPrior:
    """A prior from what users pass: a variance, a covariance `(S, S)`, or a `Uniform`.

    Raises:
        ShapeError: the shape does not fit S = `dim`.
        ParameterError: a variance that is not positive, or a box with `low >= high`.
        NoiseError: a covariance that is not symmetric positive definite.
        NonFiniteError: entries that are not finite.
    """
    if isinstance(prior, GaussianPrior | UniformPrior):
        if prior.dim != dim:
            raise ShapeError(f"prior is for S = {prior.dim} latents, but the generator has S = {dim}")
        return prior
    if isinstance(prior, Uniform):
        return prior.of(dim)
    covariance = as_tensor(prior, "prior").detach().cpu()
    if covariance.numel() == 1:
        variance = float(covariance)
        if not 0.0 < variance < math.inf:
            raise ParameterError(f"prior must be a positive variance, a covariance or a Uniform, got {variance}")
    return GaussianPrior(prior_covariance(covariance, dim))
