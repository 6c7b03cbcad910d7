r"""(row, piece) pairs seen from the highest points of their pieces, their *anchors*; modes are the best of them.

On a piece `log p(x, z) = base - |w|^2 / 2`, with w standard normal before truncation (`gaussians`). From
the anchor, the point w = tilt of the piece nearest to 0, it falls as `-tilt s - |s|^2 / 2`, `s = w - tilt`. Rows a
million deviations off have w of a million, and |w|^2 of 1e12: s, of the size of the posterior, and the heights of the
anchors, counted from the row's highest one, are all that is left of it here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference.certificate import centres_of, gap_from
from girih.inference.gaussians import Gaussians, Geometry
from girih.inference.model import Rows
from girih.inference.rounding import unit
from girih.inference.tree import Level

# Squared distances above this are compared by differences: the last digits of this one are worth 1e-13 nats.
DISTANT = 1e3
_SCALE = 100.0  # tilts are shortened to this to find an anchor
_BEAM = 8


class Anchors(NamedTuple):
    """Where pairs have their highest points, and how high these are.

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
    best = torch.zeros(count, dtype=torch.long)
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
        ratio = torch.where(apart <= unit(g.model) * size, 0.0, ratio)
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
    every = torch.arange(len(rows.x))
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
    gap = gap_from(g, rows)

    def bound(level: Level, node: Tensor, row: Tensor, gap2: Tensor) -> Tensor:
        away = torch.zeros_like(level.low[node]).clamp(level.low[node], level.high[node])
        return -0.5 * (gap2 + away.square().sum(1))

    def peaks(row: Tensor, piece: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, pieces and heights of the peaks of pairs that may be above what is known."""
        gaussian = g.gaussians(rows, row, piece)
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
