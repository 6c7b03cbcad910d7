"""One run: the gradient steps, and what happens between them. It records, saves, shows, ends and can go on later."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn

from girih._progress import Progress
from girih._signals import terminations_call
from girih.errors import GirihError
from girih.training.checkpoint import Checkpoint, digest, model_digest
from girih.training.records import Patience, Recorder, RunLog
from girih.training.steps import Batches, Stepper, check_parameters

# Gradient steps between two looks at the clock and the bar, which would take as long as a step of a small network.
_BLOCK = 25


class Loop:
    """A run takes gradient steps, and between blocks of them records, saves, shows and decides when to stop.

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
        self.seconds = 0.0  # of training, without what happens between blocks
        self.steps = 0
        self.interrupted = False
        self.log: RunLog | None = None
        self._sums = _Sums(stepper.names)  # of the losses since the last record
        self._checkpoint: Checkpoint | None = None
        self._random: tuple[Tensor, Tensor | None] | None = None

    def run(self, end: int, progress: Progress) -> None:
        """Train until step `end`, until it no longer improves, or until it is interrupted.

        Raises:
            NonFiniteError: a loss is NaN or infinite, or a parameter that gave it; the model keeps the parameters.
        """
        if self._random is not None:
            _set_random_state(self._random, self.rows.device)
        if not self.recorder.entries:
            self._record()
            self.patience.update(self.recorder.entries[-1])
        every = self.recorder.every
        while self.steps < end and not (self.interrupted or self.patience.exhausted):
            since = time.perf_counter()
            self.take(self.steps, min(self.steps + _BLOCK, end, (self.steps // every + 1) * every))
            self.seconds += time.perf_counter() - since
            if self.steps % every == 0 and self.recorder.entries[-1]["step"] != self.steps:
                self._record()
                self.patience.update(self.recorder.entries[-1])
            if self._checkpoint is not None and self._checkpoint.due():
                self.save()
            progress.show(self.steps, self._numbers())
        self.save()  # before a record off the grid, which a run that goes on from here would not have
        self.record_last()

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

    def _numbers(self) -> str:
        """The mean loss since the last record and the numbers of that record, as the progress bar shows them."""
        entry = self.recorder.entries[-1]
        numbers = {name: entry[name] if math.isnan(mean) else mean for name, mean in self._sums.means().items()}
        numbers |= {name: entry[name] for name in ("nll", "kl") if name in entry}
        return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())

    def record_last(self) -> None:
        """The entry of the last step, if the grid does not hold it."""
        if self.recorder.entries[-1]["step"] != self.steps:
            self._record()

    def _record(self) -> None:
        check_parameters(self.model, self.steps)
        means = self._sums.means()
        loss = means.pop("loss")
        self.recorder.losses = means
        self.recorder.record(self.model, self.steps, self.seconds, loss)
        self._sums.clear()
        if self.log is not None:
            self.log.write(self.recorder.entries[-1])

    def attach(self, checkpoint: Checkpoint) -> None:
        """Go on from the checkpoint, if its file exists, and save to it from time to time."""
        self._checkpoint, self._initial = checkpoint, model_digest(self.model)
        contents = checkpoint.read()
        if contents is None:
            return
        checkpoint.check_model(contents, self.model)
        self._initial = contents["initial"]
        self.model.load_state_dict(contents["model"])
        for optimizer, state in zip(self.stepper.optimizers, contents["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.recorder.entries = contents["entries"]
        self.recorder.best = contents["kept"]
        for entry in contents["entries"]:
            self.patience.update(entry)
        self.steps, self._sums.values = contents["steps"], contents["sums"]
        self.seconds = contents["seconds"]
        self._random = contents["random"]

    def save(self) -> None:
        """Write the checkpoint, where one was asked for."""
        if self._checkpoint is None:
            return
        best = self.recorder.best
        self._checkpoint.write(
            {
                "initial": self._initial,
                "current": model_digest(self.model),
                "best": digest(*best["model"].values()) if best else self._initial,
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.stepper.optimizers],
                "entries": self.recorder.entries,
                "kept": best,
                "steps": self.steps,
                "sums": self._sums.values,
                "seconds": self.seconds,
                "random": _random_state(self.rows.device),
            }
        )


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


@contextmanager
def interruptible(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C into a call of `on_interrupt`; a second one interrupts as usual.

    SIGTERM and SIGHUP call it too, and exit when the block has ended, with the status that tells the signal.

    Only where Python's own handler is in charge, in the main thread; elsewhere nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        on_interrupt()

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    try:
        with terminations_call(on_interrupt) as asked:
            yield
        if asked.number:
            raise SystemExit(asked.status)
    finally:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for the duration, and put them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed %= 2**63  # what torch takes
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
