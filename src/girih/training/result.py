"""`FitResult`: what a fit did, by gradients or by EM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from girih._deprecated import renamed_attribute

Ended = Literal["patience", "tol", "max_epochs", "max_steps", "max_iter", "interrupted"]


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """What a fit did: you read from it how training went and why it ended; the model itself was trained in place.

    Attributes:
        history: the recorded arrays by name: `step`, `seconds` of training, the mean `loss` since the record before,
            and what was measured. EM records the penalised exact `nll` of every iteration.
        steps: gradient steps, or iterations of EM, taken in all.
        seconds: training time, without recording, saving and starting up.
        ended: why: "patience" or "tol" where it no longer improved, "max_epochs", "max_steps" or "max_iter" where it
            was as long as was asked for, or "interrupted" by Ctrl-C.
        best_step: the step whose parameters the model was left with.
        held_out: what those gave on the held-out rows, nats per row; `None` without any.
        log_likelihood: mean exact log-likelihood of the training rows, nats per row, without a weight prior; where it
            was computed.
        starts: penalised exact NLL of each random start of EM after its trial iterations.
        overfit: why a fit by EM says little about other rows, where the data cannot carry its parameters.

    Example:
        >>> import numpy as np
        >>> from girih import FitResult
        >>> FitResult({"step": np.arange(3), "nll": np.array([3.0, 2.0, 1.5])}, 2, 0.25, "tol", best_step=2)
        FitResult(1.5 after 2 steps in 0.25 s, ended by tol)
    """

    history: dict[str, np.ndarray]
    steps: int
    seconds: float
    ended: Ended
    best_step: int = 0
    held_out: float | None = None
    log_likelihood: float | None = None
    starts: list[float] = field(default_factory=list)
    overfit: str | None = None

    @property
    def curve(self) -> np.ndarray:
        """What was to fall, at the steps `history["step"]`, nats per row.

        The exact NLL where it was recorded, else the mean training loss since the record before (NaN in the first).
        """
        return self.history["nll" if "nll" in self.history else "loss"]

    @property
    def converged(self) -> bool:
        """Whether it ended because it no longer improved."""
        return self.ended in ("patience", "tol")

    def __repr__(self) -> str:
        """One line: where it came to, how long it took and why it ended."""
        curve = self.curve if "loss" in self.history or "nll" in self.history else np.empty(0)
        value = [f"held out {self.held_out:.5g}"] if self.held_out is not None else [f"{v:.5g}" for v in curve[-1:]]
        took = f"after {self.steps} steps in {self.seconds:.3g} s, ended by {self.ended}"
        return f"FitResult({' '.join([*value, took])})"

    nll_curve = renamed_attribute("nll_curve", "FitResult.curve", lambda result: result.curve)
    n_iter = renamed_attribute("n_iter", "FitResult.steps", lambda result: result.steps)
    interrupted = renamed_attribute("interrupted", "FitResult.ended", lambda result: result.ended == "interrupted")
    nll = renamed_attribute(
        "nll",
        "FitResult.curve at best_step",
        lambda result: float(result.curve[np.searchsorted(result.history["step"], result.best_step)]),
    )
