"""The best prior for given posteriors, and how far they are from it: Theorem 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from girih.vae.information.family import ExponentialFamily


def bregman_centroid(family: ExponentialFamily, natural: Any, start: Tensor | None = None) -> Tensor:
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


def compactness(family: ExponentialFamily, natural: Any, start: Tensor | None = None) -> Tensor:
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


def mean_divergence(family: ExponentialFamily, natural: Any, prior: Any) -> Tensor:
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
