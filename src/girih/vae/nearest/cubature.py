r"""Integrals over a box of the latent space, cell by cell, with simplices that are cut until two rules agree.

For each row, `log p(x) = log int p(z) N(x; g(z), noise) dz`, and for each of several densities q its total and
`E_q[log N(x; g(z), noise)]`. On a cell all of them are smooth. The estimate of a simplex is the sum over its two
halves, and the error that is stated is the sum of what halving changed, which is far above that of the halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from scipy.spatial import Delaunay
from torch import Tensor

from girih.inference import DGN
from girih.inference.model import Model, Rows, reduce_complete
from girih.partition import Partition

_NODES = {1: 10, 2: 6, 3: 4}
_FLAT = 1e-14  # volumes of slivers between points on a sphere, which are rounding


def simplices_of(partition: Partition) -> tuple[Tensor, Tensor]:
    """The cells of a bounded partition cut into simplices: vertices `(P, S + 1, S)` and cells `(P,)`.

    Example:
        >>> import girih
        >>> from girih.vae.nearest.cubature import simplices_of, volumes
        >>> part = girih.Partition(girih.mlp([2, 8, 2], seed=0), domain=(-1.0, 1.0))
        >>> round(volumes(simplices_of(part)[0]).sum().item(), 9)
        4.0
    """
    if partition.latent_dim == 1:
        corners = torch.stack(partition.bounds, 1)[:, :, None]
        return corners, torch.arange(len(corners))
    parts, owner = [], []
    for cell in range(len(partition)):
        points = partition.vertices(cell)
        if partition.latent_dim == 2:
            index = torch.tensor([(0, k, k + 1) for k in range(1, len(points) - 1)]).reshape(-1, 3)
        else:
            index = torch.as_tensor(Delaunay(points.numpy()).simplices.astype(np.int64))
        parts.append(points[index])
        owner.append(torch.full((len(index),), cell))
    corners, cells = torch.cat(parts), torch.cat(owner)
    kept = volumes(corners) > _FLAT
    return corners[kept], cells[kept]


def volumes(corners: Tensor) -> Tensor:
    """Lengths, areas or volumes of simplices `(m, S + 1, S)`, `(m,)`."""
    S = corners.shape[2]
    result: Tensor = torch.linalg.det(corners[:, 1:] - corners[:, :1]).abs() / math.factorial(S)
    return result


def bisected(corners: Tensor) -> Tensor:
    """The two halves of each simplex, cut across its longest edge: `(2, m, S + 1, S)`."""
    m, count = corners.shape[:2]
    pairs = torch.combinations(torch.arange(count), 2)
    longest = pairs[(corners[:, pairs[:, 0]] - corners[:, pairs[:, 1]]).norm(dim=2).argmax(1)]
    row = torch.arange(m)
    middle = 0.5 * (corners[row, longest[:, 0]] + corners[row, longest[:, 1]])
    halves = corners.expand(2, *corners.shape).clone()
    halves[0, row, longest[:, 0]] = middle
    halves[1, row, longest[:, 1]] = middle
    return halves


@cache
def rule(S: int) -> tuple[Tensor, Tensor]:
    """Barycentric nodes `(Q, S + 1)` and weights `(Q,)` that sum to 1, by a collapsed Gauss-Legendre product.

    Source:
        Stroud, Approximate calculation of multiple integrals (1971), conical products.
    """
    x, w = np.polynomial.legendre.leggauss(_NODES[S])
    x, w = 0.5 * (1.0 + x), 0.5 * w
    grid = np.stack(np.meshgrid(*[x] * S, indexing="ij"), -1).reshape(-1, S)
    weight = np.stack(np.meshgrid(*[w] * S, indexing="ij"), -1).reshape(-1, S).prod(1) * math.factorial(S)
    left, nodes = np.ones(len(grid)), []
    for s in range(S):
        weight = weight * left ** (1 if s else 0)  # each collapsed direction scales those that follow it
        nodes.append(left * grid[:, s])
        left = left * (1.0 - grid[:, s])
    return torch.as_tensor(np.stack((left, *nodes), 1)), torch.as_tensor(weight)


# Latents `(m, Q, S)` and their rows `(m,)` to log-densities `(m, Q)`.
LogDensity: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_ROUNDS = 60
_ENTRIES = 2**22
_UNSEEN = 6.0  # nats between the nodes of a simplex up to which its peak cannot hide between them


class Box(NamedTuple):
    """A `Box` holds what the integrals of all rows share."""

    model: Model
    corners: Tensor  # (P, S + 1, S)
    cell: Tensor  # (P,)
    origin: Tensor  # (R, S)
    start: Tensor  # (R, K): the whitened image of the origin of each cell
    slope: Tensor  # (R, K, S)


class Integrals(NamedTuple):
    """`Integrals` are those of each row, in nats, under K densities."""

    log_evidence: Tensor  # (N,)
    evidence_error: Tensor  # (N,) of log_evidence
    log_likelihood: Tensor  # (N, K) E_q[log N(x; g(z), noise)]
    likelihood_error: Tensor  # (N, K)


def box_of(dgn: DGN) -> Box:
    """The cells of a generator inside of [-1, 1]^S as simplices, with the maps on them."""
    partition = Partition(dgn.trace, domain=(-1.0, 1.0), progress=False)
    model = dgn.model(partition)
    with torch.no_grad():
        jet = dgn.trace.hidden_jet(partition.patterns, partition.origins)
    reduced = model.head[1]
    corners, cell = simplices_of(partition)
    return Box(model, corners, cell, partition.origins, jet.value @ reduced.mT, reduced @ jet.slope)


@dataclass
class _Leaves:
    """Simplices of rows, and the integrals over them."""

    row: Tensor  # (m,)
    cell: Tensor  # (m,)
    corners: Tensor  # (m, S + 1, S)
    log_evidence: Tensor  # (m,)
    peak: Tensor  # (m, 1 + K) the largest log-density at a node, of p(x, z) and of each q
    low: Tensor  # (m, 1 + K) the smallest
    mass: Tensor  # (m, K)
    energy: Tensor  # (m, K) of q times the log-likelihood, less a reference

    def take(self, index: Tensor) -> _Leaves:
        return _Leaves(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class _Integrand:
    """This is integrated for each row: p(x, z), the densities q, and the log-likelihood under each q."""

    box: Box
    rows: Rows
    log_prior: LogDensity
    log_q: list[LogDensity]
    reference: Tensor  # (N,) log-likelihoods near to their means, which are subtracted

    def over(self, row: Tensor, cell: Tensor, corners: Tensor) -> _Leaves:
        """The integrals over simplices `(m, S + 1, S)` of cells, each for a row, by one application of the rule."""
        entries = len(rule(corners.shape[2])[1]) * (4 + self.box.start.shape[1])
        parts = [
            self._over(row[i], cell[i], corners[i]) for i in torch.arange(len(row)).split(max(1, _ENTRIES // entries))
        ]
        return _Leaves(*(torch.cat([getattr(p, name) for p in parts]) for name in _Leaves.__dataclass_fields__))

    def _over(self, row: Tensor, cell: Tensor, corners: Tensor) -> _Leaves:
        box, rows = self.box, self.rows
        nodes, weight = rule(corners.shape[2])
        z = nodes @ corners  # (m, Q, S)
        image = (z - box.origin[cell, None]) @ box.slope[cell].mT + box.start[cell, None]  # (m, Q, K)
        energy = rows.far2[row, None] + (rows.y[row, None] - image).square().sum(2)
        log_likelihood = rows.constant - 0.5 * energy
        joint = log_likelihood + self.log_prior(z, row)
        log_volume = volumes(corners).log()
        densities = torch.stack([joint, *(q(z, row) for q in self.log_q)], 2)
        share = volumes(corners)[:, None, None] * weight[:, None] * densities[:, :, 1:].exp()
        return _Leaves(
            row,
            cell,
            corners,
            torch.logsumexp(joint + weight.log(), 1) + log_volume,
            densities.amax(1),
            densities.amin(1),
            share.sum(1),
            (share * (log_likelihood - self.reference[row, None])[:, :, None]).sum(1),
        )


def integrate(
    box: Box, x: Tensor, log_prior: LogDensity, log_q: list[LogDensity], about: Tensor, tolerance: float, most: int
) -> Integrals:
    """The integrals of rows, to a tolerance if `most` simplices for each row are enough for it.

    Args:
        box: the cells.
        x: `(N, D)`.
        log_prior: of p(z) on the box.
        log_q: densities on the box, K of them.
        about: latents `(N, S)` whose log-likelihood is near to its mean under the densities.
        tolerance: nats, times the size of log p(x) where that is above 1.
        most: simplices for each row; beyond, the error that is stated is larger.
    """
    per_row = len(box.corners) * len(rule(box.corners.shape[2])[1])
    parts = []
    for index in torch.arange(len(x)).split(max(1, _ENTRIES // per_row)):

        def shifted(density: LogDensity, index: Tensor = index) -> LogDensity:
            return lambda z, row: density(z, index[row])

        rows = reduce_complete(box.model, x[index])
        parts.append(
            _integrate(box, rows, shifted(log_prior), [shifted(q) for q in log_q], about[index], tolerance, most)
        )
    return Integrals(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _integrate(
    box: Box, rows: Rows, log_prior: LogDensity, log_q: list[LogDensity], about: Tensor, tolerance: float, most: int
) -> Integrals:
    N, K = len(rows.far2), len(log_q)
    reference = _reference(box, rows, about)

    measured = _Integrand(box, rows, log_prior, log_q, reference).over
    row = torch.arange(N).repeat_interleave(len(box.corners))
    open_ = measured(row, box.cell.repeat(N), box.corners.repeat(N, 1, 1))
    log_total = torch.full((N,), -torch.inf, dtype=torch.float64)  # of what is settled
    mass, energy = log_total.new_zeros(N, K), log_total.new_zeros(N, K)
    errors = log_total.new_zeros(N, 1 + 2 * K)  # the first relative to exp(scale)
    scale = log_total.clone()
    spent = torch.bincount(row, minlength=N)
    for _ in range(_ROUNDS):
        if not len(open_.row):
            break
        m = len(open_.row)
        halves = measured(open_.row.repeat(2), open_.cell.repeat(2), bisected(open_.corners).flatten(0, 1))
        new_evidence = torch.logaddexp(*halves.log_evidence.reshape(2, m))
        current = _add_logs(log_total, open_.row, new_evidence)
        errors[:, 0] *= torch.where(torch.isfinite(scale), (scale - current).exp(), 0.0)
        scale = current
        change = torch.cat(
            (
                ((new_evidence - scale[open_.row]).exp() - (open_.log_evidence - scale[open_.row]).exp())[:, None],
                halves.mass.reshape(2, m, K).sum(0) - open_.mass,
                halves.energy.reshape(2, m, K).sum(0) - open_.energy,
            ),
            1,
        ).abs()
        size = scale.abs().clamp(min=1.0)
        least = 1e-3 * tolerance * size[open_.row]
        peak, low = halves.peak.reshape(2, m, -1).amax(0), halves.low.reshape(2, m, -1).amin(0)
        above = torch.cat((peak[:, :1] - scale[open_.row, None], peak[:, 1:]), 1)
        bound = above + (peak - low) + volumes(open_.corners).log()[:, None]
        hidden = ((peak - low > _UNSEEN) & (bound > least.log()[:, None])).any(1)
        spent += 2 * torch.bincount(open_.row, minlength=N)
        again = ((change > least[:, None]).any(1) | hidden) & (spent[open_.row] < most)
        done = ~again
        log_total = _add_logs(log_total, open_.row[done], new_evidence[done])
        mass.index_add_(0, open_.row[done], halves.mass.reshape(2, m, K).sum(0)[done])
        energy.index_add_(0, open_.row[done], halves.energy.reshape(2, m, K).sum(0)[done])
        errors.index_add_(0, open_.row[done], change[done])
        open_ = halves.take(again.repeat(2).nonzero()[:, 0])
    for part in (open_,) if len(open_.row) else ():  # out of rounds: as they are
        log_total = _add_logs(log_total, part.row, part.log_evidence)
        mass.index_add_(0, part.row, part.mass)
        energy.index_add_(0, part.row, part.energy)
    missing = (1.0 - mass).abs()
    likelihood = reference[:, None] + energy
    return Integrals(
        log_total,
        errors[:, 0],
        likelihood,
        errors[:, 1 + K :] + missing * (1.0 + energy.abs()),
    )


def _add_logs(log_total: Tensor, row: Tensor, log_value: Tensor) -> Tensor:
    """`log(exp(log_total) + sum over the row of exp(log_value))`."""
    top = log_total.scatter_reduce(0, row, log_value, "amax")
    safe = torch.where(torch.isfinite(top), top, 0.0)
    total = (log_total - safe).exp().index_add(0, row, (log_value - safe[row]).exp())
    return safe + total.log()


def _reference(box: Box, rows: Rows, about: Tensor) -> Tensor:
    """The log-likelihood at one latent of each row, `(N,)`, by the cell whose image explains the row best there."""
    image = box.start + (box.slope @ (about[:, None] - box.origin)[..., None])[..., 0]  # (N, R, K)
    energy = rows.far2[:, None] + (rows.y[:, None] - image).square().sum(2)
    return rows.constant - 0.5 * energy.amin(1)
