"""Many independent runs of an experiment: in parallel processes, and none of them is done twice."""

from __future__ import annotations

import hashlib
import inspect
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import joblib
import numpy as np
import torch
from torch import nn

from girih.errors import ModelFileError
from girih.training import Progress
from girih_papers.arrays import Array
from girih_papers.files import kept_in, whole_file

Result = dict[str, np.ndarray]
Job = Callable[..., Mapping[str, Any]]
Network = TypeVar("Network", bound=nn.Module)

_WEIGHTS = "weights."
_MOST_WORKERS = 4


def run_jobs(
    function: Job, jobs: Sequence[Mapping[str, Any]], folder: Path, description: str, quick: bool, progress: bool
) -> list[Result]:
    """Call `function(**job)` for every job and return the results in the order of the jobs.

    Each result is written when it is there, under `folder / "runs"`, and read from there if the same job is asked for
    again, so that a run that was stopped goes on where it was. A function with a parameter `checkpoint` gets a path
    of its own, for `fit_gradient`; the file is removed when the job is done.

    Args:
        function: of a module, so that other processes find it; returns numbers and arrays by name.
        jobs: keyword arguments: plain values, arrays, and dataclasses of them.
        folder: of the results.
        description: for the progress bar.
        quick: everything in this process.
        progress: show a bar, which counts jobs.

    Raises:
        ModelFileError: a result in the folder is damaged.
    """
    runs = kept_in(folder) / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    paths = [runs / f"{function.__name__.strip('_')}-{_key(function, job)}.npz" for job in jobs]
    results: dict[int, Result] = {i: _load(path) for i, path in enumerate(paths) if path.exists()}
    missing = [i for i in range(len(jobs)) if i not in results]
    bar = Progress(description, len(jobs), len(results), progress)
    try:
        with joblib.parallel_config("loky", inner_max_num_threads=1):
            parallel = joblib.Parallel(
                n_jobs=workers_for(quick), return_as="generator_unordered", max_nbytes=None, batch_size=1
            )
            for i in parallel(joblib.delayed(_finish)(function, jobs[i], paths[i], i) for i in missing):
                results[i] = _load(paths[i])
                bar.show(len(results), "")
    finally:
        bar.close()
    return [results[i] for i in range(len(jobs))]


def workers_for(quick: bool) -> int:
    """One process for each CPU, at most four; a quick run needs no other process."""
    return 1 if quick else max(1, min(_MOST_WORKERS, joblib.cpu_count()))


class Ended(Protocol):
    """A run of training, of whatever kind, that knows why it ended."""

    @property
    def ended(self) -> str:
        """Why it ended; "interrupted" where Ctrl-C did it."""


Run = TypeVar("Run", bound=Ended)


def completed(run: Run) -> Run:
    """A run of training that was not cut short: what is half trained must not be kept as a result.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it, which training takes as a wish for what there is so far.
    """
    if run.ended == "interrupted":
        raise KeyboardInterrupt
    return run


def weights_of(net: nn.Module) -> dict[str, Array]:
    """The parameters of a network as arrays by name, in their own type."""
    return {f"{_WEIGHTS}{name}": value.detach().cpu().numpy().copy() for name, value in net.state_dict().items()}


def with_weights(net: Network, result: Mapping[str, Any]) -> Network:
    """The network with parameters that `weights_of` gave; in eval mode."""
    state = {
        name.removeprefix(_WEIGHTS): torch.as_tensor(value)
        for name, value in result.items()
        if name.startswith(_WEIGHTS)
    }
    net.load_state_dict(state)
    net.eval()
    return net


def _finish(function: Job, job: Mapping[str, Any], path: Path, index: int) -> int:
    """Carry out a job and write its result."""
    checkpoint = path.with_suffix(".checkpoint")
    extra = {"checkpoint": checkpoint} if "checkpoint" in inspect.signature(function).parameters else {}
    result = {name: np.asarray(value) for name, value in function(**job, **extra).items()}
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **result)
    checkpoint.unlink(missing_ok=True)
    return index


def _load(path: Path) -> Result:
    try:
        # opened here: numpy leaves a file open that it cannot read
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path} is damaged ({error}); delete it to have this run made again") from None


def _key(function: Job, job: Mapping[str, Any]) -> str:
    """Tells jobs apart: by the function and all arguments."""
    text = json.dumps([function.__module__, function.__name__, dict(job)], sort_keys=True, default=_told)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(value: Any) -> Any:
    """A dataclass as its fields, and an array by its digest, for the key of a job."""
    if isinstance(value, np.ndarray):
        return [list(value.shape), str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()]
    return {part.name: getattr(value, part.name) for part in fields(value)}
