"""A complex of convex polytopes that is cut by one hyperplane after another (edge subdivision, Berzins 2023).

Points are homogeneous, `(z, t)`: t = 1 is the point z, t = 0 the point at infinity in direction z. A function that
is affine on a cell is linear in `(z, t)`, so unbounded cells are cut by the same arithmetic as bounded ones.

Every decision is taken at shared vertices, never cell by cell, and everything else follows from the incidences.
So cells always fit together, whatever was rounded. A vertex within the error bound of a hyperplane lies on it.
"""

from __future__ import annotations

import copy
from itertools import product
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy.linalg import null_space, qr

from girih.errors import GirihError
from girih.gaussian.prepared import compiled_form
from girih.partition.memory import Array, Growing, ragged

# Functions are handled in blocks of as many as there are bits in a word: which of them are positive or negative
# somewhere on a face is one word each, and "crossed by function j" one bit of their conjunction.
BLOCK = 64
_ONE = np.uint64(1)
_EPS = np.finfo(np.float64).eps

# Labels of facets that no unit of the network made; the i-th half-space of the domain has the label `DOMAIN - i`.
IDEAL, FAKE, DOMAIN = -1, -2, -3

_PERTURBATIONS = 24

# Of the hyperplanes that the first cones lie between, those are taken that are this far from dependent.
_INDEPENDENT = 1e-7


class Level:
    """The faces of one dimension k >= 2: each is a list of (k-1)-faces, a segment of one long array."""

    def __init__(self, length: Array, members: Array) -> None:
        self.start = Growing(np.cumsum(length) - length)
        self.length, self.members = Growing(length), Growing(members)

    def __len__(self) -> int:
        return len(self.start)

    def lists(self, faces: Array) -> tuple[Array, Array]:
        """The members of some faces, and to which of them each belongs."""
        position, owner = ragged(self.start.data[faces], self.length.data[faces])
        return self.members.data[position], owner

    def compact(self) -> None:
        """Drop the segments that no face uses any more."""
        members, _ = self.lists(np.arange(len(self)))
        length = self.length.data.copy()
        self.start, self.members = Growing(np.cumsum(length) - length), Growing(members)


class Complex:
    """Vertices, edges, ... up to the cells of dimension S, with their incidences.

    Attributes:
        columns: values at the vertices that are linear on every cell, by name; "point" is `(V, S + 1)`.
        ends: the two vertices of each edge, `(E, 2)`.
        levels: faces of dimension 2 to S, by dimension.
        label: what made each facet, a face of dimension S - 1.
        bits: for each dimension, which functions of the block are positive and negative somewhere on each face.
        origin: the cell at the start of the block that each cell is a part of.
    """

    def __init__(self, dim: int, points: Array, ends: Array, levels: dict[int, Level], label: Array) -> None:
        self.dim = dim
        self.columns: dict[object, Growing] = {"point": Growing(points)}
        self.ends = Growing(ends)
        self.levels = levels
        self.label = Growing(label)
        self.origin = Growing(np.arange(self.count))
        self.bits = self._no_bits()

    @property
    def count(self) -> int:
        """The number of cells."""
        return len(self.ends) if self.dim == 1 else len(self.levels[self.dim])

    @property
    def points(self) -> Array:
        """The vertices in homogeneous coordinates, `(V, S + 1)`."""
        return self.columns["point"].data

    def _no_bits(self) -> dict[int, tuple[Growing, Growing]]:
        sizes = {0: len(self.points), 1: len(self.ends)} | {k: len(level) for k, level in self.levels.items()}
        blank = {k: np.zeros(size, np.uint64) for k, size in sizes.items()}
        return {k: (Growing(words), Growing(words)) for k, words in blank.items()}

    def moved(self, points: Array) -> Complex:
        """The same incidences with vertices at other places."""
        other = copy.copy(self)
        other.columns = {"point": Growing(points)}
        return other

    def begin(self, value: Growing, error: Growing) -> None:
        """Start a block of up to 64 functions with these values at the vertices and bounds on their errors."""
        self.columns["value"], self.columns["error"] = value, error
        values, errors = value.data, error.data
        self.origin = Growing(np.arange(self.count))
        for level in self.levels.values():
            level.compact()
        _write_signs(values, errors, *(side.data for side in self.bits[0]))
        self._spread()

    def _spread(self) -> None:
        """The bits of all faces from those of the vertices. Needs compact levels."""
        for side in (0, 1):
            below = self.bits[0][side].data[self.ends.data]
            self.bits[1][side].data[...] = below[:, 0] | below[:, 1]
            for k, level in self.levels.items():
                words = self.bits[k - 1][side].data[level.members.data]
                self.bits[k][side].data[...] = np.bitwise_or.reduceat(words, level.start.data)

    def crossed(self, k: int, j: int) -> Array:
        """The k-faces on both sides of function j."""
        positive, negative = (side.data for side in self.bits[k])
        mask = _ONE << np.uint64(j)
        if (fast := _fast()) is not None:
            found: Array = fast.crossed(positive, negative, mask)
            return found
        return np.flatnonzero(positive & negative & mask)

    def cut(self, j: int, label: int) -> None:
        """Cut every cell that function j changes sign on; the new facets get the label."""
        if not len(self.crossed(self.dim, j)):
            return
        mask = _ONE << np.uint64(j)
        lists = self._consistent_polygons(j, mask) if self.dim >= 2 else None
        upper = self._cut_edges(j, mask, label)
        for k, level in self.levels.items():
            faces = self.crossed(k, j)
            members, owner = lists if k == 2 and lists is not None else level.lists(faces)
            upper = self._cut_faces(k, mask, faces, members, owner, upper, label)

    def _cut_edges(self, j: int, mask: np.uint64, label: int) -> tuple[Array, Array]:
        """Split the crossed edges at new vertices; returns them and their upper parts."""
        edges = self.crossed(1, j)
        ends = self.ends.data[edges]
        flip = (self.bits[0][0].data[ends[:, 0]] & mask) != 0
        low, high = np.where(flip, ends[:, 1], ends[:, 0]), np.where(flip, ends[:, 0], ends[:, 1])
        new = self._points_between(low, high, j, label)
        self.ends.data[edges] = np.stack((low, new), 1)
        upper = np.arange(len(edges)) + len(self.ends)
        self.ends.append(np.stack((new, high), 1))
        for side in (0, 1):
            at = self.bits[0][side].data
            words = self.bits[1][side]
            words.data[edges] = at[low] | at[new]
            words.append(at[new] | at[high])
        if self.dim == 2:
            self.label.append(self.label.data[edges])
        if self.dim == 1:
            self.origin.append(self.origin.data[edges])
        return edges, upper

    def _points_between(self, low: Array, high: Array, j: int, label: int) -> Array:
        """New vertices where function j is zero, between vertices below and above."""
        value = self.columns["value"].data
        below, above = np.abs(value[low, j]), np.abs(value[high, j])
        t = self.points[:, -1]
        total = t[low] * above + t[high] * below  # 0 for two points at infinity
        ideal = total == 0.0
        total = np.where(ideal, below + above, total)
        a, b = (above / total)[:, None], (below / total)[:, None]
        if ideal.any():
            between = a * self.points[low, :-1] + b * self.points[high, :-1]
            norm = np.where(ideal, np.linalg.norm(between, axis=1), 1.0)[:, None]
            a, b = a / norm, b / norm
        start = len(t)
        for column in self.columns.values():
            _append_blend(column, low, high, a[:, 0], b[:, 0])
        self.points[start:, -1] = np.where(t[low] + t[high] > 0, 1.0, 0.0)
        _widen(self.columns["value"].data, self.columns["error"].data, low, high, a[:, 0], b[:, 0])
        value, error = self.columns["value"].data[start:], self.columns["error"].data[start:]
        value[:, j] = 0.0
        signs = np.empty(len(low), np.uint64), np.empty(len(low), np.uint64)
        _write_signs(value, error, *signs)
        below_or_above = [side.data[low] | side.data[high] for side in self.bits[0]]
        crossed = below_or_above[0] & below_or_above[1]
        for side, ends, sign in zip(self.bits[0], below_or_above, signs, strict=True):
            side.append((ends & ~crossed) | (sign & crossed))  # only a function that changes sign needs its value
        if self.dim == 1:
            self.label.append(np.full(len(low), label))
        return np.arange(start, start + len(low))

    def _cut_faces(
        self,
        k: int,
        mask: np.uint64,
        faces: Array,
        members: Array,
        owner: Array,
        upper: tuple[Array, Array],
        label: int,
    ) -> tuple[Array, Array]:
        """Split k-faces whose crossed (k-1)-faces were split before into a lower and an upper part."""
        level = self.levels[k]
        positive = self.bits[k - 1][0]
        twin = np.full(len(positive), -1)
        twin[upper[0]] = upper[1]
        split = twin[members] >= 0
        is_upper = (positive.data[members] & mask) != 0
        low = split | ~is_upper  # a split member keeps its number as its lower part
        lower_members, lower_owner = members[low], owner[low]
        upper_members = np.where(split, twin[members], members)[split | is_upper]
        upper_owner = owner[split | is_upper]

        new_middle = self._add_middle(k - 1, mask, lower_members, lower_owner, len(faces), label)
        new = np.arange(len(faces)) + len(level)
        self._store(level, k, faces, lower_members, lower_owner, new_middle)
        for words in self.bits[k]:
            words.extend(len(faces))
        level.start.extend(len(faces))
        level.length.extend(len(faces))
        self._store(level, k, new, upper_members, upper_owner, new_middle)
        if k == self.dim - 1:
            self.label.append(self.label.data[faces])
        if k == self.dim:
            self.origin.append(self.origin.data[faces])
        return faces, new

    def _store(self, level: Level, k: int, faces: Array, members: Array, owner: Array, middle: Array) -> None:
        """Write member lists, closed by the middle face, and the bits that follow from them."""
        count = np.bincount(owner, minlength=len(faces))
        first = np.cumsum(count + 1) - (count + 1)
        flat = np.empty(len(members) + len(faces), np.int64)
        flat[np.arange(len(members)) + owner] = members  # one middle face before each further owner
        flat[first + count] = middle
        level.start.data[faces] = first + len(level.members)
        level.length.data[faces] = count + 1
        level.members.append(flat)
        for side in (0, 1):
            words = self.bits[k - 1][side].data[flat]
            self.bits[k][side].data[faces] = np.bitwise_or.reduceat(words, first)

    def _add_middle(self, k: int, mask: np.uint64, members: Array, owner: Array, count: int, label: int) -> Array:
        """The new k-face inside each cut (k+1)-face: bounded by the (k-1)-faces on the hyperplane."""
        if k == 1:
            pieces, whose = self.ends.data[members].ravel(), np.repeat(owner, 2)
        else:
            pieces, inner = self.levels[k].lists(members)
            whose = owner[inner]
        positive, negative = self.bits[k - 1]
        on = ((positive.data[pieces] | negative.data[pieces]) & mask) == 0
        pieces, whose = pieces[on], whose[on]
        if k == 1:
            ends = pieces.reshape(count, 2)  # exactly two each, as checked before
            new = np.arange(count) + len(self.ends)
            self.ends.append(ends)
            for side in (0, 1):
                at = self.bits[0][side].data[ends]
                self.bits[1][side].append(at[:, 0] | at[:, 1])
        else:
            level = self.levels[k]
            length = np.bincount(whose, minlength=count)
            start = np.cumsum(length) - length
            new = np.arange(count) + len(level)
            level.start.append(start + len(level.members))
            level.length.append(length)
            level.members.append(pieces)
            for side in (0, 1):
                self.bits[k][side].append(np.bitwise_or.reduceat(self.bits[k - 1][side].data[pieces], start))
        if k == self.dim - 1:
            self.label.append(np.full(count, label))
        return new

    def _consistent_polygons(self, j: int, mask: np.uint64) -> tuple[Array, Array]:
        """The edges of the polygons that function j cuts, after making sure that it enters and leaves each once.

        Rounding can put several vertices of a tiny edge on the line, or make signs alternate. Then the function is
        shifted by a few error bounds, which leaves no vertex near it.
        """
        for attempt in range(_PERTURBATIONS):
            faces = self.crossed(2, j)
            edges, owner = self.levels[2].lists(faces)
            positive, negative = (side.data[edges] & mask != 0 for side in self.bits[1])
            ends = self.ends.data[edges]
            at = (self.bits[0][0].data[ends] | self.bits[0][1].data[ends]) & mask
            halves = 2 * (positive & negative) + (at == 0).sum(1)
            if (np.bincount(owner, halves, minlength=len(faces)) == 4).all():
                return edges, owner
            self._shift(j, mask, attempt)
        raise GirihError(
            "the cells of this network could not be told apart at float64 precision: many of its hyperplanes nearly "
            "coincide; prune duplicate units, or rescale the weights"
        )

    def _shift(self, j: int, mask: np.uint64, attempt: int) -> None:
        value, error = self.columns["value"].data[:, j], self.columns["error"].data[:, j]
        t = self.points[:, -1]
        near = (np.abs(value) <= error) & (t > 0)
        size = float(error[near].max()) if near.any() else float(error.max())
        value += t * size * (2.0 + attempt) * (1.0 if attempt % 2 else -1.0)
        on = np.where(t > 0, value == 0.0, np.abs(value) <= error)
        for side, sign in ((0, 1.0), (1, -1.0)):
            words = self.bits[0][side].data
            words[:] = np.where(~on & (sign * value > 0), words | mask, words & ~mask)
        for level in self.levels.values():
            level.compact()
        self._spread()

    def keep(self, cells: Array) -> None:
        """Drop all other cells, and the faces that no kept cell uses."""
        kept = {self.dim: cells}
        for k in range(self.dim, 1, -1):
            members, _ = self.levels[k].lists(kept[k])
            kept[k - 1], renumbered = np.unique(members, return_inverse=True)
            self.levels[k] = Level(self.levels[k].length.data[kept[k]], renumbered)
        ends = self.ends.data[kept[1]]
        kept[0], renumbered = np.unique(ends, return_inverse=True)
        self.ends = Growing(renumbered.reshape(ends.shape))
        for name, column in self.columns.items():
            self.columns[name] = Growing(column.data[kept[0]])
        self.label = Growing(self.label.data[kept[self.dim - 1]])
        self.bits = self._no_bits()
        self.origin = Growing(np.arange(self.count))

    def block_signs(self, count: int) -> Array:
        """Tells whether each of the `count` functions of the block is positive on each cell, `(R, count)` bool."""
        words = self.bits[self.dim][0].data
        return np.unpackbits(words[:, None].view(np.uint8), axis=1, bitorder="little")[:, :count].astype(bool)


def _fast() -> ModuleType | None:
    """The module of compiled code, where it can be had."""
    return compiled_form("girih.partition.kernels")


def _append_blend(column: Growing, low: Array, high: Array, a: Array, b: Array) -> None:
    """Append `a data[low] + b data[high]`."""
    if (fast := _fast()) is not None:
        new = column.extend(len(low))
        fast.blend(column.data, low, high, a, b, new)
        return
    data = column.data
    column.append((a[:, None] * data[low] + b[:, None] * data[high]).astype(data.dtype, copy=False))


def _widen(value: Array, error: Array, low: Array, high: Array, a: Array, b: Array) -> None:
    """Add what the rounding of blended values can be to the errors of the last vertices."""
    if (fast := _fast()) is not None:
        fast.widen(value, error, low, high, a, b, 4 * _EPS)
        return
    size = a[:, None] * np.abs(value[low]) + b[:, None] * np.abs(value[high])
    error[len(value) - len(low) :] += 4 * _EPS * size


def _write_signs(value: Array, error: Array, positive: Array, negative: Array) -> None:
    """Which of up to 64 values `(n, w)` are positive and negative beyond their errors, a word for each row."""
    if (fast := _fast()) is not None:
        fast.signs(value, error, positive, negative)
        return
    outside = np.abs(value) > error
    positive[...] = _pack(outside & (value > 0))
    negative[...] = _pack(outside & (value < 0))


def _pack(flags: Array) -> Array:
    """Packs up to 64 booleans a row as one word."""
    packed = np.packbits(flags, axis=1, bitorder="little")
    words = np.zeros((len(flags), 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    return words.view(np.uint64)[:, 0]


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
