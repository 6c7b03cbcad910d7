"""The state of a run and what happens between blocks of gradient steps; knows nothing of Lightning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from girih._progress import Progress
from girih.errors import GirihError, NonFiniteError, ParameterError
from girih.training import checkpoint
from girih.training.batches import Batches
from girih.training.clock import Clock
from girih.training.optimizers import take_step
from girih.training.recorder import Recorder
from girih.training.stopping import Patience

Loss = Callable[[Any, Tensor], Tensor]


class Loop:
    """One run: takes gradient steps, and between blocks of them records, saves, shows and decides when to stop.

    Attributes:
        steps: gradient steps taken.
        interrupted: set from outside to end the run after the current step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rows: Tensor,
        batches: Batches,
        loss: Loss,
        recorder: Recorder,
        patience: Patience,
    ) -> None:
        self.model, self.optimizer, self.rows = model, optimizer, rows
        self._batches, self._loss = batches, loss
        self.recorder, self.patience = recorder, patience
        self.clock = Clock()
        self.steps = 0
        self.interrupted = False
        self._sum, self._count = 0.0, 0  # of the losses since the last record
        self._path: Path | None = None
        self._saved = time.monotonic()
        self._random: tuple[Tensor, Tensor | None] | None = None

    def take(self, start: int, stop: int) -> None:
        """Gradient steps `start` to `stop`.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the model keeps the parameters that gave it.
            ParameterError: the loss has no gradient.
        """
        optimizer, rows = self.optimizer, self.rows
        for step in range(start, stop):
            if self.interrupted:
                return
            batch = rows if self._batches.full else rows[self._batches.index(step).to(rows.device)]
            value = take_step(optimizer, partial(self._evaluate, batch, step))
            self.steps = step + 1
            self._sum += value
            self._count += 1

    def _evaluate(self, batch: Tensor, step: int) -> Tensor:
        """The loss of a batch, a finite scalar."""
        try:
            loss = self._loss(self.model, batch)
        except GirihError as error:
            self._check_parameters(step, error)  # the cause, where it is a parameter
            raise
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise ParameterError("loss must return a tensor that depends on the parameters of the model")
        loss = loss.mean() if loss.ndim else loss
        value = loss.item()
        if not math.isfinite(value):
            self._check_parameters(step)
            raise NonFiniteError(
                f"the loss became {value} at step {step + 1}; train with a smaller lr "
                f"(now {self.optimizer.param_groups[0]['lr']:g}), or scale the data to unit variance first"
            )
        return loss

    def _check_parameters(self, steps: int, cause: Exception | None = None) -> None:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(
                    f"parameter '{name}' is not finite after step {steps}; train with a smaller lr"
                ) from cause

    def begin(self) -> None:
        """Called when the device is ready, before the first step."""
        if self._random is not None:
            _set_random_state(self._random, self.rows.device)
        if not self.recorder.entries:
            self._record()
            self.patience.update(self.recorder.entries[-1])
        self.clock.start()

    def between(self, progress: Progress) -> bool:
        """Called after each block; returns whether the run should end."""
        self.clock.stop()
        if self.steps % self.recorder.every == 0 and self.recorder.entries[-1]["step"] != self.steps:
            self._record()
            self.patience.update(self.recorder.entries[-1])
        if self._path is not None and time.monotonic() - self._saved >= self._interval:
            self.save()
        progress.show(self.steps, self._numbers())
        self.clock.start()
        return self.interrupted or self.patience.exhausted

    def _numbers(self) -> str:
        """The mean loss since the last record and the numbers of that record, as the progress bar shows them."""
        entry = self.recorder.entries[-1]
        numbers = {"loss": self._sum / self._count if self._count else entry["loss"]}
        numbers |= {name: entry[name] for name in ("nll", "kl") if name in entry}
        return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())

    def finish(self) -> None:
        """Called after the last step."""
        self.clock.stop()
        self.save()  # before a record off the grid, which a run that goes on from here would not have
        self.record_last()

    def record_last(self) -> None:
        """The entry of the last step, if the grid does not hold it."""
        if self.recorder.entries[-1]["step"] != self.steps:
            self._record()

    def _record(self) -> None:
        self._check_parameters(self.steps)
        loss = self._sum / self._count if self._count else math.nan
        self.recorder.record(self.model, self.steps, self.clock.seconds, loss)
        self._sum, self._count = 0.0, 0

    def attach(self, path: Path, interval: float, settings: dict[str, Any]) -> None:
        """Go on from the checkpoint at `path` if there is one, and save to it every `interval` seconds."""
        self._path, self._interval, self._settings = path, interval, settings
        self._initial = checkpoint.model_digest(self.model)
        if not path.exists():
            return
        contents = checkpoint.load(path, settings, self.model)
        self._initial = contents["initial"]
        self.model.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.recorder.entries = contents["entries"]
        self.recorder.restore(contents.get("recorder", {}))
        for entry in contents["entries"]:
            self.patience.update(entry)
        self.steps, self._sum, self._count = contents["steps"], contents["sum"], contents["count"]
        self.clock.seconds = contents["seconds"]
        self._random = contents["random"]

    def save(self) -> None:
        """Write the checkpoint, where one was asked for."""
        if self._path is None:
            return
        contents = {
            "settings": self._settings,
            "initial": self._initial,
            "current": checkpoint.model_digest(self.model),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "entries": self.recorder.entries,
            "recorder": self.recorder.state(),
            "steps": self.steps,
            "sum": self._sum,
            "count": self._count,
            "seconds": self.clock.seconds,
            "random": _random_state(self.rows.device),
        }
        checkpoint.save(self._path, contents)
        self._saved = time.monotonic()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
