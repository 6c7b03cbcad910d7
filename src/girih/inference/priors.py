r"""Priors of the latents: Gaussian, uniform on a box, and mixtures of Gaussians.

All of them are mixtures of *parts* whose log-densities are concave,

    p(z) = sum_c exp(c_c - |V_c (z - m_c)|^2 / 2)

on a box: a uniform prior has one part with V = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from girih._arrays import ArrayLike, as_tensor, check_finite
from girih.covariance import Covariance
from girih.errors import ParameterError, ShapeError

_LOG_2PI = math.log(2.0 * math.pi)
_FAR = 1e3


class Parts(NamedTuple):
    """The parts of a prior, and the box on which it is not 0."""

    constant: Tensor  # (C,)
    mean: Tensor  # (C, S)
    white: Tensor  # (C, S, S)
    low: Tensor  # (S,), -inf where there is no end
    high: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """`log p(z)` of latents `(..., S)` inside the box, `(...,)`."""
        w = torch.einsum("cij,...cj->...ci", self.white, z[..., None, :] - self.mean)
        result: Tensor = (self.constant - 0.5 * w.square().sum(-1)).logsumexp(-1)
        return result

    def box(self, reach: float) -> tuple[Tensor, Tensor]:
        """The box that holds all parts up to `reach` deviations, cut to that of the prior."""
        if torch.isfinite(self.low).all():
            return self.low, self.high
        away = reach * torch.linalg.inv(self.white).square().sum(2).sqrt()
        return (self.mean - away).amin(0), (self.mean + away).amax(0)

    def log_outside(self, reach: float) -> float:
        """The log of the prior mass outside of `box(reach)` at most, nats."""
        if torch.isfinite(self.low).all():
            return -math.inf
        tail = torch.special.log_ndtr(torch.tensor(-reach, dtype=torch.float64))
        return float(tail) + math.log(2.0 * len(self.low))


@dataclass(frozen=True)
class Uniform:
    r"""The uniform distribution on a box of latents, `p(z) = 1 / prod_k (high_k - low_k)` inside.

    Args:
        low: the lower corner, a number or `(S,)`.
        high: the upper corner.

    Source:
        EM-DGN, Proposition 3.

    Example:
        >>> import girih
        >>> dgn = girih.DGN(girih.mlp([2, 8, 3], seed=0), noise=0.1, prior=girih.Uniform(-1.0, 1.0))
        >>> dgn.posterior(dgn().sample((4,), seed=0)).mean.abs().amax().item() < 1.0
        True
    """

    low: ArrayLike
    high: ArrayLike

    def of(self, dim: int, device: torch.device | None = None) -> UniformPrior:
        """The prior of `dim` latents.

        Raises:
            ShapeError, NonFiniteError, ParameterError: corners of another shape, or in the wrong order.
        """
        corners = []
        for value, name in ((self.low, "low"), (self.high, "high")):
            corner = as_tensor(value, name).detach().to(device or "cpu")
            if corner.ndim > 1 or corner.numel() not in (1, dim):
                raise ShapeError(f"{name} of Uniform must be a number or ({dim},), got shape {tuple(corner.shape)}")
            check_finite(corner, name)
            corners.append(corner.reshape(-1).expand(dim).clone())
        if not (corners[0] < corners[1]).all():
            raise ParameterError(f"Uniform needs low < high, got {corners[0].tolist()} and {corners[1].tolist()}")
        return UniformPrior(*corners)


@dataclass(frozen=True)
class GaussianMixturePrior:
    r"""A mixture of Gaussians over the latents, `p(z) = sum_k w_k N(z; m_k, C_k)`.

    Args:
        weights: positive, `(K,)`; they are divided by their sum.
        means: `(K, S)`.
        covariances: a variance, `(K,)` variances, or `(K, S, S)` covariances.

    Example:
        >>> import girih
        >>> prior = girih.GaussianMixturePrior([1.0, 3.0], [[-2.0], [2.0]], 0.5)
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.1, prior=prior)
        >>> nothing = dgn.posterior([[float("nan"), float("nan")]])
        >>> round(nothing.mean.item(), 8), round(nothing.variance.item(), 8)
        (1.0, 3.5)
    """

    weights: ArrayLike
    means: ArrayLike
    covariances: ArrayLike

    def of(self, dim: int, device: torch.device | None = None) -> MixturePrior:
        """The prior of `dim` latents.

        Raises:
            ShapeError, NonFiniteError, ParameterError, NoiseError: weights, means or covariances that are not such.
        """
        place = device or "cpu"
        weights, means, spread = (
            as_tensor(value, name).detach().to(place)
            for value, name in ((self.weights, "weights"), (self.means, "means"), (self.covariances, "covariances"))
        )
        if weights.ndim != 1 or means.shape != (len(weights), dim):
            raise ShapeError(
                f"a mixture takes weights (K,) and means (K, {dim}); got shapes {tuple(weights.shape)} and "
                f"{tuple(means.shape)}"
            )
        check_finite(weights, "weights")
        check_finite(means, "means")
        if not (len(weights) and (weights > 0.0).all()):
            raise ParameterError(f"the weights of a mixture must be positive, got {weights.tolist()}")
        if spread.ndim not in (0, 1, 3) or (spread.ndim and len(spread) != len(weights)):
            raise ShapeError(
                f"covariances must be a variance, ({len(weights)},) variances or ({len(weights)}, {dim}, {dim}) "
                f"covariances; got shape {tuple(spread.shape)}"
            )
        each = spread.expand(len(weights)) if spread.ndim < 2 else spread
        covariances = torch.stack([Covariance.prior(one, dim, weights.device) for one in each])
        return MixturePrior(weights / weights.sum(), means, covariances)


class UniformPrior:
    """`Uniform` for a given latent dimension."""

    kind = "uniform"

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high, self.dim = low, high, len(low)

    def log_prob(self, z: Tensor, room: float | Tensor = 0.0) -> Tensor:
        """Log density of latents `(..., S)`: minus infinity where they are outside the box by more than `room`."""
        return torch.where(self.holds(z, room), -self.entropy(), -math.inf)

    def holds(self, z: Tensor, room: float | Tensor = 0.0) -> Tensor:
        """Which latents `(..., S)` are inside the box, or outside by no more than `room`."""
        low, high = self.low.to(z.device), self.high.to(z.device)
        result: Tensor = torch.maximum(low - z, z - high).amax(-1) <= room
        return result

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `(n, S)`."""
        share = torch.rand(n, self.dim, generator=generator, dtype=torch.float64, device=self.low.device)
        return self.low + share * (self.high - self.low)

    def entropy(self) -> float:
        """The log volume of the box, nats."""
        return float((self.high - self.low).log().sum())

    @property
    def reach(self) -> float:
        """How far the farthest corner is from 0."""
        return float(torch.maximum(self.low.abs(), self.high.abs()).norm())

    @property
    def near(self) -> bool:
        """Whether 0 is so near, in sides of the box, that its cells keep their digits in the closed forms."""
        return self.reach <= _FAR * float((self.high - self.low).min())

    @property
    def covariance(self) -> Tensor:
        """`(S, S)`."""
        return torch.diag((self.high - self.low).square() / 12.0)

    @property
    def parts(self) -> Parts:
        """One part, constant on the box."""
        zero = self.low.new_zeros(1, self.dim, self.dim)
        return Parts(self.low.new_tensor([-self.entropy()]), zero[:, 0], zero, self.low, self.high)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers that it is made of, for a file."""
        return {"low": self.low, "high": self.high}


class MixturePrior:
    """`GaussianMixturePrior` for a given latent dimension."""

    kind = "mixture"

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances, self.dim = weights, means, covariances, means.shape[1]
        self.factor = torch.linalg.cholesky(covariances)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of latents `(..., S)`, nats."""
        return self.parts.log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents `(n, S)`."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64, device=self.means.device)
        result: Tensor = self.means[which] + (self.factor[which] @ noise[:, :, None])[:, :, 0]
        return result

    @property
    def covariance(self) -> Tensor:
        """`(S, S)`."""
        away = self.means - self.weights @ self.means
        return torch.einsum("k,kij->ij", self.weights, self.covariances + away[:, :, None] * away[:, None, :])

    @property
    def away(self) -> Tensor:
        """How far each mean is from 0, in deviations of its own, `(K,)`."""
        result: Tensor = torch.linalg.solve_triangular(self.factor, self.means[:, :, None], upper=False).norm(
            dim=(1, 2)
        )
        return result

    @property
    def near(self) -> bool:
        """Whether all means are so near 0, in their own deviations, that cells keep their digits about them."""
        return bool((self.away <= _FAR).all())

    @property
    def parts(self) -> Parts:
        """One part for each Gaussian."""
        size = self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        ends = torch.full_like(self.means[0], torch.inf)
        constant = self.weights.log() - size - 0.5 * self.dim * _LOG_2PI
        return Parts(constant, self.means, torch.linalg.inv(self.factor), -ends, ends)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers that it is made of, for a file."""
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances}


LatentPrior: TypeAlias = UniformPrior | MixturePrior


def prior_from(tensors: Mapping[str, Tensor]) -> Uniform | GaussianMixturePrior:
    """The prior that `tensors()` took apart.

    Raises:
        KeyError: a part is missing.
    """
    if "low" in tensors:
        return Uniform(tensors["low"], tensors["high"])
    return GaussianMixturePrior(tensors["weights"], tensors["means"], tensors["covariances"])


def gaussian_parts(covariance: Tensor) -> Parts:
    """The one part of `N(0, covariance)`, differentiable in it."""
    factor = torch.linalg.cholesky(covariance)
    S = len(covariance)
    constant = -factor.diagonal().log().sum() - 0.5 * S * _LOG_2PI
    ends = torch.full_like(covariance[0].detach(), torch.inf)
    return Parts(constant[None], torch.zeros_like(ends)[None], torch.linalg.inv(factor)[None], -ends, ends)
