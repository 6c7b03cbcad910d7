"""The state of a run and what happens between blocks of gradient steps; knows nothing of Lightning."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from girih._progress import Progress
from girih.errors import GirihError
from girih.training import checkpoint
from girih.training.batches import Batches
from girih.training.clock import Clock
from girih.training.recorder import Recorder
from girih.training.stepper import Stepper, check_parameters
from girih.training.stopping import Patience


class Log(Protocol):
    """Where the entries go besides the recorder, see `girih.training.logs`."""

    def write(self, entry: dict[str, float]) -> None:
        """Take one entry."""


class Loop:
    """One run: takes gradient steps, and between blocks of them records, saves, shows and decides when to stop.

    Attributes:
        steps: gradient steps taken.
        interrupted: set from outside to end the run after the current step.
        log: takes every new entry, where one is set.
    """

    def __init__(
        self,
        model: nn.Module,
        stepper: Stepper,
        rows: Tensor,
        batches: Batches,
        recorder: Recorder,
        patience: Patience,
    ) -> None:
        self.model, self.stepper, self.rows = model, stepper, rows
        self._batches = batches
        self.recorder, self.patience = recorder, patience
        self.clock = Clock()
        self.steps = 0
        self.interrupted = False
        self.log: Log | None = None
        self._sums = _Sums(stepper.names)  # of the losses since the last record
        self._path: Path | None = None
        self._saved = time.monotonic()
        self._random: tuple[Tensor, Tensor | None] | None = None

    def take(self, start: int, stop: int) -> None:
        """Gradient steps `start` to `stop`.

        Raises:
            NonFiniteError: a loss is NaN or infinite, or a parameter that gave it; the model keeps the parameters.
        """
        rows = self.rows
        for step in range(start, stop):
            if self.interrupted:
                return
            batch = rows if self._batches.full else rows[self._batches.index(step).to(rows.device)]
            try:
                values = self.stepper.take(batch, step)
            except GirihError as error:
                check_parameters(self.model, step, error)  # the cause, where it is a parameter
                raise
            self.steps = step + 1
            self._sums.add(values)

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
        numbers = {name: entry[name] if math.isnan(mean) else mean for name, mean in self._sums.means().items()}
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
        check_parameters(self.model, self.steps)
        means = self._sums.means()
        loss = means.pop("loss")
        self.recorder.losses = means
        self.recorder.record(self.model, self.steps, self.clock.seconds, loss)
        self._sums.clear()
        if self.log is not None:
            self.log.write(self.recorder.entries[-1])

    def attach(self, path: Path, interval: float, settings: dict[str, Any]) -> None:
        """Go on from the checkpoint at `path` if there is one, and save to it every `interval` seconds."""
        self._path, self._interval, self._settings = path, interval, settings
        self._initial = checkpoint.model_digest(self.model)
        if not path.exists():
            return
        contents = checkpoint.load(path, settings, self.model)
        self._initial = contents["initial"]
        self.model.load_state_dict(contents["model"])
        for optimizer, state in zip(self.stepper.optimizers, contents["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.recorder.entries = contents["entries"]
        self.recorder.best = contents["kept"]
        for entry in contents["entries"]:
            self.patience.update(entry)
        self.steps, self._sums.values = contents["steps"], contents["sums"]
        self.clock.seconds = contents["seconds"]
        self._random = contents["random"]

    def save(self) -> None:
        """Write the checkpoint, where one was asked for."""
        if self._path is None:
            return
        best = self.recorder.best
        contents = {
            "settings": self._settings,
            "initial": self._initial,
            "current": checkpoint.model_digest(self.model),
            "best": checkpoint.digest(*best["model"].values()) if best else self._initial,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.stepper.optimizers],
            "entries": self.recorder.entries,
            "kept": best,
            "steps": self.steps,
            "sums": self._sums.values,
            "seconds": self.clock.seconds,
            "random": _random_state(self.rows.device),
        }
        checkpoint.save(self._path, contents)
        self._saved = time.monotonic()


class _Sums:
    """Sums and counts of named numbers, for their means."""

    def __init__(self, names: Iterable[str]) -> None:
        self.values = {name: [0.0, 0] for name in names}

    def add(self, numbers: Iterable[float | None]) -> None:
        """One number for each name, or `None`."""
        for pair, number in zip(self.values.values(), numbers, strict=True):
            if number is not None:
                pair[0] += number
                pair[1] += 1

    def means(self) -> dict[str, float]:
        """NaN where there is nothing to average."""
        return {name: total / count if count else math.nan for name, (total, count) in self.values.items()}

    def clear(self) -> None:
        """Start anew."""
        self.values = {name: [0.0, 0] for name in self.values}


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
