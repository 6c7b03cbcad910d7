"""`fit_gradient`: train any model by Adam or L-BFGS."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import real
from girih.errors import ParameterError
from girih.training.batches import Batches
from girih.training.logs import LogFormat
from girih.training.optimizers import OptimizerName, make_optimizer
from girih.training.recorder import Measure, Recorder
from girih.training.run import TrainingRun, run_steps
from girih.training.stepper import Loss, LossStepper


def fit_gradient(
    model: nn.Module,
    X: Any,
    *,
    loss: Loss | None = None,
    before_step: Callable[[int], None] | None = None,
    optimizer: OptimizerName = "adam",
    lr: float = 1e-3,
    batch_size: int | None = None,
    max_epochs: int = 1000,
    max_steps: int | None = None,
    patience: int | None = None,
    min_improvement: float = 1e-4,
    monitor: str | None = None,
    keep_best: bool = False,
    seed: int = 0,
    record: Recorder | Measure | None = None,
    record_every: int = 100,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    settings: Mapping[str, Any] | None = None,
    log: str | os.PathLike[str] | None = None,
    log_format: LogFormat = "csv",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    allow_missing: bool = False,
    dtype: torch.dtype = torch.float64,
) -> TrainingRun:
    """Train a model in place by Adam or L-BFGS, until `max_epochs` or until it stops improving.

    The same arguments on the same machine give the same numbers; torch's global random state is left alone. The
    first Ctrl-C ends the run after its current step and returns, with `ended == "interrupted"`; SIGTERM and SIGHUP end
    it there too, and the program after that, with the checkpoint saved (status 143 and 129).

    Args:
        model: any module with trainable parameters. It keeps its mode (training or evaluation) and its device.
        X: `(N, D)` numbers, complete unless `allow_missing`.
        loss: a function from the model and rows `(B, D)` to a scalar, or to a number for each row, to be minimised.
            By default `model.free_energy(rows)`, or its `total` where it is in terms.
        before_step: called with the number of each gradient step, from 0, before it is taken: for a loss that changes
            on the way. A function of that number alone leaves a run that goes on from its checkpoint the same.
        optimizer: "adam", or "lbfgs": with all rows at once, a step is up to ten iterations, each with a line search.
        lr: Adam's step size; for L-BFGS the length of a first trial step, 1 in most cases.
        batch_size: rows of a gradient step; all of them by default, which makes an epoch one step.
        max_epochs: passes over the data at most.
        max_steps: gradient steps at most, instead of `max_epochs`.
        patience: end when this many records in a row bring no improvement; never by default.
        min_improvement: the fall that counts as one, relative to `max(1, |best|)`.
        monitor: the recorded number to watch; by default "nll" where it is recorded, else the mean training "loss".
        keep_best: leave the model at the recorded step where the watched number was lowest, instead of at the last.
        seed: of the order of the rows and of the noise that the loss draws from torch's generator.
        record: what to measure on the way, a `Recorder` (cleared first) or a function from the model to named numbers.
        record_every: gradient steps between records, unless `record` is a `Recorder`, which knows.
        progress: show a bar with the loss on a terminal or in a notebook.
        checkpoint: a file. A run that was killed goes on from it when called again with the same arguments, to the
            same numbers; `max_epochs`, `max_steps` and `patience` may be raised. A finished run is not repeated.
        checkpoint_seconds: time between writes of that file.
        settings: more names and plain values that tell this run from others, for the checkpoint's checks: whatever the
            loss depends on.
        log: a folder that each record is written to, by Lightning's loggers, when it is taken. What an earlier run
            logged there is replaced; a run that goes on from its checkpoint goes on with its log.
        log_format: "csv" for a table, `metrics.csv`, or "tensorboard" (`pip install tensorboard`).
        accelerator: "auto" takes a CUDA GPU if there is one. A small network is faster on the "cpu".
        allow_missing: let NaN entries of X through to the loss, which must know what they mean.
        dtype: that the rows are cast to before the loss sees them.

    Raises:
        ShapeError, EmptyDataError: X is not a table with rows.
        NonFiniteError: X is not finite, or the loss became NaN or infinite: the message names the step, and the
            model keeps the parameters of that step.
        ParameterError: an option is out of its domain, or the checkpoint is of another run.
        ModelFileError: the checkpoint is damaged.

    Example:
        >>> import torch
        >>> from girih.training import fit_gradient
        >>> line = torch.nn.Linear(1, 1, dtype=torch.float64)
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> run = fit_gradient(line, x, loss=lambda net, rows: (net(rows) - 2 * rows) ** 2, lr=0.1, max_epochs=200)
        >>> run.steps, bool((line.weight - 2).abs() < 0.05)
        (200, True)
    """
    lr = real(lr, "lr")
    rows = as_rows(X, "X", None, "the data dimension D", allow_missing=allow_missing).detach()

    def build(batches: Batches) -> LossStepper:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        chosen = make_optimizer(optimizer, parameters, lr, batches.full)
        return LossStepper(model, loss or _free_energy(model), chosen, before_step)

    return run_steps(
        model,
        rows,
        build,
        settings={"optimizer": optimizer, "lr": lr, **(settings or {})},
        batch_size=batch_size,
        max_epochs=max_epochs,
        max_steps=max_steps,
        patience=patience,
        min_improvement=min_improvement,
        monitor=monitor,
        keep_best=keep_best,
        seed=seed,
        record=record,
        record_every=record_every,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        log=log,
        log_format=log_format,
        accelerator=accelerator,
        dtype=dtype,
    )


def _free_energy(model: nn.Module) -> Loss:
    if not callable(getattr(model, "free_energy", None)):
        raise ParameterError(
            f"{type(model).__name__} has no method free_energy; pass loss=, a function of (model, rows)"
        )

    def loss(model: Any, rows: Tensor) -> Tensor:
        value = model.free_energy(rows)
        return getattr(value, "total", value)

    return loss
