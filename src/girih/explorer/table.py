"""The page of a `TableModel`: pairs of columns with their densities, strange rows with reasons, imputed entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.errors import ShapeError
from girih.explorer.latent import Wanted
from girih.explorer.packed import Packed, column, number_column, packed
from girih.explorer.pairs import Axes, pair_specs, reason_curves
from girih.explorer.rows import beside_columns, chosen_rows
from girih.report.table_numbers import TablePage, taken
from girih.tables import TableModel
from girih.tables.conditional import Conditional
from girih.tables.conditioned import TableConditional
from girih.tables.frames import Raw, table

Array = NDArray[np.float64]

_AXES = 8  # columns of numbers whose pairs are shown
_FILLED = 5_000  # rows with gaps that are filled
_REASONED = 400_000  # entries up to which the page says of each how strange it is
_INTERVAL = (0.05, 0.95)


def table_payload(model: TableModel, data: object, wanted: Wanted) -> dict[str, Any]:
    """All that the page of a table shows.

    Args:
        model: fitted.
        data: rows as it takes them; without any, rows that it draws.
        wanted: what else was asked for.

    Raises:
        ShapeError, NotNumericError, ParameterError: the rows or columns do not fit the model.
    """
    notes: list[str] = []
    if data is None:
        data = model.sample(500, random_state=0)
        notes.append("No rows were given: these are 500 that the model draws.")
    raws = model.columns_._matched(table(data, "data", len(model.columns_)))
    count = len(raws[0])
    chosen = chosen_rows(count, wanted.most)
    if len(chosen) < count:
        notes.append(f"{len(chosen):,} of the {count:,} rows, drawn at random, are in this page.")
    names = [str(item.name) for item in model.columns_.items]
    x, codes = (part[torch.as_tensor(chosen)] for part in model.columns_.read(data))
    rows = taken(data, chosen)
    raws = [_some(raw, chosen) for raw in raws]
    entries = np.empty((len(chosen), len(raws)), dtype=object)
    for place, raw in enumerate(raws):
        entries[:, place] = raw.labels()
    missing = np.array([[entry is None for entry in line] for line in entries]).reshape(entries.shape)
    known = wanted.page if len(chosen) == count else None
    about = known or TablePage(model, rows, entries, names, missing)
    strange = about.strange[: max(5, len(chosen) // 10)]
    axes = _axes(model, x, wanted.columns)
    payload: dict[str, Any] = {
        "kind": "table",
        "title": wanted.title or "The joint density of a table",
        "names": names,
        "rows": {
            "count": len(chosen),
            "numbers": packed(chosen, "i4"),
            "columns": [
                *beside_columns(wanted.beside, count, chosen),
                number_column("below usual", about.scored.surprise, 3),
                number_column("log p", about.scored.log_p, 5),
                *(column(raw, str(raw.name) in wanted.dates) for raw in raws),
            ],
            "beside": len(wanted.beside or {}),
        },
        "filled": _filled(model, x, codes, missing, names, notes),
        "axes": axes.specs(model, names, wanted.dates),
        "pairs": pair_specs(model, axes),
        "strange": [{"row": one.row, "reasons": [reason._asdict() for reason in one.reasons]} for one in strange],
        "curves": reason_curves(model, x, codes, [one.row for one in strange], axes),
    }
    if missing.size <= _REASONED:
        below = model._usual_reasons() - model.explain(rows, held_out=True)
        payload["below"] = packed(np.where(missing, np.nan, below), "f4")
    payload["notes"] = notes
    payload["lead"] = (
        f"The joint density of {len(names)} columns, exact: what each pair of columns looks like and what one says of "
        "the other, which rows are strange and which entries make them so, and what was missing."
    )
    return payload


def _some(raw: Raw, chosen: NDArray[np.int64]) -> Raw:
    """A column of some of the rows."""
    values = raw.values[chosen] if isinstance(raw.values, np.ndarray) else [raw.values[row] for row in chosen]
    return replace(raw, values=values)


def _axes(model: TableModel, x: Tensor, wanted: Sequence[object] | None) -> Axes:
    """The columns of numbers whose pairs are shown: those wanted, or the first."""
    items = model.columns_.items
    places = [place for place, item in enumerate(items) if item.x is not None]
    if wanted is not None:
        places = [model.columns_.index(name) for name in wanted]  # type: ignore[arg-type]
        wrong = [str(items[place].name) for place in places if items[place].x is None]
        if wrong or len(places) > _AXES:
            raise ShapeError(
                f"columns takes at most {_AXES} columns of numbers to show in pairs; got {len(places)}"
                + (f", of which {', '.join(wrong)} hold no numbers" if wrong else "")
            )
    return Axes.of(model, x, places[:_AXES])


def _filled(
    model: TableModel, x: Tensor, codes: Tensor, missing: NDArray[np.bool_], names: Sequence[str], notes: list[str]
) -> list[Packed | None]:
    """By column of the table, what its missing entries are filled with and the interval that holds them."""
    some = np.flatnonzero(missing.any(1))
    if len(some) > _FILLED:
        notes.append(f"Of {len(some):,} rows with gaps, the first {_FILLED:,} are filled.")
        some = some[:_FILLED]
    if not len(some):
        return [None] * len(names)
    at = torch.as_tensor(some)
    given = TableConditional(model.columns_, Conditional(model._ensemble, x[at], codes[at], model._atoms))
    mean, (low, high) = given.mean, given.quantile(_INTERVAL)
    out: list[Packed | None] = []
    for place, item in enumerate(model.columns_.items):
        gone = missing[some, place]
        if not gone.any() or (item.x is None and item.code is None):
            out.append(None)
        elif item.x is not None:
            parts = {"mean": mean, "low": low, "high": high}
            spec = {name: packed(values[gone, place], "f4") for name, values in parts.items()}
            out.append({"row": packed(some[gone], "i4"), **spec})
        else:
            chances = given.probabilities(item.name)
            table_of = np.stack(list(chances.values()), 1)[gone]
            best = table_of.argmax(1)
            labels = [str(label) for label in chances]
            spec = {"level": packed(best, "i4"), "chance": packed(table_of.max(1), "f4")}
            out.append({"row": packed(some[gone], "i4"), "levels": labels, **spec})
    return out
