r"""Log-mass and moments of the standard normal over convex polygons and polyhedra, bounded or not.

Three forms, chosen for each set. The signed one (`signed`) has an absolute error of about 1e-16 per edge (more where
vertices are far) and is taken where the mass is above some 1e-5 per edge: a relative error near 1e-11. Elsewhere
nothing may cancel: small sets are integrated as they are (`cones`), others by slices in log space (`slices`),

    log P = -|c|^2 / 2 - log(2 pi) / 2 + log int exp(-|c| t - t^2 / 2) P(slice at level t) dt,

where the mass of a slice is that of an interval (S = 2), or found in the same way for a polygon (S = 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih._devices import room
from girih.gaussian.cones import cones_of, log_mass_of, moments_of, own_axes, square_root
from girih.gaussian.interval import interval_log_mass, interval_moments
from girih.gaussian.prepared import Array, compiled_form, in_threads, serve
from girih.gaussian.quadrature import NODES, WEIGHTS, integrate, log_sum
from girih.gaussian.signed import signed_mass, signed_moments
from girih.gaussian.slices import Frame, Segments, Slices, cut, find_frame
from girih.gaussian.tables import PolygonTable, Table

Form = Literal["best", "cones", "slices"]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_EXACT = 100.0  # by which more mass is asked of the signed form where that by slices is compiled and costs little
_SHARE = 32  # polygons that are worth a thread
_TINY = torch.finfo(torch.float64).tiny


class _Limits(NamedTuple):
    large: float  # mass per edge above which the signed form is used
    wide: float  # for moments: mass times smallest variance, per edge
    chunk: int  # edges at a time in slices


_PLANE, _SPACE = _Limits(1e-5, 1e-6, 4096), _Limits(1e-6, 1e-7, 1024)


class Flat(NamedTuple):
    """Polygons as compiled code takes them."""

    start: Array  # (n + 1,) the first edge of each
    tail: Tensor  # (E, 3)
    head: Tensor  # (E, 3)

    @classmethod
    def of(cls, table: Table, form: Form = "best") -> Flat | None:
        """Those of a table, if compiled code takes it in such a form."""
        if not isinstance(table, PolygonTable) or form == "cones" or not serve(table.tail):
            return None
        n, K = table.tail.shape[:2]
        return cls(np.arange(n + 1) * K, table.tail.reshape(-1, 3), table.head.reshape(-1, 3))

    def log_mass(self, form: Form) -> Tensor:
        """As `log_mass` of a table."""
        return self._run("log_masses", 1, (_EXACT * _PLANE.large if form == "best" else math.inf,))[0]

    def roots(self, form: Form) -> tuple[Tensor, Tensor, Tensor]:
        """As `roots` of a table."""
        log_p, mean, root = self._run("roots", 3, (_EXACT * _PLANE.wide if form == "best" else math.inf,))
        return log_p, mean, root

    def local_moments(self, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """As `local_moments` of a table."""
        log_p, mean, root = self._run("local_moments", 3, rows=frame)
        return log_p, mean, root

    def _run(
        self, name: str, parts: int, limits: tuple[float, ...] = (), rows: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, ...]:
        """The first outputs of a compiled function, for limits of all polygons and what there is of each."""
        count, function = len(self.start) - 1, getattr(compiled_form("girih.gaussian.slice_kernels"), name)
        shapes = (count,), (count, 2), (count, 2, 2)
        out = tuple(self.tail.new_empty(shape) for shape in shapes[:parts])
        ends = self.tail.contiguous().numpy(), self.head.contiguous().numpy()

        def run(first: Array, last: Array, *some: Array) -> None:
            function(np.append(first, last[-1:]), *ends, *limits, *some)

        each = (part.contiguous().numpy() for part in (*rows, *out))
        in_threads(run, count, _SHARE, self.start[:-1], self.start[1:], *each)
        return out


def log_mass(table: Table, form: Form = "best") -> Tensor:
    """Log-mass `(n,)`, nats; -inf for sets without area or volume."""
    if (flat := Flat.of(table, form)) is not None:
        return flat.log_mass(form)
    mass = signed_mass(table)
    good = (mass > _limits(table).large * table.terms()) & (form == "best")
    out, small = mass.clamp(min=_TINY).log(), (~good).nonzero()[:, 0]
    if len(small):
        done, cones = cones_of(table.select(small))
        out[small[done]] = log_mass_of(cones)
        for rows in _rest(table, small, done, form, out):
            out[rows] = _sliced_log_mass(table.select(rows))
    return out


def roots(table: Table, form: Form = "best") -> tuple[Tensor, Tensor, Tensor]:
    """Log-mass `(n,)`, mean `(n, S)` and a root of the covariance `(n, S, S)` of the normal truncated to each set."""
    if (flat := Flat.of(table, form)) is not None:
        return flat.roots(form)
    mass, first, second = signed_moments(table)
    safe = mass.clamp(min=_TINY)
    mean = first / safe[:, None]
    covariance = second / safe[:, None, None] - mean[:, :, None] * mean[:, None, :]
    weight = mass * _least_eigenvalue(covariance).clamp(0.0, 1.0) / (1.0 + mean.square().sum(-1))
    # both factors may be negative by rounding
    good = (weight > _limits(table).wide * table.terms()) & (mass > 0) & (form == "best")
    log_p, root, small = safe.log(), square_root(covariance), (~good).nonzero()[:, 0]
    if len(small):
        done, cones = cones_of(table.select(small))
        at = small[done]
        log_p[at], mean[at], root[at] = moments_of(cones)
        for rows in _rest(table, small, done, form, log_p):
            some = table.select(rows)
            frame = find_frame(some)
            local, about, root[rows] = local_moments(some, frame)
            log_p[rows], mean[rows] = local - 0.5 * frame.height.square(), frame.anchor + about
    return log_p, mean, root


def _least_eigenvalue(covariance: Tensor) -> Tensor:
    """The smallest eigenvalue `(n,)` of matrices `(n, S, S)`."""
    if covariance.shape[-1] == 3:
        result: Tensor = torch.linalg.eigvalsh(torch.where(torch.isfinite(covariance), covariance, 0.0))[:, 0]
        return result
    trace = covariance[:, 0, 0] + covariance[:, 1, 1]  # without cancellation to speak of
    square = trace.square() - 4.0 * (covariance[:, 0, 0] * covariance[:, 1, 1] - covariance[:, 0, 1].square())
    return 0.5 * (trace - square.clamp(min=0.0).sqrt())


def _limits(table: Table) -> _Limits:
    return _PLANE if isinstance(table, PolygonTable) else _SPACE


def _rest(table: Table, rows: Tensor, done: Tensor, form: Form, log_p: Tensor) -> Iterator[Tensor]:
    """Those of the rows that are left to slices when some are done, some at a time."""
    left = torch.ones_like(rows, dtype=torch.bool)
    left[done] = form == "slices"
    if form != "cones":
        return chunks(table, rows[left])
    log_p[rows[left]] = torch.nan
    return iter(())


def chunks(table: Table, rows: Tensor) -> Iterator[Tensor]:
    """Rows of a table, so many at a time as fit a cache when they are sliced."""
    places = math.prod(max(1, size) for size in table.tail.shape[1:-1])
    yield from rows.split(max(1, room(_limits(table).chunk, rows.device) // places)) if len(rows) else ()


def slice_log_mass(slices: Slices, panel: Tensor, t: Tensor) -> Tensor:
    """Log-masses of the slices of panels `(k,)` at levels `(k, m)`."""
    if isinstance(slices, Segments):
        return interval_log_mass(*slices.at(panel, t))
    return log_mass(slices.at(panel, t)).view_as(t)


def _slice_roots(slices: Slices, panel: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-masses `(k, m)`, means `(k, m, S - 1)` and roots of covariances of the slices."""
    if isinstance(slices, Segments):
        line = interval_moments(*slices.at(panel, t))
        return line.log_mass, (line.anchor + line.mean)[..., None], line.variance.sqrt()[..., None, None]
    log_p, mean, root = roots(slices.at(panel, t))
    return log_p.view_as(t), mean.view(*t.shape, 2), root.view(*t.shape, 2, 2)


def _sliced_log_mass(table: Table) -> Tensor:
    frame = find_frame(table)
    slices = cut(table, frame)
    height = frame.height[slices.owner]

    def log_f(panel: Tensor, t: Tensor) -> Tensor:
        return slice_log_mass(slices, panel, t) - t * (height[panel, None] + 0.5 * t)

    total, _ = integrate(slices.lower, slices.upper, slices.owner, len(frame.height), log_f)
    return total - 0.5 * frame.height.square() - _HALF_LOG_2PI


def local_moments(table: Table, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """As `roots` by slices, about the anchors: the log-mass without the height `-|c|^2 / 2` of the anchor."""
    if (flat := Flat.of(table)) is not None:
        return flat.local_moments(frame)
    slices = cut(table, frame)
    count, S = frame.anchor.shape
    height = frame.height[slices.owner]
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def log_f(panel: Tensor, t: Tensor) -> Tensor:
        log_p, mean, root = _slice_roots(slices, panel, t)
        value = log_p - t * (height[panel, None] + 0.5 * t)
        calls.append((value, mean, root))
        return value

    total, accepted = integrate(slices.lower, slices.upper, slices.owner, count, log_f)
    owner = slices.owner[accepted.panel]
    t = torch.addcmul(accepted.middle[:, None], accepted.half[:, None], NODES.on(owner.device))
    value, across, root = (torch.cat(part)[accepted.call] for part in zip(*calls, strict=True))
    w = (value - total.clamp(min=-1e300)[owner, None]).exp() * accepted.half[:, None] * WEIGHTS.on(owner.device)
    at = torch.where((w > 0)[..., None], torch.cat((t[..., None], across), -1), 0.0)  # (m, 33, S)
    root = torch.where((w > 0)[..., None, None], root, 0.0)
    mean = at.new_zeros(count, S).index_add_(0, owner, (w[..., None] * at).sum(1))
    off = at - mean[owner, None]
    spread = torch.einsum("mk,mki,mkj->mij", w, off, off)
    spread[:, 1:, 1:] += torch.einsum("mk,mkia,mkja->mij", w, root, root)
    axes = own_axes(at.new_zeros(count, S, S).index_add_(0, owner, spread))
    off = torch.cat(((off @ axes[owner])[:, :, None], root.mT @ axes[owner, None, 1:]), 2)  # (m, 33, S, S)
    local = at.new_zeros(count, S, S).index_add_(0, owner, torch.einsum("mk,mkai,mkaj->mij", w, off, off))
    turn = frame.basis.mT
    return total - _HALF_LOG_2PI, (turn @ mean[..., None])[..., 0], turn @ axes @ square_root(local)


def least_log_mass(cones: tuple[Tensor, Tensor, Tensor], apex: Tensor, slack: Tensor) -> Tensor:
    r"""Lower bounds `(n,)` on log-masses by Jensen's inequality, on simplices in the cones that sets are made of.

    For y uniform on the simplex of 0 and y_1, ..., y_S, `E[y] = sum y_i / (S + 1)` and
    `E|y|^2 = (sum |y_i|^2 + |sum y_i|^2) / ((S + 1) (S + 2))`, and with v the apex its mass is at least

        V (2 pi)^(-S/2) exp(-E|v + y|^2 / 2).

    It is in the set for `y_i` up to the ends of a cone's edges, which may be taken shorter, those at infinity at any
    length. Without what two edges have in common, the best length s of one of them has `1/s = a s + b`.

    Args:
        cones: owners `(k,)`, edges `(k, S, S)`, which have a positive determinant where the apex is in the set (but
            where the last two are directions), and which of these are directions.
        apex: `(n, S)`.
        slack: by how much points may be off, `(n,)`.

    Returns:
        The bounds; -inf where there is none: for an apex outside, or a set whose cones have no volume.
    """
    owner, edge, direction = cones
    count, S = apex.shape
    v, off = apex[owner], 2.0 * slack[owner]  # that of a point and that of the apex
    square, slope = edge.square().sum(2), (edge @ v[:, :, None])[:, :, 0] / (S + 1)
    best = 2.0 / (slope + (slope.square() + 8.0 / ((S + 1) * (S + 2)) * square).sqrt())
    edge = edge * torch.where(direction, best, best.clamp(max=1.0))[:, :, None]
    length, whole = torch.linalg.vector_norm(edge, dim=2), edge.sum(1)
    square = (length.square().sum(1) + whole.square().sum(1)) / ((S + 1) * (S + 2))
    square = v.square().sum(1) + 2.0 / (S + 1) * (v * whole).sum(1) + square
    room = off * (length.sum(1) if S == 2 else (length * length.roll(1, 1)).sum(1))
    size = torch.linalg.det(edge)
    size = torch.where(direction[:, -2:].all(1), size.abs(), size)  # of no known sense: the edge is at infinity
    least = ((size - room) / math.factorial(S)).clamp(min=0.0).log()
    least = least - 0.5 * (square.clamp(min=0.0).sqrt() + off).square()
    total = log_sum(least.nan_to_num(-torch.inf, torch.inf, -torch.inf), owner, count)
    # seen from a point outside, part of the boundary runs the wrong way round
    total[owner[~(size >= -room)]] = -torch.inf
    return total - S * _HALF_LOG_2PI
