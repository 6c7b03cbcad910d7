"""Some rows of a table and tables joined, whatever holds them: arrays, tensors, frames of pandas, polars or Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from girih._arrays import column_labels
from girih._extras import require


def named(block: Any) -> Any:
    """A block as it is; of a record batch of Arrow, the table of it, and of a list of rows their array."""
    if type(block).__name__ == "RecordBatch":
        return require("pyarrow", "tables").Table.from_batches([block])
    return block


def is_table(value: Any) -> bool:
    """Whether it is a frame, or something with two axes that can be sliced."""
    return column_labels(value) is not None or (len(getattr(value, "shape", ())) == 2 and hasattr(value, "__getitem__"))


def count(table: Any) -> int:
    """The number of rows."""
    shape = getattr(table, "shape", None)
    return int(shape[0]) if shape is not None else len(table)


def sliced(table: Any, start: int, rows: int) -> Any:
    """So many rows, beginning with one; fewer at the end."""
    if type(table).__module__.startswith("pyarrow"):
        return table.slice(start, rows)
    return (table.iloc if hasattr(table, "iloc") else table)[start : start + rows]


def taken(table: Any, index: NDArray[np.intp]) -> Any:
    """The rows of these places."""
    if type(table).__module__.startswith("pyarrow"):
        return table.take(index)
    if isinstance(table, torch.Tensor):
        return table[torch.from_numpy(index)]
    return (table.iloc if hasattr(table, "iloc") else table)[index]


def joined(tables: Sequence[Any]) -> Any:
    """Tables of the same columns, one after the other."""
    first = tables[0]
    if len(tables) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(tables))
    package = type(first).__module__.partition(".")[0]
    if package == "pyarrow":
        return require("pyarrow", "tables").concat_tables(tables, promote_options="permissive")
    if package == "pandas":
        return require("pandas", "tables").concat(tables, ignore_index=True)
    if package == "polars":
        return require("polars", "tables").concat(tables, how="vertical_relaxed")
    return np.concatenate([np.asarray(table) for table in tables])
