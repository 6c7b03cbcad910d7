"""Turning what users pass (NumPy, torch, pandas, lists) into checked float64 tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from girih._numbers import as_floats, column_labels, refuse
from girih.errors import EmptyDataError, NonFiniteError, ShapeError


class Frame(Protocol):
    """A data frame, as pandas and polars have them."""

    @property
    def columns(self) -> object:
        """Its names."""


Rows: TypeAlias = np.ndarray | Tensor | Frame | Sequence[Sequence[float]]  # what users pass as a table

# Squares of values up to here, summed over rows and columns, are finite.
_LARGEST = 1e150

ArrayLike = npt.ArrayLike | Tensor  # whatever `as_tensor` makes a tensor of; a pandas frame is an array to NumPy


def as_tensor(value: Any, name: str, device: torch.device | None = None) -> Tensor:
    """Return `value` as a float64 tensor; a tensor that asks for gradients keeps them.

    Masked entries (`numpy.ma`), `None`, `pd.NA` and the nulls of data frames become NaN.
    """
    if isinstance(value, Tensor):
        return _from_torch(value, name).to(device=device or value.device, dtype=torch.float64)
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
    """Whether a list holds arrays, at any depth: NumPy would drop their masks and gradients."""
    return any(
        _holds_arrays(part)
        if isinstance(part, (list, tuple))
        else hasattr(part, "__array__") and not isinstance(part, np.generic)
        for part in value
    )


def as_indices(value: Any, name: str) -> Tensor:
    """Whole numbers as int64; fractions are refused, not cut off."""
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
    """Whether a transform of `torch.func` is under way."""
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
    value: Any,
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
