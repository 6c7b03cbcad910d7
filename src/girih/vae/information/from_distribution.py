"""Posteriors of a VAE as members of an exponential family."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
)

from girih.errors import ParameterError
from girih.vae.bpef import BPEF, CoarseBPEF
from girih.vae.information.exponential_families import (
    CategoricalFamily,
    ExponentialFamily,
    GaussianFamily,
    NormalFamily,
    Product,
)
from girih.vae.information.polynomial_families import BPEFFamily, CoarseFamily


@singledispatch
def family_of(q: Distribution) -> tuple[ExponentialFamily, Tensor]:
    """The exponential family of a distribution and its natural parameters; gradients reach what q was made of.

    Args:
        q: `Normal`, `MultivariateNormal`, `OneHotCategorical`, `CoarseBPEF`, `BPEF`, or `Independent` of one of them,
            as `vae.encode(x)` and `vae.prior()` give them.

    Of a distribution of your own, `family_of.register(Mine)(function)` says it.

    Returns:
        The family, and `(*batch_shape, *parameter_shape)`.

    Raises:
        ParameterError: q is of no such family; mixtures are not.

    Example:
        >>> import girih, torch
        >>> from girih.vae import GaussVAE
        >>> from girih.vae.information import compactness, family_of
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), seed=0)
        >>> x = vae().sample((10,))
        >>> family, natural = family_of(vae.encode(x))
        >>> bool(compactness(family, natural) <= family.divergence(natural, family_of(vae.prior())[1]).mean())
        True
    """
    raise ParameterError(
        f"{type(q).__name__} is not one of the exponential families here: Normal, MultivariateNormal, "
        "OneHotCategorical, CoarseBPEF, BPEF, or Independent of one of them over the last batch dimension"
    )


@family_of.register(Independent)
def _product(q: Independent[Distribution]) -> tuple[ExponentialFamily, Tensor]:
    if q.reinterpreted_batch_ndims != 1:
        return family_of.dispatch(object)(q)
    family, natural = family_of(q.base_dist)
    return Product(family, natural.shape[-1 - len(family.parameter_shape)]), natural


@family_of.register(Normal)
def _normal(q: Normal) -> tuple[ExponentialFamily, Tensor]:
    return NormalFamily(), NormalFamily().natural_of(q.loc, q.scale)


@family_of.register(MultivariateNormal)
def _gaussian(q: MultivariateNormal) -> tuple[ExponentialFamily, Tensor]:
    family = GaussianFamily(q.event_shape[0])
    return family, family.natural_of(q.loc, q.covariance_matrix)


@family_of.register(OneHotCategorical)
def _categories(q: OneHotCategorical) -> tuple[ExponentialFamily, Tensor]:
    return CategoricalFamily(q.event_shape[0]), q.logits


@family_of.register(CoarseBPEF)
def _on_levels(q: CoarseBPEF) -> tuple[ExponentialFamily, Tensor]:
    return CoarseFamily(q.coefficients.shape[-1], len(q.levels), q.basis), q.coefficients


@family_of.register(BPEF)
def _on_interval(q: BPEF) -> tuple[ExponentialFamily, Tensor]:
    return BPEFFamily(q.coefficients.shape[-1], q.basis), q.coefficients


def mean_and_covariance(q: Distribution) -> tuple[Tensor, Tensor]:
    """The mean `(N, S)` and covariance `(N, S, S)` of the posteriors of N rows, mixtures of Gaussians included.

    Raises:
        ParameterError: z is not a row of S numbers.
    """
    if not isinstance(q, Distribution) or len(q.event_shape) != 1 or isinstance(q, OneHotCategorical | Categorical):
        kind = type(q).__name__
        raise ParameterError(
            f"q must be a distribution of S numbers z, with event shape (S,), not of categories; got {kind}"
        )
    if isinstance(q, MultivariateNormal):
        return q.mean, q.covariance_matrix
    if isinstance(q, MixtureSameFamily):
        weights = q.mixture_distribution.probs
        means, covariances = mean_and_covariance(q.component_distribution)
        mean = (weights[..., None] * means).sum(-2)
        gap = means - mean[..., None, :]
        spread = covariances + gap[..., :, None] * gap[..., None, :]
        return mean, (weights[..., None, None] * spread).sum(-3)
    return q.mean, torch.diag_embed(q.variance)
