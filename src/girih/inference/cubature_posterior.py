"""Posteriors by cubature: for priors and outputs of which the integrals over the cells have no closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from girih.inference.cubature import Integrals, expected_height, integrate
from girih.inference.cubature_bounds import draw, mode
from girih.inference.cubature_mesh import Mesh
from girih.inference.cubature_rows import GaussianRows, Likelihood
from girih.inference.model import AffinePieces, Model, Region, Rows, chunks
from girih.inference.polytopes import SparseMoments
from girih.inference.posterior import Posterior
from girih.inference.priors import LatentPrior, Parts
from girih.networks import Trace
from girih.partition import Partition


class Some(NamedTuple):
    """These are some rows: their place, their likelihood, and what all their log-densities have in common."""

    which: Tensor
    mesh: Mesh
    likelihood: Likelihood
    common: Tensor

    def rounding(self, log_p: Tensor) -> Tensor:
        """A bound in nats on the rounding of each log p(x), `(n,)`: of the numbers that it is a sum of."""
        size = log_p.abs() + self.common.abs() + self.likelihood.highest.abs()
        return torch.finfo(log_p.dtype).eps * (100.0 + 10.0 * size)


class Source(Protocol):
    """It is what posteriors by cubature are made from: a latent space, and rows with their likelihoods."""

    @property
    def tol(self) -> float:
        """The share of p(x) that may be left out."""
        ...

    @property
    def piece_cells(self) -> Tensor:
        """The cell of each piece."""
        ...

    @property
    def count(self) -> int:
        """The number of cells."""
        ...

    def split(self, x: Tensor) -> Iterator[Some]:
        """The rows `(N, D)` in groups."""
        ...


class CubaturePosterior(Posterior):
    """A posterior is made of simplices on which `p(x, z)` is smooth, each with the moments of z on it.

    Args:
        source: the model.
        trace: its generator.
        x: rows `(N, D)`.

    Attributes:
        error: an estimate of the relative error of each p(x) by the cubature, `(N,)`.
    """

    def __init__(self, source: Source, trace: Trace, x: Tensor) -> None:
        self._source, self._trace = source, trace
        self._groups: list[tuple[Some, Integrals]] = []
        log_p, left_out, error, rounding = (x.new_empty(len(x)) for _ in range(4))
        for some in source.split(x):
            found = integrate(some.mesh, some.likelihood, source.tol)
            self._groups.append((some, found))
            log_p[some.which] = some.common + found.log_p
            left_out[some.which] = (found.log_left_out - found.log_p).exp()
            error[some.which] = (found.log_error - found.log_p).exp()
            rounding[some.which] = some.rounding(log_p[some.which])
        self.error, self._rounding = error, rounding
        super().__init__(trace.latent_dim, log_p, left_out)

    @property
    def rounding(self) -> Tensor:
        """What rounding and the cubature change in `log p(z | x)`, `(N,)`, in nats."""
        return self.error + self._rounding

    def _sum(self, numbers: Callable[[Some, Integrals], Tensor]) -> Tensor:
        """Sums over the simplices of each row, `(N, ...)`, of numbers `(m, ...)`."""
        out: Tensor | None = None
        for some, found in self._groups:
            value = numbers(some, found)
            if out is None:
                out = value.new_zeros(len(self.log_evidence), *value.shape[1:])
            out.index_add_(0, some.which[found.simplices.row], value)
        assert out is not None, "there is a row"
        return out

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(N, S)`."""
        return self._sum(lambda _, found: found.share[:, None] * found.mean)

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, S, S)`: the spread of the simplices' means plus the spread inside them."""
        mean = self.mean

        def spread(some: Some, found: Integrals) -> Tensor:
            off = found.mean - mean[some.which[found.simplices.row]]
            return found.share[:, None, None] * (off[:, :, None] * off[:, None, :] + found.covariance)

        return self._sum(spread)

    @property
    def mode(self) -> Tensor:
        """The z of highest posterior density over all cells, `(N, S)`, to 1e-6 of the posterior's deviations."""
        out = self.log_evidence.new_empty(len(self.log_evidence), self.event_shape[0])
        for some, _ in self._groups:
            out[some.which] = mode(some.mesh, some.likelihood)
        return out

    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`."""
        return -self._sum(lambda _, found: found.share * (found.height - found.log_p[found.simplices.row]))

    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` of the pairs that matter."""
        index, share = [], []
        for some, found in self._groups:
            cell = self._source.piece_cells[found.simplices.piece]
            index.append(torch.stack((some.which[found.simplices.row], cell)))
            share.append(found.share)
        shape = (len(self.log_evidence), self._source.count)
        return torch.sparse_coo_tensor(torch.cat(index, 1), torch.cat(share), shape, check_invariants=True).coalesce()

    def _log_density(self, z: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        z = z.expand(*shape, z.shape[-1]).reshape(-1, *self.batch_shape, z.shape[-1])
        out = z.new_empty(z.shape[:-1])
        for some, found in self._groups:
            parts = some.mesh.parts
            at = z[:, some.which].transpose(0, 1)  # (n, k, S)
            with torch.no_grad():
                h = self._trace.hidden_values(at.reshape(-1, at.shape[2])).reshape(*at.shape[:2], -1)
            every = torch.arange(len(some.which), device=z.device)
            value = some.likelihood.value(every, some.likelihood.images(every, h)) + parts.log_prob(at)
            value = torch.where(((at < parts.low) | (at > parts.high)).any(2), -torch.inf, value)
            out[:, some.which] = (value - found.log_p[:, None]).mT
        return out.reshape(shape)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        out = self.log_evidence.new_empty(count, len(self.log_evidence), self.event_shape[0])
        for some, found in self._groups:
            n = len(some.which)
            size = torch.bincount(found.simplices.row, minlength=n)
            end, first = found.share.cumsum(0), size.cumsum(0) - size
            below = torch.where(first > 0, end[(first - 1).clamp(min=0)], 0.0)
            u = torch.rand((count, n), dtype=torch.float64, device=end.device, generator=generator)
            which = torch.searchsorted(end, (below + u * (end[first + size - 1] - below)).reshape(-1))
            rows = torch.arange(n, device=size.device).repeat(count)
            which = torch.minimum(torch.maximum(which, first[rows]), (first + size - 1)[rows])
            drawn = draw(some.mesh, some.likelihood, found.simplices, which, generator)
            out[:, some.which] = drawn.reshape(count, n, -1)
        return out

    def expectation(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`E[f(z) | x]`, `(N, ...)`, at the nodes that integrate `p(x, z)`.

        Args:
            function: of hidden features `(m, H)` and rows `(m,)`, with values `(m, ...)`.
        """
        out: Tensor | None = None
        for some, found in self._groups:
            for part, points, share in found.nodes(some.mesh, some.likelihood):
                features = some.mesh.features(part.piece, points @ part.corner)
                row = some.which[part.row].repeat_interleave(share.shape[1])
                value = function(features.flatten(0, 1), row)
                weight = share.flatten().reshape(-1, *[1] * (value.ndim - 1))
                if out is None:
                    out = value.new_zeros(len(self.log_evidence), *value.shape[1:])
                out.index_add_(0, row, weight * value)
        assert out is not None, "there is a row"
        return out

    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor factor^T)`, `(N, S)` and `(N, S, S)`."""
        out = torch.empty_like(self.log_evidence)
        for some, found in self._groups:
            height = expected_height(some.mesh, some.likelihood, mean[some.which], factor[some.which])
            out[some.which] = height - found.log_p
        return out


class CubatureRegion(Region):
    """It integrates Gaussian noise over priors that are not Gaussian: where these have no closed form, or are far off.

    Args:
        part: the partition, of the box where the prior has one.
        prior: of the latents.
    """

    def __init__(self, part: Partition, prior: LatentPrior) -> None:
        self.part, self.prior = part, prior
        self.piece_cells, self.cells = part.cells.piece_cells.to(part.trace.device), len(part)

    def mesh(self, model: Model) -> Mesh:
        """The latent space with the maps of the model on it, made at the first call."""
        return model.recall(self._mesh)

    def _mesh(self, model: Model) -> Mesh:
        parts = Parts(*(part.to(model.bias.device) for part in self.prior.parts))
        return Mesh(self.part, model.cells.jets, parts)

    def entries(self, model: Model, complete: bool) -> int:
        """Some numbers for each simplex."""
        return 16 * len(self.mesh(model).simplices()[1])

    def log_prob(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor]:
        """`log p(x)`, and a certified bound on the share that was left out."""
        found = integrate(self.mesh(model), GaussianRows(rows.relative()), model.tol)
        return rows.common + found.log_p, (found.log_left_out - found.log_p).exp()

    def expect(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor, SparseMoments]:
        """The same, and the moments of the posteriors."""
        found = integrate(self.mesh(model), GaussianRows(rows.relative()), model.tol)
        left_out = (found.log_left_out - found.log_p).exp()
        return rows.common + found.log_p, left_out, sparse_moments(found, model.cells)

    def posterior(self, model: Model, trace: Trace, x: Tensor) -> CubaturePosterior:
        """The posteriors of rows `(N, D)`."""
        return CubaturePosterior(_GaussianSource(self, model), trace.frozen(), x)


class _GaussianSource:
    def __init__(self, region: CubatureRegion, model: Model) -> None:
        self._mesh, self.tol, self._model = region.mesh(model), model.tol, model
        self.piece_cells, self.count = region.piece_cells, region.cells

    def split(self, x: Tensor) -> Iterator[Some]:
        for index, rows in chunks(self._model, x):
            yield Some(index, self._mesh, GaussianRows(rows.relative()), rows.common)


def sparse_moments(found: Integrals, cells: AffinePieces) -> SparseMoments:
    """The moments of rows on pieces, about the origins of these."""
    simplices, P = found.simplices, len(cells.origin)
    key, where = torch.unique(simplices.row * P + simplices.piece, return_inverse=True)
    share, t = found.share, found.mean - cells.origin[simplices.piece]
    e0 = share.new_zeros(len(key)).index_add_(0, where, share)
    e1 = share.new_zeros(len(key), t.shape[1]).index_add_(0, where, share[:, None] * t)
    second = share[:, None, None] * (found.covariance + t[:, :, None] * t[:, None, :])
    e2 = share.new_zeros(len(key), *second.shape[1:]).index_add_(0, where, second)
    return SparseMoments(key // P, key % P, e0, e1, e2, (len(found.log_p), P))
