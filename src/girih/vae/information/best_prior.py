"""Posteriors as members of a family, the best prior for them, in the family or any, and how far it is: Theorem 2."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import NamedTuple

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

from girih._arrays import ArrayLike
from girih._options import whole
from girih.errors import LatentDimensionError, ParameterError
from girih.training import own_random_state
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


def bregman_centroid(family: ExponentialFamily, natural: ArrayLike, start: Tensor | None = None) -> Tensor:
    r"""The member of the family with the least mean divergence from the posteriors: `eta = (1 / n) sum_k eta_k`.

        argmin_c (1 / n) sum_k KL(q_k : p_c) = I'((1 / n) sum_k F'(c_k))

    As a prior it makes term 1 as small as the family allows.

    Args:
        family: of the posteriors and of the prior.
        natural: of the posteriors, `(n, *parameter_shape)`.
        start: a guess, such as the centroid of the step before, for families that find it by Newton's method.

    Returns:
        Its natural parameters, `parameter_shape`; differentiable.

    Raises:
        ShapeError, NonFiniteError, ParameterError: natural parameters that are not of the family, or a mean so close
            to the boundary that it has none.

    Source:
        CG-BPEF, Theorem 2; Nielsen & Nock, Sided and symmetrized Bregman centroids (2009).

    Example:
        >>> import torch
        >>> from girih.vae.information import NormalFamily, bregman_centroid
        >>> family = NormalFamily()
        >>> natural = family.natural_of(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0]))
        >>> family.mean_variance(bregman_centroid(family, natural))   # variance 1 of each, and 1 between them
        (tensor(0.), tensor(2.))
    """
    return family.natural(family.moments(family.check(natural, batch=True)).mean(0), start)


def compactness(family: ExponentialFamily, natural: ArrayLike, start: Tensor | None = None) -> Tensor:
    r"""The least term 1 that any prior of the family gives, nats per row: how close the posteriors are together.

        (1 / n) sum_k I(eta_k) - I((1 / n) sum_k eta_k) = min_c (1 / n) sum_k KL(q_k : p_c)

    Differentiable, so that training can put it in place of term 1, which is to train with the best prior of the
    family at every step. Of a batch of n rows it is on average smaller than of all rows: the prior is fitted to n
    posteriors instead.

    Args:
        family: of the posteriors and of the prior.
        natural: of the posteriors, `(n, *parameter_shape)`; `family_of(vae.encode(x))` gives both.
        start: a guess of the centroid, as for `bregman_centroid`.

    Returns:
        `()`, never negative up to rounding.

    Raises:
        ShapeError, NonFiniteError, ParameterError: as for `bregman_centroid`.

    Source:
        CG-BPEF, eq. 5.

    Example:
        >>> import torch
        >>> from girih.vae.information import NormalFamily, compactness
        >>> family = NormalFamily()
        >>> natural = family.natural_of(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0]))
        >>> compactness(family, natural)   # log(2) / 2
        tensor(0.3466)
    """
    natural = family.check(natural, batch=True)
    centre = family.information(family.moments(natural).mean(0), start)
    return family.information_of(natural).mean() - centre


def mean_divergence(family: ExponentialFamily, natural: ArrayLike, prior: ArrayLike) -> Tensor:
    """Term 1 for a prior of the family: `(1 / n) sum_k KL(q_k : p)` in nats, `()`.

    Args:
        family: of the posteriors and of the prior.
        natural: of the posteriors, `(n, *parameter_shape)`.
        prior: its natural parameters, `parameter_shape`.

    Raises:
        ShapeError, NonFiniteError, ParameterError: natural parameters that are not of the family.

    Source:
        CG-BPEF, eq. 7.
    """
    return family.divergence(family.check(natural, batch=True), family.check(prior)).mean()


# Points times posteriors of an exact sum, of the table of one latent, and how many are summed at a time.
_MOST_TERMS = 1e9
_MOST_HELD = 1e8
_CHUNK = 2_000_000


class Estimate(NamedTuple):
    """An average of draws, and its standard error."""

    value: Tensor  # ()
    standard_error: Tensor  # ()


class Limits(NamedTuple):
    """`Limits` are two numbers that a third lies between."""

    lower: Tensor  # ()
    upper: Tensor  # ()


def mixture_compactness(family: ExponentialFamily, natural: ArrayLike) -> Tensor:
    r"""The least term 1 that any prior at all gives: that of the mixture of the posteriors, nats per row.

        (1 / n) sum_k I(q_k) - I(m) = (1 / n) sum_k KL(q_k : m),   m(z) = (1 / n) sum_k q_k(z)

    It is the mutual information of z and of the row that it was drawn for: at most log n. The mixture does not
    factorise over the latents though each posterior does, so the sum goes over all R^S combinations of levels (or
    C^S of categories, or points of a quadrature): for S up to 2 or 3.

    Args:
        family: categories, BPEF, coarse or not, Gaussians on a line, or a `Product` of them.
        natural: of the posteriors, `(n, *parameter_shape)`.

    Returns:
        `()`, exact up to rounding for finitely many values of z, and up to the quadrature otherwise; differentiable.

    Raises:
        LatentDimensionError: the sum is too long; `mixture_compactness_sampled` and `mixture_limits` have no limit.
        ParameterError: the family has no such points, as Gaussians with a full covariance.
        ShapeError, NonFiniteError: natural parameters that are not of the family.

    Source:
        CG-BPEF, eq. 6.

    Example:
        >>> import torch
        >>> from girih.vae.information import CategoricalFamily, mixture_compactness
        >>> logits = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])   # z tells which of the two
        >>> mixture_compactness(CategoricalFamily(2), logits)   # log(2)
        tensor(0.6931)
    """
    natural = family.check(natural, batch=True)
    factors = family.count if isinstance(family, Product) else 1
    single = family.family if isinstance(family, Product) else family
    parts = natural if isinstance(family, Product) else natural[:, None]
    supports = [single.support(parts[:, s]) for s in range(factors)]
    found = [support for support in supports if support is not None]
    if len(found) < factors:
        raise ParameterError(
            f"there is no sum over z for {type(single).__name__}; use mixture_compactness_sampled, which draws z"
        )
    count = float(len(natural))
    terms = math.prod(len(points) for points, _ in found) * count
    if terms > _MOST_TERMS or max(len(points) for points, _ in found) * count > _MOST_HELD:
        raise LatentDimensionError(
            f"the exact sum has {terms:.2g} terms (points of z times posteriors), and at most {_MOST_TERMS:.0g} are "
            f"summed, {_MOST_HELD:.0g} for one latent; use mixture_compactness_sampled or mixture_limits, or fewer "
            "latents, levels or rows"
        )
    tables = [single.log_densities(parts[:, s], points.to(natural.dtype)) for s, (points, _) in enumerate(found)]
    weights = [weight.to(natural.dtype) for _, weight in found]
    return family.information_of(natural).mean() - _information_of_mixture(tables, weights)


def _information_of_mixture(tables: list[Tensor], weights: list[Tensor]) -> Tensor:
    """`sum_z w(z) m(z) log m(z)` over the grid of all factors, from `log q_ks` at the points of each factor."""
    count = tables[0].shape[1]
    table, weight = tables[0], weights[0]
    for other, other_weight in zip(tables[1:-1], weights[1:-1], strict=True):
        table = (table[:, None] + other).reshape(-1, count)
        weight = (weight[:, None] + other_weight).reshape(-1)
    last, last_weight = (tables[-1], weights[-1]) if len(tables) > 1 else (table[:1] * 0.0, weight[:1] * 0.0)
    step = max(1, _CHUNK // (len(last) * count))
    total = table.new_zeros(())
    for part, part_weight in zip(table.split(step), weight.split(step), strict=True):
        log_m = (part[:, None] + last).logsumexp(-1) - math.log(count)
        total = total + ((log_m + part_weight[:, None] + last_weight).exp() * log_m).sum()
    return total


def mixture_compactness_sampled(
    family: ExponentialFamily, natural: ArrayLike, samples: int = 100, seed: int = 0
) -> Estimate:
    """An unbiased estimate of `mixture_compactness`, for any number of latents: the mean of `log q_k(z) - log m(z)`.

    Args:
        family: any.
        natural: of the posteriors, `(n, *parameter_shape)`.
        samples: draws of z from each posterior, 2 or more. The cost grows with `samples * n^2`.
        seed: of the draws.

    Returns:
        The estimate and its standard error, `()` each. Where it comes out near log n the posteriors hardly overlap.

    Raises:
        ParameterError: fewer than two draws.
        ShapeError, NonFiniteError: natural parameters that are not of the family.

    Source:
        CG-BPEF, eq. 6.
    """
    natural, samples = family.check(natural, batch=True).detach(), whole(samples, "samples", 2)
    count = len(natural)
    with own_random_state(whole(seed, "seed", None), natural.device):
        z = family.distribution(natural).sample((samples,))
    own = torch.arange(count, device=natural.device)
    draws = []
    for part in z.split(max(1, _CHUNK // count**2)):
        log_q = family.log_densities(natural, part.flatten(0, 1)).reshape(len(part), count, count)
        draws.append(log_q[:, own, own] - log_q.logsumexp(2) + math.log(count))
    gaps = torch.cat(draws)
    # each posterior is drawn from equally often, so only the variance within each counts
    variance = gaps.var(0).mean() / (samples * count)
    return Estimate(gaps.mean(), variance.sqrt())


def mixture_limits(family: ExponentialFamily, natural: ArrayLike) -> Limits:
    r"""Bound `mixture_compactness` of factorised posteriors from both sides, by each latent alone.

        max_s J_s  <=  J  <=  min(log n, sum_s J_s),    J_s: the same for z_s alone

    On the left, a part of z tells no more of the row than all of it. On the right, `J = h(z) - sum_s h(z_s | k)`,
    as the latents are independent given the row, and `h(z) <= sum_s h(z_s)`.

    Args:
        family: a `Product`, of any number of latents.
        natural: of the posteriors, `(n, S, ...)`.

    Raises:
        ParameterError: the family is no `Product`.
        ShapeError, NonFiniteError: natural parameters that are not of the family.

    Source:
        CG-BPEF, eq. 6; the data-processing inequality and the subadditivity of entropy.
    """
    if not isinstance(family, Product):
        raise ParameterError(f"limits from each latent need a Product family; got {type(family).__name__}")
    natural = family.check(natural, batch=True)
    single = torch.stack([mixture_compactness(family.family, part) for part in natural.unbind(1)])
    return Limits(single.max(), single.sum().clamp_max(math.log(len(natural))))
