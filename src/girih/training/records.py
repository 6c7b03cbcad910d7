"""Records are taken while a model trains, tell when it has stopped improving, and are written to logs."""

from __future__ import annotations

import csv
import importlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import Rows, as_tensor
from girih._options import real, whole
from girih.errors import NoiseError, NonFiniteError, ParameterError

Measure = Callable[[Any], Mapping[str, float]]
LogFormat = Literal["csv", "tensorboard"]
LOG_FORMATS = ("csv", "tensorboard")


class Patience:
    """It stops a run when `patience` records in a row have not improved a number that should fall.

    An improvement is a fall by more than `min_improvement * max(1, |best|)`: relative for large values, absolute
    (nats per row) for values around 0, where a relative one has no meaning.

    Args:
        patience: records without improvement that end a run; `None` never ends one.
        min_improvement: what counts as an improvement.
        monitor: the name of the recorded number; by default "nll" where it is recorded, else "loss".

    Raises:
        ParameterError: an option is out of its domain, or `monitor` is not recorded.

    Example:
        >>> from girih.training import Patience
        >>> stopping = Patience(2, min_improvement=0.01)
        >>> [stopping.update({"nll": value}) for value in (3.0, 2.0, 1.999, 1.998)]
        [False, False, False, True]
    """

    def __init__(self, patience: int | None, min_improvement: float = 1e-4, monitor: str | None = None) -> None:
        self.patience = None if patience is None else whole(patience, "patience")
        self.min_improvement = real(min_improvement, "min_improvement", positive=False)
        self.monitor = monitor
        self.best = math.inf
        self.waited = 0

    @property
    def exhausted(self) -> bool:
        """True once the run should end."""
        return self.patience is not None and self.waited >= self.patience

    def watched(self, entry: Mapping[str, float]) -> float:
        """The number of an entry that should fall.

        Raises:
            ParameterError: it is not recorded.
        """
        monitor = self.monitor or ("nll" if "nll" in entry else "loss")
        if monitor not in entry:
            raise ParameterError(f"monitor {monitor!r} is not recorded; choose one of {', '.join(sorted(entry))}")
        return entry[monitor]

    def update(self, entry: Mapping[str, float]) -> bool:
        """Take one record into account; returns `exhausted`."""
        value = self.watched(entry)
        if math.isnan(value):  # the training loss before the first step
            return self.exhausted
        if math.isinf(self.best) or value < self.best - self.min_improvement * max(1.0, abs(self.best)):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.exhausted


class Recorder:
    """You measure a model on the way with it: before the first gradient step, every `every` steps, and after the last.

    Each entry has the step, the seconds of training up to it (without the time that measuring took), the mean
    training loss since the entry before (NaN in the first), and what `measure` returns.

    Attributes:
        losses: the means of further losses since the entry before, set by a run that has several.
        best: where a run keeps its best parameters, the `step`, the `value` of the watched number and the `model`.

    Args:
        measure: a function from the model to named numbers; it must not change the model. Random numbers it draws
            do not disturb the training.
        every: gradient steps between entries.

    Raises:
        ParameterError: `every` is not a positive whole number.

    Example:
        >>> import torch
        >>> from girih.training import Recorder
        >>> recorder = Recorder(lambda model: {"norm": float(model.weight.detach().norm())}, every=10)
        >>> recorder.record(torch.nn.Linear(1, 1), step=0, seconds=0.0, loss=float("nan"))
        >>> sorted(recorder.history)
        ['loss', 'norm', 'seconds', 'step']
    """

    def __init__(self, measure: Measure | None = None, every: int = 100) -> None:
        self._measure = measure
        self.every = whole(every, "the gradient steps between records")
        self.entries: list[dict[str, float]] = []
        self.losses: dict[str, float] = {}
        self.best: dict[str, Any] = {}
        self._watched: Patience | None = None

    def begin(self, watched: Patience | None = None) -> None:
        """Start anew; with `watched`, remember in `best` the parameters where its number was lowest."""
        self.entries, self.best, self._watched = [], {}, watched

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """The numbers of one entry; a subclass may override it."""
        return {} if self._measure is None else self._measure(model)

    def record(self, model: nn.Module, step: int, seconds: float, loss: float) -> None:
        """Add an entry.

        Raises:
            NonFiniteError: a measured number is NaN or infinite.
            ParameterError: `measure` gives other names than before.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(model)):
            measured = {name: float(value) for name, value in self.measure(model).items()}
        for name, value in measured.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"the recorded {name} is {value} at step {step}; train with a smaller lr")
        entry = {"step": step, "seconds": seconds, "loss": loss, **self.losses, **measured}
        if self.entries and self.entries[0].keys() != entry.keys():
            raise ParameterError(
                f"measure must give the same names each time: before {', '.join(self.entries[0])}; "
                f"now {', '.join(entry)}"
            )
        self.entries.append(entry)
        if self._watched is None:
            return
        value = self._watched.watched(entry)
        if not math.isnan(value) and (not self.best or value < self.best["value"]):
            state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            self.best = {"value": value, "step": step, "model": state}

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The entries as arrays of equal length: `step` (whole numbers), `seconds`, `loss` and what was measured."""
        names = self.entries[0] if self.entries else ("step", "seconds", "loss")
        columns = {name: np.array([entry[name] for entry in self.entries], dtype=np.float64) for name in names}
        return columns | {"step": columns["step"].astype(np.int64)}


class _Exact(Protocol):
    """A model that knows its exact likelihood."""

    noise: Tensor | float

    def exact(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class ExactRecorder(Recorder):
    """It records how far a VAE is from its exact likelihood: mean `nll`, `elbo`, `kl` in nats per row, and `noise`.

    For any model with a method `exact(x)` that gives `(nll, elbo, kl)` per row, as `girih.vae.GaussVAE` has; `noise`
    is the mean noise variance, of a Gaussian likelihood.

    Args:
        x: the rows to evaluate, `(N, D)`; the training data, or held-out rows.
        every: gradient steps between entries.

    Source:
        EM-DGN, figures 4, 5, 8 and 10.

    Example:
        >>> import girih
        >>> from girih.training import ExactRecorder
        >>> from girih.vae import GaussVAE
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), seed=0)
        >>> sorted(ExactRecorder(vae().sample((8,))).measure(vae))
        ['elbo', 'kl', 'nll', 'noise']
    """

    def __init__(self, x: Rows, every: int = 100) -> None:
        super().__init__(every=every)
        self.x = as_tensor(x, "x").detach()

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """Means over the rows."""
        vae = cast(_Exact, model)
        nll, elbo, kl = vae.exact(self.x)
        found = {"nll": float(nll.mean()), "elbo": float(elbo.mean()), "kl": float(kl.mean())}
        with suppress(NoiseError):  # of a likelihood that has no noise
            found["noise"] = float(torch.as_tensor(vae.noise).detach().mean())
        return found


class Beside(Recorder):
    """It records what `measure` gives beside what the user asked for.

    Args:
        record: a `Recorder`, a function from the model to named numbers, or `None`.
        measure: from what is trained to named numbers.
        every: gradient steps between entries, unless `record` is a `Recorder`, which knows.
        of: from what is trained to the model that `record` knows.
    """

    def __init__(
        self,
        record: Recorder | Measure | None,
        measure: Measure,
        every: int,
        of: Callable[[Any], nn.Module] | None = None,
    ) -> None:
        inner = record if isinstance(record, Recorder) else Recorder(record, every)
        super().__init__(measure, inner.every)
        self._inner, self._of = inner, of

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """The numbers of both."""
        theirs = self._inner.measure(model if self._of is None else self._of(model))
        return {**theirs, **super().measure(model)}


def _devices(model: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


class RunLog(Protocol):
    """A log writes entries to a folder. Opened again it writes those of before anew, so it is always the history."""

    def write(self, entry: Mapping[str, float]) -> None:
        """Add an entry; the file holds it when this returns."""

    def close(self) -> None:
        """Close the files."""


def open_log(
    folder: str | os.PathLike[str], log_format: LogFormat, entries: Iterable[Mapping[str, float]] = ()
) -> RunLog:
    """A log that begins with the entries that the run has.

    A run that goes on from a checkpoint may have logged steps after it, which are taken anew: "csv" replaces
    `metrics.csv`; "tensorboard" adds a file of events that begins by calling off the steps of earlier files.

    Args:
        folder: made if it does not exist.
        log_format: "csv" or "tensorboard".
        entries: numbers by name, with the `step` of each.

    Raises:
        ParameterError: TensorBoard is asked for and not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from girih.training.records import open_log
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = open_log(folder, "csv", [{"step": 0, "loss": 2.5}])
        ...     log.close()
        ...     Path(folder, "metrics.csv").read_text().split()
        ['step,loss', '0,2.5']
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    log: RunLog = _Table(Path(folder)) if log_format == "csv" else _Events(Path(folder))
    for entry in entries:
        log.write(entry)
    return log


class _Table:
    """`metrics.csv`, its columns named by the first entry."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "metrics.csv").open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None

    def write(self, entry: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(entry), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(entry)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Events:
    """A file of events for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            writers = importlib.import_module("torch.utils.tensorboard")  # which takes seconds
        except ImportError as error:
            raise ParameterError(
                f"log_format='tensorboard' needs TensorBoard, which cannot be imported ({error}); "
                "pip install tensorboard (or girih[tensorboard]), or use log_format='csv'"
            ) from error
        self._writer = writers.SummaryWriter(str(folder), purge_step=0)

    def write(self, entry: Mapping[str, float]) -> None:
        for name, value in entry.items():
            if name != "step" and not math.isnan(value):  # it has no point for NaN, the loss before the first step
                self._writer.add_scalar(name, value, int(entry["step"]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
