"""Arrays that grow at the end without being copied each time, and how much memory an enumeration may take."""

from __future__ import annotations

import math
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.errors import ParameterError

Array = NDArray[Any]
_LARGE = 2**18  # bytes
_SHARE = 0.8  # of what is free
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


class Limits:
    """The cells and the memory that an enumeration may take.

    Args:
        max_cells: the largest number of cells.
        memory: in GB; by default most of what is free on this machine when it is first asked for.
    """

    def __init__(self, max_cells: int, memory: float | None = None) -> None:
        self.max_cells, self._memory = max_cells, memory
        if memory is None:
            return
        if isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 < memory < math.inf:
            raise ParameterError(f"memory must be a positive number of GB, got {memory!r}")

    @cached_property
    def bytes(self) -> float:
        """The memory, infinite if it is not known what is free: a line of few cells never asks."""
        return _SHARE * min(_free(), _free_in_group()) if self._memory is None else self._memory * 1e9


def _free() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_PHYS_PAGES" not in names:
            return math.inf
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _free_in_group() -> float:
    """The bytes that a container leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        lines = (group / "memory.stat").read_text().splitlines()
        # what is cached of files is given back at need
        cached = sum(float(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return math.inf if limit == "max" else max(float(limit) - float(used) + cached, 0.0)
    except (OSError, ValueError):
        return math.inf
