"""Turning what users pass (NumPy, torch, pandas, polars, Arrow, lists) into checked float64 arrays and tensors."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from numbers import Complex, Real
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from girih._devices import check_device
from girih.errors import EmptyDataError, NonFiniteError, NotNumericError, ShapeError

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


def column_labels(value: object) -> list[Any] | None:
    """The names of the columns of a frame; `None` for anything else."""
    names = getattr(value, "column_names", getattr(value, "columns", None))
    return list(names) if names is not None and not callable(names) and hasattr(value, "__getitem__") else None


def refuse(name: str, kind: str, what: str) -> NotNumericError:
    """The error for an array that holds something else than real numbers, with its remedy."""
    return NotNumericError(f"{name} must be an array of numbers; could not convert it ({what}); {_REMEDY[kind]}")


def as_floats(value: object, name: str) -> NDArray[np.float64]:
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


def _number(value: object) -> float:
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


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, _DATES) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Frame(Protocol):
    """A data frame, as pandas and polars have them."""

    @property
    def columns(self) -> object:
        """The names of its columns."""


Rows: TypeAlias = np.ndarray | Tensor | Frame | Sequence[Sequence[float]]  # what users pass as a table

# Squares of values up to here, summed over rows and columns, are finite.
_LARGEST = 1e150

ArrayLike = npt.ArrayLike | Tensor  # whatever `as_tensor` makes a tensor of; a pandas frame is an array to NumPy


def as_tensor(value: object, name: str, device: torch.device | None = None) -> Tensor:
    """Return `value` as a float64 tensor on a device; a tensor that asks for gradients keeps them.

    A tensor on another device is refused (`DeviceError`); what has no device, as NumPy arrays and lists, goes there.

    Masked entries (`numpy.ma`), `None`, `pd.NA` and the nulls of data frames become NaN.
    """
    if isinstance(value, Tensor):
        check_device(_from_torch(value, name), name, device)
        return value.to(device=device or value.device, dtype=torch.float64)
    if isinstance(value, (list, tuple)) and _holds_arrays(value):
        parts = [as_tensor(part, name, device) for part in value]
        if any(part.shape != parts[0].shape for part in parts):
            raise refuse(name, "ragged", "its rows have different lengths")
        return torch.stack(parts)
    # a copy unless the array owns writable, positively strided memory that torch can share
    return torch.as_tensor(np.require(as_floats(value, name), requirements=["C", "W"]), device=device)


def _from_torch(value: Tensor, name: str) -> Tensor:
    if value.is_complex():
        raise refuse(name, "complex", f"it holds complex numbers ({value.dtype})")
    if value.is_nested:
        raise refuse(name, "ragged", "it is a nested tensor")
    if value.layout is not torch.strided:
        raise refuse(name, "sparse", f"it is a sparse tensor ({value.layout})")
    if value.is_quantized:
        raise refuse(name, "other", "it is a quantized tensor; pass its .dequantize()")
    if value.is_meta:
        raise refuse(name, "other", "a tensor on the meta device holds no numbers")
    return value


def _holds_arrays(value: Sequence[Any]) -> bool:
    """Tells whether a list holds arrays, at any depth: NumPy would drop their masks and gradients."""
    return any(
        _holds_arrays(part)
        if isinstance(part, (list, tuple))
        else hasattr(part, "__array__") and not isinstance(part, np.generic)
        for part in value
    )


def as_indices(value: Any, name: str) -> Tensor:
    """Makes whole numbers int64; fractions are refused, not cut off."""
    tensor = as_tensor(value, name)
    if not torch.equal(tensor, tensor.round()):
        raise ShapeError(f"{name} must hold whole numbers; got {tensor.flatten()[:8].tolist()}")
    return tensor.long()


def bare(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, without what `torch.func` and forward-mode differentiation wrap around them.

    Under `torch.func.vmap` they have one axis more.
    """
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return forward_ad.unpack_dual(tensor).primal if forward_ad._current_level >= 0 else tensor


def copied(tensor: Tensor) -> Tensor:
    """A copy of the numbers of a tensor; see `bare`."""
    return bare(tensor.detach().clone())


def in_transform() -> bool:
    """Tells whether a transform of `torch.func` is under way."""
    return _functorch.peek_interpreter_stack() is not None


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Compute on ordinary tensors as if no transform of `torch.func` were under way.

    Inside one all results are tensors of its own kind, which NumPy cannot read.
    """
    if not in_transform():
        yield
        return
    with temporarily_clear_interpreter_stack():
        yield


def check_finite(tensor: Tensor, name: str, allow_missing: bool = False, labels: Sequence[Any] | None = None) -> None:
    """Refuse infinite values, and NaN unless it means "missing" here."""
    tensor = bare(tensor)
    if torch.isfinite(tensor).all():
        return
    if torch.isinf(tensor).any():
        where = _first(torch.isinf(tensor), labels)
        raise NonFiniteError(f"{name} holds infinite values (first in {where}; remove or replace them")
    if not allow_missing:
        where = _first(torch.isnan(tensor), labels)
        raise NonFiniteError(
            f"{name} holds NaN or masked entries (first in {where}, which does not mean 'missing' here; remove or "
            "impute them"
        )


def check_observed(tensor: Tensor, name: str) -> None:
    """Refuse a table `(N, D)` with columns that hold nothing but missing entries."""
    unseen = torch.isnan(tensor).all(0).nonzero()[:, 0].tolist()
    if unseen:
        raise EmptyDataError(f"columns {unseen[:10]} of {name} have no observed entries; drop them")


def check_largest(tensor: Tensor, name: str, labels: Sequence[Any] | None = None, largest: float = _LARGEST) -> None:
    """Refuse a table with values whose squares overflow, by column."""
    size = tensor.detach().abs().nan_to_num(nan=0.0)
    if size.numel() and size.max() > largest:
        at = size.amax(0) if size.ndim == 2 else size
        column = int(at.argmax())
        raise NonFiniteError(
            f"{name} holds values up to {at[column].item():.1e} in column {_label(column, labels)}, too large to "
            "compute with; use a larger unit for it"
        )


def _first(wrong: Tensor, labels: Sequence[Any] | None) -> str:
    place = wrong.nonzero()[0].tolist() if wrong.ndim else [0]
    return f"row {place[0]})" + (f", column {_label(place[1], labels)}" if len(place) == 2 else "")


def _label(column: int, labels: Sequence[Any] | None) -> str:
    return str(column) if labels is None or column >= len(labels) else repr(labels[column])


def as_rows(
    value: object,
    name: str,
    columns: int | None,
    columns_meaning: str,
    *,
    allow_missing: bool = False,
    allow_empty: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """Return a checked `(N, columns)` float64 tensor; a single row of the right length is promoted."""
    tensor = as_tensor(value, name, device)
    if tensor.ndim == 1 and columns is not None and tensor.shape[0] == columns and columns != 1:
        tensor = tensor[None, :]
    if tensor.ndim == 1 and columns == 1:
        tensor = tensor[:, None]
    if tensor.ndim != 2:
        raise ShapeError(
            f"{name} must be a table of shape (N, {columns or 'D'}); got {tensor.ndim} dimension(s), "
            f"shape {tuple(tensor.shape)}; reshape images to rows first, e.g. {name}.reshape(len({name}), -1)"
        )
    if columns is not None and tensor.shape[1] != columns:
        raise ShapeError(
            f"{name} has {tensor.shape[1]} columns, but {columns_meaning} is {columns}; "
            f"pass an array of shape (N, {columns})"
        )
    if tensor.shape[0] == 0 and not allow_empty:
        raise EmptyDataError(f"{name} has no rows; pass at least one")
    check_finite(tensor, name, allow_missing, column_labels(value))
    return tensor
