"""Plain columns as the container that a table came in: pandas, polars, Arrow, NumPy, torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from girih._extras import require
from girih._arrays import as_floats
from girih.tables.frames import Label, Name

Written: TypeAlias = NDArray[np.float64] | list[Label | None]  # numbers, NaN where missing, or labels, None there


CATEGORICAL = ("category", "Categorical", "Enum")  # the names of types of labels


@dataclass(frozen=True)
class Form:
    """The type that a column has in its container.

    Attributes:
        dtype: its name there.
        levels: the labels of a categorical type.
        ordered: whether their order means something.
    """

    dtype: str
    levels: tuple[Label, ...] = ()
    ordered: bool = False


def write_array(columns: Iterable[Written], tensor: bool) -> NDArray[Any] | torch.Tensor:
    """An array of columns: of float64 if all are numbers, of booleans if all are complete booleans, else of objects."""
    kept = list(columns)
    if all(isinstance(column, np.ndarray) for column in kept):
        out = np.stack([np.asarray(column) for column in kept], 1)
        return torch.from_numpy(out) if tensor else out
    if all(isinstance(column, list) and all(isinstance(value, bool) for value in column) for column in kept):
        flags = np.array(kept, dtype=bool).T
        return torch.from_numpy(flags) if tensor else flags
    if tensor or all(isinstance(c, np.ndarray) or all(v is None or isinstance(v, bool) for v in c) for c in kept):
        numbers = [as_floats(np.array(column, dtype=object), "X") for column in kept]
        out = np.stack(numbers, 1)
        return torch.from_numpy(out) if tensor else out
    mixed = np.empty((len(kept[0]), len(kept)), dtype=object)
    for j, column in enumerate(kept):
        mixed[:, j] = column if isinstance(column, list) else column.tolist()
    return mixed


def write_frame(
    source: str,
    names: Sequence[Name],
    columns: Sequence[Written],
    forms: Sequence[Form],
    index: Any = None,
) -> Any:
    """A frame of columns with the types that their forms name, where their values allow it."""
    if source == "pandas":
        pd = require("pandas", "tables")
        data = {j: _to_pandas(values, form, index) for j, (values, form) in enumerate(zip(columns, forms, strict=True))}
        out = pd.DataFrame(data, index=index)
        out.columns = pd.Index(list(names))
        return out
    nw = require("narwhals", "tables")
    series = [
        _to_series(str(name), values, form, source) for name, values, form in zip(names, columns, forms, strict=True)
    ]
    return nw.to_native(series[0].to_frame().with_columns(*series[1:]))  # `from_dict` would lose types of Arrow


def _whole_entries(values: NDArray[np.float64]) -> bool:
    seen = values[~np.isnan(values)]
    return bool((seen == np.round(seen)).all())


def _to_pandas(values: Written, form: Form, index: Any) -> Any:
    """A pandas series; the type is left to pandas where the one that was read cannot hold the values."""
    pd = require("pandas", "tables")
    if form.dtype == "category":
        labels = values if isinstance(values, list) else [None if v != v else v for v in values.tolist()]
        kept = pd.Categorical(labels, categories=list(form.levels or ()), ordered=form.ordered)
        return pd.Series(kept, index=index)
    lower = form.dtype.lower()
    if isinstance(values, np.ndarray):
        column = pd.Series(values, index=index)
        if lower.startswith(("int", "uint")) and (not _whole_entries(values) or not _fits(values, lower)):
            return column.astype("Float64") if form.dtype[0] in "IU" else column
        if lower.startswith("bool") and not np.isin(values, (0.0, 1.0)).all():
            return column
    elif form.dtype == "bool" and None in values:
        column = pd.Series(values, index=index, dtype="boolean")
        return column
    else:
        column = pd.Series(values, index=index, dtype=object)
    try:
        return column.astype(form.dtype)
    except (TypeError, ValueError):
        return column.infer_objects()


def _fits(values: NDArray[np.float64], dtype: str) -> bool:
    """Whether numbers lie within the range of a type of whole numbers."""
    seen = values[~np.isnan(values)]
    try:
        kind = np.iinfo(dtype.partition("[")[0])
    except (TypeError, ValueError):
        return True
    return not len(seen) or bool(seen.min() >= kind.min and seen.max() <= kind.max)


def _to_series(name: str, values: Written, form: Form, source: str) -> Any:
    """A series of polars, Arrow, or any package that narwhals builds for."""
    nw = require("narwhals", "tables")
    numbers = isinstance(values, np.ndarray)
    entries = [None if v != v else v for v in values.tolist()] if isinstance(values, np.ndarray) else values
    base = nw.Float64 if numbers else nw.String
    if not numbers and all(value is None or isinstance(value, bool) for value in entries):
        base = nw.Boolean
    wanted = getattr(nw, form.dtype, base)
    if numbers and isinstance(values, np.ndarray) and form.dtype.lower().startswith(("int", "uint")):
        if _whole_entries(values) and _fits(values, form.dtype.lower()):
            entries = [None if value is None else int(value) for value in entries]
        else:
            wanted = base
    elif form.dtype == "Enum":
        wanted = nw.Enum([str(level) for level in form.levels or ()])
    elif form.dtype in ("Unknown", "Object", "Decimal"):
        wanted = base
    try:
        return nw.new_series(name, entries, wanted, backend=source)
    except (TypeError, ValueError, NotImplementedError):
        return nw.new_series(name, entries, base, backend=source)
