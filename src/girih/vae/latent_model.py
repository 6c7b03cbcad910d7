"""A model p(z) p(x | z) as it is asked for: the likelihoods p(x | z), its exact form, the codes of discrete latents."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol, SupportsFloat

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from girih._arrays import ArrayLike
from girih.errors import LatentDimensionError, NoiseError, ParameterError
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


def exact_model(model: LatentModel, gaussian: bool = True) -> DGN:
    """The decoder as an exact density model with the prior `N(0, I)`.

    Args:
        model: the VAE.
        gaussian: whether its likelihood must be.

    Raises:
        ParameterError: the likelihood is not Gaussian, and must be.
        LatentDimensionError: S is above 3.
        UnsupportedLayerError: the decoder is not piecewise affine.
    """
    if model.latent_dim > 3:
        raise LatentDimensionError(
            f"the exact posterior is for S = 1, 2 and 3 latents, and this VAE has {model.latent_dim}; "
            "vae().log_prob_with_error(x) estimates log p(x) by importance sampling"
        )
    if model.likelihood != "gaussian":
        if gaussian:
            raise ParameterError(
                f"this needs a Gaussian likelihood, and this VAE has {model.likelihood!r}; of a GaussVAE the exact gap "
                "is known for any likelihood, and CatVAE and CGBPEFVAE have codes that can be gone through"
            )
        return DGN(model.decoder, likelihood=model.likelihood)
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


_LOG_2PI = math.log(2.0 * math.pi)


class Likelihood(ABC):
    """`p(x | z)` as a function of the output of the decoder.

    Attributes:
        name: as users write it.
        noisy: whether it has a noise variance, which is then passed as its logarithm.
    """

    name: str
    noisy: bool

    @abstractmethod
    def nll(self, x: Tensor, output: Tensor, log_noise: Tensor | None) -> Tensor:
        """`-log p(x | z)` in nats: x `(N, D)` and output `(..., N, D)` or `(..., 1, D)` to `(..., N)`."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """`E[x | z]`, in the shape of the output."""

    @abstractmethod
    def draw(self, output: Tensor, log_noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """A draw of x for every row of the output."""

    def check(self, x: Tensor) -> None:
        """Refuse rows that this likelihood gives no probability.

        Raises:
            ParameterError: a value is out of range.
        """
        return


class GaussianNoise(Likelihood):
    """`N(x; output, noise I)`.

    Example:
        >>> import torch
        >>> from girih.vae.latent_model import GaussianNoise
        >>> x = torch.zeros(1, 2)
        >>> GaussianNoise().nll(x, torch.ones(1, 2), torch.tensor(0.0)).round(decimals=4)
        tensor([2.8379])
    """

    name, noisy = "gaussian", True

    def nll(self, x: Tensor, output: Tensor, log_noise: Tensor | None) -> Tensor:
        """`(|x - output|^2 / noise + D log(2 pi noise)) / 2`."""
        assert log_noise is not None
        return gaussian_nll(x, output, log_noise)

    def mean(self, output: Tensor) -> Tensor:
        """The output itself."""
        return output

    def draw(self, output: Tensor, log_noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The output and noise."""
        assert log_noise is not None
        e = torch.randn(output.shape, dtype=output.dtype, device=output.device, generator=generator)
        return output + e * torch.exp(0.5 * log_noise).to(output.dtype)


class Bernoulli(Likelihood):
    r"""Independent bits with the output as their logits.

        -log p(x | z) = sum_i softplus(output_i) - x_i output_i

    Grey values in (0, 1) are taken as the paper takes them, as probabilities of a white pixel: the value is then the
    mean of `-log p` over bits drawn with these probabilities. That is a cross-entropy and not the density of a grey
    value: it does not integrate to 1, so it compares with Bernoulli models of the same data alone.

    Example:
        >>> import torch
        >>> from girih.vae.latent_model import Bernoulli
        >>> Bernoulli().nll(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), None).round(decimals=4)
        tensor([1.3863])
    """

    name, noisy = "bernoulli", False

    def nll(self, x: Tensor, output: Tensor, log_noise: Tensor | None) -> Tensor:
        """The cross-entropy, stable for logits of any size."""
        if output.shape[-2] != len(x):  # one output for all rows: nothing of the size of both
            return F.softplus(output).sum(-1) - (output @ x.mT).squeeze(-2)
        targets = x.expand(output.shape)
        return F.binary_cross_entropy_with_logits(output, targets, reduction="none").sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """The probabilities of white."""
        return torch.sigmoid(output)

    def draw(self, output: Tensor, log_noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Bits, as 0 and 1."""
        return torch.bernoulli(torch.sigmoid(output), generator=generator)

    def check(self, x: Tensor) -> None:
        """Refuse values outside [0, 1]."""
        low, high = float(x.min()), float(x.max())
        if low < 0.0 or high > 1.0:
            raise ParameterError(
                f"likelihood='bernoulli' needs values in [0, 1], and x has {low:g} to {high:g}; divide pixels of "
                "0 to 255 by 255, or use likelihood='gaussian'"
            )


_KINDS: dict[str, type[Likelihood]] = {kind.name: kind for kind in (GaussianNoise, Bernoulli)}


def likelihood_named(name: str) -> Likelihood:
    """The likelihood of a name.

    Raises:
        ParameterError: there is none.
    """
    if not isinstance(name, str) or name not in _KINDS:
        raise ParameterError(f"likelihood must be {' or '.join(map(repr, _KINDS))}; got {name!r}")
    return _KINDS[name]()


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
        >>> from girih.vae.latent_model import gaussian_nll
        >>> x = torch.zeros(1, 2)
        >>> round(gaussian_nll(x, x + 1.0, torch.tensor(0.0)).item(), 6)
        2.837877
    """
    distance = (x - mean).square().sum(-1)
    return 0.5 * (distance * torch.exp(-log_variance) + x.shape[-1] * (log_variance + _LOG_2PI))


def log_variance(noise: SupportsFloat) -> float:
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
