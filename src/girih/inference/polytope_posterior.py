r"""Posteriors over two- and three-dimensional latents, seen from the highest points of their pieces, their *anchors*.

On a piece `log p(x, z) = base - |w|^2 / 2`, with w standard normal before truncation (`gaussians`). From
the anchor, the point w = tilt of the piece nearest to 0, it falls as `-tilt s - |s|^2 / 2`, `s = w - tilt`. Rows a
million deviations off have w of a million, and |w|^2 of 1e12: s, of the size of the posterior, and the heights of the
anchors, counted from the row's highest one, are all that is left of it here.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from girih._devices import room
from girih.inference import bounded
from girih.inference.certificate import normalise, select_pairs
from girih.inference.gaussians import Gaussians, Geometry
from girih.inference.model import LEAST, MATTERS, Rows, chunks, posterior_rounding
from girih.inference.posterior import Posterior
from girih.inference.tree import Level
from girih.networks import Trace

_LOG_2PI = math.log(2.0 * math.pi)
_REACH = 10.0  # standard deviations of q; beyond them lie 1e-22 of it
_ENTRIES = 2**23
_PAIRS = 2**14
_SMALL = 1e5  # times 1e-15, the rounding of raw moments, an error of 1e-10 nats
# Squared distances above this are compared by differences: the last digits of this one are worth 1e-13 nats.
DISTANT = 1e3
_SCALE = 100.0  # tilts are shortened to this to find an anchor
_BEAM = 8


class Anchors(NamedTuple):
    """Anchors are the highest points of pairs of a row and a piece, and how high these are.

    Everything is in coordinates `(T h, u)`, of images and of whitened latents.
    """

    place: Tensor  # (m, S) R t at the anchor, t relative to the origin of the piece
    tilt: Tensor  # (m, S) w there
    log_peak: Tensor  # (m,) log p(x, z) there, less that at the row's highest one
    least: Tensor  # (n,) energy at the highest anchor of each row
    image: Tensor  # (n, K + S) the highest anchor
    residual: Tensor  # (n, K + S) (y, 0) less that

    def log_ratio(self, row: Tensor, image: Tensor) -> Tensor:
        """`log p(x, z)` at images `(k, K + S)`, less that at the highest anchor of their rows `(k,)`."""
        step = image - self.image[row]
        return 0.5 * (step * (2.0 * self.residual[row] - step)).sum(-1)


def find_anchors(g: Geometry, rows: Rows, row: Tensor, piece: Tensor, gaussian: Gaussians) -> Anchors:
    """The anchors of pairs (row, piece), `(m,)`, with the Gaussians of `rows.relative()`; each row must have one."""
    count = len(rows.x)
    tilt = g.nearest(piece, gaussian)
    place = tilt + gaussian.centre
    energy = tilt.square().sum(1) - 2.0 * gaussian.base
    energy = energy.nan_to_num(torch.inf, torch.inf)  # a pair that overflowed counts as infinitely far
    least = energy.new_full((count,), torch.inf).scatter_reduce(0, row, energy, "amin")
    log_peak = 0.5 * (least[row] - energy)
    distant = (least > DISTANT)[row].nonzero()[:, 0]
    if len(distant):
        pairs = rows, row[distant], piece[distant]
        place[distant], tilt[distant] = _refined(g, *pairs, gaussian.take(distant), place[distant])
    best = torch.zeros_like(least, dtype=torch.long)
    highest = (energy == least[row]).nonzero()[:, 0]
    best[row[highest]] = highest
    image = _images(g, rows, row[best], piece[best], place[best])
    found = Anchors(place, tilt, log_peak, least, image, _target(rows, g) - image)
    if len(distant):
        own = _images(g, *pairs, place[distant])
        ratio = found.log_ratio(row[distant], own)
        # pieces that meet at the highest anchor have it in common, up to the rounding of images
        size = torch.linalg.vector_norm(own, dim=1) + torch.linalg.vector_norm(g.maps.start[piece[distant]], dim=1)
        apart = torch.linalg.vector_norm(own - image[row[distant]], dim=1)
        ratio = torch.where(apart <= g.model.roundoff * size, 0.0, ratio)
        log_peak[distant] = torch.where(_shorter(g, rows, found)[row[distant]], ratio, log_peak[distant])
    return found


def _target(rows: Rows, g: Geometry) -> Tensor:
    return torch.nn.functional.pad(rows.y, (0, g.pieces.dim))


def _images(g: Geometry, rows: Rows, row: Tensor, piece: Tensor, place: Tensor) -> Tensor:
    maps = g.maps_of(rows, row, piece)
    return maps.start + (maps.basis @ place[:, :, None])[:, :, 0]


def _refined(
    g: Geometry, rows: Rows, row: Tensor, piece: Tensor, gaussian: Gaussians, place: Tensor
) -> tuple[Tensor, Tensor]:
    """Places and tilts of anchors to the last digits of the piece, not of the distance of the row.

    The tilt at a place is a product with the residual there. A place that has tilt c as its normal is the point
    nearest to w = 0 for every multiple of c, so the nearest point is found again with a short one.
    """
    maps = g.maps_of(rows, row, piece)
    off = _target(rows, g)[row] - maps.start - (maps.basis @ place[:, :, None])[:, :, 0]
    tilt = -(maps.basis * off[:, :, None]).sum(1)
    length = torch.linalg.vector_norm(tilt, dim=1)
    far = (length > _SCALE).nonzero()[:, 0]
    short = tilt[far] * (_SCALE / length[far])[:, None]
    shape, root = g.shape(gaussian.take(far))
    step = shape.nearest(piece[far], root, place[far] - short) - short
    place, tilt = place.clone(), tilt.clone()
    place[far] += step
    tilt[far] += step
    return place, tilt


def _shorter(g: Geometry, rows: Rows, anchors: Anchors) -> Tensor:
    """The rows `(n,)` whose image, from that of z = 0 on, is shorter than their residual: that of few digits."""
    every = torch.arange(len(rows.x), device=rows.y.device)
    nearest = g.origin.square().sum(1).argmin().expand(len(rows.x))
    zero = _images(g, rows, every, nearest, torch.zeros_like(anchors.tilt[:1]).expand(len(every), -1))
    length = torch.linalg.vector_norm((anchors.image - zero)[:, : rows.y.shape[1]], dim=1)
    result: Tensor = torch.linalg.vector_norm(anchors.residual, dim=1) * length < anchors.least
    return result


def find_peaks(g: Geometry, rows: Rows) -> Tensor:
    """The u of highest posterior density of each row, `(n, S)`.

    On a piece `log p(x, u) = base - |w|^2 / 2`, so its peak is the point w nearest to 0. Whole branches of the tree
    are left out where `-gap^2 / 2 - |u|^2 / 2` is below a peak that is known.
    """
    count, rows = len(rows.x), rows.relative()

    def below(level: Level) -> Tensor:
        return -0.5 * torch.zeros_like(level.low).clamp(level.low, level.high).square().sum(1)

    def peaks(row: Tensor, piece: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, pieces and heights of the peaks of pairs that may be above what is known."""
        gaussian = g.gaussians(rows, row, piece)
        keep = gaussian.base >= _below(least)[row]
        row, piece, gaussian = row[keep], piece[keep], gaussian.take(keep)
        return row, piece, gaussian.base - 0.5 * g.nearest(piece, gaussian).square().sum(1)

    least = rows.y.new_full((count,), -torch.inf)
    found = [peaks(*bounded.promising(g, rows, _BEAM), least)]
    least = least.scatter_reduce(0, found[0][0], found[0][2], "amax")
    outer = torch.arange(count, device=least.device).repeat_interleave(len(g.unbounded))
    found.append(peaks(outer, g.unbounded.repeat(count), least))
    least = least.scatter_reduce(0, found[1][0], found[1][2], "amax")
    row, piece, _, _ = bounded.search(g, rows, below, _below(least))
    found.append(peaks(row, piece, least))
    row, piece, height = (torch.cat(parts) for parts in zip(*found, strict=True))
    least = least.scatter_reduce(0, row, height, "amax")
    # those that rounding cannot tell apart are compared once more, by differences
    close = height >= _below(least)[row]
    row, piece = row[close], piece[close]
    gaussian = g.gaussians(rows, row, piece)
    anchors = find_anchors(g, rows, row, piece, gaussian)
    order = anchors.log_peak.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    best = order[torch.cat((row.new_ones(1, dtype=torch.bool), row[order].diff() > 0))]
    t = torch.linalg.solve_triangular(gaussian.root[best], anchors.place[best, :, None], upper=True)[:, :, 0]
    result: Tensor = g.origin[piece[best]] + t
    return result


def _below(height: Tensor) -> Tensor:
    """Heights of which rounding cannot say that they are less."""
    return height - 1e-12 * (1.0 + height.abs())


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
    """A chunk holds some rows, and the anchors of their pairs."""

    which: Tensor
    rows: Rows
    anchors: Anchors
    reference: Tensor  # log-density at the highest anchor
    log_left_out: Tensor  # the bound, counted from there


class PolytopePosterior(Posterior):
    """For S = 2, 3 a `Posterior` holds the pairs of rows and pieces that matter, as flat lists.

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
            log_joint = a.log_peak + pairs.gaussian.log_volume + log_mass
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
        """Bound in nats on what rounding changes in `log p(z | x)`, `(N,)`."""
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
        length = torch.cat([c.rows.lengths(log_evidence[c.which]) for c in self._chunks])[order]
        return posterior_rounding(model, length, spread, pull)

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
        out = self.log_evidence.new_empty(len(self.log_evidence), self._geometry.pieces.dim)
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
        out = z.new_empty(z.shape[:-1])
        whole = self._trace.hidden_values
        for index, rows, anchors, *_ in self._chunks:
            some = z[:, index]
            with torch.no_grad():
                h = whole(some.reshape(-1, z.shape[-1])).reshape(*some.shape[:-1], -1)
            image = h @ rows.reduced.mT if rows.observed is None else torch.einsum("nkh,mnh->mnk", rows.reduced, h)
            u = torch.linalg.solve_triangular(self._factor, some.reshape(-1, z.shape[-1]).mT, upper=False).mT
            image = torch.cat((image, u.reshape(some.shape)), 2)
            out[:, index] = anchors.log_ratio(torch.arange(len(index), device=index.device), image)
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
        u = torch.rand((count, len(size)), dtype=torch.float64, device=end.device, generator=generator)
        pair = torch.searchsorted(end, (below + u * (end[first + size - 1] - below)).reshape(-1))
        rows = torch.arange(len(size), device=size.device).repeat(count)
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

    With `v = F^-1 (u - m)` the standard normal of q, that is `h + l v - |T v|^2 / 2` on a piece, `T = R F`: raw moments
    serve, but where their rounding times the size of h, l and T is not small enough.
    """
    m = torch.linalg.solve_triangular(g.factor, mean.mT, upper=False).mT
    F = torch.linalg.solve_triangular(g.factor, factor, upper=False)
    reach, whole = _REACH * F.norm(dim=2), torch.linalg.inv(F)
    out = torch.zeros_like(rows.far2)
    for index in torch.arange(len(m), device=m.device).split(max(1, room(_ENTRIES, m.device) // g.pieces.count)):
        row, piece = g.pieces.near(m[index], reach[index])
        for some in torch.arange(len(row), device=m.device).split(_PAIRS):
            of, on = index[row[some]], piece[some]
            inverse = whole[of]
            centre = (inverse @ (m[of] - g.origin[on])[:, :, None])[:, :, 0]
            maps = g.maps_of(rows, of, on)
            to_w = maps.root @ F[of]
            image = maps.start + (maps.basis @ to_w @ centre[:, :, None])[:, :, 0]
            height, residual = anchors.log_ratio(of, image), anchors.residual[of] - (image - anchors.image[of])
            slope = (to_w.mT @ maps.basis.mT @ residual[:, :, None])[:, :, 0]
            mass, first, second = g.pieces.raw_moments(on, inverse, centre)
            curved = ((to_w @ second) * to_w).sum((1, 2))
            part = mass * height + (slope * first).sum(1) - 0.5 * curved
            far = (
                1.0 + g.pieces.extent[on] * torch.linalg.matrix_norm(inverse) + torch.linalg.vector_norm(centre, dim=1)
            )
            size = height.abs() + torch.linalg.vector_norm(slope, dim=1) + to_w.square().sum((1, 2))
            careful = (~(far * size < _SMALL)).nonzero()[:, 0]
            part[careful] = 0.0  # of those that are out of reach
            away = g.pieces.nearest(on[careful], inverse[careful], centre[careful])
            careful = careful[~(torch.linalg.vector_norm(away, dim=1) > _REACH)]
            log_mass, v, spread = g.pieces.moments(on[careful], inverse[careful], centre[careful])
            to_w = to_w[careful]
            at = image[careful] + (maps.basis[careful] @ to_w @ v[:, :, None])[:, :, 0]
            value = anchors.log_ratio(of[careful], at) - 0.5 * ((to_w @ spread) * to_w).sum((1, 2))
            part[careful] = torch.where(log_mass > LEAST, log_mass.exp() * value, 0.0)
            out.index_add_(0, of, part)
    return out
