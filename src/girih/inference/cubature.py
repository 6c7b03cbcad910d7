r"""Integrals of `p(x | z) p(z)` over the cells, where no closed form is known: adaptive cubature on simplices.

On a cell the outputs are affine in z, so `f(z) = log p(x, z)` is smooth there, and concave for most outputs and for
each part of a prior. A simplex with vertices v and centroid c is looked at through

    f(z) <= f(c) + f'(c)(z - c) <= max_v [f(c) + f'(c)(v - c)]                                       (concave f)

which bounds its integral from above, by that of the exponential of a plane; where f is not concave,
`k |eta(v) - eta(c)|^2 / 2` comes on top, k being the largest second derivative of the output. A plane above a simplex
is above its halves, too, and so is the mean of two planes: the smallest bound counts. Simplices whose bounds add up to
less than `tol` of p(x) are left out. The others are cut in half, across the edge along which f bends most (in the
metric `-f''(c)`), until f bends by no more than a few nats. So peaks are found, however narrow or skew they are, and
simplices end up of the size and shape of the posterior. They are integrated by a product of Gauss-Jacobi rules in
collapsed coordinates, twice: where rules of n and n - 1 nodes a dimension differ by too much, more nodes are taken, and
then the simplex is cut again. Of all simplices of a row those with the smallest differences are done first, as long as
they add up to a share of the part of 3e-8 of p(x) that is left. The sum of the differences is the estimate of the
error. It is one of the rules of n - 1 nodes; those of n are used, and are several times nearer.

With many outputs, f at many nodes is a polynomial of degree 8 in z through its values at a lattice: it bends by a few
nats on a simplex, to which each output adds little, so it is one to 1e-9 or so. That is checked at other nodes, and its
error counts as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from girih._devices import room
from girih.errors import NoClosedFormError
from girih.gaussian.quadrature import log_sum
from girih.gaussian.tables import slots, sorted_in_rows
from girih.inference.cubature_rows import ENTRIES, Likelihood, Nothing, OutputRows, Simplices, Space, joined
from girih.inference.model import Expected, Jets
from girih.inference.priors import Parts
from girih.inference.simplex_rules import both, interpolation, lattice, log_mean_exp, rule
from girih.networks import Trace
from girih.partition import Partition

# Nodes a dimension: of simplices that are small beside the posterior the first are enough, else those after them.
_NODES = {1: (7, 12, 20), 2: (3, 5, 8, 11), 3: (3, 5, 7, 9)}
# Simplices are cut until f bends by less than the square of this along each edge, times 1/2, and ...
_WIDTH = 5.0
_STEEP = 6.0  # ... is steeper than this times as much along none
_REACH, _FARTHEST = 15.0, 1e6  # deviations of the prior up to which is integrated, at first and at last
_LENIENT = 0.15
# Of p(x), for all simplices of a row, as the rules of n - 1 nodes have it; times |log p(x)|, from 1 to 30.
_ERROR = 3e-8
_ROUNDS = 400
# From so many outputs on, for each row that a simplex is looked at for, f is interpolated where rules need many nodes;
# the error of that is taken to be so many times as large as at the nodes of the first rule.
_MANY, _SAFE = 16, 10.0
_TURN = 0.03  # of the budget of errors that is left, in each turn
_TRIES = 20_000
_BEAM = 64  # of simplices, among points that differ by 1e-6 nats or less
_EPS = torch.finfo(torch.float64).eps


class Looks(NamedTuple):
    """What is known of simplices before they are integrated."""

    heights: Tensor  # (m, S + 1) of a plane above f, at the vertices
    guess: Tensor  # (m,) of the log of the integral, too small rather than too large
    first: Tensor  # (m,) the two ends of the edge to cut
    second: Tensor
    width: Tensor  # (m,) how much f bends along it


@dataclass(frozen=True)
class Integrals:
    """They are the simplices that p(x) is the sum of, each with the moments of z on it."""

    simplices: Simplices
    log_mass: Tensor  # (m,)
    mean: Tensor  # (m, S)
    covariance: Tensor  # (m, S, S)
    height: Tensor  # (m,) the mean of log p(x, z), of all parts of the prior
    level: Tensor  # (m,) of the rule
    log_p: Tensor  # (n,)
    log_left_out: Tensor  # (n,) a bound on what was left out
    log_error: Tensor  # (n,) an estimate of the error of what was not

    @cached_property
    def share(self) -> Tensor:
        """Of each simplex in the p(x) of its row, `(m,)`: they add up to 1, however large `|log p|` is."""
        row = self.simplices.row
        weight = (self.log_mass - self.log_p[row]).exp()
        return weight / torch.zeros_like(self.log_p).index_add_(0, row, weight)[row]

    def nodes(
        self, mesh: Mesh, likelihood: Likelihood, finer: float = 1, least: float = _EPS * 1e-3
    ) -> Iterator[tuple[Simplices, Tensor, Tensor]]:
        """Simplices, nodes in barycentric coordinates `(k, S + 1)`, their shares in the p(x) of the rows `(m, k)`.

        Args:
            mesh: the latent space.
            likelihood: of the rows.
            finer: with a rule so much finer than that which integrates p(x), as what is averaged may be less smooth.
            least: simplices are left out that hold less than this, over their number, of p(x).
        """
        S, row = self.mean.shape[1], self.simplices.row
        used = self.share * torch.bincount(row)[row] > least
        for level, nodes in enumerate(_NODES[S]):
            points, weight = (part.to(self.mean.device) for part in rule(S, nodes))
            here = used & ((self.level + finer).clamp(max=len(_NODES[S]) - 1) == level)
            some, shares = self.simplices.take(here), self.share[here]
            size = mesh.batch(len(weight), likelihood.outputs, weight.device)
            chunks = mesh.chunks(some, len(weight), likelihood.outputs) if len(some.row) else ()
            for chunk, part in zip(chunks, shares.split(size), strict=False):
                _, value = mesh.evaluate(likelihood, chunk, points)
                share = (value - value.amax(1, keepdim=True)).exp() * weight
                yield chunk, points, part[:, None] * share / share.sum(1, keepdim=True)


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

    def _halves(self, some: Simplices, first: Tensor, second: Tensor) -> Simplices:
        number, self._numbers = self._numbers, self._numbers + 2 * len(some.row)
        return some.halves(first, second, number)

    def simplices(self, reach: float = _REACH) -> tuple[Tensor, Tensor]:
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
        return Looks(value[:, None] + slope + lift, guess, *_longest(gram, slope))

    def _peak(self, likelihood: Likelihood, some: Simplices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`log p(x, z)` at centroids, a bound on it, and the edges to cut: with all parts of the prior."""
        value, slope, gram, lift = likelihood.centre(self, some)
        parts = self.parts
        w = torch.einsum("cij,mkcj->mcki", parts.white, some.corner[:, :, None] - parts.mean)
        middle = w.mean(2, keepdim=True)
        away = w - middle
        height = parts.constant - 0.5 * middle[:, :, 0].square().sum(2)  # (m, C)
        tangent = height[:, :, None] - (away @ middle.mT)[..., 0]  # (m, C, S + 1)
        top = value + (slope + lift + tangent.logsumexp(1)).amax(1)
        share = height.softmax(1)
        gram = gram + (share[:, :, None, None] * (away @ away.mT)).sum(1)
        first, second, _ = _longest(gram, slope + (share[:, :, None] * (tangent - height[:, :, None])).sum(1))
        return value + height.logsumexp(1), top, first, second

    def mode(self, likelihood: Likelihood) -> Tensor:
        """The z of highest `log p(x, z)` of each row, `(n, S)`: by branch and bound."""
        count, S = len(likelihood.highest), self.cells.origin.shape[1]
        best, place = likelihood.highest.new_full((count,), -torch.inf), self.cells.origin.new_zeros(count, S)
        reach, ceiling = _REACH, self.parts.constant.logsumexp(0)
        while True:
            some = self._start(torch.arange(count, device=best.device), reach, 1)
            while len(some.row):
                looks = [self._peak(likelihood, part) for part in self.chunks(some, S + 1, likelihood.width)]
                value, top, first, second = (torch.cat(part) for part in zip(*looks, strict=True))
                here = best.scatter_reduce(0, some.row, value, "amax")
                won = ((value == here[some.row]) & (value > best[some.row])).nonzero()[:, 0]
                place[some.row[won]], best = some.corner[won].mean(1), here
                open_ = (top > (best + 1e-12 * (1.0 + best.abs()))[some.row]).nonzero()[:, 0]
                open_ = open_[self._beam(some.row[open_], top[open_], best)]
                some = self._halves(some.take(open_), first[open_], second[open_])
            unknown = likelihood.highest + ceiling - 0.5 * reach**2 > best
            if torch.isfinite(self.parts.low).all() or not unknown.any() or reach > _FARTHEST:
                return place
            reach *= 2.0

    @staticmethod
    def _beam(row: Tensor, top: Tensor, best: Tensor) -> Tensor:
        """Which simplices are cut on: all, or the most promising of rows whose highest point is known but for 1e-6."""
        gap = torch.full_like(best, -torch.inf).scatter_reduce(0, row, top, "amax") - best
        order = sorted_in_rows(row, -top)
        _, place = slots(row[order], len(best))
        return order[(place < _BEAM) | (gap > 1e-6 * (1.0 + best.abs()))[row[order]]]

    def draw(self, likelihood: Likelihood, some: Simplices, which: Tensor, generator: torch.Generator | None) -> Tensor:
        """A draw of z from `p(x, z)` on each of the simplices `which (m,)`, `(m, S)`, by rejection: exact."""
        used, place = torch.unique(which, return_inverse=True)
        some, top = some.take(which), self.look(likelihood, some.take(used)).heights.amax(1)[place]
        out, left = torch.empty_like(some.corner[:, 0]), torch.arange(len(which), device=which.device)
        for _ in range(_TRIES):
            u = torch.empty(*some.corner[left].shape[:2], dtype=top.dtype, device=top.device)
            u = u.exponential_(generator=generator)
            level = torch.rand(len(left), dtype=top.dtype, device=top.device, generator=generator).log()
            taken = torch.empty_like(left, dtype=torch.bool)
            size = max(1, room(ENTRIES, left.device) // (u.shape[1] * likelihood.outputs))
            for part in torch.arange(len(left), device=left.device).split(size):
                share = (u[part] / u[part].sum(1, keepdim=True))[:, None]
                z, value = self.evaluate(likelihood, some.take(left[part]), share)
                taken[part] = level[part] <= value[:, 0] - top[left[part]]
                out[left[part]] = z[:, 0]
            left = left[~taken]
            if not len(left):
                return out
        raise NoClosedFormError(
            f"{len(left)} draws were rejected {_TRIES} times each; train or rescale the network so that its outputs "
            "change by less between neighbouring cells"
        )

    def expected_height(self, likelihood: Likelihood, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(x, z)]` `(n,)` of each row for its own `q = N(mean, factor factor^T)`, by cubature over q."""
        if torch.isfinite(self.parts.low).all():
            return torch.full_like(likelihood.highest, -torch.inf)  # any Gaussian has mass outside of the box
        out = torch.zeros_like(likelihood.highest)
        for some, z, q in self._over(likelihood, mean, factor):
            eta = likelihood.images(some.row, self.features(some.piece, z))
            out.index_add_(0, some.row, (q * (likelihood.value(some.row, eta) + self.parts.log_prob(z))).sum(1))
        return out

    def expected(self, rows: OutputRows, mean: Tensor, factor: Tensor) -> Expected:
        """`expected_height` and its derivatives in the Gaussians, for a prior of one part.

        They are the means of the slope of `log p(x, z)`, and of that times `u = factor^-1 (z - mean)`.
        """
        inverse, white = torch.linalg.inv(factor), self.parts.white[0]
        sums = torch.zeros_like(rows.highest), torch.zeros_like(mean), torch.zeros_like(factor)
        for some, z, q in self._over(rows, mean, factor):
            eta = rows.images(some.row, self.features(some.piece, z))
            height = rows.value(some.row, eta) + self.parts.log_prob(z)
            slope = rows.output.slope(rows.rows.take(some.row).between(), eta, rows.scale) @ rows.weight
            slope = slope @ self.cells.slope[some.piece] - (z - self.parts.mean[0]) @ (white.mT @ white)
            u = (z - mean[some.row][:, None]) @ inverse[some.row].mT
            slope = q[:, :, None] * slope
            for total, part in zip(sums, ((q * height).sum(1), slope.sum(1), slope.mT @ u), strict=True):
                total.index_add_(0, some.row, part)
        return Expected(sums[0] + rows.rows.constant, *sums[1:])

    def _over(self, likelihood: Likelihood, mean: Tensor, factor: Tensor) -> Iterator[tuple[Simplices, Tensor, Tensor]]:
        """Simplices, nodes and weights of averages over one Gaussian for each row."""
        S = mean.shape[1]
        constant = -factor.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * S * math.log(2.0 * math.pi)
        parts = self.parts._replace(constant=constant, mean=mean, white=torch.linalg.inv(factor))
        nothing, over = Nothing(likelihood.highest), Mesh(self.partition, self.cells, parts, True, self.cut)
        found = over.integrate(nothing, 1e-14)
        points, weight = (part.to(mean.device) for part in rule(S, _NODES[S][-1]))
        for some in self.chunks(found.simplices, len(weight), likelihood.outputs):
            z, value = over.evaluate(nothing, some, points)
            yield some, z, (value + some.log_volume[:, None]).exp() * weight

    def evaluate(self, likelihood: Likelihood, some: Simplices, barycentric: Tensor) -> tuple[Tensor, Tensor]:
        """Latents `(m, k, S)` and `log p(x, z)` of the simplices' parts of the prior `(m, k)` at points of theirs."""
        z, value = barycentric @ some.corner, likelihood.at(self, some, barycentric)
        return z, value + self.parts.constant[some.part, None] - 0.5 * self.white(some.part, z).square().sum(2)

    def integrate(self, likelihood: Likelihood, tol: float) -> Integrals:
        """The integrals of all rows, each with what was left out of it: at most the part `tol`, unless it says more."""
        found = self._refine(likelihood, *self._pieces(likelihood, tol, None))
        if tol > 0.0 and (found.log_left_out > found.log_p + math.log(tol)).any():
            # the guess by which some were left out was too high
            found = self._refine(likelihood, *self._pieces(likelihood, tol, found.log_p))
        return found

    def bracket(self, likelihood: Likelihood, tol: float, width: float, most: int) -> tuple[Tensor, Tensor]:
        """Bounds on the logs of the integrals, `(n,)` each, where f is concave: from planes and from vertices.

        A concave f is below its tangent planes, and above the linear interpolation of its values at vertices; the
        exponentials of both have closed integrals. Simplices between whose bounds there is much are cut until the
        bounds of a row are `width` apart, or simplices are more than `most`.
        """
        some, lost = self._pieces(likelihood, tol, None)
        found, count = self._between(likelihood, some, None), len(lost)
        while True:
            low = log_sum(found.below, some.row, count)
            high = torch.logaddexp(lost, log_sum(found.above, some.row, count))
            gap, many = _log_difference(high, low), torch.bincount(some.row, minlength=count)
            share = _log_difference(found.above, found.below)
            cut = ((high - low > width)[some.row]) & (share > (gap - (2.0 * many).log())[some.row])
            if not cut.any() or len(some.row) > most:
                return low, high
            first, second = found.first[cut], found.second[cut]
            halves = self._halves(some.take(cut), first, second)
            new = self._between(likelihood, halves, _halved(found.heights[cut], first, second))
            some = joined([some.take(~cut), halves])
            found = _Between(*(torch.cat((old[~cut], part)) for old, part in zip(found, new, strict=True)))

    def _between(self, likelihood: Likelihood, some: Simplices, heights: Tensor | None) -> _Between:
        """Bounds on integrals over simplices; heights are of a plane above f that is known, at the vertices."""
        looks, vertices = self.look(likelihood, some), torch.eye(some.corner.shape[1], dtype=some.corner.dtype)
        values = self._values(likelihood, some, vertices.to(some.corner.device))
        below, above = (some.log_volume + log_mean_exp(part) for part in (values, looks.heights))
        if heights is not None:
            above = torch.minimum(above, some.log_volume + log_mean_exp(heights))
        return _Between(below, above, looks.heights, looks.first, looks.second)

    def _pieces(self, likelihood: Likelihood, tol: float, known: Tensor | None) -> tuple[Simplices, Tensor]:
        """Simplices that hold all of p(x) but what was left out, and a bound on the log of that."""
        reach, allowed, S = _REACH, math.log(max(tol, _EPS)), self.cells.origin.shape[1]
        rows = torch.arange(len(likelihood.highest), device=likelihood.highest.device)
        lost, kept = torch.full_like(likelihood.highest, -torch.inf), []
        while True:
            some, part, log_p = self._subdivide(likelihood, rows, reach, tol, known)
            outside = likelihood.highest + self.parts.log_outside(reach)
            far = torch.zeros_like(lost, dtype=torch.bool)
            if reach < _FARTHEST:
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

    def _start(self, rows: Tensor, reach: float, parts: int | None = None) -> Simplices:
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
        some, heights = self._start(rows, reach), None
        ready: list[tuple[Simplices, Tensor, Tensor]] = []

        def without(some: Simplices, bound: Tensor) -> Tensor:
            """Those that are not small; what the others hold at most is noted."""
            nonlocal lost
            keep = ~self._small(some.row, bound, log_p, tol)
            lost = torch.logaddexp(lost, log_sum(bound[~keep], some.row[~keep], count))
            return keep

        for _ in range(_ROUNDS):
            if heights is not None:  # of the plane above the simplex that each is a half of
                keep = without(some, some.log_volume + _log_mean_bound(heights))
                some, heights = some.take(keep), heights[keep]
                if not len(some.row):
                    break
            looks = self.look(likelihood, some)
            if known is None:
                owner = torch.cat([*(part.row for part, *_ in ready), some.row])
                guess = torch.cat([*(guess for _, guess, _ in ready), looks.guess])
                log_p = torch.maximum(log_p, log_sum(guess, owner, count))
            bound = some.log_volume + _log_mean_bound(looks.heights)
            if heights is not None:
                bound = torch.minimum(bound, some.log_volume + _log_mean_bound(0.5 * (looks.heights + heights)))
            keep = without(some, bound)
            # where little of p(x) can be, little of it must be resolved
            room = 1.0 + _LENIENT * (log_p[some.row] - bound).clamp(min=0.0)
            done = keep & (looks.width <= _WIDTH**2 * room)
            ready.append((some.take(done), looks.guess[done], bound[done]))
            cut = keep & ~done
            if not cut.any():
                break
            first, second, own = looks.first[cut], looks.second[cut], looks.heights[cut]
            some, heights = self._halves(some.take(cut), first, second), _halved(own, first, second)
        some, bound = joined([part for part, *_ in ready]), torch.cat([bound for *_, bound in ready])
        return some.take(without(some, bound)), lost, log_p

    @staticmethod
    def _small(row: Tensor, bound: Tensor, log_p: Tensor, tol: float) -> Tensor:
        """Which simplices need not be looked at, `(m,)`."""
        many = torch.bincount(row, minlength=len(log_p)).to(log_p.dtype)
        return bound < (log_p + math.log(max(tol, 1e-300)) - (100.0 * many).log())[row]

    def _refine(self, likelihood: Likelihood, some: Simplices, lost: Tensor) -> Integrals:
        done: list[tuple[Tensor, ...]] = []
        kept: list[Simplices] = []
        count, nodes = len(lost), _NODES[some.corner.shape[2]]
        total = lost.new_full((count,), -torch.inf)
        error_total, level, known = total.clone(), 0, _Known.nothing(some)
        for turn in range(_ROUNDS):
            log_mass, log_error, mean, covariance, height, size = self._rule(likelihood, some, level, known)
            log_error = torch.logaddexp(log_error, known.added + log_mass)
            now = torch.logaddexp(total, log_sum(log_mass, some.row, count))
            budget = now + math.log(_ERROR) + now.abs().clamp(1.0, 30.0).log()  # log p(x) is wanted to a part of 1e-8
            fine = _afforded(some.row, log_error, budget, error_total)
            fine |= log_error <= log_mass + (100.0 * _EPS * (1.0 + size)).log()
            if turn == 60:
                fine[:] = True
            kept.append(some.take(fine))
            levels = torch.full_like(some.row[fine], level)
            done.append((log_mass[fine], mean[fine], covariance[fine], height[fine], levels))
            total = torch.logaddexp(total, log_sum(log_mass[fine], some.row[fine], count))
            error_total = torch.logaddexp(error_total, log_sum(log_error[fine], some.row[fine], count))
            if fine.all():
                break
            some, known = some.take(~fine), known.take(~fine)
            if level < len(nodes) - 1:
                if level == 0:
                    known = self._interpolated(likelihood, some, torch.maximum(log_mass, log_error)[~fine], budget)
                level += 1
                continue
            looks = self.look(likelihood, some)
            some = self._halves(some, looks.first, looks.second)
            known = _Known.nothing(some)
            level = level if len(nodes) == len(_NODES[1]) else 0
        simplices = joined(kept)
        order = simplices.row.argsort(stable=True)
        log_mass, mean, covariance, height, levels = (torch.cat(part)[order] for part in zip(*done, strict=True))
        return Integrals(simplices.take(order), log_mass, mean, covariance, height, levels, total, lost, error_total)

    def _interpolated(self, likelihood: Likelihood, some: Simplices, log_mass: Tensor, budget: Tensor) -> _Known:
        """What is known of f on simplices by polynomials through a lattice, where these are good enough.

        They are compared with f at the nodes of the first rule. Their error may add a twentieth of the budget.
        """
        S, shared = some.corner.shape[2], likelihood.width < likelihood.outputs
        each = len(torch.unique(some.node)) / len(some.row) if shared else 1.0
        if S == 1 or each * likelihood.outputs < _MANY:
            return _Known.nothing(some)
        first = rule(S, _NODES[S][0])[0]
        nodes, to_first = torch.cat((lattice(S), first)).to(log_mass.device), interpolation(S, _NODES[S][0])
        to_first = to_first[: len(first)].to(log_mass.device)
        values = self._values(likelihood, some, nodes)
        known, check = values.split([len(nodes) - len(first), len(first)], 1)
        log_error = (_SAFE * (known @ to_first.mT - check).abs().amax(1)).log()
        row = some.row
        share = budget - (20.0 * torch.bincount(row, minlength=len(budget))).log()
        return _Known(torch.where(log_error + log_mass <= share[row], log_error, torch.inf), known)

    def _values(self, likelihood: Likelihood, some: Simplices, nodes: Tensor) -> Tensor:
        """f at barycentric points, `(m, k)`."""
        order = some.node.argsort()  # rows that share a simplex next to each other
        parts = self.chunks(some.take(order), len(nodes), likelihood.width)
        found = torch.cat([self.evaluate(likelihood, chunk, nodes)[1] for chunk in parts])
        return torch.empty_like(found).index_copy_(0, order, found)

    def _rule(self, likelihood: Likelihood, some: Simplices, level: int, known: _Known) -> tuple[Tensor, ...]:
        S, n = some.corner.shape[2], _NODES[some.corner.shape[2]][level]
        points = both(S, n).to(some.corner.device)
        open_ = ~torch.isfinite(known.log_error)
        made: list[tuple[Tensor, ...]] = []
        order = torch.cat((open_.nonzero()[:, 0], (~open_).nonzero()[:, 0]))
        sorted_ = some.take(open_)
        by_node = sorted_.node.argsort()  # rows that share a simplex next to each other
        order[: len(by_node)] = order[: len(by_node)][by_node]
        for chunk in self.chunks(sorted_.take(by_node), len(points), likelihood.width) if len(by_node) else ():
            made.append(self._ruled(chunk, n, self.evaluate(likelihood, chunk, points)[1]))
        if len(by_node) < len(order):
            matrix = interpolation(S, n).to(points.device).mT
            size, rest = self.batch(len(points), S + 2, points.device), order[len(by_node) :]
            for index in rest.split(size):
                made.append(self._ruled(some.take(index), n, known.values[index] @ matrix))
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return tuple(torch.cat(f)[back] for f in zip(*made, strict=True))

    def _ruled(self, some: Simplices, nodes: int, value: Tensor) -> tuple[Tensor, ...]:
        S = some.corner.shape[2]
        (points, weight), (_, coarse_weight) = (
            tuple(part.to(some.corner.device) for part in rule(S, nodes - k)) for k in (0, 1)
        )
        z = points @ some.corner
        peak, volume = value.amax(1), some.log_volume
        f = (value - peak[:, None]).exp()
        fine, coarse = f[:, : len(weight)] * weight, f[:, len(weight) :] @ coarse_weight
        mass = fine.sum(1)
        share = fine / mass[:, None]
        own = value[:, : len(weight)]
        if len(self.parts.constant) > 1 and not self.paired:
            part = self.parts.constant[some.part, None] - 0.5 * self.white(some.part, z).square().sum(2)
            own = own - part + self.parts.log_prob(z)
        mean = (share[:, None] @ z)[:, 0]
        away = z - mean[:, None]
        covariance = (share[:, :, None] * away).mT @ away
        scale = peak + volume
        return (
            scale + mass.log(),
            scale + (mass - coarse).abs().log(),
            mean,
            covariance,
            (share * own).sum(1),
            value.abs().amax(1),
        )


class _Between(NamedTuple):
    """What is known of the integrals over simplices, and how to cut these."""

    below: Tensor  # (m,) a lower bound on the log of the integral
    above: Tensor  # (m,) an upper one
    heights: Tensor  # as of Looks
    first: Tensor
    second: Tensor


class _Known(NamedTuple):
    """What is known of f on simplices: its values at a lattice, and the log of the error of a polynomial through them.

    That is infinite where the values are not used.
    """

    log_error: Tensor  # (m,)
    values: Tensor  # (m, k)

    @classmethod
    def nothing(cls, some: Simplices) -> _Known:
        """Of simplices of which nothing is known."""
        like = some.corner[:, 0, 0]
        return cls(torch.full_like(like, torch.inf), like[:, None][:, :0])

    @property
    def added(self) -> Tensor:
        """The log of the error that using them adds, `(m,)`."""
        return torch.where(torch.isfinite(self.log_error), self.log_error, -torch.inf)

    def take(self, index: Tensor) -> _Known:
        """Some of them."""
        return _Known(self.log_error[index], self.values[index])


def _afforded(row: Tensor, log_error: Tensor, budget: Tensor, spent: Tensor) -> Tensor:
    """Which errors are let stand: the smallest of each row, that add up to a share of what is left of its budget."""
    left = (_TURN * -torch.expm1((spent - budget).clamp(max=0.0)))[row]
    share = (log_error - budget[row]).exp().clamp(max=1.0)
    order = sorted_in_rows(row, share)
    so_far, of = share[order].cumsum(0), row[order]
    size = torch.bincount(of, minlength=len(budget))
    before = torch.nn.functional.pad(so_far, (1, 0))[size.cumsum(0) - size]
    result = torch.empty_like(order, dtype=torch.bool)
    result[order] = so_far - before[of] <= left[order]
    return result


def _log_difference(more: Tensor, less: Tensor) -> Tensor:
    """`log(exp(more) - exp(less))`."""
    return more + torch.log(-torch.expm1((less - more).clamp(max=0.0)))


def _halved(heights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Numbers at the vertices of simplices, linear between them, for both halves of each: see `Simplices.halves`."""
    every = torch.arange(len(heights), device=heights.device)
    middle = 0.5 * (heights[every, first] + heights[every, second])
    lower, upper = heights.clone(), heights.clone()
    lower[every, second], upper[every, first] = middle, middle
    return torch.cat((lower, upper))


def _log_mean_bound(heights: Tensor) -> Tensor:
    r"""A bound on the log of the mean of `exp(f)` over simplices, `(m,)`, for heights at their vertices `(m, S + 1)`.

    With f below a convex function that has these heights, it is below their linear interpolation, so the mean is at
    most that of `exp(heights)` and, with d_j how far each is below the highest, j = 1 ... S from the lowest one,

        S! int exp(h_0 - sum_j l_j d_j) dl <= S! / (S - k)! exp(h_0) / (d_1 ... d_k)                 for any k,

    since the barycentric coordinates l_j of k vertices are between 0 and infinity.
    """
    top, S = heights.amax(1), heights.shape[1] - 1
    best = heights.logsumexp(1) - math.log(S + 1.0)
    below = (top[:, None] - heights).sort(1, descending=True).values[:, :S].log()
    for k in range(1, S + 1):
        bound = top + math.lgamma(S + 1.0) - math.lgamma(S - k + 1.0) - below[:, :k].sum(1)
        best = torch.minimum(best, bound)
    return best


def _longest(gram: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
