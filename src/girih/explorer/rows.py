"""The rows of a page of a generator: where they lie, their columns, and small pictures of long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih._arrays import as_rows
from girih.errors import ShapeError
from girih.explorer.packed import Packed, column, number_column, packed
from girih.explorer.subject import Places
from girih.tables.frames import of_labels

Array = NDArray[np.float64]

COLUMNS = 24  # outputs up to which each has a column in the list of rows
_PICTURES = 2_000_000  # bytes of rows that are drawn, a byte for each entry


def chosen_rows(count: int, most: int) -> NDArray[np.int64]:
    """Which rows a page holds: all, or `most` of them drawn at random, in their order."""
    return np.arange(count) if count <= most else np.sort(np.random.default_rng(0).permutation(count)[:most])


def rows_of(data: object, D: int) -> Array:
    """Rows `(N, D)`, NaN where missing."""
    return np.asarray(as_rows(data, "data", D, "the data dimension D", allow_missing=True).detach().cpu())


def beside_columns(beside: Mapping[str, object] | None, count: int, chosen: NDArray[np.int64]) -> list[Packed]:
    """Columns that the model knows nothing of, by name, one value for each of `count` rows.

    Raises:
        ShapeError: another number of values.
    """
    out: list[Packed] = []
    for name, given in (beside or {}).items():
        values = np.asarray(given)
        if values.shape != (count,):
            raise ShapeError(f"beside[{name!r}] must hold one value for each of the {count} rows, got {values.shape}")
        out.append(column(of_labels(name, values[chosen].tolist(), f"beside[{name!r}]")))
    return out


def row_spec(
    X: Array | None, places: Places, names: Sequence[str] | None, beside: list[Packed], numbers: NDArray[np.int64]
) -> dict[str, Any]:
    """The rows for the page.

    Args:
        X: `(N, D)`, NaN where missing.
        places: where they lie.
        names: of the outputs, where each is a column of the list.
        beside: further columns.
        numbers: of the rows in the user's data.
    """
    columns = list(beside)
    if places.log_p is not None:
        columns.append(number_column("log p", places.log_p, 5))
    if X is not None and names is not None:
        columns += [number_column(name, X[:, place]) for place, name in enumerate(names)]
    return {
        "count": len(places.mean),
        "numbers": packed(numbers, "i4"),
        "columns": columns,
        "mean": packed(places.mean, "f4"),
        "spread": None if places.covariance is None else packed(places.covariance, "f4"),
    }


def pictures(X: Array, low: float, high: float) -> Packed:
    """The first rows in a byte for each entry, 1 to 255 from low to high, 0 where missing."""
    drawn = X[: max(1, _PICTURES // X.shape[1])]
    scaled = np.clip(np.rint(1.0 + 254.0 * (drawn - low) / (high - low)), 1, 255)
    return packed(np.where(np.isnan(drawn), 0, scaled), "u1")
