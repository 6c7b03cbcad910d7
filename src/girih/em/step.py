r"""One safeguarded EM iteration.

`evaluate` is the E-step: the exact penalised NLL and the statistics. Each update proposes parameters, evaluates
them exactly, and is undone when the NLL rose: the exact M-steps cannot raise it beyond rounding, the update of
the hidden layers can, and is then damped more and tried again. So the NLL never increases, by construction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih.em.hidden import HiddenSystem, hidden_layers
from girih.em.initial import column_statistics
from girih.em.mstep import head_change, noise_update, prior_update
from girih.em.penalty import WeightPrior
from girih.errors import NonFiniteError, UnsupportedLayerError
from girih.inference import DGN
from girih.inference.line import Model
from girih.inference.statistics import Statistics, accumulate
from girih.networks import Affine
from girih.partition import Partition

UPDATES = ("head", "noise", "prior", "hidden")

# Damping of the hidden update: relative to the diagonal of its normal matrix.
INITIAL_DAMPING = 1e-3
_RAISE, _LOWER = 5.0, 3.0
_LEAST, _MOST = 1e-9, 1e8
_TRIES = 8


@dataclass(frozen=True)
class Evaluation:
    """The E-step at the current parameters."""

    nll: float  # penalised, nats per row
    log_likelihood: float  # without the penalty, nats per row
    model: Model
    partition: Partition
    statistics: Statistics


class Problem:
    """A model, weighted rows and the settings of the M-step."""

    def __init__(
        self, dgn: DGN, x: Tensor, weight: Tensor, prior: WeightPrior | None = None, floor_share: float = 1e-6
    ) -> None:
        self.dgn, self.x, self.weight, self.prior = dgn, x, weight, prior
        self.noise_floor = noise_floor(dgn, x, weight, floor_share)
        self.affine = [stage for stage in dgn.trace.stages if isinstance(stage, Affine)]
        _check_trainable(self.affine)
        with torch.no_grad():
            if prior is not None:
                prior.admit([stage.module.weight for stage in self.affine])

    def evaluate(self) -> Evaluation:
        """The E-step: exact NLL and statistics at the current parameters."""
        with torch.no_grad():
            partition = self.dgn.partition
            model = self.dgn.model(partition)
            _, s = accumulate(model, self.x, self.weight)
            penalty = 0.0 if self.prior is None else self.prior.energy([stage.weight for stage in self.affine])
            total = float(s.log_likelihood)
            rows = float(s.weight)
            return Evaluation((penalty - total) / rows, total / rows, model, partition, s)

    def parameters(self) -> dict[str, Tensor]:
        """A copy of everything that EM changes."""
        return {name: p.detach().clone() for name, p in self.dgn.named_parameters()}

    def restore(self, parameters: dict[str, Tensor]) -> None:
        """Put back what `parameters` gave."""
        with torch.no_grad():
            for name, parameter in self.dgn.named_parameters():
                parameter.copy_(parameters[name])

    def change(self, stage: Affine, change: Tensor) -> None:
        """Add a `(out, in + 1)` change to a stage's weight and, if it has one, bias."""
        with torch.no_grad():
            stage.module.weight.add_(change[:, : stage.in_features])
            if stage.module.bias is not None:
                stage.module.bias.add_(change[:, -1])
            if self.prior is not None:
                self.prior.admit([stage.module.weight])  # rounding of `weight + change` may leave the box


def em_step(
    problem: Problem, now: Evaluation, damping: float, updates: Iterable[str] = ("head", "noise", "hidden")
) -> tuple[Evaluation, float]:
    """One iteration: the exact M-steps together, then the hidden layers; returns the new E-step and damping."""
    chosen = set(updates)
    now = exact_step(problem, now, chosen)
    if "hidden" in chosen:
        now, damping = hidden_step(problem, now, damping)
    return now, damping


def exact_step(problem: Problem, now: Evaluation, updates: Iterable[str]) -> Evaluation:
    """M-step of the last affine map, the noise and the latent prior, those named in `updates`."""
    dgn, s, chosen = problem.dgn, now.statistics, set(updates)
    before = problem.parameters()
    head = dgn.trace.head
    change = torch.zeros_like(s.outer)
    with torch.no_grad():
        if "head" in chosen and head is not None:
            change = head_change(now.model, s, head.has_bias, problem.prior)
            problem.change(head, change)
        if "noise" in chosen:
            dgn.noise.copy_(noise_update(s, change, dgn.noise, problem.noise_floor))
        if "prior" in chosen:
            dgn.prior.copy_(prior_update(s))
    return _accept(problem, now, before) or now


def hidden_step(problem: Problem, now: Evaluation, damping: float) -> tuple[Evaluation, float]:
    """Damped update of all hidden layers, with backtracking on the exact NLL."""
    layers = hidden_layers(problem.dgn.trace, now.partition)
    if not layers:
        return now, damping
    before = problem.parameters()
    with torch.no_grad():
        system = HiddenSystem(now.model, now.statistics, layers, problem.prior)
        for _ in range(_TRIES):
            step = system.direction(damping)
            for layer, change in zip(layers, system.split(step), strict=True):
                problem.change(layer.stage, change)
            better = _accept(problem, now, before)
            if better is not None:
                return better, max(damping / _LOWER, _LEAST)
            damping = min(damping * _RAISE, _MOST)
    return now, damping


def _accept(problem: Problem, now: Evaluation, before: dict[str, Tensor]) -> Evaluation | None:
    """The evaluation of the current parameters, or `None` and the old parameters when the NLL rose."""
    try:
        after: Evaluation | None = problem.evaluate()
    except (NonFiniteError, LinAlgError):
        after = None  # the step overflowed, which is as bad as a risen NLL
    if after is not None and after.nll <= now.nll:  # false for NaN
        return after
    problem.restore(before)
    return None


def noise_floor(dgn: DGN, x: Tensor, weight: Tensor, share: float) -> Tensor:
    """The lower bound on the noise variances: a share of the variance of the data, column by column.

    Columns without variance are measured by the mean variance, and data without any by their size.
    """
    mean, variance = column_statistics(x, weight)
    variance = torch.where(variance > 1e-24 * mean.square(), variance, 0.0)
    fallback = float(variance.mean()) or float(mean.square().mean()) or 1.0
    if dgn.noise.ndim == 0:
        return share * variance.new_tensor(fallback)
    return share * torch.where(variance > 0, variance, fallback)


def _check_trainable(stages: list[Affine]) -> None:
    seen: set[int] = set()
    for stage in stages:
        if id(stage.module) in seen:
            raise UnsupportedLayerError(f"EM cannot train layer '{stage.path}', which is used more than once")
        seen.add(id(stage.module))
        if not isinstance(stage.module.weight, nn.Parameter) or stage.module.weight.dtype != torch.float64:
            raise UnsupportedLayerError(
                f"EM trains plain float64 parameters, and the weight of layer '{stage.path}' is "
                f"{type(stage.module.weight).__name__} {stage.module.weight.dtype}; call net.double() first"
            )
