"""What a family of approximate posteriors has to provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from girih._options import real


@dataclass(frozen=True)
class Layout:
    """How many numbers go in and out of the networks of a family.

    Attributes:
        width: numbers that the decoder takes for each latent.
        outputs: numbers that the encoder gives for S latents.
        meaning: of what the encoder gives for S latents, for errors.
    """

    width: int
    outputs: Callable[[int], int]
    meaning: Callable[[int], str]


class Draws(NamedTuple):
    """What one step of training needs of q(z | x)."""

    latents: Tensor  # (K, N, S * width), as the decoder takes them
    divergence: Tensor  # (N,) KL(q(z | x) || p(z)), or an unbiased estimate of it from the same draws
    weights: Tensor | None = None  # (K, N), sums to 1 over K; None: each counts 1 / K


class PosteriorFamily(nn.Module, ABC):
    """A family of q(z | x) with its prior p(z).

    A module, since the prior may have parameters, and since tables move with the networks.

    Attributes:
        latent_dim: S.
        event_shape: of one z.
        temperature: of the relaxation of a discrete z, `None` for a family that has none.
        codes: how many values a discrete z has, `None` where it is continuous.
    """

    latent_dim: int
    event_shape: torch.Size
    temperature: float | None = None
    codes: int | None = None

    @abstractmethod
    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """Differentiable draws of z and the divergence, from what the encoder gave, `(N, outputs)`: a training step.

        Args:
            encoded: unchecked.
            samples: L for each row.
            generator: torch's global one by default.
            temperature: instead of the family's own.
        """

    @abstractmethod
    def posterior(self, encoded: Tensor) -> Distribution:
        """`q(z | x)` as a distribution in float64, batch `(N,)`, for what the encoder gave.

        Raises:
            NonFiniteError: the encoder gave numbers that make no distribution.
        """

    @abstractmethod
    def prior(self, device: torch.device) -> Distribution:
        """`p(z)` in float64, of the kind that `posterior` gives, batch `()`."""

    def relaxed_prior(self, n: int, device: torch.device) -> Tensor:
        """Draws of z from the prior as training draws from q, `(n, S * width)`: relaxed, where z is discrete."""
        return self.prior(device).sample(torch.Size([n])).flatten(1)

    def moments(self, q: Distribution) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z under q, each `(N, *event)`."""
        return q.mean, q.stddev

    def point(self, q: Distribution) -> Tensor:
        """The z of each row that stands for it in a reconstruction, `(N, *event)`: the mean, unless overridden."""
        return q.mean

    @abstractmethod
    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """The values that a traversal of one latent takes by default, `(K,)` or `(K, C)`."""

    @abstractmethod
    def values(self, values: Tensor) -> Tensor:
        """The values of a traversal as entries of z, checked: `(K,)` or `(K, C)`."""


def checked_temperature(temperature: float) -> float:
    """A temperature.

    Raises:
        ParameterError: it is not a positive number.
    """
    return real(temperature, "temperature")
