"""Which rows each gradient step sees: a function of the seed and the step alone, so that a run can be resumed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class Batches:
    """Rows for each gradient step: passes over the data in a new random order each, or all rows every time.

    Args:
        count: N, the number of rows.
        size: rows of a batch, `None` for all; the last batch of a pass holds what is left.
        seed: of the orders.

    Example:
        >>> from girih.training import Batches
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
