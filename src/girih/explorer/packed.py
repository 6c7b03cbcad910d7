"""Numbers as a page takes them: typed arrays in base64, and columns of a table in the smallest type that shows them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from girih.tables.frames import Raw

Kind: TypeAlias = Literal["f4", "f8", "i4", "u2", "u1"]
Packed: TypeAlias = dict[str, Any]

_WHOLE = 2.0**24  # whole numbers up to here are float32


def packed(values: ArrayLike, kind: Kind) -> Packed:
    """An array of the page.

    Args:
        values: of any shape; the page has them flat, in C order, and knows the shape.
        kind: the type there: "f4" where numbers are drawn, "f8" where they are computed with.

    Example:
        >>> from girih.explorer.packed import packed
        >>> packed([1.0, 2.0], "f4")
        {'type': 'f4', 'base64': 'AACAPwAAAEA='}
    """
    array = np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<"))
    return {"type": kind, "base64": base64.b64encode(array.tobytes()).decode("ascii")}


def exactly(values: ArrayLike) -> Packed:
    """Numbers that the page computes with: in float32 where that loses nothing, as of networks trained in it.

    Example:
        >>> from girih.explorer.packed import exactly
        >>> exactly([0.5, 0.25])["type"], exactly([0.1])["type"]
        ('f4', 'f8')
    """
    array = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        same = array.astype(np.float32).astype(np.float64) == array
    return packed(array, "f4" if bool(same.all()) else "f8")


def number_column(name: object, values: NDArray[np.float64], digits: int = 6) -> Packed:
    """A column of numbers, NaN where missing: as float32, or as float64 where whole numbers need it.

    The page shows six digits of a number, or as many as are asked for, and all of a whole one.
    """
    seen = values[np.isfinite(values)]
    whole = bool((seen == np.rint(seen)).all())
    large = float(np.abs(seen).max(initial=0.0))
    wide = (whole and large > _WHOLE) or large > 1e37
    return {"name": str(name), "whole": whole, "digits": digits, "values": packed(values, "f8" if wide else "f4")}


def label_column(name: object, labels: Sequence[object | None], order: Sequence[object] = ()) -> Packed:
    """A column of labels, `None` where missing: codes, 0 where missing and else 1 more than the place of the label."""
    seen = {str(label): label for label in labels if label is not None}
    levels = [text for text in map(str, order) if text in seen]
    levels += sorted(set(seen) - set(levels), key=lambda text: _rank(seen[text]))
    place = {text: code for code, text in enumerate(levels, start=1)}
    codes = [0 if label is None else place[str(label)] for label in labels]
    return {
        "name": str(name),
        "levels": levels,
        "codes": packed(codes, "u1" if len(levels) < 256 else "u2" if len(levels) < 65_536 else "i4"),
    }


def _rank(label: object) -> tuple[bool, float, str]:
    """Numbers come before texts, in their own order."""
    plain = isinstance(label, (int, float)) and not isinstance(label, bool)
    return not plain, float(label) if plain else 0.0, str(label)  # type: ignore[arg-type]


def column(raw: Raw, date: bool = False) -> Packed:
    """A column of a table as it was given; `date` where its numbers are days since 1970-01-01, shown as dates."""
    if raw.family in ("number", "empty") and isinstance(raw.values, np.ndarray) and not raw.levels:
        return number_column(raw.name, raw.values) | ({"date": True} if date else {})
    return label_column(raw.name, raw.labels(), raw.levels or ())
