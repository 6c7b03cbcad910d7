"""The tables that commands write: a number for each row, and a user's table with its gaps filled, to the letter."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from girih._files import atomic_path, write_text
from girih.datasets.arrayfile import MEMORY
from girih.datasets.csvfile import read_csv, scan_csv
from girih.datasets.files import read_parquet

if TYPE_CHECKING:
    import pandas as pd

    from girih.datasets import Dataset
    from girih.inference import DGN

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
    header: bool | None = None,
) -> None:
    """Write the completed table as csv, atomically.

    Args:
        path: the csv file.
        data: the file that the rows came from, or the name of a built-in data set.
        dataset: those rows, `(N, D)`.
        filled: the rows with every entry, `(N, D)`.
        missing: which entries were not there, `(N, D)`.
        header: whether the first line of a csv file holds names; detected by default.
    """
    suffix = Path(data).suffix.lower()
    text = _fill_text(Path(data).expanduser(), dataset, filled, missing, header) if suffix == ".csv" else None
    if text is not None:
        write_text(path, text)
    else:
        write_csv(path, _fill_columns(_columns(data, suffix, dataset, header), dataset, filled, missing))


def _fill_text(
    path: Path, dataset: Dataset, filled: Array, missing: NDArray[np.bool_], header: bool | None
) -> str | None:
    """The csv text with the gaps filled; `None` where its cells do not line up with the rows one to one."""
    found = scan_csv(path, header)
    cells = found.records()
    if len(cells) != len(dataset):
        return None
    names = found.names if found.names is not None else [f"x{i}" for i in range(len(cells[0]))]
    at = [names.index(name) for name in dataset.feature_names]
    for n, d in np.argwhere(missing):
        cells[n][at[d]] = repr(float(filled[n, d]))
    out = io.StringIO()
    csv.writer(out, delimiter=found.separator, lineterminator="\n").writerows(cells)
    return found.text[: found.start] + out.getvalue()


def _fill_columns(table: Any, dataset: Dataset, filled: Array, missing: NDArray[np.bool_]) -> Any:
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


def _columns(data: str, suffix: str, dataset: Dataset, header: bool | None) -> pd.DataFrame | dict[str, NDArray[Any]]:
    """The columns of the file, the others too, or those of a data set that has no others."""
    if suffix == ".csv":
        return read_csv(Path(data).expanduser(), header)
    if suffix == ".parquet":
        table = read_parquet(Path(data).expanduser(), MEMORY)
        table.columns = [str(name) for name in table.columns]
        return table if table.index.name is None else table.reset_index()
    return dict(zip(dataset.feature_names, dataset.X.T, strict=True))
