"""A user's table with its empty cells filled and everything else as it was, to the letter where it is text."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from girih.cli.rows import write_csv

if TYPE_CHECKING:
    import pandas as pd

    from girih.datasets import Dataset


def write_completed(
    path: Path, data: str, dataset: Dataset, filled: NDArray[np.float64], missing: NDArray[np.bool_]
) -> None:
    """Write the completed table as csv, atomically.

    Args:
        path: the csv file.
        data: the file that the rows came from, or the name of a built-in data set.
        dataset: those rows, `(N, D)`.
        filled: the rows with every entry, `(N, D)`.
        missing: which entries were not there, `(N, D)`.
    """
    from girih._files import write_text

    suffix = Path(data).suffix.lower()
    text = _fill_text(Path(data).expanduser(), dataset, filled, missing) if suffix == ".csv" else None
    if text is not None:
        write_text(path, text)
    else:
        write_csv(path, _fill_frame(_frame(data, suffix, dataset), dataset, filled, missing))


def _fill_text(path: Path, dataset: Dataset, filled: NDArray[np.float64], missing: NDArray[np.bool_]) -> str | None:
    """The csv text with the gaps filled; `None` where its cells do not line up with the rows one to one."""
    text = path.read_text(encoding="utf-8-sig")
    first = next(line for line in io.StringIO(text) if line.strip())
    separator = max(",;\t", key=first.count)
    cells = [row for row in csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True) if row]
    extra = len(cells) - len(dataset)
    if extra not in (0, 1):
        return None
    names = [cell.strip().lstrip("# ") for cell in cells[0]] if extra else [f"x{i}" for i in range(len(cells[0]))]
    if not all(names.count(name) == 1 for name in dataset.feature_names):
        return None
    at = [names.index(name) for name in dataset.feature_names]
    for n, d in np.argwhere(missing):
        cells[n + extra][at[d]] = repr(float(filled[n, d]))
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows(cells)
    return out.getvalue()


def _fill_frame(
    table: pd.DataFrame, dataset: Dataset, filled: NDArray[np.float64], missing: NDArray[np.bool_]
) -> pd.DataFrame:
    import pandas as pd

    for index, name in enumerate(dataset.feature_names):
        gaps = missing[:, index]
        if not gaps.any():
            continue
        observed = dataset.X[~gaps, index]
        column = pd.Series(filled[:, index], index=table.index, dtype=object)
        if len(observed) and (observed == observed.round()).all() and abs(observed).max() < 2**53:
            column[~gaps] = observed.astype(int)  # a gap makes pandas read whole numbers as decimals
        table[name] = column
    return table


def _frame(data: str, suffix: str, dataset: Dataset) -> pd.DataFrame:
    """The file's table with its other columns, or the rows of a data set that has none."""
    import pandas as pd

    if suffix == ".csv":
        from girih.datasets.csvfile import read_csv

        return read_csv(Path(data).expanduser())
    if suffix == ".parquet":
        table = pd.read_parquet(Path(data).expanduser(), engine="pyarrow")
        table.columns = [str(name) for name in table.columns]
        return table if table.index.name is None else table.reset_index()
    return pd.DataFrame(dataset.X, columns=dataset.feature_names)
