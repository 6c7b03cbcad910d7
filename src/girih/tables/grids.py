"""What repeated values say of a column of numbers: the step it was rounded to, and values that are masses of their own.

A density is unbounded on values that repeat. Both numbers bound it: no scale of a model is below the rounding width,
and an atom counts as a probability.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NOISE = 1e-9  # relative to the largest value: float64 numbers after some arithmetic
_FINE = 1e-12  # the same where that would make a column constant
_NOISE_32 = 1.2e-7  # the same of float32 numbers
_CLEAR = 50.0  # a step is at least so many times the noise, so that random numbers have none
_REPEATED = 0.05  # share of the rows that repeat an earlier value, where rounding shows
_CROWDED = 5.0  # rows a distinct value from which on the values are levels, even on no grid
_SHARE, _LEAST, _MOST = 0.08, 8, 3  # an atom: share of the rows and rows it has at least; atoms a column
_ABOVE, _NEAR = 5.0, 3  # its rows, over those of the commonest of so many neighbours on each side
_UNROUNDED = 1e-3  # least width of an atom among numbers that were not rounded, in deviations: at most 7 nats
_FAR_ABOVE = 30.0  # the same where other values that may be atoms are no neighbours


class Grid(NamedTuple):
    """What `look` finds."""

    width: float
    atoms: tuple[float, ...]
    distinct: int
    whole: bool


def look(values: NDArray[np.float64]) -> Grid:
    """The rounding width and the atoms of the observed values `(n,)` of a column, n >= 1.

    The width is the largest step h of which all differences between values are multiples, so that it does not depend on
    the unit or the origin (standardised columns have one too); 0 where there is none, or where values hardly repeat.
    Whole numbers have a width of at least 1. Other columns with few distinct values, as the logarithms of counts, have
    at least the smallest gap between them, whatever the digits they were written with.

    Atoms are looked for among the distinct values, and no part of the rest, from which the width is found.

    Example:
        >>> import numpy as np
        >>> from girih.tables.grids import look
        >>> look(np.array([5.1, 4.9, 4.8, 5.1, 4.9])).width
        0.1
    """
    tolerance = _noise(values)
    distinct, counts = _distinct(values, tolerance)
    size = float(np.abs(values).max())
    if len(distinct) == 1 and tolerance <= _NOISE * size and float(np.ptp(values)) > _FINE * size:
        tolerance = _FINE * size  # far from 0 a column may vary in its last digits alone, as times within an hour do
        distinct, counts = _distinct(values, tolerance)
    whole = bool((values == np.round(values)).all())
    if len(distinct) == 1:
        return Grid(1.0 if whole else 0.0, (), 1, whole)
    atoms = _atoms(distinct, counts)
    rest = ~np.isin(distinct, atoms)
    if rest.sum() < 2:
        atoms, rest = (), np.ones_like(rest)
    kept, rows = distinct[rest], int(counts[rest].sum())
    width = 0.0
    if len(kept) <= (1.0 - _REPEATED) * rows:
        width = step(kept, tolerance)
        if not whole and rows >= _CROWDED * len(kept):
            width = max(width, float(np.diff(kept).min()))
    if whole:
        width = max(width, 1.0)
    if width == 0.0 and atoms:
        width = max(float(np.diff(distinct).min()), _UNROUNDED * float(values.std()))
    return Grid(width, atoms, len(distinct), whole)


def near(values: NDArray[np.float64], atom: float, width: float | None) -> NDArray[np.bool_]:
    """Which values are that atom, up to the noise of float32 and, if there is a width, a millionth of it."""
    noise = _NOISE_32 * abs(atom)
    return np.abs(values - atom) <= (noise if width is None else min(max(1e-6 * width, noise), 0.5 * width))


def step(values: NDArray[np.float64], tolerance: float) -> float:
    """The largest h of which all gaps between ascending values are multiples within a tolerance; 0 if there is none.

    Euclid's algorithm on all gaps at once: h becomes the least remainder until there is none, and is at least halved
    each time.
    """
    gaps = np.diff(values)
    if not len(gaps):
        return 0.0
    h = float(gaps.min())
    while h > _CLEAR * tolerance:
        multiple = np.round(gaps / h)
        rest = np.abs(gaps - h * multiple)
        left = rest > np.minimum(tolerance * (2.0 + multiple), 0.25 * h)  # h is itself known up to the noise
        if not left.any():
            place = np.concatenate([[0.0], multiple.cumsum()])
            h = float(place @ (values - values[0]) / (place @ place))  # least squares: the noise averages out
            off = np.abs(values - values[0] - h * place).max()
            return _tidy(h, tolerance / place[-1]) if off <= 4.0 * tolerance else 0.0
        h = float(rest[left].min())
    return 0.0


def _tidy(h: float, tolerance: float) -> float:
    """The number with the fewest digits that is as good a step."""
    size = math.floor(math.log10(h))
    for digits in range(8):
        short = round(h, digits - size)
        if abs(short - h) <= max(tolerance, 1e-12 * h):
            return short
    return h


def _noise(values: NDArray[np.float64]) -> float:
    """How far two values may lie apart and be the same number."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    coarse = bool((single == values).all() and (values != np.round(values, 3)).any())
    return (_NOISE_32 if coarse else _NOISE) * float(np.abs(values).max())


def _distinct(values: NDArray[np.float64], tolerance: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The distinct values, ascending, and how many rows have each; of those within the noise the commonest stands."""
    found, counts = np.unique(values, return_counts=True)
    group = np.concatenate([[0], (np.diff(found) > tolerance).cumsum()])
    total = np.bincount(group, weights=counts).astype(np.int64)
    order = np.lexsort((-counts, group))
    first = order[np.unique(group[order], return_index=True)[1]]
    return found[first], total


def _atoms(distinct: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[float, ...]:
    """Values with far more rows than their neighbours, at most three, ascending.

    Atoms beside one another hide each other, so where a value towers over all values that are too rare for an atom, it
    is one whatever lies between; the values of steep counts, as Poisson ones, do not tower so.
    """
    rows = int(counts.sum())
    enough = np.flatnonzero((counts > _SHARE * rows) & (counts >= _LEAST))
    order = enough[np.argsort(-counts[enough], kind="stable")].tolist()
    found: list[int] = []
    for at in order:
        beside = _commonest(counts, at, [])
        alone = _commonest(counts, at, order)
        if counts[at] >= _ABOVE * beside + _NEAR or counts[at] >= _FAR_ABOVE * alone + _NEAR:
            found.append(at)
    return tuple(sorted(float(distinct[at]) for at in found[:_MOST]))


def _commonest(counts: NDArray[np.int64], at: int, skipped: list[int]) -> int:
    """The rows of the commonest neighbour of a value, some skipped."""
    reach = _NEAR + len(skipped)
    below = [place for place in range(max(at - reach, 0), at) if place not in skipped][-_NEAR:]
    above = [place for place in range(at + 1, min(at + 1 + reach, len(counts))) if place not in skipped][:_NEAR]
    return max((int(counts[place]) for place in below + above), default=0)
