"""Comma-separated text as a table: separator, header and damage are detected, never guessed past in silence."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from girih._extras import require
from girih.datasets.arrayfile import MEMORY
from girih.datasets.reading import FileFormat, Findings
from girih.datasets.texts import MARKERS, MISSING, is_value, number_of, read, tell
from girih.errors import DataSourceError, EmptyDataError

if TYPE_CHECKING:
    import pandas as pd

_FIRST_YEAR, _LAST_YEAR = 1000, 2999
_SEPARATORS = (",", ";", "\t")
_ANY = FileFormat()
# Records that tell a line of names from a line of numbers.
_SAMPLE = 200


class Guess(NamedTuple):
    """A guess whether there is a line of names, and what to say where that is not sure."""

    header: bool
    doubt: str


def guess_header(first: list[str], rest: list[list[str]]) -> Guess:
    """Tells whether `first` holds the names of the columns, given some of the rows that follow."""
    numbers = [cell for cell in first if cell and is_value(cell)]
    shown = ", ".join(first[:6]) + (", ..." if len(first) > 6 else "")
    if not all(is_value(cell) for cell in first):
        odd = [cell for cell in numbers if not _is_year(cell) and not cell.isdigit() and cell.lower() not in MISSING]
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
        renamed: names that the file has several times.
    """

    text: str
    start: int
    separator: str
    width: int
    names: list[str] | None
    unnamed: list[int]
    renamed: tuple[str, ...] = ()

    def records(self) -> list[list[str]]:
        """The rows, as texts."""
        lines = _lines(self.text, self.start)
        reader = csv.reader(lines, delimiter=self.separator, skipinitialspace=True)
        return [row for row in reader if row and (self.width == 1 or row != [""])]


def scan_csv(path: Path, reading: FileFormat = _ANY) -> CsvText:
    """Separator, names and rows of a csv file.

    The separator is the one of comma, semicolon and tab that gives all of the first lines the same number of cells, or
    the one that the first line has most of. Lines that begin with # before
    the first row are comments; the last one may hold the names. Where the header is not given, the first line is one of
    names unless each of its cells is a number or empty; numbers that look like names (years, counted columns) are
    taken as such with a warning.

    Raises:
        DataSourceError: a line has more or fewer cells than the first, or the text is not UTF-8.
        EmptyDataError: no rows.
    """
    text, header = _read_text(path), reading.header
    comment, at = _skip_comments(text)
    separator = reading.separator or max(_SEPARATORS, key=lambda one: _fits(text, at, one))
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
        plain = [[_plainly(cell, separator, reading) for cell in row] for row in sample] if header is None else []
        guess = guess_header(plain[0], plain[1:]) if header is None else Guess(header, "")
        if guess.doubt:
            warnings.warn(f"{path.name}: {guess.doubt}", UserWarning, stacklevel=7)
        names = first if guess.header else None
        if guess.header and not rest:
            raise EmptyDataError(f"{path.name} has a line of column names and no rows; a data set needs at least one")
        if guess.header:
            at = _after_first(text, at, separator)
    unnamed = [i for i, cell in enumerate(names or []) if not cell]
    twice = tuple(dict.fromkeys(name for name in names or [] if name and (names or []).count(name) > 1))
    distinct = None if names is None else _distinct(names, path.name)
    return CsvText(text, at, separator, len(first), distinct, unnamed, twice)


def read_csv(path: Path, reading: FileFormat = _ANY) -> tuple[pd.DataFrame, Findings]:
    """A csv file as a frame with names for its columns, and what was found out about it; empty cells become NaN.

    A column of row numbers without a name, as pandas writes it, is left out. See `scan_csv` for the header, and
    `girih.datasets.texts` for numbers and dates that are not written plainly.

    Raises:
        DataSourceError: a line has more or fewer cells than the first, or the text is not UTF-8.
        EmptyDataError: no rows.
        MissingExtraError: pandas is not installed.
    """
    pandas = require("pandas", "tables")
    found = scan_csv(path, reading)
    rows = _count_rows(path.name, found)
    body = io.StringIO(found.text[found.start :])
    as_text = {"dtype": str} if reading.decimal == "," else {"low_memory": False}
    try:
        table = pandas.read_csv(
            body, sep=found.separator, header=None, index_col=False, skipinitialspace=True, **as_text
        )
    except (ValueError, csv.Error) as error:  # pandas' ParserError is a ValueError
        raise DataSourceError(f"{path.name} is not a table ({' '.join(str(error).split())})") from None
    if len(table) != rows:
        raise DataSourceError(f"{path.name} is not a table: quotes or line ends are misplaced; save it again as csv")
    table.columns = found.names if found.names is not None else [f"x{index}" for index in range(table.shape[1])]
    findings = Findings(found.separator if found.width > 1 else "", found.names is not None, renamed=found.renamed)
    table = settled(table, findings, reading, found.separator)
    if found.names is None:
        return table, findings
    if 0 in found.unnamed and table.shape[1] > 1 and _counts_rows(table.iloc[:, 0]):
        table = table.iloc[:, 1:]
    elif table.shape[1] - 1 in found.unnamed and table.iloc[:, -1].isna().all():  # each line ends with a separator
        table = table.iloc[:, :-1]
    return table, findings.kept(list(table.columns))


def settled(table: pd.DataFrame, findings: Findings, reading: FileFormat, separator: str) -> pd.DataFrame:
    """The table with columns of text that are numbers or dates made such; `findings` are told which."""
    pandas = require("pandas", "tables")
    table = with_days(table, findings)
    out = {}
    for place, name in enumerate(map(str, table.columns)):
        column = table.iloc[:, place]
        if column.dtype.kind in "fiu":
            gone = [float(text) for text in reading.missing or () if is_value(text)]
            found = column.isin(gone)
            if found.any():
                out[place] = column.where(~found)
                findings.markers[name] = tuple(text for text in reading.missing or () if is_value(text))
            continue
        codes, distinct = pandas.factorize(column)
        # whole numbers of more than 64 bits are Python's own
        plain = all(isinstance(text, (str, int)) and not isinstance(text, bool) for text in distinct)
        if column.dtype.kind in "bmMc" or hasattr(column, "cat") or not len(distinct) or not plain:
            continue
        told = tell([str(text).strip() for text in distinct], separator, reading.decimal, reading.missing)
        if told.numbers:
            values = np.append(np.array(told.values, dtype=np.float64), np.nan)[codes]
            whole = "date" not in told.written and bool((np.abs(values) < 2.0**53).all() and (values % 1 == 0).all())
            out[place] = pandas.Series(values.astype(np.int64) if whole else values, index=table.index)
        elif None in told.values:
            texts = np.array([*told.values, None], dtype=object)[codes]
            out[place] = pandas.Series(texts, index=table.index, dtype=column.dtype)
        if told.numbers and told.written != "plain":
            findings.written[name] = told.written
        if told.markers:
            findings.markers[name] = told.markers
        if told.doubts:
            findings.doubts[name] = told.doubts
    return _replaced(table, out)


def with_days(table: pd.DataFrame, findings: Findings) -> pd.DataFrame:
    """The table with dates, as their containers have them, as days since 1970-01-01; `findings` are told which."""
    pandas = require("pandas", "tables")
    out = {}
    for place, name in enumerate(map(str, table.columns)):
        column = table.iloc[:, place]
        if column.dtype.kind == "M":
            start = pandas.Timestamp(0, tz=getattr(column.dtype, "tz", None))
            out[place] = (column - start) / pandas.Timedelta(days=1)
            findings.written[name] = "date"
    return _replaced(table, out)


def _replaced(table: pd.DataFrame, columns: dict[int, pd.Series]) -> pd.DataFrame:
    """The table with some columns, by place, in the place of its own."""
    if not columns:
        return table
    every = [columns.get(place, table.iloc[:, place]) for place in range(table.shape[1])]
    new: pd.DataFrame = require("pandas", "tables").concat(every, axis=1)
    new.columns = table.columns
    return new


def _plainly(cell: str, separator: str, reading: FileFormat) -> str:
    """A cell as it would be written plainly, for the guess of a header."""
    if not cell or is_value(cell):
        return cell
    if cell in (MARKERS if reading.missing is None else reading.missing):
        return ""
    told = tell([cell], separator, reading.decimal, reading.missing)
    return repr(read(cell, told.written)) if told.written in ("comma", "thousands") else cell


def _read_text(path: Path) -> str:
    try:
        text = _unpacked(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataSourceError(f"{path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8 csv") from None
    if "\0" in text:
        raise DataSourceError(f"{path.name} holds NUL bytes, so it is no csv text; save it as UTF-8 csv")
    return text


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is a .gz: up to the memory that packed files may take."""
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    most = int(max(MEMORY * 1e9, 32 * path.stat().st_size))
    try:
        with gzip.open(path) as file:
            out = file.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataSourceError(f"{path.name} is no intact gzip file ({error}); pack it again") from None
    if len(out) > most:
        raise DataSourceError(f"{path.name} unpacks to more than {most / 1e9:g} GB; unpack it first, if it is yours")
    return out


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
