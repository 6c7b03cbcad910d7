"""Exact densities and conditionals of a `TableModel` on grids: of columns alone, of pairs, and of strange entries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.explorer.packed import packed
from girih.tables import TableModel
from girih.tables.conditional import Conditional

Array = NDArray[np.float64]

_LINE = 128  # places along one column
_PLACES = 32  # along each side of a pair
_GIVEN = 17  # places at which conditionals are known
_LEVELS = (0.05, 0.5, 0.95)
_MARGIN = 0.06


class Axes(NamedTuple):
    """`Axes` are the columns of numbers that are shown in pairs.

    Attributes:
        places: in the table.
        numbers: their columns of x.
        codes: their columns of codes and the code of a number that is no atom, where they have atoms.
        low: the lower end of each.
        high: the upper end.
    """

    places: list[int]
    numbers: list[int]
    codes: list[tuple[int, int] | None]
    low: list[float]
    high: list[float]

    @staticmethod
    def of(model: TableModel, x: Tensor, places: Sequence[int]) -> Axes:
        """The axes of some columns of the table, as long as the rows `x (N, D)` need them."""
        items = [model.columns_.items[place] for place in places]
        numbers = [item.x for item in items if item.x is not None]
        codes = [None if item.code is None else (item.code, len(item.atoms)) for item in items]
        low, high = [], []
        for item, number in zip(items, numbers, strict=True):
            seen = x[:, number][~x[:, number].isnan()].tolist() + list(item.atoms)
            least, most = (min(seen), max(seen)) if seen else (0.0, 1.0)
            margin = _MARGIN * (most - least) or 1.0
            low.append(least - margin)
            high.append(most + margin)
        return Axes(list(places), numbers, codes, low, high)

    def grid(self, axis: int, count: int) -> Tensor:
        """Places along an axis, `(count,)`."""
        return torch.linspace(self.low[axis], self.high[axis], count, dtype=torch.float64)

    def put(self, axis: int, values: Tensor, x: Tensor, codes: Tensor) -> None:
        """Set a column of rows `x (N, D)`, `codes (N, C)` to numbers that are no atoms."""
        x[:, self.numbers[axis]] = values
        atom = self.codes[axis]
        if atom is not None:
            codes[:, atom[0]] = atom[1]

    def specs(self, model: TableModel, names: Sequence[str], dates: Collection[str]) -> list[dict[str, Any]]:
        """Each axis for the page: its place, ends, and the exact log density along it."""
        out = []
        for axis, place in enumerate(self.places):
            x, codes = unknown(model, _LINE)
            self.put(axis, self.grid(axis, _LINE), x, codes)
            ends = {"low": self.low[axis], "high": self.high[axis], "date": names[place] in dates}
            log_p = packed(model._log_prob(x, codes), "f4")
            out.append({"place": place, "name": names[place], **ends, "count": _LINE, "logP": log_p})
        return out


def unknown(model: TableModel, count: int) -> tuple[Tensor, Tensor]:
    """Rows of which nothing is known, `x (count, D)` and `codes (count, C)`."""
    x = torch.full((count, model._width()), torch.nan, dtype=torch.float64)
    return x, torch.full((count, len(model.columns_.levels)), -1)


def pair_specs(model: TableModel, axes: Axes) -> list[dict[str, Any]]:
    """For each pair i < j the exact log density on a grid, and both conditionals as quantiles.

    `logP` is `(places of j, places of i)`; `given[0]` has the 5, 50 and 95 % quantiles of j at `at` places along i, and
    `given[1]` those of i at places along j, `(3, at)` each.
    """
    bands = _bands(model, axes)
    out = []
    for j in range(len(axes.places)):
        for i in range(j):
            a, b = axes.grid(i, _PLACES), axes.grid(j, _PLACES)
            x, codes = unknown(model, _PLACES * _PLACES)
            axes.put(i, a.repeat(_PLACES), x, codes)
            axes.put(j, b.repeat_interleave(_PLACES), x, codes)
            given = [packed(bands[i][:, :, axes.numbers[j]], "f4"), packed(bands[j][:, :, axes.numbers[i]], "f4")]
            log_p = packed(model._log_prob(x, codes), "f4")
            out.append({"i": i, "j": j, "places": _PLACES, "at": _GIVEN, "logP": log_p, "given": given})
    return out


def _bands(model: TableModel, axes: Axes) -> list[Array]:
    """For each axis the quantiles of all numbers given each place along it, `(3, places, D)`."""
    out = []
    for axis in range(len(axes.places)):
        x, codes = unknown(model, _GIVEN)
        axes.put(axis, axes.grid(axis, _GIVEN), x, codes)
        given = Conditional(model._ensemble, x, codes, model._atoms)
        out.append(given.quantile(torch.tensor(_LEVELS, dtype=torch.float64)).numpy())
    return out


def reason_curves(
    model: TableModel, x: Tensor, codes: Tensor, rows: Sequence[int], axes: Axes
) -> dict[str, Any] | None:
    """The exact log density of each entry given the rest of its row, along its axis, `(rows, axes, places)`.

    Rows of the fit are judged by the models that have not seen them, as in `TableModel.score_held_out`.
    """
    if not rows or not axes.places:
        return None
    at = torch.tensor(rows).repeat_interleave(_LINE)
    folds = model._unseen.folds_of(x[rows], codes[rows])
    every = []
    for axis, number in enumerate(axes.numbers):
        rest, without = x[rows].clone(), codes[rows].clone()
        rest[:, number] = torch.nan
        atom = axes.codes[axis]
        if atom is not None:
            without[:, atom[0]] = -1
        known = model._log_prob(rest, without, folds)
        some, code = x[at].clone(), codes[at].clone()
        axes.put(axis, axes.grid(axis, _LINE).repeat(len(rows)), some, code)
        along = model._log_prob(some, code, folds.repeat_interleave(_LINE)).reshape(len(rows), _LINE)
        every.append(along - known[:, None])
    return {"count": len(rows), "logP": packed(torch.stack(every, 1), "f4")}
