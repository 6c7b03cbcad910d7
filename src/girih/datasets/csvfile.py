"""Comma-separated text as a table: separator, header and damage are detected, never guessed past."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from girih.errors import DataSourceError, EmptyDataError

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = (",", ";", "\t")
_MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a"}


def read_csv(path: Path, header: bool | None = None) -> pd.DataFrame:
    """A csv file as a frame with names for its columns; empty cells become NaN.

    The separator is the one of comma, semicolon and tab that the first line has most of. The first line is a
    header unless each of its cells is a number or empty. A column of row numbers without a name, as pandas writes
    it, is left out.

    Raises:
        DataSourceError: a line has more or fewer cells than the first, or the text is not UTF-8.
        EmptyDataError: no rows.
    """
    import pandas as pd

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataSourceError(f"{path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8 csv") from None
    head = list(itertools.islice((line for line in io.StringIO(text) if line.strip()), 2))
    if not head:
        raise EmptyDataError(f"{path.name} is empty; a data set needs at least one row")
    separator = max(_SEPARATORS, key=head[0].count)
    first = _cells(head[0], separator)
    _check_widths(path.name, text, separator, len(first))
    if header is None:
        header = _is_header(first, _cells(head[1], separator) if len(head) > 1 else [])
    if header and len(head) == 1:
        raise EmptyDataError(f"{path.name} has a line of column names and no rows; a data set needs at least one")
    try:
        table = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=0 if header else None,
            index_col=False,
            skipinitialspace=True,
            low_memory=False,
        )
    except (ValueError, csv.Error) as error:  # pandas' ParserError is a ValueError
        raise DataSourceError(f"{path.name} is not a table ({' '.join(str(error).split())})") from None
    if not header:
        table.columns = [f"x{index}" for index in range(table.shape[1])]
        return table
    table.columns = [str(c).strip().lstrip("# ") for c in table.columns]
    unnamed = [not cell for cell in first]
    if unnamed[0] and table.shape[1] > 1 and _counts_rows(table.iloc[:, 0]):
        return table.iloc[:, 1:]
    if unnamed[-1] and table.iloc[:, -1].isna().all():  # each line ends with a separator
        return table.iloc[:, :-1]
    return table


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _is_header(first: list[str], second: list[str]) -> bool:
    if not all(_is_value(cell) for cell in first):
        return True
    # "0,1,2" above rows of decimals is what pandas writes for columns without names
    counted = first == [str(i) for i in range(len(first))] or first == ["", *(str(i) for i in range(len(first) - 1))]
    return counted and any("." in cell for cell in second)


def _is_value(cell: str) -> bool:
    if cell.lower() in _MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _counts_rows(column: pd.Series) -> bool:
    return column.dtype.kind == "i" and bool((column.to_numpy() == np.arange(len(column))).all())


def _check_widths(name: str, text: str, separator: str, width: int) -> None:
    """Refuse a table with a short or long line: a parser would pad or shift it in silence."""
    try:
        for number, found in _widths(text, separator):
            if found != width:
                raise DataSourceError(
                    f"{name} is damaged, or not a table: line {number} has {found} cells, and the first line has "
                    f"{width}; repair or remove that line"
                )
    except csv.Error as error:
        raise DataSourceError(f"{name} is not a table ({error})") from None


def _widths(text: str, separator: str) -> Iterator[tuple[int, int]]:
    """Line numbers with their numbers of cells."""
    if '"' not in text:  # counting separators is ten times as fast as splitting
        yield from ((i, line.count(separator) + 1) for i, line in enumerate(io.StringIO(text), 1) if line.strip())
        return
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    yield from ((reader.line_num, len(row)) for row in reader if row)
