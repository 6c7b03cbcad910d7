r"""Sums that come out the same however they are divided among blocks, processes and machines.

Floating-point sums depend on their order: a fit of 10^9 rows in blocks would drift, and one by three processes end with
other digits than one by two. Here a sum is a pair of numbers, `high + low`, and what an addition rounds off goes into
`low` (Knuth's two-sum), so that its relative error is about 1e-32 times the number of blocks, and rounding it to a
double gives the same bits for every order but for one sum in 10^15 or so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Total:
    """You add up tensors of fixed shapes with it, block by block.

    Example:
        >>> import torch
        >>> from girih.streams.sums import Total
        >>> total = Total()
        >>> for value in (1e16, 1.0, -1e16):
        ...     total.add([torch.tensor([value], dtype=torch.float64)])
        >>> total.values[0].tolist()
        [1.0]
    """

    def __init__(self) -> None:
        self.high: list[Tensor] = []
        self.low: list[Tensor] = []

    def add(self, parts: Sequence[Tensor]) -> None:
        """Add tensors to those of before."""
        if not self.high:
            self.high = [part.detach().clone() for part in parts]
            self.low = [torch.zeros_like(part) for part in self.high]
            return
        for k, part in enumerate(parts):
            before = self.high[k]
            total = before + part
            added = total - before
            self.low[k] = self.low[k] + ((before - (total - added)) + (part - added))
            self.high[k] = total

    def join(self, other: Total) -> None:
        """Add the sums of another process."""
        if not other.high:
            return
        if not self.high:
            self.high, self.low = list(other.high), list(other.low)
            return
        low = self.low
        self.low = [torch.zeros_like(part) for part in low]
        self.add(other.high)
        self.low = [mine + (before + theirs) for mine, before, theirs in zip(self.low, low, other.low, strict=True)]

    @property
    def values(self) -> list[Tensor]:
        """The sums; empty before anything was added."""
        return [torch.where(high.isfinite(), high + low, high) for high, low in zip(self.high, self.low, strict=True)]
