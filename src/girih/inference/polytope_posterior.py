"""Posteriors over two- and three-dimensional latents."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference.anchors import Anchors, find_anchors, find_peaks
from girih.inference.certificate import normalise, select_pairs
from girih.inference.gaussians import Geometry
from girih.inference.model import LEAST, Rows, chunks
from girih.inference.posterior import Posterior
from girih.inference.rounding import MATTERS, lengths, of_posterior
from girih.networks import Trace

_LOG_2PI = math.log(2.0 * math.pi)
_REACH = 10.0  # standard deviations of q; beyond them lie 1e-22 of it
_ENTRIES = 2**23


class _Part(NamedTuple):
    """The pairs of one chunk of rows, seen from their anchors, with the moments of `s = w - tilt` on them."""

    row: Tensor
    piece: Tensor
    root: Tensor
    place: Tensor  # R t at the anchor
    tilt: Tensor
    log_peak: Tensor
    log_joint: Tensor
    mean: Tensor
    covariance: Tensor


class _Chunk(NamedTuple):
    """A chunk of rows."""

    which: Tensor
    rows: Rows
    anchors: Anchors
    reference: Tensor  # log-density at the highest anchor
    log_left_out: Tensor  # the bound, counted from there


class PolytopePosterior(Posterior):
    """`Posterior` for S = 2, 3: the pairs of rows and pieces that matter, as flat lists.

    Args:
        geometry: the pieces with the parameters.
        trace: the generator, for values of the hidden features at given latents.
        x: `(N, D)`.
    """

    def __init__(self, geometry: Geometry, trace: Trace, x: Tensor) -> None:
        self._trace, self._geometry, self._factor = trace, geometry, geometry.factor
        model = self._model = geometry.model
        # densities in z are those in w times this
        self._log_scale = -0.5 * model.latent_dim * _LOG_2PI - self._factor.diagonal().log().sum()
        self._chunks: list[_Chunk] = []
        parts: list[_Part] = []
        for index, rows in chunks(model, x):
            pairs = select_pairs(geometry, rows.relative())
            root, a = pairs.gaussian.root, find_anchors(geometry, rows, pairs.row, pairs.piece, pairs.gaussian)
            log_mass, *moments = geometry.pieces.local_moments(pairs.piece, root, a.place, a.tilt)
            log_joint = a.log_peak + pairs.gaussian.log_volume() + log_mass
            some = a.place, a.tilt, a.log_peak, log_joint
            parts.append(_Part(index[pairs.row], pairs.piece, root, *some, *moments))
            self._chunks.append(_Chunk(index, rows, a, rows.common - 0.5 * a.least, pairs.log_left_out + 0.5 * a.least))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        del parts
        if len(self._chunks) > 1 and bool((columns[0].diff() < 0).any()):
            by_row = columns[0].argsort(stable=True)
            columns = [column[by_row] for column in columns]
        self._pairs = p = _Part(*columns)
        self._row, self._piece = p.row, p.piece
        # log p(x) less the log-density at each row's highest anchor, from which pairs are counted
        self._log_total, self._share = normalise(p.row, p.log_joint, len(x))
        # pairs without mass have no moments
        none = self._share == 0.0
        p.mean[none], p.covariance[none] = 0.0, 0.0
        order = torch.cat([chunk.which for chunk in self._chunks]).argsort()
        reference = torch.cat([chunk.reference for chunk in self._chunks])[order]
        lost = torch.cat([chunk.log_left_out for chunk in self._chunks])[order]
        log_evidence = reference + self._log_total
        super().__init__(model.latent_dim, log_evidence, (lost - self._log_total).exp())

    def _sum(self, values: Tensor) -> Tensor:
        """Sums over the pairs of each row."""
        return values.new_zeros(len(self.log_evidence), *values.shape[1:]).index_add(0, self._row, values)

    @cached_property
    def rounding(self) -> Tensor:
        """Bound in nats on what rounding changes in `log p(z | x)`, `(N,)`: see `girih.inference.rounding`."""
        model, log_evidence, p = self._model, self.log_evidence, self._pairs
        cells, T = model.cells, model.head[1].abs()
        u = self._to_whitened(torch.zeros_like(p.tilt))
        t = (u - self._geometry.origin[p.piece]).abs()
        # absolute values throughout: what the images of anchors are rounded from
        size = cells.value.abs()[p.piece] + (self._geometry.slope.abs()[p.piece] @ t[:, :, None])[:, :, 0]
        size = torch.linalg.vector_norm(size @ T.mT, dim=1)
        slope = torch.linalg.vector_norm((p.tilt[:, None] @ p.root)[:, 0], dim=1)
        far = torch.linalg.vector_norm(u, dim=1)
        matters, none = self._share > MATTERS, log_evidence.new_zeros(len(log_evidence))
        spread, pull = (
            none.scatter_reduce(0, p.row, torch.where(matters, part, 0.0), "amax")
            for part in (size, far * (slope + far))
        )
        order = torch.cat([chunk.which for chunk in self._chunks]).argsort()
        length = torch.cat([lengths(c.rows, log_evidence[c.which]) for c in self._chunks])[order]
        return of_posterior(model, length, spread, pull)

    def _to_whitened(self, s: Tensor, pair: Tensor | slice = slice(None)) -> Tensor:
        """u of points `s = w - tilt`, `(m, S)`, of the pairs named."""
        p = self._pairs
        t = torch.linalg.solve_triangular(p.root[pair], (p.place[pair] + s)[:, :, None], upper=True)[:, :, 0]
        result: Tensor = self._geometry.origin[p.piece[pair]] + t
        return result

    def _to_latents(self, s: Tensor, pair: Tensor | slice = slice(None)) -> Tensor:
        """z of points `s = w - tilt`, `(m, S)`, of the pairs named."""
        result: Tensor = self._to_whitened(s, pair) @ self._factor.mT
        return result

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(N, S)`."""
        return self._sum(self._share[:, None] * self._to_latents(self._pairs.mean))

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, S, S)`: the spread of the cells' means plus the spread inside the cells."""
        means = self._to_latents(self._pairs.mean)
        off = means - self._sum(self._share[:, None] * means)[self._row]
        inverse = self._factor @ torch.linalg.inv(self._pairs.root)
        inside = inverse @ self._pairs.covariance @ inverse.mT
        return self._sum(self._share[:, None, None] * (off[:, :, None] * off[:, None, :] + inside))

    @property
    def mode(self) -> Tensor:
        """The z of highest posterior density, exact over all cells, `(N, S)`."""
        out = torch.empty(len(self.log_evidence), self._geometry.pieces.dim, dtype=torch.float64)
        for index, rows, *_ in self._chunks:
            out[index] = find_peaks(self._geometry, rows) @ self._factor.mT
        return out

    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`."""
        p = self._pairs
        square = p.mean.square().sum(1) + p.covariance.diagonal(dim1=1, dim2=2).sum(1)
        expected = p.log_peak - self._log_total[p.row] + self._log_scale - (p.tilt * p.mean).sum(1) - 0.5 * square
        return -self._sum(torch.where(self._share > 0.0, self._share * expected, 0.0))

    def _log_density(self, z: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        z = z.expand(*shape, z.shape[-1]).reshape(-1, *self.batch_shape, z.shape[-1])
        out = torch.empty(z.shape[:-1], dtype=torch.float64)
        whole = self._trace.hidden_values
        for index, rows, anchors, *_ in self._chunks:
            some = z[:, index]
            with torch.no_grad():
                h = whole(some.reshape(-1, z.shape[-1])).reshape(*some.shape[:-1], -1)
            image = h @ rows.reduced.mT if rows.observed is None else torch.einsum("nkh,mnh->mnk", rows.reduced, h)
            u = torch.linalg.solve_triangular(self._factor, some.reshape(-1, z.shape[-1]).mT, upper=False).mT
            image = torch.cat((image, u.reshape(some.shape)), 2)
            out[:, index] = anchors.log_ratio(torch.arange(len(index)), image)
        result: Tensor = (out + self._log_scale - self._log_total).reshape(shape)
        return result

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
        p = self._pairs
        pairs = p.piece[used], p.root[used], p.place[used], p.tilt[used]
        return self._to_latents(self._geometry.pieces.local_sample(pairs, which, generator), pair)

    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor factor^T)`, `(N, S)` and `(N, S, S)`."""
        out = torch.empty_like(self.log_evidence)
        for index, rows, anchors, *_ in self._chunks:
            out[index] = _expected_log_ratio(self._geometry, rows, anchors, mean[index], factor[index])
        result: Tensor = out + self._log_scale - self._log_total
        return result


def _expected_log_ratio(g: Geometry, rows: Rows, anchors: Anchors, mean: Tensor, factor: Tensor) -> Tensor:
    """`E_q[log p(x, z)]` less `log p(x, z)` at the highest anchor, `(n,)`, for `q = N(mean, factor factor^T)`.

    With `v = F^-1 (u - m)` the standard normal of q, a piece adds its mass under q times the mean of a quadratic there:
    its value at the mean of q on the piece, less half the spread of `R t`.
    """
    m = torch.linalg.solve_triangular(g.factor, mean.mT, upper=False).mT
    F = torch.linalg.solve_triangular(g.factor, factor, upper=False)
    reach = _REACH * F.norm(dim=2)
    out = torch.empty_like(rows.far2)
    for index in torch.arange(len(m)).split(max(1, _ENTRIES // g.pieces.count)):
        row, piece = g.pieces.near(m[index], reach[index])
        row = index[row]
        inverse = torch.linalg.inv(F)[row]
        centre = (inverse @ (m[row] - g.origin[piece])[:, :, None])[:, :, 0]
        log_mass, v, spread = g.pieces.moments(piece, inverse, centre)
        kept = log_mass > LEAST
        row, piece, log_mass, v, spread, centre = (a[kept] for a in (row, piece, log_mass, v, spread, centre))
        maps = g.maps_of(rows, row, piece)
        to_w = maps.root @ F[row]
        image = maps.start + (maps.basis @ to_w @ (v + centre)[:, :, None])[:, :, 0]
        part = log_mass.exp() * (anchors.log_ratio(row, image) - 0.5 * ((to_w @ spread) * to_w).sum((1, 2)))
        out[index] = out.new_zeros(len(out)).index_add(0, row, part)[index]
    return out
