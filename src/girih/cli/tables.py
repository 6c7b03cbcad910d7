"""DATA and MODEL as the commands take them, and the tables that they write: numbers for each row, and filled gaps."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import girih
from girih import datasets
from girih._files import atomic_path, read_json, write_text
from girih._staging import current
from girih.cli.options import Chosen
from girih.cli.terminal import CommandError
from girih.datasets import Dataset
from girih.datasets.arrayfile import MEMORY
from girih.datasets.csvfile import scan_csv
from girih.datasets.files import file_kind, read_frame, read_parquet
from girih.datasets.reading import FileFormat
from girih.datasets.texts import Written, write
from girih.em import DGNEstimator
from girih.errors import DataSourceError, ModelFileError
from girih.inference import DGN
from girih.io import Model

if TYPE_CHECKING:
    import pandas as pd

    from girih.datasets import Dataset
    from girih.inference import DGN


MODEL, DATA_FILE, METRICS = "model", "data.json", "metrics.json"


@dataclass(frozen=True)
class SavedModel:
    """A fitted model and what `girih fit` noted about its data, where that is there."""

    path: Path
    dgn: DGN
    estimator: DGNEstimator | None
    columns: list[str] | None
    image_shape: tuple[int, ...] | None
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder, for the names of results."""
        path = self.path.resolve()
        return path.parent.name if path.name == MODEL else path.name

    def header(self) -> list[str]:
        """A name for each column."""
        return self.columns or [f"x{i}" for i in range(self.dgn.output_dim)]


def read_model(path: Path, model: Model | None = None) -> SavedModel:
    """The single generator in a folder of `girih fit`, or of `girih.save`; `model` if it was loaded already."""
    home, folder = path, current(path / MODEL)
    if not folder.is_dir():
        home, folder = (path.parent if path.name == MODEL else path), path
    model = girih.load(folder) if model is None else model
    if not isinstance(model, girih.DGN | DGNEstimator):
        what = "partition" if isinstance(model, girih.Partition) else type(model).__name__
        raise ModelFileError(
            f"{path} holds a {what}, not a model with noise; open it with girih.load, and pass a model folder"
        )
    estimator = model if isinstance(model, DGNEstimator) else None
    dgn = model.dgn_ if isinstance(model, DGNEstimator) else model
    data = read_notes(home / DATA_FILE)
    columns, shape = data.get("columns"), data.get("image_shape")
    if columns is None and estimator is not None and hasattr(estimator, "feature_names_in_"):
        columns = [str(name) for name in estimator.feature_names_in_]
    if columns is not None and len(columns) != dgn.output_dim:
        columns = shape = None  # notes of another model
    return SavedModel(
        path, dgn, estimator, columns, None if shape is None else tuple(shape), read_notes(home / METRICS)
    )


def is_file(data: str) -> bool:
    """Tell whether DATA is a path rather than a built-in name."""
    return file_kind(data) != ""


def has_names(dataset: Dataset) -> bool:
    """Tell whether the columns have names of their own, not numbers that girih gave."""
    return dataset.image_shape is None and _are_names(dataset.feature_names)


def load_data(data: str, chosen: Chosen) -> Dataset:
    """The rows of a file or of a built-in data set, with the columns that were asked for."""
    columns, drop, reading = chosen.columns, chosen.drop, chosen.reading
    if columns is not None and drop is not None:
        raise CommandError("--columns and --drop exclude each other; give one of them")
    if is_file(data):
        return datasets.load(data, n=chosen.rows, seed=chosen.seed, columns=columns, drop=drop, reading=reading)
    for option in reading.known():
        raise CommandError(f"--{option} is an option of csv files, and {data!r} is none; leave it out")
    dataset = datasets.load(data, n=chosen.rows, seed=chosen.seed)
    if columns is None and drop is None:
        return dataset
    names = dataset.feature_names
    for name in columns or drop or ():
        if name not in names:
            some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise CommandError(f"{dataset.name} has no column {name!r}; it has {some}")
    keep = list(columns) if columns is not None else [name for name in names if name not in (drop or ())]
    if not keep:
        raise CommandError(f"{dataset.name} has no columns left; keep at least one")
    X = dataset.X[:, [names.index(name) for name in keep]]
    return replace(dataset, X=X, feature_names=keep, image_shape=None, entropy=None)


def load_for(model: SavedModel, data: str, chosen: Chosen) -> Dataset:
    """Rows for a fitted model: its columns are found by name where the file has names, by position otherwise."""
    named = model.columns is not None and model.image_shape is None and _are_names(model.columns)
    if chosen.columns is None and chosen.drop is None and model.columns is not None and named and is_file(data):
        dataset = _by_name(model.columns, data, chosen)
    else:
        dataset = load_data(data, chosen)
    if dataset.shape[1] != model.dgn.output_dim:
        names = ", ".join(model.header()[:8]) + (", ..." if model.dgn.output_dim > 8 else "")
        raise CommandError(
            f"{dataset.name} has {plural(dataset.shape[1], 'column')}, and the model was fitted to "
            f"{model.dgn.output_dim} ({names}); choose them with --columns or --drop"
        )
    return dataset


def _by_name(columns: list[str], data: str, chosen: Chosen) -> Dataset:
    try:
        return load_data(data, replace(chosen, columns=columns))
    except DataSourceError as error:
        refusal = error
    try:
        dataset = load_data(data, chosen)
    except DataSourceError:
        raise refusal from None
    if has_names(dataset):
        raise refusal
    return dataset


def _are_names(columns: list[str]) -> bool:
    return columns != [f"x{i}" for i in range(len(columns))]


def describe(dataset: Dataset) -> str:
    """Say how large a data set is."""
    return f"{plural(dataset.shape[0], 'row')} of {plural(dataset.shape[1], 'column')}"


def plural(n: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,000 rows`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def read_notes(path: Path) -> dict[str, Any]:
    """Read what a command noted in a file of JSON; nothing where it is not there."""
    try:
        value = read_json(current(path))
    except ModelFileError:
        return {}
    return value if isinstance(value, dict) else {}


Array = NDArray[np.float64]

# Rows of one posterior at a time: its arrays are rows by cells.
_CHUNK = 8192


def score_rows(dgn: DGN, X: Array) -> tuple[dict[str, NDArray[Any]], float]:
    """`log p(x)` of each row, its latent (posterior mean and deviation), and how many entries are missing.

    The second result is the certificate: the largest share of any p(x) that may have been left out.
    """
    log_p, mean, deviation, left_out = [], [], [], 0.0
    for start in range(0, len(X), _CHUNK):
        posterior = dgn.posterior(X[start : start + _CHUNK])
        log_p.append(posterior.log_evidence.cpu().numpy())
        left_out = max(left_out, float(posterior.left_out.max()))
        mean.append(posterior.mean.cpu().numpy())
        deviation.append(posterior.variance.sqrt().cpu().numpy())
    table: dict[str, NDArray[Any]] = {"row": np.arange(len(X)), "log_p": np.concatenate(log_p)}
    z, spread = np.concatenate(mean), np.concatenate(deviation)
    for s in range(dgn.latent_dim):
        table[f"z{s + 1}"] = z[:, s]
        table[f"z{s + 1}_deviation"] = spread[:, s]
    missing = np.isnan(X).sum(1)
    if missing.any():
        table["missing"] = missing
    return table, left_out


def percentiles(log_p: Array) -> Array:
    """The share of these rows that are no likelier than each, in percent, `(N,)`."""
    return 100.0 * np.searchsorted(np.sort(log_p), log_p, side="right") / len(log_p)


def summarise(log_p: Array, least: int = 5) -> dict[str, Any]:
    """Mean, quantiles and the least probable rows."""
    order = np.argsort(log_p, kind="stable")[:least]
    return {
        "rows": len(log_p),
        "mean": float(log_p.mean()),
        "standard_deviation": float(log_p.std()),
        "quantiles": {f"{q:g}": float(np.quantile(log_p, q)) for q in (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)},
        "least_probable": [{"row": int(i), "log_p": float(log_p[i])} for i in order],
    }


def write_csv(path: Path, table: Mapping[str, Sequence[object] | NDArray[Any]] | pd.DataFrame) -> None:
    """A csv file of columns by name, written atomically; missing entries are empty cells."""
    with atomic_path(path) as temporary:
        if not isinstance(table, Mapping):
            table.to_csv(temporary, index=False)
            return
        columns = [column.tolist() if isinstance(column, np.ndarray) else column for column in table.values()]
        with temporary.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(table)
            out.writerows(
                ["" if cell is None or cell != cell else cell for cell in row] for row in zip(*columns, strict=True)
            )


def write_draws(path: Path, names: Sequence[str], drawn: Array) -> None:
    """Completions `(M, N, D)` one after the other, with the number of the draw and of the row, written atomically."""
    draw, row = np.indices(drawn.shape[:2]).reshape(2, -1)
    out: dict[str, NDArray[Any]] = {"draw": draw, "row": row}
    for name, column in zip(names, drawn.reshape(-1, drawn.shape[2]).T, strict=True):
        out[name if name not in out else f"{name}."] = column
    write_csv(path, out)


def write_npy(path: Path, array: Array) -> None:
    """An npy file, written atomically."""
    with atomic_path(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def write_completed(
    path: Path,
    data: str,
    dataset: Dataset,
    filled: Array,
    missing: NDArray[np.bool_],
    reading: FileFormat,
) -> None:
    """Write the completed table as csv, atomically.

    Args:
        path: the csv file.
        data: the file that the rows came from, or the name of a built-in data set.
        dataset: those rows, `(N, D)`.
        filled: the rows with every entry, `(N, D)`.
        missing: which entries were not there, `(N, D)`.
        reading: how a csv file is written, as far as that was said.
    """
    kind = file_kind(data)
    text = None
    if kind == "csv":
        origin, names = Path(data).expanduser(), dataset.feature_names
        text = filled_text(origin, names, lambda n, d: float(filled[n, d]), missing, reading)
    if text is not None:
        write_text(path, text)
    else:
        write_csv(path, _fill_columns(_columns(data, kind, dataset, reading), dataset, filled, missing))


def filled_text(
    path: Path,
    names: Sequence[str],
    value: Callable[[int, int], float | str],
    gaps: NDArray[np.bool_],
    reading: FileFormat,
) -> str | None:
    """The csv text with its gaps `(N, D)` filled; `None` where its cells do not line up with the rows one to one.

    Numbers and dates are written as in the file.
    """
    found = scan_csv(path, reading)
    written = read_frame(path, reading)[1].written
    usual: Written = "comma" if "comma" in written.values() or reading.decimal == "," else "plain"
    cells = found.records()
    if len(cells) != len(gaps):
        return None
    known = found.names if found.names is not None else [f"x{i}" for i in range(len(cells[0]))]
    at = [known.index(name) for name in names]
    for n, d in np.argwhere(gaps):
        one = value(int(n), int(d))
        cells[n][at[d]] = one if isinstance(one, str) else write(one, written.get(names[d], usual))
    out = io.StringIO()
    csv.writer(out, delimiter=found.separator, lineterminator="\n").writerows(cells)
    return found.text[: found.start] + out.getvalue()


def _fill_columns(
    table: pd.DataFrame | dict[str, NDArray[Any]], dataset: Dataset, filled: Array, missing: NDArray[np.bool_]
) -> pd.DataFrame | dict[str, NDArray[Any]]:
    """The table, columns by name, with the gaps filled."""
    for index, name in enumerate(dataset.feature_names):
        gaps = missing[:, index]
        if not gaps.any():
            continue
        observed = dataset.X[~gaps, index]
        column = filled[:, index].astype(object)
        if len(observed) and (observed == observed.round()).all() and abs(observed).max() < 2**53:
            column[~gaps] = observed.astype(int)  # a gap makes pandas read whole numbers as decimals
        table[name] = column
    return table


def _columns(data: str, kind: str, dataset: Dataset, reading: FileFormat) -> pd.DataFrame | dict[str, NDArray[Any]]:
    """The columns of the file, the others too, or those of a data set that has no others."""
    if kind in ("csv", "xlsx"):
        return read_frame(Path(data).expanduser(), reading)[0]
    if kind == "parquet":
        table = read_parquet(Path(data).expanduser(), MEMORY)
        table.columns = [str(name) for name in table.columns]
        return table if table.index.name is None else table.reset_index()
    return dict(zip(dataset.feature_names, dataset.X.T, strict=True))
