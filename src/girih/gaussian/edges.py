"""Lines that carry the edges of convex polygons, in padded tables `(n, K)`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Edges(NamedTuple):
    """Directed edges with the polygon on their left; those of length 0 or wholly at infinity are not `real`."""

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
    """Which polygons `(n,)` have no edge at all: whole planes. One whose edges all have length 0 is a point."""
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
