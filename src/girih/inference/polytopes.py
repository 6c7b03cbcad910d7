"""Exact inference over a two- or three-dimensional latent: the moments of an E-step, and expectations (S = 2, 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from girih._devices import room
from girih.gaussian.prepared import compiled_form, first_of_each, serve
from girih.gaussian.tables import gather, slots
from girih.inference.certificate import Pairs, normalise, select_pairs
from girih.inference.gaussians import Geometry
from girih.inference.model import AffinePieces, Expected, Model, Region, Rows
from girih.inference.pieces import Pieces
from girih.inference.polytope_posterior import DISTANT, PolytopePosterior, find_anchors
from girih.networks import Trace
from girih.partition import Partition

_LOG_2PI = math.log(2.0 * math.pi)
_REACH = 7.5  # standard deviations of q; beyond them lie 1e-13 of it
_FEW, _SOME = 32, 128  # pairs of a row that are found by compiled code, and those by tables
_LARGE = 1e-3  # above this a raw mass is right enough in any case
_FLOOR = 1e-3  # ... and so is its share, where p(x) is above this part of the pair's scale


class SparseMoments(NamedTuple):
    """They are E[1], E[t] and E[t t^T] of pairs (row, piece), as shares of their row's p(x), sorted by row."""

    row: Tensor  # (m,)
    piece: Tensor  # (m,)
    e0: Tensor  # (m,)
    e1: Tensor  # (m, S)
    e2: Tensor  # (m, S, S)
    shape: tuple[int, int]  # rows and pieces

    @classmethod
    def of(cls, geometry: Geometry, rows: Rows, pairs: Pairs) -> tuple[Tensor, SparseMoments]:
        """`log p(x)` of each row less `rows.common`, and the moments of its posterior; pairs of `rows.relative()`."""
        count, g = len(pairs.log_left_out), pairs.gaussian
        log_scale = pairs.log_scale
        pieces, root = geometry.shape(g)
        mass, first, second = pieces.raw_moments(pairs.piece, root, g.centre)
        log_joint = log_scale + mass.clamp(min=0.0).log()
        some = needs_care(pairs, mass)
        careful = g.take(some)
        pieces, root = geometry.shape(careful)
        log_mass, mean, covariance = pieces.moments(pairs.piece[some], root, careful.centre)
        log_joint[some] = log_scale[some] + log_mass
        # raw moments are in units of the mass; those taken with care are multiplied by it later
        log_unit = log_scale.clone()
        log_unit[some], first[some] = log_joint[some], mean
        second[some] = mean[:, :, None] * mean[:, None, :] + covariance
        # w = R t - c, and z = L u
        inverse = geometry.inverse if g.shared else geometry.factor @ torch.linalg.inv(g.root)
        which = pairs.piece if g.shared else torch.arange(len(pairs.piece), device=pairs.piece.device)
        back = _posterior if (fast := _fast(mass)) is None else partial(_compiled_posterior, fast)
        log_total, e0, first, second = back(
            pairs.row, count, log_joint, log_unit, g.centre, inverse, which, first, second
        )
        distant = (log_total < -0.5 * DISTANT).nonzero()[:, 0]
        if len(distant):
            of = torch.isin(pairs.row, distant).nonzero()[:, 0]
            found = _from_anchors(geometry, rows.take(distant), torch.searchsorted(distant, pairs.row[of]), pairs, of)
            log_total[distant], e0[of], first[of], second[of] = found
        return log_total, cls(pairs.row, pairs.piece, e0, first, second, (count, pieces.count))

    def _first(self) -> Tensor:
        """E[(t, 1)], `(m, S + 1)`."""
        return torch.cat((self.e1, self.e0[:, None]), 1)

    def _second(self) -> Tensor:
        """E[(t, 1)(t, 1)^T], `(m, S + 1, S + 1)`."""
        return torch.cat((torch.cat((self.e2, self.e1[:, None, :]), 1), self._first()[:, :, None]), 2)

    def _by_row(self, values: Tensor, table: Tensor) -> Tensor:
        """Sums of `values[k] table[piece of k]` over the pairs k of each row, `(n, C)`, for a table `(P, C)`."""
        if self.row.device.type == "cpu":
            return torch.as_tensor(self._matrix(values) @ table.numpy())
        return _sums(self.shape[0], self.row, values, table, self.piece)

    def _by_piece(self, values: Tensor, table: Tensor) -> Tensor:
        """Sums of `values[k] table[row of k]` over the pairs k of each piece, `(P, C)`, for a table `(n, C)`."""
        if self.row.device.type == "cpu":
            return torch.as_tensor(self._matrix(values).T @ table.numpy())
        return _sums(self.shape[1], self.piece, values, table, self.row)

    def _matrix(self, values: Tensor) -> csr_matrix:
        size = np.bincount(self.row.numpy(), minlength=self.shape[0])
        return csr_matrix(
            (values.numpy(), self.piece.numpy(), np.concatenate(([0], np.cumsum(size)))), shape=self.shape
        )

    def features(self, cells: AffinePieces) -> Tensor:
        """`E[h | x]`, `(n, H)`."""
        out = self._by_row(self.e0, cells.value)
        for s in range(self.e1.shape[1]):
            out += self._by_row(self.e1[:, s], cells.slope[:, :, s])
        return out

    def moments(self, weight: Tensor) -> Tensor:
        """`sum_n g_n E[1_piece (t, 1)(t, 1)^T]`, `(P, S + 1, S + 1)`."""
        S = self.e1.shape[1]
        out = self.e1.new_zeros(self.shape[1], S + 1, S + 1)
        if (fast := _fast(self.e1)) is not None:
            parts = (self.row, self.piece, weight, self.e0, self.e1, self.e2, out)
            fast.by_piece(*(part.contiguous().numpy() for part in parts))
            return out
        return out.index_add_(0, self.piece, weight[self.row][:, None, None] * self._second())

    def rows_on_cells(self, weight: Tensor, y: Tensor) -> Tensor:
        """`sum_n g_n y_n E[1_piece (t, 1)^T]`, `(P, K, S + 1)`, for y `(n, K)`."""
        first = weight[self.row][:, None] * self._first()
        return torch.stack([self._by_piece(first[:, s], y) for s in range(first.shape[1])], -1)

    def incomplete_pull(self, weight: Tensor, rows: Rows, cells: AffinePieces) -> Tensor:
        """`sum_n g_n E[1_piece T_n^T (y - T_n h)(t, 1)^T]`, `(P, H, S + 1)`, for rows with their own T_n."""
        columns = _columns(cells)
        out = torch.zeros_like(columns)
        g, first, second = weight[self.row], self._first(), self._second()
        per = max(1, room(2**20, out.device) // rows.reduced[0].numel())
        for pair in torch.arange(len(self.row), device=self.row.device).split(per):
            row, piece = self.row[pair], self.piece[pair]
            reduced = rows.reduced[row]
            off = rows.y[row][:, :, None] * first[pair][:, None, :] - reduced @ (columns[piece] @ second[pair])
            out.index_add_(0, piece, g[pair][:, None, None] * (reduced.mT @ off))
        return out

    def feature_covariance(self, cells: AffinePieces, mean: Tensor) -> Tensor:
        """`Cov[(h, 1) | x]` of each row, `(n, H + 1, H + 1)`, for the mean `(n, H + 1)`."""
        about = _columns(cells)[self.piece]  # h - mean = about (t, 1)
        about[:, :, -1] -= mean[self.row, :-1]
        size, _ = slots(self.row, self.shape[0])
        index, real = gather(torch.arange(self.shape[0], device=size.device), int(size.max()), size)

        def table(columns: Tensor) -> Tensor:  # (n, H, p (S + 1)), p pairs a row
            padded = torch.where(real[:, :, None, None], columns[index], 0.0)
            return padded.permute(0, 2, 1, 3).flatten(2)

        return torch.nn.functional.pad(table(about @ self._second()) @ table(about).mT, (0, 1, 0, 1))


def _posterior(
    row: Tensor,
    count: int,
    log_joint: Tensor,
    log_unit: Tensor,
    centre: Tensor,
    inverse: Tensor,
    which: Tensor,
    first: Tensor,
    second: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`log p(x)`, and E[1], E[t] and E[t t^T] from the moments of w in units of `exp(log_unit)`."""
    log_total, e0 = normalise(row, log_joint, count)
    unit = torch.where(e0 > 0.0, (log_unit - log_total[row]).exp(), 0.0)
    none = e0 == 0.0  # a piece without mass has no moments
    first = torch.where(none[:, None], 0.0, unit[:, None] * first)
    second = torch.where(none[:, None, None], 0.0, unit[:, None, None] * second)
    shift = centre[:, :, None] * first[:, None, :]
    second = second + shift + shift.mT + e0[:, None, None] * centre[:, :, None] * centre[:, None, :]
    first = first + e0[:, None] * centre
    turn = inverse[which]
    return log_total, e0, (turn @ first[:, :, None])[:, :, 0], turn @ second @ turn.mT


def _compiled_posterior(fast: ModuleType, row: Tensor, count: int, *parts: Tensor) -> tuple[Tensor, ...]:
    """`_posterior` by compiled code; the moments are overwritten."""
    first, second = parts[-2:]
    log_total, e0 = fast.moments(first_of_each(row, count), *(part.contiguous().numpy() for part in parts))
    return torch.from_numpy(log_total), torch.from_numpy(e0), first, second


def _fast(*tensors: Tensor) -> ModuleType | None:
    """The module of compiled code, where it takes such tensors."""
    return compiled_form("girih.inference.moment_kernels") if all(map(serve, tensors)) else None


def _from_anchors(
    geometry: Geometry, rows: Rows, row: Tensor, pairs: Pairs, of: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`SparseMoments.of` for rows far off and their pairs: `log p(x)`, E[1], E[t] and E[t t^T]."""
    piece, gaussian = pairs.piece[of], pairs.gaussian.take(of)
    anchors = find_anchors(geometry, rows, row, piece, gaussian)
    log_mass, mean, spread = geometry.pieces.local_moments(piece, gaussian.root, anchors.place, anchors.tilt)
    total, share = normalise(row, anchors.log_peak + gaussian.log_volume + log_mass, len(rows.x))
    mean, spread = (torch.where(share.view(-1, *[1] * k) > 0.0, part, 0.0) for k, part in ((1, mean), (2, spread)))
    inverse = geometry.factor @ torch.linalg.inv(gaussian.root)
    first = (inverse @ (anchors.place + mean)[:, :, None])[:, :, 0]
    second = inverse @ spread @ inverse.mT + first[:, :, None] * first[:, None, :]
    return total - 0.5 * anchors.least, share, share[:, None] * first, share[:, None, None] * second


def _sums(count: int, to: Tensor, values: Tensor, table: Tensor, of: Tensor) -> Tensor:
    """`values[k] table[of[k]]`, added up at `to[k]`, `(count, C)`."""
    out = table.new_zeros(count, table.shape[1])
    per = max(1, room(2**20, out.device) // max(1, table.shape[1]))
    for t, v, o in zip(to.split(per), values.split(per), of.split(per), strict=True):
        out.index_add_(0, t, v[:, None] * table[o])
    return out


def _columns(cells: AffinePieces) -> Tensor:
    """C with `h = C (t, 1)` on each piece, `(P, H, S + 1)`."""
    return torch.cat((cells.slope, cells.value[:, :, None]), 2)


def log_marginal(geometry: Geometry, pairs: Pairs) -> Tensor:
    """It gives `log p(x)` as `SparseMoments.of` does, without the moments, `(n,)`."""
    g = pairs.gaussian
    pieces, root = geometry.shape(g)
    mass = pieces.raw_masses(pairs.piece, root, g.centre)
    log_mass, some = mass.clamp(min=0.0).log(), needs_care(pairs, mass)
    careful = g.take(some)
    pieces, root = geometry.shape(careful)
    log_mass[some] = pieces.log_masses(pairs.piece[some], root, careful.centre)
    return normalise(pairs.row, pairs.log_scale + log_mass, len(pairs.log_left_out))[0]


def needs_care(pairs: Pairs, mass: Tensor) -> Tensor:
    """Index of the pairs whose raw mass, right to 1e-15, is not right enough.

    Right enough is an error small beside the mass itself or, where p(x) is not much below the scale of the pair,
    beside the share that the pair has in p(x).
    """
    if (fast := _fast(mass)) is not None:
        start = first_of_each(pairs.row, len(pairs.log_known))
        parts = (pairs.log_scale, mass, pairs.raw_error, pairs.log_known)
        found = fast.careful(start, *(part.contiguous().numpy() for part in parts), _LARGE, math.log(_FLOOR))
        return torch.from_numpy(found)
    safe = (mass - pairs.raw_error).clamp(min=0.0).log()
    log_p, _ = normalise(pairs.row, pairs.log_scale + safe, len(pairs.log_known))
    floor = torch.maximum(log_p, pairs.log_known)[pairs.row] - pairs.log_scale
    return ((mass < _LARGE) & ~(floor > math.log(_FLOOR))).nonzero()[:, 0]


class Polytopes(Region):
    """For S = 2, 3 the region is made of the pairs of rows and polygons, or polyhedra, that matter.

    Args:
        part: a partition with S = 2 or 3.
        prior: `(S, S)`.
        mean: of the prior, `(S,)`, from which latents are then counted; 0 by default.
    """

    def __init__(self, part: Partition, prior: Tensor, mean: Tensor | None = None) -> None:
        self.pieces = Pieces(part.polytopes, torch.linalg.cholesky(prior), mean)

    def geometry(self, model: Model) -> Geometry:
        """The pieces with the maps of the model on them, made at the first call."""
        return model.recall(self._geometry)

    def _geometry(self, model: Model) -> Geometry:
        return Geometry(model, self.pieces)

    def entries(self, model: Model, complete: bool) -> int:
        """Four for each pair that is likely to be kept; compiled code keeps no others on the way."""
        if model.tol <= 0.0:
            return 4 * self.pieces.count
        geometry = self.geometry(model)
        usual = _FEW if complete and serve(geometry.origin) else _SOME
        return 4 * max(usual, len(geometry.unbounded))

    def log_prob(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor]:
        """`log p(x)`, and a certified bound on the share that was left out."""
        g = self.geometry(model)
        pairs = select_pairs(g, rows.relative())
        log_total = log_marginal(g, pairs)
        return rows.common + log_total, (pairs.log_left_out - log_total).exp()

    def expect(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor, SparseMoments]:
        """The same, and the moments of the posteriors."""
        g = self.geometry(model)
        pairs = select_pairs(g, rows.relative())
        log_total, sparse = SparseMoments.of(g, rows, pairs)
        return rows.common + log_total, (pairs.log_left_out - log_total).exp(), sparse

    def posterior(self, model: Model, trace: Trace, x: Tensor) -> PolytopePosterior:
        """The posteriors of rows `(N, D)`."""
        return PolytopePosterior(self.geometry(model), trace.frozen(), x)

    def average(self, model: Model, rows: Rows) -> Callable[[Tensor, Tensor, Tensor], Expected]:
        """`E_q[log p(x, z)]` and its derivatives, for Gaussians q."""
        return partial(_expected, self.geometry(model), rows)


def _expected(g: Geometry, rows: Rows, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
    which, piece = g.pieces.near(mean, _REACH * factor.norm(dim=2))
    inverse = torch.linalg.inv(factor)[which]
    centre = (inverse @ (mean[which] - g.origin[piece])[:, :, None])[:, :, 0]
    mass, first, second = g.pieces.raw_moments(piece, inverse, centre)
    p = g.gaussians(rows, row[which], piece)
    to_w = p.root @ factor[which]
    offset = (to_w @ centre[:, :, None])[:, :, 0] - p.centre
    # w = offset + to_w u is where h = base - |w|^2 / 2; sums of w, w u^T and |w|^2 over the piece
    w = mass[:, None] * offset + (to_w @ first[:, :, None])[:, :, 0]
    w_u = offset[:, :, None] * first[:, None, :] + to_w @ second
    square = (offset * w).sum(1) + (w_u * to_w).sum((1, 2))
    root = p.root.mT
    sums = (mass * p.base - 0.5 * square, -(root @ w[:, :, None])[:, :, 0], -(root @ w_u))
    value, by_mean, by_factor = (part.new_zeros(len(row), *part.shape[1:]).index_add(0, which, part) for part in sums)
    return Expected(value - 0.5 * g.pieces.dim * _LOG_2PI, by_mean, by_factor)
