"""What one pass over a stream of rows says of it: how many there are, a sample of them, and every label.

The schema of the columns is learned from the sample, so labels that only rows outside of it have would be unknown
later. The first row that shows a label is a *witness* and belongs to what the schema is learned from; so are the first
rows with three different values of a column of numbers, which tell it from a name of two groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.errors import EmptyDataError, GirihError
from girih.streams import Blocks, Drawn, Processes, Sample, count, joined, taken
from girih.tables.columns import Columns
from girih.tables.frames import Name, Raw, table

_LABELS, _NUMBERS = 1000, 3  # different entries of a column, text or numbers, that have a witness at most


@dataclass(frozen=True)
class Survey:
    """A survey is what the first pass finds.

    Attributes:
        drawn: a uniform sample.
        columns: the schema.
        rows: N.
    """

    drawn: Drawn
    columns: Columns
    rows: int

    @staticmethod
    def of(blocks: Blocks, kinds: Mapping[Name, str] | None, size: int, seed: int, processes: Processes) -> Survey:
        """Pass all rows.

        Raises:
            ShapeError, NotNumericError, NonFiniteError, ParameterError: as `Columns.learn`.
            EmptyDataError: there are no rows.
        """

        def work() -> tuple[Sample, Sequence[Drawn], int]:
            sample, witnesses, rows = Sample(size, seed), Witnesses(), 0
            for number, block in blocks.read(processes.rank, processes.size):
                try:
                    witnesses.add(number, block)
                except GirihError as error:
                    raise type(error)(f"block {number} of X: {error}") from None
                sample.add(number, block)
                rows += count(block)
            return sample, witnesses.found, rows

        samples, found, rows = zip(*processes.gathered(work), strict=True)
        if not sum(rows):
            raise EmptyDataError("X has no rows; pass a stream with at least one block of them")
        drawn = samples[0].drawn(samples[1:])
        witnesses = Witnesses()
        for one in sorted((one for part in found for one in part), key=lambda one: int(one.block[0])):
            witnesses.add(int(one.block[0]), one.rows)
        learned = Columns.learn(joined([drawn.rows, *(one.rows for one in witnesses.found)]), kinds)
        return Survey(drawn, learned, sum(rows))


class Witnesses:
    """They are the first rows that show an entry, block after block.

    Example:
        >>> import numpy as np
        >>> from girih.tables.survey import Witnesses
        >>> witnesses = Witnesses()
        >>> witnesses.add(0, np.array([["a"], ["a"], ["b"], ["a"]], dtype=object))
        >>> witnesses.found[0].place.tolist()
        [0, 2]
    """

    def __init__(self) -> None:
        self.found: list[Drawn] = []
        self._known: list[set[object]] = []

    def add(self, number: int, block: Any) -> None:
        """Look at a block."""
        columns = table(block).columns
        self._known = self._known or [set() for _ in columns]
        places: set[int] = set()
        for known, raw in zip(self._known, columns, strict=True):
            places |= _of_labels(known, raw) if isinstance(raw.values, list) else _of_numbers(known, raw.values)
        if places:
            place = np.array(sorted(places))
            self.found.append(Drawn(taken(block, place), np.full(len(place), number), place, np.zeros(len(place))))


def _of_labels(known: set[object], raw: Raw) -> set[int]:
    """The first rows with labels that are not known, which are known then."""
    if raw.levels is not None or len(known) >= _LABELS or not set(raw.labels()) - known - {None}:
        return set()
    places = set()
    for place, label in enumerate(raw.labels()):
        if label is not None and label not in known and len(known) < _LABELS:
            known.add(label)
            places.add(place)
    return places


def _of_numbers(known: set[object], values: NDArray[np.float64]) -> set[int]:
    places: set[int] = set()
    while len(known) < _NUMBERS:
        new = np.flatnonzero(~np.isnan(values) & ~np.isin(values, np.array(list(known), dtype=np.float64)))
        if not len(new):
            break
        known.add(float(values[new[0]]))
        places.add(int(new[0]))
    return places
