r"""Which bounded pieces can matter to rows: by the tree, or on a GPU, where steps cost more than sums, all at once.

`Flat` bounds whole tables of rows and pieces by matrix products. With the slab of a piece around c (`tree`),

    |y - c|^2 = |y|^2 + |c|^2 - 2 y c,    Q^T (y - c) = Q^T y - Q^T c,

which are rounded to their terms, not to their difference: the bounds have room for `ROUNDING (|y|^2 + |c|^2)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from girih._devices import room
from girih.inference.gaussians import Geometry
from girih.inference.model import Rows
from girih.inference.tree import ROUNDING, Centres, Gap, Level, Tree

# An upper bound on what each node of a level adds, where a row lies in its slab, in nats, `(m,)`.
Height = Callable[[Level], Tensor]

_ENTRIES = 2**20  # of a table of rows and pieces


def promising(g: Geometry, rows: Rows, width: int) -> tuple[Tensor, Tensor]:
    """Some bounded pieces of which the centres explain each row well: pairs of rows and pieces."""
    if not g.on_host:
        return g.recall(Flat).promising(rows, width)
    return g.tree.promising(gap_from(g, rows), centres_of(g, rows), len(rows.x), width)


def search(g: Geometry, rows: Rows, height: Height, least: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs of rows and bounded pieces whose bound, `height - gap^2 / 2`, is at least that of their row.

    Args:
        g: the pieces.
        rows: `(n,)`.
        height: of nodes.
        least: `(n,)`.

    Returns:
        Rows and pieces that were kept; rows and bounds of what was dropped.
    """
    if not g.on_host:
        return g.recall(Flat).search(rows, height, least)

    def bound(level: Level, node: Tensor, row: Tensor, gap2: Tensor) -> Tensor:
        return height(level)[node] - 0.5 * gap2

    return g.tree.search(gap_from(g, rows), len(rows.x), bound, least)


class Flat:
    """A flat search bounds every pair of a row and a bounded piece.

    Args:
        g: the pieces with the maps of a model on them.
    """

    def __init__(self, g: Geometry) -> None:
        self._tree = Tree(g.pieces, g.leaves(), g.model.head[1], flat=True)
        self._leaves = leaves = self._tree.levels[0]
        self._basis = leaves.basis.permute(2, 1, 0).contiguous()  # (S, k, B)
        self._at = (leaves.basis * leaves.centre[:, :, None]).sum(1).mT  # Q^T c, (S, B)
        self._size = leaves.centre.square().sum(1)

    def search(self, rows: Rows, height: Height, least: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the function of this name; what was dropped of a row comes as one sum."""
        top, (kept_row, kept, lost) = height(self._leaves), ([], [], [])
        for some in self._parts(rows):
            value = top - 0.5 * self._gaps(rows, some)
            keep = ~(value < least[some, None])
            row, leaf = keep.nonzero(as_tuple=True)
            kept_row.append(some[row])
            kept.append(self._tree.piece[leaf])
            lost.append(value.masked_fill_(keep, -torch.inf).logsumexp(1))
        every = torch.arange(len(rows.x), device=least.device)
        return torch.cat(kept_row), torch.cat(kept), every, torch.cat(lost)

    def promising(self, rows: Rows, width: int) -> tuple[Tensor, Tensor]:
        """As the function of this name."""
        width, best = min(width, len(self._tree.piece)), []
        for some in self._parts(rows):
            value = self._leaves.log_mass - 0.5 * self._distances2(rows, some)
            best.append(value.topk(width, dim=1).indices)
        row = torch.arange(len(rows.x), device=rows.y.device).repeat_interleave(width)
        return row, self._tree.piece[torch.cat(best).flatten()]

    def _parts(self, rows: Rows) -> Iterator[Tensor]:
        """Rows, as many at a time as there is room for."""
        every = torch.arange(len(rows.x), device=rows.y.device)
        entries = max(1, len(self._tree.piece)) * (1 if rows.observed is None else rows.y.shape[1])
        return iter(every.split(max(1, room(_ENTRIES, every.device) // entries)))

    def _distances2(self, rows: Rows, some: Tensor) -> Tensor:
        """Squared distances of rows from the centres of all leaves, about, `(n, B)`."""
        if rows.observed is not None:
            return self._incomplete(rows, some).square()
        main, beyond = self._tree.project(rows.y[some])
        return self._main2(main).add_((beyond[:, None] - self._leaves.beyond).square_())

    def _main2(self, main: Tensor) -> Tensor:
        size = main.square().sum(1)[:, None]
        return torch.addmm(self._size[None], main, self._leaves.centre.mT, alpha=-2.0).add_(size).clamp_(min=0.0)

    def _incomplete(self, rows: Rows, some: Tensor) -> Tensor:
        image = rows.reduced[some] @ self._leaves.feature.mT  # (n, K, B)
        result: Tensor = torch.linalg.vector_norm(image.sub_(rows.y[some][:, :, None]), dim=1)
        return result

    def _gaps(self, rows: Rows, some: Tensor) -> Tensor:
        """Lower bounds on the squared distances of rows from the slabs of all leaves, `(n, B)`; see `tree`."""
        leaves = self._leaves
        if rows.observed is not None:
            # distances between observed entries are at most those between all: the ball holds them too
            distance = self._incomplete(rows, some)
            square = (distance - leaves.radius).clamp_(min=0.0).square_()
            return square.sub_(distance.square_(), alpha=ROUNDING).clamp_(min=0.0)
        main, beyond = self._tree.project(rows.y[some])
        along = torch.zeros_like(self._size).expand(len(main), -1).clone()
        for basis, at in zip(self._basis, self._at, strict=True):
            along.add_(torch.addmm(-at[None], main, basis).square_())
        across = self._main2(main).sub_(along).clamp_(min=0.0)
        square = across.sqrt_().sub_(leaves.thick).clamp_(min=0.0).square_()
        square.add_(along.sqrt_().sub_(leaves.wide).clamp_(min=0.0).square_())
        outside = (beyond[:, None] - leaves.beyond).abs_().sub_(leaves.radius).clamp_(min=0.0)
        square.add_(outside.square_())
        size = main.square().sum(1) + beyond.square()
        rounded = (self._size + leaves.beyond.square())[None] + size[:, None]
        return square.sub_(rounded, alpha=ROUNDING).clamp_(min=0.0)


def gap_from(g: Geometry, rows: Rows) -> Gap:
    """Bounds on the distances of rows from nodes of the tree."""
    if rows.observed is None:
        return g.tree.gap(rows.y)

    def incomplete(row: Tensor, level: Level, node: Tensor) -> tuple[Tensor, Tensor]:
        # distances between observed entries are at most those between all: the ball holds them too
        per = max(1, 2**20 // rows.reduced[0].numel())
        parts = [
            torch.linalg.vector_norm(rows.y[r] - (rows.reduced[r] @ level.feature[k, :, None])[:, :, 0], dim=1)
            for r, k in zip(row.split(per), node.split(per), strict=True)
        ]
        distance = torch.cat(parts) if parts else rows.y.new_empty(0)
        square = (distance - level.radius[node]).clamp(min=0.0).square()
        return (square - ROUNDING * distance.square()).clamp(min=0.0), distance

    return incomplete


def centres_of(g: Geometry, rows: Rows) -> Centres:
    """Distances of rows from the centres of nodes."""
    if rows.observed is None:
        return g.tree.centres(rows.y)

    def incomplete(some: Tensor, level: Level) -> Tensor:
        image = (rows.reduced[some] @ level.feature.mT).mT  # (n, m, K)
        result: Tensor = torch.linalg.vector_norm(rows.y[some][:, None, :] - image, dim=2)
        return result

    return incomplete
