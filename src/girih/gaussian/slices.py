r"""Convex sets cut into slices across the direction of their point nearest to the origin.

With `c` that point (the *anchor*), `d = c/|c|` and `x = c + t d + u`, u normal to d, `|x|^2 = |c|^2 + 2 |c| t + t^2 +
|u|^2`. So the level t has the density

    exp(-|c|^2 / 2) / sqrt(2 pi)  exp(-|c| t - t^2 / 2)  P(u in slice at level t),        t >= 0 if c is not 0

where the slices of a polygon are segments between two lines, those of a polyhedron polygons whose vertices move along
lines between the levels of its vertices. All is positive, and the density is log-concave (Prekopa).

The set K, seen from its anchor, contains K/10; substituting `y = 10 y'` shows that the part beyond level T holds less
than `10^S exp(-0.9 |c| T - 0.495 T^2)` of the mass, which ends the range at less than 1e-16 of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.nearest import nearest_and_edge, polyhedron_nearest
from girih.gaussian.tables import (
    PolygonTable,
    PolyhedronTable,
    Table,
    complete,
    is_plane,
    is_unbounded,
    polygon_table,
)

DROP = 44.0  # 10^3 exp(-44) is 8e-17
THIN = 1e-14  # panels thinner than this part of the range come from rounding
NO_RISE = 1e-12  # of the rays of polygons: what is less comes from rounding


class Frame(NamedTuple):
    """A frame says where slices are taken: anchor, its distance, a right-handed basis, first the way up."""

    anchor: Tensor  # (n, S)
    height: Tensor  # (n,)
    basis: Tensor  # (n, S, S), rows


class Segments(NamedTuple):
    """Slices of polygons are panels of levels, and the two lines `u = line[0] + line[2] (t - line[1])` of each."""

    owner: Tensor  # (m,)
    lower: Tensor  # (m,)
    upper: Tensor  # (m,)
    left: Tensor  # (m, 3)
    right: Tensor  # (m, 3)

    def at(self, panel: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the slices of panels `(k,)` at levels `(k, m)`."""
        left, right = self.left[panel, :, None], self.right[panel, :, None]
        lower = torch.addcmul(left[:, 0], left[:, 2], t - left[:, 1])
        upper = torch.addcmul(right[:, 0], right[:, 2], t - right[:, 1])
        return lower, torch.maximum(lower, upper)


class Sections(NamedTuple):
    """Slices of polyhedra are panels of levels, and the ends of edges as `x = at + slope (t - level)`, or directions.

    The last entry of an end is 1 for points and 0 for directions.
    """

    owner: Tensor  # (m,)
    lower: Tensor  # (m,)
    upper: Tensor  # (m,)
    tail: Tensor  # (m, E, 6): x, y, slope of x, slope of y, level, finite
    head: Tensor  # (m, E, 6)

    def at(self, panel: Tensor, t: Tensor) -> PolygonTable:
        """The slices of panels `(k,)` at levels `(k, m)`, `k m` polygons."""
        out = []
        for ends in (self.tail, self.head):
            e = ends[panel][:, None]
            finite = e[..., 5:]
            at = e[..., :2] + finite * e[..., 2:4] * (t[..., None, None] - e[..., 4:5])
            out.append(torch.cat((at, finite.expand(*at.shape[:-1], 1)), -1).flatten(0, 1))
        return polygon_table(*out)


Slices = Segments | Sections


def find_frame(table: Table) -> Frame:
    """Anchors; the way up goes away from the origin, or from the nearest facet where the origin is inside."""
    if isinstance(table, PolygonTable):
        n, K = table.edges.real.shape
        owner = torch.arange(n, device=table.tail.device).repeat_interleave(K)
        anchor, k = nearest_and_edge(table.tail.reshape(-1, 3), table.head.reshape(-1, 3), owner, n)
        height = torch.hypot(anchor[:, 0], anchor[:, 1])
        facing = table.edges.outward.reshape(-1, 2)[k] if K else anchor
        some = table.edges.real.any(-1)
    else:
        n, F, K, _ = table.tail.shape
        f, owner = table.real.flatten().nonzero()[:, 0], table.real.nonzero()[:, 0]
        tail, head = (ends.reshape(n * F, K, 4)[f].reshape(-1, 4) for ends in (table.tail, table.head))
        face = torch.arange(len(f), device=f.device).repeat_interleave(K)
        planes = table.normal.reshape(-1, 3)[f], table.offset.flatten()[f]
        anchor = polyhedron_nearest(tail, head, face, *planes, owner, n)
        height = anchor.norm(dim=-1)
        lowest = torch.where(table.real, table.offset, torch.inf).argmin(-1)
        facing = table.normal[torch.arange(n, device=f.device), lowest]
        some = table.real.any(-1)
    up = torch.where((height > 0)[:, None], anchor / torch.where(height > 0, height, 1.0)[:, None], -facing)
    up = torch.where(some[:, None], up, _axis(up))
    return Frame(anchor, height, _basis(up))


def _axis(like: Tensor) -> Tensor:
    """The first axis of the plane, or the last one of space."""
    return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)[0 if like.shape[1] == 2 else 2]


def tilted_frame(tilt: Tensor) -> Frame:
    """The frame of sets that are given relative to their anchors, tilts `(n, S)`, already."""
    height = torch.hypot(tilt[:, 0], tilt[:, 1]) if tilt.shape[1] == 2 else tilt.norm(dim=-1)
    return Frame(torch.zeros_like(tilt), height, _basis(tilt / height[:, None]))


def _basis(up: Tensor) -> Tensor:
    rest = torch.stack((-up[:, 1], up[:, 0]), -1)[:, None] if up.shape[1] == 2 else complete(up)
    return torch.cat((up[:, None], rest), 1)


def cut(table: Table, frame: Frame) -> Slices:
    """Panels between the levels of the vertices of each set, and what bounds the slices on them."""
    return _cut_polygons(table, frame) if isinstance(table, PolygonTable) else _cut_polyhedra(table, frame)


def _cut_polygons(table: PolygonTable, frame: Frame) -> Segments:
    edges = table.edges
    a, b, step, ray = _moves(table, frame)
    step = torch.where(ray[..., None] & (step.abs() < NO_RISE * step.abs().amax(-1, keepdim=True)), 0.0, step)
    vertex = edges.real & edges.tail_finite
    bounded = ~(edges.real & ray).any(-1) & ~is_plane(edges)
    owner, lower, upper = _level_panels(a[..., 0], vertex, bounded, frame.height)

    # the edges that span a panel: at most one runs up and one runs down
    middle = 0.5 * (lower + upper)[:, None]
    a, b, step, real = a[owner], b[owner], step[owner], edges.real[owner]
    tail_finite = edges.tail_finite[owner]
    rise = step[..., 0]
    first, last = _span(a, b, rise, tail_finite, edges.head_finite[owner])
    base = torch.where(tail_finite[..., None], a, b)
    leftmost = real & (rise > 0) & (first <= middle) & (middle <= last)
    rightmost = real & (rise < 0) & (last <= middle) & (middle <= first)
    # u >= line for edges that run up: the polygon is on their left, where side increases
    left, has_left = _line(leftmost, base, step, -torch.inf)
    right, has_right = _line(rightmost, base, step, torch.inf)
    outward = step[..., 1] * (middle - base[..., 0]) + rise * base[..., 1]
    open_slice = ((outward <= 0) | ~real).all(-1)  # asked only of levels that no edge crosses
    kept = torch.where(bounded[owner], has_left & has_right, has_left | has_right | open_slice)
    # other edges that are level only up to rounding may cross a level far out: it is outside all the same
    kept &= bounded[owner] | ~(real & (rise == 0) & (outward > 0)).any(-1)
    return Segments(*(part[kept] for part in (owner, lower, upper, left, right)))


def _line(spans: Tensor, base: Tensor, step: Tensor, missing: float) -> tuple[Tensor, Tensor]:
    """The line `(value, level, slope)` of the one edge that spans, a constant infinity where there is none."""
    rows = torch.arange(len(spans), device=spans.device)
    k = spans.to(torch.uint8).argmax(-1) if spans.shape[1] else rows
    found = spans[rows, k]
    base, step = base[rows, k], step[rows, k]
    slope = step[:, 1] / torch.where(found, step[:, 0], 1.0)
    parts = (base[:, 1], missing), (base[:, 0], 0.0), (slope, 0.0)
    return torch.stack([torch.where(found, part, none) for part, none in parts], -1), found


def _cut_polyhedra(faces: PolyhedronTable, frame: Frame) -> Sections:
    edges = faces.edges
    a, b, step, ray = _moves(faces, frame)  # (n, F, K, 3)
    tail_finite, head_finite = edges.tail_finite, edges.head_finite
    real = edges.real & faces.real[..., None]
    normal = (frame.basis[:, None] * faces.normal[:, :, None]).sum(-1)  # (n, F, 3): level, then the plane
    # a ray that lies in the slices up to rounding must not cross them: how far rays leave their faces says how much
    length = step.abs().amax(-1, keepdim=True)
    lean = torch.where(ray & real, (step * normal[:, :, None]).sum(-1).abs() / length[..., 0], 0.0).flatten(1)
    lean = torch.nn.functional.pad(lean, (0, 1)).amax(1)
    nothing = (4.0 * lean).clamp(1e-12, 1e-6)[:, None, None, None] * length
    step = torch.where(ray[..., None] & (step.abs() < nothing), 0.0, step)
    open_face = is_unbounded(faces)
    bounded = ~open_face.any(-1) & faces.real.any(-1)
    # whole planes have no vertices; parallel to the slices, as they then are, they are met at one level
    offset = faces.offset - (faces.normal * frame.anchor[:, None]).sum(-1)
    rising_normal = (faces.normal * frame.basis[:, None, 0]).sum(-1)
    level = torch.cat((a[..., 0].flatten(1), offset * rising_normal.sign()), 1)
    vertex = torch.cat(((real & tail_finite).flatten(1), faces.real & is_plane(edges)), 1)
    owner, lower, upper = _level_panels(level, vertex, bounded, frame.height)
    middle = 0.5 * (lower + upper)

    rise = step[..., 0]
    first, last = _span(a, b, rise, tail_finite, head_finite)
    # the lower end, if finite: both faces at an edge then compute the very same point
    use_tail = tail_finite & (~head_finite | (first <= last))
    base = torch.where(use_tail[..., None], a, b)
    level = middle[:, None, None]
    rising = real[owner] & (rise[owner] > 0) & (first[owner] <= level) & (level <= last[owner])
    falling = real[owner] & (rise[owner] < 0) & (last[owner] <= level) & (level <= first[owner])

    # direction of a face's edge in the slice: up x normal
    normal = normal[owner]
    width = torch.hypot(normal[..., 1], normal[..., 2])
    across = torch.stack((-normal[..., 2], normal[..., 1]), -1) / torch.where(width > 0, width, 1.0)[..., None]
    head, has_head = _ends(rising, base[owner], step[owner], across)
    tail, has_tail = _ends(falling, base[owner], step[owner], -across)
    drawn = torch.where(open_face[owner], has_head | has_tail, has_head & has_tail)

    # a face that no edge bounds at this level draws a whole line, or nothing
    gap = offset[owner] - normal[..., 0] * middle[:, None]
    foot = normal[..., 1:] * (gap / torch.where(width > 0, width, 1.0).square())[..., None]
    at = torch.cat((middle[:, None, None].expand(*gap.shape, 1), foot), -1)
    off = torch.linalg.cross(step[owner], normal[..., None, :].expand_as(step[owner]))
    beyond = (off * (at[..., None, :] - base[owner])).sum(-1) > 0
    line = open_face[owner] & ~(has_head | has_tail) & (width > 1e-15) & ~(beyond & real[owner]).any(-1)
    drawn, tail, head = _split_lines(drawn, line, tail, head, foot, normal, width, middle)

    hollow = ~((gap < 0) & faces.real[owner]).any(-1)  # asked only of levels at which nothing is drawn
    kept = torch.where(bounded[owner], drawn.any(-1), drawn.any(-1) | hollow)
    tail, head = (torch.where(drawn[..., None], ends, 0.0) for ends in (tail, head))
    return Sections(*(part[kept] for part in (owner, lower, upper, tail, head)))


def _moves(table: Table, frame: Frame) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ends of edges about the anchors in the frame, level first; the steps between them; which edges are rays."""
    shape = (len(frame.anchor), *[1] * (table.tail.ndim - 2))
    anchor, basis = frame.anchor.view(*shape, -1), frame.basis.view(*shape, *frame.basis.shape[1:])

    def local(point: Tensor) -> Tensor:
        y = torch.where(point[..., -1:] != 0, point[..., :-1] - anchor, point[..., :-1])
        return (y[..., None, :] * basis).sum(-1)

    a, b = local(table.tail), local(table.head)
    tail_finite, head_finite = table.edges.tail_finite, table.edges.head_finite
    step = torch.where(tail_finite[..., None], torch.where(head_finite[..., None], b - a, b), -a)
    return a, b, step, ~(tail_finite & head_finite)


def _span(a: Tensor, b: Tensor, rise: Tensor, tail_finite: Tensor, head_finite: Tensor) -> tuple[Tensor, Tensor]:
    """The levels at which edges start and end."""
    first = torch.where(tail_finite, a[..., 0], -torch.inf * rise.sign())
    return first, torch.where(head_finite, b[..., 0], torch.inf * rise.sign())


def _ends(spans: Tensor, base: Tensor, step: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the one edge of each face that spans the panel crosses it, as in `Slices`; `missing` if none does."""
    out = torch.cat((missing, torch.zeros_like(missing), torch.zeros_like(missing)), -1)
    if not spans.shape[-1]:
        return out, spans.any(-1)
    k = spans.to(torch.uint8).argmax(-1, keepdim=True)
    found = spans.gather(-1, k)[..., 0]
    base, step = (part.gather(2, k[..., None].expand(*k.shape, 3))[:, :, 0] for part in (base, step))
    slope = step[..., 1:] / torch.where(found, step[..., 0], 1.0)[..., None]
    crossing = torch.cat((base[..., 1:], slope, base[..., :1], torch.ones_like(base[..., :1])), -1)
    return torch.where(found[..., None], crossing, out), found


def _split_lines(
    drawn: Tensor, line: Tensor, tail: Tensor, head: Tensor, foot: Tensor, normal: Tensor, width: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole lines as two edges that meet at the foot of the axis."""
    if not line.any():
        return drawn, tail, head
    slope = -normal[..., 1:] * (normal[..., 0] / torch.where(width > 0, width, 1.0).square())[..., None]
    at = level[:, None, None].expand(*line.shape, 1)
    point = torch.cat((foot, slope, at, torch.ones_like(at)), -1)
    return (
        torch.cat((drawn | line, line), -1),
        torch.cat((tail, point), 1),
        torch.cat((torch.where(line[..., None], point, head), head), 1),
    )


def _reach(height: Tensor) -> Tensor:
    """The level above the anchor beyond which the mass is below 1e-17 of the whole, `height` the anchor's."""
    slope = 0.9 * height
    return 2.0 * DROP / (slope + (slope.square() + 4.0 * 0.495 * DROP).sqrt())


def _level_panels(level: Tensor, vertex: Tensor, bounded: Tensor, height: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Panels between neighbouring levels of vertices: owner, lower and upper end, `(m,)` each.

    Args:
        level: levels of points, `(n, K)`.
        vertex: which of them are vertices, `(n, K)`.
        bounded: the sets of which no part lies beyond its vertices, `(n,)`.
        height: distance of the anchors from the origin, `(n,)`.
    """
    far = _reach(height)[:, None]
    low = torch.where(vertex, level, torch.inf).amin(-1, keepdim=True)
    high = torch.where(vertex, level, -torch.inf).amax(-1, keepdim=True)
    low = torch.where(bounded[:, None], torch.maximum(low, -far), -far)
    high = torch.where(bounded[:, None], torch.minimum(high, far), far)
    inner = torch.cat((torch.where(vertex, level, high), -0.25 * far, 0.25 * far), -1)
    levels = torch.cat((low, torch.maximum(torch.minimum(inner, high), low), high), -1).sort(-1).values
    owner, place = (levels.diff(dim=-1) > THIN * (high - low)).nonzero(as_tuple=True)
    return owner, levels[owner, place], levels[owner, place + 1]
