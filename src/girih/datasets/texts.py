"""Columns of text that are numbers or dates written otherwise: decimal commas, marks of what is missing, dates as days.

Nothing is guessed past in silence: what was done is told, and what could be meant in two ways is told as a doubt.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>", "#n/a"})
MARKERS = ("?", ".", "-", "--", "*")  # that mean a missing entry among numbers
_WHOLE = re.compile(r"[+-]?\d+")
_COMMA = re.compile(r"[+-]?(\d*|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_DOTTED_WHOLE = re.compile(r"[+-]?\d{1,3}(\.\d{3})+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?")
_GERMAN = re.compile(r"\d{1,2}\.\d{1,2}\.\d{4}")
_SLASHES = re.compile(r"\d{1,2}/\d{1,2}/\d{2,4}")
_EPOCH = datetime.datetime(1970, 1, 1)
_DAY = datetime.timedelta(days=1)

Written = Literal["plain", "comma", "thousands", "date", "german date", "text"]


@dataclass(frozen=True)
class Told:
    """What was found out about a column of text.

    Attributes:
        written: how its entries are written.
        values: by distinct text, the number, or the text itself; NaN and `None` where it means a missing entry.
        markers: the texts that mean a missing entry there, beside the usual ones.
        doubts: what could be meant otherwise, as sentences without their ends.
    """

    written: Written
    values: list[float] | list[str | None]
    markers: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    numbers: bool = field(default=True)


def is_value(cell: str) -> bool:
    """Tells whether a cell is a number or means a missing one."""
    if cell.lower() in MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # 1_000 is a number in Python alone


def number_of(cell: str) -> float:
    """The number in a cell for which `is_value` is true; NaN where it means a missing one."""
    return math.nan if cell.lower() in MISSING else float(cell)


def tell(
    texts: Sequence[str], separator: str = ",", decimal: str | None = None, missing: Sequence[str] | None = None
) -> Told:
    """What the distinct texts of a column are.

    Args:
        texts: each once.
        separator: of the file: between semicolons and tabs, a comma in a number is that of its decimals.
        decimal: "." or "," where it is known.
        missing: what means a missing entry; by default `MARKERS` among numbers and dates, and nothing among texts.

    Example:
        >>> from girih.datasets.texts import tell
        >>> tell(["1,5", "?", "12"], ";").values, tell(["1,500", "2"], ",").values
        ([1.5, nan, 12.0], [1500.0, 2.0])
        >>> tell(["1970-01-03", ""]).values
        [2.0, nan]
    """
    given = MARKERS if missing is None else tuple(missing)
    markers = tuple(text for text in texts if text in given)
    gone = {text for text in texts if text.lower() in MISSING} | set(markers)
    rest = [text for text in texts if text not in gone]
    written, doubts = _written(rest, separator, decimal)
    if written != "text":
        return Told(written, [math.nan if text in gone else read(text, written) for text in texts], markers, doubts)
    if missing is None and markers and len(rest) > 0:
        some = ", ".join(repr(marker) for marker in markers)
        doubts = (*doubts, f"{some} is kept as a category; --missing '{markers[0]}' makes it a missing entry")
    kept: list[str | None] = [
        None if text.lower() in MISSING or (missing is not None and text in markers) else text for text in texts
    ]
    return Told("text", kept, () if missing is None else markers, doubts, numbers=False)


def _written(texts: Sequence[str], separator: str, decimal: str | None) -> tuple[Written, tuple[str, ...]]:
    """How numbers or dates are written; "text" where they are neither."""
    if not texts:
        return "text", ()
    commas = [text for text in texts if "," in text]
    if not commas and decimal != "," and all(is_value(text) for text in texts):
        return "plain", ()
    grouped = bool(commas) and all(_THOUSANDS.fullmatch(text) for text in commas)
    comma = all(_COMMA.fullmatch(text) or _WHOLE.fullmatch(text) or _DOTTED_WHOLE.fullmatch(text) for text in texts)
    if comma and decimal == ",":
        return "comma", ()
    if comma and commas and decimal is None and not (grouped and separator == ","):
        doubt = f"{commas[0]!r} was read with a decimal comma; --decimal . reads thousands" if grouped else ""
        return "comma", (doubt,) if doubt else ()
    if grouped and decimal != "," and all(text in commas or is_value(text) for text in texts):
        return "thousands", ()
    for pattern, kind in ((_ISO, "date"), (_GERMAN, "german date")):
        if all(pattern.fullmatch(text) for text in texts):
            try:
                for text in texts:
                    read(text, kind)  # type: ignore[arg-type]
            except ValueError:
                return "text", ()
            return kind, ()  # type: ignore[return-value]
    if all(_SLASHES.fullmatch(text) for text in texts):
        return "text", ("it holds dates whose day and month cannot be told apart; write them as 2024-12-31",)
    return "text", ()


def read(text: str, written: Written) -> float:
    """The number that a text stands for; days since 1970-01-01 of a date.

    Raises:
        ValueError: it is written otherwise.
    """
    if written == "comma":
        return float(text.replace(".", "").replace(",", "."))
    if written == "thousands":
        return float(text.replace(",", ""))
    if written == "date":
        return (datetime.datetime.fromisoformat(text) - _EPOCH) / _DAY
    if written == "german date":
        return (datetime.datetime.strptime(text, "%d.%m.%Y") - _EPOCH) / _DAY
    return float(text)


def write(value: float, written: Written) -> str:
    """A number as a text of the same kind.

    Example:
        >>> from girih.datasets.texts import write
        >>> write(2.5, "comma"), write(2.4, "date"), write(2.5, "plain")
        ('2,5', '1970-01-03', '2.5')
    """
    if written in ("date", "german date"):
        try:
            day = _EPOCH + datetime.timedelta(days=round(value))
        except OverflowError:
            return ""
        return day.strftime("%Y-%m-%d" if written == "date" else "%d.%m.%Y")
    text = repr(float(value))
    return text.replace(".", ",") if written == "comma" else text
