"""A uniform sample of a stream in one pass, the same for any number of processes.

Every row has a random number of its own, drawn from the seed, its block and its place there, and the rows with the
smallest ones are the sample. Samples of parts of a stream join to that of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.streams.containers import count, joined, taken


@dataclass(frozen=True)
class Drawn:
    """Rows of a stream, in its order.

    Attributes:
        rows: a table of n rows, as the blocks were.
        block: `(n,)`, the numbers of their blocks.
        place: `(n,)`, their places there.
        key: `(n,)`, their random numbers.
    """

    rows: Any
    block: NDArray[np.intp]
    place: NDArray[np.intp]
    key: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.key)

    def least(self, size: int) -> NDArray[np.bool_]:
        """Which are the so many with the smallest random numbers, `(n,)`: a uniform sample of the sample."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[np.argsort(self.key, kind="stable")[:size]] = True
        return chosen

    def of_block(self, chosen: NDArray[np.bool_]) -> dict[int, NDArray[np.intp]]:
        """The places of chosen rows, by the number of their block."""
        numbers = np.unique(self.block[chosen])
        return {int(number): self.place[chosen & (self.block == number)] for number in numbers}


class Sample:
    """You draw so many rows of a stream with it, adding its blocks one by one.

    Args:
        size: k.
        seed: of the draws.

    Example:
        >>> import numpy as np
        >>> from girih.streams import Sample
        >>> sample = Sample(3, seed=0)
        >>> for number in range(4):
        ...     sample.add(number, np.full((5, 1), float(number)))
        >>> sample.drawn().rows.shape
        (3, 1)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.parts: list[Drawn] = []
        self._bound = np.inf

    def add(self, number: int, block: Any) -> None:
        """Take what belongs to the sample so far of a block."""
        key = np.random.default_rng([self.seed % 2**64, number]).random(count(block))
        place = np.flatnonzero(key <= self._bound)
        if len(place):
            self.parts.append(Drawn(taken(block, place), np.full(len(place), number), place, key[place]))
            if sum(map(len, self.parts)) > 2 * self.size + 1024:
                self._prune()

    def drawn(self, others: Sequence[Sample] = ()) -> Drawn:
        """The sample; with those of other processes, of all that was added to any of them.

        Raises:
            ValueError: nothing was added.
        """
        whole = Sample(self.size, self.seed)
        whole.parts = [part for one in (self, *others) for part in one.parts]
        whole._prune()
        parts = sorted(whole.parts, key=lambda part: int(part.block[0]))
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("block", "place", "key")]
        return Drawn(joined([part.rows for part in parts]), *columns)

    def _prune(self) -> None:
        keys = np.concatenate([part.key for part in self.parts])
        if len(keys) <= self.size:
            return
        self._bound = float(np.partition(keys, self.size - 1)[self.size - 1])
        kept = []
        for part in self.parts:
            index = np.flatnonzero(part.key <= self._bound)
            if len(index):
                kept.append(Drawn(taken(part.rows, index), part.block[index], part.place[index], part.key[index]))
        self.parts = kept
