"""Checks of options, common to everything that is trained."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from girih.errors import ParameterError


def whole(value: Any, name: str, least: int | None = 1) -> int:
    """A whole number, NumPy's included, of at least `least`.

    Raises:
        ParameterError: it is not one.

    Example:
        >>> from girih._options import whole
        >>> whole(3, "samples")
        3
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and value < least):
        bound = "" if least is None else f", {least} or more"
        raise ParameterError(f"{name} must be a whole number{bound}; got {value!r}")
    return int(value)


def real(value: Any, name: str, positive: bool = True) -> float:
    """A finite number above 0, or from 0 on where `positive` is false.

    Raises:
        ParameterError: it is not one.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if number > 0.0 or (number == 0.0 and not positive):
            return number
    raise ParameterError(f"{name} must be a {'positive number' if positive else 'number of 0 or more'}; got {value!r}")
