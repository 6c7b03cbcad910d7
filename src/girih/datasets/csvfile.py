"""Comma-separated text as a table: separator, header and damage are detected, never guessed past in silence."""

from __future__ import annotations

import csv
import io
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from girih._extras import require
from girih.errors import DataSourceError, EmptyDataError

if TYPE_CHECKING:
    import pandas as pd

_MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a"}
_FIRST_YEAR, _LAST_YEAR = 1000, 2999
_SEPARATORS = (",", ";", "\t")
# Records that tell a line of names from a line of numbers.
_SAMPLE = 200


class Guess(NamedTuple):
    """A guess whether there is a line of names, and what to say where that is not sure."""

    header: bool
    doubt: str


def is_value(cell: str) -> bool:
    """Tells whether a cell is a number or means a missing one."""
    if cell.lower() in _MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # 1_000 is a number in Python alone


def number_of(cell: str) -> float:
    """The number in a cell for which `is_value` is true; NaN where it means a missing one."""
    return math.nan if cell.lower() in _MISSING else float(cell)


def guess_header(first: list[str], rest: list[list[str]]) -> Guess:
    """Tells whether `first` holds the names of the columns, given some of the rows that follow."""
    numbers = [cell for cell in first if cell and is_value(cell)]
    shown = ", ".join(first[:6]) + (", ..." if len(first) > 6 else "")
    if not all(is_value(cell) for cell in first):
        odd = [cell for cell in numbers if not _is_year(cell) and not cell.isdigit() and cell.lower() not in _MISSING]
        doubt = f"the first line ({shown}) holds numbers and was taken as names; say header=False if it is a row"
        return Guess(True, doubt if odd else "")
    # "0,1,2" above rows of decimals is what pandas writes for columns without names
    counted = first == [str(i) for i in range(len(first))] or first == ["", *(str(i) for i in range(len(first) - 1))]
    if counted and rest and any("." in cell for cell in rest[0]):
        return Guess(True, "")
    columns = list(zip(*rest, strict=False)) if rest else []
    evidence = len(numbers) > 1 and columns and len(numbers) + len(rest) > 3  # two numbers and a row tell nothing
    if not evidence or not _in_step(numbers) or not _apart(first, columns):
        return Guess(False, "")
    if all(map(_is_year, numbers)) and not all(_is_year(cell) for row in rest for cell in row):
        return Guess(
            True,
            f"the first line ({shown}) looks like years and was taken as names; say header=True, or "
            "header=False if it is a row",
        )
    if len(numbers) > 2 and len(set(_steps(numbers))) == 1 and not _in_step(rest[0]):
        return Guess(
            False,
            f"the first line ({shown}) may hold names, and was taken as a row; say header=False, or "
            "header=True if it holds names",
        )
    return Guess(False, "")


def _is_year(cell: str) -> bool:
    return cell.isdigit() and len(cell) == 4 and _FIRST_YEAR <= int(cell) <= _LAST_YEAR


def _steps(cells: list[str]) -> list[int]:
    return [int(after) - int(before) for before, after in pairwise(cells)]


def _in_step(cells: list[str]) -> bool:
    """Tells whether cells are whole numbers that go up."""
    return all(cell.isdigit() and len(cell) < 16 for cell in cells) and min(_steps(cells), default=1) > 0


def _apart(first: list[str], columns: list[tuple[str, ...]]) -> bool:
    """Tells whether each number of the first line lies outside what follows in its column."""
    for cell, column in zip(first, columns, strict=False):
        values = [value for value in map(number_of, filter(is_value, column)) if math.isfinite(value)]
        if cell and values and min(values) <= float(cell) <= max(values):
            return False
    return True


@dataclass(frozen=True)
class CsvText:
    """A csv text, and what was found out about it.

    Attributes:
        text: all of it, with line feeds as ends of lines.
        start: where the first row begins, after comments and names.
        separator: of the cells.
        width: the number of columns.
        names: of the columns, each once; `None` where the file has none.
        unnamed: the columns whose names are empty in the file.
    """

    text: str
    start: int
    separator: str
    width: int
    names: list[str] | None
    unnamed: list[int]

    def records(self) -> list[list[str]]:
        """The rows, as texts."""
        lines = _lines(self.text, self.start)
        reader = csv.reader(lines, delimiter=self.separator, skipinitialspace=True)
        return [row for row in reader if row and (self.width == 1 or row != [""])]


def scan_csv(path: Path, header: bool | None = None) -> CsvText:
    """Separator, names and rows of a csv file.

    The separator is the one of comma, semicolon and tab that gives all of the first lines the same number of cells, or
    the one that the first line has most of. Lines that begin with # before
    the first row are comments; the last one may hold the names. Where `header` is not given, the first line is one of
    names unless each of its cells is a number or empty; numbers that look like names (years, counted columns) are
    taken as such with a warning.

    Raises:
        DataSourceError: a line has more or fewer cells than the first, or the text is not UTF-8.
        EmptyDataError: no rows.
    """
    text = _read_text(path)
    comment, at = _skip_comments(text)
    separator = max(_SEPARATORS, key=lambda one: _fits(text, at, one))
    try:
        sample = list(itertools.islice(_rows(_lines(text, at), separator), _SAMPLE))
        above = next(_rows([comment.lstrip("# ")], separator), [])
    except csv.Error as error:
        raise DataSourceError(f"{path.name} is not a table ({error})") from None
    if not sample:
        if comment:
            raise EmptyDataError(f"{path.name} has lines that begin with # and no rows; a data set needs at least one")
        raise EmptyDataError(f"{path.name} is empty; a data set needs at least one row")
    first, rest = sample[0], sample[1:]
    if len(above) == len(first) and not all(map(is_value, above)) and any(c and is_value(c) for c in first):
        names = None if header is False else above
    else:
        guess = guess_header(first, rest) if header is None else Guess(header, "")
        if guess.doubt:
            warnings.warn(f"{path.name}: {guess.doubt}", UserWarning, stacklevel=7)
        names = first if guess.header else None
        if guess.header and not rest:
            raise EmptyDataError(f"{path.name} has a line of column names and no rows; a data set needs at least one")
        if guess.header:
            at = _after_first(text, at, separator)
    unnamed = [i for i, cell in enumerate(names or []) if not cell]
    return CsvText(text, at, separator, len(first), None if names is None else _distinct(names, path.name), unnamed)


def read_csv(path: Path, header: bool | None = None) -> pd.DataFrame:
    """A csv file as a frame with names for its columns; empty cells become NaN.

    A column of row numbers without a name, as pandas writes it, is left out. See `scan_csv` for the header.

    Raises:
        DataSourceError: a line has more or fewer cells than the first, or the text is not UTF-8.
        EmptyDataError: no rows.
        MissingExtraError: pandas is not installed.
    """
    pandas = require("pandas", "tables")
    found = scan_csv(path, header)
    rows = _count_rows(path.name, found)
    body = io.StringIO(found.text[found.start :])
    try:
        table = pandas.read_csv(
            body, sep=found.separator, header=None, index_col=False, skipinitialspace=True, low_memory=False
        )
    except (ValueError, csv.Error) as error:  # pandas' ParserError is a ValueError
        raise DataSourceError(f"{path.name} is not a table ({' '.join(str(error).split())})") from None
    if len(table) != rows:
        raise DataSourceError(f"{path.name} is not a table: quotes or line ends are misplaced; save it again as csv")
    for index in np.flatnonzero([kind.kind not in "fiubM" for kind in table.dtypes]):
        values = table[index].dropna()
        if len(values) and all(is_value(str(value)) for value in values):  # whole numbers of more than 64 bits
            table[index] = [number_of("" if cell is None or cell != cell else str(cell)) for cell in table[index]]
    if found.names is None:
        table.columns = [f"x{index}" for index in range(table.shape[1])]
        return table
    table.columns = found.names
    if 0 in found.unnamed and table.shape[1] > 1 and _counts_rows(table.iloc[:, 0]):
        return table.iloc[:, 1:]
    if table.shape[1] - 1 in found.unnamed and table.iloc[:, -1].isna().all():  # each line ends with a separator
        return table.iloc[:, :-1]
    return table


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataSourceError(f"{path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8 csv") from None
    if "\0" in text:
        raise DataSourceError(f"{path.name} holds NUL bytes, so it is no csv text; save it as UTF-8 csv")
    return text


def _skip_comments(text: str) -> tuple[str, int]:
    """The last of the lines that begin with # before anything else, and where the rest begins."""
    comment, at = "", 0
    for line in _lines(text, 0):
        if line.startswith("#"):
            comment = line
        elif line.strip():
            break
        at += len(line)
    return comment.strip(), at


def _lines(text: str, at: int) -> Iterator[str]:
    """The lines from an offset on."""
    while at < len(text):
        end = text.find("\n", at) + 1 or len(text)
        yield text[at:end]
        at = end


def _rows(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """Records, without those that are blank."""
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    return ([cell.strip() for cell in row] for row in reader if row and row != [""])


def _fits(text: str, at: int, separator: str) -> tuple[bool, int]:
    """Tells whether a separator gives the first records one number of cells, more than one; and the first one's."""
    try:
        widths = [len(row) for row in itertools.islice(_rows(_lines(text, at), separator), 20)]
    except csv.Error:
        return False, 0
    return len(set(widths)) == 1 and widths[0] > 1, widths[0] if widths else 0


def _after_first(text: str, at: int, separator: str) -> int:
    """The place where the second record begins; the first may have line ends within quotes."""
    used: list[str] = []
    next(_rows((used.append(line) or line for line in _lines(text, at)), separator))  # type: ignore[func-returns-value]
    return at + sum(map(len, used))


def _distinct(names: list[str], file: str) -> list[str]:
    """Names that differ, as pandas makes them: a, a.1, a.2; an empty one is "Unnamed: 3"."""
    given = [name.lstrip("# ") or f"Unnamed: {index}" for index, name in enumerate(names)]
    used, counts = set(given), dict[str, int]()
    out, twice = list[str](), list[str]()
    for name in given:
        now = name
        if name in counts:
            twice.append(name)
            while now in used:
                counts[name] += 1
                now = f"{name}.{counts[name]}"
            used.add(now)
        counts.setdefault(name, 0)
        out.append(now)
    if twice:
        some = ", ".join(repr(name) for name in dict.fromkeys(twice))
        new = ", ".join(repr(now) for now, old in zip(out, given, strict=True) if now != old)
        warnings.warn(
            f"{file} has several columns named {some}; the later ones are called {new}, so rename them in the file",
            UserWarning,
            stacklevel=8,
        )
    return out


def _counts_rows(column: pd.Series) -> bool:
    return column.dtype.kind == "i" and bool((column.to_numpy() == np.arange(len(column))).all())


def _count_rows(name: str, found: CsvText) -> int:
    """The number of rows; a short or long line is refused, which a parser would pad or shift in silence."""
    before, count = found.text.count("\n", 0, found.start), 0
    try:
        for number, cells in _widths(found):
            count += 1
            if cells != found.width:
                raise DataSourceError(
                    f"{name} is damaged, or not a table: line {before + number} has {cells} cells, and the first line "
                    f"has {found.width}; repair or remove that line"
                )
    except csv.Error as error:
        raise DataSourceError(f"{name} is not a table ({error})") from None
    return count


def _widths(found: CsvText) -> Iterator[tuple[int, int]]:
    """Line numbers with their numbers of cells."""
    stream = io.StringIO(found.text[found.start :])
    if '"' not in found.text:  # counting separators is ten times as fast as splitting
        yield from ((i, line.count(found.separator) + 1) for i, line in enumerate(stream, 1) if line.strip(" \n"))
        return
    reader = csv.reader(stream, delimiter=found.separator, skipinitialspace=True)
    yield from ((reader.line_num, len(row)) for row in reader if row and (found.width == 1 or row != [""]))
