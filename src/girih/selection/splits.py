"""Which rows a candidate is fitted to, and which are held out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from girih._options import real, whole
from girih.errors import EmptyDataError, ParameterError

# Fewest rows to fit a model to.
_LEAST = 2


class Split(NamedTuple):
    """Row numbers, in order; `test` is empty where nothing is held out."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


def make_splits(count: int, test_fraction: float | None, folds: int | None, seed: int) -> list[Split]:
    """One split by a fraction, or one for each fold, every row held out once.

    Raises:
        ParameterError: an option is out of its domain.
        EmptyDataError: too few rows for it.

    Example:
        >>> from girih.selection.splits import make_splits
        >>> [len(split.test) for split in make_splits(10, None, 3, seed=0)]
        [4, 3, 3]
    """
    order = np.random.default_rng(seed).permutation(count)
    if folds is not None:
        number = whole(folds, "folds", 2)
        if count < number * _LEAST:
            raise EmptyDataError(f"{count} rows are too few for {number} folds; use fewer folds")
        return [_split(order, part) for part in np.array_split(order, number)]
    if test_fraction is None:
        if count < _LEAST:
            raise EmptyDataError(f"X needs at least {_LEAST} rows")
        return [Split(np.arange(count), np.arange(0))]
    held_out = round(_fraction(test_fraction) * count)
    if held_out < 1 or count - held_out < _LEAST:
        raise EmptyDataError(
            f"test_fraction={test_fraction:g} of {count} rows leaves {count - held_out} to fit and {held_out} to hold "
            "out; pass more rows, or test_fraction=None"
        )
    return [_split(order, order[:held_out])]


def _split(order: NDArray[np.intp], test: NDArray[np.intp]) -> Split:
    return Split(np.setdiff1d(order, test), np.sort(test))


def _fraction(value: Any) -> float:
    number = real(value, "test_fraction")
    if number >= 1.0:
        raise ParameterError(f"test_fraction must be below 1; got {number:g}")
    return number
