"""`fit_gradient`: train any model by Adam or L-BFGS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import real, whole
from girih._progress import Progress
from girih.errors import ParameterError
from girih.training import surroundings
from girih.training.batches import Batches
from girih.training.checkpoint import digest
from girih.training.loop import Loop, Loss
from girih.training.optimizers import OptimizerName, make_optimizer
from girih.training.recorder import Measure, Recorder
from girih.training.stopping import Patience


@dataclass(frozen=True)
class TrainingRun:
    """What a training run did.

    Attributes:
        history: the recorded arrays: `step`, `seconds` of training, mean `loss`, and what was measured.
        steps: gradient steps taken in all.
        seconds: training time, without recording, saving and starting up.
        ended: "patience" when it stopped improving, "max_epochs", or "interrupted" by Ctrl-C.
    """

    history: dict[str, np.ndarray]
    steps: int
    seconds: float
    ended: Literal["patience", "max_epochs", "interrupted"]

    @property
    def converged(self) -> bool:
        """Whether the run ended because it no longer improved."""
        return self.ended == "patience"


def fit_gradient(
    model: nn.Module,
    X: Any,
    *,
    loss: Loss | None = None,
    optimizer: OptimizerName = "adam",
    lr: float = 1e-3,
    batch_size: int | None = None,
    max_epochs: int = 1000,
    patience: int | None = None,
    min_improvement: float = 1e-4,
    monitor: str | None = None,
    seed: int = 0,
    record: Recorder | Measure | None = None,
    record_every: int = 100,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    settings: Mapping[str, Any] | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    allow_missing: bool = False,
) -> TrainingRun:
    """Train a model in place by Adam or L-BFGS, until `max_epochs` or until it stops improving.

    The same arguments on the same machine give the same numbers; torch's global random state is left alone. The
    first Ctrl-C ends the run after its current step and returns, with `ended == "interrupted"`.

    Args:
        model: any module with trainable parameters. It keeps its mode (training or evaluation) and its device.
        X: `(N, D)` numbers, complete unless `allow_missing`.
        loss: a function from the model and rows `(B, D)` to a scalar, or to a number for each row, to be minimised.
            By default `model.free_energy(rows)`.
        optimizer: "adam", or "lbfgs": with all rows at once, a step is up to ten iterations, each with a line search.
        lr: Adam's step size; for L-BFGS the length of a first trial step, 1 in most cases.
        batch_size: rows of a gradient step; all of them by default, which makes an epoch one step.
        max_epochs: passes over the data at most.
        patience: end when this many records in a row bring no improvement; never by default.
        min_improvement: the fall that counts as one, relative to `max(1, |best|)`.
        monitor: the recorded number to watch; by default "nll" where it is recorded, else the mean training "loss".
        seed: of the order of the rows and of the noise that the loss draws from torch's generator.
        record: what to measure on the way, a `Recorder` (cleared first) or a function from the model to named numbers.
        record_every: gradient steps between records, unless `record` is a `Recorder`, which knows.
        progress: show a bar with the loss on a terminal or in a notebook.
        checkpoint: a file. A run that was killed goes on from it when called again with the same arguments, to the
            same numbers; `max_epochs` and `patience` may be raised. A finished run is not repeated.
        checkpoint_seconds: time between writes of that file.
        settings: more names and plain values that tell this run from others, for the checkpoint's checks: whatever the
            loss depends on.
        accelerator: "auto" takes a CUDA GPU if there is one. A small network is faster on the "cpu".
        allow_missing: let NaN entries of X through to the loss, which must know what they mean.

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
    lr, seed, max_epochs = real(lr, "lr"), whole(seed, "seed", None), whole(max_epochs, "max_epochs")
    batch_size = None if batch_size is None else whole(batch_size, "batch_size")
    checkpoint_seconds = real(checkpoint_seconds, "checkpoint_seconds", positive=False)
    device = _choose_device(accelerator)
    rows = as_rows(X, "X", None, "the data dimension D", allow_missing=allow_missing).detach()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ParameterError(f"{type(model).__name__} has no trainable parameters; set requires_grad on some")
    if not isinstance(record, Recorder):
        record = Recorder(record, every=record_every)
    record.entries = []
    stopping = Patience(patience, min_improvement, monitor)
    batches = Batches(len(rows), batch_size, seed)
    home = parameters[0].device
    model.to(device)
    try:
        stepper = make_optimizer(optimizer, parameters, lr, batches.full)
        loop = Loop(model, stepper, rows.to(device), batches, loss or _free_energy(model), record, stopping)
        if checkpoint is not None:
            known: dict[str, Any] = {
                "optimizer": optimizer,
                "lr": lr,
                "batch_size": batch_size,
                "seed": seed,
                "record_every": record.every,
            }
            known |= {"recorder": type(record).__qualname__, **(settings or {}), "data": digest(rows)}
            loop.attach(Path(checkpoint), checkpoint_seconds, known)
        _train(loop, max_epochs * batches.per_pass, progress, seed, device)
    finally:
        model.to(home)  # Lightning leaves every model on the CPU
        for parameter in parameters:
            parameter.grad = None
    ended: Literal["patience", "max_epochs", "interrupted"] = "max_epochs"
    if loop.interrupted:
        ended = "interrupted"
    elif stopping.exhausted:
        ended = "patience"
    return TrainingRun(record.history, loop.steps, loop.clock.seconds, ended)


def _train(loop: Loop, end: int, progress: bool, seed: int, device: torch.device) -> None:
    if loop.steps >= end or loop.patience.exhausted:  # the checkpoint is of a finished run
        loop.record_last()
        return
    from girih.training import lightning_loop

    def interrupt() -> None:
        loop.interrupted = True

    bar = Progress("training", end, loop.steps, progress)
    try:
        with (
            surroundings.own_random_state(seed, device),
            surroundings.interruptible(interrupt),
            surroundings.quiet_lightning(),
        ):
            lightning_loop.run(loop, end, bar, device)
    finally:
        bar.close()


def _free_energy(model: nn.Module) -> Loss:
    if not callable(getattr(model, "free_energy", None)):
        raise ParameterError(
            f"{type(model).__name__} has no method free_energy; pass loss=, a function of (model, rows)"
        )

    def loss(model: Any, rows: Tensor) -> Tensor:
        return model.free_energy(rows)

    return loss


def _choose_device(accelerator: str) -> torch.device:
    if accelerator not in ("auto", "cpu", "gpu"):
        raise ParameterError(f"accelerator must be 'auto', 'cpu' or 'gpu'; got {accelerator!r}")
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise ParameterError("accelerator='gpu' asks for a CUDA GPU, but torch finds none; use 'cpu' or 'auto'")
    # not Lightning's own "auto": it would take Apple's GPU, which has no float64
    if available and accelerator != "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
