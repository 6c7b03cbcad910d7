"""A user's table with its empty cells filled and everything else as it was, to the letter where it is text."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from girih._extras import require
from girih.cli.rows import write_csv
from girih.datasets.bounded import MEMORY
from girih.datasets.csvfile import read_csv, scan_csv
from girih.datasets.files import read_parquet

if TYPE_CHECKING:
    import pandas as pd

    from girih.datasets import Dataset


def write_completed(
    path: Path,
    data: str,
    dataset: Dataset,
    filled: NDArray[np.float64],
    missing: NDArray[np.bool_],
    header: bool | None = None,
) -> None:
    """Write the completed table as csv, atomically.

    Args:
        path: the csv file.
        data: the file that the rows came from, or the name of a built-in data set.
        dataset: those rows, `(N, D)`.
        filled: the rows with every entry, `(N, D)`.
        missing: which entries were not there, `(N, D)`.
        header: whether the first line of a csv file holds names; detected by default.
    """
    from girih._files import write_text

    suffix = Path(data).suffix.lower()
    text = _fill_text(Path(data).expanduser(), dataset, filled, missing, header) if suffix == ".csv" else None
    if text is not None:
        write_text(path, text)
    else:
        write_csv(path, _fill_frame(_frame(data, suffix, dataset, header), dataset, filled, missing))


def _fill_text(
    path: Path, dataset: Dataset, filled: NDArray[np.float64], missing: NDArray[np.bool_], header: bool | None
) -> str | None:
    """The csv text with the gaps filled; `None` where its cells do not line up with the rows one to one."""
    found = scan_csv(path, header)
    cells = found.records()
    if len(cells) != len(dataset):
        return None
    names = found.names if found.names is not None else [f"x{i}" for i in range(len(cells[0]))]
    at = [names.index(name) for name in dataset.feature_names]
    for n, d in np.argwhere(missing):
        cells[n][at[d]] = repr(float(filled[n, d]))
    out = io.StringIO()
    csv.writer(out, delimiter=found.separator, lineterminator="\n").writerows(cells)
    return found.text[: found.start] + out.getvalue()


def _fill_frame(
    table: pd.DataFrame, dataset: Dataset, filled: NDArray[np.float64], missing: NDArray[np.bool_]
) -> pd.DataFrame:
    pandas = require("pandas", "tables")
    for index, name in enumerate(dataset.feature_names):
        gaps = missing[:, index]
        if not gaps.any():
            continue
        observed = dataset.X[~gaps, index]
        column = pandas.Series(filled[:, index], index=table.index, dtype=object)
        if len(observed) and (observed == observed.round()).all() and abs(observed).max() < 2**53:
            column[~gaps] = observed.astype(int)  # a gap makes pandas read whole numbers as decimals
        table[name] = column
    return table


def _frame(data: str, suffix: str, dataset: Dataset, header: bool | None) -> pd.DataFrame:
    """The file's table with its other columns, or the rows of a data set that has none."""
    if suffix == ".csv":
        return read_csv(Path(data).expanduser(), header)
    if suffix == ".parquet":
        table = read_parquet(Path(data).expanduser(), MEMORY)
        table.columns = [str(name) for name in table.columns]
        return table if table.index.name is None else table.reset_index()
    return require("pandas", "tables").DataFrame(dataset.X, columns=dataset.feature_names)
