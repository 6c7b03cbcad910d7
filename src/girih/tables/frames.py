"""Tables of any container (pandas, polars, Arrow, NumPy, torch, lists) as plain columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from girih._arrays import as_rows, as_tensor
from girih._extras import require
from girih._numbers import as_floats, column_labels, refuse
from girih.errors import EmptyDataError, NotNumericError, ShapeError

Name: TypeAlias = str | int
Label: TypeAlias = str | int | float | bool
Family: TypeAlias = Literal["number", "boolean", "category", "mixed", "empty"]

_EXACT = 2.0**53  # whole numbers up to here are float64


@dataclass(frozen=True)
class Raw:
    """One column as it was given.

    Attributes:
        name: its name, or its place in an array.
        family: what its observed entries are; "mixed" is text among numbers.
        values: numbers `(N,)`, NaN where missing, or labels, None where missing.
        dtype: the name that its container has for its type.
        levels: the labels in an order of their own, where it has one.
        ordered: whether that order means something.
    """

    name: Name
    family: Family
    values: NDArray[np.float64] | list[Label | None]
    dtype: str
    levels: tuple[Label, ...] | None = None
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def numbers(self) -> NDArray[np.float64]:
        """Its entries as float64.

        Raises:
            NotNumericError: it holds text.
        """
        if isinstance(self.values, np.ndarray):
            return self.values
        return as_floats(np.array(self.values, dtype=object), f"column {self.name!r}")

    def labels(self) -> list[Label | None]:
        """Its entries as labels; whole numbers as int."""
        if isinstance(self.values, list):
            return self.values
        whole = all(v.is_integer() for v in self.values[~np.isnan(self.values)].tolist())
        kind: type[bool] | type[int] | type[float] = bool if self.family == "boolean" else int if whole else float
        return [None if v != v else kind(v) for v in self.values.tolist()]


@dataclass(frozen=True)
class Table:
    """A table as columns.

    Attributes:
        source: "array", "tensor", or the name of the package of a frame.
        named: whether the names are the user's.
        columns: one for each.
        index: the index of a pandas frame.
    """

    source: str
    named: bool
    columns: tuple[Raw, ...]
    index: Any = None  # whatever pandas has

    def __len__(self) -> int:
        return len(self.columns[0])


def table(X: Any, name: str = "X", width: int | None = None) -> Table:
    """The columns of whatever users pass.

    Args:
        X: a frame, an array, a tensor or a list of rows.
        name: its name in errors.
        width: how many columns are expected, so that a single row or a single column may come without its other axis.

    Raises:
        NotNumericError: dates, complex numbers, sparse or ragged tables, or objects.
        ShapeError: it has not two axes, or its columns have no usable names.
        EmptyDataError: no rows or no columns.
    """
    if isinstance(X, torch.Tensor):
        out = _of_tensor(X, name, width)
    elif type(X).__name__ == "LazyFrame":
        raise NotNumericError(f"{name} is a lazy frame, which holds no rows yet; pass {name}.collect()")
    elif column_labels(X) is not None:
        out = _of_frame(X, name)
    else:
        out = _of_array(X, name, width)
    if not out.columns:
        raise EmptyDataError(f"{name} has 0 feature(s) while a minimum of 1 is required; pass at least one column")
    if not len(out):
        raise EmptyDataError(f"{name} has no rows; pass at least one")
    return out


def of_labels(name: Name, values: Sequence[Any], what: str, dtype: str = "object") -> Raw:
    """A column of Python objects."""
    entries = [_entry(value) for value in values]
    seen = [value for value in entries if value is not None]
    if not seen:
        return Raw(name, "empty", np.full(len(entries), np.nan), dtype)
    if all(isinstance(value, str) for value in seen):
        return Raw(name, "category", entries, dtype)
    if any(isinstance(value, str) for value in seen):
        plain = [value if isinstance(value, str) else _plain(value, what) for value in entries]
        return Raw(name, "mixed", plain, dtype)
    family: Family = "boolean" if all(isinstance(value, bool) for value in seen) else "number"
    column = np.empty(len(entries), dtype=object)
    column[:] = entries
    return Raw(name, family, as_floats(column, what), dtype)


def _plain(value: Any, what: str) -> Label | None:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return float(as_floats(np.array([value], dtype=object), what)[0])


def _entry(value: Any) -> Any:
    """A Python object, None where it says "missing"."""
    if isinstance(value, np.generic) and value.dtype.kind in "fiubUSO":
        value = value.item()
    if isinstance(value, str):
        return value.value if isinstance(value, Enum) else str(value)
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, (np.datetime64, np.timedelta64)) and np.isnat(value):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float) and value != value:
        return None
    return value


def _of_tensor(X: torch.Tensor, name: str, width: int | None) -> Table:
    family: Family = "boolean" if X.dtype is torch.bool else "number"
    rows = as_rows(X.detach().cpu(), name, _promoted(X.ndim, X.shape, width), "", allow_missing=True, allow_empty=True)
    columns = (Raw(j, family, column, "float64") for j, column in enumerate(rows.numpy().T))
    return Table("tensor", False, tuple(columns))


def _promoted(axes: int, shape: Sequence[int], width: int | None) -> int | None:
    """The number of columns by which `as_rows` makes a table of one axis."""
    return width if axes == 1 and (width == 1 or tuple(shape) == (width,)) else None


def _of_array(X: Any, name: str, width: int | None) -> Table:
    array = _objects_or_numbers(X, name)
    if array.dtype.kind in "fiub":
        family: Family = "boolean" if array.dtype.kind == "b" else "number"
        _check_whole(array, name)
        expected = _promoted(array.ndim, array.shape, width)
        rows = as_rows(array, name, expected, "", allow_missing=True, allow_empty=True)
        dtype = "bool" if family == "boolean" else "float64"
        return Table("array", False, tuple(Raw(j, family, column, dtype) for j, column in enumerate(rows.numpy().T)))
    if array.ndim == 1 and (expected := _promoted(1, array.shape, width)) is not None:
        array = array[:, None] if expected == 1 else array[None, :]
    if array.ndim != 2:
        as_rows(np.zeros(array.shape), name, None, "")  # says so
    columns = (of_labels(j, array[:, j].tolist(), f"column {j} of {name}") for j in range(array.shape[1]))
    return Table("array", False, tuple(columns))


def _objects_or_numbers(X: Any, name: str) -> NDArray[Any]:
    """An array of numbers, NaN where missing, or of objects, None where missing."""
    if isinstance(X, (list, tuple)):
        if any(hasattr(part, "__array__") and not isinstance(part, np.generic) for part in X):
            if any(isinstance(part, np.ndarray) and part.dtype.kind == "O" for part in X):
                X = [part.tolist() if isinstance(part, np.ndarray) else part for part in X]
            else:
                return as_tensor(X, name).detach().numpy()
        try:
            array = np.array(X)
            if array.dtype.kind not in "fiu":  # NumPy makes text of mixed rows, and numbers of mixed booleans
                array = np.array(X, dtype=object)
        except ValueError:
            raise refuse(name, "ragged", "its rows have different lengths") from None
        if array.dtype.kind == "O" and any(isinstance(value, (list, tuple)) for value in array.ravel()):
            raise refuse(name, "ragged", "its rows have different lengths")
        return array
    if hasattr(X, "toarray") or hasattr(X, "todense") or not hasattr(X, "__array__"):
        return as_floats(X, name)  # says what is wrong
    mask = np.ma.getmaskarray(X) if isinstance(X, np.ma.MaskedArray) else None
    array = np.asarray(np.ma.getdata(X) if mask is not None else X)
    if array.dtype.kind not in "fiubOUST":
        return as_floats(X, name)  # says what is wrong, or reads it
    if mask is not None and mask.any():
        if array.dtype.kind in "fiu":
            _check_whole(array[~mask], name)
            return as_floats(X, name)
        array = array.astype(object)
        array[mask] = None
    return array if array.dtype.kind in "fiub" else array.astype(object)


def _check_whole(array: NDArray[Any], name: str) -> None:
    """Refuse whole numbers that float64 cannot tell apart."""
    if array.dtype.kind in "iu" and array.size and float(max(abs(int(array.max())), abs(int(array.min())))) > _EXACT:
        raise NotNumericError(
            f"{name} holds whole numbers above 2^53, which float64 cannot tell apart; subtract an origin, or leave "
            "them out where they only name the rows"
        )


def _of_frame(X: Any, name: str) -> Table:
    nw = require("narwhals", "tables")
    labels = column_labels(X) or []
    twice = sorted({str(label) for label in labels if labels.count(label) > 1})
    if twice:
        raise ShapeError(f"{name} has more than one column named {', '.join(twice)}; give each a name of its own")
    wrong = [label for label in labels if isinstance(label, bool) or not isinstance(label, (str, int, np.integer))]
    if wrong:
        raise ShapeError(f"{name} has the column name {wrong[0]!r}; name columns by strings or whole numbers")
    try:
        frame = nw.from_native(X, eager_only=True)
    except TypeError:
        raise NotNumericError(
            f"{name} must be a frame that narwhals reads, an array or a list of rows; got {type(X).__name__}"
        ) from None
    source = str(frame.implementation.value)
    columns = [_of_series(frame.get_column(label), label, f"column {label!r} of {name}", source) for label in labels]
    return Table(source, True, tuple(columns), X.index if source == "pandas" else None)


def _of_series(series: Any, label: Any, what: str, source: str) -> Raw:
    nw = require("narwhals", "tables")
    native, kind = series.to_native(), series.dtype
    name: Name = label if isinstance(label, str) else int(label)
    dtype = str(native.dtype) if source == "pandas" else str(kind).partition("(")[0]
    if kind.is_numeric() or kind == nw.Boolean:
        if kind.is_integer() and len(series):
            ends = [end for end in (series.min(), series.max()) if end is not None and end == end]
            _check_whole(np.array([int(end) for end in ends]), what)
        return Raw(name, "boolean" if kind == nw.Boolean else "number", as_floats(native, what), dtype)
    if kind == nw.Categorical or kind == nw.Enum:
        declared = native.dtype.categories if source == "pandas" else kind.categories if kind == nw.Enum else None
        levels = None if declared is None else tuple(_entry(level) for level in declared)
        values = [_entry(value) for value in series.to_list()]
        for level in levels or ():
            if not isinstance(level, (str, int, float)):
                raise NotNumericError(
                    f"{what} has categories that are no text, numbers or booleans, e.g. {level!r}; turn it into text "
                    "first (astype(str) in pandas)"
                )
        return Raw(name, "category", values, dtype, levels, bool(getattr(native.dtype, "ordered", False)))
    if kind == nw.String or kind == nw.Object:
        return of_labels(name, series.to_list(), what, dtype)
    array = np.asarray(native.to_numpy())
    if array.dtype.kind in "fiub":  # sparse columns of pandas
        return Raw(name, "boolean" if array.dtype.kind == "b" else "number", as_floats(array, what), dtype)
    if array.dtype.kind == "O":  # columns of no type, as of nothing but nulls
        return of_labels(name, series.to_list(), what, dtype)
    return Raw(name, "number", as_floats(native, what), dtype)  # says what is wrong with dates
