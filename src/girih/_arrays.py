"""Turning what users pass (NumPy, torch, pandas, lists) into checked float64 tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih.errors import EmptyDataError, NonFiniteError, ShapeError


def as_tensor(value: Any, name: str, device: torch.device | None = None) -> Tensor:
    """Return `value` as a float64 tensor; a tensor that asks for gradients keeps them."""
    if isinstance(value, Tensor):
        return value.to(device=device or value.device, dtype=torch.float64)
    if hasattr(value, "to_numpy"):  # pandas frames and series; pd.NA becomes NaN
        try:
            value = value.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"{name} holds columns that are not numbers ({error}); keep the numeric columns only"
            ) from None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} must be an array of numbers; could not convert it ({error})") from None
    # a copy unless the array owns writable, positively strided memory that torch can share
    return torch.as_tensor(np.require(array, requirements=["C", "W"]), device=device)


def check_finite(tensor: Tensor, name: str, allow_missing: bool = False) -> None:
    """Refuse infinite values, and NaN unless it means "missing" here."""
    if torch.isfinite(tensor).all():
        return
    if torch.isinf(tensor).any():
        row = int(torch.isinf(tensor).reshape(tensor.shape[0], -1).any(1).nonzero()[0]) if tensor.ndim else 0
        raise NonFiniteError(f"{name} holds infinite values (first in row {row}); remove or replace them")
    if not allow_missing:
        row = int(torch.isnan(tensor).reshape(tensor.shape[0], -1).any(1).nonzero()[0]) if tensor.ndim else 0
        raise NonFiniteError(
            f"{name} holds NaN (first in row {row}), which does not mean 'missing' here; remove or impute it"
        )


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
    check_finite(tensor, name, allow_missing)
    return tensor
