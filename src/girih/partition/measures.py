"""Measures of the pieces of a complex: interior points, volumes, centroids, Gaussian masses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from girih.gaussian import Polygons, Polyhedra
from girih.partition.complex import IDEAL, Complex
from girih.partition.memory import Array, ragged

_ROUNDING = 1e-12  # of a point inside a set, as a part of its distance from the origin


class Boundary(NamedTuple):
    """The boundary of every piece as directed edges; for S = 3 face by face, seen from outside."""

    tail: Array  # (E, S + 1) homogeneous
    head: Array
    face: Array  # (E,) for S = 3 the (piece, facet) pair of each edge; for S = 2 the piece
    owner: Array  # (F,) piece of each (piece, facet) pair
    normal: Array  # (F, S) outward, S = 3 only
    offset: Array  # (F,)


def piece_vertices(complex_: Complex) -> tuple[Array, Array]:
    """Every (vertex, piece) pair once, sorted by piece."""
    ids = np.arange(complex_.count)
    faces, owner = ids, ids
    for k in range(complex_.dim, 1, -1):
        faces, inner = complex_.levels[k].lists(faces)
        owner = owner[inner]
        pair = owner * (1 + int(faces.max(initial=0))) + faces
        _, first = np.unique(pair, return_index=True)
        faces, owner = faces[first], owner[first]
    vertices, owner = complex_.ends.data[faces].ravel(), np.repeat(owner, 2)
    size = len(complex_.points)
    pair = np.unique(owner * size + vertices)
    return pair % size, pair // size


def interior_points(complex_: Complex, vertices: Array, owner: Array) -> Array:
    """A point inside every piece: the mean of its vertices, moved along its rays."""
    points = complex_.points[vertices]
    count, t = complex_.count, points[:, -1]
    out = np.empty((count, complex_.dim))
    finite = np.bincount(owner, t, minlength=count)
    rays = np.bincount(owner, 1.0 - t, minlength=count)
    for axis in range(complex_.dim):
        mean = np.bincount(owner, points[:, axis] * t, minlength=count) / finite
        out[:, axis] = mean + np.bincount(owner, points[:, axis] * (1.0 - t), minlength=count) / np.maximum(rays, 1.0)
    return out


def boundary(complex_: Complex, inside: Array) -> Boundary:
    """The directed boundary of every piece, from a point inside each."""
    if complex_.dim == 2:
        edges, owner = complex_.levels[2].lists(np.arange(complex_.count))
        ends = complex_.points[complex_.ends.data[edges]]
        step = _steps(ends)
        right = np.stack((step[:, 1], -step[:, 0]), 1)
        tail, head = _directed(ends, _beyond(right, _nearest_end(ends), inside[owner], owner, ends, owner) < 0)
        return Boundary(tail, head, owner, np.arange(complex_.count), np.empty((0, 2)), np.empty(0))
    facets, owner = complex_.levels[3].lists(np.arange(complex_.count))
    real = complex_.label.data[facets] != IDEAL
    facets, owner = facets[real], owner[real]
    edges, face = complex_.levels[2].lists(facets)
    ends = complex_.points[complex_.ends.data[edges]]
    normal, offset = _face_planes(ends, face, owner, inside[owner])
    # a point inside each face, to tell which way its edges turn
    weight = np.where(ends[:, :, 3:] > 0, 1.0, 0.0)
    middle = np.empty((len(facets), 3))
    finite = np.bincount(face, weight[:, :, 0].sum(1), minlength=len(facets))
    for axis in range(3):
        total = np.bincount(face, (ends[:, :, axis] * weight[:, :, 0]).sum(1), minlength=len(facets)) / finite
        rays = np.bincount(face, (ends[:, :, axis] * (1.0 - weight[:, :, 0])).sum(1), minlength=len(facets))
        middle[:, axis] = total + rays
    right = np.cross(_steps(ends), normal[face])
    tail, head = _directed(ends, _beyond(right, _nearest_end(ends), middle[face], face, ends, face) < 0)
    return Boundary(tail, head, face, owner, normal, offset)


def simplices(complex_: Complex, inside: Array) -> tuple[Array, Array]:
    """Simplices that bounded pieces are made of, `(M, S + 1, S)`, and the piece of each, `(M,)`.

    A piece is the union of what one of its vertices spans with the sides that do not hold it, and so is a face.
    """
    sides = boundary(complex_, inside)
    tail, head = sides.tail[:, :-1], sides.head[:, :-1]
    apart, apex = _fan(tail, head, sides.face)
    if complex_.dim == 2:
        return np.stack((apex, tail, head), 1)[apart], sides.face[apart]
    face = sides.face[apart]
    triangle, piece = np.stack((apex, tail, head), 1)[apart], sides.owner[face]
    top = triangle[np.searchsorted(piece, np.arange(complex_.count)), 0][piece]
    holds = np.zeros(len(sides.owner), bool)
    np.logical_or.at(holds, face, (triangle == top[:, None]).all(2).any(1))
    apart = ~holds[face]
    return np.concatenate((top[:, None], triangle), 1)[apart], piece[apart]


def _fan(tail: Array, head: Array, owner: Array) -> tuple[Array, Array]:
    """Which edges of polygons do not meet their polygon's first vertex, and that vertex for each edge."""
    apex = tail[np.searchsorted(owner, np.arange(owner[-1] + 1))][owner]
    return (tail != apex).any(1) & (head != apex).any(1), apex


def _directed(ends: Array, flip: Array) -> tuple[Array, Array]:
    flip = flip[:, None]
    return np.where(flip, ends[:, 1], ends[:, 0]), np.where(flip, ends[:, 0], ends[:, 1])


def _steps(ends: Array) -> Array:
    """The steps from the first to the second end of edges `(E, 2, S + 1)`."""
    t, at = ends[:, :, -1:], ends[:, :, :-1]
    step = np.where(t[:, 0] == t[:, 1], at[:, 1] - at[:, 0], 0.0)
    step = np.where(t[:, 0] < t[:, 1], -at[:, 0], step)
    return np.where(t[:, 0] > t[:, 1], at[:, 1], step)


def _nearest_end(ends: Array) -> Array:
    """The end of each edge that is nearest to the origin, `(E, S)`."""
    distance = np.where(ends[:, :, -1] > 0, np.abs(ends[:, :, :-1]).sum(2), np.inf)
    return ends[np.arange(len(ends)), distance.argmin(1), :-1]


def _face_planes(ends: Array, face: Array, owner: Array, inside: Array) -> tuple[Array, Array]:
    """Outward unit normals and offsets, from the two edges of each face that span it best."""
    count, at_infinity = len(owner), ends[:, :, 3].sum(1) == 0
    direction = _steps(ends)
    size = np.linalg.norm(direction, axis=1)
    direction = direction / np.where(size > 0, size, 1.0)[:, None]
    longest = _best(np.where(at_infinity, 0.0, size), face, count)
    across = np.cross(direction[longest][face], direction)
    sine = np.linalg.norm(across, axis=1)
    best = _best(sine, face, count)
    normal = across[best] / np.maximum(sine[best], np.finfo(np.float64).tiny)[:, None]
    # through the nearest vertex: the rounding of a far one would move the plane by 1e-16 of its distance
    near = _nearest_end(ends)
    anchor = near[_best(np.where(at_infinity, -np.inf, -np.abs(near).sum(1)), face, count)]
    outward = _beyond(normal, anchor, inside, owner, ends, owner[face])
    normal = normal * np.where(outward < 0, -1.0, 1.0)[:, None]
    return normal, (normal * anchor).sum(1)


def _beyond(normal: Array, anchor: Array, inside: Array, of: Array, ends: Array, owner: Array) -> Array:
    """The distance of planes `normal x = normal anchor` beyond points `inside` the sets `of` that they bound, `(m,)`.

    Negative where the normal points inwards. A set thinner than the rounding of its inside is on the side of that one
    of its vertices and directions, the `ends` of the edges that it is the `owner` of (sorted), which shows it best.
    """
    gap: Array = ((anchor - inside) * normal).sum(1)
    size = (np.abs(anchor).sum(1) + np.abs(inside).sum(1)) * np.abs(normal).sum(1)
    unsure = np.flatnonzero(np.abs(gap) <= _ROUNDING * size)
    if len(unsure):
        start = np.searchsorted(owner, of[unsure])
        position, place = ragged(start, np.searchsorted(owner, of[unsure], side="right") - start)
        corner, base, way = ends[position], anchor[unsure][place][:, None], normal[unsure][place][:, None]
        step = corner[:, :, :-1] - base * corner[:, :, -1:]
        lift = (step * way).sum(2)
        noise = np.abs(step).sum(2) + corner[:, :, -1] * (np.abs(corner[:, :, :-1]).sum(2) + np.abs(base).sum(2))
        clear = np.abs(lift) / np.maximum(noise, np.finfo(np.float64).tiny)
        best = _best(clear.ravel(), np.repeat(place, 2), len(unsure))
        gap[unsure] = -lift.ravel()[best]
    return gap


def _best(score: Array, group: Array, count: int) -> Array:
    """Index of the entry with the largest score in each group."""
    order = np.lexsort((score, group))
    last = np.cumsum(np.bincount(group, minlength=count)) - 1
    return order[last]


def volumes(complex_: Complex, inside: Array, sides: Boundary) -> tuple[Array, Array]:
    """Volume and centroid of every piece; infinite and NaN where it is unbounded."""
    dim, count = complex_.dim, complex_.count
    bounded = (sides.tail[:, -1] > 0) & (sides.head[:, -1] > 0)
    if dim == 2:
        owner = sides.face
        a, b = (p[:, :2] - inside[owner] for p in (sides.tail, sides.head))
        part = np.where(bounded, 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), np.inf)
        middle = (a + b) / 3.0
    else:
        owner = sides.owner[sides.face]
        faces = len(sides.owner)
        size = np.bincount(sides.face, minlength=faces)
        centre = np.stack([np.bincount(sides.face, sides.tail[:, i], minlength=faces) / size for i in range(3)], 1)
        a, b, c = (p[:, :3] - inside[owner] for p in (sides.tail, sides.head, centre[sides.face]))
        part = np.where(bounded, np.abs((np.cross(a, b) * c).sum(1)) / 6.0, np.inf)
        middle = (a + b + c) / 4.0
    volume = np.bincount(owner, part, minlength=count)
    centroid = np.full((count, dim), np.nan)
    finite = np.isfinite(volume) & (volume > 0)
    with np.errstate(invalid="ignore"):
        for axis in range(dim):
            moment = np.bincount(owner, part * middle[:, axis], minlength=count)
            centroid[finite, axis] = inside[finite, axis] + moment[finite] / volume[finite]
    flat = np.isfinite(volume) & (volume == 0)
    centroid[flat] = inside[flat]
    return volume, centroid


def log_masses(complex_: Complex, inside: Array, factor: Array, least: float = -np.inf) -> Array:
    """Log mass of every piece under `N(0, L L^T)`, with `L = factor`, accurate however small it is.

    For S = 3 pieces whose mass is below `exp(least)`, since they lie beyond a plane at a distance d with
    `-d^2 / 2 < least`, may be given as -inf instead.
    """
    white = np.linalg.inv(factor)
    points = np.concatenate((complex_.points[:, :-1] @ white.T, complex_.points[:, -1:]), 1)
    sides = boundary(complex_.moved(points), inside @ white.T)
    tail, head, face, owner, normal, offset = (torch.as_tensor(part) for part in sides)
    if complex_.dim == 2:
        return Polygons(tail, head, face, complex_.count).log_mass().numpy()
    away = Polyhedra(tail, head, face, normal, offset, owner, complex_.count).nearest()
    kept = -0.5 * away.square().sum(1) >= least
    of_kept = kept[owner]
    edge = of_kept[face]
    face, owner = (of_kept.cumsum(0) - 1)[face[edge]], (kept.cumsum(0) - 1)[owner[of_kept]]
    out = torch.full_like(away[:, 0], -torch.inf)
    out[kept] = Polyhedra(
        tail[edge], head[edge], face, normal[of_kept], offset[of_kept], owner, int(kept.sum())
    ).log_mass()
    return out.numpy()
