r"""EM of a mixture of bent Gaussians: the M-step in closed form, and the loop.

What is raised is the log-likelihood less penalties, which are minus the logarithms of priors:

- a *kink ridge* `lambda tr(Sigma^-1 W P W^T) / 2`, with P the identity on the functions that bend. It leaves the M-step
  of W free of Sigma, `W = E[x phi^T] (G + lambda P)^-1`; lambda to infinity is a mixture of Gaussians, while a ridge on
  all of W would shrink its linear part too;
- a floor of the noise, `rho tr(Sigma^-1) / 2` (inverse Wishart): `Sigma = (scatter + rho I) / N_k`. It is absolute, as
  a share of a column's variance lets it collapse;
- Dirichlet priors of the weights and of the tables of categories.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from girih.tables.mixture import Mixture, Rows, statistics
from girih.tables.mixture import Statistics as Found

Kind = Literal["full", "diagonal", "spherical", "low_rank"]

_CONCENTRATION = 0.5  # rows that the Dirichlet priors add to each component and category
_FACTOR_STEPS = 4  # of factor analysis in one M-step
TOL = 3e-4  # nats a row
HELD = 1e-9  # of the identity, added where a component may have no rows


@dataclass(frozen=True)
class Prior:
    """The kind of noise, and how a mixture is kept from learning its rows by heart.

    Attributes:
        least: `(D,)`, the least variance of noise in each column.
        kind: of noise.
        tied: whether all components have the same noise.
        shared: whether their curves have the same bends, which needs noise that is tied.
        rank: of low-rank noise.
        ridge: lambda.
        floor: rho.
    """

    least: Tensor
    kind: Kind = "full"
    tied: bool = False
    rank: int = 1
    ridge: float = 1.0
    floor: float = 0.01
    shared: bool = False

    def penalty(self, mixture: Mixture) -> Tensor:
        """What is taken from the log-likelihood."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(mixture.noise))
        bends = mixture.maps * mixture.basis.kinky
        total = 0.5 * self.ridge * (inverse * (bends @ bends.mT)).sum()
        own = inverse[:1] if self.tied else inverse
        total = total + 0.5 * self.floor * own.diagonal(dim1=-2, dim2=-1).sum()
        for table in (mixture.weights, *mixture.tables):
            total = total - _CONCENTRATION * table.log().sum()
        return total


class Expected(NamedTuple):
    """Expected sums of complete rows, by responsibility, about the curves of a mixture: `e = x - W phi`."""

    counts: Tensor  # (K,)
    cross: Tensor  # sum of e phi^T, (K, D, F)
    scatter: Tensor  # sum of e e^T, (K, D, D)
    G: Tensor  # sum of phi phi^T, (K, F, F)
    tables: tuple[Tensor, ...]  # (K, L) each

    @staticmethod
    def of(mixture: Mixture, found: Found) -> Expected:
        """The sums that statistics at a mixture stand for."""
        Sigma = mixture.noise
        scatter = found.counts[:, None, None] * Sigma + Sigma @ found.V @ Sigma
        return Expected(found.counts, Sigma @ found.U, scatter, found.G, found.tables)

    def about(self, step: Tensor) -> Expected:
        """The sums about the curves after W has changed by `step (K, D, F)`."""
        cross = step @ self.cross.mT
        scatter = self.scatter - cross - cross.mT + step @ self.G @ step.mT
        return self._replace(cross=self.cross - step @ self.G, scatter=scatter)


def m_step(mixture: Mixture, found: Found, prior: Prior) -> Mixture:
    """The parameters that maximise the expected complete log-likelihood less the penalties."""
    return maximised(mixture, Expected.of(mixture, found), prior)


def maximised(mixture: Mixture, sums: Expected, prior: Prior) -> Mixture:
    """The M-step from expected sums about the curves of the mixture.

    Low-rank noise takes steps of factor analysis from where it stands, each of which raises the likelihood.
    """
    W = mixture.maps
    eye = torch.eye(mixture.basis.size, dtype=W.dtype)
    ridge = torch.diag(mixture.basis.kinky) * prior.ridge + HELD * eye
    solve = _shared if prior.shared else partial(torch.linalg.solve, left=False)
    new = solve(sums.G + ridge, W @ sums.G + sums.cross + HELD * W)
    weights = shares_of(sums.counts)
    tables = tuple(shares_of(table) for table in sums.tables)
    moved = replace(mixture, weights=weights, maps=new, tables=tables)
    return with_noise(moved, sums.about(new - W).scatter, sums.counts, prior)


def _shared(G: Tensor, H: Tensor) -> Tensor:
    """The maps `(K, D, F)` that minimise `sum_k tr(W_k G_k W_k^T - 2 H_k W_k^T)` with the same bends for all k.

    The first two functions, 1 and z, have columns of their own for each component in one regression.
    """
    K, D, F = H.shape
    own, bends = 2 * K, F - 2
    both = G.new_zeros(own + bends, own + bends)
    both[:own, :own] = torch.block_diag(*G[:, :2, :2])
    both[:own, own:] = G[:, :2, 2:].flatten(0, 1)
    both[own:, :own] = both[:own, own:].mT
    both[own:, own:] = G[:, 2:, 2:].sum(0)
    right = torch.cat((H[:, :, :2].permute(1, 0, 2).flatten(1), H[:, :, 2:].sum(0)), 1)
    found = torch.linalg.solve(both, right, left=False)
    lines = found[:, :own].unflatten(1, (K, 2)).permute(1, 0, 2)
    return torch.cat((lines, found[:, own:].expand(K, D, bends)), 2)


def with_noise(mixture: Mixture, scatter: Tensor, counts: Tensor, prior: Prior) -> Mixture:
    """The mixture with the noise that is likeliest for scatters `(K, D, D)` of `counts (K,)` rows about its curves."""
    bends = mixture.maps * mixture.basis.kinky
    scatter = scatter + prior.ridge * bends @ bends.mT
    if prior.tied:
        scatter, counts = scatter.sum(0, keepdim=True), counts.sum(0, keepdim=True)
    K, D = mixture.maps.shape[:2]
    scatter = 0.5 * (scatter + scatter.mT) + (prior.floor + HELD) * torch.eye(D, dtype=scatter.dtype)
    noise, own = _of_kind(scatter / (counts[:, None, None] + HELD), prior, mixture.own)
    short = (prior.least - noise.diagonal(dim1=-2, dim2=-1)).clamp(min=0.0)
    noise = noise + torch.diag_embed(short)
    return replace(mixture, noise=noise.expand(K, D, D), own=None if own is None else own + short)


def shares_of(counts: Tensor) -> Tensor:
    """Probabilities from counts `(..., L)`."""
    more = counts + _CONCENTRATION
    return more / more.sum(-1, keepdim=True)


def _of_kind(covariance: Tensor, prior: Prior, own: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The likeliest noise for expected scatters `(K, D, D)` a row, and the own variances of low-rank noise."""
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    if prior.kind == "diagonal":
        return torch.diag_embed(variances), None
    if prior.kind == "spherical":
        return torch.diag_embed(variances.mean(-1, keepdim=True).expand_as(variances)), None
    if prior.kind == "full":
        return covariance, None
    own = 0.5 * variances if own is None else own
    least = torch.maximum(prior.least, 1e-3 * variances)
    for _ in range(_FACTOR_STEPS):
        root = own.sqrt()
        values, vectors = torch.linalg.eigh(covariance / (root[:, :, None] * root[:, None, :]))
        loads = (values[:, -prior.rank :] - 1.0).clamp(min=0.0).sqrt()
        factor = root[:, :, None] * vectors[:, :, -prior.rank :] * loads[:, None, :]
        own = torch.maximum(variances - factor.square().sum(-1), least)
    return factor @ factor.mT + torch.diag_embed(own), own


class Ascent:
    """A run of EM, which is given the statistics of its mixture again and again until it is done.

    The curve never rises: a step that would raise it (where a column stands at its least variance, the noise is not
    the best one) ends the run before it.

    Args:
        start: where it starts.
        prior: what holds it.
        tol: nats a row, below which a gain ends it.

    Attributes:
        mixture: whose statistics it asks for.
        best: the last that was accepted.
        curve: the penalised NLL a row.
        done: whether it has ended.
    """

    def __init__(self, start: Mixture, prior: Prior, tol: float) -> None:
        self.mixture = self.best = start
        self.prior, self.tol = prior, tol
        self.curve: list[float] = []
        self.done = False

    def take(self, found: Found, total: float) -> None:
        """One iteration, from the statistics of rows with weights of sum `total`."""
        value = float(self.prior.penalty(self.mixture) - found.log_likelihood) / total
        if self.curve and not value < self.curve[-1]:
            self.done = True
            return
        self.best = self.mixture
        self.curve.append(value)
        if len(self.curve) > 1 and self.curve[-2] - value < self.tol:
            self.done = True
        else:
            self.mixture = m_step(self.mixture, found, self.prior)


def fit(
    mixture: Mixture, rows: Rows, prior: Prior, max_iter: int = 60, tol: float = TOL
) -> tuple[Mixture, list[float]]:
    """EM until an iteration gains less than `tol` nats a row; with the curve of the penalised NLL a row (`Ascent`)."""
    run, total = Ascent(mixture, prior, tol), float(rows.weight.sum())
    for _ in range(max_iter):
        run.take(statistics(run.mixture, rows), total)
        if run.done:
            break
    return run.best, run.curve
