r"""The point of each convex polygon or polyhedron nearest to the origin.

Every edge has a point nearest to the origin, and a face has the foot of its plane where that lies in it; the nearest
of these, `c`, is the answer where the origin is outside. Whether it is cannot be asked of the normals of short edges,
which are mostly rounding. But a convex set with the origin outside lies beyond the plane through `c` normal to `c`, so
all its vertices have `v . c >= |c|^2` and all its directions `d . c >= 0`; if the origin is inside, one vertex has
`v . c <= 0` or one direction `d . c < 0`. The threshold for vertices, `|c|^2 / 2`, is far from both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from girih._devices import room

_CHUNK = 1 << 14  # edges at a time: what fits a cache
PARALLEL = 1e-14  # sine of the angle to a boundary direction that may be rounding
_CORNER = 1e-3  # the same where the nearest point is a corner
_LEAN = 4.0  # faces that rounding may turn as far as it turns the rays of the worst of them
TIE = 1.0 - 16.0 * torch.finfo(torch.float64).eps  # the rounding of squared distances


class _Points(NamedTuple):
    """Edges, coordinates first, and the point of each that is nearest to the origin."""

    point: Tensor  # (S, E)
    square: Tensor  # (E,) its squared distance; inf for edges wholly at infinity
    along: Tensor  # (S, E) unit direction, 0 for edges of length 0
    free: Tensor  # (E,) where the point is no end of the edge
    tail: Tensor  # (S + 1, E)
    head: Tensor  # (S + 1, E)


def polygon_nearest(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> Tensor:
    """The point of each of `Polygons` nearest to the origin, `(count, 2)`: a point of it up to rounding of vertices."""
    return nearest_and_edge(tail, head, owner, count)[0]


def nearest_and_edge(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`polygon_nearest`, and the edge `(count,)` that is nearest to the origin; -1 where there is none."""
    out, nearest = tail.new_zeros(count, 2), owner.new_full((count,), -1)
    for edges, items in _chunks(owner, count):
        own = owner[edges] - items.start
        size = torch.bincount(own, minlength=items.stop - items.start)
        edge = _points(tail[edges].mT, head[edges].mT)
        inward = torch.stack((-edge.along[1], edge.along[0]))
        facing = edge.free & ((inward * edge.point).sum(0) > 0)
        k = _argmin(_prefer(edge.square, facing), own, size)
        c = torch.where(k >= 0, edge.point[:, k], 0.0)
        out[items] = torch.where(_encloses(c, edge, inward, own), 0.0, c).mT
        nearest[items] = torch.where(k >= 0, k + edges.start, -1)
    return out, nearest


def polyhedron_nearest(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int
) -> Tensor:
    """The same for each of `Polyhedra`, `(count, 3)`."""
    out = tail.new_zeros(count, 3)
    start = torch.searchsorted(face, torch.arange(len(owner) + 1, device=face.device))  # first edge of each face
    for faces, items in _chunks(owner, count):
        edges = slice(int(start[faces.start]), int(start[faces.stop]))
        out[items] = _of_polyhedra(
            _points(tail[edges].mT, head[edges].mT),
            face[edges] - faces.start,
            normal[faces].mT.contiguous(),
            offset[faces],
            owner[faces] - items.start,
            items.stop - items.start,
        ).mT
    return out


def _of_polyhedra(edge: _Points, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int) -> Tensor:
    size = torch.bincount(face, minlength=len(owner))
    # each face as a polygon about the foot of the origin
    foot = normal * offset
    nearest, over = foot, torch.ones_like(offset, dtype=torch.bool)
    free = over
    if len(face):
        inward = torch.linalg.cross(normal[:, face], edge.along, dim=0)
        facing = edge.free & ((inward * edge.point).sum(0) > 0)  # inward is normal to the foot
        k = _argmin(_prefer(edge.square, facing), face, size)
        off = edge.point[:, k] - foot
        # rounding of the foot is all that it has along the edge and off the plane
        along = torch.where(edge.free[k], edge.along[:, k], 0.0)
        off = off - (off * along).sum(0) * along
        off = off - (off * normal).sum(0) * normal
        free = edge.free[k]
        slack = torch.where(free, 0.0, _CORNER)
        over = (k < 0) | _encloses(off, _shift(edge, foot[:, face]), inward, face, slack)
        nearest = torch.where(over, foot, edge.point[:, k])
    behind_face = over & (offset < 0)
    square = _prefer(_prefer(nearest.square().sum(0), behind_face), behind_face | (~over & free))
    f = _argmin(square, owner, torch.bincount(owner, minlength=count))
    c = torch.where(f >= 0, nearest[:, f], 0.0)

    # vertices decide; half-spaces do where the set is not spanned by its vertices and edges
    behind = torch.zeros(count, dtype=torch.bool, device=owner.device)
    behind[owner[offset < 0]] = True
    ray = (edge.tail[3] == 0) | (edge.head[3] == 0)
    unbounded = torch.zeros_like(behind)
    unbounded[owner[face[ray]]] = True
    unbounded[owner[size == 0]] = True
    # rays leave their own faces by rounding alone: by so much no ray shows that the set goes behind a face
    lean = torch.where(ray, (edge.along * normal[:, face]).sum(0).abs(), 0.0)
    slack = c.new_zeros(count).scatter_reduce(0, owner[face], _LEAN * lean, "amax").clamp(max=_CORNER)
    slack = torch.where(over[f], slack, _CORNER)
    inside = _encloses(c, edge, None, owner[face], slack) | (unbounded & ~behind)
    return torch.where(inside, 0.0, c)


def _chunks(owner: Tensor, count: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of the flat list, some thousand places each, and of the owners whose places these are."""
    size = room(_CHUNK, owner.device)
    items = owner[size::size].unique_consecutive()
    first = torch.searchsorted(owner, items).tolist()
    ends = zip([0, *first], [*first, len(owner)], [0, *items.tolist()], [*items.tolist(), count], strict=True)
    for a, b, i, j in ends:
        if j > i and b > a:
            yield slice(a, b), slice(i, j)


def _points(tail: Tensor, head: Tensor) -> _Points:
    tail, head = tail.contiguous(), head.contiguous()
    from_point, to_point = tail[-1] != 0, head[-1] != 0
    a, b = tail[:-1], head[:-1]
    step = torch.where(from_point, torch.where(to_point, b - a, b), -a)
    along = step / step.square().sum(0).sqrt_().clamp_(min=torch.finfo(step.dtype).tiny)
    start, end = (along * a).sum(0), (along * b).sum(0)
    # from the nearer end; what is left along the edge after the first subtraction is rounding
    base = torch.where(from_point & (~to_point | (start.abs() <= end.abs())), a, b)
    foot = torch.addcmul(base, (along * base).sum(0), along, value=-1.0)
    foot = foot.addcmul_((along * foot).sum(0), along, value=-1.0)
    at_tail, at_head = from_point & (start >= 0), to_point & (end <= 0)
    point = torch.where(at_tail, a, torch.where(at_head, b, foot))
    square = torch.where(from_point | to_point, point.square().sum(0), torch.inf)
    return _Points(point, square, along, ~(at_tail | at_head), tail, head)


def _shift(edge: _Points, origin: Tensor) -> _Points:
    """The edges seen from an `origin (S, E)`."""
    tail, head = (torch.cat((torch.where(x[-1] != 0, x[:-1] - origin, x[:-1]), x[-1:])) for x in (edge.tail, edge.head))
    return edge._replace(tail=tail, head=head)


def _prefer(square: Tensor, facing: Tensor) -> Tensor:
    """Squared distances by which facets that face the origin, and so hold the nearest point, win ties with corners."""
    return torch.where(facing, square * TIE, square)


def _argmin(values: Tensor, owner: Tensor, size: Tensor) -> Tensor:
    """Place of the smallest finite value of each owner; -1 where there is none."""
    out = owner.new_full((len(size),), -1)
    if len(owner):
        least = torch.segment_reduce(values, "min", lengths=size, unsafe=True, initial=torch.inf)
        found = ((values == least[owner]) & (values < torch.inf)).nonzero()[:, 0]
        out.scatter_reduce_(0, owner[found], found, "amin", include_self=False)
    return out


def _encloses(c: Tensor, edge: _Points, inward: Tensor | None, owner: Tensor, slack: Tensor | None = None) -> Tensor:
    """Tell whether the vertices and directions of sets with the boundary nearest at `c (S, n)` show the origin inside.

    `inward (S, E)` are normals of the edges in their plane: those of rays add up to one more direction of the set,
    which tells the two sides of a line. `slack (n,)` are cosines below 0 that count as 0, where c is a corner (or
    an edge of a polyhedron) with rounding, which it is for an origin inside only in ties between nearly parallel sides.
    """
    inside = torch.zeros(c.shape[1], dtype=torch.bool, device=c.device)
    square = c.square().sum(0)
    own = c[:, owner]
    from_point, to_point = edge.tail[-1] != 0, edge.head[-1] != 0
    limit = 0.5 * square[owner]
    if slack is not None:
        limit = limit - (slack * square.sqrt())[owner] * edge.tail[:-1].square().sum(0).sqrt()
    below = from_point & ((edge.tail[:-1] * own).sum(0) < limit)
    inside[owner[below]] = True
    ray = (from_point != to_point).nonzero()[:, 0]
    if len(ray):
        level = -square.sqrt() * (PARALLEL if slack is None else slack.clamp(min=PARALLEL))
        out = torch.where(from_point[ray], 1.0, -1.0) * edge.along[:, ray]
        back = (out * own[:, ray]).sum(0) < level[owner[ray]]
        inside[owner[ray[back]]] = True
        if inward is not None:
            middle = torch.zeros_like(c).index_add_(1, owner[ray], inward[:, ray])
            inside |= (middle * c).sum(0) < level
    return inside
