"""The state of an EM fit: everything that its continuation depends on, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from torch import Tensor

from girih.em.options import EMOptions
from girih.em.pace import Pace
from girih.em.step import Problem
from girih.training import digest


@dataclass(frozen=True)
class Run:
    """One run of EM."""

    parameters: dict[str, Tensor]
    pairs: Tensor  # the memory of the acceleration
    damping: float
    curve: list[float]
    quiet: int = 0  # iterations in a row that gained less than tol
    batch: int = 0  # rows in a batch; 0 once all rows are used together
    pace: Pace = field(default_factory=Pace)
    warmup: int = 0  # iterations without the weight prior that are left; the curve begins after them

    def contents(self) -> dict[str, Any]:
        """The run as tensors and plain values."""
        return {**vars(self), "pace": astuple(self.pace)}

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> Run:
        """The run of such contents."""
        return cls(**{**contents, "pace": Pace(*contents["pace"])})


@dataclass
class State:
    """Progress of the whole fit."""

    run: Run
    start: int = 0  # the start under trial; the number of trials once the best is being continued
    best: Run | None = None
    starts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def contents(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {**vars(self), "run": self.run.contents(), "best": None if self.best is None else self.best.contents()}

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> State:
        """The state of such contents."""
        best = contents["best"]
        return cls(**{**contents, "run": Run.of(contents["run"]), "best": None if best is None else Run.of(best)})


def told_apart_by(problem: Problem, x: Tensor, options: EMOptions) -> dict[str, Any]:
    """Everything that the numbers of a fit to the rows x depend on, by name."""
    return {
        **options.plain(),
        "the shapes of the parameters": [list(p.shape) for p in problem.dgn.parameters()],
        "the bounds on the noise": problem.noise_floor.tolist(),
        "data": digest(x),
        "sample_weight": digest(problem.weight),
    }
