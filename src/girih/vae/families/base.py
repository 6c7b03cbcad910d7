"""A family of approximate posteriors provides what is asked for here: one file says all of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from girih.errors import ParameterError
from girih.vae.latent_model import LatentModel
from girih.vae.nearest.search import Search, Searcher


class Draws(NamedTuple):
    """`Draws` hold what one step of training needs of q(z | x)."""

    latents: Tensor  # (K, N, S * width), as the decoder takes them
    divergence: Tensor  # (N,) KL(q(z | x) || p(z)), or an unbiased estimate of it from the same draws
    weights: Tensor | None = None  # (K, N), sums to 1 over K; None: each counts 1 / K


class Family(nn.Module, ABC):
    """A family of q(z | x) with its prior p(z): all that a VAE asks about its latents.

    Subclass it, and pass an instance to `girih.vae.VAE(decoder, family)`, where no family of girih will do. What is
    made holds its options alone; `over(S, like)`, which the VAE calls, gives it its latents, its tables and its prior.
    A module, since the prior may have parameters, and since tables move with the networks. `girih.vae.register_family`
    makes it known by its name, which `girih.load` needs.

    The methods that are abstract are what training and sampling take. The others have defaults: a family without codes
    whose prior is not learned and whose nearest member is not known, where the error says so.

    Attributes:
        name: in the registry.
        posteriors: what its posteriors are, for errors.
        options: the names of its arguments, each an attribute too: what is saved, beside the state.
        counts: those of the options for each unit of which the encoder gives a number at least.
        searches: which of `full` and `continuous` its search for the nearest member knows.
        normal_prior: whether p(z) is N(0, I), for which a `girih.DGN` gives the exact p(x).
        closed_divergence: whether the exact posterior has a closed form of `KL(q(z | x) || p(z | x))`.
        width: numbers that the decoder takes for each latent.
        latent_dim: S.
        event_shape: of one z.
        temperature: of the relaxation of a discrete z, `None` for a family that has none.
        codes: how many values a discrete z has, `None` where it is continuous.
    """

    name: ClassVar[str]
    posteriors: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[tuple[str, ...]] = ()
    searches: ClassVar[frozenset[str]] = frozenset()
    normal_prior: ClassVar[bool] = False
    closed_divergence: ClassVar[bool] = False
    width: int = 1
    latent_dim: int
    event_shape: torch.Size
    temperature: float | None = None
    codes: int | None = None

    def over(self, latent_dim: int, like: Tensor) -> Self:
        """This family over S latents, a copy; `like` has the type and the device of the networks."""
        new = copy.deepcopy(self)
        new.latent_dim = latent_dim
        new.event_shape = torch.Size([latent_dim] if self.width == 1 else [latent_dim, self.width])
        new.start(like)
        return new

    def start(self, like: Tensor) -> None:
        """Make the tables and the prior, once S is known."""

    @abstractmethod
    def outputs(self, latent_dim: int) -> int:
        """Say how many numbers the encoder gives for S latents."""

    @abstractmethod
    def meaning(self, latent_dim: int) -> str:
        """Say what these numbers are, for errors."""

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

    @abstractmethod
    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """The values that a traversal of one latent takes by default, `(K,)` or `(K, C)`."""

    def values(self, values: Tensor) -> Tensor:
        """The values of a traversal as entries of z, checked: `(K,)` or `(K, C)`; any numbers, unless overridden."""
        return values.reshape(-1)

    def relaxed_prior(self, n: int, device: torch.device) -> Tensor:
        """Draws of z from the prior as training draws from q, `(n, S * width)`: relaxed, where z is discrete."""
        return self.prior(device).sample(torch.Size([n])).flatten(1)

    def moments(self, q: Distribution) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z under q, each `(N, *event)`."""
        return q.mean, q.stddev

    def point(self, q: Distribution) -> Tensor:
        """The z of each row that stands for it in a reconstruction, `(N, *event)`: the mean, unless overridden."""
        return q.mean

    @property
    def learns_prior(self) -> bool:
        """True where p(z) is a member of the family that training moves."""
        return False

    def free_prior_bound(self, encoded: Tensor) -> Tensor:
        """Theorem 2 for a batch, nats per row, `()`: the least divergence that any prior of the family leaves.

        Raises:
            ParameterError: the prior is not learned.
        """
        raise ParameterError(f"the family {self.name!r} has no prior that is learned")

    def centre_prior(self, parts: Sequence[Tensor]) -> None:
        """Set the prior to the Bregman centroid of the posteriors of what the encoder gave, in parts.

        Raises:
            ParameterError: the prior is not learned.
        """
        raise ParameterError(f"the family {self.name!r} has no prior that is learned")

    def searcher(self, model: LatentModel, search: Search) -> Searcher:
        """The search for the member that is nearest to the exact posterior of each row, ready for rows.

        Raises:
            ParameterError: it is not known for this family, or the model has no exact posterior.
        """
        raise ParameterError(
            f"the exact gap is for families that know their nearest member; {type(self).__name__} has no searcher"
        )

    def member(self, parameters: tuple[Tensor, ...], search: Search) -> Distribution:
        """The distributions of parameters that a search found, batch `(N,)`."""
        raise ParameterError(f"{type(self).__name__} has no searcher, and so no members that one could find")

    def learned(self) -> Mapping[str, Tensor]:
        """The tensors that are saved, by name; parameters where they are trained."""
        tensors: dict[str, Tensor] = self.state_dict(keep_vars=True)
        return tensors

    @classmethod
    def restored(cls, options: Mapping[str, object], stored: int) -> Self:
        """The family of saved options; larger tables than any that is trained are refused before they are made.

        Args:
            options: by name.
            stored: how many numbers are stored with it.

        Raises:
            ParameterError: an option is out of its domain.
        """
        for name in cls.counts:
            value = options.get(name, 0)
            if not isinstance(value, int) or value > stored:
                raise ParameterError(f"{name}={value} is more than the {stored} numbers that are stored")
        return cls(**options)
