r"""Boundaries of many polytopes at once, each given by as many half-spaces, S = 2 or 3, on any device.

The line where the planes of two half-spaces meet (or, in the plane, the line of one) is cut by all others: no linear
programs, and unbounded polytopes need no box. With `room_k = k - N_k p` at a point p of the line and `speed_k = N_k u`
along it, what is left runs from the largest `room / speed` of negative speeds to the smallest of positive ones.

Where a third plane holds the whole line up to rounding, `N_k = a N_i + b N_j`, the one whose normal is between those of
the other two has no face, and these have the edge: for a and b at least 0 room_k does not count, and for a and b of
different signs the line is no edge. The work is `n m^S`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih._devices import room as room_for
from girih.gaussian.halfspaces import Array
from girih.gaussian.polytopes import Polygons, Polyhedra

_PARALLEL = 1e-14
_TIE = 1e-13  # of the distances that a room is the difference of
_LEAN = 1e-12  # angles between normals, and their sines, that count as 0
_WEDGE = 10.0  # deviations over which planes that lean so little must not meet
_SHORT = 1e-13  # edges shorter than this part of their distance come from rounding
_CELLS = 2**20


class Clipped(NamedTuple):
    """Polytopes with the half-space of each edge (S = 2) or face (S = 3), `(E,)` or `(F,)`, and which are empty."""

    shapes: Polygons | Polyhedra
    side: Tensor
    empty: Tensor  # (n,)


class _Planes(NamedTuple):
    """Half-spaces with unit normals."""

    normal: Tensor  # (n, m, S)
    offset: Tensor  # (n, m)
    real: Tensor  # (n, m) not without meaning, nor a repetition
    opposite: Tensor  # (n, m, m) the two sides of a slab, which do not cut each other
    impossible: Tensor  # (n,) some half-space alone, or two opposite ones, allow no point


class _Lines(NamedTuple):
    """Lines that are cut: those of half-spaces, or where two planes meet."""

    point: Tensor  # (n, L, S)
    along: Tensor  # (n, L, S)
    alive: Tensor  # (n, L)
    start: Tensor  # (n, L)
    end: Tensor  # (n, L)


def clipped(H: Tensor, h: Tensor) -> Clipped:
    """The polytopes `{x: H x <= h}`; infinite `h` and zero rows of H do not bind.

    Args:
        H: `(n, m, S)`, S = 2 or 3.
        h: `(n, m)`.
    """
    _, m, S = H.shape
    per = max(1, room_for(_CELLS, H.device) // max(1, m) ** S)
    of = _polygons if S == 2 else _polyhedra
    parts = [of(some, at) for some, at in zip(H.split(per), h.split(per), strict=True)]
    return parts[0] if len(parts) == 1 else _joined(parts)


def from_halfspaces(pairs: Sequence[tuple[Array, Array]]) -> tuple[Polygons | Polyhedra, Tensor]:
    """Lists of edges from half-spaces, by clipping: for tens of half-spaces each, of different numbers.

    Args:
        pairs: `(H, h)` of shapes `(m, S)` and `(m,)` for `{x: H x <= h}`, S = 2 or 3, redundant rows allowed.

    Returns:
        `Polygons` or `Polyhedra`, and which of them hold no open set, `(n,)`: these have no meaning in the list.

    Example:
        >>> import numpy as np
        >>> from girih.gaussian import from_halfspaces
        >>> octants, empty = from_halfspaces([(-np.eye(3), np.zeros(3))])
        >>> octants.log_mass().exp(), empty
        (tensor([0.1250], dtype=torch.float64), tensor([False]))
    """
    S, count = pairs[0][0].shape[1], len(pairs)
    most = max(1, *(len(h) for _, h in pairs)) if pairs else 1
    H, room = np.zeros((count, most, S)), np.zeros((count, most))  # rows of zeros do not bind
    for k, (normals, offsets) in enumerate(pairs):
        H[k, : len(offsets)], room[k, : len(offsets)] = normals, offsets
    shapes, _, empty = clipped(torch.as_tensor(H), torch.as_tensor(room))
    return shapes, empty


def _joined(parts: list[Clipped]) -> Clipped:
    """Lists of polytopes as one."""
    counts = [part.shapes.count for part in parts]
    first = [sum(counts[:k]) for k in range(len(counts))]
    owner = torch.cat([part.shapes.owner + k for part, k in zip(parts, first, strict=True)])
    tail, head = (torch.cat([getattr(part.shapes, name) for part in parts]) for name in ("tail", "head"))
    side, empty = torch.cat([part.side for part in parts]), torch.cat([part.empty for part in parts])
    solids = [part.shapes for part in parts if isinstance(part.shapes, Polyhedra)]
    if not solids:
        return Clipped(Polygons(tail, head, owner, sum(counts)), side, empty)
    sizes = [len(part.owner) for part in solids]
    face = torch.cat([part.face + sum(sizes[:k]) for k, part in enumerate(solids)])
    normal, offset = torch.cat([part.normal for part in solids]), torch.cat([part.offset for part in solids])
    return Clipped(Polyhedra(tail, head, face, normal, offset, owner, sum(counts)), side, empty)


def _planes(H: Tensor, h: Tensor) -> _Planes:
    """Unit normals; of repetitions the tightest is kept, of equal ones the first."""
    length = torch.linalg.vector_norm(H, dim=2)
    flat = (length == 0) | (h == torch.inf)
    impossible = ((length == 0) & (h < 0)).any(1) | (h == -torch.inf).any(1)
    safe = torch.where(flat, 1.0, length)
    normal, offset = torch.where(flat[..., None], 0.0, H / safe[..., None]), torch.where(flat, 0.0, h / safe)
    offset = offset.nan_to_num(0.0, 0.0, 0.0)  # of what is impossible
    every = torch.arange(H.shape[1], device=H.device)
    same = (normal[:, :, None] - normal[:, None]).square().sum(3) <= _LEAN**2
    tighter = (offset[:, None] < offset[:, :, None]) | (
        (offset[:, None] == offset[:, :, None]) & (every[None] < every[:, None])
    )
    real = ~flat & ~(same & tighter & ~flat[:, None]).any(2)
    lean = torch.linalg.vector_norm(normal[:, :, None] + normal[:, None], dim=3)
    opposite = (lean <= _LEAN) & real[:, :, None] & real[:, None]
    # a slab of which the width is rounding holds no open set
    width, distance = offset[:, :, None] + offset[:, None], (offset[:, :, None] - offset[:, None]).abs()
    impossible = impossible | (opposite & (width <= _TIE * distance + _WEDGE * lean)).flatten(1).any(1)
    return _Planes(normal, offset, real, opposite, impossible)


def _cut(
    point: Tensor, along: Tensor, planes: _Planes, own: Tensor, share: tuple[Tensor, Tensor] | None = None
) -> _Lines:
    """Lines `(n, L, S)` cut by all planes but their `own (n, L, m)`; `share (n, L, m)`: a and b, times the sine."""
    normal, offset, real = planes.normal, planes.offset, planes.real
    speed, reach = along @ normal.mT, point @ normal.mT
    room = offset[:, None] - reach
    used = real[:, None] & ~own
    still = speed.abs() <= _PARALLEL
    bound = torch.zeros_like(room)
    if share is not None:
        a, b = ((part > _LEAN).long() - (part < -_LEAN).long() for part in share)
        slack = _TIE * (offset.abs()[:, None] + torch.linalg.vector_norm(point, dim=2)[..., None])
        bound = torch.where(a * b < 0, slack, torch.where(a + b > 0, -slack, 0.0))
    dead = still & (room < bound)
    t = room / torch.where(still, 1.0, speed)
    end = torch.where(used & ~still & (speed > 0), t, torch.inf).amin(2)
    start = torch.where(used & ~still & (speed < 0), t, -torch.inf).amax(2)
    size = torch.maximum(start.abs(), end.abs())
    short = (end <= start) | (torch.isfinite(size) & (end - start <= _SHORT * size))
    return _Lines(point, along, ~short & ~(used & dead).any(2), start, end)


def _ends(lines: _Lines, which: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Homogeneous tails and heads `(E, S + 1)` of the lines named."""
    point, along = lines.point[which], lines.along[which]
    out = []
    for t, sign in ((lines.start[which], -1.0), (lines.end[which], 1.0)):
        finite = torch.isfinite(t)[:, None]
        at = torch.where(finite, point + torch.where(finite, t[:, None], 0.0) * along, sign * along)
        out.append(torch.cat((at, finite.to(at.dtype)), 1))
    return out[0], out[1]


def _split(tail: Tensor, head: Tensor, middle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whole lines as two edges that meet at their points; and the edge that each of these was."""
    whole = (tail[:, -1] == 0) & (head[:, -1] == 0)
    index = torch.cat((torch.arange(len(tail), device=tail.device), whole.nonzero()[:, 0]))
    at = torch.cat((middle[whole], torch.ones_like(tail[whole, :1])), 1)
    first_head = torch.where(whole[:, None], torch.cat((middle, torch.ones_like(tail[:, :1])), 1), head)
    return torch.cat((tail, at)), torch.cat((first_head, head[whole])), index


def _polygons(H: Tensor, h: Tensor) -> Clipped:
    planes = _planes(H, h)
    n, m, _ = H.shape
    normal, offset = planes.normal, planes.offset
    along = torch.stack((-normal[..., 1], normal[..., 0]), -1)  # the inside is on the left
    own = torch.eye(m, dtype=torch.bool, device=H.device) | planes.opposite
    lines = _cut(normal * offset[..., None], along, planes, own)
    alive = lines.alive & planes.real
    empty = planes.impossible | (planes.real.any(1) & ~alive.any(1))
    owner, side = (alive & ~empty[:, None]).nonzero(as_tuple=True)
    tail, head = _ends(lines, (owner, side))
    tail, head, index = _split(tail, head, lines.point[owner, side])
    owner, side = owner[index], side[index]
    order = (owner * m + side).argsort(stable=True)
    tail, head, owner, side = (part[order] for part in (tail, head, owner, side))
    tail, head = _merged(tail, head, owner, n)
    return Clipped(Polygons(tail, head, owner, n), side, empty)


def _polyhedra(H: Tensor, h: Tensor) -> Clipped:
    planes = _planes(H, h)
    n, m, _ = H.shape
    normal, offset, real, opposite, impossible = planes
    i, j = torch.triu_indices(m, m, 1, device=H.device)
    first, second = normal[:, i], normal[:, j]
    cross = torch.linalg.cross(first, second)
    sine = torch.linalg.vector_norm(cross, dim=2)
    meet = (sine > 0.1 * _LEAN) & real[:, i] & real[:, j]
    safe = torch.where(meet, sine, 1.0)[..., None]
    cosine = (first * second).sum(2, keepdim=True)
    inward = (second - cosine * first) / safe  # a unit vector in the first plane
    point = first * offset[:, i, None] + inward * (offset[:, j, None] - cosine * offset[:, i, None]) / safe
    own = torch.eye(m, dtype=torch.bool, device=H.device) | opposite
    own = own[:, i] | own[:, j]
    across = (first - cosine * second) / safe  # in the second one
    share = (normal[:, None] * across[:, :, None]).sum(3), (normal[:, None] * inward[:, :, None]).sum(3)
    lines = _cut(point, cross / safe, planes, own, share)
    alive = lines.alive & meet & ~impossible[:, None]
    # faces have edges, or are whole planes that only parallel ones are beside
    count = torch.zeros(n, m, dtype=torch.long, device=H.device)
    count.scatter_add_(1, i.expand(n, -1), alive.long()).scatter_add_(1, j.expand(n, -1), alive.long())
    crossed = torch.zeros_like(count)
    crossed.scatter_add_(1, i.expand(n, -1), meet.long()).scatter_add_(1, j.expand(n, -1), meet.long())
    face = real & ((count > 0) | (crossed == 0)) & ~impossible[:, None]
    empty = impossible | (real.any(1) & ~face.any(1))

    owner, line = alive.nonzero(as_tuple=True)
    tail, head = _ends(lines, (owner, line))
    tail, head, index = _split(tail, head, lines.point[owner, line])
    owner, line = owner[index], line[index]
    order = owner.argsort(stable=True)
    tail, head, owner, line = (part[order] for part in (tail, head, owner, line))
    tail, head = _merged(tail, head, owner, n)
    # along first x second the inside is on the left of the first plane, seen from outside
    place = torch.cat((owner * m + i[line], owner * m + j[line]))
    tail, head = torch.cat((tail, head)), torch.cat((head, tail))
    order = place.argsort(stable=True)
    of, side = face.nonzero(as_tuple=True)
    number = face.flatten().cumsum(0) - 1
    planes_of = normal[of, side], offset[of, side]
    return Clipped(Polyhedra(tail[order], head[order], number[place[order]], *planes_of, of, n), side, empty)


def _merged(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same ends, where points of a polytope that differ by rounding are the first of them."""
    if not len(owner):
        return tail, head
    size = torch.bincount(owner, minlength=count)
    place = torch.arange(len(owner), device=owner.device) - (size.cumsum(0) - size)[owner]
    width, last = int(size.max()), tail.shape[1]
    table = tail.new_zeros(count, 2 * width, last)
    table[owner, place], table[owner, width + place] = tail, head
    at, finite = table[..., :-1], table[..., -1] != 0
    near = torch.ones(count, 2 * width, 2 * width, dtype=torch.bool, device=owner.device)
    for axis in at.unbind(2):
        near &= (axis[:, :, None] - axis[:, None]).abs() <= _SHORT * (1e-300 + at.abs().amax(2))[:, :, None]
    near &= finite[:, :, None] & finite[:, None]
    first = torch.where(finite, near.to(torch.uint8).argmax(2), torch.arange(2 * width, device=owner.device))
    merged = table.gather(1, first[..., None].expand(-1, -1, last))
    return merged[owner, place], merged[owner, width + place]
