r"""A tree over the bounded pieces of a latent space, with bounds on what a row can have in common with each node.

The images `T h(z)` of a node's pieces lie in a slab around an affine patch: with c its centre and Q an orthonormal
basis of its S directions, at most `wide` from c along Q and at most `thick` from the patch. So for every row

    p(x, z in node) <= const P(node) exp(-gap^2 / 2),
    gap^2 = max(|Q^T (y - c)| - wide, 0)^2 + max(|(1 - Q Q^T)(y - c)| - thick, 0)^2.

A leaf is a single piece, on which the network is affine: it has no thickness but for rounding. Pieces are ordered by
halving their set along its widest latent coordinate, again and again; the nodes at depth d are the 2^d parts, and every
third depth is a level of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from girih.partition.memory import Array, ragged

_STEP = 3  # depths between levels: a node has about 8 children
_NARROW = 24  # images of more dimensions are projected for the search
_PRINCIPAL = 16  # ... to so many, which can only shorten distances
ROUNDING = 1e-13  # of distances, to the size of what they are distances of
_ENTRIES = 2**22
_CACHE = 2**13  # pairs of rows and nodes at a time


class Level(NamedTuple):
    """A level holds nodes of the tree; the leaves are single pieces."""

    feature: Tensor  # (m, H) hidden features at the centres
    centre: Tensor  # (m, k) their image, in principal directions if it has many dimensions
    beyond: Tensor  # (m,) length of the rest of the image
    basis: Tensor  # (m, k, S) Q
    wide: Tensor  # (m,)
    thick: Tensor  # (m,)
    radius: Tensor  # (m,) of a ball around the centre that holds all images
    log_mass: Tensor  # (m,) upper bound on the log prior mass
    low: Tensor  # (m, S) box in whitened latents
    high: Tensor
    start: Array  # (m,) first child, in the level below
    length: Array  # (m,) number of children


# Lower bounds on the squared distances of rows from nodes, and their distances from the centres.
Gap = Callable[[Tensor, Level, Tensor], tuple[Tensor, Tensor]]
# Distances `(n, m)` of some rows from the centres of all nodes of a level, about.
Centres = Callable[[Tensor, Level], Tensor]
Bound = Callable[[Level, Tensor, Tensor, Tensor], Tensor]


class Boxes(Protocol):
    """The tree reads this of pieces: boxes `(P, S)` around them, and bounds on the logs of their masses `(P,)`."""

    low: Tensor
    high: Tensor
    log_mass: Tensor


class Leaves(NamedTuple):
    """Leaves are the bounded pieces, with the corners of each."""

    piece: Tensor  # (B,)
    feature: Tensor  # (B, H) hidden features at a centre of each
    slope: Tensor  # (B, H, S)
    corner: Tensor  # (C, S) relative to the centres
    length: Tensor  # (C,) at least how far the image of a corner is from that of its centre
    owner: Tensor  # (C,) in [0, B)


class Tree:
    """A tree has levels from the leaves to the root.

    Args:
        pieces: of which some become leaves.
        leaves: those.
        reduced: T `(K, H)`.
        flat: a tree of leaves alone, in their own order, on any device: for `Flat`.
    """

    def __init__(self, pieces: Boxes, leaves: Leaves, reduced: Tensor, flat: bool = False) -> None:
        index, count = leaves.piece, len(leaves.piece)
        every = torch.arange(count, device=index.device)
        order = every if flat else torch.as_tensor(halving_order(0.5 * (pieces.low + pieces.high)[index].numpy()))
        place = torch.empty_like(order)
        place[order] = every
        self.piece, feature = index[order], leaves.feature[order]
        image = feature @ reduced.mT
        self._basis = _principal_directions(image)
        main = (reduced if self._basis is None else self._basis.mT @ reduced) @ leaves.slope[order]  # (B, k, S)
        owner = place[leaves.owner]
        by_leaf = owner.argsort(stable=True)
        owner, corner = owner[by_leaf], leaves.corner[by_leaf]
        away = (main[owner] @ corner[:, :, None])[:, :, 0]  # image of the corners about their centres
        size = torch.linalg.matrix_norm(reduced) * torch.linalg.vector_norm(feature, dim=1)
        base = _Base(feature, image, self.project(image)[0], main, away, leaves.length[by_leaf], owner, size)
        masses = pieces.log_mass[self.piece], pieces.low[self.piece], pieces.high[self.piece]
        none = np.zeros(0 if flat else count, np.int64)
        self.levels = [_join(base, masses, every, count, (none, none), self.project)]
        if flat:
            return
        depth = _STEP * max(0, (count.bit_length() - 1) // _STEP)
        below = np.arange(count)  # where the nodes below begin
        while count and depth >= 0:
            start = -(-np.arange(2**depth) * count // 2**depth)
            first = np.searchsorted(below, start)
            of = torch.as_tensor(np.repeat(np.arange(len(start)), np.diff(np.append(start, count))))
            children = first, np.diff(np.append(first, len(below)))
            self.levels.append(_join(base, masses, of, len(start), children, self.project))
            below, depth = start, depth - _STEP

    def project(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Some coordinates of y, and the length of the rest: `|a - b|` is at least that of their differences."""
        if self._basis is None:
            return y, torch.zeros_like(y[:, 0])
        main = y @ self._basis
        return main, torch.linalg.vector_norm(torch.addmm(y, main, self._basis.mT, alpha=-1.0), dim=1)

    def centres(self, y: Tensor) -> Centres:
        """Distances of rows y `(n, K)` without missing entries from the centres of nodes."""
        main, beyond = self.project(y)

        def centres(rows: Tensor, level: Level) -> Tensor:
            return torch.hypot(torch.cdist(main[rows], level.centre), beyond[rows, None] - level.beyond)

        return centres

    def gap(self, y: Tensor) -> Gap:
        """The bound for rows y `(n, K)` without missing entries."""
        main, beyond = self.project(y)

        def gap(row: Tensor, level: Level, node: Tensor) -> tuple[Tensor, Tensor]:
            parts = [some(r, level, k) for r, k in zip(row.split(_CACHE), node.split(_CACHE), strict=True)]
            squares, distances = zip(*parts, strict=True) if parts else ([main[:0, 0]], [main[:0, 0]])
            return torch.cat(squares), torch.cat(distances)

        def some(row: Tensor, level: Level, node: Tensor) -> tuple[Tensor, Tensor]:
            off = main[row] - level.centre[node]
            along = (off[:, None, :] @ level.basis[node])[:, 0].square().sum(1)
            total = off.square().sum(1)
            across = (total - along).clamp_(min=0.0)
            across = (across.sqrt_() - level.thick[node]).clamp_(min=0.0)
            along = (along.sqrt_() - level.wide[node]).clamp_(min=0.0)
            rest = beyond[row] - level.beyond[node]
            outside = (rest.abs() - level.radius[node]).clamp_(min=0.0)
            distance2 = total.add_(rest.square_())
            square = along.square_().add_(across.square_()).add_(outside.square_())
            # the distances, and `across` as a difference of squares, are rounded
            return square.sub_(distance2, alpha=ROUNDING).clamp_(min=0.0), distance2.sqrt_()

        return gap

    def search(self, gap: Gap, count: int, bound: Bound, least: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All (row, piece) pairs whose bound is at least that of their row.

        Args:
            gap: of rows and nodes.
            count: the number of rows.
            bound: `bound(level, node, row, gap2)` with the square of the gap.
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
            value = bound(level, kept, kept_row, gap(kept_row, level, kept)[0])
            keep = ~(value < least[kept_row])
            dropped_row.append(kept_row[~keep])
            dropped.append(value[~keep])
            kept_row, kept = kept_row[keep], kept[keep]
            if level is not self.levels[0]:
                child, parent = ragged(level.start[kept.numpy()], level.length[kept.numpy()])
                kept_row, kept = kept_row[torch.as_tensor(parent)], torch.as_tensor(child)
        return kept_row, self.piece[kept], torch.cat(dropped_row), torch.cat(dropped)

    def promising(self, gap: Gap, centres: Centres, count: int, width: int) -> tuple[Tensor, Tensor]:
        """Some pieces of which the centres explain each row well: pairs of rows and pieces."""
        none = torch.arange(0)
        if not len(self.piece):
            return none, none
        level = self.levels[min(1, len(self.levels) - 1)]
        width = min(width, len(level.log_mass))
        node = torch.cat(
            [
                (level.log_mass - 0.5 * centres(rows, level).square()).topk(width, dim=1).indices
                for rows in torch.arange(count).split(max(1, _ENTRIES // len(level.log_mass)))
            ]
        ).flatten()
        row = torch.arange(count).repeat_interleave(width)
        if level is not self.levels[0]:
            child, parent = ragged(level.start[node.numpy()], level.length[node.numpy()])
            row, node = row[torch.as_tensor(parent)], torch.as_tensor(child)
        leaves = self.levels[0]
        keep = _best(row, leaves.log_mass[node] - 0.5 * gap(row, leaves, node)[1].square(), width)
        return row[keep], self.piece[node[keep]]


class _Base(NamedTuple):
    """Leaves and their corners, in the order of the tree."""

    feature: Tensor  # (B, H)
    image: Tensor  # (B, K)
    centre: Tensor  # (B, k)
    slope: Tensor  # (B, k, S)
    away: Tensor  # (C, k) corners about the centres of their leaves
    length: Tensor  # (C,) their lengths in all dimensions, or more
    owner: Tensor  # (C,) sorted
    size: Tensor  # (B,) to which images are rounded: that of T times that of h


def _join(
    base: _Base,
    masses: tuple[Tensor, Tensor, Tensor],
    of: Tensor,
    count: int,
    children: tuple[Array, Array],
    project: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Level:
    """Nodes that hold the leaves: `of (B,)` says which one each."""
    size = torch.bincount(of, minlength=count)
    node = of[base.owner]

    def mean(values: Tensor) -> Tensor:
        total = values.new_zeros(count, *values.shape[1:]).index_add(0, of, values)
        return total / size.view(-1, *[1] * (values.ndim - 1))

    def extreme(values: Tensor, owner: Tensor, kind: Literal["amax", "amin"]) -> Tensor:
        start = values.new_full((count, *values.shape[1:]), -torch.inf if kind == "amax" else torch.inf)
        return start.scatter_reduce(0, owner.view(-1, *[1] * (values.ndim - 1)).expand_as(values), values, kind)

    def largest(values: Tensor) -> Tensor:  # over the corners, with room for the rounding of all that it is made from
        return extreme(values + ROUNDING * rounded, node, "amax")

    image = mean(base.image)
    centre, beyond = project(image)
    basis = torch.linalg.qr(mean(base.slope)).Q
    off = base.centre[base.owner] + base.away - centre[node]
    along = (off[:, None, :] @ basis[node])[:, 0]
    across = torch.linalg.vector_norm(off - (basis[node] @ along[:, :, None])[:, :, 0], dim=1)
    log_mass, low, high = masses
    top = extreme(log_mass, of, "amax").clamp(min=torch.finfo(log_mass.dtype).min)  # of nodes without any mass, too
    total = torch.zeros_like(top).index_add(0, of, (log_mass - top[of]).exp())
    # in all dimensions: the centres from that of the node, and the corners from these
    rounded = base.size[base.owner] + base.length
    reach = torch.linalg.vector_norm(base.image - image[of], dim=1)[base.owner] + base.length
    return Level(
        mean(base.feature),
        centre,
        beyond,
        basis,
        largest(torch.linalg.vector_norm(along, dim=1)),
        largest(across),
        largest(reach),
        top + total.log(),
        extreme(low, of, "amin"),
        extreme(high, of, "amax"),
        *children,
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
    result: Tensor | None = directions[:_PRINCIPAL].mT.contiguous()
    return result


def _best(row: Tensor, value: Tensor, width: int) -> Tensor:
    """Indices of the `width` largest values of each row; `row` is sorted."""
    order = np.lexsort((-value.numpy(), row.numpy()))
    size = np.bincount(row.numpy())
    place = np.arange(len(order)) - (np.cumsum(size) - size)[row.numpy()]
    return torch.as_tensor(order[place < width])
