"""`FitOptions`, what a fit is asked for, and `FitResult`, what it did: length, rows, records, where it is saved."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor

from girih._arrays import ArrayLike, Rows
from girih._deprecated import renamed_attribute
from girih._options import real, whole
from girih.errors import ParameterError
from girih.training.checkpoint import seed_of_run
from girih.training.records import LOG_FORMATS, LogFormat, Measure, Recorder

Accelerator = Literal["auto", "cpu", "gpu"]

# Gradient training on a CUDA GPU pays from about so many parameters on; below, starting its kernels takes longer.
_LARGE = 100_000


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """They are the options that every `fit` by gradients has, under the same names and with the same defaults.

    You pass the fields to a `fit` by name; build one yourself to keep a set of them, and pass it with
    `**vars(options)`. A field that is left open, "auto" or, where `None` has no other meaning, `None`,
    becomes what suits the model: the `fit` of the model says what.

    Attributes:
        max_epochs: passes over the data at most.
        max_steps: gradient steps at most, instead of `max_epochs`; the lower of the two, if both are given.
        batch_size: rows of a gradient step; `None` for all of them, which makes an epoch one step.
        lr: step size of the optimizer.
        validation: held-out rows `(M, D)`, or a fraction of the rows, drawn with `seed`, that is held out of training;
            `None` holds out none. What they give is recorded as `held_out` and watched.
        patience: end when this many records in a row bring no improvement; `None` never does.
        min_improvement: the fall that counts as one, relative to `max(1, |best|)`.
        monitor: the recorded number to watch; by default `held_out` where rows are held out, else "nll" where it is
            recorded, else the mean training "loss".
        keep_best: leave the model at the recorded step where the watched number was lowest, instead of at the last; by
            default where rows are held out.
        seed: of the order of the rows, of the held-out fraction and of all draws; `None` lets `torch.manual_seed`
            decide, or the checkpoint that the run goes on from.
        record: what to measure on the way, a `Recorder` (cleared first) or a function from the model to named numbers.
        record_every: gradient steps between records, unless `record` is a `Recorder`, which knows.
        progress: show a bar on a terminal or in a notebook.
        checkpoint: a file. A run that was killed goes on from it when called again with the same arguments and the same
            initial parameters, to the same numbers; `max_epochs`, `max_steps` and `patience` may be raised. A finished
            run is not repeated.
        checkpoint_seconds: time between writes of that file; more where a write takes long.
        settings: names and plain values that tell this run from others, for the checkpoint's checks: whatever a loss of
            your own depends on.
        log: a folder that each record is written to when it is taken. What an earlier run logged there is replaced; a
            run that goes on from its checkpoint goes on with its log.
        log_format: "csv" for a table, `metrics.csv`, or "tensorboard" (`pip install girih[tensorboard]`).
        accelerator: "cpu", "gpu" (CUDA), or "auto": a CUDA GPU if the model is there, or if there is one and the model
            has 100,000 parameters or more; a smaller one is faster on the CPU.

    Raises:
        ParameterError: an option is out of its domain.

    Example:
        >>> import girih
        >>> girih.FitOptions(lr=0.01, max_epochs=20)
        FitOptions(max_epochs=20, lr=0.01)
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | Literal["auto"] | None = "auto"
    lr: float | None = None
    validation: Rows | float | Literal["auto"] | None = "auto"
    patience: int | Literal["auto"] | None = "auto"
    min_improvement: float | None = None
    monitor: str | None = None
    keep_best: bool | None = None
    seed: int | None = 0
    record: Recorder | Measure | None = None
    record_every: int | None = None
    progress: bool = True
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_seconds: float = 2.0
    settings: Mapping[str, Any] | None = None
    log: str | os.PathLike[str] | None = None
    log_format: LogFormat = "csv"
    accelerator: Accelerator = "auto"

    def __post_init__(self) -> None:
        for name in ("max_epochs", "max_steps", "batch_size", "patience", "seed"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value == "auto"):
                self._set(name, whole(value, name, None if name == "seed" else 1))
        for name, positive in (("lr", True), ("min_improvement", False), ("checkpoint_seconds", False)):
            if getattr(self, name) is not None:
                self._set(name, real(getattr(self, name), name, positive))
        if self.log_format not in LOG_FORMATS:
            raise ParameterError(f"log_format must be one of {', '.join(LOG_FORMATS)}; got {self.log_format!r}")
        if self.accelerator not in ("auto", "cpu", "gpu"):
            raise ParameterError(f"accelerator must be 'auto', 'cpu' or 'gpu'; got {self.accelerator!r}")

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)  # frozen: only while it is made

    @classmethod
    def among(cls, named: Mapping[str, Any]) -> FitOptions:
        """The options among the arguments of a `fit`, `locals()` at its start."""
        return cls(**{one.name: named[one.name] for one in fields(cls)})

    def filled(self, defaults: FitOptions | None = None) -> Settled:
        """These options, with what suits a model where a field was left open, and a seed.

        Example:
            >>> from girih import FitOptions
            >>> options = FitOptions(lr=0.1).filled(FitOptions(lr=0.5, batch_size=100))
            >>> options.lr, options.batch_size, options.max_epochs
            (0.1, 100, 1000)
        """
        values = dict(vars(self))
        for source in (vars(defaults or PLAIN), vars(PLAIN)):
            names: tuple[str, ...] = _OPEN
            if values["max_epochs"] is None and values["max_steps"] is None:  # either says how long
                names = (*names, "max_epochs", "max_steps")
            values |= {name: source[name] for name in names if _is_open(values[name], name)}
        return Settled(**{**values, "seed": seed_of_run(self.seed, self.checkpoint)})

    def steps(self, per_pass: int) -> tuple[int, Literal["max_epochs", "max_steps"]]:
        """The last gradient step, of passes of so many, and the option that says so."""
        by_epochs = math.inf if self.max_epochs is None else self.max_epochs * per_pass
        by_steps = math.inf if self.max_steps is None else self.max_steps
        return (int(by_epochs), "max_epochs") if by_epochs < by_steps else (int(by_steps), "max_steps")

    def told_apart_by(self, settings: Mapping[str, Any]) -> Self:
        """These options, with more that tells the run from others; what the user's `settings` say comes first."""
        return replace(self, settings={**settings, **(self.settings or {})})

    def device(self, parameters: Sequence[Tensor]) -> torch.device:
        """A model with these parameters is trained on this device.

        Raises:
            ParameterError: a GPU is asked for, and there is none.
        """
        available = torch.cuda.is_available()
        if self.accelerator == "gpu" and not available:
            raise ParameterError("accelerator='gpu' asks for a CUDA GPU, but torch finds none; use 'cpu' or 'auto'")
        large = sum(parameter.numel() for parameter in parameters) >= _LARGE
        wanted = self.accelerator == "gpu" or large or parameters[0].device.type == "cuda"
        if available and wanted and self.accelerator != "cpu":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def __repr__(self) -> str:
        """The fields that were set, rows by their shape."""
        parts = []
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not one.default and not (isinstance(value, float | int | str) and value == one.default):
                shape = getattr(value, "shape", None)
                parts.append(f"{one.name}={value!r}" if shape is None else f"{one.name}=rows {tuple(shape)}")
        return f"FitOptions({', '.join(parts)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Settled(FitOptions):
    """These are options of which none is open any more: what `FitOptions.filled` gives to a `fit`."""

    batch_size: int | None
    lr: float
    validation: Rows | float | None
    patience: int | None
    min_improvement: float
    seed: int
    record_every: int


# What `filled` fills besides the length, and what it is filled with where a model has no wish.
_WITH_NONE = ("batch_size", "validation", "patience")  # `None` means something
_OPEN = ("batch_size", "lr", "validation", "patience", "min_improvement", "monitor", "keep_best", "record_every")
PLAIN = FitOptions(
    max_epochs=1000,
    batch_size=None,
    lr=1e-3,
    validation=None,
    patience=None,
    min_improvement=1e-4,
    record_every=100,
)


def _is_open(value: object, name: str) -> bool:
    return isinstance(value, str) and value == "auto" if name in _WITH_NONE else value is None


def held_out_count(validation: object, rows: int, of: str) -> int:
    """How many of so many rows a fraction holds out; `of` says which rows.

    Raises:
        ParameterError: the fraction leaves no rows on one side.
    """
    share = real(validation, "validation")
    count = round(share * rows)
    if not 0 < count < rows:
        raise ParameterError(
            f"validation={share:g} of {of} holds out {count}; it must be a fraction that leaves rows on both sides, an "
            "array of rows, or None"
        )
    return count


def split(
    rows: Tensor, validation: ArrayLike | Rows | None, seed: int, check: Callable[[Rows], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Training rows and held-out rows.

    Args:
        rows: `(N, D)`, checked.
        validation: `None`, other rows `(M, D)`, or the fraction of `rows` to hold out.
        seed: of the draw of a fraction.
        check: from what the user gave as rows to checked ones.

    Raises:
        ParameterError: the fraction leaves no rows on one side.

    Example:
        >>> import torch
        >>> from girih.training import split
        >>> [len(part) for part in split(torch.zeros(10, 2), 0.3, 0, torch.as_tensor)]
        [7, 3]
    """
    if validation is None:
        return rows, None
    if not isinstance(validation, float | int) and np.ndim(cast(Any, validation)) > 0:
        return rows, check(cast(Rows, validation))
    count = held_out_count(validation, len(rows), f"{len(rows)} rows")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed % 2**63)).to(rows.device)
    return rows[order[count:].sort().values], rows[order[:count].sort().values]


Ended = Literal["patience", "tol", "max_epochs", "max_steps", "max_iter", "stream", "interrupted"]


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """You read from it how training went and why it ended; the model itself was trained in place.

    Attributes:
        history: the recorded arrays by name: `step`, `seconds` of training, the mean `loss` since the record before,
            and what was measured. EM records the penalised exact `nll` of every iteration.
        steps: gradient steps, or iterations of EM, taken in all.
        seconds: training time, without recording, saving and starting up.
        ended: why: "patience" or "tol" where it no longer improved, "max_epochs", "max_steps" or "max_iter" where it
            was as long as was asked for, "stream" where rows that can be passed once were all seen, or "interrupted" by
            Ctrl-C.
        best_step: the step whose parameters the model was left with.
        held_out: what those gave on the held-out rows, nats per row; `None` without any.
        log_likelihood: mean exact log-likelihood of the training rows, nats per row, without a weight prior; where it
            was computed.
        starts: penalised exact NLL of each random start of EM after its trial iterations.
        overfit: why a fit by EM says little about other rows, where the data cannot carry its parameters.

    Example:
        >>> import numpy as np
        >>> from girih import FitResult
        >>> FitResult({"step": np.arange(3), "nll": np.array([3.0, 2.0, 1.5])}, 2, 0.25, "tol", best_step=2)
        FitResult(1.5 after 2 steps in 0.25 s, ended by tol)
    """

    history: dict[str, np.ndarray]
    steps: int
    seconds: float
    ended: Ended
    best_step: int = 0
    held_out: float | None = None
    log_likelihood: float | None = None
    starts: list[float] = field(default_factory=list)
    overfit: str | None = None

    @property
    def curve(self) -> np.ndarray:
        """This is what was to fall, at the steps `history["step"]`, nats per row.

        The exact NLL where it was recorded, else the mean training loss since the record before (NaN in the first).
        """
        return self.history["nll" if "nll" in self.history else "loss"]

    @property
    def converged(self) -> bool:
        """True where it ended because it no longer improved."""
        return self.ended in ("patience", "tol")

    def __repr__(self) -> str:
        """One line: where it came to, how long it took and why it ended."""
        curve = self.curve if "loss" in self.history or "nll" in self.history else np.empty(0)
        value = [f"held out {self.held_out:.5g}"] if self.held_out is not None else [f"{v:.5g}" for v in curve[-1:]]
        took = f"after {self.steps} steps in {self.seconds:.3g} s, ended by {self.ended}"
        return f"FitResult({' '.join([*value, took])})"

    nll_curve = renamed_attribute("nll_curve", "FitResult.curve", lambda result: result.curve)
    n_iter = renamed_attribute("n_iter", "FitResult.steps", lambda result: result.steps)
    interrupted = renamed_attribute("interrupted", "FitResult.ended", lambda result: result.ended == "interrupted")
    nll = renamed_attribute(
        "nll",
        "FitResult.curve at best_step",
        lambda result: float(result.curve[np.searchsorted(result.history["step"], result.best_step)]),
    )
