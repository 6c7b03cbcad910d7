"""DATA and MODEL as the commands take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import girih
from girih import datasets
from girih._files import read_json
from girih._staging import current
from girih.cli.terminal import CommandError
from girih.datasets import Dataset
from girih.datasets.files import SUFFIXES
from girih.em import DGNEstimator
from girih.errors import DataSourceError, ModelFileError
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
        """What the folder is called, for the names of results."""
        path = self.path.resolve()
        return path.parent.name if path.name == MODEL else path.name

    def header(self) -> list[str]:
        """A name for each column."""
        return self.columns or [f"x{i}" for i in range(self.dgn.output_dim)]


def read_model(path: Path) -> SavedModel:
    """The model in a folder of `girih fit`, or of `girih.save`."""
    home, folder = path, current(path / MODEL)
    if not folder.is_dir():
        home, folder = (path.parent if path.name == MODEL else path), path
    model = girih.load(folder)
    if not isinstance(model, girih.DGN | DGNEstimator):
        what = "partition" if isinstance(model, girih.Partition) else type(model).__name__
        raise ModelFileError(
            f"{path} holds a {what}, not a model with noise; open it with girih.load, and pass a model folder"
        )
    estimator = model if isinstance(model, DGNEstimator) else None
    dgn = model.dgn_ if isinstance(model, DGNEstimator) else model
    data = _read_json(home / DATA_FILE)
    columns, shape = data.get("columns"), data.get("image_shape")
    if columns is None and estimator is not None and hasattr(estimator, "feature_names_in_"):
        columns = [str(name) for name in estimator.feature_names_in_]
    if columns is not None and len(columns) != dgn.output_dim:
        columns = shape = None  # notes of another model
    return SavedModel(
        path, dgn, estimator, columns, None if shape is None else tuple(shape), _read_json(home / METRICS)
    )


def is_file(data: str) -> bool:
    """Whether DATA is a path rather than a built-in name."""
    return Path(data).suffix.lower() in SUFFIXES


def has_names(dataset: Dataset) -> bool:
    """Whether the columns have names of their own, not numbers that girih gave."""
    return dataset.image_shape is None and _are_names(dataset.feature_names)


def load_data(
    data: str,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    rows: int | None = None,
    seed: int = 0,
    header: bool | None = None,
) -> Dataset:
    """The rows of a file or of a built-in data set, with the columns that were asked for."""
    if columns is not None and drop is not None:
        raise CommandError("--columns and --drop exclude each other; give one of them")
    if is_file(data):
        return datasets.load(data, n=rows, seed=seed, columns=columns, drop=drop, header=header)
    if header is not None:
        raise CommandError(f"--header and --no-header are options of csv files, and {data!r} is none; leave them out")
    dataset = datasets.load(data, n=rows, seed=seed)
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


def load_for(
    model: SavedModel,
    data: str,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    rows: int | None = None,
    seed: int = 0,
    header: bool | None = None,
) -> Dataset:
    """Rows for a fitted model: its columns are found by name where the file has names, by position otherwise."""
    named = model.columns is not None and model.image_shape is None and _are_names(model.columns)
    if columns is None and drop is None and model.columns is not None and named and is_file(data):
        dataset = _by_name(model.columns, data, rows, seed, header)
    else:
        dataset = load_data(data, columns=columns, drop=drop, rows=rows, seed=seed, header=header)
    if dataset.shape[1] != model.dgn.output_dim:
        names = ", ".join(model.header()[:8]) + (", ..." if model.dgn.output_dim > 8 else "")
        raise CommandError(
            f"{dataset.name} has {plural(dataset.shape[1], 'column')}, and the model was fitted to "
            f"{model.dgn.output_dim} ({names}); choose them with --columns or --drop"
        )
    return dataset


def _by_name(columns: list[str], data: str, rows: int | None, seed: int, header: bool | None) -> Dataset:
    try:
        return load_data(data, columns=columns, rows=rows, seed=seed, header=header)
    except DataSourceError as error:
        refusal = error
    try:
        dataset = load_data(data, rows=rows, seed=seed, header=header)
    except DataSourceError:
        raise refusal from None
    if has_names(dataset):
        raise refusal
    return dataset


def _are_names(columns: list[str]) -> bool:
    return columns != [f"x{i}" for i in range(len(columns))]


def describe(dataset: Dataset) -> str:
    """How large a data set is."""
    return f"{plural(dataset.shape[0], 'row')} of {plural(dataset.shape[1], 'column')}"


def plural(n: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,000 rows`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(current(path))
    except ModelFileError:
        return {}
    return value if isinstance(value, dict) else {}
