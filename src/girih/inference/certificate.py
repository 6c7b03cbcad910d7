r"""Which (row, piece) pairs of a two- or three-dimensional latent space matter, with a certificate.

A pair is left out only where an upper bound on its share of p(x) says that it may be. The bounds, from cheap to dear,
with `const` for all that only the row decides:

    slabs       const P(node) exp(-gap^2 / 2), for whole branches of a tree over the bounded pieces
    unbounded   const P(piece) exp(-min |y - f - J t|^2 / 2) over all t, for each unbounded piece, or as affine
    affine      exp(base) / det R, the mass of the Gaussian without truncation, or exp(base) volume / (2 pi)^(S/2)
    nearest     ... exp(-|w|^2 / 2) at the point w of the piece nearest to its centre

`base` holds the prior's part of the exponent, so it is never multiplied by a prior mass. What is dropped by a bound is
added up, and divided by what was kept it bounds the relative error of p(x). The proofs are in `docs/concepts.md`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from girih.errors import NonFiniteError
from girih.gaussian import prepared
from girih.gaussian.tables import sorted_in_rows
from girih.inference import bounded
from girih.inference.gaussians import Gaussians, Geometry, range_of
from girih.inference.model import Rows
from girih.inference.search import Search
from girih.inference.tree import ROUNDING, Level

_LOG_2PI = math.log(2.0 * math.pi)
_WORTH = 20.0  # nats
_BEAM = 4  # pieces of each row that give the first lower bound on p(x)
_FARTHEST = 1e75
_STAGES = 4.0  # the bounds by slabs, of unbounded pieces, affine and nearest share the tolerance


class Pairs(NamedTuple):
    """These are the pairs that matter, sorted by row."""

    row: Tensor  # (m,)
    piece: Tensor  # (m,)
    gaussian: Gaussians
    log_known: Tensor  # (n,) log of a lower bound on p(x)
    log_left_out: Tensor  # (n,) log of the bound on what was left out of p(x)
    raw_error: Tensor  # (m,) of raw masses, or more

    def joined(self, which: Tensor, others: Pairs) -> Pairs:
        """With the pairs of more rows, named `which` here and 0, 1, ... in the others."""
        row = torch.cat((self.row, which[others.row]))
        order = row.argsort(stable=True)

        def both(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.cat((mine, theirs))[order]

        a, b = self.gaussian, others.gaussian
        base, root, centre, log_volume = map(both, a[:4], b[:4])
        gaussian = Gaussians(base, root, centre, log_volume, a.shared)
        known, lost = self.log_known.clone(), self.log_left_out.clone()
        known[which], lost[which] = others.log_known, others.log_left_out
        piece, error = both(self.piece, others.piece), both(self.raw_error, others.raw_error)
        return Pairs(row[order], piece, gaussian, known, lost, error)

    @property
    def log_scale(self) -> Tensor:
        """Log of what a mass in w is multiplied by to give its part of p(x), `(m,)`."""
        return self.gaussian.base + self.gaussian.log_volume


def select_pairs(g: Geometry, rows: Rows) -> Pairs:
    """The pairs of these rows with the pieces that can matter to p(x)."""
    pieces, tol, count = g.pieces, g.model.tol, len(rows.x)
    size = float(torch.linalg.vector_norm(rows.y, torch.inf)) if count else 0.0
    if _FARTHEST < size < math.inf:  # what overflowed already is refused where it ends up in p(x)
        raise NonFiniteError(
            f"a row lies {size:.1e} noise deviations away, and the squares of its squared distance leave the range of "
            "numbers; rescale x, or check the noise"
        )
    if tol <= 0.0:
        row, piece = _every_pair(count, torch.arange(pieces.count, device=rows.y.device))
        nothing = rows.far2.new_full((count,), -torch.inf)
        gaussian = g.gaussians(rows, row, piece)
        return Pairs(row, piece, gaussian, nothing, nothing, g.raw_error(piece, gaussian))

    if rows.observed is None and prepared.serve(rows.y):
        return _compiled(g, rows)
    return _by_tables(g, rows)


def _compiled(g: Geometry, rows: Rows) -> Pairs:
    """Pairs of complete rows by compiled code, and of those of which it is not sure as of the others."""
    search, outer = g.recall(Search), unbounded_bounds(g, rows)
    found = search.find(g, rows, outer, (math.log(g.model.tol / _STAGES), ROUNDING, _WORTH, _BEAM))
    root, log_volume = g.maps.root[found.piece], g.log_volume[found.piece]
    gaussian = Gaussians(found.base, root, found.centre, log_volume, True)
    error = g.raw_error(found.piece, gaussian)
    pairs = Pairs(found.row, found.piece, gaussian, found.log_known, found.log_left_out, error)
    unsure = found.unsure.nonzero()[:, 0]
    return pairs.joined(unsure, _by_tables(g, rows.take(unsure))) if len(unsure) else pairs


def _by_tables(g: Geometry, rows: Rows) -> Pairs:
    """Pairs of rows by operations on tables of pairs."""
    pieces, tol, count = g.pieces, g.model.tol, len(rows.x)
    constant = rows.constant - 0.5 * rows.far2
    lost = _Lost(count)
    # a lower bound on p(x), from a few promising pieces
    row, piece = bounded.promising(g, rows, _BEAM)
    outer_bound = unbounded_bounds(g, rows)
    if len(g.unbounded):
        every = torch.arange(count, device=row.device)
        row, piece = torch.cat((row, every)), torch.cat((piece, g.unbounded[outer_bound.argmax(1)]))
    gaussian = g.gaussians(rows, row, piece)
    known = rows.far2.new_full((count,), -torch.inf)
    anchor = g.nearest(piece, gaussian)
    value = affine_bound(g, gaussian, piece) - 0.5 * anchor.square().sum(1)
    known = _raise(g, gaussian, row, piece, anchor, value, known)
    # a bound that is below this, and above by its rounding, is still small enough
    least = _lowered(known + math.log(tol / _STAGES) - math.log(pieces.count))

    row, piece, dropped_row, dropped = bounded.search(g, rows, _log_mass, least - constant)
    lost.add(dropped_row, dropped + constant[dropped_row])
    keep = ~(outer_bound < least[:, None])
    out_row, out = (~keep).nonzero(as_tuple=True)
    lost.add(out_row, outer_bound[out_row, out])
    in_row, inside = keep.nonzero(as_tuple=True)
    row, piece = torch.cat((row, in_row)), torch.cat((piece, g.unbounded[inside]))

    gaussian = g.gaussians(rows, row, piece)
    value = affine_bound(g, gaussian, piece)
    keep = ~(value < least[row])  # NaN stays, and is refused where it ends up in p(x)
    lost.add(row[~keep], value[~keep])
    row, piece, gaussian, value = row[keep], piece[keep], gaussian.take(keep), value[keep]

    anchor = g.nearest(piece, gaussian)
    value = value - 0.5 * anchor.square().sum(1)
    order = sorted_in_rows(row, value)
    row, piece, value = row[order], piece[order], value[order]
    gaussian, anchor = gaussian.take(order), anchor[order]
    # the piece with the best of these bounds is likely to hold much of p(x)
    best = _last_of_each_row(row)
    known = _raise(g, gaussian.take(best), row[best], piece[best], anchor[best], value[best], known)
    dropped = _least_of_each_row(row, value, _lowered(known + math.log(tol / _STAGES)))
    lost.add(row[dropped], value[dropped])
    row, piece, gaussian = row[~dropped], piece[~dropped], gaussian.take(~dropped)
    return Pairs(row, piece, gaussian, known, lost.log_total(), g.raw_error(piece, gaussian))


def _every_pair(count: int, piece: Tensor) -> tuple[Tensor, Tensor]:
    """Each of so many rows with each of these pieces."""
    return torch.arange(count, device=piece.device).repeat_interleave(len(piece)), piece.repeat(count)


def _log_mass(level: Level) -> Tensor:
    return level.log_mass


def unbounded_bounds(g: Geometry, rows: Rows) -> Tensor:
    """Upper bounds `(n, U)` on what each unbounded piece adds to log p(x).

    Either of `-log det R - |b - Q c|^2 / 2`, where the prior is in `b`, and `log P(piece) - distance^2 / 2`, where it
    is in the mass: the distance is that of y from the image of the whole affine map.
    """
    count, outer = len(rows.x), g.unbounded
    constant = (rows.constant - 0.5 * rows.far2).expand(count)[:, None]
    if not len(outer):
        return constant[:, :0]
    log_mass = g.pieces.log_mass[outer]
    if rows.observed is not None:
        row, piece = _every_pair(count, outer)
        pairs = g.gaussians(rows, row, piece)
        log_volume = pairs.log_volume
        distance2 = torch.zeros_like(log_volume)
        # elsewhere the first bound is smaller: |b - Q c| is at least the distance
        some = (log_mass.repeat(count) < log_volume).nonzero()[:, 0]
        distance2[some] = _distances2(g, rows, row[some], piece[some])
        whole = (pairs.base + log_volume).view(count, -1)
        return torch.minimum(whole, constant + log_mass - 0.5 * distance2.view(count, -1))
    start, basis, root = (part[outer] for part in g.maps)
    whole = -root.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * _off2(rows.y, start, basis)
    distance2 = _off2(rows.y, start[:, : rows.y.shape[1]], g.affine_range)
    return constant + torch.minimum(whole, log_mass - 0.5 * distance2)


def _off2(y: Tensor, start: Tensor, basis: Tensor) -> Tensor:
    """Squared distances `(n, U)` of rows `(y, 0)` from `start (U, M)` plus the span of `basis (U, M, s)`, or less.

    By matrix products, `|b|^2 - |Q^T b|^2` with room for its rounding.
    """
    count, K = y.shape
    inside = (y @ basis[:, :K].permute(1, 0, 2).flatten(1)).view(count, len(basis), -1)
    inside = inside - (basis * start[:, :, None]).sum(1)
    size = start.square().sum(1) + y.square().sum(1, keepdim=True)
    square = size - 2.0 * y @ start[:, :K].mT
    return (square - inside.square().sum(2) - ROUNDING * size).clamp(min=0.0)


def _distances2(g: Geometry, rows: Rows, row: Tensor, piece: Tensor) -> Tensor:
    """The same for the images of affine maps as incomplete rows see them, `(m,)`."""
    per = max(1, 2**20 // rows.reduced[0].numel())
    out = [rows.y[:0, 0]]
    for r, p in zip(row.split(per), piece.split(per), strict=True):
        image = rows.reduced[r] @ torch.cat((g.slope[p], g.model.cells.value[p, :, None]), 2)
        b, basis = rows.y[r] - image[:, :, -1], range_of(image[:, :, :-1])
        size = rows.y[r].square().sum(1) + image[:, :, -1].square().sum(1)
        off = b - (basis @ (b[:, None, :] @ basis).mT)[:, :, 0]
        out.append((off.square().sum(1) - ROUNDING * size).clamp(min=0.0))
    return torch.cat(out)


def affine_bound(g: Geometry, gaussian: Gaussians, piece: Tensor) -> Tensor:
    """Upper bounds `(m,)` on what pairs add to log p(x), from what is under the whole Gaussian or its peak."""
    flat = g.pieces.log_volume[piece] - 0.5 * g.pieces.dim * _LOG_2PI
    return gaussian.base + torch.minimum(gaussian.log_volume, flat)


def _least_of_each_row(row: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Mark the pairs, sorted by row and then by value, that add up to no more than allowed, in logarithms."""
    share = (value - allowed[row]).exp()  # infinite where a pair alone is too much
    share = share.clamp(max=2.0)
    total = share.cumsum(0)
    size = torch.bincount(row, minlength=len(allowed))
    first = (size.cumsum(0) - size).clamp(max=len(row) - 1)
    return total - (total[first] - share[first])[row] <= 1.0


def _raise(
    g: Geometry, gaussian: Gaussians, row: Tensor, piece: Tensor, anchor: Tensor, value: Tensor, known: Tensor
) -> Tensor:
    """Lower bounds on log p(x), from what is known and from what single pairs contribute, at most `value`.

    Jensen's inequality is as good as their masses but for some nats, and costs much less. Where it says nothing, as of
    corners at infinity, the mass itself is taken, for one pair of a row that can add much to what is known.
    """
    scale = gaussian.base + gaussian.log_volume
    least = scale + g.least_log_mass(piece, gaussian, anchor)
    known = known.scatter_reduce(0, row, _lowered(least), "amax")
    unknown = (torch.isneginf(least) & (value > known[row] + _WORTH)).nonzero()[:, 0]
    if not len(unknown):
        return known
    order = unknown[sorted_in_rows(row[unknown], value[unknown])]
    best = order[_last_of_each_row(row[order])]
    some = gaussian.take(best)
    shape, root = g.shape(some)
    exact = scale[best] + shape.log_masses(piece[best], root, some.centre)
    return known.scatter_reduce(0, row[best], _lowered(exact), "amax")


def _lowered(value: Tensor) -> Tensor:
    """Logarithms less what rounding may have added to the sums that they are."""
    return torch.minimum(value * (1.0 - ROUNDING), value * (1.0 + ROUNDING)) - ROUNDING


def _last_of_each_row(row: Tensor) -> Tensor:
    """Index of the last pair of each row; `row` is sorted."""
    return torch.cat((row.diff() > 0, row.new_ones(min(1, len(row)), dtype=torch.bool))).nonzero()[:, 0]


class _Lost:
    """The sum of the bounds of what was left out, in logarithms."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, row: Tensor, value: Tensor) -> None:
        self._parts.append((row, value))

    def log_total(self) -> Tensor:
        row, value = (torch.cat(part) for part in zip(*self._parts, strict=True))
        value = -_lowered(-value)
        top = value.new_full((self._count,), -torch.inf).scatter_reduce(0, row, value, "amax")
        top = torch.where(torch.isfinite(top), top, 0.0)
        return top + value.new_zeros(self._count).index_add(0, row, (value - top[row]).exp()).log()


def normalise(row: Tensor, log_joint: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`log sum exp` of the pairs of each row `(count,)`, and the share of each pair; shares add up to 1."""
    log_joint = log_joint.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    peak = log_joint.new_full((count,), -torch.inf).scatter_reduce(0, row, log_joint, "amax")
    weight = (log_joint - peak[row]).nan_to_num(-torch.inf).exp()  # -inf - -inf: nothing at all in the row
    total = weight.new_zeros(count).index_add(0, row, weight)
    return peak + total.log(), weight / total[row]
