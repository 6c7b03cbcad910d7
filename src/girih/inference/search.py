"""The search of `certificate` by compiled code: what does not depend on the rows, and the rows it can take."""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.gaussian.prepared import Array, first_of_each, in_threads
from girih.inference.gaussians import Geometry
from girih.inference.model import Rows
from girih.inference.tree import Tree

_SHARE = 32  # rows that are worth a thread
_SCANNED = 64  # nodes among which promising ones are looked for


class Found(NamedTuple):
    """These pairs were found, sorted by row, and for each row what `Pairs` has."""

    row: Tensor
    piece: Tensor
    base: Tensor
    centre: Tensor
    log_known: Tensor
    log_left_out: Tensor
    unsure: Tensor  # (n,) rows of which the compiled search has no pairs


class Search:
    """A search holds the tree and the pieces of a geometry as flat arrays."""

    def __init__(self, g: Geometry) -> None:
        S = g.pieces.dim
        self._tree, self._levels = _flat_tree(g.tree, S)
        flat = torch.stack((g.pieces.log_volume - 0.5 * S * math.log(2.0 * math.pi), g.far), 1)
        self._maps = tuple(part.contiguous().numpy() for part in (g.maps.start, g.maps.basis.mT, g.log_volume, flat))
        self._kernels = importlib.import_module("girih.inference.kernels")
        self._shape = _flat_shape(g)
        owner, normal = _sides(g)
        support = self._kernels.supports(owner, normal, *self._shape[:4])
        self._planes = first_of_each(torch.as_tensor(owner), g.pieces.count), normal, support
        self._unbounded = g.unbounded.numpy()

    def find(self, g: Geometry, rows: Rows, outer: Tensor, numbers: tuple[float, float, float, int]) -> Found:
        """The pairs of complete rows.

        Args:
            g: the geometry that the search was made of.
            rows: `(n,)`, none with missing entries.
            outer: upper bounds on what unbounded pieces add, `(n, U)`.
            numbers: log of the share that each stage may leave out, rounding of bounds, nats that are worth an exact
                mass, pieces that give the first lower bound.
        """
        count = len(rows.y)
        constant = (rows.constant - 0.5 * rows.far2).expand(count)
        columns = [part.contiguous().numpy() for part in (rows.y, *g.tree.project(rows.y), constant, outer)]
        columns.append(np.arange(count))
        each = np.empty(count), np.empty(count), np.empty(count, np.bool_)

        def run(*part: Array) -> tuple[Array, ...]:
            found: tuple[Array, ...] = self._kernels.select(
                part[:6],
                self._tree,
                self._levels,
                self._maps,
                self._shape,
                self._planes,
                self._unbounded,
                *part[6:],
                numbers,
            )
            return found

        parts = in_threads(run, count, _SHARE, *columns, *each)
        pairs = (torch.as_tensor(np.concatenate(column)) for column in zip(*parts, strict=True))
        return Found(*pairs, *map(torch.as_tensor, each))


def _flat_tree(tree: Tree, S: int) -> tuple[tuple[Array, ...], tuple[int, ...]]:
    """Nodes of all levels, the leaves first, and where the level that is scanned and the last one begin and end."""
    levels = tree.levels
    ends = np.cumsum([0, *(len(level.log_mass) for level in levels)])
    sizes = [torch.stack((lv.beyond, lv.wide, lv.thick, lv.radius, lv.log_mass), 1) for lv in levels]
    child = [level.start + below for level, below in zip(levels[1:], ends, strict=False)]
    nothing = np.zeros(ends[1], np.int64)
    parts = (
        torch.cat([level.centre for level in levels]).numpy(),
        torch.cat([level.basis for level in levels]).mT.contiguous().numpy(),
        torch.cat(sizes).numpy(),
        np.concatenate([nothing, *child]).astype(np.int64),
        np.concatenate([nothing, *(level.length for level in levels[1:])]).astype(np.int64),
        np.concatenate([tree.piece.numpy(), np.full(ends[-1] - ends[1], -1)]),
    )
    wide = next((k for k, level in enumerate(levels) if len(level.log_mass) <= _SCANNED), 0)
    return tuple(map(np.ascontiguousarray, parts)), (*map(int, ends[wide : wide + 2]), *map(int, ends[-2:]))


def _sides(g: Geometry) -> tuple[Array, Array]:
    """The unit normals of the sides of all pieces, `(F, S)`, in the coordinates `R t` of their maps; owners first."""
    boundary = g.stretched.edges()
    if g.pieces.dim == 3:
        return boundary.face_owner.numpy(), boundary.normal.contiguous().numpy()
    tail, head = boundary.ends[:, :3], boundary.ends[:, 3:]
    along = head[:, 2:] * tail[:, 2:] * (head - tail)[:, :2]
    along = along + (1.0 - tail[:, 2:]) * -tail[:, :2] + (1.0 - head[:, 2:]) * head[:, :2]
    some = (along != 0.0).any(1) & (tail[:, 2] + head[:, 2] > 0.0)
    along = torch.nn.functional.normalize(along[some], dim=1)
    normal = torch.stack((along[:, 1], -along[:, 0]), 1)  # polygons run anticlockwise
    return boundary.owner[some].numpy(), normal.contiguous().numpy()


def _flat_shape(g: Geometry) -> tuple[Array, ...]:
    """`kernels.Shape`: the pieces in the coordinates `R t` of their maps."""
    boundary, S, P = g.stretched.edges(), g.pieces.dim, g.pieces.count
    owner = g.pieces.corner_owner
    corner = (g.maps.root[owner] @ g.pieces.corner[:, :, None])[:, :, 0]
    tail, head = boundary.ends[:, : S + 1], boundary.ends[:, S + 1 :]
    away = torch.cat([end[end[:, S] == 0.0, :S] for end in (tail, head)])
    of_ray = torch.cat([boundary.owner[end[:, S] == 0.0] for end in (tail, head)])
    order = of_ray.argsort(stable=True)
    ray = torch.nn.functional.normalize(away[order], dim=1)
    # an edge is part of two faces, which run along it in opposite ways
    differ = (tail != head).to(torch.uint8).argmax(1)[:, None]
    forward = (tail.gather(1, differ) < head.gather(1, differ))[:, 0] if S == 3 else torch.ones_like(tail[:, 0]).bool()
    edge = (forward & (tail[:, S] + head[:, S] > 0.0)).nonzero()[:, 0]
    return (
        first_of_each(owner, P),
        corner.contiguous().numpy(),
        first_of_each(of_ray[order], P),
        ray.contiguous().numpy(),
        first_of_each(boundary.owner[edge], P),
        edge.numpy(),
        boundary.ends.contiguous().numpy(),
        first_of_each(boundary.face_owner, P),
        boundary.normal.contiguous().numpy(),
        boundary.offset.numpy(),
        first_of_each(boundary.owner, P),
        boundary.fan.numpy(),
    )
