"""Parquet files: what the footer claims is checked before a page is read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from girih.datasets.bounded import check_rows
from girih.datasets.npyfile import damaged
from girih.errors import GirihError

# Bytes of texts and entries of lists in the footer.
_LIMITS = {"thrift_string_size_limit": 100_000_000, "thrift_container_size_limit": 1_000_000}


def read_parquet(path: Path, memory: float) -> pd.DataFrame:
    """The table of a parquet file; columns of text stay packed, as categories.

    Raises:
        DataSourceError: it is damaged, or claims more rows than `memory` allows.
        EmptyDataError: no rows or no columns.
    """
    try:
        with pq.ParquetFile(path, **_LIMITS) as file:
            check_rows(path, _shape(file.metadata), memory)
            texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        # a text that is repeated a million times takes a few bytes in the file
        with pq.ParquetFile(path, read_dictionary=texts, **_LIMITS) as file:
            return file.read().to_pandas()
    except GirihError:
        raise
    except (ValueError, LookupError, OverflowError, RuntimeError, TypeError, pa.ArrowException) as error:
        raise damaged(path, error) from None


def _shape(about: pq.FileMetaData) -> tuple[int, int]:
    """Rows and columns, by what the parts say as well: lists may hold more values than there are rows."""
    parts = [about.row_group(i) for i in range(about.num_row_groups)]
    rows = sum(part.num_rows for part in parts)
    if rows != about.num_rows:
        raise ValueError(f"its parts hold {rows:,} rows, and its footer claims {about.num_rows:,}")
    most = sum(max((part.column(i).num_values for i in range(part.num_columns)), default=0) for part in parts)
    return max(rows, most), about.num_columns


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))
