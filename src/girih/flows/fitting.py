"""`fit_flow`: maximum likelihood for a flow, conditional or not, through the trainer of all models."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import ShapeError
from girih.flows.scaling import Standardise, check_varying
from girih.training import Recorder, TrainingRun, fit_gradient
from girih.training.checkpoint import digest
from girih.training.held_out import split
from girih.training.recorder import Measure

if TYPE_CHECKING:
    from girih.flows.flow import Flow

# Rows per evaluation of held-out data: bounds the memory.
_CHUNK = 20_000


@dataclass(frozen=True)
class FlowRun(TrainingRun):
    """What `fit_flow` did; see `TrainingRun` for `history`, `steps`, `seconds`, `ended` and `converged`.

    Attributes:
        best_step: the step whose parameters were kept.
        held_out: their mean `-log p(x)` on the held-out rows, nats per row, or `None`.
    """

    best_step: int
    held_out: float | None


def fit_flow(
    flow: Flow,
    X: Any,
    context: Any = None,
    *,
    lr: float = 1e-3,
    batch_size: int | None = 500,
    steps: int = 50_000,
    validation: Any = 0.1,
    patience: int | None = 20,
    min_improvement: float = 1e-4,
    standardise: bool = True,
    seed: int = 0,
    record_every: int = 500,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    log: str | os.PathLike[str] | None = None,
    log_format: Literal["csv", "tensorboard"] = "csv",
    accelerator: Literal["auto", "cpu", "gpu"] = "cpu",
) -> FlowRun:
    """Train a flow in place by Adam on its exact likelihood.

    With held-out rows the flow is left with the parameters of the record where their NLL was lowest, else with
    those of the last step.

    Args:
        flow: the model; a `Standardise` layer at its start is set from the training rows.
        X: `(N, D)`, complete.
        context: `(N, C)` where the flow was built for one.
        lr: Adam's step size.
        batch_size: rows of a gradient step; `None` for all.
        steps: gradient steps, rounded up to whole passes over the data.
        validation: the share of the rows that is held out, drawn with `seed`; or held-out rows themselves, `(M, D)`,
            with context `(M, D + C)`; or `None`.
        patience: end when this many records in a row bring no improvement of the held-out NLL; `None` never does.
        min_improvement: the fall that counts as one, relative to `max(1, |best|)`.
        standardise: whether to set the `Standardise` layer; if not, it stays as it is.
        seed: of the held-out rows and of the order of the others.
        record_every: gradient steps between records of the held-out NLL.
        progress: show a bar.
        checkpoint: a file. A run that was killed goes on from it when called again with the same arguments and
            the same initial parameters, to the same numbers.
        checkpoint_seconds: time between writes of that file.
        log: a folder that each record is written to.
        log_format: "csv" or "tensorboard".
        accelerator: "cpu", "gpu" (CUDA) or "auto".

    Raises:
        ShapeError, EmptyDataError: X or the context does not fit the flow, or has no rows.
        NonFiniteError: X is not finite; or the loss or a parameter left the range of numbers: the message names it.
        ParameterError: a column of X is constant, an option is out of its domain, or the checkpoint is of another run.
        ModelFileError: the checkpoint is damaged.

    Source:
        RAD, section 3.2: Adam, batches of 500, 50,000 steps.

    Example:
        >>> import girih
        >>> from girih.flows import RealNVP, fit_flow
        >>> flow, X = RealNVP(2, hidden_features=(8,), seed=0), girih.datasets.load("moons", n=300).X
        >>> run = fit_flow(flow, X, steps=60, lr=0.01, record_every=20, progress=False)
        >>> bool(run.held_out < run.history["held_out"][0]), run.ended
        (True, 'max_epochs')
    """
    rows = _rows(flow, X, context)
    columns = flow.features + flow.context

    def checked(given: Any) -> Tensor:
        return as_rows(given, "validation", columns, "the number of features and context features").detach()

    rows, held_out = split(rows, validation, whole(seed, "seed", None), checked)
    check_varying(rows[:, : flow.features])
    size = len(rows) if batch_size is None else min(whole(batch_size, "batch_size"), len(rows))
    epochs = math.ceil(whole(steps, "steps") / math.ceil(len(rows) / size))
    first = next(iter(flow.transforms))
    if standardise and isinstance(first, Standardise):
        first.set_from(rows[:, : flow.features])
    recorder = Recorder(None if held_out is None else held_out_nll(held_out), record_every)
    run = fit_gradient(
        flow,
        rows,
        loss=lambda model, batch: model.nll(batch),
        lr=lr,
        batch_size=size,
        max_epochs=epochs,
        patience=patience if held_out is not None else None,
        min_improvement=min_improvement,
        monitor="loss" if held_out is None else "held_out",
        keep_best=held_out is not None,
        seed=seed,
        record=recorder,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        settings={"validation": None if held_out is None else digest(held_out)},
        log=log,
        log_format=log_format,
        accelerator=accelerator,
    )
    if held_out is None:
        return FlowRun(run.history, run.steps, run.seconds, run.ended, run.steps, None)
    best = recorder.best
    return FlowRun(run.history, run.steps, run.seconds, run.ended, int(best["step"]), float(best["value"]))


def held_out_nll(held_out: Tensor) -> Measure:
    """What is recorded on the way: the mean NLL of the held-out rows, nats per row."""

    def measure(model: Any) -> dict[str, float]:
        rows = held_out.to(next(model.parameters()).device)
        return {"held_out": float(torch.cat([model.nll(part) for part in rows.split(_CHUNK)]).mean())}

    return measure


def _rows(flow: Flow, X: Any, context: Any) -> Tensor:
    """Features and context side by side, checked."""
    rows = as_rows(X, "X", flow.features, "the number of features").detach()
    if not flow.context:
        if context is not None:
            raise ShapeError("context was passed to a flow that was built without one; build it with context=C")
        return rows
    if context is None:
        raise ShapeError(f"the flow was built with context={flow.context}; pass context, one row for each row of X")
    given = as_rows(context, "context", flow.context, "the number of context features", device=rows.device).detach()
    if len(given) != len(rows):
        raise ShapeError(f"context has {len(given)} rows and X has {len(rows)}; pass one row of context for each of X")
    return torch.cat((rows, given), 1)
