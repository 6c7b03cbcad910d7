"""How a flow is trained: Gaussian noise on the rows of each step, and a running mean of the parameters."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from girih._options import real
from girih.errors import ParameterError
from girih.flows.scaling import Standardise, Whiten, check_varying, covariance_factor
from girih.training import Beside, FitOptions, FitResult, minimise, watching

# Rows per evaluation of held-out data: bounds the memory.
_CHUNK = 20_000

_SHARPER = 25.0  # by which factor the smoothing falls in a run


class Trained(Protocol):
    """A flow as its training sees it."""

    features: int
    transforms: Iterable[nn.Module]

    def nll(self, rows: Tensor) -> Tensor:
        """`-log p(x | c)` of rows `(B, D + C)`, `(B,)`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are trained."""

    def state_dict(self) -> dict[str, Any]:
        """All numbers by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Take over all numbers of another."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Sets whether the parameters are trained."""


def maximise(
    flow: Trained,
    rows: Tensor,
    held_out: Tensor | None,
    options: FitOptions,
    *,
    smoothing: float | None,
    average: float,
    standardise: Tensor | None,
) -> FitResult:
    """`Flow.fit` on checked rows `(N, D + C)`; `standardise` are the rows `(M, D)` to set the first layer from."""
    check_varying(rows[:, : flow.features])
    count = len(rows)
    size = min(500, math.ceil(count / 2)) if options.batch_size == "auto" else options.batch_size
    size = count if size is None else min(size, count)
    per_pass = math.ceil(count / size)
    wanted = round(min(600.0 * math.sqrt(max(1.0, count / 256)), 50_000))
    if options.max_epochs is not None or options.max_steps is not None:
        wanted = options.steps(per_pass)[0]
    every = max(1, min(500, round(wanted / 32))) if options.record_every is None else options.record_every
    first = next(iter(flow.transforms))
    if standardise is not None and isinstance(first, Standardise | Whiten):
        first.set_from(standardise)
    smooth = _Smoothing(rows[:, : flow.features], smoothing, wanted)
    trained = _Averaged(flow, _share(average))
    suits = FitOptions(batch_size=size, lr=5e-3 if count < 5000 else 1e-3, patience=15, record_every=every)
    settled = replace(
        options.filled(suits),
        max_epochs=math.ceil(wanted / per_pass),
        max_steps=None,
        batch_size=size,
        record=Beside(options.record, lambda model: {}, every, lambda model: model.mean),
    ).told_apart_by({"smoothing": (smooth.width, smooth.steps) if smooth.width else None, "average": trained.share})
    if held_out is not None:
        settled = watching(settled, held_out, mean_nll)
    else:
        settled = replace(settled, monitor=settled.monitor or "loss", patience=None)

    def before_step(step: int) -> None:
        trained.update(step)
        smooth.step = step

    def loss(model: _Averaged, batch: Tensor) -> Tensor:
        return model.flow.nll(smooth(batch))

    result = minimise(trained, rows, loss, settled, before_step=before_step)
    flow.load_state_dict(trained.mean.state_dict())
    if held_out is not None and result.best_step == 0 and result.steps > 0:
        warnings.warn(
            f"the flow was best before training, at a held-out NLL of {result.held_out:.4g} nats a row, and is left "
            "there; train with a smaller lr or more smoothing, pass more rows, or take a simpler flow (fewer "
            "transforms, narrower hidden_features)",
            ConvergenceWarning,
            stacklevel=4,
        )
    return result


class _Averaged(nn.Module):
    """A flow that is trained, and the running mean of its parameters, which is what is measured and kept.

    Side by side in one module, so that checkpoints and the best record hold both.
    """

    def __init__(self, flow: Trained, share: float) -> None:
        super().__init__()
        self.flow, self.share = flow, share
        self.mean: Trained = copy.deepcopy(flow).requires_grad_(False) if share else flow

    def update(self, step: int) -> None:
        """Take the parameters after `step` steps into the mean, at first with more weight on the newest."""
        if self.share:
            weight = 1.0 - min(self.share, (1.0 + step) / (10.0 + step))
            torch._foreach_lerp_(list(self.mean.parameters()), [p.detach() for p in self.flow.parameters()], weight)

    def nll(self, rows: Tensor) -> Tensor:
        """The NLL of the running mean."""
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


def mean_nll(model: Any, rows: Tensor) -> float:
    """The mean NLL of rows, nats per row."""
    return float(torch.cat([model.nll(part) for part in rows.split(_CHUNK)]).mean())
