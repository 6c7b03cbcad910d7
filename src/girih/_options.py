"""Checks of options, common to everything that is trained."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import SupportsIndex, cast

import numpy as np

from girih.errors import ParameterError


def whole(value: object, name: str, least: int | None = 1) -> int:
    """A whole number, NumPy's and torch's included, of at least `least`; no fraction is cut off.

    Raises:
        ParameterError: it is not one.

    Example:
        >>> from girih._options import whole
        >>> whole(3, "samples")
        3
    """
    try:
        number = None if _is_truth(value) else operator.index(cast("SupportsIndex", value))
    except (TypeError, ValueError, RuntimeError):  # torch refuses fractions in its own ways
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f", {least} or more"
        raise ParameterError(f"{name} must be a whole number{bound}; got {value!r}")
    return number


def wholes(values: object, name: str, least: int | None = 1) -> tuple[int, ...]:
    """Whole numbers of at least `least`; one alone counts as a list of one.

    Raises:
        ParameterError: one of them is not.
    """
    several = (isinstance(values, Sequence) and not isinstance(values, str)) or getattr(values, "ndim", 0) == 1
    return tuple(whole(value, name, least) for value in (cast("Iterable[object]", values) if several else (values,)))


def _is_truth(value: object) -> bool:
    return isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def real(value: object, name: str, positive: bool = True) -> float:
    """A finite number above 0, or from 0 on where `positive` is false.

    Raises:
        ParameterError: it is not one.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if number > 0.0 or (number == 0.0 and not positive):
            return number
    raise ParameterError(f"{name} must be a {'positive number' if positive else 'number of 0 or more'}; got {value!r}")
