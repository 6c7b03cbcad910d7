"""Which rows each gradient step sees: a function of the seed and the step alone, so that a run can be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# Gradient steps between two visits of Lightning's loop. Its bookkeeping costs as much as a step of a small
# network, so it is paid once for a block of steps.
BLOCK = 25


class Batches:
    """Rows for each gradient step: passes over the data in a new random order each, or all rows every time.

    Args:
        count: N, the number of rows.
        size: rows of a batch, `None` for all; the last batch of a pass holds what is left.
        seed: of the orders.

    Example:
        >>> from girih.training.batches import Batches
        >>> batches = Batches(5, 2, seed=0)
        >>> batches.per_pass, sorted(torch.cat([batches.index(step) for step in range(3)]).tolist())
        (3, [0, 1, 2, 3, 4])
    """

    def __init__(self, count: int, size: int | None, seed: int) -> None:
        self.count = count
        self.size = count if size is None else min(size, count)
        self.seed = seed
        self.per_pass = math.ceil(count / self.size)
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def full(self) -> bool:
        """Whether every step sees all rows."""
        return self.per_pass == 1

    def index(self, step: int) -> Tensor:
        """The rows of a gradient step."""
        number, position = divmod(step, self.per_pass)
        if number != self._pass:
            # torch reads 32 bits of a seed: hash both numbers into them, or neighbouring runs would share orders
            mixed = int(np.random.SeedSequence([self.seed % 2**64, number]).generate_state(1)[0])
            self._order = torch.randperm(self.count, generator=torch.Generator().manual_seed(mixed))
            self._pass = number
        return self._order[position * self.size : (position + 1) * self.size]


def blocks(start: int, end: int, every: int) -> Iterator[tuple[int, int]]:
    """Ranges of gradient steps from `start` to `end`, cut where a record is due.

    Example:
        >>> from girih.training.batches import blocks
        >>> list(blocks(20, 70, every=40))
        [(20, 40), (40, 65), (65, 70)]
    """
    while start < end:
        stop = min(start + BLOCK, end, (start // every + 1) * every)
        yield start, stop
        start = stop
