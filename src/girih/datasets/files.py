"""Local files as data sets: csv, npy, npz and parquet; nothing is ever unpickled."""

from __future__ import annotations

import difflib
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from girih.datasets.csvfile import read_csv
from girih.datasets.dataset import Dataset
from girih.errors import DataSourceError, EmptyDataError, NonFiniteError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

# What numpy and zipfile raise for damaged files, besides ValueError and OSError.
_BROKEN = (EOFError, KeyError, MemoryError, SyntaxError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


def load_file(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    header: bool | None = None,
) -> Dataset:
    r"""The numeric columns of a file; empty cells and NaN are missing entries.

    Arrays of more than two axes are images `(N, h, w)` or `(N, h, w, c)` and are flattened, with `image_shape` set.
    Columns without a name are called x0, x1, ...; values are kept as they are, so scale images yourself.

    Args:
        path: a .csv, .npy, .npz (with one array) or .parquet file.
        columns: the names of the columns to keep, in this order; all by default.
        drop: the names of columns to leave out.
        header: for csv, whether the first line holds names; detected by default.

    Raises:
        DataSourceError, EmptyDataError, NonFiniteError, ParameterError.

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
    reader = _READERS.get(path.suffix.lower())
    if os.path.isdir(path):
        raise DataSourceError(f"{path} is a folder; pass a file ({', '.join(SUFFIXES)})")
    if not os.path.exists(path):
        raise DataSourceError(f"there is no file {path}; check the path")
    if reader is None:
        found = f"'{path.suffix}'" if path.suffix else "no suffix"
        raise DataSourceError(
            f"{path.name} has {found}, and girih reads {', '.join(SUFFIXES)}; convert the file to one of them"
        )
    if header is not None and path.suffix.lower() != ".csv":
        raise ParameterError(f"header is an option of csv files, and {path.name} is not one; leave it out")
    try:
        if path.stat().st_size == 0:
            raise EmptyDataError(f"{path.name} is empty; a data set needs at least one row")
        table = reader(path, header) if reader is read_csv else reader(path)
    except OSError as error:
        raise DataSourceError(f"{path.name} could not be read: {error.strerror or one_line(error)}") from None
    if isinstance(table, np.ndarray):
        X, names, shape = _flatten(table, path.name)
        if columns is not None or drop is not None:
            keep = _choose(names, columns, drop, path.name)
            X, names, shape = X[:, [names.index(name) for name in keep]], keep, None
    else:
        table.columns = [str(c) for c in table.columns]
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()][0]
            raise DataSourceError(f"{path.name} has two columns named {twice!r}; rename one of them")
        names, shape = _choose(list(table.columns), columns, drop, path.name), None
        X = _numbers(table[names], path.name)
    _check(X, names, path.name)
    count = f"{len(X):,} rows of {X.shape[1]:,} columns"
    return Dataset(X, names, path.name, f"{count} from {path.name}", image_shape=shape)


def one_line(error: BaseException) -> str:
    """The message of an error of another library, on one line."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return _only_array(loaded, path.name) if isinstance(loaded, np.lib.npyio.NpzFile) else np.asarray(loaded)
    except DataSourceError:
        raise
    except ValueError as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise DataSourceError(
                f"{path.name} holds Python objects or is no NumPy file, and girih never unpickles; save a numeric "
                "array with numpy.save, e.g. array.astype(float)"
            ) from None
        raise _damaged(path, error) from None
    except _BROKEN as error:
        raise _damaged(path, error) from None


def _only_array(archive: np.lib.npyio.NpzFile, file: str) -> NDArray[Any]:
    held = list(archive.files)
    if len(held) != 1:
        some = ", ".join(held[:8]) + (", ..." if len(held) > 8 else "")
        raise DataSourceError(
            f"{file} holds {len(held)} arrays ({some}), and one is needed; save it alone with numpy.save"
        )
    return np.asarray(archive[held[0]])


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pandas as pd
        import pyarrow
    except ImportError as error:
        raise DataSourceError(
            f"{path.name}: reading parquet needs the package {error.name}; install it with `pip install {error.name}`"
        ) from None
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (ValueError, KeyError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> DataSourceError:
    return DataSourceError(
        f"{path.name} is damaged, or not a {path.suffix} file ({one_line(error)}); write it again from its source"
    )


_READERS: dict[str, Callable[..., Any]] = {
    ".csv": read_csv,
    ".npy": _read_npy,
    ".npz": _read_npy,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)


def _flatten(array: NDArray[Any], name: str) -> tuple[NDArray[np.float64], list[str], tuple[int, ...] | None]:
    """Rows `(N, D)`, their names and the shape of an image where there are more than two axes."""
    if array.dtype.kind not in "biuf":
        kind = "complex numbers" if array.dtype.kind == "c" else f"dtype {array.dtype}"
        raise DataSourceError(f"{name} holds {kind}, not real numbers; save a numeric array, e.g. array.astype(float)")
    if array.ndim == 0:
        raise DataSourceError(f"{name} holds a single number; a data set is an array of shape (N, D)")
    shape = tuple(int(size) for size in array.shape[1:]) if array.ndim > 2 else None
    if shape is not None and len(shape) > 3:
        raise DataSourceError(
            f"{name} has shape {array.shape}; rows (N, D) or images (N, h, w) or (N, h, w, c) are expected"
        )
    width = int(np.prod(array.shape[1:]))
    X = np.array(array.reshape(len(array), width), dtype=np.float64)
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
    from pandas.api.types import is_complex_dtype, is_numeric_dtype

    refused = [c for c in table.columns if not is_numeric_dtype(table[c].dtype) or is_complex_dtype(table[c].dtype)]
    # a column without a single value has no type of its own
    refused = [c for c in refused if table[c].notna().any()]
    if refused:
        some = ", ".join(repr(c) for c in refused[:8]) + (", ..." if len(refused) > 8 else "")
        values = table[refused[0]].dropna()
        value = next((v for v in values if not _is_number(v)), values.iloc[0])
        few = f"{table.shape[1] - len(refused)} columns are" if len(refused) < table.shape[1] else "no column is"
        raise DataSourceError(
            f"{file}: {some} {'is' if len(refused) == 1 else 'are'} not numeric (e.g. {str(value)[:40]!r}); leave "
            f"{'it' if len(refused) == 1 else 'them'} out with drop=[...] or encode as numbers; {few} numeric"
        )
    X = np.empty(table.shape, dtype=np.float64)
    for index, column in enumerate(table.columns):
        X[:, index] = table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    return X


def _is_number(value: Any) -> bool:
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
