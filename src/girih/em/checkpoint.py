"""The state of an EM fit, and the file that a killed fit goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from girih._files import read_tensors, write_tensors
from girih.em.pace import Pace
from girih.em.step import Problem
from girih.errors import ModelFileError

# A checkpoint is written after this many iterations, or after this many seconds, whichever comes first.
_ITERATIONS, _SECONDS = 10, 2.0


@dataclass(frozen=True)
class Settings:
    """What decides how long EM runs and from where."""

    max_iter: int
    tol: float
    n_init: int
    init_iter: int
    seed: int
    acceleration: str = "none"
    batch_size: int | None = None


@dataclass(frozen=True)
class Run:
    """One run of EM: everything that its continuation depends on."""

    parameters: dict[str, Tensor]
    pairs: Tensor  # the memory of the acceleration
    damping: float
    curve: list[float]
    quiet: int = 0  # iterations in a row that gained less than tol
    batch: int = 0  # rows in a batch; 0 once all rows are used together
    pace: Pace = field(default_factory=Pace)
    warmup: int = 0  # iterations without the weight prior that are left; the curve begins after them

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name."""
        return {**{f"parameters.{name}": p for name, p in self.parameters.items()}, "pairs": self.pairs}

    def numbers(self) -> dict[str, Any]:
        """Everything else, for JSON."""
        return {
            "damping": self.damping,
            "curve": self.curve,
            "quiet": self.quiet,
            "batch": self.batch,
            "pace": self.pace.to_json(),
            "warmup": self.warmup,
        }

    @classmethod
    def join(cls, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> Run:
        """A run from its `tensors` and `numbers`."""
        prefix = "parameters."
        parameters = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        # a copy lies in memory as a tensor that was computed does; one in a file buffer may be rounded otherwise
        return cls(parameters, tensors["pairs"].clone(), **{**numbers, "pace": Pace(*numbers["pace"])})


@dataclass
class State:
    """Progress of the whole fit."""

    run: Run
    start: int = 0  # the start under trial; the number of trials once the best is being continued
    best: Run | None = None
    starts: list[float] = field(default_factory=list)


class Checkpoint:
    """A safetensors file with the state of a fit.

    Args:
        path: the file.
        fingerprint: of the data and settings; a file with another one is refused.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self.path, self.fingerprint = Path(path), fingerprint
        self._written = time.monotonic()

    def write_now_and_then(self, state: State) -> None:
        """Write when enough iterations or seconds have passed."""
        if len(state.run.curve) % _ITERATIONS == 0 or time.monotonic() - self._written > _SECONDS:
            self.write(state)

    def write(self, state: State) -> None:
        """Write atomically."""
        runs = {"run": state.run} | ({} if state.best is None else {"best": state.best})
        tensors = {f"{name}.{key}": value for name, run in runs.items() for key, value in run.tensors().items()}
        metadata: dict[str, Any] = {
            "kind": "em-checkpoint",
            "fingerprint": self.fingerprint,
            "start": state.start,
            "starts": state.starts,
            "runs": {name: run.numbers() for name, run in runs.items()},
        }
        write_tensors(self.path, tensors, metadata)
        self._written = time.monotonic()

    def read(self) -> State | None:
        """The state in the file, or `None` when there is no file yet.

        Raises:
            ModelFileError: the file is damaged, not a checkpoint, or belongs to other data or settings.
        """
        if not self.path.exists():
            return None
        tensors, metadata = read_tensors(self.path)
        if metadata.get("kind") != "em-checkpoint":
            raise ModelFileError(f"{self.path} is not an EM checkpoint; choose another file")
        if metadata["fingerprint"] != self.fingerprint:
            raise ModelFileError(
                f"the checkpoint {self.path} belongs to other data or settings; delete it or choose another file"
            )
        runs = {
            name: Run.join(
                {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}, numbers
            )
            for name, numbers in metadata["runs"].items()
        }
        return State(runs["run"], metadata["start"], runs.get("best"), metadata["starts"])


def fingerprint(problem: Problem, x: Tensor, settings: Settings, updates: tuple[str, ...]) -> str:
    """A digest of everything that the numbers of a fit to the rows x depend on."""
    shapes = [list(p.shape) for p in problem.dgn.parameters()]
    text = json.dumps([astuple(settings), updates, str(problem.prior), problem.noise_floor.tolist(), shapes])
    digest = hashlib.sha256(text.encode())
    for tensor in (x, problem.weight):
        digest.update(tensor.cpu().contiguous().numpy())  # type: ignore[arg-type]
    return digest.hexdigest()
