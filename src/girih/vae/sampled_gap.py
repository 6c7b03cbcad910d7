r"""The gap of Gaussian posteriors by sampling, where S > 3 puts the exact one out of reach.

With `q = N(m, F F^T)`, `z = m + F e`, the bound is `KL(q || N(0, I)) + E[l(z)]`, `l(z) = -log p(x | z)`: draws come
in pairs e, -e. With Gaussian noise l is quadratic on the cell of m, and so has a known mean if it were so everywhere,

    E[|r - B F e|^2] / 2 = (|r|^2 + |B F|^2) / 2,

so that only the rest, what other cells change, is sampled. The best q is looked for by descents on the bound over a
fixed set of points e, from the encoder's q and from modes of the posterior; it is judged by fresh draws, the same for
both, so its bound is not too low on average, and the approximation gap not too small.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal

from girih.sampling.annealing import estimates, modes_of
from girih.sampling.modes import Modes, log_mean
from girih.sampling.row import Model, Row
from girih.vae.latent_model import LatentModel
from girih.vae.nearest.search import Nearest, Search, Searcher, minimise

_PAIRS = 1000  # draws that the bounds are judged by
_COARSE, _FINE = 24, 128  # points of the descents
_MODES = 3
_DRAWS = 8192
_LEAST = 30.0
_WIDER, _PRIOR = 1.2, 0.05
_POINTS = 2**16  # at a time


class Gaussians(NamedTuple):
    """A Gaussian for each row."""

    mean: Tensor  # (N, S)
    factor: Tensor  # (N, S, S), lower

    def at(self, e: Tensor) -> Tensor:
        """`m + F e` for draws `(L, S)`, `(N, L, S)`."""
        return self.mean[:, None] + e @ self.factor.mT

    @property
    def divergence(self) -> Tensor:
        """That from N(0, I), `(N,)`."""
        size = 0.5 * (self.mean.square().sum(1) + self.factor.square().sum((1, 2)) - self.mean.shape[1])
        return size - self.factor.diagonal(dim1=1, dim2=2).log().sum(1)


def factors(q: Distribution) -> Gaussians:
    """Means and factors of an encoder's Gaussians."""
    if isinstance(q, MultivariateNormal):
        return Gaussians(q.mean, q.scale_tril)
    assert isinstance(q, Independent)
    return Gaussians(q.base_dist.loc, torch.diag_embed(q.base_dist.scale))


class _Losses:
    """`l(z) = -log p(x | z)` of rows."""

    def __init__(self, model: LatentModel, x: Tensor) -> None:
        self._model, self._x = model, x
        self.row: Row | None = None
        if model.likelihood == "gaussian":
            self.row, self.common, _ = Model.of(model.decoder, model.noise.double(), None, "").reduced(x)

    def at(self, z: Tensor, which: Tensor) -> Tensor:
        """The losses `(n, L)` at z `(n, L, S)` of the rows `which (n,)`."""
        if self.row is None:
            return -self._model.log_likelihood(self._x[which], z.movedim(1, 0)).mT
        return self.row.take(which).distance(z) - self.common[which, None]

    def quadratic(self, q: Gaussians, e: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the loss of the cell of each m under q, `(N,)`, and this loss at m + F e, `(N, L)`."""
        if self.row is None:
            nothing = q.mean.new_zeros(len(q.mean))
            return nothing, nothing[:, None]
        residual, slope = self.row.linear(q.mean)
        turned = slope @ q.factor
        mean = 0.5 * (residual.square().sum(1) + turned.square().sum((1, 2))) - self.common
        off = residual[:, None] - e @ turned.mT
        return mean, 0.5 * off.square().sum(2) - self.common[:, None]


def bounds(losses: _Losses, q: Gaussians, e: Tensor) -> tuple[Tensor, Tensor]:
    """The negative ELBO of q and its standard error, `(N,)` each, with draws `(L, S)` and their negatives."""
    both = torch.cat((e, -e))
    every = torch.arange(len(q.mean))
    known, rest = losses.quadratic(q, both)
    rest = losses.at(q.at(both), every) - rest
    pairs = 0.5 * (rest[:, : len(e)] + rest[:, len(e) :])
    return q.divergence + known + pairs.mean(1), pairs.std(1) / len(e) ** 0.5


def nearest(losses: _Losses, q: Gaussians, which: Tensor, e: Tensor, full: bool) -> tuple[Gaussians, Tensor]:
    """Descents from each q to where the bound over the points `(L, S)` is least, and that bound, `(n,)`."""
    n, S = q.mean.shape
    below = torch.tril_indices(S, S, -1) if full else torch.empty(2, 0, dtype=torch.long)

    def unpack(point: Tensor, of: Tensor) -> Gaussians:
        inner = torch.diag_embed(point[:, S : 2 * S].exp())
        inner[:, below[0], below[1]] = point[:, 2 * S :]
        shift = q.factor[of] @ point[:, :S, None]
        return Gaussians(q.mean[of] + shift[:, :, 0], q.factor[of] @ inner)

    def objective(point: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            now = unpack(point, of)
            value = now.divergence + losses.at(now.at(e), which[of]).mean(1)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    found = minimise(objective, torch.zeros(n, 2 * S + below.shape[1], dtype=torch.float64), 1e-4, 1e-6, 120)
    return unpack(found.point, torch.arange(n)), found.value


def _starts(q: Gaussians, modes: list[Modes], full: bool) -> tuple[Gaussians, Tensor]:
    """The encoder's q, and Gaussians about modes; and whose they are, `(n,)`."""
    mean, factor, which = [q.mean], [q.factor if full else _diagonal(q.factor)], [torch.arange(len(q.mean))]
    for n, one in enumerate(modes):
        slope = one.slope[:_MODES]
        precision = torch.eye(slope.shape[2], dtype=torch.float64) + slope.mT @ slope
        inverse = torch.linalg.inv(precision)
        mean.append(one.place[:_MODES])
        deviation = torch.diag_embed(precision.diagonal(dim1=1, dim2=2).rsqrt())
        factor.append(torch.linalg.cholesky(inverse) if full else deviation)
        which.append(torch.full((len(slope),), n))
    return Gaussians(torch.cat(mean), torch.cat(factor)), torch.cat(which)


def _diagonal(factor: Tensor) -> Tensor:
    return torch.diag_embed(factor.square().sum(2).sqrt())


def _by_importance(losses: _Losses, q: Gaussians, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`-log p(x)` and its standard error, `(N,)` each, with q, a little wider, and the prior as the proposal."""
    N, S = q.mean.shape
    wide = q._replace(factor=_WIDER * q.factor)
    e = torch.randn(N, _DRAWS, S, dtype=torch.float64, generator=generator)
    prior = torch.rand(N, _DRAWS, 1, dtype=torch.float64, generator=generator) < _PRIOR
    z = torch.where(prior, e, wide.mean[:, None] + e @ wide.factor.mT)
    off = torch.linalg.solve_triangular(wide.factor, (z - wide.mean[:, None]).mT, upper=False)
    log_q = -0.5 * off.square().sum(1) - wide.factor.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
    log_p = -0.5 * z.square().sum(2)
    proposal = torch.logaddexp(log_q + torch.tensor(1.0 - _PRIOR).log(), log_p + torch.tensor(_PRIOR).log())
    value, error, _ = log_mean(log_p - losses.at(z, torch.arange(N)) - proposal, _LEAST)
    return -value, error


def sampled_searcher(model: LatentModel, search: Search) -> Searcher:
    """Numbers of rows by sampling, with standard errors."""
    generator = torch.Generator().manual_seed(search.seed)

    def find(x: Tensor) -> Nearest:
        parts = [_find(model, part, search.full, generator) for part in x.split(max(1, _POINTS // (2 * _PAIRS)))]
        columns = [torch.cat(column) for column in zip(*(part[:4] for part in parts), strict=True)]
        best = tuple(torch.cat(column) for column in zip(*(part.best for part in parts), strict=True))
        annealed = torch.cat([part.annealed for part in parts if part.annealed is not None])
        return Nearest(columns[0], columns[1], columns[2], columns[3], best, annealed)

    return find


def _find(model: LatentModel, x: Tensor, full: bool, generator: torch.Generator) -> Nearest:
    losses, own = _Losses(model, x), factors(model.encode(x))
    modes = [] if losses.row is None else modes_of(losses.row, generator)
    best = _best(losses, own, modes, full, generator)
    e = torch.randn(_PAIRS, own.mean.shape[1], dtype=torch.float64, generator=generator)
    (bound, error), (least, least_error) = bounds(losses, own, e), bounds(losses, best, e)
    if losses.row is None:
        nll, own_error = _by_importance(losses, best, generator)
        annealed = torch.zeros(len(x), dtype=torch.bool)
    else:
        found = estimates(losses.row, modes, generator)
        nll, own_error, annealed = -losses.common - found.value, found.error, found.annealed
    error = torch.hypot(own_error, torch.maximum(error, least_error))
    return Nearest(nll, bound - nll, least - nll, error, (best.mean, best.factor), annealed)


def _best(losses: _Losses, own: Gaussians, modes: list[Modes], full: bool, generator: torch.Generator) -> Gaussians:
    """The best Gaussian found of each row; the encoder's where none is better over the fine points."""
    N, S = own.mean.shape
    coarse = _normal(_COARSE, S, generator)
    starts, which = _starts(own, modes, full)
    found, value = nearest(losses, starts, which, coarse, full)
    first = torch.stack([torch.where(which == n, value, torch.inf).argmin() for n in range(N)])
    fine, every = _normal(_FINE, S, generator), torch.arange(N)
    best, value = nearest(losses, Gaussians(found.mean[first], found.factor[first]), every, fine, full)
    worse = own.divergence + losses.at(own.at(fine), every).mean(1) <= value
    if not full:
        worse = worse & (own.factor - _diagonal(own.factor) == 0.0).all(2).all(1)
    return Gaussians(
        torch.where(worse[:, None], own.mean, best.mean), torch.where(worse[:, None, None], own.factor, best.factor)
    )


def _normal(count: int, S: int, generator: torch.Generator) -> Tensor:
    """Points `(2 count, S)` that stand for N(0, I), with its moments: scrambled Sobol points, and their negatives."""
    seed = int(torch.randint(2**31, (), generator=generator))
    uniform = torch.quasirandom.SobolEngine(S, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    e: Tensor = torch.special.ndtri(uniform.clamp(1e-9, 1.0 - 1e-9))
    if count > S:
        root = torch.linalg.cholesky(e.mT @ e / count)
        e = torch.linalg.solve_triangular(root, e.mT, upper=False).mT
    return torch.cat((e, -e))
