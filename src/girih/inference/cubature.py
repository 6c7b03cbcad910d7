r"""Integrals of `p(x | z) p(z)` over the cells, where no closed form is known: adaptive cubature on simplices.

The simplices are those of `cubature_mesh`, of the size and shape of the posteriors: `f(z) = log p(x, z)` is smooth on
each, and bends by a few nats. They are integrated by a product of Gauss-Jacobi rules in collapsed coordinates, twice:
where rules of n and n - 1 nodes a dimension differ by too much, more nodes are taken, and then the simplex is cut
again. Of all simplices of a row those with the smallest differences are done first, as long as they add up to a share
of the part of 3e-8 of p(x) that is left. The sum of the differences is the estimate of the error. It is one of the
rules of n - 1 nodes; those of n are used, and are several times nearer.

With many outputs, f at many nodes is a polynomial of degree 8 in z through its values at a lattice: each output adds
little to the bend of f, so it is one to 1e-9 or so. That is checked at other nodes, and its error counts as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.quadrature import log_sum
from girih.gaussian.tables import sorted_in_rows
from girih.inference.cubature_mesh import Mesh
from girih.inference.cubature_rows import Likelihood, Nothing, OutputRows, Simplices, joined
from girih.inference.model import Expected
from girih.inference.simplex_rules import both, interpolation, lattice, rule

# Nodes a dimension: of simplices that are small beside the posterior the first are enough, else those after them.
_NODES = {1: (7, 12, 20), 2: (3, 5, 8, 11), 3: (3, 5, 7, 9)}
# Of p(x), for all simplices of a row, as the rules of n - 1 nodes have it; times |log p(x)|, from 1 to 30.
_ERROR = 3e-8
_TURNS = 60  # after which errors are let stand as they are
# From so many outputs on, for each row that a simplex is looked at for, f is interpolated where rules need many nodes;
# the error of that is taken to be so many times as large as at the nodes of the first rule.
_MANY, _SAFE = 16, 10.0
_TURN = 0.03  # of the budget of errors that is left, in each turn
_EPS = torch.finfo(torch.float64).eps


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


def integrate(mesh: Mesh, likelihood: Likelihood, tol: float) -> Integrals:
    """The integrals of all rows, each with what was left out of it: at most the part `tol`, unless it says more."""
    found = _refine(mesh, likelihood, *mesh.relevant(likelihood, tol, None))
    if tol > 0.0 and (found.log_left_out > found.log_p + math.log(tol)).any():
        # the guess by which some were left out was too high
        found = _refine(mesh, likelihood, *mesh.relevant(likelihood, tol, found.log_p))
    return found


def _refine(mesh: Mesh, likelihood: Likelihood, some: Simplices, lost: Tensor) -> Integrals:
    done: list[tuple[Tensor, ...]] = []
    kept: list[Simplices] = []
    count, S = len(lost), some.corner.shape[2]
    total = lost.new_full((count,), -torch.inf)
    error_total, level, known = total.clone(), 0, _Known.nothing(some)
    for turn in range(_TURNS + 1):
        log_mass, log_error, mean, covariance, height, size = _rule(mesh, likelihood, some, level, known)
        log_error = torch.logaddexp(log_error, known.added + log_mass)
        now = torch.logaddexp(total, log_sum(log_mass, some.row, count))
        budget = now + math.log(_ERROR) + now.abs().clamp(1.0, 30.0).log()  # log p(x) is wanted to a part of 1e-8
        fine = _afforded(some.row, log_error, budget, error_total)
        fine |= log_error <= log_mass + (100.0 * _EPS * (1.0 + size)).log()
        if turn == _TURNS:
            fine[:] = True
        kept.append(some.take(fine))
        levels = torch.full_like(some.row[fine], level)
        done.append((log_mass[fine], mean[fine], covariance[fine], height[fine], levels))
        total = torch.logaddexp(total, log_sum(log_mass[fine], some.row[fine], count))
        error_total = torch.logaddexp(error_total, log_sum(log_error[fine], some.row[fine], count))
        if fine.all():
            break
        some, known = some.take(~fine), known.take(~fine)
        if level < len(_NODES[S]) - 1:
            if level == 0:
                known = _interpolated(mesh, likelihood, some, torch.maximum(log_mass, log_error)[~fine], budget)
            level += 1
            continue
        looks = mesh.look(likelihood, some)
        some = mesh.halves(some, looks.first, looks.second)
        known = _Known.nothing(some)
        level = level if S == 1 else 0  # on a line the most nodes are few
    simplices = joined(kept)
    order = simplices.row.argsort(stable=True)
    log_mass, mean, covariance, height, levels = (torch.cat(part)[order] for part in zip(*done, strict=True))
    return Integrals(simplices.take(order), log_mass, mean, covariance, height, levels, total, lost, error_total)


def _interpolated(mesh: Mesh, likelihood: Likelihood, some: Simplices, log_mass: Tensor, budget: Tensor) -> _Known:
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
    values = mesh.values(likelihood, some, nodes)
    known, check = values.split([len(nodes) - len(first), len(first)], 1)
    log_error = (_SAFE * (known @ to_first.mT - check).abs().amax(1)).log()
    row = some.row
    share = budget - (20.0 * torch.bincount(row, minlength=len(budget))).log()
    return _Known(torch.where(log_error + log_mass <= share[row], log_error, torch.inf), known)


def _rule(mesh: Mesh, likelihood: Likelihood, some: Simplices, level: int, known: _Known) -> tuple[Tensor, ...]:
    S, n = some.corner.shape[2], _NODES[some.corner.shape[2]][level]
    points = both(S, n).to(some.corner.device)
    open_ = ~torch.isfinite(known.log_error)
    made: list[tuple[Tensor, ...]] = []
    order = torch.cat((open_.nonzero()[:, 0], (~open_).nonzero()[:, 0]))
    sorted_ = some.take(open_)
    by_node = sorted_.node.argsort()  # rows that share a simplex next to each other
    order[: len(by_node)] = order[: len(by_node)][by_node]
    for chunk in mesh.chunks(sorted_.take(by_node), len(points), likelihood.width) if len(by_node) else ():
        made.append(_ruled(mesh, chunk, n, mesh.evaluate(likelihood, chunk, points)[1]))
    if len(by_node) < len(order):
        matrix = interpolation(S, n).to(points.device).mT
        size, rest = mesh.batch(len(points), S + 2, points.device), order[len(by_node) :]
        for index in rest.split(size):
            made.append(_ruled(mesh, some.take(index), n, known.values[index] @ matrix))
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return tuple(torch.cat(f)[back] for f in zip(*made, strict=True))


def _ruled(mesh: Mesh, some: Simplices, nodes: int, value: Tensor) -> tuple[Tensor, ...]:
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
    if len(mesh.parts.constant) > 1 and not mesh.paired:
        part = mesh.parts.constant[some.part, None] - 0.5 * mesh.white(some.part, z).square().sum(2)
        own = own - part + mesh.parts.log_prob(z)
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


def expected_height(mesh: Mesh, likelihood: Likelihood, mean: Tensor, factor: Tensor) -> Tensor:
    """`E_q[log p(x, z)]` `(n,)` of each row for its own `q = N(mean, factor factor^T)`, by cubature over q."""
    if torch.isfinite(mesh.parts.low).all():
        return torch.full_like(likelihood.highest, -torch.inf)  # any Gaussian has mass outside of the box
    out = torch.zeros_like(likelihood.highest)
    for some, z, q in _over(mesh, likelihood, mean, factor):
        eta = likelihood.images(some.row, mesh.features(some.piece, z))
        out.index_add_(0, some.row, (q * (likelihood.value(some.row, eta) + mesh.parts.log_prob(z))).sum(1))
    return out


def expected_with_slopes(mesh: Mesh, rows: OutputRows, mean: Tensor, factor: Tensor) -> Expected:
    """`expected_height` and its derivatives in the Gaussians, for a prior of one part.

    They are the means of the slope of `log p(x, z)`, and of that times `u = factor^-1 (z - mean)`.
    """
    inverse, white = torch.linalg.inv(factor), mesh.parts.white[0]
    sums = torch.zeros_like(rows.highest), torch.zeros_like(mean), torch.zeros_like(factor)
    for some, z, q in _over(mesh, rows, mean, factor):
        eta = rows.images(some.row, mesh.features(some.piece, z))
        height = rows.value(some.row, eta) + mesh.parts.log_prob(z)
        slope = rows.output.slope(rows.rows.take(some.row).between(), eta, rows.scale) @ rows.weight
        slope = slope @ mesh.cells.slope[some.piece] - (z - mesh.parts.mean[0]) @ (white.mT @ white)
        u = (z - mean[some.row][:, None]) @ inverse[some.row].mT
        slope = q[:, :, None] * slope
        for total, part in zip(sums, ((q * height).sum(1), slope.sum(1), slope.mT @ u), strict=True):
            total.index_add_(0, some.row, part)
    return Expected(sums[0] + rows.rows.constant, *sums[1:])


def _over(
    mesh: Mesh, likelihood: Likelihood, mean: Tensor, factor: Tensor
) -> Iterator[tuple[Simplices, Tensor, Tensor]]:
    """Simplices, nodes and weights of averages over one Gaussian for each row."""
    S = mean.shape[1]
    constant = -factor.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * S * math.log(2.0 * math.pi)
    parts = mesh.parts._replace(constant=constant, mean=mean, white=torch.linalg.inv(factor))
    nothing, over = Nothing(likelihood.highest), Mesh(mesh.partition, mesh.cells, parts, True, mesh.cut)
    found = integrate(over, nothing, 1e-14)
    points, weight = (part.to(mean.device) for part in rule(S, _NODES[S][-1]))
    for some in mesh.chunks(found.simplices, len(weight), likelihood.outputs):
        z, value = over.evaluate(nothing, some, points)
        yield some, z, (value + some.log_volume[:, None]).exp() * weight
