"""`fit_flow`: maximum likelihood for a flow, conditional or not, through the trainer of all models."""

from __future__ import annotations

import copy
import math
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import real, whole
from girih.errors import ParameterError, ShapeError
from girih.flows.scaling import Standardise, Whiten, check_varying, covariance_factor
from girih.training import Recorder, TrainingRun, fit_gradient
from girih.training.checkpoint import digest, seed_of_run
from girih.training.held_out import split
from girih.training.recorder import Measure

if TYPE_CHECKING:
    from girih.flows.flow import Flow

# Rows per evaluation of held-out data: bounds the memory.
_CHUNK = 20_000

_SHARPER = 25.0  # by which factor the smoothing falls in a run


@dataclass(frozen=True)
class FlowRun(TrainingRun):
    """What `fit_flow` did; see `TrainingRun` for `history`, `steps`, `seconds`, `ended` and `converged`.

    Attributes:
        best_step: the step whose parameters were kept.
        held_out: their mean `-log p(x)` on the held-out rows, nats per row, or `None`.
    """

    best_step: int
    held_out: float | None


def fit_flow(
    flow: Flow,
    X: Any,
    context: Any = None,
    *,
    lr: float | None = None,
    batch_size: int | Literal["auto"] | None = "auto",
    steps: int | None = None,
    validation: Any = 0.2,
    smoothing: float | None = None,
    average: float = 0.98,
    patience: int | None = 15,
    min_improvement: float = 1e-4,
    standardise: bool = True,
    seed: int | None = 0,
    record_every: int | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    log: str | os.PathLike[str] | None = None,
    log_format: Literal["csv", "tensorboard"] = "csv",
    accelerator: Literal["auto", "cpu", "gpu"] = "cpu",
) -> FlowRun:
    """Train a flow in place by Adam on its exact likelihood, by default in a way that suits the number of rows.

    Small data are soon learnt by heart. So the rows of each step get Gaussian noise, which falls on the way, and the
    parameters that are measured and kept are running means of those of the steps. With held-out rows the flow is left
    with the parameters of the record where their NLL was lowest, else with the last ones.

    Args:
        flow: the model; a `Whiten` or `Standardise` layer at its start is set from all rows.
        X: `(N, D)`, complete.
        context: `(N, C)` where the flow was built for one.
        lr: Adam's step size; by default 5e-3, and 1e-3 from 5,000 training rows on.
        batch_size: rows of a gradient step; `None` for all; by default half of them, 500 at most.
        steps: gradient steps, rounded up to whole passes over the data; by default 600 up to 256 training rows, and
            beyond in proportion to the square root of their number, 50,000 at most.
        validation: the share of the rows that is held out, drawn with `seed`; or held-out rows themselves, `(M, D)`,
            with context `(M, D + C)`; or `None`.
        smoothing: standard deviation of the noise at the first step, in units in which the training rows have the
            identity as covariance; it falls to a 25th of that. 0 adds none; by default `N^(-1 / (D + 4))`, the width
            of a kernel density estimate, 0.5 at most.
        average: weight of the past in the running mean of the parameters; 0 keeps those of single steps.
        patience: end when this many records in a row bring no improvement of the held-out NLL; `None` never does.
        min_improvement: the fall that counts as one, relative to `max(1, |best|)`.
        standardise: whether to set the first layer; if not, it stays as it is.
        seed: of the held-out rows, of the order of the others and of the noise; `None` lets `torch.manual_seed` decide.
        record_every: gradient steps between records of the held-out NLL; by default a 32nd of `steps`, 500 at most.
        progress: show a bar.
        checkpoint: a file. A run that was killed goes on from it when called again with the same arguments and
            the same initial parameters, to the same numbers.
        checkpoint_seconds: time between writes of that file.
        log: a folder that each record is written to.
        log_format: "csv" or "tensorboard".
        accelerator: "cpu", "gpu" (CUDA) or "auto".

    Warns:
        ConvergenceWarning: no record was better than the flow before training, so that it is what is left.

    Raises:
        ShapeError, EmptyDataError: X or the context does not fit the flow, or has no rows.
        NonFiniteError: X is not finite; or the loss or a parameter left the range of numbers: the message names it.
        ParameterError: a column of X is constant, an option is out of its domain, or the checkpoint is of another run.
        ModelFileError: the checkpoint is damaged.

    Source:
        RAD, section 3.2: Adam, batches of 500, 50,000 steps on data without end. Noise on the rows: Rothfuss et al.,
        *Noise regularization for conditional density estimation* (2019).

    Example:
        >>> import girih
        >>> from girih.flows import RealNVP, fit_flow
        >>> flow, X = RealNVP(2, hidden_features=(8,), seed=0), girih.datasets.load("moons", n=300).X
        >>> run = fit_flow(flow, X, steps=60, lr=0.01, record_every=20, progress=False)
        >>> bool(run.held_out < run.history["held_out"][0]), run.ended
        (True, 'max_epochs')
    """
    rows = _rows(flow, X, context)
    columns = flow.features + flow.context

    def checked(given: Any) -> Tensor:
        return as_rows(given, "validation", columns, "the number of features and context features").detach()

    seed = seed_of_run(seed, checkpoint)
    every = rows[:, : flow.features]
    rows, held_out = split(rows, validation, seed, checked)
    check_varying(rows[:, : flow.features])
    count = len(rows)
    size = min(500, math.ceil(count / 2)) if batch_size == "auto" else batch_size
    size = count if size is None else min(whole(size, "batch_size"), count)
    wanted = round(min(600.0 * math.sqrt(max(1.0, count / 256)), 50_000)) if steps is None else whole(steps, "steps")
    epochs = math.ceil(wanted / math.ceil(count / size))
    record_every = max(1, min(500, round(wanted / 32))) if record_every is None else record_every
    first = next(iter(flow.transforms))
    if standardise and isinstance(first, Standardise | Whiten):
        first.set_from(every)
    smooth = _Smoothing(rows[:, : flow.features], smoothing, wanted)
    trained = _Averaged(flow, _share(average))
    recorder = Recorder(None if held_out is None else held_out_nll(held_out), record_every)

    def before_step(step: int) -> None:
        trained.update(step)
        smooth.step = step

    run = fit_gradient(
        trained,
        rows,
        loss=lambda model, batch: model.flow.nll(smooth(batch)),
        before_step=before_step,
        lr=(5e-3 if count < 5000 else 1e-3) if lr is None else lr,
        batch_size=size,
        max_epochs=epochs,
        patience=patience if held_out is not None else None,
        min_improvement=min_improvement,
        monitor="loss" if held_out is None else "held_out",
        keep_best=held_out is not None,
        seed=seed,
        record=recorder,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        settings={
            "validation": None if held_out is None else digest(held_out),
            "smoothing": (smooth.width, smooth.steps) if smooth.width else None,
            "average": trained.share,
        },
        log=log,
        log_format=log_format,
        accelerator=accelerator,
    )
    flow.load_state_dict(trained.mean.state_dict())
    if held_out is None:
        return FlowRun(run.history, run.steps, run.seconds, run.ended, run.steps, None)
    best = recorder.best
    if best["step"] == 0 and run.steps > 0:
        warnings.warn(
            f"the flow was best before training, at a held-out NLL of {best['value']:.4g} nats a row, and is left "
            "there; train with a smaller lr or more smoothing, pass more rows, or take a simpler flow (fewer "
            "transforms, narrower hidden_features)",
            ConvergenceWarning,
            stacklevel=2,
        )
    return FlowRun(run.history, run.steps, run.seconds, run.ended, int(best["step"]), float(best["value"]))


class _Averaged(nn.Module):
    """A flow that is trained, and the running mean of its parameters, which is what is measured and kept.

    Side by side in one module, so that checkpoints and the best record hold both.
    """

    def __init__(self, flow: Flow, share: float) -> None:
        super().__init__()
        self.flow, self.share = flow, share
        self.mean: Flow = copy.deepcopy(flow).requires_grad_(False) if share else flow

    def update(self, step: int) -> None:
        """Take the parameters after `step` steps into the mean, at first with more weight on the newest."""
        if self.share:
            weight = 1.0 - min(self.share, (1.0 + step) / (10.0 + step))
            torch._foreach_lerp_(list(self.mean.parameters()), [p.detach() for p in self.flow.parameters()], weight)

    def nll(self, rows: Tensor) -> Tensor:
        """That of the mean."""
        return self.mean.nll(rows)


class _Smoothing:
    """Adds noise to rows `(B, D + C)`, features first: `width L e`, with L L^T their covariance.

    Attributes:
        step: of the run; with it the width falls, geometrically.
    """

    def __init__(self, features: Tensor, width: float | None, steps: int) -> None:
        count, size = features.shape
        self.width = min(0.5, count ** (-1.0 / (size + 4))) if width is None else real(width, "smoothing", False)
        self.factor, self.steps, self.step = covariance_factor(features), steps, 0

    def __call__(self, batch: Tensor) -> Tensor:
        if self.width == 0.0:
            return batch
        width = self.width * _SHARPER ** -min(1.0, self.step / self.steps)
        factor = self.factor.to(batch)
        noise = width * torch.randn(len(batch), len(factor), dtype=batch.dtype, device=batch.device) @ factor.mT
        return batch + torch.nn.functional.pad(noise, (0, batch.shape[1] - len(factor)))


def _share(average: float) -> float:
    value = real(average, "average", positive=False)
    if value >= 1.0:
        raise ParameterError(f"average is the weight of the past in a running mean, and must be below 1; got {value:g}")
    return value


def held_out_nll(held_out: Tensor) -> Measure:
    """What is recorded on the way: the mean NLL of the held-out rows, nats per row."""

    def measure(model: Any) -> dict[str, float]:
        rows = held_out.to(next(model.parameters()).device)
        return {"held_out": float(torch.cat([model.nll(part) for part in rows.split(_CHUNK)]).mean())}

    return measure


def _rows(flow: Flow, X: Any, context: Any) -> Tensor:
    """Features and context side by side, checked."""
    rows = as_rows(X, "X", flow.features, "the number of features").detach()
    if not flow.context:
        if context is not None:
            raise ShapeError("context was passed to a flow that was built without one; build it with context=C")
        return rows
    if context is None:
        raise ShapeError(f"the flow was built with context={flow.context}; pass context, one row for each row of X")
    given = as_rows(context, "context", flow.context, "the number of context features", device=rows.device).detach()
    if len(given) != len(rows):
        raise ShapeError(f"context has {len(given)} rows and X has {len(rows)}; pass one row of context for each of X")
    return torch.cat((rows, given), 1)
