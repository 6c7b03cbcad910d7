"""What is computed about a VAE from outside asks this of it; its exact model, and the codes of discrete latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from girih._arrays import ArrayLike
from girih.errors import LatentDimensionError, ParameterError
from girih.inference import DGN

MOST_CODES = 100_000

# Numbers in the largest table of decoded values that is held at once.
BLOCK = 2**22


class LatentModel(Protocol):
    """A model `p(z) p(x | z)` with approximate posteriors `q(z | x)`, as every `girih.vae.VAE` is one."""

    decoder: nn.Module
    latent_dim: int  # S
    output_dim: int  # D

    @property
    def likelihood(self) -> str:
        """The name of p(x | z): "gaussian" or "bernoulli"."""
        ...

    @property
    def noise(self) -> Tensor:
        """The noise variance of a Gaussian likelihood, `()`."""
        ...

    def encode(self, x: ArrayLike) -> Distribution:
        """`q(z | x_n)` of rows `(N, D)`, in float64."""
        ...

    def prior(self) -> Distribution:
        """p(z), in float64."""
        ...

    def log_likelihood(self, x: ArrayLike, z: ArrayLike) -> Tensor:
        """`log p(x | z)`, nats: `(N, D)` and `(..., N, *event)` or `(..., 1, *event)` to `(..., N)`."""
        ...


def exact_model(model: LatentModel) -> DGN:
    """The decoder as an exact density model with the prior `N(0, I)`.

    Raises:
        ParameterError: the likelihood is not Gaussian.
        LatentDimensionError: S is above 3.
        UnsupportedLayerError: the decoder is not piecewise affine.
    """
    if model.likelihood != "gaussian":
        raise ParameterError(
            f"the exact posterior of continuous latents needs a Gaussian likelihood, and this VAE has "
            f"{model.likelihood!r}; CatVAE and CGBPEFVAE have codes that can be gone through for any likelihood"
        )
    if model.latent_dim > 3:
        raise LatentDimensionError(
            f"the exact posterior is for S = 1, 2 and 3 latents, and this VAE has {model.latent_dim}; "
            "vae().log_prob_with_error(x) estimates log p(x) by importance sampling"
        )
    return DGN(model.decoder, noise=model.noise.double())


def every_code(values: Tensor, latent_dim: int) -> Tensor:
    """All codes of S latents that take these values `(C, ...)`, the last latent fastest: `(C^S, S, ...)`.

    Example:
        >>> import torch
        >>> from girih.vae.latent_model import every_code
        >>> every_code(torch.tensor([-1.0, 1.0]), 2).tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    index = torch.arange(len(values), device=values.device)
    return values[torch.cartesian_prod(*[index] * latent_dim).reshape(-1, latent_dim)]


def log_joint(model: LatentModel, rows: Tensor, codes: Tensor, p: Distribution) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of codes `(k, *event)`, and `log p(x, y)`, `(k, N)`, under a prior p; each code is decoded once."""
    for part in codes.split(max(1, BLOCK // rows.numel())):
        yield part, model.log_likelihood(rows, part[:, None]) + p.log_prob(part)[:, None]
