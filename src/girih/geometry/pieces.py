r"""The images of the convex pieces of a latent space, and the point of each that is nearest to a row.

The last layer is `x = W h + v`. With `W = Q T` (where that is shorter than x; else T = W) every distance splits into
`|x - g|^2 = far^2 + |y - T h|^2`, `y = Q^T (x - v)`, and `far` the same for all latents. On a piece with origin o,
`T h = f + J t`, `t = z - o`, `J = B R` with orthonormal B: `|y - T h|^2 = off^2 + |R t - c|^2`, `c = B^T (y - f)`. The
nearest t is the point of the piece, in coordinates `w = R t - c`, that is nearest to 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.geometry.dimension import RANK_TOLERANCE
from girih.inference.pieces import Pieces
from girih.inference.tree import Leaves
from girih.partition import Partition
from girih.partition.memory import Array

_ROOM = 1e-10  # of 1 + |h|: how far outside a half-space still counts as inside
_DEPENDENT = 1e-9
_FLAT = 1e-10  # singular values up to this multiple of the largest count as 0
_NUMBERS = 1 << 21
_ROUNDING = 1e-13  # of squared distances, which are differences
_CHUNK = 1024  # pieces: all layers of so many stay in cache
_STILL = 1e-9  # a ray whose image moves less than that for each unit stands still


def nearest_in_cell(R: Array, target: Array, H: Array, h: Array) -> Array:
    r"""`argmin |R z - y|` over `H z <= h`, for each row y of `target`.

    Some face of the polytope holds the answer in its relative interior, where it is the least-squares point of the
    face's plane; all planes of at most S half-spaces are tried.

    Args:
        R: `(k, S)`, of any rank.
        target: `(m, k)`.
        H: unit normals, `(F, S)`.
        h: `(F,)`.

    Returns:
        `(m, S)`; NaN where rounding leaves no candidate inside.

    Example:
        >>> import girih, numpy as np
        >>> H, h = np.array([[1.0, 0.0], [0.0, 1.0]]), np.ones(2)  # below 1 in both coordinates
        >>> girih.geometry.nearest_in_cell(np.eye(2), np.array([[3.0, 0.5]]), H, h)
        array([[1. , 0.5]])
    """
    S = R.shape[1]
    best = np.full((len(target), S), np.nan)
    least = np.full(len(target), np.inf)
    room = _ROOM * (1.0 + np.abs(h))
    for base, solve in _planes(R, H, h):  # z = base + solve (y - R base)
        step = max(1, _NUMBERS // (len(target) * (len(h) + 1)))
        for start in range(0, len(base), step):
            some, maps = base[start : start + step], solve[start : start + step]
            z = some[:, None] + np.einsum("psk,pmk->pms", maps, target[None] - (some @ R.T)[:, None])
            size = ((z @ R.T - target) ** 2).sum(2)
            scale = room + _ROOM * np.abs(z).max(2, keepdims=True)
            size[((z @ H.T - h) > scale).any(2)] = np.inf
            k = size.argmin(0)
            value = np.take_along_axis(size, k[None], 0)[0]
            better = value < least
            least[better] = value[better]
            best[better] = z[k[better], better.nonzero()[0]]
    return best


def _planes(R: Array, H: Array, h: Array) -> Iterator[tuple[Array, Array]]:
    """A point of the common plane and the least-squares map in it, for all sets of independent faces of one size."""
    S = R.shape[1]
    least = _FLAT * float(np.linalg.norm(R, 2))
    yield np.zeros((1, S)), _inverse(R[None], least)
    for size in range(1, min(S, len(h)) + 1):
        sets = np.array(list(combinations(range(len(h)), size)), np.int64)
        normals, offsets = H[sets], h[sets]
        U, values, Vt = np.linalg.svd(normals)
        free = values[:, -1] > _DEPENDENT
        U, values, Vt, offsets = U[free], values[free], Vt[free], offsets[free]
        if not len(values):
            continue
        base = np.einsum("prs,pr->ps", Vt[:, :size], np.einsum("pqr,pq->pr", U, offsets) / values)
        rest = Vt[:, size:].transpose(0, 2, 1)
        solve = rest @ _inverse(R @ rest, least) if size < S else np.zeros((len(base), S, len(R)))
        yield base, solve


def _inverse(A: Array, least: float) -> Array:
    """Pseudo-inverses `(K, n, k)` of `A (K, k, n)`: singular values up to `least` count as 0."""
    U, values, Vt = np.linalg.svd(A, full_matrices=False)
    counts = values > least
    inverse = np.where(counts, 1.0 / np.where(counts, values, 1.0), 0.0)
    result: Array = np.einsum("krn,kr,kmr->knm", Vt, inverse, U)
    return result


class Rows(NamedTuple):
    """Rows of x, reduced."""

    y: Tensor  # (N, K)
    far: Tensor  # (N,)


class Images:
    """The images of all pieces of a partition, reduced, on the CPU and without gradients.

    Attributes:
        count: P, the number of pieces.
        cell: the cell of each piece, `(P,)`.
        origin: `(P, S)`.
        value: f, `(P, K)`.
        slope: J, `(P, K, S)`.
        basis: B, `(P, K, s)`, s the smaller of K and S.
        root: R, `(P, s, S)`, with a positive determinant where it is square.
        rank: of J, `(P,)`.
        corners: vertices and rays.
        bounded: `(P,)`.
        low, high: the box around each piece, `(P, S)`.
        log_mass: zeros; there is no prior here.
    """

    def __init__(self, part: Partition) -> None:
        self.part, self.dim = part, part.latent_dim
        with torch.no_grad():
            W, v = part.trace.head_parameters()
            self._frame: Tensor | None = None
            T = W
            if W.shape[0] > W.shape[1]:
                self._frame, T = torch.linalg.qr(W)
            self._bias = v.clone()
            values, slopes = [], []
            for pattern, origin in zip(
                part.piece_patterns.split(_CHUNK), part.piece_origins.split(_CHUNK), strict=True
            ):
                jet = part.trace.hidden_jet(pattern, origin)
                values.append((jet.value @ T.mT).cpu())
                slopes.append((jet.slope.mT @ T.mT).mT.cpu())
        self.value, self.slope = torch.cat(values), torch.cat(slopes).contiguous()
        self.origin = part.piece_origins.cpu()
        self.count = len(self.origin)
        basis, root = torch.linalg.qr(self.slope)
        if root.shape[1] == self.dim:  # a mirrored piece would turn inside out
            flip = torch.where(torch.linalg.det(root) < 0.0, -1.0, 1.0)
            basis[:, :, 0] *= flip[:, None]
            root[:, 0] *= flip[:, None]
        self.basis, self.root = basis, root
        values = torch.linalg.svdvals(root)
        self.rank = (values > RANK_TOLERANCE * values[:, :1]).sum(1)
        full = (self.rank == self.dim)[:, None, None]
        shape = root if root.shape[1] == self.dim else root.new_zeros(self.count, self.dim, self.dim)
        self._full_root = torch.where(full, shape, torch.eye(self.dim, dtype=torch.float64))
        corners = part.cells.piece_corners()
        self.cell, self.corners = part.cells.piece_cells, corners.about(self.origin)
        self.low, self.high = corners.boxes(self.count)
        self._shapes = (_Segments if self.dim == 1 else _Shapes)(self)
        self.bounded = torch.bincount(self.corners.ray_owner, minlength=self.count) == 0
        self.log_mass = torch.zeros(self.count, dtype=torch.float64)
        self._lines = _Lines(self)

    def rows(self, x: Tensor) -> Rows:
        """Reduced rows `(N, D)`."""
        off = x - self._bias
        if self._frame is None:
            return Rows(off.cpu(), torch.zeros(len(off), dtype=torch.float64))
        y = off @ self._frame
        return Rows(y.cpu(), torch.linalg.vector_norm(off - y @ self._frame.mT, dim=1).cpu())

    def leaves(self) -> Leaves:
        """The bounded pieces and their corners, for a `Tree` over reduced images."""
        index = self.bounded.nonzero()[:, 0]
        point, owner = self.corners.point, self.corners.owner
        middle = self.middles()
        value = self.value + (self.slope @ middle[:, :, None])[:, :, 0]
        place = torch.full_like(self.cell, -1)
        place[index] = torch.arange(len(index))
        inner = self.bounded[owner]
        around = (point - middle[owner])[inner]
        length = torch.linalg.vector_norm((self.root[owner[inner]] @ around[:, :, None])[:, :, 0], dim=1)
        return Leaves(index, value[index], self.slope[index], around, length, place[owner[inner]])

    def middles(self) -> Tensor:
        """The mean of the finite vertices of each piece, about its origin, `(P, S)`."""
        point, owner = self.corners.point, self.corners.owner
        size = torch.bincount(owner, minlength=self.count).clamp(min=1)
        return self.origin.new_zeros(self.count, self.dim).index_add(0, owner, point) / size[:, None]

    def free(self, rows: Rows, row: Tensor, piece: Tensor) -> Tensor:
        """The least-squares t of pieces of full rank, `(m, S)`, wherever it lies."""
        if not len(row):
            return self.origin[:0]
        centre = self._centre(rows, row, piece)[1]
        result: Tensor = torch.linalg.solve_triangular(self._full_root[piece], centre[:, :, None], upper=True)[:, :, 0]
        return result

    def least(self, rows: Rows, row: Tensor, piece: Tensor) -> Tensor:
        """A lower bound on the distance that `nearest` finds, where that costs more than this (S = 3); else 0."""
        if min(self.root.shape[1:]) < 3:
            return rows.y.new_zeros(len(row))
        off, centre = self._centre(rows, row, piece)
        size = off.square().sum(1)
        across = (size - centre.square().sum(1) - _ROUNDING * size).clamp(min=0.0)
        beyond = self._shapes.beyond(piece, centre) - _ROUNDING**0.5 * size.sqrt()
        beyond = torch.where(self.rank[piece] == self.dim, beyond, 0.0).clamp(min=0.0)
        return (across + beyond.square()).sqrt()

    def nearest(self, rows: Rows, row: Tensor, piece: Tensor) -> tuple[Tensor, Tensor]:
        """The t of each piece whose image is nearest to a row, `(m, S)`, and that distance, without `far`, `(m,)`.

        Where a piece has rank below S, one of the nearest.
        """
        off, centre = self._centre(rows, row, piece)
        out = centre.new_zeros(len(row), self.dim)
        rank = self.rank[piece]
        some = (rank == self.dim).nonzero()[:, 0]
        if len(some):
            out[some] = self._in_full(piece[some], centre[some])
        some = ((rank == 1) & (rank < self.dim)).nonzero()[:, 0]
        if len(some):
            out[some] = self._lines.nearest(piece[some], centre[some])
        some = ((rank > 1) & (rank < self.dim)).nonzero()[:, 0]
        if len(some):
            out[some] = self._in_flat(piece[some], centre[some])
        gap = off - (self.slope[piece] @ out[:, :, None])[:, :, 0]
        return out, torch.linalg.vector_norm(gap, dim=1)

    def _centre(self, rows: Rows, row: Tensor, piece: Tensor) -> tuple[Tensor, Tensor]:
        off = rows.y[row] - self.value[piece]
        return off, (off[:, None, :] @ self.basis[piece])[:, 0]

    def _in_full(self, piece: Tensor, centre: Tensor) -> Tensor:
        return self._shapes.nearest(piece, self._full_root[piece], centre)

    def _in_flat(self, piece: Tensor, centre: Tensor) -> Tensor:
        """Pieces of rank 2 in three dimensions, one after another."""
        out = centre.new_zeros(len(piece), self.dim)
        for i in piece.unique().tolist():
            rows = (piece == i).nonzero()[:, 0]
            H, h = (side.cpu() for side in self.part.halfspaces(int(self.cell[i])))
            room = (h - H @ self.origin[i]).numpy()
            found = nearest_in_cell(self.root[i].numpy(), centre[rows].numpy(), H.numpy(), room)
            out[rows] = torch.as_tensor(found).nan_to_num(nan=0.0)  # the origin, where rounding leaves nothing
        return out


class _Shapes:
    """Polygons or polyhedra, stretched by the maps of full rank (S = 2, 3)."""

    def __init__(self, images: Images) -> None:
        plain = Pieces(images.part.polytopes, torch.eye(images.dim, dtype=torch.float64))
        self._stretched = plain.stretched(images._full_root)

    def nearest(self, piece: Tensor, root: Tensor, centre: Tensor) -> Tensor:
        """The t of each piece for which `|root t - centre|` is least."""
        w = self._stretched.nearest(piece, None, centre)
        result: Tensor = torch.linalg.solve_triangular(root, (w + centre)[:, :, None], upper=True)[:, :, 0]
        return result

    def beyond(self, piece: Tensor, centre: Tensor) -> Tensor:
        """The distance of points beyond the farthest face of a piece, `(m,)`; negative inside."""
        return self._stretched.beyond(piece, centre)


class _Segments:
    """Intervals (S = 1)."""

    def __init__(self, images: Images) -> None:
        self._low, self._high = images.low - images.origin, images.high - images.origin

    def nearest(self, piece: Tensor, root: Tensor, centre: Tensor) -> Tensor:
        """The t of each piece for which `|root t - centre|` is least."""
        return (centre / root[:, 0]).clamp(self._low[piece], self._high[piece])

    def beyond(self, piece: Tensor, centre: Tensor) -> Tensor:
        """Nothing is known of how far points are beyond the ends."""
        return torch.full_like(centre[:, 0], -torch.inf)


class _Lines:
    """Pieces of rank 1, whose image is a segment, a half-line or a line: `J t = B u s (v . t)`."""

    def __init__(self, images: Images) -> None:
        index = ((images.rank == 1) & (images.rank < images.dim)).nonzero()[:, 0]
        self.place = torch.full_like(images.cell, -1)
        self.place[index] = torch.arange(len(index))
        U, s, Vt = torch.linalg.svd(images.root[index], full_matrices=False)
        self.left, self.size, self.right = U[:, :, 0], s[:, 0], Vt[:, 0]
        corner, way = images.corners.point, images.corners.ray
        owner, of = self.place[images.corners.owner], self.place[images.corners.ray_owner]
        corner, owner = corner[owner >= 0], owner[owner >= 0]
        way, of = way[of >= 0], of[of >= 0]
        self.ends = [_extreme(corner, owner, self.right, sign) for sign in (-1.0, 1.0)]
        self.ways = [_extreme(way, of, self.right, sign) for sign in (-1.0, 1.0)]

    def nearest(self, piece: Tensor, centre: Tensor) -> Tensor:
        """The nearest point of each piece, as `Images.nearest`."""
        k = self.place[piece]
        along = self.right[k]
        wanted = (self.left[k] * centre).sum(1) / self.size[k]
        low, high = (end[k] for end in self.ends)
        least, most = (low * along).sum(1), (high * along).sum(1)
        share = ((wanted - least) / torch.where(most > least, most - least, 1.0)).clamp(0.0, 1.0)
        out: Tensor = low + share[:, None] * (high - low)
        for sign, ways, beyond in ((-1.0, self.ways[0], least - wanted), (1.0, self.ways[1], wanted - most)):
            speed = sign * (ways[k] * along).sum(1)
            goes = (speed > _STILL) & (beyond > 0.0)
            out = out + torch.where(goes, beyond / torch.where(goes, speed, 1.0), 0.0)[:, None] * ways[k]
        return out


def _extreme(vectors: Tensor, owner: Tensor, along: Tensor, sign: float) -> Tensor:
    """The vector of each owner that goes farthest in the direction `sign along`, `(n, S)`; 0 where there is none."""
    out = torch.zeros_like(along)
    value = sign * (vectors * along[owner]).sum(1)
    order = torch.as_tensor(np.lexsort((value.numpy(), owner.numpy())))
    last = torch.cat((owner[order].diff() > 0, owner.new_ones(min(1, len(order)), dtype=torch.bool)))
    chosen = order[last]
    out[owner[chosen]] = vectors[chosen]
    return out
