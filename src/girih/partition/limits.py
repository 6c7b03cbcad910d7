"""How many cells a partition may have, and how much memory it may take."""

from __future__ import annotations

import math
import os
from pathlib import Path

from girih.errors import ParameterError

_SHARE = 0.8  # of what is free


class Limits:
    """What an enumeration may take.

    Args:
        max_cells: the largest number of cells.
        memory: in GB; by default most of what is free on this machine.

    Attributes:
        bytes: the memory, infinite if it is not known what is free.
    """

    def __init__(self, max_cells: int, memory: float | None = None) -> None:
        self.max_cells = max_cells
        if memory is None:
            self.bytes = _SHARE * min(_free(), _free_in_group())
        elif isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 < memory < math.inf:
            raise ParameterError(f"memory must be a positive number of GB, got {memory!r}")
        else:
            self.bytes = memory * 1e9


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
    """What a container leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        lines = (group / "memory.stat").read_text().splitlines()
        # what is cached of files is given back at need
        cached = sum(float(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return math.inf if limit == "max" else max(float(limit) - float(used) + cached, 0.0)
    except (OSError, ValueError):
        return math.inf
