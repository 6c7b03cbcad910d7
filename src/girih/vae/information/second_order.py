"""Free energy to second order, and Corollary 3: the least that Gaussian posteriors and prior leave a given decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from girih._arrays import ArrayLike, as_tensor
from girih._options import real, whole
from girih.errors import ShapeError, SingularInformationError
from girih.training import evaluating
from girih.vae.information.best_prior import mean_and_covariance
from girih.vae.information.fisher import information_of, rows_and_latents
from girih.vae.latent_model import LatentModel

Information = Callable[[Tensor, Tensor], Tensor]


def second_order_reconstruction(vae: LatentModel, x: ArrayLike, q: Distribution | None = None) -> Tensor:
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


def second_order_free_energy(vae: LatentModel, x: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> Tensor:
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


def corollary(vae: LatentModel, x: Tensor, mu: Tensor, V: Tensor, information: Information) -> Tensor:
    """`second_order_free_energy` of what is checked, with the information as a function."""
    term_2 = _expansion(vae, x, mu, V, information).mean()
    return term_2 + 0.5 * torch.logdet(pooled(mu, V)) - 0.5 * torch.logdet(V).mean()


def pooled(means: Tensor, covariances: Tensor) -> Tensor:
    """The covariance of the Bregman centroid of Gaussians, `mean of V + covariance of mu`: `(S, S)`."""
    gap = means - means.mean(0)
    return covariances.mean(0) + gap.mT @ gap / len(means)


def _expansion(vae: LatentModel, x: Tensor, mean: Tensor, covariance: Tensor, information: Information) -> Tensor:
    with evaluating(vae.decoder):
        value = vae.log_likelihood(x, mean)
    return -value + 0.5 * (information(x, mean) * covariance).sum((-2, -1))


_INNER = 1000
_ROUNDS = 100

# Variance of the means, in units of the least variance of a posterior, below which the prior is a point.
_COLLAPSED = 1e-9


class Optimum(NamedTuple):
    """The end of `optimal_free_energy`."""

    value: Tensor  # () nats per row
    means: Tensor  # (n, S) of the posteriors
    covariances: Tensor  # (n, S, S)
    prior_mean: Tensor  # (S,) of the Bregman centroid
    prior_covariance: Tensor  # (S, S)
    steps: int
    converged: bool


def optimal_free_energy(
    vae: LatentModel,
    x: ArrayLike,
    start: ArrayLike | None = None,
    tol: float = 1e-10,
    max_steps: int = 500,
) -> Optimum:
    r"""Minimise `second_order_free_energy` over all means and covariances of the posteriors; the decoder is given.

    Setting the derivative in V_k to zero gives, for given means, with P the covariance of the centroid,

        V_k = (G_k + P^-1)^-1,    P = (1 / n) sum_k V_k + covariance of the means

    which has one solution where every G_k is positive semi-definite. With V_k put in, a mean minimises

        -log p(x_k | mu) + (mu - m)^T P^-1 (mu - m) / 2 + log det(G(mu) + P^-1) / 2

    by damped Newton steps that never raise it. So the optimum is the average of Laplace's approximations of
    `-log p(x_k)` under the Gaussian prior N(m, P) that makes them best; for an affine decoder, the exact NLL.

    Args:
        vae: as for `fisher_information`, with `log_likelihood(x, z)`.
        x: `(n, D)`.
        start: the means to start from, `(n, S)`; those of `vae.encode(x)` by default. The optimum is a local one.
        tol: it ends when a round lowers the free energy by less, in nats per row.
        max_steps: rounds at most.

    Returns:
        A named tuple: `value` in nats per row, `means`, `covariances`, `prior_mean`, `prior_covariance`, `steps` and
        whether it `converged`.

    Raises:
        SingularInformationError: some direction of z changes no row, or the means run together in it (the posterior
            collapses), or, for a decoder that is not piecewise affine, a G_k is too far from positive: then there is
            no least free energy, or none with a prior of positive variance.
        ParameterError: tol or max_steps is out of its domain.
        ShapeError, EmptyDataError, NonFiniteError: the tables do not fit together.

    Source:
        CG-BPEF, Corollary 3.

    Example:
        >>> import girih
        >>> from girih.vae import GaussVAE
        >>> from girih.vae.information import optimal_free_energy
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
        >>> best = optimal_free_energy(vae, vae.sample(50, seed=0))
        >>> best.converged, best.means.shape
        (True, torch.Size([50, 1]))
    """
    tol, max_steps = real(tol, "tol"), whole(max_steps, "max_steps")
    first = mean_and_covariance(vae.encode(x))[0] if start is None else start
    rows, mu = rows_and_latents(vae, x, first)
    rows, mu = rows.detach(), mu.detach().clone()
    information = information_of(vae)
    if _indefinite(information(rows, mu).detach()):
        mu = _modes(vae, information, rows, mu, pooled(mu, torch.eye(mu.shape[1], dtype=mu.dtype)[None]))
    V, P, value = _at(vae, information, rows, mu, None)
    for step in range(1, max_steps + 1):
        before, mu = value, _better_means(vae, information, rows, mu, mu.mean(0), P)
        V, P, value = _at(vae, information, rows, mu, P)
        if float(before - value) < tol:
            return Optimum(value, mu, V, mu.mean(0), P, step, True)
    return Optimum(value, mu, V, mu.mean(0), P, max_steps, False)


def _at(
    vae: LatentModel, information: Information, x: Tensor, mu: Tensor, start: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The best V and P for given means, and the free energy there."""
    with torch.no_grad():
        V, P = _covariances(information(x, mu), mu, start)
        return V, P, corollary(vae, x, mu, V, information)


def _covariances(information: Tensor, means: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The fixed point in V and P: `(n, S, S)` and `(S, S)`.

    The map from P to the next P is monotone and, for positive semi-definite information, concave: it has one fixed
    point, and Newton's method comes down to it after its first step. For other information the map is iterated from
    below, which leads up to the least fixed point.
    """
    between = pooled(means, torch.zeros_like(information))
    _check(information.mean(0), between)
    concave = not _indefinite(information)
    P = start if concave and start is not None else between
    for _ in range(_INNER):
        inverse = torch.linalg.inv(P)
        V = _inverse(information + inverse)
        gap = between + V.mean(0) - P
        if _indefinite(V) or float(gap.abs().max()) <= 1e-13 * float(P.diagonal().max()):
            break
        P = P + (_newton(V @ inverse, gap) if concave else gap)
    V = _inverse(information + torch.linalg.inv(P))
    if _indefinite(V):
        raise SingularInformationError(
            "there is no least free energy from this start: at some mean, -log p(x | z) is so far from convex in z "
            "that a wider posterior is always better; start from means nearer to the maxima of log p(x | z)"
        )
    return V, P


def _newton(shares: Tensor, gap: Tensor) -> Tensor:
    """The change of P that closes the gap to first order: V_k changes by `K_k dP K_k^T`, `K_k = V_k P^-1`."""
    n, size = shares.shape[:2]
    flat = shares.reshape(n, -1)
    products = (flat.mT @ flat / n).reshape(size, size, size, size).permute(0, 2, 1, 3)
    eye = torch.eye(size**2, dtype=gap.dtype)
    step = torch.linalg.solve(eye - products.reshape(size**2, size**2), gap.reshape(-1)).reshape(size, size)
    result: Tensor = 0.5 * (step + step.mT)
    return result


def _indefinite(matrices: Tensor) -> bool:
    """Tell whether one has a negative eigenvalue, beyond the rounding of a singular one."""
    values = torch.linalg.eigvalsh(matrices)
    return not bool((values[..., 0] >= -1e-12 * values[..., -1].abs()).all())


def _check(information: Tensor, between: Tensor) -> None:
    """Refuse directions of z that no row depends on, or in which the means of all rows run together."""
    widest, least = torch.linalg.eigvalsh(information), torch.linalg.eigvalsh(between)
    if not bool(widest[0] > 1e-13 * widest[-1].abs()):
        raise SingularInformationError(
            "there is no least free energy: no row depends on z in some direction, so that its posteriors widen for "
            f"ever (the mean information has eigenvalues from {float(widest[0]):.3g} to {float(widest[-1]):.3g}); use "
            "fewer latents"
        )
    if not bool(least[0] * widest[-1] > _COLLAPSED):
        raise SingularInformationError(
            "the best prior is a point in some direction of z: the means of all rows run together there (their "
            f"variance is {float(least[0]):.3g}); use fewer latents, less noise, or another start"
        )


def _modes(vae: LatentModel, information: Information, x: Tensor, mu: Tensor, P: Tensor) -> Tensor:
    """Means moved to where `-log p(x | z)` under the Gaussian prior of the start is least: there it is convex."""
    m = mu.mean(0)
    for _ in range(_ROUNDS):
        before, mu = mu, _better_means(vae, information, x, mu, m, P, curved=False)
        if float((mu - before).abs().max()) < 1e-6:
            break
    return mu


def _better_means(
    vae: LatentModel, information: Information, x: Tensor, mu: Tensor, m: Tensor, P: Tensor, curved: bool = True
) -> Tensor:
    """One damped Newton step of every mean, taken only where it lowers its own objective."""
    with torch.enable_grad():
        at = mu.clone().requires_grad_()
        objective, curvature = _objective(vae, information, x, at, m, P, curved)
        (slope,) = torch.autograd.grad(objective.sum(), at)
    curvature = _positive(curvature.detach() + torch.linalg.inv(P))
    step = -torch.linalg.solve(curvature, slope[..., None])[..., 0]
    best, lowest, length = mu, objective.detach(), 1.0
    promised = (slope * -step).sum(-1)
    worth = 1e-14 * (1.0 + lowest.abs())  # a smaller gain than this is rounding
    rows = (promised > worth).nonzero()[:, 0]
    with torch.no_grad():
        while len(rows):
            trial = best[rows] + length * step[rows]
            lower = _objective(vae, information, x[rows], trial, m, P, curved)[0] < lowest[rows]
            best = best.index_copy(0, rows[lower], trial[lower])
            length *= 0.5
            rows = rows[~lower]
            rows = rows[length * promised[rows] > worth[rows]]
    return best


def _objective(
    vae: LatentModel, information: Information, x: Tensor, mu: Tensor, m: Tensor, P: Tensor, curved: bool
) -> tuple[Tensor, Tensor]:
    """Compute what a mean minimises, with or without the log-determinant, and the information there."""
    precision, G = torch.linalg.inv(P), information(x, mu)
    gap = mu - m
    log_det = torch.linalg.slogdet(G + precision)
    # beyond the region where the posterior would have a positive definite covariance there is nothing to compare
    half = torch.where(log_det.sign > 0, 0.5 * log_det.logabsdet, torch.inf) if curved else torch.zeros_like(gap[:, 0])
    quadratic = 0.5 * ((gap @ precision) * gap).sum(-1)
    with evaluating(vae.decoder):
        nll = -vae.log_likelihood(x, mu)
    return nll + quadratic + half, G


def _inverse(matrix: Tensor) -> Tensor:
    inverse = torch.linalg.inv(matrix)
    result: Tensor = 0.5 * (inverse + inverse.mT)
    return result


def _positive(matrix: Tensor) -> Tensor:
    """The matrix with the absolute values of its eigenvalues: a descent direction even where it is not convex."""
    values, vectors = torch.linalg.eigh(matrix)
    least = 1e-12 * values.abs().amax(-1, keepdim=True)
    result: Tensor = (vectors * values.abs().clamp_min(least)[:, None, :]) @ vectors.mT
    return result
