"""Categorical posteriors with a uniform prior, drawn by the Concrete relaxation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, OneHotCategorical

from girih._arrays import check_finite
from girih._options import whole
from girih.errors import ParameterError
from girih.vae.bpef.concrete import as_temperature, relaxed
from girih.vae.families.base import Draws, Family
from girih.vae.latent_model import LatentModel
from girih.vae.nearest.product_families import nearest_on_codes
from girih.vae.nearest.search import Nearest, Search, Searcher


class Category(Family):
    r"""S independent categories against uniform ones.

        KL = sum_s sum_c q_sc log q_sc + S log C

    Draws are points of the simplex, from the Concrete distribution at a temperature, while the divergence is that of
    the categories: a lower bound of the divergence between Concrete distributions (Theorem 1 of the paper).

    Args:
        categories: C.
        temperature: T of the draws.

    Raises:
        ParameterError: C below 2, or a temperature that is not positive.

    Source:
        Jang, Gu & Poole, Categorical reparameterization with Gumbel-softmax (2017); CG-BPEF, section 3.4.

    Example:
        >>> import torch
        >>> from girih.vae import Category
        >>> draws = Category(5).over(2, torch.empty(0)).draw(torch.zeros(3, 10), samples=4)
        >>> draws.latents.shape, bool((draws.divergence.abs() < 1e-6).all())
        (torch.Size([4, 3, 10]), True)
    """

    name, posteriors = "category", "categories"
    options, counts = ("categories", "temperature"), ("categories",)
    temperature: float

    def __init__(self, categories: int = 10, temperature: float = 0.5) -> None:
        super().__init__()
        self.categories = self.width = whole(categories, "categories", 2)
        self.temperature = as_temperature(temperature)

    def start(self, like: Tensor) -> None:
        """Count the codes."""
        self.codes = self.categories**self.latent_dim

    def outputs(self, latent_dim: int) -> int:
        """C logits for each latent."""
        return latent_dim * self.categories

    def meaning(self, latent_dim: int) -> str:
        """Name the logits, for errors."""
        return f"the C = {self.categories} logits of each of the S = {latent_dim} latents"

    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """Relaxed one-hot codes, flat, and the divergence of the categories."""
        log_q = encoded.reshape(-1, *self.event_shape).log_softmax(-1)
        divergence = (log_q.exp() * log_q).sum((1, 2)) + self.latent_dim * math.log(self.categories)
        y = relaxed(log_q, self.temperature if temperature is None else temperature, samples, generator)
        return Draws(y.flatten(2), divergence)

    def posterior(self, encoded: Tensor) -> Independent[OneHotCategorical]:
        """The posterior has the event shape `(S, C)`."""
        logits = encoded.double().reshape(-1, *self.event_shape)
        check_finite(logits.detach(), "the encoder's logits")
        return _categories(logits)

    def prior(self, device: torch.device) -> Independent[OneHotCategorical]:
        """The prior is uniform."""
        return _categories(torch.zeros(self.event_shape, dtype=torch.float64, device=device))

    def relaxed_prior(self, n: int, device: torch.device) -> Tensor:
        """Draw points of the simplex."""
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
        """The axis has all categories, whatever `count`."""
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

    def searcher(self, model: LatentModel, search: Search) -> Searcher:
        """All codes are gone through: nothing is approximated but the search itself."""

        def find(x: Tensor) -> Nearest:
            q, prior = model.encode(x), model.prior()
            assert isinstance(q, Independent) and isinstance(prior, Independent)
            own, first = q.base_dist.logits, prior.base_dist.logits
            return nearest_on_codes(model, x, torch.eye(self.categories).to(first), None, own, first, search)

        return find

    def member(self, parameters: tuple[Tensor, ...], search: Search) -> Distribution:
        """Categories of logits `(N, S, C)`."""
        return _categories(parameters[0])


def _categories(logits: Tensor) -> Independent[OneHotCategorical]:
    return Independent(OneHotCategorical(logits=logits, validate_args=False), 1, validate_args=False)
