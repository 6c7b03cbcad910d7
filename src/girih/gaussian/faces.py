"""Faces of convex polyhedra as polygons of their planes, in padded tables `(n, F)` of faces with `K` edges each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.edges import Edges, describe, is_plane


class Faces(NamedTuple):
    """Polyhedra in a padded table. A face without edges is a whole plane; places that are not `real` are empty."""

    tail: Tensor  # (n, F, K, 4) homogeneous
    head: Tensor  # (n, F, K, 4)
    normal: Tensor  # (n, F, 3) outward, unit length
    offset: Tensor  # (n, F)
    real: Tensor  # (n, F)
    axes: Tensor  # (n, F, 2, 3) orthonormal, right-handed with the normal


def make_faces(tail: Tensor, head: Tensor, normal: Tensor, offset: Tensor, real: Tensor) -> Faces:
    """`Faces` with axes in their planes."""
    return Faces(tail, head, normal, offset, real, complete(normal))


def complete(normal: Tensor) -> Tensor:
    """Two unit vectors `(..., 2, 3)` that make a right-handed basis with a unit vector `(..., 3)`."""
    x, y, z = normal.unbind(-1)
    sign = torch.where(z < 0, -1.0, 1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = torch.stack((1.0 + sign * x.square() * a, sign * b, -sign * x), -1)
    second = torch.stack((b, sign + y.square() * a, -y), -1)
    return torch.stack((first, second), -2)


def select(faces: Faces, rows: Tensor) -> Faces:
    """Some of the polyhedra."""
    return Faces(*(part[rows] for part in faces))


def plane_edges(faces: Faces, origin: Tensor | None = None) -> tuple[Tensor, Edges]:
    """Distance `(n, F)` of each plane from `origin (n, 3)`, and its edges about the foot of the origin."""
    tail, head, offset = faces.tail, faces.head, faces.offset
    if origin is not None:
        offset = offset - (faces.normal * origin[:, None]).sum(-1)
        shift = torch.cat((origin, torch.zeros_like(origin[:, :1])), 1)[:, None, None]
        tail, head = (torch.where(x[..., 3:] != 0, x - shift, x) for x in (tail, head))
    return offset, describe(_flatten(tail, faces.axes), _flatten(head, faces.axes))


def _flatten(point: Tensor, axes: Tensor) -> Tensor:
    flat = (point[..., None, :3] * axes[:, :, None]).sum(-1)
    return torch.cat((flat, point[..., 3:]), -1)


def is_unbounded(faces: Faces, edges: Edges) -> Tensor:
    """Which faces `(n, F)` reach infinity."""
    rays = edges.real & ~(edges.tail_finite & edges.head_finite)
    return faces.real & (rays.any(-1) | is_plane(edges))
