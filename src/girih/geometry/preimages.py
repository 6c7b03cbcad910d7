"""All latents that a generator with S <= 3 maps to a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import real
from girih.geometry.pieces import Rows
from girih.geometry.search import Search
from girih.geometry.shown import Shown
from girih.networks import Trace
from girih.partition import Partition

TOLERANCE = 1e-8
_FORWARD = 1 << 15
_SLACK = 2.0  # images that are so many times farther than the tolerance are looked at


@dataclass(frozen=True, repr=False)
class Preimages(Shown):
    """Pairs of a row of x and a latent that is mapped to it, sorted by row.

    Attributes:
        row: the row of x, `(K,)`.
        cell: the cell of the latent, `(K,)`.
        latent: `(K, S)`.
        degenerate: whether the cell is mapped to a set of smaller dimension, `(K,)`; then the latents that it has
            for the row are a line, a plane or a whole cell, and one of them is given.
    """

    row: Tensor
    cell: Tensor
    latent: Tensor
    degenerate: Tensor


def preimages(net: nn.Module | Trace | Partition, x: Any, tolerance: float = TOLERANCE) -> Preimages:
    r"""All z with `g(z) = x`, one for each cell at most.

    A tree over the images of the cells finds those that may hold x. The least-squares latent `A^+ (x - b)` of each is
    a candidate; it counts where the network maps it to x and the partition's domain holds it. Latents that agree to
    `tolerance (1 + |z|)` on neighbouring cells are one.

    Args:
        net: a partition, or any module with S <= 3 that `girih.trace` supports.
        x: `(N, D)`.
        tolerance: `|g(z) - x|` may be up to this multiple of `1 + |x|`.

    Raises:
        LatentDimensionError: S is larger than 3.
        ShapeError, NonFiniteError: x is not a table of finite numbers with D columns.
        ParameterError: the tolerance is not positive.

    Source:
        MAS, section 4.1, Propositions 3 and 4.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([2, 8, 2], activation="relu", seed=0)
        >>> x = net(torch.tensor([[0.3, -0.2]], dtype=torch.float64)).detach()
        >>> girih.geometry.preimages(net, x).latent  # the generator folds
        tensor([[ 0.3000, -0.2000],
                [ 0.4432, -0.1232]], dtype=torch.float64)
    """
    part = as_partition(net)
    x = as_rows(x, "x", part.trace.output_dim, "the output dimension D", device=part.trace.device).detach()
    tolerance = real(tolerance, "tolerance")
    return preimages_by(Search(part), x, tolerance)


def preimages_by(search: Search, x: Tensor, tolerance: float = TOLERANCE) -> Preimages:
    """`preimages` of checked rows by a search that is there."""
    parts = [_of_rows(search, x[some], some.start, tolerance) for some in search.batches(len(x))]
    return Preimages(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def as_partition(net: nn.Module | Trace | Partition) -> Partition:
    """A partition as it is, or that of a network over the whole latent space."""
    return net if isinstance(net, Partition) else Partition(net, progress=False)


def _of_rows(search: Search, x: Tensor, first: int, tolerance: float) -> tuple[Tensor, ...]:
    shapes, part = search.images, search.images.part
    room = tolerance * (1.0 + x.norm(dim=1))
    rows, reach = shapes.rows(x), (_SLACK * room).cpu()
    close = (rows.far <= reach).nonzero()[:, 0]
    rows, reach = Rows(rows.y[close], rows.far[close]), reach[close]
    row, piece = search.within(rows, (reach.square() - rows.far.square()).clamp(min=0.0).sqrt())
    whole = shapes.rank[piece] == part.latent_dim
    t = torch.empty(len(row), part.latent_dim, dtype=torch.float64)
    t[whole] = shapes.free(rows, row[whole], piece[whole])
    t[~whole] = shapes.nearest(rows, row[~whole], piece[~whole])[0]
    latent = (shapes.origin[piece] + t).to(x.device)
    row, cell, degenerate = (column.to(x.device) for column in (close[row], shapes.cell[piece], ~whole))
    hit = _misses(part.trace, latent, x, row) <= room[row]
    check = hit & ~degenerate
    hit[check] = part.locate(latent[check]).to(x.device) >= 0
    row, cell, latent, degenerate = row[hit], cell[hit], latent[hit], degenerate[hit]
    keep = _distinct(part, row, cell, latent, degenerate, tolerance)
    return row[keep] + first, cell[keep], latent[keep], degenerate[keep]


def _misses(traced: Trace, latent: Tensor, x: Tensor, row: Tensor) -> Tensor:
    """`|g(z) - x|` of pairs, in chunks."""
    out = torch.empty(len(latent), dtype=torch.float64, device=latent.device)
    for start in range(0, len(latent), _FORWARD):
        some = slice(start, start + _FORWARD)
        with torch.no_grad():
            out[some] = (traced(latent[some]) - x[row[some]]).norm(dim=1)
    return out


def _distinct(
    part: Partition, row: Tensor, cell: Tensor, latent: Tensor, degenerate: Tensor, tolerance: float
) -> Tensor:
    """One of each group of equal latents, that of the cell which holds it if there is one; sorted by row."""
    astray = (part.locate(latent).to(cell.device) != cell) & ~degenerate
    order = np.lexsort((cell.cpu().numpy(), astray.cpu().numpy(), row.cpu().numpy()))
    points, rows = latent.cpu().numpy()[order], row.cpu().numpy()[order]
    lines, cells = degenerate.cpu().numpy()[order], cell.cpu().numpy()[order]
    size = np.bincount(rows)
    start = np.cumsum(size) - size
    place = np.arange(len(order)) - start[rows]
    room = tolerance * (1.0 + np.abs(points).max(1, initial=0.0))
    keep = np.ones(len(order), bool)
    # later candidates of all rows at once against each earlier one that was kept
    for earlier in range(int(size.max(initial=0)) - 1):
        later = np.flatnonzero(place > earlier)
        first = start[rows[later]] + earlier
        near = np.abs(points[later] - points[first]).max(1) <= room[later]
        same = np.where(lines[later], lines[first] & (cells[later] == cells[first]), near & ~lines[first])
        keep[later[same & keep[first]]] = False
    return torch.as_tensor(order[keep], device=row.device)
