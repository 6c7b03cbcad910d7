"""`run_steps`: the run around any kind of gradient step, common to everything that is trained by gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from girih._options import real, whole
from girih._progress import Progress
from girih.errors import ParameterError
from girih.training import surroundings
from girih.training.batches import Batches
from girih.training.checkpoint import digest
from girih.training.logs import LogFormat, RunLog
from girih.training.loop import Loop
from girih.training.recorder import Measure, Recorder
from girih.training.stepper import Stepper
from girih.training.stopping import Patience


@dataclass(frozen=True)
class TrainingRun:
    """What a training run did.

    Attributes:
        history: the recorded arrays: `step`, `seconds` of training, mean `loss`, and what was measured.
        steps: gradient steps taken in all.
        seconds: training time, without recording, saving and starting up.
        ended: "patience" when it stopped improving, "max_epochs" or "max_steps", or "interrupted" by Ctrl-C.
    """

    history: dict[str, np.ndarray]
    steps: int
    seconds: float
    ended: Literal["patience", "max_epochs", "max_steps", "interrupted"]

    @property
    def converged(self) -> bool:
        """Whether the run ended because it no longer improved."""
        return self.ended == "patience"


def run_steps(
    model: nn.Module,
    rows: Tensor,
    build: Callable[[Batches], Stepper],
    *,
    settings: Mapping[str, Any],
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
    log: str | os.PathLike[str] | None = None,
    log_format: LogFormat = "csv",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    dtype: torch.dtype = torch.float64,
) -> TrainingRun:
    """Train a model in place by the steps that `build` makes of the batches; the options are those of `fit_gradient`.

    The trainable parameters are on the device when `build` is called. `rows` are checked rows `(N, D)`, which are
    cast to `dtype`; `settings` are names and plain values that tell this run from others, for the checkpoint's checks.
    """
    seed, max_epochs = whole(seed, "seed", None), whole(max_epochs, "max_epochs")
    max_steps = None if max_steps is None else whole(max_steps, "max_steps")
    batch_size = None if batch_size is None else whole(batch_size, "batch_size")
    checkpoint_seconds = real(checkpoint_seconds, "checkpoint_seconds", positive=False)
    device = _choose_device(accelerator)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ParameterError(f"{type(model).__name__} has no trainable parameters; set requires_grad on some")
    if not isinstance(record, Recorder):
        record = Recorder(record, every=record_every)
    stopping = Patience(patience, min_improvement, monitor)
    record.begin(stopping if keep_best else None)
    batches = Batches(len(rows), batch_size, seed)
    home = parameters[0].device
    model.to(device)
    try:
        loop = Loop(model, build(batches), rows.to(device, dtype), batches, record, stopping)
        if checkpoint is not None:
            known: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "record_every": record.every}
            known |= {"keep_best": keep_best, "recorder": type(record).__qualname__}
            loop.attach(Path(checkpoint), checkpoint_seconds, {**settings, **known, "data": digest(rows)})
        end = max_epochs * batches.per_pass if max_steps is None else max_steps
        _train(loop, end, progress, seed, device, None if log is None else (log, log_format))
    finally:
        if keep_best and record.best:
            model.load_state_dict(record.best["model"])
        model.to(home)  # Lightning leaves every model on the CPU
        for parameter in parameters:
            parameter.grad = None
    ended: Literal["patience", "max_epochs", "max_steps", "interrupted"]
    ended = "max_epochs" if max_steps is None else "max_steps"
    if loop.interrupted:
        ended = "interrupted"
    elif stopping.exhausted:
        ended = "patience"
    return TrainingRun(record.history, loop.steps, loop.clock.seconds, ended)


def _train(
    loop: Loop,
    end: int,
    progress: bool,
    seed: int,
    device: torch.device,
    log: tuple[str | os.PathLike[str], LogFormat] | None,
) -> None:
    if loop.steps >= end or loop.patience.exhausted:  # the checkpoint is of a finished run
        loop.record_last()
        return
    from girih.training import lightning_loop

    def interrupt() -> None:
        loop.interrupted = True

    with surroundings.quiet_lightning():
        loop.log = None if log is None else RunLog(*log)
        bar = Progress("training", end, loop.steps, progress)
        try:
            if loop.log is not None:
                loop.log.open(loop.recorder.entries)
            with surroundings.own_random_state(seed, device), surroundings.interruptible(interrupt):
                lightning_loop.run(loop, end, bar, device)
        finally:
            bar.close()
            if loop.log is not None:
                loop.log.close()


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
