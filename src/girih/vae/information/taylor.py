"""Term 2 to second order: what a posterior of small variance pays for being one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from girih._arrays import as_tensor
from girih.errors import ShapeError
from girih.training import evaluating
from girih.vae.information.fisher import information_of, rows_and_latents
from girih.vae.information.reading import mean_and_covariance

Information = Callable[[Tensor, Tensor], Tensor]


def second_order_reconstruction(vae: Any, x: Any, q: Any = None) -> Tensor:
    r"""Term 2 of each row by the Taylor expansion of `log p(x | z)` at the mean of q: no draws.

        E_q[-log p(x | z)]  ~  -log p(x | mean) + trace(G(mean) V) / 2

    Exact where q is Gaussian and `log p(x | z)` is quadratic in z wherever q has mass: an affine decoder. For a
    piecewise-affine decoder with Gaussian noise it is exact for a q inside of one cell and misses the kinks of all
    others: it continues the map of the cell of the mean, and its error does not tend to 0 as the number of rows or
    draws grows, only as V does.

    Args:
        vae: as for `fisher_information`, with `log_likelihood(x, z)`.
        x: `(N, D)`.
        q: the posteriors, with event shape `(S,)`; by default `vae.encode(x)`.

    Returns:
        `(N,)` nats; differentiable, so that training can use it in place of draws.

    Raises:
        ParameterError: q is not a distribution of S numbers.
        ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

    Source:
        CG-BPEF, section 5, the display before Fig. 4, and Remark 5.

    Example:
        >>> import girih, torch
        >>> from girih.vae import GaussVAE
        >>> from girih.vae.information import second_order_reconstruction
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
        >>> second_order_reconstruction(vae, torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    mean, covariance = mean_and_covariance(vae.encode(x) if q is None else q)
    rows, mean = rows_and_latents(vae, x, mean)
    return _expansion(vae, rows, mean, covariance, information_of(vae))


def second_order_free_energy(vae: Any, x: Any, means: Any, covariances: Any) -> Tensor:
    r"""The objective of Corollary 3: the mean free energy of free Gaussian posteriors under the best Gaussian prior.

        (1 / n) sum_k [-log p(x_k | mu_k) + trace(G(mu_k) V_k) / 2 - log det V_k / 2]
            + log det(mean of V + covariance of mu) / 2

    The last line and the log-determinants are the mean divergence from the Bregman centroid, exactly: the constants
    cancel. (In print the average over k is missing from `log det V_k`.) The rest is term 2 to second order.

    Args:
        vae: as for `fisher_information`, with `log_likelihood(x, z)`.
        x: `(n, D)`.
        means: mu, `(n, S)`.
        covariances: V, `(n, S, S)`, positive definite.

    Returns:
        `()`, nats per row; differentiable in the decoder, the noise, the means and the covariances.

    Raises:
        ShapeError, EmptyDataError, NonFiniteError: the tables do not fit together.

    Source:
        CG-BPEF, Corollary 3.
    """
    rows, mu = rows_and_latents(vae, x, means)
    V = as_tensor(covariances, "covariances")
    if tuple(V.shape) != (*mu.shape, mu.shape[1]):
        raise ShapeError(f"covariances must have shape {(*mu.shape, mu.shape[1])}; got {tuple(V.shape)}")
    return corollary(vae, rows, mu, V, information_of(vae))


def corollary(vae: Any, x: Tensor, mu: Tensor, V: Tensor, information: Information) -> Tensor:
    """`second_order_free_energy` of what is checked, with the information as a function."""
    term_2 = _expansion(vae, x, mu, V, information).mean()
    return term_2 + 0.5 * torch.logdet(pooled(mu, V)) - 0.5 * torch.logdet(V).mean()


def pooled(means: Tensor, covariances: Tensor) -> Tensor:
    """The covariance of the Bregman centroid of Gaussians, `mean of V + covariance of mu`: `(S, S)`."""
    gap = means - means.mean(0)
    return covariances.mean(0) + gap.mT @ gap / len(means)


def _expansion(vae: Any, x: Tensor, mean: Tensor, covariance: Tensor, information: Information) -> Tensor:
    with evaluating(vae.decoder):
        value = vae.log_likelihood(x, mean)
    return -value + 0.5 * (information(x, mean) * covariance).sum((-2, -1))
