"""Whether the first line of a csv file holds names or numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

_MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a"}
_FIRST_YEAR, _LAST_YEAR = 1000, 2999


class Guess(NamedTuple):
    """Whether there is a line of names, and what to say where that is not sure."""

    header: bool
    doubt: str


def is_value(cell: str) -> bool:
    """Whether a cell is a number or means a missing one."""
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
    """Whether `first` holds the names of the columns, given some of the rows that follow."""
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
    """Whether cells are whole numbers that go up."""
    return all(cell.isdigit() and len(cell) < 16 for cell in cells) and min(_steps(cells), default=1) > 0


def _apart(first: list[str], columns: list[tuple[str, ...]]) -> bool:
    """Whether each number of the first line lies outside what follows in its column."""
    for cell, column in zip(first, columns, strict=False):
        values = [value for value in map(number_of, filter(is_value, column)) if math.isfinite(value)]
        if cell and values and min(values) <= float(cell) <= max(values):
            return False
    return True
