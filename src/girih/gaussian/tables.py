"""Convex polygons and polyhedra: flat lists, where every item names its owner, and padded tables, a row for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_BUCKETS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_FAR = 1e-3  # by how much an edge counts for more with each unit of distance of the farthest vertex


def slots(owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Number of items of each owner `(count,)`, and the place of every item within its owner; `owner` is sorted."""
    size = torch.bincount(owner, minlength=count)
    start = size.cumsum(0) - size
    return size, torch.arange(len(owner), device=owner.device) - start[owner]


def ragged(start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of all entries of the segments `start[i] : start[i] + length[i]`, and the segment of each entry."""
    owner = torch.repeat_interleave(length)
    first = length.cumsum(0) - length
    return torch.arange(len(owner), device=owner.device) + (start - first)[owner], owner


def sorted_in_rows(row: Tensor, value: Tensor) -> Tensor:
    """An index that sorts by row, and by value within each row."""
    order = value.argsort(stable=True)
    return order[row[order].argsort(stable=True)]


def buckets(size: Tensor, cells: int) -> Iterator[tuple[Tensor, int]]:
    """Groups of owners of similar size: their indices and a width that holds them; at most `cells` cells a group."""
    largest = int(size.max()) if size.numel() else 0
    below = -1
    for width in (*(w for w in _BUCKETS if w < largest), *_doublings(largest)):
        chosen = ((size > below) & (size <= width)).nonzero()[:, 0]
        below = width
        if len(chosen):
            for part in chosen.split(max(1, cells // max(1, width))):
                yield part, width


def _doublings(largest: int) -> list[int]:
    """Widths above the listed ones, up to one that holds `largest`."""
    fitting = [w for w in _BUCKETS if w >= largest]
    if fitting:
        return fitting[:1]
    widths = [2 * _BUCKETS[-1]]
    while widths[-1] < largest:
        widths.append(2 * widths[-1])
    return widths


def gather(chosen: Tensor, width: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Positions `(n, width)` in the flat list of the items of the chosen owners, and which of them are real."""
    start = size.cumsum(0) - size
    place = torch.arange(width, device=size.device)
    real = place < size[chosen][:, None]
    return torch.where(real, start[chosen][:, None] + place, 0), real


def pad(ends: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """A padded table of edges; empty places hold one wholly at infinity, which every form ignores."""
    if not len(ends):
        return ends.new_zeros(*index.shape, ends.shape[-1])
    return torch.where(real[..., None], ends[index], 0.0)


class Edges(NamedTuple):
    """Edges have their polygon on the left; those of length 0 or wholly at infinity are not `real`."""

    real: Tensor  # (n, K)
    along: Tensor  # (n, K, 2) unit direction
    outward: Tensor  # (n, K, 2) unit normal
    distance: Tensor  # (n, K) of the line from the origin, positive where the origin is on the inner side
    start: Tensor  # (n, K) coordinate along the edge, from the foot of the origin; -inf for a ray that comes in
    end: Tensor  # (n, K) +inf for a ray that goes out
    tail_finite: Tensor  # (n, K)
    head_finite: Tensor  # (n, K)


def describe(tail: Tensor, head: Tensor) -> Edges:
    """The lines of edges between homogeneous points `(n, K, 3)`."""
    tail_finite, head_finite = tail[..., 2] != 0, head[..., 2] != 0
    a, b = tail[..., :2], head[..., :2]
    step = torch.where(tail_finite[..., None], torch.where(head_finite[..., None], b - a, b), -a)
    length = torch.hypot(step[..., 0], step[..., 1])
    real = (tail_finite | head_finite) & (length > 0)
    along = step / torch.where(real, length, 1.0)[..., None]
    outward = torch.stack((along[..., 1], -along[..., 0]), -1)
    size_a = torch.where(tail_finite, a.abs().sum(-1), torch.inf)
    size_b = torch.where(head_finite, b.abs().sum(-1), torch.inf)
    near = torch.where((size_a <= size_b)[..., None], a, b)
    distance = torch.where(real, (outward * near).sum(-1), 0.0)
    start = torch.where(tail_finite, (along * a).sum(-1), -torch.inf)
    end = torch.where(head_finite, (along * b).sum(-1), torch.inf)
    return Edges(real, along, outward, distance, start, end, tail_finite, head_finite)


def is_plane(edges: Edges) -> Tensor:
    """True for polygons `(n,)` that have no edge at all: whole planes. One whose edges all have length 0 is a point."""
    return ~(edges.tail_finite | edges.head_finite).any(-1)


def angle_at_infinity(edges: Edges) -> Tensor:
    """Angle `(n,)` of the directions in which each polygon is unbounded: 2 pi for the whole plane."""
    out = torch.atan2(edges.along[..., 1], edges.along[..., 0])
    back = torch.atan2(-edges.along[..., 1], -edges.along[..., 0])
    turn = torch.where(edges.real & ~edges.tail_finite, back, 0.0) - torch.where(
        edges.real & ~edges.head_finite, out, 0.0
    )
    total = torch.remainder(turn.sum(-1) + 0.5 * torch.pi, 2.0 * torch.pi) - 0.5 * torch.pi
    return torch.where(is_plane(edges), 2.0 * torch.pi, total)


class PolygonTable(NamedTuple):
    """The polygons of a table have `K` edges each, some of which may not be `real`."""

    tail: Tensor  # (n, K, 3) homogeneous
    head: Tensor  # (n, K, 3)
    edges: Edges

    def select(self, rows: Tensor) -> PolygonTable:
        """Some of the polygons."""
        return PolygonTable(self.tail[rows], self.head[rows], Edges(*(part[rows] for part in self.edges)))

    def terms(self) -> Tensor:
        """Count the edges of each polygon, `(n,)`."""
        return self.edges.real.sum(-1)


def polygon_table(tail: Tensor, head: Tensor) -> PolygonTable:
    """Polygons whose edges run between homogeneous points `(n, K, 3)`."""
    return PolygonTable(tail, head, describe(tail, head))


class PolyhedronTable(NamedTuple):
    """The polyhedra of a table have `F` faces of `K` edges; one without edges is a plane, one not `real` is empty."""

    tail: Tensor  # (n, F, K, 4) homogeneous
    head: Tensor  # (n, F, K, 4)
    normal: Tensor  # (n, F, 3) outward, unit length
    offset: Tensor  # (n, F)
    real: Tensor  # (n, F)
    axes: Tensor  # (n, F, 2, 3) orthonormal, right-handed with the normal
    edges: Edges  # (n, F, K) in the planes of the faces, about the feet of the origin

    def select(self, rows: Tensor) -> PolyhedronTable:
        """Some of the polyhedra."""
        tail, head, normal, offset, real, axes = (part[rows] for part in self[:6])
        edges = Edges(*(part[rows] for part in self.edges))
        return PolyhedronTable(tail, head, normal, offset, real, axes, edges)

    def terms(self) -> Tensor:
        """Count the edges of each polyhedron, `(n,)`; they count for more where vertices are far.

        Planes and edges near the origin agree less well then: by some 1e-18 of the distance, as found on partitions.
        """
        edges = (self.tail[..., 3] + self.head[..., 3] != 0).sum((1, 2)) + self.real.sum(1)
        if not self.tail.shape[2]:
            return edges
        return edges * (1.0 + _FAR * (self.tail[..., :3].abs().amax(-1) * self.tail[..., 3]).amax((1, 2)))

    def seen_from(self, origin: Tensor) -> tuple[Tensor, Edges]:
        """Distance `(n, F)` of each plane from `origin (n, 3)`, and its edges about the foot of the origin."""
        shift = torch.cat((origin, torch.zeros_like(origin[:, :1])), 1)[:, None, None]
        tail, head = (torch.where(x[..., 3:] != 0, x - shift, x) for x in (self.tail, self.head))
        return self.offset - (self.normal * origin[:, None]).sum(-1), _in_planes(tail, head, self.axes)


Table = PolygonTable | PolyhedronTable


def polyhedron_table(tail: Tensor, head: Tensor, normal: Tensor, offset: Tensor, real: Tensor) -> PolyhedronTable:
    """Polyhedra from the fields of their table that are not derived."""
    axes = complete(normal)
    return PolyhedronTable(tail, head, normal, offset, real, axes, _in_planes(tail, head, axes))


def _in_planes(tail: Tensor, head: Tensor, axes: Tensor) -> Edges:
    return describe(flatten(tail, axes[:, :, None]), flatten(head, axes[:, :, None]))


def flatten(point: Tensor, axes: Tensor) -> Tensor:
    """Homogeneous points `(..., 4)` in planes with the axes `(..., 2, 3)`, `(..., 3)`."""
    flat = (point[..., None, :3] * axes).sum(-1)
    return torch.cat((flat, point[..., 3:]), -1)


def complete(normal: Tensor) -> Tensor:
    """Two unit vectors `(..., 2, 3)` that make a right-handed basis with a unit vector `(..., 3)`."""
    x, y, z = normal.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = torch.stack((1.0 + sign * x.square() * a, sign * b, -sign * x), -1)
    second = torch.stack((b, sign + y.square() * a, -y), -1)
    return torch.stack((first, second), -2)


def is_unbounded(table: PolyhedronTable) -> Tensor:
    """True for faces `(n, F)` that reach infinity."""
    edges = table.edges
    rays = edges.real & ~(edges.tail_finite & edges.head_finite)
    return table.real & (rays.any(-1) | is_plane(edges))
