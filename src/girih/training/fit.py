"""`fit_gradient`: train any model by Adam or L-BFGS; and the run around every kind of gradient step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from girih._arrays import Rows, as_rows
from girih._progress import Progress
from girih.errors import ParameterError
from girih.training.checkpoint import Checkpoint, digest
from girih.training.generators import evaluating
from girih.training.loop import Loop, interruptible, own_random_state
from girih.training.options import Accelerator, Ended, FitOptions, FitResult, Settled, split
from girih.training.records import Beside, LogFormat, Measure, Patience, Recorder, open_log
from girih.training.steps import Batches, Loss, LossStepper, OptimizerName, Stepper, make_optimizer

# Held-out rows of one forward pass: bounds the memory.
_CHUNK = 10_000


def fit_gradient(
    model: nn.Module,
    X: Rows,
    *,
    loss: Loss | None = None,
    before_step: Callable[[int], None] | None = None,
    optimizer: OptimizerName = "adam",
    allow_missing: bool = False,
    dtype: torch.dtype = torch.float64,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | Literal["auto"] | None = "auto",
    lr: float | None = None,
    validation: Rows | float | Literal["auto"] | None = "auto",
    patience: int | Literal["auto"] | None = "auto",
    min_improvement: float | None = None,
    monitor: str | None = None,
    keep_best: bool | None = None,
    seed: int | None = 0,
    record: Recorder | Measure | None = None,
    record_every: int | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 2.0,
    settings: Mapping[str, Any] | None = None,
    log: str | os.PathLike[str] | None = None,
    log_format: LogFormat = "csv",
    accelerator: Accelerator = "auto",
) -> FitResult:
    """Train a model in place by Adam or L-BFGS, for so many epochs or until it stops improving.

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
        allow_missing: let NaN entries of X through to the loss, which must know what they mean.
        dtype: that the rows are cast to before the loss sees them.
        max_epochs: as all that follow, a field of `girih.FitOptions`, which says what it means; here by default 1000.
        max_steps: gradient steps at most, instead.
        batch_size: by default all rows.
        lr: by default 1e-3, Adam's step size; for L-BFGS the length of a first trial step, 1 in most cases.
        validation: by default none. The number that is watched is the mean loss, in evaluation mode and with the same
            draws every time.
        patience: by default `None`.
        min_improvement: by default 1e-4.
        monitor: what is watched.
        keep_best: leave the model at its best record.
        seed: of rows and draws.
        record: what is measured.
        record_every: by default 100.
        progress: show a bar.
        checkpoint: a file to go on from.
        checkpoint_seconds: time between writes of it.
        settings: what else the loss depends on.
        log: a folder.
        log_format: "csv" or "tensorboard".
        accelerator: "cpu", "gpu" or "auto".

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
        >>> result = fit_gradient(line, x, loss=lambda net, rows: (net(rows) - 2 * rows) ** 2, lr=0.1, max_epochs=200)
        >>> result.steps, bool((line.weight - 2).abs() < 0.05)
        (200, True)
    """
    options = FitOptions.among(locals()).filled()

    def checked(rows: Rows, name: str = "validation", columns: int | None = None) -> Tensor:
        return as_rows(rows, name, columns, "the data dimension D", allow_missing=allow_missing).detach()

    rows = checked(X, "X")
    rows, held_out = split(rows, options.validation, options.seed, lambda given: checked(given, columns=rows.shape[1]))
    chosen = loss or _free_energy(model)
    if held_out is not None:
        options = watching(options, held_out, mean_loss(chosen, dtype))
    return minimise(model, rows, chosen, options, optimizer=optimizer, before_step=before_step, dtype=dtype)


def minimise(
    model: nn.Module,
    rows: Tensor,
    loss: Loss,
    options: Settled,
    *,
    optimizer: OptimizerName = "adam",
    before_step: Callable[[int], None] | None = None,
    dtype: torch.dtype = torch.float64,
) -> FitResult:
    """Do what `fit_gradient` does, for a `fit` that has checked its rows, and held out what it should.

    Args:
        model: trained in place.
        rows: `(N, D)`, checked.
        loss: from the model and some rows to a number for each.
        options: filled.
        optimizer: "adam" or "lbfgs".
        before_step: called with the number of each step.
        dtype: what the rows are cast to.
    """

    def build(batches: Batches) -> LossStepper:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return LossStepper(model, loss, make_optimizer(optimizer, parameters, options.lr, batches.full), before_step)

    return run_steps(model, rows, build, options.told_apart_by({"optimizer": optimizer, "lr": options.lr}), dtype)


def run_steps(
    model: nn.Module,
    rows: Tensor,
    build: Callable[[Batches], Stepper],
    options: Settled,
    dtype: torch.dtype = torch.float64,
) -> FitResult:
    """Train a model in place by the steps that `build` makes of the batches.

    Args:
        model: its trainable parameters are on the device when `build` is called.
        rows: `(N, D)`, checked; nothing is held out any more.
        build: from the batches to what takes the steps.
        options: filled.
        dtype: what the rows are cast to.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ParameterError(f"{type(model).__name__} has no trainable parameters; set requires_grad on some")
    device, home = options.device(parameters), parameters[0].device
    record = options.record
    if not isinstance(record, Recorder):
        record = Recorder(record, options.record_every)
    stopping = Patience(options.patience, options.min_improvement, options.monitor)
    record.begin(stopping if options.keep_best else None)
    batches = Batches(len(rows), options.batch_size, options.seed)
    model.to(device)
    try:
        loop = Loop(model, build(batches), rows.to(device, dtype), batches, record, stopping)
        if options.checkpoint is not None:
            told = {
                **(options.settings or {}),
                "batch_size": options.batch_size,
                "seed": options.seed,
                "record_every": record.every,
                "keep_best": bool(options.keep_best),
                "recorder": type(record).__qualname__,
                "data": digest(rows),
            }
            loop.attach(Checkpoint(options.checkpoint, told, options.checkpoint_seconds))
        end, limit = options.steps(batches.per_pass)
        _run(loop, end, options, device)
    finally:
        if options.keep_best and record.best:
            model.load_state_dict(record.best["model"])
        model.to(home)
        for parameter in parameters:
            parameter.grad = None
    ended: Ended = "interrupted" if loop.interrupted else "patience" if stopping.exhausted else limit
    best = record.best["step"] if options.keep_best and record.best else loop.steps
    held_out = next((entry.get("held_out") for entry in record.entries if entry["step"] == best), None)
    return FitResult(record.history, loop.steps, loop.seconds, ended, best, held_out)


def _run(loop: Loop, end: int, options: Settled, device: torch.device) -> None:
    if loop.steps >= end or loop.patience.exhausted:  # the checkpoint is of a finished run
        loop.record_last()
        return

    def interrupt() -> None:
        loop.interrupted = True

    if options.log is not None:
        loop.log = open_log(options.log, options.log_format, loop.recorder.entries)
    bar = Progress("training", end, loop.steps, options.progress)
    try:
        with own_random_state(options.seed, device), interruptible(interrupt), torch.enable_grad():
            loop.run(end, bar)
    finally:
        bar.close()
        if loop.log is not None:
            loop.log.close()


def watching(
    options: Settled,
    held_out: Tensor,
    mean: Callable[[Any, Tensor], float],
) -> Settled:
    """The options of a run that records the `mean` of held-out rows as `held_out`, watches it and keeps the best.

    Args:
        options: those asked for.
        held_out: rows `(M, D)`.
        mean: from what is trained and the rows, on its device, to a number that should fall.
    """

    def measure(model: nn.Module) -> dict[str, float]:
        return {"held_out": mean(model, held_out.to(next(model.parameters()).device))}

    return replace(
        options.told_apart_by({"held-out rows": digest(held_out)}),
        validation=None,
        record=Beside(options.record, measure, options.record_every),
        monitor=options.monitor or "held_out",
        keep_best=True if options.keep_best is None else options.keep_best,
    )


def mean_loss(loss: Loss, dtype: torch.dtype) -> Callable[[Any, Tensor], float]:
    """The mean loss of rows in evaluation mode, with the same draws every time: what `watching` records.

    Where a loss gives a mean for its batch, the batches are weighted by their numbers of rows.
    """

    def mean(model: nn.Module, rows: Tensor) -> float:
        total = 0.0
        with evaluating(model), own_random_state(0, rows.device):
            for part in rows.to(dtype).split(_CHUNK):
                total += float(loss(model, part).double().mean()) * len(part)
        return total / len(rows)

    return mean


def _free_energy(model: nn.Module) -> Loss:
    free_energy = getattr(model, "free_energy", None)
    if not callable(free_energy):
        raise ParameterError(
            f"{type(model).__name__} has no method free_energy; pass loss=, a function of (model, rows)"
        )

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        value = free_energy(rows)
        result: Tensor = getattr(value, "total", value)
        return result

    return loss
