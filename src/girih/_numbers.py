"""What users pass as numbers (NumPy, pandas, polars, Arrow, lists) as float64 arrays; what is none is named."""

from __future__ import annotations

import datetime
from decimal import Decimal
from numbers import Complex, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.errors import NotNumericError

_DATES = (np.datetime64, np.timedelta64, datetime.date, datetime.time, datetime.timedelta)
_REMEDY = {
    "text": "turn text into numbers (pandas.to_numeric, or a 0/1 column for each word), or leave it out",
    "dates": "turn dates into numbers in a unit of your own, e.g. (t - t.min()) / numpy.timedelta64(1, 'D'), or leave "
    "them out",
    "complex": "Complex data not supported: pass the real and the imaginary parts as columns of their own",
    "sparse": "pass its .toarray() or .to_dense()",
    "ragged": "give all rows the same length, with NaN where an entry is missing",
    "other": "keep the numeric columns only",
}


class _NotNumbersError(Exception):
    """Part of an array holds no numbers: what it holds, and the remedy."""

    def __init__(self, kind: str, what: str, where: str = "") -> None:
        self.kind, self.what, self.where = kind, what, where


def column_labels(value: Any) -> list[Any] | None:
    """The names of the columns of a frame; `None` for anything else."""
    names = getattr(value, "column_names", getattr(value, "columns", None))
    return list(names) if names is not None and not callable(names) and hasattr(value, "__getitem__") else None


def refuse(name: str, kind: str, what: str) -> NotNumericError:
    """The error for an array that holds something else than real numbers, with its remedy."""
    return NotNumericError(f"{name} must be an array of numbers; could not convert it ({what}); {_REMEDY[kind]}")


def as_floats(value: Any, name: str) -> NDArray[np.float64]:
    """The numbers in `value` as float64; masked entries, `None`, `pd.NA` and nulls become NaN.

    Raises:
        NotNumericError: text, dates, complex numbers and other objects, by column, and sparse or ragged tables.
    """
    if value is None:
        raise refuse(name, "other", "it is None")
    labels = column_labels(value)
    if labels is not None:
        return _frame(value, labels, name)
    if hasattr(value, "toarray") or hasattr(value, "todense"):
        raise refuse(name, "sparse", f"it is a sparse {type(value).__name__}, in which 0 and missing look the same")
    try:
        return _column(value)
    except _NotNumbersError as error:
        raise refuse(name, error.kind, f"{error.where}{error.what}") from None


def _frame(value: Any, labels: list[Any], name: str) -> NDArray[np.float64]:
    """The columns of a pandas, polars or Arrow table."""
    if all(isinstance(kind, np.dtype) and kind.kind in "fiub" for kind in getattr(value, "dtypes", [None])):
        return np.asarray(value.to_numpy(dtype=np.float64))
    columns, refused, first = [], [], None
    for index, label in enumerate(labels):
        column = value.iloc[:, index] if hasattr(value, "iloc") else value[label]
        try:
            columns.append(_column(column))
        except _NotNumbersError as error:
            refused.append(repr(label))
            first = first or error
    if first is not None:
        some = ", ".join(refused[:8]) + (", ..." if len(refused) > 8 else "")
        one = "column" if len(refused) == 1 else "columns"
        raise NotNumericError(
            f"{name} holds columns that are not numbers ({one} {some}: {first.what}); {_REMEDY[first.kind]}"
        )
    return np.stack(columns, 1) if columns else np.empty((len(value), 0))


def _column(value: Any) -> NDArray[np.float64]:
    """An array of any number of axes, or a column of a frame."""
    if hasattr(value, "to_pandas") and not hasattr(value, "dtype"):  # Arrow
        value = value.to_pandas()
    if hasattr(value, "to_numpy"):
        # of pandas: whole numbers and booleans that know missing entries, sparse columns
        nullable = not isinstance(value.dtype, np.dtype) and getattr(value.dtype, "kind", "O") in "fiub"
        value = value.to_numpy(dtype=np.float64, na_value=np.nan) if nullable else value.to_numpy()
    if isinstance(value, np.ma.MaskedArray):
        return _masked(value)
    try:
        array = np.asarray(value)
        if isinstance(value, (list, tuple)) and array.dtype.kind not in "fiub":
            array = np.array(value, dtype=object)  # NumPy turns mixed lists into text
    except (ValueError, TypeError) as error:
        ragged = "inhomogeneous" in str(error)
        what = "its rows have different lengths" if ragged else " ".join(str(error).split())
        raise _NotNumbersError("ragged" if ragged else "other", what) from None
    return _floats(array)


def _masked(value: np.ma.MaskedArray[Any, Any]) -> NDArray[np.float64]:
    mask, data = np.ma.getmaskarray(value), np.ma.getdata(value)
    if data.dtype.names is None and not mask.any():
        return _floats(data)
    if data.dtype.kind == "O":
        data = data.copy()
        data[mask] = None
    floats = np.array(_floats(data), copy=True)
    floats[mask] = np.nan
    return floats


def _floats(array: NDArray[Any]) -> NDArray[np.float64]:
    kind = array.dtype.kind
    if kind in "fiub":
        with np.errstate(over="ignore"):  # what is beyond float64 becomes infinite, and is refused as such
            return array.astype(np.float64, copy=False)
    if kind in "mM":
        example = f", e.g. {_shown(array.flat[0])}" if array.size else ""
        raise _NotNumbersError("dates", f"dates of dtype {array.dtype}{example}")
    if kind in "OUSTc":
        return _objects(array.astype(object))
    if array.dtype.names is None and array.dtype.type is not np.void:  # bfloat16 and its like
        return array.astype(np.float64)
    raise _NotNumbersError("other", f"its dtype is {array.dtype}")


def _objects(array: NDArray[Any]) -> NDArray[np.float64]:
    out = np.empty(array.size)
    for index, value in enumerate(array.ravel()):
        try:
            out[index] = _number(value)
        except _NotNumbersError as error:
            where = np.unravel_index(index, array.shape)
            error.where = f"column {where[1]} holds " if len(where) == 2 else ""
            error.what += f" in row {where[0]}" if where else ""
            raise
    return out.reshape(array.shape)


def _number(value: Any) -> float:
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return np.nan
    if isinstance(value, _DATES):
        raise _NotNumbersError("dates", f"dates, e.g. {_shown(value)}")
    if isinstance(value, (Real, Decimal, np.bool_)):
        try:
            return float(value)
        except (OverflowError, ValueError) as error:
            raise _NotNumbersError("other", f"a number that is no float64 ({error})") from None
    if isinstance(value, (str, bytes)):
        raise _NotNumbersError("text", f"text, e.g. {_shown(value)}")
    if isinstance(value, Complex):
        raise _NotNumbersError("complex", f"complex numbers, e.g. {_shown(value)}")
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return _number(value.item())
    if isinstance(value, (list, tuple, np.ndarray)):
        raise _NotNumbersError("ragged", "its rows have different lengths, or are no rows: it holds lists")
    kind = type(value).__name__
    raise _NotNumbersError("other", f"a {kind}: float() argument must be a string or a real number, not '{kind}'")


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, _DATES) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
