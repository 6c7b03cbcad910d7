r"""Bounds on `p(x)` by boxes of latents: a cube of them, cut ever finer.

It is cut about a mode of the posterior, in coordinates along which that is nearly independent. Each box adds between
its lower and its upper bound (`boxes`); what lies outside all of them holds less than its prior mass at the highest
density there can be. The boxes with the largest gaps are halved, again and again: the sums of the bounds are certified
at every moment, and the best of them so far are kept.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from girih.bounds.boxes import Target, log_outside
from girih.sampling.modes import Modes
from girih.sampling.row import Row

_BATCH = 512  # boxes that are halved at once
_MOST = 2**20  # boxes of a row
_WORTH = 5.0  # nats: boxes whose gaps are this far below the largest one wait
_SHELLS = 64.0, 32.0, 16.0, 8.0, 5.0, 3.0, 2.0, 1.0, 0.5  # deviations of the posterior
_BEYOND = 40.0  # nats below the mode that is left to what is outside all boxes


class Cube:
    """The boxes of a row, and the best bounds so far, less what the row has in common."""

    def __init__(self, row: Row, modes: Modes) -> None:
        S, K = len(row.factor), len(row.y)
        mode, slope = modes.place[0], modes.slope[0]
        left, size, right = torch.linalg.svd(slope, full_matrices=True)
        size = torch.nn.functional.pad(size, (0, S - len(size)))
        padding = (0, 0, 0, max(0, S - K))  # coordinates without outputs, so that each side has one
        head = torch.nn.functional.pad(left.mT @ row.head, padding)
        y = torch.nn.functional.pad(left.mT @ row.y, padding[2:])
        self._target = Target(row.trace, row.factor @ right.mT, head, y)
        self._centre, self._deviation = right @ mode, (1.0 + size.square()).rsqrt()
        level = float(modes.energy[0]) - float(self._deviation.log().sum())
        radius = math.sqrt(2.0 * (level + _BEYOND))
        radius = max(radius, float(self._centre.abs().max()) + 1.0, 8.0)
        self._outside = log_outside(radius, S)
        self.boxes = self._target.bound(*self._shells(radius))
        self.lower, self.upper = -math.inf, math.inf
        self._sum()

    def _shells(self, radius: float) -> tuple[Tensor, Tensor]:
        """The cube, cut into shells about the mode, of which the innermost is a box."""
        low, high = torch.full_like(self._centre, -radius), torch.full_like(self._centre, radius)
        lows, highs = [], []
        for shell, j, side in product(_SHELLS, range(len(low)), (-1.0, 1.0)):
            cut = self._centre[j] + side * shell * self._deviation[j]
            if bool((low[j] < cut) & (cut < high[j])):
                lows.append(low.clone())
                highs.append(high.clone())
                outer, inner = (highs[-1], low) if side < 0.0 else (lows[-1], high)
                outer[j] = inner[j] = cut
        return torch.stack((*lows, low)), torch.stack((*highs, high))

    @property
    def gap(self) -> float:
        """Between the bounds, nats."""
        return self.upper - self.lower

    @property
    def can_go_on(self) -> bool:
        """Whether there is room for more boxes."""
        return len(self.boxes.lower) + _BATCH <= _MOST

    def _sum(self) -> None:
        lower = float(torch.logsumexp(self.boxes.lower, 0))
        upper = float(torch.logaddexp(torch.logsumexp(self.boxes.upper, 0), torch.tensor(self._outside).double()))
        self.lower, self.upper = max(self.lower, lower - 1e-12), min(self.upper, upper + 1e-12, 0.0)

    def halve(self) -> None:
        """Halve the boxes with the largest gaps, and those that seem to lack most below, which are not the same."""
        boxes = self.boxes
        gap = _less(boxes.upper, boxes.lower)
        lacks = _less(torch.minimum(boxes.about, boxes.upper), boxes.lower)
        chosen = torch.cat([_largest(gap), _largest(lacks)]).unique()
        some, each = boxes.take(chosen), torch.arange(len(chosen))
        low, high = torch.cat((some.low, some.low)), torch.cat((some.high, some.high))
        middle = 0.5 * (some.low + some.high)[each, some.side]
        high[each, some.side], low[each + len(each), some.side] = middle, middle
        kept = torch.ones(len(boxes.lower), dtype=torch.bool)
        kept[chosen] = False
        self.boxes = boxes.take(kept).joined(self._target.bound(low, high))
        self._sum()


def _less(a: Tensor, b: Tensor) -> Tensor:
    """`log(exp(a) - exp(b))`; -inf where that is not positive."""
    value = a + torch.log1p(-(b - a).exp().clamp(max=1.0))
    return value.nan_to_num(-math.inf, math.inf, -math.inf)  # a box without width holds nothing


def _largest(values: Tensor) -> Tensor:
    """Places of the largest values, half a batch, but for those far below the first."""
    found = values.topk(min(_BATCH // 2, len(values)))
    return found.indices[found.values > found.values[0] - _WORTH]
