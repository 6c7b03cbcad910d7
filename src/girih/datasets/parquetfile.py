"""Parquet files: what the footer claims is checked before a page is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from girih._extras import require
from girih.datasets.bounded import check_rows
from girih.datasets.npyfile import damaged
from girih.errors import GirihError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq

# Bytes of texts and entries of lists in the footer.
_LIMITS = {"thrift_string_size_limit": 100_000_000, "thrift_container_size_limit": 1_000_000}


def read_parquet(path: Path, memory: float) -> pd.DataFrame:
    """The table of a parquet file; columns of text stay packed, as categories, and of lists only the kind is told.

    Raises:
        DataSourceError: it is damaged, or claims more rows than `memory` allows.
        EmptyDataError: no rows or no columns.
        MissingExtraError: pandas or pyarrow is not installed.
    """
    pandas, arrow, parquet = (require(name, "tables") for name in ("pandas", "pyarrow", "pyarrow.parquet"))
    try:
        with parquet.ParquetFile(path, **_LIMITS) as file:
            shape = _shape(file.metadata)
            check_rows(path, shape, memory)
            schema = file.schema_arrow
        kinds = arrow.types
        texts = [field.name for field in schema if kinds.is_string(field.type) or kinds.is_binary(field.type)]
        nested = {field.name: str(field.type)[:40] for field in schema if kinds.is_nested(field.type)}
        # a text that is repeated a million times takes a few bytes in the file
        with parquet.ParquetFile(path, read_dictionary=texts, **_LIMITS) as file:
            table = file.read([name for name in schema.names if name not in nested]).to_pandas()
        for name, kind in nested.items():  # lists hold more values than there are rows: as many as they like
            table[name] = pandas.Categorical.from_codes([0] * shape[0], [kind])
        return table[schema.names]
    except GirihError:
        raise
    except (ValueError, LookupError, OverflowError, RuntimeError, TypeError, arrow.ArrowException) as error:
        raise damaged(path, error) from None


def _shape(about: pq.FileMetaData) -> tuple[int, int]:
    """Rows and columns. What a damaged footer says of single columns is not asked for: pyarrow would abort."""
    rows = sum(about.row_group(i).num_rows for i in range(about.num_row_groups))
    if rows != about.num_rows:
        raise ValueError(f"its parts hold {rows:,} rows, and its footer claims {about.num_rows:,}")
    return rows, about.num_columns
