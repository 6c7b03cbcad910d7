"""The first complex: all of R^S, cut by S independent hyperplanes into 2^S simplicial cones."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.linalg import null_space, qr

from girih.partition.growing import Array
from girih.partition.polytopes import FAKE, IDEAL, Complex, Level

# Of the hyperplanes at hand, those are taken that are this far from dependent.
_INDEPENDENT = 1e-7


class Fan(NamedTuple):
    """The cones between S hyperplanes, and which hyperplanes they are."""

    complex: Complex
    chosen: Array  # indices of the given hyperplanes in use
    on: Array  # (len(chosen), V) bool: which vertices lie on them
    artificial: bool  # whether planes had to be added that no unit made


def fan(normals: Array, offsets: Array, labels: Array, dim: int) -> Fan:
    """Cut R^S by S of the hyperplanes `normal . z + offset = 0`, or by added ones where too few are independent."""
    size = np.linalg.norm(normals, axis=1)
    usable = np.flatnonzero(size > 0)
    chosen = np.empty(0, np.int64)
    if len(usable):
        unit = normals[usable] / size[usable, None]
        _, r, order = qr(unit.T, mode="economic", pivoting=True)
        diagonal = np.abs(np.diag(r))
        chosen = usable[order[: len(diagonal)][diagonal > _INDEPENDENT]]
    rows = normals[chosen] / size[chosen, None]
    shift = offsets[chosen] / size[chosen]
    added = dim - len(chosen)
    if added:
        free = null_space(rows).T if len(chosen) else np.eye(dim)
        rows, shift = np.concatenate((rows, free)), np.concatenate((shift, np.zeros(added)))
    apex = np.linalg.solve(rows, -shift)
    rays = np.linalg.inv(rows).T  # ray i leaves the apex along the other planes, to the positive side of plane i
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    planes = [*(int(labels[i]) for i in chosen), *[FAKE] * added]
    complex_, on = _cones(apex, rays, planes)
    return Fan(complex_, chosen, on[: len(chosen)], bool(added))


def _cones(apex: Array, rays: Array, planes: list[int]) -> tuple[Complex, Array]:
    """A face is a choice of signs, 0 for "on the plane"; with the apex it is a cone, without it the end of one."""
    dim = len(apex)
    signs = [s for s in product((-1, 0, 1), repeat=dim) if any(s)]
    number: dict[int, dict[tuple[tuple[int, ...], bool], int]] = {k: {} for k in range(dim + 1)}
    number[0][((0,) * dim, True)] = 0
    for s in signs:
        size = sum(map(abs, s))
        number[size - 1][(s, False)] = len(number[size - 1])
        number[size][(s, True)] = len(number[size])

    points = np.zeros((1 + 2 * dim, dim + 1))
    points[0] = [*apex, 1.0]
    on = np.zeros((dim, len(points)), bool)
    on[:, 0] = True
    for (s, finite), index in number[0].items():
        if not finite:
            points[index, :dim] = np.asarray(s) @ rays
            on[:, index] = np.asarray(s) == 0

    def members(k: int) -> list[list[int]]:
        lists = []
        for s, finite in number[k]:
            smaller = [(*s[:i], 0, *s[i + 1 :]) for i in range(dim) if s[i]]
            faces = [number[k - 1][(t, finite)] for t in smaller if any(t) or finite]
            lists.append(faces + ([number[k - 1][(s, False)]] if finite else []))
        return lists

    ends = np.array(members(1))
    levels = {}
    for k in range(2, dim + 1):
        lists = members(k)
        length = np.array([len(faces) for faces in lists])
        levels[k] = Level(length, np.concatenate([np.array(faces) for faces in lists]))
    label = [planes[s.index(0)] if finite else IDEAL for s, finite in number[dim - 1]]
    return Complex(dim, points, ends, levels, np.array(label)), on
