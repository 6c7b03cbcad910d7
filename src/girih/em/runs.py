"""Where a fit by EM stands, as it is saved: the run under way, the trials that are done, and rows held out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from girih.em.quasi_newton import Pace
from girih.em.scaling import Scaling
from girih.inference import Model, evidence
from girih.inference.output_model import OutputModel


@dataclass(frozen=True)
class Run:
    """A run is where EM stands after an iteration: parameters, NLL curve, and what decides the next one."""

    parameters: dict[str, Tensor]
    pairs: Tensor  # the memory of the acceleration
    damping: float
    curve: list[float]
    quiet: int = 0  # iterations in a row that gained less than tol
    batch: int = 0  # rows in a batch; 0 once all rows are used together
    pace: Pace = field(default_factory=Pace)
    warmup: int = 0  # iterations without the weight prior that are left; the curve begins after them
    held_out: list[float] = field(default_factory=list)  # NLL of the held-out rows, as long as the curve
    best: dict[str, Tensor] = field(default_factory=dict)  # those where it is lowest, or a curve that may rise

    @property
    def best_step(self) -> int:
        """The iteration whose parameters are kept: the last, or the best on the held-out rows or of a rising curve."""
        return int(np.argmin(self.held_out or self.curve)) if self.held_out or self.best else len(self.curve) - 1

    @property
    def score(self) -> float:
        """What runs are compared by: the lowest NLL on the held-out rows, or of the curve, whose last it is."""
        return min(self.held_out or self.curve)

    def idle(self, tol: float) -> int:
        """Iterations in a row that have gained less than tol on the held-out rows."""
        since, best = 0, math.inf
        for value in self.held_out:
            since, best = (0, value) if value < best - tol else (since + 1, best)
        return since

    def contents(self) -> dict[str, Any]:
        """The run as tensors and plain values."""
        return {**vars(self), "pace": astuple(self.pace)}

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> Run:
        """The run of such contents."""
        return cls(**{**contents, "pace": Pace(*contents["pace"])})


@dataclass
class State:
    """The state says how far the whole fit has come: the trials done, the best of them, and the run under way."""

    run: Run
    start: int = 0  # the start under trial, then the finalist; the number of both once the best is being continued
    finalists: dict[str, Run] = field(default_factory=dict)  # the best of each kind of start
    starts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> Run | None:
        """The best of the trials that are done."""
        return min(self.finalists.values(), key=lambda run: run.score, default=None)

    def contents(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        finalists = {kind: run.contents() for kind, run in self.finalists.items()}
        return {**vars(self), "run": self.run.contents(), "finalists": finalists}

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> State:
        """The state of such contents."""
        finalists = {kind: Run.of(run) for kind, run in contents["finalists"].items()}
        return cls(**{**contents, "run": Run.of(contents["run"]), "finalists": finalists})


@dataclass(frozen=True)
class HeldOut:
    """These are rows that are held out, in the units that EM works in.

    Attributes:
        x: `(M, D)`.
        weight: `(M,)`.
        shift: their NLL is larger by this in the units of the data, nats per row.
    """

    x: Tensor
    weight: Tensor
    shift: float

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, scaling: Scaling) -> HeldOut:
        """Rows in the units of the data, in those of a scaling."""
        return cls(scaling.apply(x), weight, float(weight @ scaling.log_jacobian(x) / weight.sum()))

    def nll(self, model: Model | OutputModel) -> float:
        """Mean exact NLL, without penalties, nats per row; infinite where it is no number."""
        log_p = evidence(model, self.x).log_prob if isinstance(model, Model) else model.log_prob(self.x)
        nll = -float(self.weight @ log_p / self.weight.sum())
        return math.inf if math.isnan(nll) else nll
