"""The mode of a posterior over two or three latents: the nearest point of the best piece, found exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.inference.anchors import find_anchors
from girih.inference.gaussians import pair_gaussians
from girih.inference.model import Model, Rows
from girih.inference.polytopes import centres_of, gap_from, geometry
from girih.inference.tree import Level

_BEAM = 8


def find_peaks(model: Model, rows: Rows) -> Tensor:
    """The u of highest posterior density of each row, `(n, S)`.

    On a piece `log p(x, u) = base - |w|^2 / 2`, so its peak is the point w nearest to 0. Whole branches of the tree
    are left out where `-gap^2 / 2 - |u|^2 / 2` is below a peak that is known.
    """
    g, count, rows = geometry(model), len(rows.x), rows.relative()
    gap = gap_from(g, rows)

    def bound(level: Level, node: Tensor, row: Tensor, gap2: Tensor) -> Tensor:
        away = torch.zeros_like(level.low[node]).clamp(level.low[node], level.high[node])
        return -0.5 * (gap2 + away.square().sum(1))

    def peaks(row: Tensor, piece: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, pieces and heights of the peaks of pairs that may be above what is known."""
        gaussian = pair_gaussians(model, rows, g.maps, g.slope, g.origin, row, piece)
        keep = gaussian.base >= _below(least)[row]
        row, piece, gaussian = row[keep], piece[keep], gaussian.take(keep)
        return row, piece, gaussian.base - 0.5 * g.nearest(piece, gaussian).square().sum(1)

    least = rows.y.new_full((count,), -torch.inf)
    found = [peaks(*g.tree.promising(gap, centres_of(g, rows), count, _BEAM), least)]
    least = least.scatter_reduce(0, found[0][0], found[0][2], "amax")
    outer = torch.arange(count).repeat_interleave(len(g.unbounded))
    found.append(peaks(outer, g.unbounded.repeat(count), least))
    least = least.scatter_reduce(0, found[1][0], found[1][2], "amax")
    row, piece, _, _ = g.tree.search(gap, count, bound, _below(least))
    found.append(peaks(row, piece, least))
    row, piece, height = (torch.cat(parts) for parts in zip(*found, strict=True))
    least = least.scatter_reduce(0, row, height, "amax")
    # those that rounding cannot tell apart are compared once more, by differences
    close = height >= _below(least)[row]
    row, piece = row[close], piece[close]
    gaussian = pair_gaussians(model, rows, g.maps, g.slope, g.origin, row, piece)
    anchors = find_anchors(model, rows, row, piece, gaussian)
    order = anchors.log_peak.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    best = order[torch.cat((row.new_ones(1, dtype=torch.bool), row[order].diff() > 0))]
    t = torch.linalg.solve_triangular(gaussian.root[best], anchors.place[best, :, None], upper=True)[:, :, 0]
    return g.origin[piece[best]] + t


def _below(height: Tensor) -> Tensor:
    """Heights of which rounding cannot say that they are less."""
    return height - 1e-12 * (1.0 + height.abs())
