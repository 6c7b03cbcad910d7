"""DATA and MODEL of the commands on tables: rows with text, categories and holes, and files of the same kind."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import girih
from girih._files import atomic_path, write_text
from girih._staging import current
from girih.cli.options import Chosen
from girih.cli.tables import (
    DATA_FILE,
    METRICS,
    MODEL,
    SavedModel,
    filled_text,
    has_names,
    load_data,
    plural,
    read_model,
    read_notes,
    write_csv,
    write_npy,
)
from girih.cli.terminal import CommandError
from girih.datasets import Dataset
from girih.datasets.dataset import check_count, make_rng
from girih.datasets.files import file_kind, read_frame
from girih.datasets.reading import FileFormat, Findings
from girih.datasets.texts import is_value, write
from girih.errors import DataSourceError
from girih.report.table_numbers import TablePage

if TYPE_CHECKING:
    import pandas as pd

    from girih.tables import TableModel

Rows: TypeAlias = "pd.DataFrame | NDArray[np.float64]"

_NAMES_ROWS = 20  # rows from which on an entry that never repeats says nothing of them
_COUNTED = 300  # rows from which on numbers without a gap count the rows, wherever they begin
_YEARS = (1000.0, 2999.0)
_ID = re.compile(
    r"(?i:(^|[_\W])(id|uid|uuid|key|index|nr|no)$|^(id|rownames?|row|index|unnamed)([_\W]|$))|[a-z](ID|Id)$"
)
_OWN = ("row", "log_p", "z", "z_deviation", "missing", "below_usual", "reasons")  # columns of scores and anomalies
_FRAMES = ("csv", "xlsx", "parquet")


@dataclass(frozen=True)
class TableData:
    """Rows of a table.

    Attributes:
        rows: a frame, or an array of numbers `(N, D)`.
        names: of its D columns.
        name: the built-in name or the file name.
        description: one line on what the rows are.
        source: DATA as it was given.
        entropy: of the distribution that the rows were drawn from, in nats, if known.
        left_out: columns that only name the rows, which go along into outputs.
        reading: how the file is written, as far as that was said.
        findings: what was found out about the file.
        ids: the columns that are left out.
    """

    rows: Rows = field(repr=False)
    names: list[str]
    name: str
    description: str
    source: str
    entropy: float | None = None
    left_out: tuple[str, ...] = ()
    reading: FileFormat = field(default_factory=FileFormat)
    findings: Findings = field(default_factory=Findings)
    ids: pd.DataFrame | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """True for the entries that are not there, `(N, D)`."""
        return gaps_of(self.rows)

    @property
    def entries(self) -> NDArray[Any]:
        """The entries as objects, `(N, D)`."""
        return cells(self.rows)


def gaps_of(rows: Rows) -> NDArray[np.bool_]:
    """Mark the entries of a table that are not there, `(N, D)`."""
    return np.isnan(rows) if isinstance(rows, np.ndarray) else np.array(rows.isna().to_numpy())


def cells(rows: Rows) -> NDArray[Any]:
    """The entries of a table as objects, `(N, D)`."""
    return rows.astype(object) if isinstance(rows, np.ndarray) else rows.to_numpy(dtype=object)


def load_table(data: str, chosen: Chosen) -> TableData | Dataset:
    """The rows of a file or of a built-in data set, as a table; images as a data set."""
    if not is_frame(data):
        dataset = load_data(data, chosen)
        return dataset if dataset.image_shape is not None else of_dataset(dataset, data)
    if chosen.columns is not None and chosen.drop is not None:
        raise CommandError("--columns and --drop exclude each other; give one of them")
    path = Path(data).expanduser()
    frame, findings = read_frame(path, chosen.reading, chosen.columns, chosen.drop)
    if chosen.rows is not None:
        count = check_count(chosen.rows)
        if count > len(frame):
            raise CommandError(f"{count} rows were asked of {path.name!r}, which has {len(frame)}; lower --rows")
        frame = frame.iloc[np.sort(make_rng(chosen.seed).choice(len(frame), count, replace=False))]
        frame = frame.reset_index(drop=True)
    names = [str(name) for name in frame.columns]
    about = f"{len(frame):,} rows of {len(names):,} columns from {path.name}"
    return TableData(frame, names, path.name, about, data, reading=chosen.reading, findings=findings)


def of_dataset(dataset: Dataset, source: str) -> TableData:
    """A built-in table or an array; with names where they say something and pandas is there to hold them."""
    rows: Rows = dataset.X
    if has_names(dataset):
        try:
            import pandas
        except ImportError:
            pass
        else:
            rows = pandas.DataFrame(dataset.X, columns=dataset.feature_names)
    return TableData(rows, dataset.feature_names, dataset.name, dataset.description, source, dataset.entropy)


def is_frame(data: str) -> bool:
    """Tell whether DATA is a file whose columns may hold text."""
    return file_kind(data) in _FRAMES


def without_ids(data: TableData, chosen: Chosen, kinds: Collection[str | int] = ()) -> TableData:
    """The table without the columns that only name its rows, unless they were asked for by name.

    Those are texts that are different in every row, and whole numbers that are and either count the rows or are called
    an id: as a part of the model each costs the log of the number of rows in nats, and says nothing.

    Args:
        data: the table.
        chosen: what was asked for.
        kinds: the columns whose kind was said.
    """
    if isinstance(data.rows, np.ndarray) or chosen.columns is not None:
        return data
    frame = data.rows
    out = [name for name in data.names if name not in kinds and _names_rows(name, frame[name])]
    names = [name for name in data.names if name not in out]
    if not names:
        raise CommandError(f"{data.name} holds nothing but columns that name its rows; a model needs other columns")
    return replace(data, rows=frame[names], names=names, left_out=tuple(out), ids=frame[out] if out else None)


def _names_rows(name: str, column: pd.Series) -> bool:
    seen = column.dropna()
    if len(seen) < _NAMES_ROWS or hasattr(column, "cat") or column.dtype.kind in "bmMc" or not seen.is_unique:
        return False
    if column.dtype.kind not in "fiu":
        return all(isinstance(value, str) for value in seen)
    values = seen.to_numpy(dtype=np.float64)
    if len(seen) < len(column) or not bool((values == np.rint(values)).all()):
        return False
    low, high = float(values.min()), float(values.max())
    if _YEARS[0] <= low and high <= _YEARS[1] and "year" in name.lower():
        return False
    counts = high - low == len(values) - 1 and (low in (0.0, 1.0) or len(values) >= _COUNTED)
    return counts or _ID.search(name) is not None


def page_of(model: TableModel, data: TableData) -> TablePage:
    """The model and its rows as reports take them, named by the first of the columns that name them."""
    labels = () if data.ids is None else data.ids.iloc[:, 0].tolist()
    return TablePage(model, data.rows, data.entries, data.names, data.missing, data.findings.written, labels)


READ = ("what", "found", "to change it")


def what_was_read(data: TableData) -> list[tuple[str, str, str]]:
    """How the file was understood, as rows under `READ`."""
    rows = data.findings.kept([*data.names, *data.left_out]).table()
    missing = int(data.missing.sum())
    if missing:
        rows.append(("missing entries", f"{missing:,} of {data.missing.size:,}", ""))
    if data.left_out:
        rows.append(("names of rows, left out", ", ".join(data.left_out), "--kind NAME=number, --columns"))
    if not isinstance(data.rows, np.ndarray):
        twice = int(data.rows.duplicated().sum())
        if twice:
            rows.append(("rows that came before", f"{twice:,}", "remove them from the file, if they are no rows"))
    return rows


def dated(columns: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Columns by name, those of dates as dates instead of days."""
    return {
        name: [write(value, written[name]) if value == value else None for value in np.asarray(values, dtype=float)]
        if "date" in str(written.get(name, ""))
        else values
        for name, values in columns.items()
    }


def check_cells(data: TableData, kinds: Collection[str | int]) -> None:
    """Refuse infinite numbers, and text among numbers, which a csv file would make a category of.

    Args:
        data: the table.
        kinds: the columns whose kind was said.
    """
    frame = data.rows
    for place, name in enumerate(data.names):
        kind = frame.dtype.kind if isinstance(frame, np.ndarray) else frame[name].dtype.kind
        if kind == "f":
            values = np.asarray(frame[:, place] if isinstance(frame, np.ndarray) else frame[name], dtype=np.float64)
            if np.isinf(values).any():
                row = int(np.flatnonzero(np.isinf(values))[0])
                raise CommandError(
                    f"{data.name} holds infinite values (first in row {row}, column {name!r}); remove them, or leave "
                    "the cell empty to mean missing"
                )
        if isinstance(frame, np.ndarray) or kind in "fiubMm" or hasattr(frame[name], "cat"):
            continue
        texts = [value for value in frame[name].dropna().unique() if isinstance(value, str)]
        other = [text for text in texts if not is_value(text)]
        if name not in kinds and other and 2 * len(other) < len(texts):
            raise CommandError(
                f"{data.name}: column {name!r} holds text among numbers, e.g. {other[0][:40]!r}; empty those cells if "
                f"they are missing, or say --kind {name}=category"
            )


def id_columns(data: TableData) -> dict[str, Any]:
    """The columns that name the rows, for outputs that have columns of their own."""
    if data.ids is None:
        return {}
    return {f"{name}." if name in _OWN else name: data.ids[name].to_numpy() for name in data.ids.columns}


def scores_of(model: TableModel, data: TableData) -> dict[str, np.ndarray[Any, Any]]:
    """`log p` of each row, where it lies along the curve, and how many entries are missing."""
    table = {"row": np.arange(len(data)), **id_columns(data), "log_p": model.score_samples(data.rows)}
    if model._curve is not None:
        z, deviation = model.transform(data.rows, return_std=True)
        table |= {"z": z[:, 0], "z_deviation": deviation[:, 0]}
    missing = data.missing.sum(1)
    if missing.any():
        table["missing"] = missing
    return table


@dataclass(frozen=True)
class SavedTable:
    """A fitted `TableModel`, and what `girih fit` noted about its data, where that is there."""

    path: Path
    model: TableModel
    names: list[str]
    metrics: dict[str, Any]
    source: str
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the folder, for the names of results."""
        path = self.path.resolve()
        return path.parent.name if path.name == MODEL else path.name


def read_any(path: Path) -> SavedModel | SavedTable:
    """The model in a folder of `girih fit`, or of `girih.save`: of a table, or a single generator."""
    home, folder = path, current(path / MODEL)
    if not folder.is_dir():
        home, folder = (path.parent if path.name == MODEL else path), path
    model = girih.load(folder)
    if not isinstance(model, girih.TableModel):
        return read_model(path, model)
    notes = read_notes(home / DATA_FILE)
    names = [str(name) for name in model.columns_.names]
    noted = notes.get("columns")
    if not model.columns_.named:
        fits = isinstance(noted, list) and len(noted) == len(names)
        names = [str(name) for name in noted] if fits and noted else [f"x{i}" for i in range(len(names))]
    return SavedTable(path, model, names, read_notes(home / METRICS), str(notes.get("source", "")), notes)


def rows_for(saved: SavedTable, data: str, chosen: Chosen) -> TableData:
    """Rows for a fitted model: its columns are found by name where both have names, by position otherwise."""
    picked = chosen.columns is not None or chosen.drop is not None
    if chosen.reading.missing is None and file_kind(data) == "csv":  # what meant a missing entry in the fit does here
        missing = FileFormat.of(saved.notes.get("reading")).missing
        chosen = replace(chosen, reading=replace(chosen.reading, missing=missing))
    found = load_table(data, chosen)
    if isinstance(found, Dataset):
        found = of_dataset(replace(found, image_shape=None), data)
    count = len(saved.names)
    frame = found.rows
    if saved.model.columns_.named and not isinstance(frame, np.ndarray):
        lacking = [name for name in saved.names if name not in found.names]
        unnamed = found.names == [f"x{i}" for i in range(len(found.names))]
        if not lacking:
            rows = frame[saved.names].set_axis(list(saved.model.columns_.names), axis=1)
            ids = [name for name in saved.metrics.get("left_out", []) if name in found.names]
            return replace(found, rows=rows, names=list(saved.names), ids=frame[ids] if ids else None)
        if not (unnamed and len(found.names) == count):
            some = ", ".join(found.names[:12]) + (", ..." if len(found.names) > 12 else "")
            raise DataSourceError(f"{found.name} has no column {lacking[0]!r}; it has {some}")
    if len(found.names) != count:
        some = ", ".join(saved.names[:8]) + (", ..." if count > 8 else "")
        hint = "" if picked else "; choose them with --columns or --drop"
        raise CommandError(
            f"{found.name} has {plural(len(found.names), 'column')}, and the model was fitted to {count} ({some}){hint}"
        )
    if saved.model.columns_.named and not isinstance(frame, np.ndarray):
        return replace(found, rows=frame.set_axis(list(saved.model.columns_.names), axis=1))
    return found


def write_rows(folder: Path, stem: str, rows: Rows, names: Sequence[str], source: str) -> list[str]:
    """Write a table as csv, and as the kind of file that `source` is; returns the names of the files."""
    written = [f"{stem}.csv"]
    table = dict(zip(names, rows.T, strict=True)) if isinstance(rows, np.ndarray) else rows.set_axis(names, axis=1)
    write_csv(folder / written[0], table)
    if file_kind(source) == "parquet" and not isinstance(table, dict):
        written.append(f"{stem}.parquet")
        with atomic_path(folder / written[-1]) as temporary:
            table.to_parquet(temporary, index=False)
    if isinstance(rows, np.ndarray) and rows.dtype.kind == "f":
        written.append(f"{stem}.npy")
        write_npy(folder / written[-1], rows)
    return written


def write_imputed(
    folder: Path, stem: str, data: TableData, filled: Rows, reading: FileFormat
) -> tuple[list[str], NDArray[np.bool_]]:
    """Write the table as it was, other columns included, with its gaps filled; which entries were filled, `(N, D)`."""
    new, gaps = cells(filled), data.missing & ~gaps_of(filled)
    if file_kind(data.source) == "csv":
        text = filled_text(Path(data.source).expanduser(), data.names, lambda n, d: _cell(new[n, d]), gaps, reading)
        if text is not None:
            write_text(folder / f"{stem}.csv", text)
            return [f"{stem}.csv"], gaps
    if not is_frame(data.source) or isinstance(filled, np.ndarray):
        return write_rows(folder, stem, filled, data.names, data.source), gaps
    whole = read_frame(Path(data.source).expanduser(), reading)[0].copy()
    named = filled.set_axis(data.names, axis=1)
    for place, name in enumerate(data.names):
        if gaps[:, place].any():
            whole[name] = named[name].to_numpy() if hasattr(whole[name], "cat") is False else named[name].array
    return write_rows(folder, stem, whole, [str(name) for name in whole.columns], data.source), gaps


def _cell(value: object) -> float | str:
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else ""
    return str(value)
