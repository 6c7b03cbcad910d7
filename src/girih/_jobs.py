"""Work side by side through joblib, whose backends (loky, dask, ray) spread it over cores or a cluster; and threads.

`joblib.parallel_config` chooses the backend and, where `n_jobs` is `None`, the number of jobs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import joblib
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool
from threadpoolctl import threadpool_limits

from girih.errors import ProcessError

_FRUITLESS = 3  # rounds in a row that end with a dead worker and not one finished task

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads, in torch as in scikit-learn and SciPy.

    On small arrays more than one spend most of their time waiting for each other where the machine has other work too.
    """
    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def alone(entries: int, most: int) -> AbstractContextManager[None]:
    """One thread for arrays with so few entries, up to `most`; else as many as there are."""
    return threads(1) if entries <= most and torch.get_num_threads() > 1 else nullcontext()


def jobs(n_jobs: int | None) -> int:
    """How many tasks are worked at once: -1 for one on each processor, `None` for what the context says, else 1.

    Example:
        >>> from girih._jobs import jobs
        >>> jobs(2), jobs(None)
        (2, 1)
    """
    return int(joblib.effective_n_jobs(n_jobs))


def side_by_side(function: Callable[[T], R], tasks: Sequence[T], n_jobs: int | None) -> Iterator[tuple[int, R]]:
    """The places of tasks and their results, as they are finished; with one job, one after the other in this process.

    A worker that is killed costs what was under way: that is worked again, and what was finished is kept.

    Args:
        function: of the module level, of one task.
        tasks: that can be pickled.
        n_jobs: see `jobs`.

    Raises:
        ProcessError: workers died again and again before any task was finished.
        Exception: as the function raised it.

    Example:
        >>> from girih._jobs import side_by_side
        >>> sorted(side_by_side(abs, [-3, 2], 1))
        [(0, 3), (1, 2)]
    """
    if jobs(n_jobs) == 1:
        yield from ((place, function(task)) for place, task in enumerate(tasks))
        return
    left, fruitless = dict(enumerate(tasks)), 0
    while left:
        before = len(left)
        work = [joblib.delayed(_numbered)(function, place, task) for place, task in left.items()]
        try:
            for place, result in _parallel(n_jobs)(work):
                del left[place]
                yield place, result
        except BrokenProcessPool as error:
            fruitless = 0 if len(left) < before else fruitless + 1
            if fruitless == _FRUITLESS:
                raise ProcessError(
                    f"workers were killed {fruitless} times before a fit was finished ({error}); they may lack memory: "
                    "lower n_jobs"
                ) from error


def _parallel(n_jobs: int | None) -> joblib.Parallel:
    """One that gives results as they are finished, where its backend can."""
    try:
        return joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    except ValueError:
        return joblib.Parallel(n_jobs=n_jobs)


def _numbered(function: Callable[[T], R], place: int, task: T) -> tuple[int, R]:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the other processors have tasks of their own
    return place, function(task)
