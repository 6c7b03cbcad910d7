r"""Which pieces of a latent space have an image near a row: a tree over the bounded ones, cones around the others.

The image of an unbounded piece is its corners' hull plus the cone of its rays. With c the mean of the corners, r their
largest distance from c, and a cone of axis a and half-angle `theta` around the rays, a point of the piece's plane at
`v` from c is at least `max(0, d(v) - r)` away, where d is the distance from the cone: `p cos(theta) - l sin(theta)`
with `l = v . a`, `p = |v - l a|`, or `|v|` behind the apex.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.geometry.pieces import Images, Rows
from girih.inference.tree import Gap, Level, Tree
from girih.partition import Partition
from girih.partition.memory import ragged

_PAIRS = 1 << 25  # pairs of rows and pieces that a batch of rows could have at most
_MOST = 2048  # rows of a batch
_CONES = 1 << 21  # entries of the largest array of `Cones.gap`
_NEAREST = 1 << 15  # pairs at a time
_BEAM = 24  # nodes of each level that are followed to a first answer
_FIRST = 6  # pieces that give it
_CENTRED = 1e-2  # how much the distance from a node's centre counts beside that from its slab
_ROUNDING = 1e-13  # of squared distances, which are differences


class Found(NamedTuple):
    """The nearest piece of each row."""

    piece: Tensor  # (N,)
    t: Tensor  # (N, S) about the origin of the piece
    distance: Tensor  # (N,) without the part that is the same for all latents


class Search:
    """A tree over the images of all cells; you make one to ask `nearest` or `within` of a partition many times.

    `invert`, `preimages` and `is_injective` make their own.

    Args:
        part: the cells.

    Example:
        >>> import girih, torch
        >>> part = girih.Partition(girih.mlp([2, 8, 5], seed=0))
        >>> search = girih.geometry.Search(part)
        >>> rows = search.images.rows(torch.zeros(3, 5, dtype=torch.float64))
        >>> search.nearest(rows).distance.shape
        torch.Size([3])
    """

    def __init__(self, part: Partition) -> None:
        self.images = Images(part)
        leaves = self.images.leaves()
        # the images themselves are the features of the tree, which reads the boxes and the (zero) masses of pieces
        eye = torch.eye(leaves.feature.shape[1], dtype=torch.float64)
        self.tree = Tree(self.images, leaves, eye)
        self.cones = Cones(self.images)

    def batches(self, count: int) -> Iterator[slice]:
        """Slices of rows that fit into memory whatever they are near to."""
        size = max(1, min(_MOST, _PAIRS // max(1, self.images.count)))
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def nearest(self, rows: Rows) -> Found:
        """The piece whose image is nearest to each row of a batch, and where; of several, one."""
        best = _Best(self.images, rows)
        best.take(*self._promising(rows))
        outer = self.cones.gap(rows)
        if outer.shape[1]:
            best.take(torch.arange(len(rows.y)), self.cones.piece[outer.argmin(1)])
        row, piece, gap = self._near(rows, best.distance, outer)
        best.take(*_by_rank(row, piece, gap))
        return best.found()

    def within(self, rows: Rows, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a row and a piece for all images that may be within `reach (n,)` of the row; some are farther."""
        row, piece, _ = self._near(rows, reach, self.cones.gap(rows))
        return row, piece

    def meeting(self, room: float) -> Tensor:
        """Pairs of cells `i < j` whose images may meet, `(E, 2)`: each in reach of the ball around the other.

        Args:
            room: images of size `|x|` that are `room (1 + |x|)` apart still meet.
        """
        images = self.images
        index = images.bounded.nonzero()[:, 0]
        middle = images.middles()
        y = images.value + (images.slope @ middle[:, :, None])[:, :, 0]
        owner = images.corners.owner
        around = images.corners.point - middle[owner]
        length = torch.linalg.vector_norm((images.root[owner] @ around[:, :, None])[:, :, 0], dim=1)
        reach = torch.zeros_like(y[:, 0]).scatter_reduce(0, owner, length, "amax") * (1.0 + 1e-12)
        reach = reach + room * (1.0 + torch.linalg.vector_norm(y, dim=1))
        keys, outer = [], self.cones.piece
        for some in self.batches(len(index)):
            chosen = index[some]
            row, piece, _ = self._near(
                Rows(y[chosen], reach[chosen]), reach[chosen], self.cones.gap(Rows(y[chosen], reach))
            )
            keys.append(torch.stack((chosen[row], piece), 1))
        pairs = torch.cat([*keys, outer[torch.triu_indices(len(outer), len(outer), 1).mT]])
        # two bounded pieces are met from both sides
        low, high = pairs.amin(1), pairs.amax(1)
        key, times = (low * images.count + high).unique(return_counts=True)
        low, high = key // images.count, key % images.count
        both = images.bounded[low] & images.bounded[high]
        low, high = (images.cell[some[(times > 1) | ~both]] for some in (low, high))
        key = (torch.minimum(low, high) * len(images.part) + torch.maximum(low, high))[low != high].unique()
        return torch.stack((key // len(images.part), key % len(images.part)), 1)

    def _near(self, rows: Rows, reach: Tensor, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs whose bound is up to their row's reach, and the bounds."""
        least = -reach.square()
        leaves, kept = self.tree.levels[0], [reach[:0]]

        def bound(level: Level, node: Tensor, row: Tensor, gap2: Tensor) -> Tensor:
            if level is leaves:
                kept.append(gap2[-gap2 >= least[row]])
            return -gap2

        row, piece, _, _ = self.tree.search(self._gap(rows), len(rows.y), bound, least)
        far_row, far = (outer <= reach[:, None]).nonzero(as_tuple=True)
        gaps = torch.cat((kept[-1].sqrt(), outer[far_row, far]))
        return torch.cat((row, far_row)), torch.cat((piece, self.cones.piece[far])), gaps

    def _gap(self, rows: Rows) -> Gap:
        exact = self.tree.gap(rows.y)

        def gap(row: Tensor, level: Level, node: Tensor) -> tuple[Tensor, Tensor]:
            square, distance = exact(row, level, node)
            return (square - _ROUNDING * distance.square()).clamp(min=0.0), distance

        return gap

    def _promising(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Some bounded pieces near each row: the best few nodes of each level are followed down the tree."""
        row = torch.arange(len(rows.y))
        node = torch.zeros_like(row)
        if not len(self.tree.piece):
            return row[:0], node[:0]
        gap = self._gap(rows)
        for level in reversed(self.tree.levels):
            last = level is self.tree.levels[0]
            square, distance = gap(row, level, node)
            keep = _first(row, square + _CENTRED * distance.square(), _FIRST if last else _BEAM)
            row, node = row[keep], node[keep]
            if not last:
                child, parent = ragged(level.start[node.numpy()], level.length[node.numpy()])
                row, node = row[torch.as_tensor(parent)], torch.as_tensor(child)
        return row, self.tree.piece[node]


class Cones:
    """The unbounded pieces, each as a ball plus a cone in the plane of its image.

    Attributes:
        piece: `(U,)`.
    """

    def __init__(self, images: Images) -> None:
        self.piece = (~images.bounded).nonzero()[:, 0]
        count = len(self.piece)
        place = torch.full_like(images.cell, -1)
        place[self.piece] = torch.arange(count)
        middle, corners = images.middles(), images.corners
        self.basis, root = images.basis[self.piece], images.root[self.piece]
        self.centre = images.value[self.piece] + (images.slope[self.piece] @ middle[self.piece, :, None])[:, :, 0]
        self._shift = (self.centre[:, None] @ self.basis)[:, 0]
        owner = place[corners.owner]
        here = owner >= 0
        owner = owner[here]
        around = corners.point[here] - middle[corners.owner[here]]
        length = torch.linalg.vector_norm((root[owner] @ around[:, :, None])[:, :, 0], dim=1)
        self.radius = length.new_zeros(count).scatter_reduce(0, owner, length, "amax") * (1.0 + 1e-12)
        owner = place[corners.ray_owner]
        ways = (root[owner] @ corners.ray[:, :, None])[:, :, 0]
        size = torch.linalg.vector_norm(ways, dim=1)
        moves = size > 1e-13 * torch.linalg.matrix_norm(root)[owner]
        ways, owner = ways[moves] / size[moves, None], owner[moves]
        axis = ways.new_zeros(count, root.shape[1]).index_add(0, owner, ways)
        self.axis = torch.nn.functional.normalize(axis, dim=1, eps=torch.finfo(torch.float64).tiny)
        inner = (ways * self.axis[owner]).sum(1)
        self.cosine = inner.new_ones(count).scatter_reduce(0, owner, inner, "amin") - 1e-12
        self.still = torch.bincount(owner, minlength=count) == 0  # all rays are mapped to points

    def gap(self, rows: Rows) -> Tensor:
        """A lower bound on the distance of each row from the image of each unbounded piece, `(n, U)`."""
        if not len(self.piece):
            return rows.y.new_zeros(len(rows.y), 0)
        step = max(1, _CONES // self.basis[:, 0].numel())
        return torch.cat([self._of_rows(y) for y in rows.y.split(step)] or [rows.y.new_zeros(0, len(self.piece))])

    def _of_rows(self, y: Tensor) -> Tensor:
        count = len(y)
        inside = (y @ self.basis.permute(1, 0, 2).flatten(1)).view(count, *self.basis.shape[::2]) - self._shift
        size2 = torch.cdist(y, self.centre, compute_mode="donot_use_mm_for_euclid_dist").square()
        inner2 = inside.square().sum(2)
        room = _ROUNDING * (y.square().sum(1, keepdim=True) + self.centre.square().sum(1))
        off2 = (size2 - inner2 - room).clamp(min=0.0)
        along = (inside * self.axis).sum(2)
        beside = (inner2 - along.square()).clamp(min=0.0).sqrt()
        sine = (1.0 - self.cosine.square()).clamp(min=0.0).sqrt()
        cone = beside * self.cosine - along * sine
        behind = along * self.cosine + beside * sine < 0.0
        size = inner2.sqrt()
        cone = torch.where(behind | self.still, size, cone)
        cone = torch.where((self.cosine <= 0.0) & ~self.still, 0.0, cone)  # no half-space holds the rays
        within = (cone - self.radius - 1e-12 * (size + self.radius) - room.sqrt()).clamp(min=0.0)
        result: Tensor = (off2 + within.square()).sqrt()
        return result


class _Best:
    """The nearest pieces so far."""

    def __init__(self, images: Images, rows: Rows) -> None:
        count = len(rows.y)
        self._images, self._rows = images, rows
        self.distance = rows.y.new_full((count,), torch.inf)
        self._piece = torch.full((count,), -1)
        self._t = rows.y.new_zeros(count, images.dim)

    def take(self, row: Tensor, piece: Tensor, bound: Tensor | None = None) -> None:
        """Look at some pairs, those in vain left out as soon as their bound says so."""
        start, size = 0, _FIRST * len(self.distance)
        while start < len(row):
            some = torch.arange(start, min(start + size, len(row)))
            start, size = start + size, min(2 * size, max(size, _NEAREST))
            r, p = row[some], piece[some]
            if bound is not None:
                keep = bound[some] < self.distance[r]
                r, p = r[keep], p[keep]
                keep = self._images.least(self._rows, r, p) < self.distance[r]
                r, p = r[keep], p[keep]
            t, distance = self._images.nearest(self._rows, r, p)
            first = _first(r, distance, 1)
            first = first[distance[first] < self.distance[r[first]]]
            r, p, t, distance = r[first], p[first], t[first], distance[first]
            self.distance[r], self._piece[r], self._t[r] = distance, p, t

    def found(self) -> Found:
        """The result when all pairs were looked at."""
        assert (self._piece >= 0).all(), "every row has a nearest piece"
        return Found(self._piece, self._t, self.distance)


def _first(row: Tensor, value: Tensor, width: int) -> Tensor:
    """Indices of the `width` smallest values of each row, sorted by row."""
    order = np.lexsort((value.numpy(), row.numpy()))
    size = np.bincount(row.numpy())
    place = np.arange(len(order)) - (np.cumsum(size) - size)[row.numpy()[order]]
    return torch.as_tensor(order[place < width])


def _by_rank(row: Tensor, piece: Tensor, gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs with the best bounds of all rows first, then the second best, and so on."""
    order = np.lexsort((gap.numpy(), row.numpy()))
    size = np.bincount(row.numpy())
    place = np.arange(len(order)) - (np.cumsum(size) - size)[row.numpy()[order]]
    index = torch.as_tensor(order[np.argsort(place, kind="stable")])
    return row[index], piece[index], gap[index]
