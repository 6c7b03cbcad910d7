r"""What planes above `log p(x, z)` tell of it beside its integrals: bounds on these, the mode, and draws.

The bounds have no estimate in them. The mode is found by branch and bound, and draws are made by rejection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih._devices import room
from girih.errors import NoClosedFormError
from girih.gaussian.quadrature import log_sum
from girih.gaussian.tables import slots, sorted_in_rows
from girih.inference.cubature_mesh import FARTHEST, REACH, Mesh, longest_edge
from girih.inference.cubature_rows import ENTRIES, Likelihood, Simplices, halved, joined
from girih.inference.simplex_rules import log_mean_exp

_TRIES = 20_000
_BEAM = 64  # of simplices, among points that differ by 1e-6 nats or less


class _Between(NamedTuple):
    """What is known of the integrals over simplices, and how to cut these."""

    below: Tensor  # (m,) a lower bound on the log of the integral
    above: Tensor  # (m,) an upper one
    heights: Tensor  # as of Looks
    first: Tensor
    second: Tensor


def bracket(mesh: Mesh, likelihood: Likelihood, tol: float, width: float, most: int) -> tuple[Tensor, Tensor]:
    """Bounds on the logs of the integrals, `(n,)` each, where f is concave: from planes and from vertices.

    A concave f is below its tangent planes, and above the linear interpolation of its values at vertices; the
    exponentials of both have closed integrals. Simplices between whose bounds there is much are cut until the
    bounds of a row are `width` apart, or simplices are more than `most`.
    """
    some, lost = mesh.relevant(likelihood, tol, None)
    found, count = _between(mesh, likelihood, some, None), len(lost)
    while True:
        low = log_sum(found.below, some.row, count)
        high = torch.logaddexp(lost, log_sum(found.above, some.row, count))
        gap, many = _log_difference(high, low), torch.bincount(some.row, minlength=count)
        share = _log_difference(found.above, found.below)
        cut = ((high - low > width)[some.row]) & (share > (gap - (2.0 * many).log())[some.row])
        if not cut.any() or len(some.row) > most:
            return low, high
        first, second = found.first[cut], found.second[cut]
        halves = mesh.halves(some.take(cut), first, second)
        new = _between(mesh, likelihood, halves, halved(found.heights[cut], first, second))
        some = joined([some.take(~cut), halves])
        found = _Between(*(torch.cat((old[~cut], part)) for old, part in zip(found, new, strict=True)))


def _between(mesh: Mesh, likelihood: Likelihood, some: Simplices, heights: Tensor | None) -> _Between:
    """Bounds on integrals over simplices; heights are of a plane above f that is known, at the vertices."""
    looks, vertices = mesh.look(likelihood, some), torch.eye(some.corner.shape[1], dtype=some.corner.dtype)
    values = mesh.values(likelihood, some, vertices.to(some.corner.device))
    below, above = (some.log_volume + log_mean_exp(part) for part in (values, looks.heights))
    if heights is not None:
        above = torch.minimum(above, some.log_volume + log_mean_exp(heights))
    return _Between(below, above, looks.heights, looks.first, looks.second)


def _log_difference(more: Tensor, less: Tensor) -> Tensor:
    """`log(exp(more) - exp(less))`."""
    return more + torch.log(-torch.expm1((less - more).clamp(max=0.0)))


def mode(mesh: Mesh, likelihood: Likelihood) -> Tensor:
    """The z of highest `log p(x, z)` of each row, `(n, S)`: by branch and bound."""
    count, S = len(likelihood.highest), mesh.cells.origin.shape[1]
    best, place = likelihood.highest.new_full((count,), -torch.inf), mesh.cells.origin.new_zeros(count, S)
    reach, ceiling = REACH, mesh.parts.constant.logsumexp(0)
    while True:
        some = mesh.start(torch.arange(count, device=best.device), reach, 1)
        while len(some.row):
            looks = [_peak(mesh, likelihood, part) for part in mesh.chunks(some, S + 1, likelihood.width)]
            value, top, first, second = (torch.cat(part) for part in zip(*looks, strict=True))
            here = best.scatter_reduce(0, some.row, value, "amax")
            won = ((value == here[some.row]) & (value > best[some.row])).nonzero()[:, 0]
            place[some.row[won]], best = some.corner[won].mean(1), here
            open_ = (top > (best + 1e-12 * (1.0 + best.abs()))[some.row]).nonzero()[:, 0]
            open_ = open_[_beam(some.row[open_], top[open_], best)]
            some = mesh.halves(some.take(open_), first[open_], second[open_])
        unknown = likelihood.highest + ceiling - 0.5 * reach**2 > best
        if torch.isfinite(mesh.parts.low).all() or not unknown.any() or reach > FARTHEST:
            return place
        reach *= 2.0


def _peak(mesh: Mesh, likelihood: Likelihood, some: Simplices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`log p(x, z)` at centroids, a bound on it, and the edges to cut: with all parts of the prior."""
    value, slope, gram, lift = likelihood.centre(mesh, some)
    parts = mesh.parts
    w = torch.einsum("cij,mkcj->mcki", parts.white, some.corner[:, :, None] - parts.mean)
    middle = w.mean(2, keepdim=True)
    away = w - middle
    height = parts.constant - 0.5 * middle[:, :, 0].square().sum(2)  # (m, C)
    tangent = height[:, :, None] - (away @ middle.mT)[..., 0]  # (m, C, S + 1)
    top = value + (slope + lift + tangent.logsumexp(1)).amax(1)
    share = height.softmax(1)
    gram = gram + (share[:, :, None, None] * (away @ away.mT)).sum(1)
    first, second, _ = longest_edge(gram, slope + (share[:, :, None] * (tangent - height[:, :, None])).sum(1))
    return value + height.logsumexp(1), top, first, second


def _beam(row: Tensor, top: Tensor, best: Tensor) -> Tensor:
    """Which simplices are cut on: all, or the most promising of rows whose highest point is known but for 1e-6."""
    gap = torch.full_like(best, -torch.inf).scatter_reduce(0, row, top, "amax") - best
    order = sorted_in_rows(row, -top)
    _, place = slots(row[order], len(best))
    return order[(place < _BEAM) | (gap > 1e-6 * (1.0 + best.abs()))[row[order]]]


def draw(
    mesh: Mesh, likelihood: Likelihood, some: Simplices, which: Tensor, generator: torch.Generator | None
) -> Tensor:
    """A draw of z from `p(x, z)` on each of the simplices `which (m,)`, `(m, S)`, by rejection: exact."""
    used, place = torch.unique(which, return_inverse=True)
    some, top = some.take(which), mesh.look(likelihood, some.take(used)).heights.amax(1)[place]
    out, left = torch.empty_like(some.corner[:, 0]), torch.arange(len(which), device=which.device)
    for _ in range(_TRIES):
        u = torch.empty(*some.corner[left].shape[:2], dtype=top.dtype, device=top.device)
        u = u.exponential_(generator=generator)
        level = torch.rand(len(left), dtype=top.dtype, device=top.device, generator=generator).log()
        taken = torch.empty_like(left, dtype=torch.bool)
        size = max(1, room(ENTRIES, left.device) // (u.shape[1] * likelihood.outputs))
        for part in torch.arange(len(left), device=left.device).split(size):
            share = (u[part] / u[part].sum(1, keepdim=True))[:, None]
            z, value = mesh.evaluate(likelihood, some.take(left[part]), share)
            taken[part] = level[part] <= value[:, 0] - top[left[part]]
            out[left[part]] = z[:, 0]
        left = left[~taken]
        if not len(left):
            return out
    raise NoClosedFormError(
        f"{len(left)} draws were rejected {_TRIES} times each; train or rescale the network so that its outputs "
        "change by less between neighbouring cells"
    )
