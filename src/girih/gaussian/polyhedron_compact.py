"""Small polyhedra as cones over the triangles of their faces, for `compact`."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian.compact import NONE, Cones, exponent, served
from girih.gaussian.faces import Faces


def compact_polyhedra(faces: Faces) -> tuple[Tensor, Cones]:
    """Which of the polyhedra are small, an index `(m,)`; the cones they are made of."""
    empty = faces.offset.new_zeros(0, 3)
    if not faces.tail.shape[2]:
        none = torch.arange(0, device=empty.device)
        return none, Cones(empty[:, :, None] * empty[:, None], none, empty, none)
    finite = (faces.tail[..., 3] != 0) & faces.real[..., None]
    edged = finite.any(-1)
    whole = (finite == ((faces.head[..., 3] != 0) & faces.real[..., None])).all(-1) & (edged | ~faces.real)
    bounded = whole.all(-1) & edged.any(-1)
    rows = bounded.nonzero()[:, 0]
    tail, head, finite = faces.tail[rows, ..., :3], faces.head[rows, ..., :3], finite[rows]
    flat, seen = tail.flatten(1, 2), finite.flatten(1)
    every = torch.arange(len(rows), device=rows.device)
    apex = flat[every, seen.to(torch.uint8).argmax(-1)]
    rule = served(exponent(flat, seen, apex))
    small = (rule < NONE).nonzero()[:, 0]
    rows, apex, rule, finite, tail, head = (part[small] for part in (rows, apex, rule, finite, tail, head))
    # each face as a fan of triangles from the tail of its first edge
    corner = tail.gather(2, finite.to(torch.uint8).argmax(-1)[..., None, None].expand(-1, -1, 1, 3))
    # faces through the apex and edges through the corner of the fan enclose nothing
    touching = (tail == apex[:, None, None]).all(-1) & finite
    kept = finite & ~touching.any(-1)[..., None] & (tail != corner).any(-1) & (head != corner).any(-1)
    owner, f, k = kept.nonzero(as_tuple=True)
    base = torch.stack((corner[owner, f, 0], tail[owner, f, k], head[owner, f, k]), 1) - apex[owner, None]
    return rows, Cones(base, owner, apex, rule)
