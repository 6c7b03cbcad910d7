"""Arrays that grow at the end without being copied each time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Growing:
    """A NumPy array with spare room for more rows; `data` is a view of the rows in use."""

    def __init__(self, rows: Array) -> None:
        self._store = np.array(rows)
        self.length = len(rows)

    @property
    def data(self) -> Array:
        """The rows in use, writable."""
        return self._store[: self.length]

    def __len__(self) -> int:
        return self.length

    def append(self, rows: Array) -> None:
        """Add rows at the end."""
        self.extend(len(rows))[...] = rows

    def extend(self, count: int) -> Array:
        """Add uninitialised rows at the end and return them."""
        start, self.length = self.length, self.length + count
        if self.length > len(self._store):
            room = np.empty((max(self.length, 2 * len(self._store) + 16), *self._store.shape[1:]), self._store.dtype)
            room[:start] = self._store[:start]
            self._store = room
        return self._store[start : self.length]


def ragged(start: Array, length: Array) -> tuple[Array, Array]:
    """Positions of all entries of the segments `start[i] : start[i] + length[i]`, and the segment of each entry."""
    owner = np.repeat(np.arange(len(start)), length)
    first = np.cumsum(length) - length
    return np.arange(len(owner)) + (start - first)[owner], owner
