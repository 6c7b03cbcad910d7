"""Posteriors over two- and three-dimensional latents."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference.estep import chunks
from girih.inference.expected import expected_log_joint
from girih.inference.gaussians import Gaussians
from girih.inference.model import Model, Rows
from girih.inference.peak import find_peaks
from girih.inference.polytopes import geometry, select_pairs
from girih.inference.posterior import Posterior
from girih.inference.sparse import normalise
from girih.networks import Trace

_LOG_2PI = math.log(2.0 * math.pi)
_CHUNK = 2**20


class _Part(NamedTuple):
    """The pairs of one chunk of rows, with the moments of w on them."""

    row: Tensor
    piece: Tensor
    base: Tensor
    root: Tensor
    centre: Tensor
    log_mass: Tensor
    mean: Tensor
    covariance: Tensor


class PolytopePosterior(Posterior):
    """`Posterior` for S = 2, 3: the pairs of rows and pieces that matter, as flat lists.

    Args:
        model: the parameters.
        trace: the generator, for values of the hidden features at given latents.
        x: `(N, D)`.
    """

    def __init__(self, model: Model, trace: Trace, x: Tensor) -> None:
        self._trace, self._geometry = trace, geometry(model)
        self._factor = torch.linalg.cholesky(model.prior)
        # densities in z are those in w times this
        self._log_scale = -0.5 * model.latent_dim * _LOG_2PI - self._factor.diagonal().log().sum()
        self._chunks: list[tuple[Tensor, Rows]] = []
        parts: list[_Part] = []
        lost: list[Tensor] = []
        for index, rows in chunks(model, x):
            pairs = select_pairs(model, rows)
            self._chunks.append((index, rows))
            shape, root = self._geometry.shape(pairs.gaussian)
            moments = shape.moments(pairs.piece, root, pairs.gaussian.centre)
            parts.append(_Part(index[pairs.row], pairs.piece, *pairs.gaussian[:3], *moments))
            lost.append(pairs.log_left_out)
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        del parts
        if len(self._chunks) > 1 and bool((columns[0].diff() < 0).any()):
            by_row = columns[0].argsort(stable=True)
            columns = [column[by_row] for column in columns]
        self._row, self._piece, base, root, centre, log_mass, self._mean_w, self._covariance_w = columns
        self._gaussian = g = Gaussians(base, root, centre, False)
        log_evidence, self._share = normalise(self._row, g.base + g.log_volume() + log_mass, len(x))
        # pairs without mass have no moments
        none = self._share == 0.0
        self._mean_w[none], self._covariance_w[none] = 0.0, 0.0
        order = torch.cat([index for index, _ in self._chunks]).argsort()
        super().__init__(model, log_evidence, (torch.cat(lost)[order] - log_evidence).exp())

    def _sum(self, values: Tensor) -> Tensor:
        """Sums over the pairs of each row."""
        return values.new_zeros(len(self.log_evidence), *values.shape[1:]).index_add(0, self._row, values)

    def _to_latents(self, w: Tensor, pair: Tensor | slice = slice(None)) -> Tensor:
        """z of points w, `(m, S)`, of the pairs named."""
        g, piece = self._gaussian, self._piece[pair]
        t = torch.linalg.solve_triangular(g.root[pair], (w + g.centre[pair])[:, :, None], upper=True)[:, :, 0]
        return (self._geometry.origin[piece] + t) @ self._factor.mT

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(N, S)`."""
        return self._sum(self._share[:, None] * self._to_latents(self._mean_w))

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, S, S)`: the spread of the cells' means plus the spread inside the cells."""
        means = self._to_latents(self._mean_w)
        off = means - self._sum(self._share[:, None] * means)[self._row]
        inverse = self._factor @ torch.linalg.inv(self._gaussian.root)
        inside = inverse @ self._covariance_w @ inverse.mT
        return self._sum(self._share[:, None, None] * (off[:, :, None] * off[:, None, :] + inside))

    @property
    def mode(self) -> Tensor:
        """The z of highest posterior density, exact over all cells, `(N, S)`."""
        out = torch.empty(len(self.log_evidence), self._model.latent_dim, dtype=torch.float64)
        for index, rows in self._chunks:
            out[index] = find_peaks(self._model, rows) @ self._factor.mT
        return out

    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`."""
        square = self._mean_w.square().sum(1) + self._covariance_w.diagonal(dim1=1, dim2=2).sum(1)
        expected = self._gaussian.base - self.log_evidence[self._row] + self._log_scale - 0.5 * square
        return -self._sum(torch.where(self._share > 0.0, self._share * expected, 0.0))

    def _log_density(self, z: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        z = z.expand(*shape, z.shape[-1]).reshape(-1, *self.batch_shape, z.shape[-1])
        out = torch.empty(z.shape[:-1], dtype=torch.float64)
        whole = self._trace.hidden_values
        for index, rows in self._chunks:
            some = z[:, index]
            with torch.no_grad():
                h = whole(some.reshape(-1, z.shape[-1])).reshape(*some.shape[:-1], -1)
            image = h @ rows.reduced.mT if rows.observed is None else torch.einsum("nkh,mnh->mnk", rows.reduced, h)
            u = torch.linalg.solve_triangular(self._factor, some.reshape(-1, z.shape[-1]).mT, upper=False).mT
            energy = (rows.y - image).square().sum(-1) + u.square().sum(1).reshape(some.shape[:-1]) + rows.far2
            out[:, index] = rows.constant - 0.5 * energy
        return (out + self._log_scale - self.log_evidence).reshape(shape)

    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` of the pairs that matter."""
        pieces = self._geometry.pieces
        used = self._share > 0.0
        index = torch.stack((self._row, pieces.cell[self._piece]))[:, used]
        shape = (len(self.log_evidence), pieces.cells)
        return torch.sparse_coo_tensor(index, self._share[used], shape, check_invariants=True).coalesce()

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        size = torch.bincount(self._row, minlength=len(self.log_evidence))
        end = self._share.cumsum(0)
        first = size.cumsum(0) - size
        below = torch.where(first > 0, end[(first - 1).clamp(min=0)], 0.0)
        u = torch.rand((count, len(size)), dtype=torch.float64, generator=generator)
        pair = torch.searchsorted(end, (below + u * (end[first + size - 1] - below)).reshape(-1))
        rows = torch.arange(len(size)).repeat(count)
        pair = torch.minimum(torch.maximum(pair, first[rows]), (first + size - 1)[rows])
        used, which = torch.unique(pair, return_inverse=True)
        g = self._gaussian
        w = self._geometry.pieces.sample(self._piece[used], g.root[used], g.centre[used], which, generator)
        return self._to_latents(w, pair)

    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor factor^T)`, `(N, S)` and `(N, S, S)`."""
        out = torch.empty_like(self.log_evidence)
        for index, rows in self._chunks:
            out[index] = expected_log_joint(self._model, rows, mean[index], factor[index])
        return out + self._log_scale - self.log_evidence
