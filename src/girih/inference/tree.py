r"""A tree over the bounded pieces of a latent space, with bounds on what a row can have in common with each node.

The images `T h(z)` of a node's pieces lie in a ball, centre c and radius rho, so for every row

    p(x, z in node) <= const P(node) exp(-max(|y - c| - rho, 0)^2 / 2)

Pieces are ordered by halving their set along its widest latent coordinate, again and again; the nodes at depth d
are the 2^d parts, and every third depth is a level of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.inference.pieces import Pieces
from girih.partition.growing import Array, ragged

_STEP = 3  # depths between levels: a node has about 8 children
_NARROW = 24  # images of more dimensions are projected for the search
_PRINCIPAL = 16  # ... to so many, which can only shorten distances
_ROUNDING = 1e-12


class Level(NamedTuple):
    """The nodes of one level; the leaves are single pieces."""

    feature: Tensor  # (m, H) hidden features at the centres
    centre: Tensor  # (m, K') their image, perhaps projected
    radius: Tensor  # (m,) of a ball around the centre that holds all images, rounding included
    log_mass: Tensor  # (m,) upper bound on the log prior mass
    low: Tensor  # (m, S) box in whitened latents
    high: Tensor
    start: Array  # (m,) first child, in the level below
    length: Array  # (m,) number of children


Distance = Callable[[Tensor, Level, Tensor], Tensor]


class Tree:
    """Levels from the root to the leaves.

    Args:
        pieces: of which those in `index` become the leaves.
        index: `(B,)`.
        feature: hidden features at a centre of each of those pieces, `(B, H)`.
        radius: how far the image of each reaches around that of its centre, `(B,)`.
        reduced: T `(K, H)`.
    """

    def __init__(self, pieces: Pieces, index: Tensor, feature: Tensor, radius: Tensor, reduced: Tensor) -> None:
        middle = 0.5 * (pieces.low + pieces.high)[index]
        order = torch.as_tensor(halving_order(middle.numpy()))
        self.piece = index[order]
        feature, radius = feature[order], radius[order]
        image = feature @ reduced.mT
        self._basis = _principal_directions(image)
        centre = self.project(image)
        log_mass, low, high = pieces.log_mass[self.piece], pieces.low[self.piece], pieces.high[self.piece]
        count = len(order)
        none = np.zeros(count, np.int64)
        leaves = Level(feature, centre, radius * (1.0 + _ROUNDING), log_mass, low, high, none, none)
        self.levels = [leaves]
        depth = _STEP * max(0, (count.bit_length() - 1) // _STEP)
        below = np.arange(count)  # where the nodes below begin
        while count and depth >= 0:
            start = -(-np.arange(2**depth) * count // 2**depth)
            self.levels.append(_join(leaves, image, start, np.searchsorted(below, start), len(below), self.project))
            below, depth = start, depth - _STEP

    def project(self, y: Tensor) -> Tensor:
        """Coordinates in which distances are at most those of y, and often equal."""
        if self._basis is None:
            return y
        main = y @ self._basis
        rest = torch.linalg.vector_norm(torch.addmm(y, main, self._basis.mT, alpha=-1.0), dim=1, keepdim=True)
        return torch.cat((main, rest), 1)

    def search(
        self, distance: Distance, count: int, bound: Callable[[Level, Tensor, Tensor, Tensor], Tensor], least: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All (row, piece) pairs whose bound is at least that of their row.

        Args:
            distance: of rows from the centres of nodes.
            count: the number of rows.
            bound: `bound(level, node, row, gap)` with `gap` the distance from the node's ball.
            least: `(count,)`.

        Returns:
            Rows and pieces that were kept; rows and bounds of what was dropped.
        """
        device = least.device
        kept_row = torch.arange(count, device=device)
        kept = torch.zeros_like(kept_row)
        dropped_row, dropped = [kept[:0]], [least[:0]]
        if not len(self.piece):
            return kept[:0], kept[:0], kept[:0], least[:0]
        for level in reversed(self.levels):
            gap = (distance(kept_row, level, kept) - level.radius[kept]).clamp_(min=0.0)
            value = bound(level, kept, kept_row, gap)
            keep = value >= least[kept_row]
            dropped_row.append(kept_row[~keep])
            dropped.append(value[~keep])
            kept_row, kept = kept_row[keep], kept[keep]
            if level is not self.levels[0]:
                child, parent = ragged(level.start[kept.numpy()], level.length[kept.numpy()])
                kept_row, kept = kept_row[torch.as_tensor(parent)], torch.as_tensor(child)
        return kept_row, self.piece[kept], torch.cat(dropped_row), torch.cat(dropped)

    def descend(
        self,
        distance: Distance,
        count: int,
        bound: Callable[[Level, Tensor, Tensor, Tensor], Tensor],
        width: int,
    ) -> tuple[Tensor, Tensor]:
        """Some pieces with large bounds for each row, found greedily: pairs of rows and pieces."""
        row = torch.arange(count)
        node = torch.zeros_like(row)
        if not len(self.piece):
            return row[:0], row[:0]
        for level in reversed(self.levels):
            distances = distance(row, level, node)
            # of nodes around the row, the one with the nearest centre
            gap = (distances - level.radius[node]).clamp(min=0.0) + 1e-3 * distances
            keep = _best(row, bound(level, node, row, gap), width)
            row, node = row[keep], node[keep]
            if level is not self.levels[0]:
                child, parent = ragged(level.start[node.numpy()], level.length[node.numpy()])
                row, node = row[torch.as_tensor(parent)], torch.as_tensor(child)
        return row, self.piece[node]


def _join(
    leaves: Level, image: Tensor, start: Array, first: Array, below: int, project: Callable[[Tensor], Tensor]
) -> Level:
    """The nodes that begin at these leaves."""
    size = np.diff(np.append(start, len(image)))
    of = torch.as_tensor(np.repeat(np.arange(len(start)), size))
    share = torch.as_tensor(1.0 / size)[:, None]

    def mean(values: Tensor) -> Tensor:
        return torch.as_tensor(np.add.reduceat(values.numpy(), start, axis=0)) * share

    def extreme(values: Tensor, which: np.ufunc) -> Tensor:
        return torch.as_tensor(which.reduceat(values.numpy(), start, axis=0))

    centre = mean(image)
    reach = torch.linalg.vector_norm(image - centre[of], dim=1) + leaves.radius
    top = extreme(leaves.log_mass, np.maximum)
    log_mass = top + torch.as_tensor(np.add.reduceat((leaves.log_mass - top[of]).exp().numpy(), start)).log()
    return Level(
        mean(leaves.feature),
        project(centre),
        extreme(reach, np.maximum) * (1.0 + _ROUNDING),
        log_mass,
        extreme(leaves.low, np.minimum),
        extreme(leaves.high, np.maximum),
        first,
        np.diff(np.append(first, below)),
    )


def halving_order(points: Array) -> Array:
    """Points `(n, S)` in an order in which each of the 2^d parts of equal length is compact, for every d."""
    count = len(points)
    order = np.arange(count)
    parts = 1
    while parts < count:
        start = -(-np.arange(parts) * count // parts)
        part = np.arange(count) * parts // count
        here = points[order]
        spread = np.maximum.reduceat(here, start, axis=0) - np.minimum.reduceat(here, start, axis=0)
        value = here[np.arange(count), spread.argmax(1)[part]]
        order = order[np.lexsort((value, part))]
        parts *= 2
    return order


def _principal_directions(image: Tensor) -> Tensor | None:
    """Orthonormal directions `(K, k)` in which the images vary most; `None` where there are few dimensions."""
    if image.shape[1] <= _NARROW:
        return None
    some = image[:: max(1, len(image) // 512)]
    directions = torch.linalg.svd(some - some.mean(0), full_matrices=False)[2]
    return directions[:_PRINCIPAL].mT.contiguous()


def _best(row: Tensor, value: Tensor, width: int) -> Tensor:
    """Indices of the `width` largest values of each row; `row` is sorted."""
    order = np.lexsort((-value.numpy(), row.numpy()))
    size = np.bincount(row.numpy())
    place = np.arange(len(order)) - (np.cumsum(size) - size)[row.numpy()]
    return torch.as_tensor(order[place < width])
