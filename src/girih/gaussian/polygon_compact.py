"""Small polygons as fans of triangles, for `compact`."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian.compact import NONE, Cones, exponent, served


def compact_polygons(tail: Tensor, head: Tensor) -> tuple[Tensor, Cones]:
    """Which of the polygons `(n, K, 3)` are small, an index `(m,)`; the cones they are made of."""
    finite = tail[..., 2] != 0
    bounded = (finite == (head[..., 2] != 0)).all(-1) & finite.any(-1)
    first = finite.to(torch.uint8).argmax(-1) if tail.shape[1] else bounded.long()
    rows = torch.arange(len(tail), device=tail.device)[bounded]
    tail, head, finite = tail[rows], head[rows, :, :2], finite[rows]
    apex = tail[torch.arange(len(rows), device=rows.device), first[rows], :2] if len(rows) else tail[:, 0, :2]
    rule = served(exponent(tail[..., :2], finite, apex))
    small = (rule < NONE).nonzero()[:, 0]
    rows, apex, rule, finite = rows[small], apex[small], rule[small], finite[small]
    owner, place = finite.nonzero(as_tuple=True)
    base = torch.stack((tail[small, :, :2][owner, place], head[small][owner, place]), 1) - apex[owner, None]
    return rows, Cones(base, owner, apex, rule)
