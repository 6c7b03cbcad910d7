"""The distribution of x under a VAE: exact where it can be had, by importance sampling elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from girih._arrays import ArrayLike, as_tensor
from girih._options import whole
from girih.errors import LatentDimensionError, ParameterError, UnsupportedLayerError
from girih.inference import DGN, DGNDistribution
from girih.training import evaluating, own_random_state
from girih.vae.evidence import enumerate_exact, importance
from girih.vae.free_energy import FreeEnergyModel
from girih.vae.latent_model import MOST_CODES

# Draws of z for each row where nothing else is asked for.
SAMPLES = 1000


class ExactDistribution(DGNDistribution):
    """The distribution of x under a VAE with a piecewise-affine decoder, Gaussian noise and a standard normal prior.

    Attributes:
        exact: true.
    """

    exact = True

    def __init__(self, dgn: DGN) -> None:
        super().__init__(dgn)

    def log_prob_with_error(self, x: ArrayLike, samples: int = SAMPLES, seed: int | None = 0) -> tuple[Tensor, Tensor]:
        """`log p(x)` and its standard error, which is 0; `samples` and `seed` are there for other VAEs."""
        log_p = self.log_prob(x)
        return log_p, torch.zeros_like(log_p)


class VAEDistribution(Distribution):
    """The distribution of x under a VAE, `log p(x)` by importance sampling with q(z | x) as the proposal.

    The networks are in evaluation mode. Where the latents are discrete and their codes few enough to count, at most
    100,000, all of them are, and `log_prob` is exact.

    Args:
        vae: whose parameters are read when they are needed.

    Attributes:
        exact: whether `log_prob` is exact.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, vae: FreeEnergyModel) -> None:
        self._vae = vae
        self.exact = vae.family.codes is not None and vae.family.codes <= MOST_CODES
        super().__init__(torch.Size([]), torch.Size([vae.output_dim]), validate_args=False)

    def log_prob(self, value: ArrayLike) -> Tensor:
        """`log p(x)` in nats, `(N,)`: exact, or an estimate from 1,000 draws of a fixed seed."""
        return self.log_prob_with_error(value)[0]

    def log_prob_with_error(self, x: ArrayLike, samples: int = SAMPLES, seed: int | None = 0) -> tuple[Tensor, Tensor]:
        """`log p(x)` and the standard error of the estimate, `(N,)` each, in nats; 0 where it is exact.

        Args:
            x: `(N, D)`.
            samples: draws of z for each row, 2 or more.
            seed: of the draws; `None` for torch's global generator.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError, ParameterError: x is not a table that the model is for.

        Source:
            Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016); see `girih.vae.evidence`.
        """
        vae, rows = self._vae, as_tensor(x, "x", self._vae.device)
        if rows.ndim > 2 and rows.shape[-1] == vae.output_dim:
            parts = self.log_prob_with_error(rows.flatten(0, -2), samples, seed)
            return parts[0].reshape(rows.shape[:-1]), parts[1].reshape(rows.shape[:-1])
        if self.exact:
            log_p = enumerate_exact(vae, rows)
            return log_p, torch.zeros_like(log_p)
        generator = None if seed is None else torch.Generator(vae.device).manual_seed(whole(seed, "seed", None))
        return importance(vae, rows, samples, generator)

    def sample(self, sample_shape: Sequence[int] = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`."""
        shape = torch.Size(sample_shape)
        return sample_rows(self._vae, shape.numel(), seed).reshape(*shape, self._vae.output_dim)


def sample_rows(
    vae: FreeEnergyModel, n: int, seed: int | None = None, mean: bool = False, relaxed: bool = False
) -> Tensor:
    """`n` draws of x, or of `E[x | z]`, with z from the prior, relaxed or not: `(n, D)`."""
    if seed is not None:
        with own_random_state(whole(seed, "seed", None), vae.device):
            return sample_rows(vae, n, None, mean, relaxed)
    with torch.no_grad(), evaluating(vae):
        family = vae.family
        z = family.relaxed_prior(n, vae.device) if relaxed else family.prior(vae.device).sample(torch.Size([n]))
        return vae.observe(z, mean)


def exact_dgn(vae: FreeEnergyModel) -> DGN:
    """The decoder of a VAE with prior `N(0, I)` as an exact density model, with the noise of this moment.

    The network is shared, the noise is a copy of its value now; gradients of the exact likelihood reach both.

    Raises:
        ParameterError: the likelihood is not Gaussian, or the prior not N(0, I).
        LatentDimensionError: S is too large for exact inference.
        UnsupportedLayerError: the decoder is not piecewise affine.
    """
    if not vae.family.normal_prior:
        raise ParameterError(
            f"exact inference needs the prior N(0, I), which the family {vae.family.name!r} does not have; "
            "`vae().log_prob_with_error(x)` and `girih.vae.gap` say what is known of log p(x)"
        )
    if vae.log_noise is None:
        raise ParameterError(
            f"exact inference needs Gaussian noise, and this VAE has likelihood={vae.likelihood!r}; "
            "`vae().log_prob_with_error(x)` estimates log p(x) by importance sampling"
        )
    with evaluating(vae.decoder):
        return DGN(vae.decoder, noise=vae.noise).keep_trace()  # that of evaluation, in training too


def distribution_of(vae: FreeEnergyModel) -> ExactDistribution | VAEDistribution:
    """The distribution of x: exact where there is an `exact_dgn`, else by importance sampling."""
    if vae.family.normal_prior:
        with suppress(ParameterError, LatentDimensionError, UnsupportedLayerError):
            return ExactDistribution(exact_dgn(vae))
    return VAEDistribution(vae)
