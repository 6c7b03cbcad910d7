"""What the model of a table says of rows, for `girih impute`, `anomalies`, `sample` and `info`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import girih
from girih.cli.conditions import drawn_rows, with_dates
from girih.cli.folder import OutputFolder
from girih.cli.options import Chosen, compute_threads
from girih.cli.table_data import (
    SavedTable,
    TableData,
    cells,
    id_columns,
    page_of,
    rows_for,
    write_imputed,
    write_rows,
)
from girih.cli.tables import plural, write_csv, write_npy
from girih.cli.terminal import Terminal
from girih.report.table_numbers import Scored, setting_text, strangest, text_of, weighty
from girih.tables import TableModel
from girih.tables.outliers import simulated_p_values

_IMPUTED = ("imputed.csv", "imputed.parquet", "imputed.npy")
_DEVIATIONS, _DRAWS = ("deviations.csv", "deviations.npy"), ("draws.csv", "draws.npy")
_ANOMALIES = "anomalies.csv"
_SIMULATED = 300_000  # rows that are drawn for p-values, for all patterns of holes together
_REASONED = 200  # rows whose reasons are told


def impute(
    terminal: Terminal, saved: SavedTable, data: str, chosen: Chosen, path: Path, std: bool, draws: int | None
) -> None:
    """Fill the gaps of a table, and write how sure that is."""
    table = rows_for(saved, data, chosen)
    folder = OutputFolder(path, "impute", (*_IMPUTED, *_DEVIATIONS, *_DRAWS))
    model = saved.model
    missing = table.missing
    with compute_threads(missing.size), terminal.busy("imputing"):
        completed: Any = model.impute(table.rows, return_std=True)
        drawn = None if draws is None else model.impute(table.rows, draws=draws, random_state=chosen.seed)
    filled, deviations = completed
    with folder.results() as results:
        written, gaps = write_imputed(results, "imputed", table, filled, table.reading)
        if std:
            write_csv(results / _DEVIATIONS[0], dict(zip(table.names, deviations.T, strict=True)))
            written.append(_DEVIATIONS[0])
            if data.lower().endswith(".npy"):
                write_npy(results / _DEVIATIONS[1], deviations)
                written.append(_DEVIATIONS[1])
        if drawn is not None:
            written += _write_draws(results, table, drawn)
    count, rows = int(gaps.sum()), int(gaps.any(1).sum())
    if count:
        share = f"{count:,} of {gaps.size:,} entries ({count / gaps.size:.1%})"
        terminal.say(f"{table.name}: filled {share}, in {plural(rows, 'row')}")
    else:
        terminal.say(f"{table.name}: nothing is missing, so nothing was filled")
    left = int(missing.sum()) - count
    if left:
        terminal.note(f"{plural(left, 'cell')} of columns of which no row has an entry could not be filled")
    for name in written:
        terminal.say(f"  {folder / name}")
    terminal.result(
        {"out": str(folder.path), "filled": count, "rows_filled": rows, "rows": len(gaps), "files": written}
    )


def judged(model: TableModel, table: TableData, threshold: float, seed: int) -> dict[str, Any]:
    """By row how often the model draws one that is as unlikely, whether it is strange by that, and why."""
    x, codes = model.columns_.read(table.rows)
    patterns = len(np.unique(table.missing, axis=0))
    n = int(np.clip(_SIMULATED // patterns, 99, 999))
    log_p = torch.as_tensor(model.score_held_out(table.rows))
    p_value = simulated_p_values(model, x, codes, log_p, n, seed).numpy()
    strange = p_value <= threshold
    reasons = [""] * len(p_value)
    rarest = Scored(log_p.numpy(), -p_value)
    for one in strangest(page_of(model, table), min(int(strange.sum()), _REASONED), rarest) if strange.any() else []:
        reasons[one.row] = "; ".join(f"{r.column} = {r.value} (given the rest: {r.usual})" for r in one.reasons)
    return {"p_value": p_value, "strange": [bool(one) for one in strange], "reasons": reasons}


def anomalies(terminal: Terminal, saved: SavedTable, data: str, chosen: Chosen, path: Path, count: int) -> None:
    """Write and tell the strangest rows, and the columns that make them so."""
    table = rows_for(saved, data, chosen)
    folder = OutputFolder(path, "anomalies", (_ANOMALIES,))
    with compute_threads(table.missing.size), terminal.busy("comparing"):
        page = page_of(saved.model, table)
        found = strangest(page, count)
    reasons = ["; ".join(f"{r.column} = {r.value} (given the rest: {r.usual})" for r in one.reasons) for one in found]
    out: dict[str, list[object]] = {
        "row": [one.row for one in found],
        **{name: values[[one.row for one in found]].tolist() for name, values in id_columns(table).items()},
        "log_p": [one.log_p for one in found],
        "below_usual": [one.surprise for one in found],
        "reasons": list(reasons),
    }
    for place, name in enumerate(table.names):
        gone = table.missing[[one.row for one in found], place]
        out[f"nats of {name}"] = [None if gap else float(one.nats[place]) for one, gap in zip(found, gone, strict=True)]
    with folder.results() as results:
        write_csv(results / _ANOMALIES, out)
    terminal.say(f"{table.name}: the strangest of {plural(len(table), 'row')}", style="bold")
    lines: list[tuple[str, ...]] = []
    for one in found:
        for place, r in enumerate(one.reasons):
            head = (page.label(one.row), f"{one.log_p:.2f}", f"{one.surprise:.1f}") if place == 0 else ("", "", "")
            lines.append((*head, r.column, r.value, r.usual, f"{r.below:.1f}"))
    terminal.columns(("row", "log p", "below usual", "column", "entry", "given the rest", "nats below"), lines)
    terminal.note(
        "log p in nats; below usual: standard deviations below rows of which the same cells are known; given the rest: "
        "the 90 % interval of a cell, or the likeliest value; nats below: of log p of the cell, below what is usual "
        "in its column"
    )
    terminal.say(f"Anomalies: {folder / _ANOMALIES} (rows are counted from 0)")
    rows = [
        {
            "row": one.row,
            "log_p": one.log_p,
            "below_usual": one.surprise,
            "reasons": [r._asdict() for r in one.reasons],
        }
        for one in found
    ]
    terminal.result({"out": str(folder.path), "rows": len(table), "anomalies": rows})


def write_sample(folder: OutputFolder, saved: SavedTable, count: int, seed: int, known: Mapping[Any, Any]) -> list[str]:
    """Draw rows and write them; with a picture of two columns of numbers."""
    kinds = saved.notes.get("written") or {}
    rows = with_dates(drawn_rows(saved, count, seed, known), kinds)
    with folder.results() as results:
        written = write_rows(results, "samples", rows, saved.names, saved.source)
        numbers = [item.x is not None and item.code is None for item in saved.model.columns_.items]
        numbers = [
            plain and "date" not in str(kinds.get(name, "")) for plain, name in zip(numbers, saved.names, strict=True)
        ]
        plain = cells(rows).astype(np.float64) if all(numbers) else None
        if plain is not None and "samples.npy" not in written:
            write_npy(results / "samples.npy", plain)
            written.append("samples.npy")
        if plain is not None and len(numbers) == 2:
            girih.report.draw_samples(results / "samples.png", plain, None, saved.names)
            written.append("samples.png")
    return written


def describe_table(saved: SavedTable) -> dict[str, Any]:
    """Columns, weights and fit of a model."""
    model = saved.model
    single = model.best_ is model
    columns = [f"{name}: {one['note']}" for name, one in zip(saved.names, model.columns_.summary(), strict=True)]
    weights = None if single else [f"{weight:.2f} {text}" for text, weight, _ in weighty(model)]
    return {
        "model": str(saved.path),
        "kind": "table",
        "columns": columns,
        "members": len(model.members_),
        "weights": weights,
        "best_single_model": setting_text(model.best_.setting_),
        "held_out_nll": -model.held_out_score_,
        "held_out_nll_of_best": -model.best_.held_out_score_,
        "fitted_to": saved.metrics.get("data", {}).get("source"),
        "rows": saved.metrics.get("data", {}).get("rows"),
        "seed": model.random_state,
    }


def _write_draws(folder: Path, table: TableData, drawn: Any) -> list[str]:
    """All completions one after the other, with the number of the draw and of the row."""
    parts = list(drawn)
    many = [np.asarray(part) if not hasattr(part, "columns") else cells(part) for part in parts]
    whole = np.concatenate(many)
    out: dict[str, Any] = {
        "draw": np.repeat(np.arange(len(parts)), len(table)),
        "row": np.tile(np.arange(len(table)), len(parts)),
    }
    for place, name in enumerate(table.names):
        out[name if name not in out else f"{name}."] = [_plain(value) for value in whole[:, place]]
    write_csv(folder / _DRAWS[0], out)
    written = [_DRAWS[0]]
    if table.source.lower().endswith(".npy"):
        write_npy(folder / _DRAWS[1], np.stack(many).astype(np.float64))
        written.append(_DRAWS[1])
    return written


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, np.number, np.bool_)) or value is None else text_of(value)
