"""One cell and its neighbours, in a latent space of any dimension: exact facets by linear programs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import ShapeError
from girih.networks import AffineStep, Jet, KinkStep, MaxStep, Trace, trace
from girih.partition.linear_programs import Inner, across, deepest, irredundant
from girih.partition.memory import Array

_EPS = float(np.finfo(np.float64).eps)
_ROUNDING = 64 * _EPS  # of one affine step, relative to the size of its terms
_STEPS = np.logspace(-1, -9, 9)  # across a facet, relative to its radius


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
    """What a cell satisfies: `H z <= h`, unit normals, most of them redundant."""

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
    return cell_constraints(traced, traced.pattern(torch.as_tensor(point)[None])[0])


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
