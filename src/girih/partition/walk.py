"""One cell and its neighbours, in a latent space of any dimension: exact facets by linear programs.

The programs are on polyhedra given by half-spaces: a point well inside, the irredundant ones, points of facets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import linprog
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import GirihError, ShapeError
from girih.networks import AffineStep, Jet, KinkStep, MaxStep, Trace, trace
from girih.partition.memory import Array

_OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
_REDUNDANT = 1e-8  # in units of the radius of the cell
_RAYS = 4  # directions to look for facets in, for each half-space
_EPS = float(np.finfo(np.float64).eps)
_ROUNDING = 64 * _EPS  # of one affine step, relative to the size of its terms
_STEPS = np.logspace(-1, -9, 9)  # across a facet, relative to its radius


class Box(NamedTuple):
    """A cube by its centre and half its side."""

    centre: Array  # (S,)
    half: float


class Inner(NamedTuple):
    """A ball inside a polyhedron, or inside a facet of it."""

    centre: Array  # (S,)
    radius: float


def deepest(H: Array, h: Array, near: Array, anchor: Array) -> Inner:
    """The largest ball in `H z <= h`, not much farther from the anchor than the point `near` in the polyhedron.

    The radius is 0 or less where there is none.

    Example:
        >>> import numpy as np
        >>> from girih.partition.walk import deepest
        >>> near = np.array([1.5])
        >>> deepest(np.array([[1.0], [-1.0]]), np.array([3.0, -1.0]), near, near)
        Inner(centre=array([2.]), radius=1.0)
    """
    size = 1.0 + float(np.abs(anchor).max())
    box = Box(anchor, size + 2.0 * float(np.abs(near - anchor).max()))
    inner = _ball(H, h, np.ones(len(h)), near, size, box, None)
    if 0.0 < inner.radius < 1e-2 * size:  # once more, on the scale of the ball, for the digits
        finer = _ball(H, h, np.ones(len(h)), inner.centre, inner.radius, box, None)
        return finer if finer.radius > 0.0 else inner
    return inner


def across(H: Array, h: Array, k: int, inner: Inner, anchor: Array) -> Inner:
    """The largest ball inside facet k of a polyhedron with the ball `inner`, in its part next to the anchor."""
    normal, dim = H[k], len(anchor)
    if dim == 1:
        return Inner(normal * h[k], inner.radius)
    others = np.delete(np.arange(len(h)), k)
    width = np.sqrt(np.maximum(1.0 - (H[others] @ normal) ** 2, 0.0))
    foot = inner.centre + (h[k] - normal @ inner.centre) * normal
    distance = _distance(H[others], h[others] - H[others] @ foot, normal, anchor - foot, inner.radius)
    box = Box(anchor, 1.0 + float(np.abs(anchor).max()) + 2.0 * distance)
    ball = _ball(H[others], h[others], width, foot, inner.radius, box, normal)
    if 0.0 < ball.radius < 1e-2 * inner.radius:
        finer = _ball(H[others], h[others], width, ball.centre, ball.radius, box, normal)
        return finer if finer.radius > 0.0 else ball
    return ball


def _distance(H: Array, gap: Array, normal: Array, anchor: Array, scale: float) -> float:
    """The distance of a facet to the anchor, in the largest coordinate."""
    dim = len(anchor)
    eye, ones = np.eye(dim), np.ones((2 * dim, 1))
    rows = np.concatenate((np.pad(H, ((0, 0), (0, 1))), np.concatenate((np.concatenate((eye, -eye)), -ones), 1)))
    limits = np.concatenate((gap, anchor, -anchor)) / scale
    result = _solve(np.append(np.zeros(dim), 1.0), rows, limits, np.append(normal, 0.0)[None])
    return float(np.abs(anchor).max()) if result is None else float(scale * abs(result[dim]))


def _ball(H: Array, h: Array, width: Array, near: Array, scale: float, box: Box, normal: Array | None) -> Inner:
    """The largest ball; `near` becomes the origin and `scale` the unit of length, and `normal` is that of a facet."""
    dim, eye = len(near), np.eye(len(near))
    rows = np.concatenate((H, eye, -eye))
    column = np.concatenate((width, np.ones(2 * dim)))[:, None]
    limits = np.concatenate((h - H @ near, box.centre + box.half - near, near - box.centre + box.half)) / scale
    equal = None if normal is None else np.append(normal, 0.0)[None]
    result = _solve(np.append(np.zeros(dim), -1.0), np.concatenate((rows, column), 1), limits, equal)
    if result is None:
        return Inner(near, -1.0)
    return Inner(near + scale * result[:dim], float(scale * result[dim]))


def irredundant(H: Array, h: Array, inner: Inner) -> Array:
    """The indices of the half-spaces that have a facet each, ascending; no two of them are equal.

    Facets that a ray from the inside meets first are certain. Any other half-space is tested with the facets known
    so far (Clarkson, 1994), and a point that it cuts off shows a new one.
    """
    if len(h) <= 1:
        return np.arange(len(h))
    gap = (h - H @ inner.centre) / inner.radius  # all are 1 or more
    facets, open_ = _shoot(H, gap), np.ones(len(h), bool)
    open_[list(facets)] = False
    for i in np.argsort(gap, kind="stable"):
        while open_[i]:
            known = sorted(facets)
            point = _beyond(H, gap, known, int(i))
            if point is None:
                open_[i] = False  # redundant, with some of the facets alone
                continue
            hit = _first_hit(H, gap, point)
            if hit is None or hit in facets:
                others = np.flatnonzero((np.arange(len(h)) != i) & open_).tolist() + known
                if _beyond(H, gap, others, int(i)) is not None:
                    facets.add(int(i))
                open_[i] = False
            else:
                facets.add(hit)
                open_[hit] = False
    return np.array(sorted(facets), np.int64)


def _shoot(H: Array, gap: Array) -> set[int]:
    """Half-spaces that a ray from 0 leaves first."""
    count, dim = H.shape
    rays = np.random.default_rng(0).normal(size=(_RAYS * min(count, 250), dim))
    rays = np.concatenate((rays, H, -H))
    speed = (rays @ H.T) / gap
    order = np.argpartition(speed, -2, axis=1)[:, -2:]
    top = np.take_along_axis(speed, order, 1)
    first = np.where(top[:, 0] > top[:, 1], order[:, 0], order[:, 1])
    clear = (top.max(1) > 0) & (top.max(1) - np.maximum(top.min(1), 0.0) > 1e-6 * top.max(1))
    return {int(i) for i in first[clear]}


def _first_hit(H: Array, gap: Array, point: Array) -> int | None:
    """The half-space that the ray from 0 to a point leaves first; `None` where two are as near."""
    speed = (H @ point) / gap
    first, second = np.argsort(speed)[[-1, -2]]
    return int(first) if speed[first] - speed[second] > 1e-6 * speed[first] else None


def _beyond(H: Array, gap: Array, known: list[int], i: int) -> Array | None:
    """A point that satisfies the known half-spaces but not the i-th, if there is one."""
    rows, limits = np.concatenate((H[known], H[i : i + 1])), np.append(gap[known], gap[i] + 1.0)
    point = _solve(-H[i], rows, limits)
    if point is None:
        return None
    return point if H[i] @ point > gap[i] + _REDUNDANT * (1.0 + gap[i]) else None


def _solve(cost: Array, rows: Array, limits: Array, equal: Array | None = None) -> Array | None:
    """The optimum over `rows x <= limits`, and `equal x = 0`; `None` where there is no such x."""
    extra: dict[str, Any] = {} if equal is None else {"A_eq": equal, "b_eq": np.zeros(len(equal))}
    for options in (_OPTIONS, {"presolve": False}, {}):
        result = linprog(cost, rows, limits, bounds=(None, None), method="highs", options=options, **extra)
        if result.status == 0:
            return np.asarray(result.x)
    if result.status == 2:
        return None
    raise GirihError(f"a linear program for a cell of this network failed ({result.message}); rescale the weights")


@dataclass(frozen=True)
class LocalCell:
    """A cell that `walk` found.

    Attributes:
        index: its place in the walk, from 0.
        parent: the index of the cell from which the walk came, -1 for the first.
        depth: the number of facets crossed from the first cell, the least possible.
        pattern: the code of every hidden unit, `(U,)` int8, as in `Partition.patterns`.
        halfspaces: irredundant, unit normals `H (F, S)` and `h (F,)` with `H z <= h`.
        units: the column of `pattern` that changes across each facet, `(F,)`; the first where several do.
        facet_points: a point inside each facet, `(F, S)`.
        interior: a point well inside the cell, `(S,)`: the centre of its largest ball, or of one near the point
            where the walk entered, where the cell is unbounded or large.
        affine: `(A, b)` with `g(z) = A z + b` on the cell, `(D, S)` and `(D,)`.
    """

    index: int
    parent: int
    depth: int
    pattern: Tensor
    halfspaces: tuple[Tensor, Tensor]
    units: Tensor
    facet_points: Tensor
    interior: Tensor
    affine: tuple[Tensor, Tensor]


class Constraints(NamedTuple):
    """The constraints of a cell: `H z <= h`, unit normals, most of them redundant."""

    H: Array  # (K, S)
    h: Array  # (K,)
    columns: Array  # (K,) the unit of each
    pattern: Array  # (U,) with units that are constant at a kink counted as below it


def walk(net: nn.Module | Trace, z: ArrayLike | Tensor, max_cells: int = 100) -> Iterator[LocalCell]:
    """The cell of a latent z, then its neighbours across facets, then theirs: breadth first.

    Works for any latent dimension S; each cell costs about one small linear program for each unit. Without the
    limit on their number the walk visits every cell.

    Args:
        net: any module that `girih.trace` supports.
        z: where to start, `(S,)`; on a face, one of the cells that meet there.
        max_cells: how many cells to visit at most.

    Returns:
        An iterator, which does its work cell by cell as it is read.

    Raises:
        ShapeError, NonFiniteError: z is not one finite latent.
        ParameterError: `max_cells` is not a positive whole number.

    Source:
        EM-DGN, appendix A, Algorithm 1, with neighbours across facets in place of all sign patterns.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([10, 16, 16, 5], seed=0)
        >>> cells = list(girih.partition.walk(net, torch.zeros(10), max_cells=5))
        >>> [cell.depth for cell in cells], len(cells[0].units) >= 4
        ([0, 1, 1, 1, 1], True)
    """
    traced = trace(net)
    rows = as_rows(z, "z", traced.latent_dim, "the latent dimension S")
    if len(rows) != 1:
        raise ShapeError(f"walk starts at one point of shape ({traced.latent_dim},), got {len(rows)} rows")
    return _walk(traced, rows[0].detach().cpu().numpy(), whole(max_cells, "max_cells"))


def _walk(traced: Trace, start: Array, max_cells: int) -> Iterator[LocalCell]:
    limits, point, inner = _first_cell(traced, start)
    seen = {limits.pattern.tobytes()}
    queue: deque[tuple[Constraints, Array, Inner | None, int, int]] = deque([(limits, point, inner, -1, 0)])
    index = 0
    while queue and index < max_cells:
        limits, point, entered, parent, depth = queue.popleft()
        inner = entered or deepest(limits.H, limits.h, point, start)
        facets = irredundant(limits.H, limits.h, inner)
        H, h, columns = limits.H[facets], limits.h[facets], limits.columns[facets]
        crossings = [across(H, h, k, inner, start) for k in range(len(facets))]
        yield LocalCell(
            index,
            parent,
            depth,
            torch.as_tensor(limits.pattern),
            (torch.as_tensor(H), torch.as_tensor(h)),
            torch.as_tensor(columns),
            torch.as_tensor(np.array([crossing.centre for crossing in crossings]).reshape(-1, traced.latent_dim)),
            torch.as_tensor(inner.centre),
            _affine(traced, limits.pattern),
        )
        for k, crossing in enumerate(crossings):
            found = _neighbour(traced, limits, H[k], crossing)
            if found is not None and found[0].pattern.tobytes() not in seen:
                seen.add(found[0].pattern.tobytes())
                queue.append((*found, None, index, depth + 1))
        index += 1


def cell_constraints(traced: Trace, pattern: Tensor) -> Constraints:
    """All inequalities of the cell with a pattern `(U,)`: two for a unit between two kinks, one for each rival of
    a maximum, none for units that are constant on the cell. Equal ones are there only once.
    """  # noqa: D205
    with torch.no_grad():
        jets = traced.jets(pattern[None], torch.zeros(1, traced.latent_dim, dtype=torch.float64))
        errors = _errors(traced, jets, pattern)
    code = pattern.cpu().numpy().copy()
    normals, offsets, columns, rooms = [], [], [], []
    for index, step in enumerate(traced.steps):
        if not isinstance(step, KinkStep | MaxStep):
            continue
        source, units = step.inputs[0], traced.units(index)
        value, slope = (part[0].cpu().numpy() for part in jets[source])
        value_error, slope_error = errors[source]
        own = code[units]
        if isinstance(step, KinkStep):
            K = len(step.thresholds)
            piece = (own > 0).astype(int) if K == 1 else own.astype(int) + (1 if K == 2 else 0)
            edges = np.array([-np.inf, *step.thresholds, np.inf])
            # from above, H z <= threshold - value, and from below
            parts = [(np.flatnonzero(piece < K), 1.0), (np.flatnonzero(piece > 0), -1.0)]
            for unit, sign in parts:
                limit = edges[piece[unit] + (1 if sign > 0 else 0)]
                gap = sign * (limit - value[unit])
                flat = (np.abs(slope[unit]) <= slope_error[unit]).all(1)
                if sign < 0:  # constant at its kink: it counts as below
                    room = value_error[unit] + 4 * _EPS * np.abs(limit)
                    at = unit[flat & (gap <= room)]
                    own[at] -= 2 if K == 1 else 1
                normals.append((sign * slope[unit])[~flat])
                offsets.append(gap[~flat])
                rooms.append(value_error[unit][~flat])
                columns.append(units.start + unit[~flat])
        else:
            windows = step.windows.cpu().numpy()
            place = np.arange(len(windows))
            winner = windows[place, own]
            for rival in range(windows.shape[1]):
                other = windows[:, rival]
                slope_gap, value_gap = slope[other] - slope[winner], value[winner] - value[other]
                flat = (np.abs(slope_gap) <= slope_error[other] + slope_error[winner]).all(1)
                room = value_error[other] + value_error[winner]
                tied = flat & (np.abs(value_gap) <= room) & (rival < own)
                own[tied] = rival  # of equal inputs the first counts
                normals.append(slope_gap[~flat])
                offsets.append(value_gap[~flat])
                rooms.append(room[~flat])
                columns.append(units.start + place[~flat])
    H = np.concatenate([np.empty((0, traced.latent_dim)), *normals])
    h, column = np.concatenate([np.empty(0), *offsets]), np.concatenate([np.empty(0, np.int64), *columns])
    size = np.linalg.norm(H, axis=1)
    H, h = H / size[:, None], h / size
    keep = _distinct(H, h)
    return Constraints(H[keep], h[keep], column[keep], code)


def _distinct(H: Array, h: Array) -> Array:
    """The first of each group of half-spaces that are equal up to rounding."""
    size = 1.0 + np.abs(h)
    rows = np.concatenate((H, (h / size)[:, None], (np.sign(h) * np.log(size))[:, None]), 1)
    # neighbours in the order of a generic projection; compared with those that follow until the gap is too large
    direction = np.random.default_rng(0).normal(size=rows.shape[1])
    at = rows @ direction
    order = np.argsort(at, kind="stable")
    gone = np.zeros(len(h), bool)
    room = 1e-9 * np.abs(direction).sum()
    for first in range(len(order)):
        second = first + 1
        while second < len(order) and at[order[second]] - at[order[first]] <= room:
            i, j = order[first], order[second]
            if not gone[i] and not gone[j] and np.abs(rows[i] - rows[j]).max() <= 1e-10:
                gone[max(i, j)] = True
            second += 1
    return np.flatnonzero(~gone)


def _errors(traced: Trace, jets: list[Jet], pattern: Tensor) -> list[tuple[Array, Array]]:
    """Bounds on the rounding errors of the value `(size,)` and slope `(size, S)` after each step."""
    out: list[tuple[Tensor, Tensor]] = []
    for index, step in enumerate(traced.steps):
        value, slope = jets[index].value[0], jets[index].slope[0]
        taken = [out[i] for i in step.inputs]
        if isinstance(step, AffineStep):
            inputs = [jets[i] for i in step.inputs]
            sizes = [jet.value.abs() * _ROUNDING + e[0][None] for jet, e in zip(inputs, taken, strict=True)]
            slopes = [jet.slope[0].abs().mT * _ROUNDING + e[1].mT for jet, e in zip(inputs, taken, strict=True)]
            out.append(
                (step.magnitude(*sizes)[0] + _ROUNDING * step.bias.abs(), step.magnitude(*slopes).mT.contiguous())
            )
        elif isinstance(step, KinkStep):
            factor = step.slopes(pattern[None, traced.units(index)].to(value.device))[0].abs()
            out.append((taken[0][0] * factor + _EPS * value.abs(), taken[0][1] * factor[:, None]))
        elif isinstance(step, MaxStep):
            chosen = step.chosen(pattern[None, traced.units(index)].to(value.device))[0]
            out.append((taken[0][0][chosen], taken[0][1][chosen]))
        else:
            out.append((torch.zeros_like(value), torch.zeros_like(slope)))
    return [(value.cpu().numpy(), slope.cpu().numpy()) for value, slope in out]


def _affine(traced: Trace, pattern: Array) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        A, b = traced.maps(torch.as_tensor(pattern)[None])
    return A[0], b[0]


def _at(traced: Trace, point: Array) -> Constraints:
    return cell_constraints(traced, traced.pattern(torch.as_tensor(point, device=traced.device)[None])[0])


def _first_cell(traced: Trace, start: Array) -> tuple[Constraints, Array, Inner]:
    """The cell of a point; where it is on a face, a cell that has an interior near it."""
    limits = _at(traced, start)
    inner = deepest(limits.H, limits.h, start, start)
    scale = 1.0 + float(np.abs(start).max())
    rng = np.random.default_rng(0)
    for size in np.logspace(-12, -2, 6):
        if inner.radius > 1e-13 * scale:
            return limits, start, inner
        point = start + size * scale * rng.normal(size=len(start))
        limits = _at(traced, point)
        inner = deepest(limits.H, limits.h, point, point)
    return limits, inner.centre, inner


def _neighbour(traced: Trace, limits: Constraints, normal: Array, crossing: Inner) -> tuple[Constraints, Array] | None:
    """The cell beyond a facet, with a point in it: of all steps across, the largest that lands next to the facet."""
    room = 1e-9 * (1.0 + float(np.abs(crossing.centre).max()))
    for size in _STEPS:
        point = crossing.centre + size * crossing.radius * normal
        beyond = _at(traced, point)
        if np.array_equal(beyond.pattern, limits.pattern):
            continue
        touches = beyond.H @ crossing.centre - beyond.h <= min(room, 0.5 * size * crossing.radius)
        if touches.all():
            return beyond, point
    return None
