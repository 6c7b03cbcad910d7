"""Measures of the pieces of a complex: interior points, volumes, centroids, Gaussian masses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.gaussian.polygon import polygon_log_mass
from girih.gaussian.polyhedron import polyhedron_log_mass, polyhedron_mass
from girih.partition.growing import Array
from girih.partition.polytopes import IDEAL, Complex


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
        around = ends[:, :, :2] - ends[:, :, 2:] * inside[owner][:, None, :]
        flip = around[:, 0, 0] * around[:, 1, 1] < around[:, 0, 1] * around[:, 1, 0]
        tail, head = _directed(ends, flip)
        return Boundary(tail, head, owner, np.arange(complex_.count), np.empty((0, 2)), np.empty(0))
    facets, owner = complex_.levels[3].lists(np.arange(complex_.count))
    real = complex_.label.data[facets] != IDEAL
    facets, owner = facets[real], owner[real]
    edges, face = complex_.levels[2].lists(facets)
    ends = complex_.points[complex_.ends.data[edges]]
    normal, offset = _face_planes(complex_, facets, ends, face, inside[owner])
    # a point inside each face, to tell which way its edges turn
    weight = np.where(ends[:, :, 3:] > 0, 1.0, 0.0)
    middle = np.empty((len(facets), 3))
    finite = np.bincount(face, weight[:, :, 0].sum(1), minlength=len(facets))
    for axis in range(3):
        total = np.bincount(face, (ends[:, :, axis] * weight[:, :, 0]).sum(1), minlength=len(facets)) / finite
        rays = np.bincount(face, (ends[:, :, axis] * (1.0 - weight[:, :, 0])).sum(1), minlength=len(facets))
        middle[:, axis] = total + rays
    around = ends[:, :, :3] - ends[:, :, 3:] * middle[face][:, None, :]
    turn = (np.cross(around[:, 0], around[:, 1]) * normal[face]).sum(1)
    tail, head = _directed(ends, turn < 0)
    return Boundary(tail, head, face, owner, normal, offset)


def _directed(ends: Array, flip: Array) -> tuple[Array, Array]:
    flip = flip[:, None]
    return np.where(flip, ends[:, 1], ends[:, 0]), np.where(flip, ends[:, 0], ends[:, 1])


def _face_planes(complex_: Complex, facets: Array, ends: Array, face: Array, inside: Array) -> tuple[Array, Array]:
    """Outward unit normals and offsets, from the two edges of each face that span it best."""
    t = ends[:, :, 3]
    direction = np.where((t[:, 0] == t[:, 1])[:, None], ends[:, 1, :3] - ends[:, 0, :3], 0.0)
    direction = np.where((t[:, 0] < t[:, 1])[:, None], ends[:, 0, :3], direction)
    direction = np.where((t[:, 0] > t[:, 1])[:, None], ends[:, 1, :3], direction)
    size = np.linalg.norm(direction, axis=1)
    direction = direction / np.where(size > 0, size, 1.0)[:, None]
    longest = _best(np.where(t.sum(1) > 0, size, 0.0), face, len(facets))
    across = np.cross(direction[longest][face], direction)
    sine = np.linalg.norm(across, axis=1)
    best = _best(sine, face, len(facets))
    normal = across[best] / np.maximum(sine[best], np.finfo(np.float64).tiny)[:, None]
    anchor = np.where((t[longest, :1] > 0), ends[longest, 0, :3], ends[longest, 1, :3])
    outward = (normal * (anchor - inside)).sum(1)
    normal = normal * np.where(outward < 0, -1.0, 1.0)[:, None]
    return normal, (normal * anchor).sum(1)


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


def masses(complex_: Complex, inside: Array, factor: Array) -> Array:
    """Mass of every piece under `N(0, L L^T)`, with `L = factor`, to 1e-15 per edge."""
    sides = _whitened(complex_, inside, factor)
    if complex_.dim == 2:
        return np.exp(_polygon_log_mass(sides, complex_.count))
    return polyhedron_mass(*_faces(sides), complex_.count).numpy()


def log_masses(complex_: Complex, inside: Array, factor: Array) -> Array:
    """Log mass of every piece under `N(0, L L^T)`, accurate however small it is."""
    sides = _whitened(complex_, inside, factor)
    if complex_.dim == 2:
        return _polygon_log_mass(sides, complex_.count)
    return polyhedron_log_mass(*_faces(sides), complex_.count).numpy()


def _polygon_log_mass(sides: Boundary, count: int) -> Array:
    tail, head, owner = (torch.as_tensor(part) for part in (sides.tail, sides.head, sides.face))
    return polygon_log_mass(tail, head, owner, count).numpy()


def _faces(sides: Boundary) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The boundary of polyhedra in the form that their masses take."""
    tail, head, face, owner, normal, offset = (torch.as_tensor(part) for part in sides)
    return tail, head, face, normal, offset, owner


def _whitened(complex_: Complex, inside: Array, factor: Array) -> Boundary:
    white = np.linalg.inv(factor)
    points = np.concatenate((complex_.points[:, :-1] @ white.T, complex_.points[:, -1:]), 1)
    return boundary(complex_.moved(points), inside @ white.T)
