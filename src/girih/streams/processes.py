"""The processes of one fit: this one alone, or those of `torch.distributed`, which share the blocks of the rows.

Every process runs the same program on its own blocks; they meet where sums over all rows are made. Sums are gathered
and added in the order of the processes, so all have the same bits; what one of them cannot do ends the run of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from girih.errors import GirihError, ProcessError
from girih.streams.sums import Total

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    """What went wrong in another process."""

    rank: int
    kind: type[GirihError]
    words: str


@dataclass(frozen=True)
class Processes:
    """They are the processes of a run.

    Attributes:
        rank: the number of this one, from 0.
        size: how many there are.

    Example:
        >>> from girih.streams import Processes
        >>> Processes.now()
        Processes(rank=0, size=1)
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def now() -> Processes:
        """Those of the default group of `torch.distributed` where one was begun, else this one alone."""
        if dist.is_available() and dist.is_initialized():
            return Processes(dist.get_rank(), dist.get_world_size())
        return Processes()

    @property
    def alone(self) -> bool:
        """Whether there is one only."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and shows progress."""
        return self.rank == 0

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """What the work gives in each process, in their order, in all of them.

        Raises:
            GirihError: as the work raised it, in whichever process.
            ProcessError: a process has ended, or does not answer within the time of the group.
        """
        if self.alone:
            return [work()]
        mine: T | _Failure
        caught: GirihError | None = None
        try:
            mine = work()
        except GirihError as error:
            caught, mine = error, _Failure(self.rank, type(error), str(error))
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, mine)
        except RuntimeError as error:
            raise _ended(error, self) from error
        if caught is not None:
            raise caught
        for one in found:
            if isinstance(one, _Failure):
                raise one.kind(f"process {one.rank} of {self.size} stopped: {one.words}")
        return found

    def total(self, work: Callable[[], Total]) -> Total:
        """The sum of what the work adds up in each process."""
        out = Total()
        for part in self.gathered(work):
            out.join(part)
        return out

    def agreed(self, work: Callable[[], T]) -> T:
        """What the work gives in the first process; the others do not do it.

        Raises:
            GirihError: as the work raised it.
            ProcessError: see `gathered`.
        """
        if self.alone:
            return work()
        return self.gathered(lambda: work() if self.leads else None)[0]  # type: ignore[return-value]


def _ended(error: RuntimeError, processes: Processes) -> ProcessError:
    what = " ".join(str(error).split())[:200]
    return ProcessError(
        f"process {processes.rank} of {processes.size} waited for another one that has ended or does not answer "
        f"({what}); start the same command again: it goes on from its checkpoint, with any number of processes"
    )
