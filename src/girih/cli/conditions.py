"""What a table is like given some entries: `girih condition`, and rows drawn with them, `girih sample --given`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from girih.cli.folder import OutputFolder
from girih.cli.table_data import Rows, SavedTable, dated, write_rows
from girih.cli.tables import write_csv
from girih.cli.terminal import CommandError, Terminal
from girih.datasets.texts import tell, write
from girih.report.table_numbers import text_of
from girih.tables.conditioned import TableConditional

_FILES = ("condition.csv", "draws.csv", "draws.npy")
_LEVELS, _NUMBERS = (0.05, 0.5, 0.95), ("mean", "deviation", "5%", "50%", "95%")


def parse_given(saved: SavedTable, texts: Sequence[str]) -> dict[Any, Any]:
    """`NAME=VALUE` as entries of a row, by the names that the model has.

    Raises:
        CommandError: there is no such column, or it holds nothing of the kind.
    """
    out: dict[Any, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or name not in saved.names:
            raise CommandError(f"--given takes NAME=VALUE with one of {', '.join(saved.names[:12])}; got {text!r}")
        place = saved.names.index(name)
        item = saved.model.columns_.items[place]
        labels = {str(level).lower(): level for level in item.levels}
        told = tell([value], ";", None, ())
        if labels and value.lower() in labels:
            out[saved.model.columns_.names[place]] = labels[value.lower()]
        elif not labels and told.numbers:
            out[saved.model.columns_.names[place]] = told.values[0]
        else:
            what = f"one of {', '.join(map(str, item.levels[:12]))}" if labels else "a number"
            raise CommandError(f"--given {name}: that column takes {what}; got {value!r}")
    return out


def drawn_rows(saved: SavedTable, count: int, seed: int, known: Mapping[Any, Any]) -> Rows:
    """Rows that the model draws, of those that have the known entries."""
    parts: Any = saved.model.condition(known).sample(count, seed) if known else [saved.model.sample(count, seed)]
    if not hasattr(parts[0], "columns"):
        return np.concatenate([np.asarray(part) for part in parts])
    import pandas

    return pandas.concat([part if hasattr(part, "iloc") else part.to_pandas() for part in parts], ignore_index=True)


def condition(
    terminal: Terminal, saved: SavedTable, known: Mapping[Any, Any], path: Path, draws: int | None, seed: int
) -> None:
    """Write and tell what the columns are, given some entries."""
    folder = OutputFolder(path, "condition", _FILES)
    model, kinds = saved.model, saved.notes.get("written") or {}
    given = model.condition(known) if known else TableConditional(model.columns_, model._anything())
    mean, deviation, quantiles = given.mean[0], given.std[0], given.quantile(_LEVELS)[:, 0]
    lines: list[dict[str, Any]] = []
    for place, (name, item) in enumerate(zip(saved.names, model.columns_.items, strict=True)):
        if item.name in known:
            continue
        if item.x is not None:
            numbers = [mean[place], deviation[place], *quantiles[:, place]]
            lines.append({"column": name, "value": "", **dict(zip(_NUMBERS, map(float, numbers), strict=True))})
        elif item.code is not None and item.size == len(item.levels):
            chances = given.probabilities(item.name)
            lines += [{"column": name, "value": text_of(v), "probability": float(p[0])} for v, p in chances.items()]
    header = ("column", "value", "probability", *_NUMBERS)
    with folder.results() as results:
        write_csv(results / _FILES[0], {part: [line.get(part) for line in lines] for part in header})
        written = [_FILES[0]]
        if draws is not None:
            rows = drawn_rows(saved, draws, seed, known)
            written += write_rows(results, "draws", with_dates(rows, kinds), saved.names, "")
    shown = ", ".join(f"{name} = {text_of(value)}" for name, value in known.items())
    terminal.say(f"Given {shown}" if known else "Given nothing", style="bold")
    terminal.columns(header, [tuple(_shown(line, part, kinds) for part in header) for line in lines])
    for name in written:
        terminal.say(f"  {folder / name}")
    terminal.result({"out": str(folder.path), "given": {str(k): v for k, v in known.items()}, "columns": lines})


def _shown(line: dict[str, Any], part: str, kinds: dict[str, Any]) -> str:
    value = line.get(part)
    if value is None or isinstance(value, str):
        return value or ""
    if "date" in str(kinds.get(line["column"], "")) and part != "deviation":
        return write(value, "date")
    return f"{value:.3f}" if part == "probability" else f"{value:.5g}"


def with_dates(rows: Rows, kinds: dict[str, Any]) -> Rows:
    """Rows with dates instead of days."""
    if isinstance(rows, np.ndarray) or not kinds:
        return rows
    return rows.assign(**dated({name: rows[name] for name in kinds if name in rows}, kinds))
