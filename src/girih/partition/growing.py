"""Arrays that grow at the end without being copied each time."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_LARGE = 2**18  # bytes
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Growing:
    """A NumPy array with spare room for more rows; `data` is a view of the rows in use."""

    def __init__(self, rows: Array) -> None:
        self._store = _room(rows.shape, rows.dtype)
        self._store[...] = rows
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
            room = _room((max(self.length, 2 * len(self._store) + 16), *self._store.shape[1:]), self._store.dtype)
            room[:start] = self._store[:start]
            self._store = room
        return self._store[start : self.length]


def _room(shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    """An uninitialised array. A large one has pages of its own: unused ones cost nothing, and all are given back."""
    size = math.prod(shape) * kind.itemsize
    if size < _LARGE:
        return np.empty(shape, kind)
    return np.frombuffer(mmap.mmap(-1, size, **_PRIVATE), kind).reshape(shape)


def ragged(start: Array, length: Array) -> tuple[Array, Array]:
    """Positions of all entries of the segments `start[i] : start[i] + length[i]`, and the segment of each entry."""
    owner = np.repeat(np.arange(len(start)), length)
    first = np.cumsum(length) - length
    return np.arange(len(owner)) + (start - first)[owner], owner
