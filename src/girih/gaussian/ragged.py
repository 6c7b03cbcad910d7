"""Between flat lists, where every item names its owner, and padded tables, one row for each owner."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BUCKETS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)


def slots(owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Number of items of each owner `(count,)`, and the place of every item within its owner; `owner` is sorted."""
    size = torch.bincount(owner, minlength=count)
    start = size.cumsum(0) - size
    return size, torch.arange(len(owner), device=owner.device) - start[owner]


def buckets(size: Tensor, cells: int) -> Iterator[tuple[Tensor, int]]:
    """Groups of owners of similar size: their indices and a width that holds them; at most `cells` cells a group."""
    largest = int(size.max()) if size.numel() else 0
    below = -1
    for width in (*(w for w in _BUCKETS if w < largest), *_doublings(largest)):
        chosen = ((size > below) & (size <= width)).nonzero()[:, 0]
        below = width
        if len(chosen):
            for part in chosen.split(max(1, cells // max(1, width))):
                yield part, width


def _doublings(largest: int) -> list[int]:
    """Widths above the listed ones, up to one that holds `largest`."""
    fitting = [w for w in _BUCKETS if w >= largest]
    if fitting:
        return fitting[:1]
    widths = [2 * _BUCKETS[-1]]
    while widths[-1] < largest:
        widths.append(2 * widths[-1])
    return widths


def gather(chosen: Tensor, width: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Positions `(n, width)` in the flat list of the items of the chosen owners, and which of them are real."""
    start = size.cumsum(0) - size
    place = torch.arange(width, device=size.device)
    real = place < size[chosen][:, None]
    return torch.where(real, start[chosen][:, None] + place, 0), real


def pad(ends: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """A padded table of edges; empty places hold one wholly at infinity, which every form ignores."""
    if not len(ends):
        return ends.new_zeros(*index.shape, ends.shape[-1])
    return torch.where(real[..., None], ends[index], 0.0)
