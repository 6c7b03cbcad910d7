"""What is measured while a model trains, when, and when it has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from girih._arrays import Rows, as_tensor
from girih._options import real, whole
from girih.errors import NonFiniteError, ParameterError

Measure = Callable[[Any], Mapping[str, float]]


class Patience:
    """Stops when `patience` records in a row have not improved a number that should fall.

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
        """Whether the run should end."""
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
    """Numbers taken from a model every few gradient steps: before the first, every `every`, and after the last.

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


class ExactRecorder(Recorder):
    """Records how far a VAE is from its own exact likelihood: mean `nll`, `elbo` and `kl` in nats per row, and `noise`.

    For any model with a method `exact(x)` that gives `(nll, elbo, kl)` per row, as `girih.vae.GaussVAE` has; `noise`
    is the mean noise variance.

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

    def measure(self, model: Any) -> Mapping[str, float]:
        """Means over the rows."""
        nll, elbo, kl = model.exact(self.x)
        noise = float(torch.as_tensor(model.noise).detach().mean())
        return {"nll": float(nll.mean()), "elbo": float(elbo.mean()), "kl": float(kl.mean()), "noise": noise}


class Beside(Recorder):
    """Records what `measure` gives beside what the user asked for.

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
