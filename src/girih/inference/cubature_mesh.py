r"""The latent space as a mesh of simplices, which are cut in half until they are small beside the posteriors.

On a cell the outputs are affine in z, so `f(z) = log p(x, z)` is smooth there, and concave for most outputs and for
each part of a prior. A simplex with vertices v and centroid c is looked at through

    f(z) <= f(c) + f'(c)(z - c) <= max_v [f(c) + f'(c)(v - c)]                                       (concave f)

which bounds its integral from above, by that of the exponential of a plane; where f is not concave,
`k |eta(v) - eta(c)|^2 / 2` comes on top, k being the largest second derivative of the output. A plane above a simplex
is above its halves, too, and so is the mean of two planes: the smallest bound counts. Simplices whose bounds add up to
less than `tol` of p(x) are left out. The others are cut in half, across the edge along which f bends most (in the
metric `-f''(c)`), until f bends by no more than a few nats. So peaks are found, however narrow or skew they are, and
simplices end up of the size and shape of the posterior.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from girih.errors import NoClosedFormError
from girih.gaussian.quadrature import log_sum
from girih.inference.cubature_rows import Likelihood, Simplices, Space, halved, joined
from girih.inference.model import Jets
from girih.inference.priors import Parts
from girih.inference.simplex_rules import log_mean_bound
from girih.networks import Trace
from girih.partition import Partition

# Simplices are cut until f bends by less than the square of this along each edge, times 1/2, and ...
_WIDTH = 5.0
_STEEP = 6.0  # ... is steeper than this times as much along none
REACH, FARTHEST = 15.0, 1e6  # deviations of the prior up to which is integrated, at first and at last
_LENIENT = 0.15
_ROUNDS = 400
_EPS = torch.finfo(torch.float64).eps


class Looks(NamedTuple):
    """What is known of simplices before they are integrated."""

    heights: Tensor  # (m, S + 1) of a plane above f, at the vertices
    guess: Tensor  # (m,) of the log of the integral, too small rather than too large
    first: Tensor  # (m,) the two ends of the edge to cut
    second: Tensor
    width: Tensor  # (m,) how much f bends along it


class Mesh(Space):
    """The latent space as simplices that are parts of pieces on which the features are affine.

    Args:
        partition: of the box of the prior, or of the whole latent space.
        cells: its pieces, with the features on them.
        parts: of the prior; with `paired`, of as many Gaussians as there are rows, one for each.
        paired: see `parts`.
        cut: a generator whose cells are parts of those of the partition, where its pieces shall end too.
    """

    def __init__(
        self, partition: Partition, cells: Jets, parts: Parts, paired: bool = False, cut: Trace | None = None
    ) -> None:
        super().__init__(cells)
        self.partition, self.parts, self.paired, self.cut = partition, parts, paired, cut
        self._boxes: dict[float, tuple[Tensor, Tensor, int]] = {}
        self._numbers = 0

    def halves(self, some: Simplices, first: Tensor, second: Tensor) -> Simplices:
        """See `Simplices.halves`: with numbers that no others of this mesh have."""
        number, self._numbers = self._numbers, self._numbers + 2 * len(some.row)
        return some.halves(first, second, number)

    def simplices(self, reach: float = REACH) -> tuple[Tensor, Tensor]:
        """Those of the box of the prior, or of one up to so many deviations: `(M, S + 1, S)` and their pieces."""
        return self._box(reach)[:2]

    def _box(self, reach: float) -> tuple[Tensor, Tensor, int]:
        """The same, and the number of the first one."""
        parts, device = self.parts, self.cells.origin.device
        bounded = bool(torch.isfinite(parts.low).all())
        reach = 0.0 if bounded else reach
        if reach not in self._boxes:
            if bounded and self.cut is None:
                corner, piece = self.partition.cells.simplices()
            else:
                low, high = (end.cpu() for end in parts.box(reach))
                ends = (float(low), float(high)) if len(low) == 1 else (low, high)
                box = Partition(self.cut or self.partition.trace, domain=ends, progress=False)
                corner, of_box = box.cells.simplices()
                whole = self.partition.piece_patterns
                piece = _same_pattern(whole, box.piece_patterns[:, : whole.shape[1]])[of_box]
            self._boxes[reach] = corner.to(device), piece.to(device), self._numbers
            self._numbers += len(piece)
        return self._boxes[reach]

    def white(self, part: Tensor, z: Tensor) -> Tensor:
        """`V (z - m)` of latents `(m, k, S)`."""
        white: Tensor = (z - self.parts.mean[part][:, None]) @ self.parts.white[part].mT
        return white

    def look(self, likelihood: Likelihood, some: Simplices) -> Looks:
        """Bounds and sizes of simplices."""
        order = some.node.argsort()
        parts = self.chunks(some.take(order), some.corner.shape[1], likelihood.width)
        found = [self._look(likelihood, chunk) for chunk in parts]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return Looks(*(torch.cat(fields)[back] for fields in zip(*found, strict=True)))

    def _look(self, likelihood: Likelihood, some: Simplices) -> Looks:
        value, slope, gram, lift = likelihood.centre(self, some)
        w = self.white(some.part, some.corner)
        middle = w.mean(1)
        away = w - middle[:, None]
        slope = slope - (away @ middle[:, :, None])[:, :, 0]
        gram = gram + away @ away.mT
        value = value + self.parts.constant[some.part] - 0.5 * middle.square().sum(1)
        guess = some.log_volume + value - 0.5 * gram.diagonal(dim1=1, dim2=2).mean(1)
        return Looks(value[:, None] + slope + lift, guess, *longest_edge(gram, slope))

    def evaluate(self, likelihood: Likelihood, some: Simplices, barycentric: Tensor) -> tuple[Tensor, Tensor]:
        """Latents `(m, k, S)` and `log p(x, z)` of the simplices' parts of the prior `(m, k)` at points of theirs."""
        z, value = barycentric @ some.corner, likelihood.at(self, some, barycentric)
        return z, value + self.parts.constant[some.part, None] - 0.5 * self.white(some.part, z).square().sum(2)

    def values(self, likelihood: Likelihood, some: Simplices, nodes: Tensor) -> Tensor:
        """f at barycentric points, `(m, k)`."""
        order = some.node.argsort()  # rows that share a simplex next to each other
        parts = self.chunks(some.take(order), len(nodes), likelihood.width)
        found = torch.cat([self.evaluate(likelihood, chunk, nodes)[1] for chunk in parts])
        return torch.empty_like(found).index_copy_(0, order, found)

    def relevant(self, likelihood: Likelihood, tol: float, known: Tensor | None) -> tuple[Simplices, Tensor]:
        """Simplices that hold all of p(x) but what was left out, and a bound on the log of that."""
        reach, allowed, S = REACH, math.log(max(tol, _EPS)), self.cells.origin.shape[1]
        rows = torch.arange(len(likelihood.highest), device=likelihood.highest.device)
        lost, kept = torch.full_like(likelihood.highest, -torch.inf), []
        while True:
            some, part, log_p = self._subdivide(likelihood, rows, reach, tol, known)
            outside = likelihood.highest + self.parts.log_outside(reach)
            far = torch.zeros_like(lost, dtype=torch.bool)
            if reach < FARTHEST:
                far[rows] = (outside > log_p + allowed)[rows]
            kept.append(some.take(~far[some.row]))
            inside = rows[~far[rows]]
            lost[inside] = torch.logaddexp(part, outside)[inside]
            rows = rows[far[rows]]
            if not len(rows):
                return joined(kept), lost
            # a box that is large for some rows costs others digits; -log of the mass outside is more than reach^2 / 2
            need = float((likelihood.highest - log_p)[rows].max()) - allowed + math.log(2.0 * S)
            reach *= 2.0 ** max(1, math.ceil(math.log2(math.sqrt(2.0 * need) / reach)))

    def start(self, rows: Tensor, reach: float, parts: int | None = None) -> Simplices:
        """All simplices for each of the rows and each part of the prior, or for one part only."""
        corner, piece, first = self._box(reach)
        C, M = 1 if self.paired else parts or len(self.parts.constant), len(piece)
        index = torch.arange(len(rows) * C * M, device=corner.device)
        which, row = index % M, rows[index // (C * M)]
        return Simplices(row, piece[which], row if self.paired else index // M % C, first + which, corner[which])

    def _subdivide(
        self, likelihood: Likelihood, rows: Tensor, reach: float, tol: float, known: Tensor | None
    ) -> tuple[Simplices, Tensor, Tensor]:
        """Simplices that are small enough, the log of what was left out, and a guess of `log p(x)`."""
        count = len(likelihood.highest)
        lost = likelihood.highest.new_full((count,), -torch.inf)
        log_p = lost.clone() if known is None else known
        some, heights = self.start(rows, reach), None
        ready: list[tuple[Simplices, Tensor, Tensor]] = []

        def without(some: Simplices, bound: Tensor) -> Tensor:
            """Those that are not small; what the others hold at most is noted."""
            nonlocal lost
            keep = ~self._small(some.row, bound, log_p, tol)
            lost = torch.logaddexp(lost, log_sum(bound[~keep], some.row[~keep], count))
            return keep

        for _ in range(_ROUNDS):
            if heights is not None:  # of the plane above the simplex that each is a half of
                keep = without(some, some.log_volume + log_mean_bound(heights))
                some, heights = some.take(keep), heights[keep]
                if not len(some.row):
                    break
            looks = self.look(likelihood, some)
            if known is None:
                owner = torch.cat([*(part.row for part, *_ in ready), some.row])
                guess = torch.cat([*(guess for _, guess, _ in ready), looks.guess])
                log_p = torch.maximum(log_p, log_sum(guess, owner, count))
            bound = some.log_volume + log_mean_bound(looks.heights)
            if heights is not None:
                bound = torch.minimum(bound, some.log_volume + log_mean_bound(0.5 * (looks.heights + heights)))
            keep = without(some, bound)
            # where little of p(x) can be, little of it must be resolved
            room = 1.0 + _LENIENT * (log_p[some.row] - bound).clamp(min=0.0)
            done = keep & (looks.width <= _WIDTH**2 * room)
            ready.append((some.take(done), looks.guess[done], bound[done]))
            cut = keep & ~done
            if not cut.any():
                break
            first, second, own = looks.first[cut], looks.second[cut], looks.heights[cut]
            some, heights = self.halves(some.take(cut), first, second), halved(own, first, second)
        else:
            raise NoClosedFormError(
                f"log p(x, z) still bends by more than a few nats on {len(some.row)} simplices that were cut {_ROUNDS} "
                "times; train or rescale the network so that its outputs change by less between neighbouring cells"
            )
        some, bound = joined([part for part, *_ in ready]), torch.cat([bound for *_, bound in ready])
        return some.take(without(some, bound)), lost, log_p

    @staticmethod
    def _small(row: Tensor, bound: Tensor, log_p: Tensor, tol: float) -> Tensor:
        """Which simplices need not be looked at, `(m,)`."""
        many = torch.bincount(row, minlength=len(log_p)).to(log_p.dtype)
        return bound < (log_p + math.log(max(tol, 1e-300)) - (100.0 * many).log())[row]


def longest_edge(gram: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The vertices of the edge along which f bends most, and by how much, `(m,)` each."""
    first, second = torch.triu_indices(gram.shape[1], gram.shape[1], 1, device=gram.device)
    bend = gram.diagonal(dim1=1, dim2=2)
    square = bend[:, first] + bend[:, second] - 2.0 * gram[:, first, second]
    steep = ((slope[:, first] - slope[:, second]) / _STEEP).square()
    width, edge = (square + steep).max(1)
    most, shared = square.max(1)  # the same for all rows: where it matters, rows share their simplices
    edge = torch.where(most > 1.0, shared, edge)
    return first[edge], second[edge], width


def _same_pattern(whole: Tensor, some: Tensor) -> Tensor:
    """For each of some patterns, a row of `whole` that holds it: the map on its piece is the same."""
    if not whole.shape[1]:
        return torch.zeros(len(some), dtype=torch.long, device=some.device)
    _, code = torch.unique(torch.cat((whole, some)), dim=0, return_inverse=True)
    place = code.new_full((int(code.max()) + 1,), -1)
    place[code[: len(whole)]] = torch.arange(len(whole), device=code.device)
    found = place[code[len(whole) :]]
    assert bool((found >= 0).all()), "the pieces of a box are those of the whole space"
    result: Tensor = found
    return result
