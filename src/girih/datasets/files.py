"""Local files as data sets: csv, npy, npz and parquet; nothing is ever unpickled."""

from __future__ import annotations

import difflib
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from girih._extras import require
from girih.datasets.arrayfile import MEMORY, check_regular, check_rows, damaged, read_array
from girih.datasets.csvfile import read_csv, settled, with_days
from girih.datasets.dataset import Dataset
from girih.datasets.reading import FileFormat, Findings
from girih.errors import DataSourceError, EmptyDataError, GirihError, NonFiniteError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".xlsx", ".npy", ".npz", ".parquet")
_TEXTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
# Bytes of texts and entries of lists in the footer.
_LIMITS = {"thrift_string_size_limit": 100_000_000, "thrift_container_size_limit": 1_000_000}


def file_kind(path: str | os.PathLike[str]) -> str:
    """What a file is by its name: "csv", "xlsx", "npy", "npz", "parquet", or "" for another.

    Example:
        >>> from girih.datasets.files import file_kind
        >>> file_kind("a/rows.TSV.gz"), file_kind("rows.parquet"), file_kind("circle")
        ('csv', 'parquet', '')
    """
    name = Path(path).name.lower()
    suffix = next((one for one in SUFFIXES if name.endswith(one) and name != one), "")
    return "csv" if suffix in _TEXTS else suffix[1:]


def load_file(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    header: bool | None = None,
    memory: float = MEMORY,
    reading: FileFormat | None = None,
) -> Dataset:
    r"""The numeric columns of a file; empty cells and NaN are missing entries.

    Arrays of more than two axes are images `(N, h, w)` or `(N, h, w, c)` and are flattened, with `image_shape` set.
    Columns without a name are called x0, x1, ...; values are kept as they are, so scale images yourself.

    Args:
        path: a .csv, .tsv (packed with gzip too), .xlsx (its first sheet), .npy, .npz (with one array) or .parquet
            file.
        columns: the names of the columns to keep, in this order; all by default.
        drop: the names of columns to leave out.
        header: for csv, whether the first line holds names; detected by default, with a warning where both are likely.
        memory: GB of rows (8 bytes an entry) that a packed file (npz, parquet) may unpack to; 32 times its own size is
            always allowed.
        reading: for csv and xlsx, how numbers and missing entries are written; found out by default. Dates become days
            since 1970-01-01.

    Raises:
        DataSourceError, EmptyDataError, NonFiniteError, ParameterError.
        MissingExtraError: csv needs pandas, parquet pyarrow too, the extra `tables`; xlsx needs the extra `excel`.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from girih.datasets import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "rows.csv"
        ...     _ = path.write_text("height,width\n1.5,2\n,3\n")
        ...     dataset = load(path)
        >>> dataset.feature_names, np.asarray(dataset).tolist()
        (['height', 'width'], [[1.5, 2.0], [nan, 3.0]])
    """
    path = Path(path)
    with _reading(path):
        X, names, shape = _table(_read(path, _format(header, reading), memory)[0], path.name, columns, drop)
    count = f"{len(X):,} rows of {X.shape[1]:,} columns"
    return Dataset(X, names, path.name, f"{count} from {path.name}", image_shape=shape)


def load_frame(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    header: bool | None = None,
    memory: float = MEMORY,
    reading: FileFormat | None = None,
) -> pd.DataFrame:
    """The columns of a csv or parquet file with text, categories and booleans as they are; arguments as `load_file`.

    Raises:
        DataSourceError, EmptyDataError, ParameterError.
        MissingExtraError: csv needs pandas, parquet pyarrow too, the extra `tables`.
    """
    return read_frame(Path(path), _format(header, reading), columns, drop, memory)[0]


def read_frame(
    path: Path,
    reading: FileFormat,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    memory: float = MEMORY,
) -> tuple[pd.DataFrame, Findings]:
    """The frame of `load_frame`, and what was found out about the file."""
    with _reading(path):
        table, findings = _read(path, reading, memory)
        if isinstance(table, np.ndarray):
            raise DataSourceError(f"{path.name} is an array, which has no columns with names; use load_file")
        names = _named(table, path.name, columns, drop)
        table = table[names]
        if not len(table) or not names:
            raise EmptyDataError(f"{path.name} has no {'columns left' if len(table) else 'rows'}; keep at least one")
        for name in _packed_text(path) & set(names):
            table = table.assign(**{name: table[name].astype(object)})
    return table, findings.kept(names)


def _format(header: bool | None, reading: FileFormat | None) -> FileFormat:
    given = FileFormat() if reading is None else reading
    return given if header is None else replace(given, header=header)


def _packed_text(path: Path) -> set[str]:
    """The columns of a parquet file that hold text, which are read as categories."""
    if path.suffix.lower() != ".parquet":
        return set()
    kinds, schema = require("pyarrow", "tables").types, require("pyarrow.parquet", "tables").read_schema(path)
    return {str(field.name) for field in schema if kinds.is_string(field.type)}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of a file as `DataSourceError`."""
    try:
        yield
    except OSError as error:
        raise DataSourceError(f"{path.name} could not be read: {error.strerror or one_line(error)}") from None
    except MemoryError:
        raise DataSourceError(f"{path.name} is too large for the memory of this machine; use fewer rows") from None


def _read(path: Path, reading: FileFormat, memory: float) -> tuple[NDArray[Any] | pd.DataFrame, Findings]:
    kind = file_kind(path)
    if os.path.isdir(path):
        raise DataSourceError(f"{path} is a folder; pass a file ({', '.join(SUFFIXES)})")
    if not os.path.exists(path):
        raise DataSourceError(f"there is no file {path}; check the path")
    if not kind:
        found = f"'{path.suffix}'" if path.suffix else "no suffix"
        raise DataSourceError(
            f"{path.name} has {found}, and girih reads {', '.join(SUFFIXES)}; convert the file to one of them"
        )
    said = list(reading.known())
    if said and kind != "csv" and (kind != "xlsx" or set(said) - {"missing", "decimal"}):
        raise ParameterError(f"{said[0]} is an option of csv files, and {path.name} is not one; leave it out")
    if check_regular(path) == 0:
        raise EmptyDataError(f"{path.name} is empty; a data set needs at least one row")
    if kind == "csv":
        return read_csv(path, reading)
    findings = Findings()
    if kind == "xlsx":
        return settled(read_excel(path), findings, reading, ";"), findings
    if kind == "parquet":
        return with_days(read_parquet(path, memory), findings), findings
    return read_array(path, memory), findings


def read_excel(path: Path) -> pd.DataFrame:
    """The first sheet of an .xlsx file, whose first line holds the names of the columns.

    Raises:
        DataSourceError: it is damaged.
        EmptyDataError: it has no rows.
        MissingExtraError: pandas or openpyxl is not installed.
    """
    pandas = require("pandas", "tables")
    require("openpyxl", "excel")
    try:
        table: pd.DataFrame = pandas.read_excel(path, sheet_name=0, engine="openpyxl")
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, SyntaxError) as error:
        raise damaged(path, error) from None
    if not len(table):
        raise EmptyDataError(f"{path.name} has no rows in its first sheet; a data set needs at least one")
    return table


def _table(
    table: NDArray[Any] | pd.DataFrame, file: str, columns: Sequence[str] | None, drop: Sequence[str] | None
) -> tuple[NDArray[np.float64], list[str], tuple[int, ...] | None]:
    """The rows of the columns that are kept, their names, and the shape of an image."""
    if isinstance(table, np.ndarray):
        X, names, shape = _flatten(table)
        if columns is not None or drop is not None:
            keep = _choose(names, columns, drop, file)
            X, names, shape = X[:, [names.index(name) for name in keep]], keep, None
    else:
        names, shape = _named(table, file, columns, drop), None
        X = _numbers(table[names], file)
    _check(X, names, file)
    return X, names, shape


def _named(table: pd.DataFrame, file: str, columns: Sequence[str] | None, drop: Sequence[str] | None) -> list[str]:
    """The names of the columns that are kept, all of them text."""
    table.columns = [str(c) for c in table.columns]
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataSourceError(f"{file} has two columns named {twice!r}; rename one of them")
    return _choose(list(table.columns), columns, drop, file)


def one_line(error: BaseException) -> str:
    """The message of an error of another library, on one line."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


def _flatten(array: NDArray[Any]) -> tuple[NDArray[np.float64], list[str], tuple[int, ...] | None]:
    """Rows `(N, D)`, their names and the shape of an image where there are more than two axes."""
    shape = tuple(int(size) for size in array.shape[1:]) if array.ndim > 2 else None
    width = int(np.prod(array.shape[1:]))
    X = np.ascontiguousarray(array.reshape(len(array), width), dtype=np.float64)
    return X, [f"x{i}" for i in range(X.shape[1])], shape


def _choose(names: list[str], columns: Sequence[str] | None, drop: Sequence[str] | None, file: str) -> list[str]:
    if columns is not None and drop is not None:
        raise ParameterError("columns and drop exclude each other; pass one of them")
    asked = columns if columns is not None else drop
    if asked is None:
        return names
    if isinstance(asked, str) or not isinstance(asked, Sequence):
        raise ParameterError(f"columns and drop are lists of names; got {asked!r}")
    for name in asked:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise DataSourceError(f"{file} has no column {name!r}; {hint}it has {some}")
    return list(asked) if columns is not None else [name for name in names if name not in asked]


def _numbers(table: pd.DataFrame, file: str) -> NDArray[np.float64]:
    refused = [c for c in table.columns if table[c].dtype.kind not in "fiub"]
    # a column without a single value has no type of its own
    refused = [c for c in refused if table[c].notna().any()]
    if refused:
        some = ", ".join(repr(c) for c in refused[:8]) + (", ..." if len(refused) > 8 else "")
        column = table[refused[0]]
        # a text of a megabyte that is repeated a million times is looked at once
        values = (column.cat.categories if hasattr(column, "cat") else column.dropna()).to_numpy()
        value = next((v for v in values if not _is_number(v)), values[0])
        few = f"{table.shape[1] - len(refused)} columns are" if len(refused) < table.shape[1] else "no column is"
        raise DataSourceError(
            f"{file}: {some} {'is' if len(refused) == 1 else 'are'} not numeric (e.g. {str(value)[:40]!r}); leave "
            f"{'it' if len(refused) == 1 else 'them'} out with drop=[...] or encode as numbers; {few} numeric"
        )
    X = np.empty(table.shape, dtype=np.float64)
    for index, column in enumerate(table.columns):
        X[:, index] = table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    return X


def _is_number(value: SupportsFloat | str) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check(X: NDArray[np.float64], names: list[str], file: str) -> None:
    if X.shape[0] == 0:
        raise EmptyDataError(f"{file} has no rows; a data set needs at least one")
    if X.shape[1] == 0:
        raise EmptyDataError(f"{file} has no columns left; keep at least one")
    infinite = np.isinf(X)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        raise NonFiniteError(
            f"{file} holds infinite values (first in row {row}, column {names[column]!r}); remove them, or leave "
            "the cell empty to mean missing"
        )
    if np.isnan(X).all():
        raise EmptyDataError(f"{file} has no observed entries; every cell is missing")


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
