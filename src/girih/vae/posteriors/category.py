"""Categorical posteriors with a uniform prior, drawn by the Concrete relaxation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, OneHotCategorical

from girih._arrays import check_finite
from girih.errors import ParameterError
from girih.vae.posteriors.base import Draws, Layout, PosteriorFamily, checked_temperature
from girih.vae.posteriors.relaxation import relaxed


def category_layout(categories: int) -> Layout:
    """C logits for each latent; the decoder takes a point of the simplex for each."""
    return Layout(
        categories,
        lambda S: S * categories,
        lambda S: f"the C = {categories} logits of each of the S = {S} latents",
    )


class CategoryPosterior(PosteriorFamily):
    r"""S independent categories against uniform ones.

        KL = sum_s sum_c q_sc log q_sc + S log C

    Draws are points of the simplex, from the Concrete distribution at a temperature, while the divergence is that of
    the categories: a lower bound of the divergence between Concrete distributions (Theorem 1 of the paper).

    Args:
        latent_dim: S.
        categories: C.
        temperature: T of the draws.

    Source:
        Jang, Gu & Poole, Categorical reparameterization with Gumbel-softmax (2017); CG-BPEF, section 3.4.

    Example:
        >>> import torch
        >>> from girih.vae.posteriors import CategoryPosterior
        >>> draws = CategoryPosterior(2, 5, 0.5).draw(torch.zeros(3, 10), samples=4)
        >>> draws.latents.shape, bool((draws.divergence.abs() < 1e-6).all())
        (torch.Size([4, 3, 10]), True)
    """

    temperature: float

    def __init__(self, latent_dim: int, categories: int, temperature: float) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = latent_dim, torch.Size([latent_dim, categories])
        self.categories, self.temperature = categories, checked_temperature(temperature)
        self.codes = categories**latent_dim

    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """Relaxed one-hot codes, flat, and the divergence of the categories."""
        log_q = encoded.reshape(-1, *self.event_shape).log_softmax(-1)
        divergence = (log_q.exp() * log_q).sum((1, 2)) + self.latent_dim * math.log(self.categories)
        y = relaxed(log_q, self.temperature if temperature is None else temperature, samples, generator)
        return Draws(y.flatten(2), divergence)

    def posterior(self, encoded: Tensor) -> Independent[OneHotCategorical]:
        """Event shape `(S, C)`."""
        logits = encoded.double().reshape(-1, *self.event_shape)
        check_finite(logits.detach(), "the encoder's logits")
        return Independent(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)

    def prior(self, device: torch.device) -> Distribution:
        """Uniform."""
        logits = torch.zeros(self.event_shape, dtype=torch.float64, device=device)
        return Independent(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)

    def relaxed_prior(self, n: int, device: torch.device) -> Tensor:
        """Points of the simplex."""
        logits = torch.zeros(self.event_shape, dtype=torch.float64, device=device)
        return relaxed(logits, self.temperature, n).flatten(1)

    def moments(self, q: Distribution) -> tuple[Tensor, Tensor]:
        """Probabilities of the categories, and the deviations of the one-hot codes."""
        return q.mean, q.variance.sqrt()

    def point(self, q: Distribution) -> Tensor:
        """The most probable category of each latent, one-hot: the mean is a mixture of codes, and not one."""
        best = q.mean.argmax(-1)
        return torch.nn.functional.one_hot(best, self.categories).to(torch.float64)

    def extra_repr(self) -> str:
        """Shown by `print(vae)`."""
        return f"C={self.categories}"

    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """All categories, whatever `count`."""
        return torch.eye(self.categories, dtype=torch.float64, device=device)

    def values(self, values: Tensor) -> Tensor:
        """Numbers of categories `(K,)`, or points of the simplex `(K, C)`.

        Raises:
            ParameterError: they are neither.
        """
        if values.ndim == 1 and ((values == values.round()) & (values >= 0) & (values < self.categories)).all():
            return torch.nn.functional.one_hot(values.long(), self.categories).to(torch.float64)
        if values.ndim != 2 or values.shape[1] != self.categories:
            raise ParameterError(
                f"values of a categorical latent must be categories from 0 to {self.categories - 1}, or rows of "
                f"{self.categories} probabilities"
            )
        return values
