"""How many threads compute: one for small tables, which many only slow down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Up to this many entries of the table, the steps of EM are so short that threads mostly wait for each other; beside
# another busy program they wait for its time slices too, which was measured to make a fit 25 times as slow.
_SMALL = 5_000_000


@contextmanager
def compute_threads(entries: int, asked: int | None = None) -> Iterator[None]:
    """Compute with the threads that were asked for; by default with one up to 5 million entries, then with all."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(asked if asked is not None else 1 if entries <= _SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
