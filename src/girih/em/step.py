r"""One safeguarded EM iteration.

`evaluate` is the E-step: the exact penalised NLL and the statistics. Each update proposes parameters, evaluates
them exactly, and is undone when the NLL rose: the exact M-steps cannot raise it beyond rounding, the update of
the hidden layers can, and is then damped more and tried again. So the NLL never increases, by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih.em.hidden import HiddenSystem, hidden_layers
from girih.em.initial import column_spread, root_mean_square
from girih.em.jacobian import JacobianSystem
from girih.em.mstep import head_change, noise_update, prior_update
from girih.em.normal import NormalSystem
from girih.em.penalty import WeightPrior
from girih.em.trained import Trained
from girih.errors import NonFiniteError, ParameterError
from girih.inference import DGN
from girih.inference.model import Model
from girih.inference.statistics import Statistics, accumulate
from girih.networks import LinearStep
from girih.partition import Partition

UPDATES = ("head", "noise", "prior", "hidden")

# Damping of the hidden update: relative to the diagonal of its normal matrix.
INITIAL_DAMPING = 1e-3
_RAISE, _LOWER = 5.0, 3.0
LEAST_DAMPING, MOST_DAMPING = 1e-9, 1e8
_TRIES = 8


@dataclass
class Evaluation:
    """The E-step at the current parameters."""

    nll: float  # penalised, nats per row
    log_likelihood: float  # without the penalty, nats per row
    model: Model
    partition: Partition
    statistics: Statistics
    system: NormalSystem | None = field(default=None, repr=False)  # made once it is asked for


class Problem:
    """A model, weighted rows and the settings of the M-step.

    Raises:
        UnsupportedLayerError: a layer that EM cannot train.
        ParameterError: a weight prior that this generator cannot have.
    """

    def __init__(
        self, dgn: DGN, x: Tensor, weight: Tensor, prior: WeightPrior | None = None, floor: Tensor | None = None
    ) -> None:
        self.dgn, self.x, self.weight, self.prior = dgn, x, weight, prior
        self.evaluations = 0  # exact evaluations of all rows so far
        self.noise_floor = noise_floor(dgn, x, weight) if floor is None else floor
        self.trained = Trained.of(dgn.net, dgn.trace)
        if prior is not None and prior.family != "gaussian" and not self.trained.is_chain:
            raise ParameterError(
                f"a {prior.family} weight prior needs a chain of Linear layers and activations, and this network has "
                "other layers or branches; use a Gaussian weight prior"
            )
        self.admit()

    def evaluate(self, index: Tensor | None = None) -> Evaluation:
        """The E-step: exact NLL and statistics at the current parameters.

        Args:
            index: the rows of a batch, which then stands for all rows: their weights are scaled up.
        """
        x, weight = self.x, self.weight
        if index is None:
            self.evaluations += 1
        else:
            x, weight = x[index], weight[index]
            weight = weight * (self.weight.sum() / weight.sum())
        with torch.no_grad():
            partition = self.dgn.partition
            model = self.dgn.model(partition)
            _, s = accumulate(model, x, weight)
            penalty = 0.0 if self.prior is None else self.prior.energy(list(self.trained.weights))
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

    def is_finite(self) -> bool:
        """Whether no parameter has overflowed."""
        return all(bool(torch.isfinite(p).all()) for p in self.dgn.parameters())

    def system(self, now: Evaluation) -> NormalSystem | None:
        """The hidden update at the current parameters, those of `now`; `None` if there is nothing to update."""
        if now.system is None and self.trained.hidden:
            with torch.no_grad():
                if self.trained.is_chain:
                    layers = hidden_layers(self.dgn.trace, now.partition)
                    now.system = HiddenSystem(now.model, now.statistics, layers, self.prior)
                else:
                    now.system = JacobianSystem(
                        self.dgn, self.trained, now.model, now.partition, now.statistics, self.prior
                    )
        return now.system

    @torch.no_grad()
    def change(self, changes: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        """Add to parameters."""
        for parameter, change in changes:
            parameter.add_(change)
        self.admit()

    def change_head(self, change: Tensor) -> None:
        """Add a `(D, H + 1)` change to the last map, `(D, H)` where it has no bias."""
        if self.trained.head is not None:
            module = self.trained.head.module
            changes = [(cast(nn.Parameter, module.weight), change[:, : module.in_features])]
            if isinstance(module.bias, nn.Parameter):
                changes.append((module.bias, change[:, -1]))
            self.change(changes)

    @torch.no_grad()
    def admit(self) -> None:
        """Move the weights into the support of their prior, which rounding and random starts may leave."""
        if self.prior is not None:
            self.prior.admit(list(self.trained.weights))

    @torch.no_grad()
    def balance(self) -> None:
        """Give the weights the scales that their prior likes best, if the network is a chain: the same generator."""
        if self.prior is not None and self.trained.is_chain:
            chain = self.dgn.trace.chain or ()
            self.prior.balance([step.module for step in chain if isinstance(step, LinearStep)])


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
    head = problem.trained.head

    def move() -> None:
        change = torch.zeros_like(s.outer)
        if "head" in chosen and head is not None:
            change = head_change(now.model, s, head.has_bias, problem.prior)
            problem.change_head(change)
        if "noise" in chosen:
            dgn.noise.copy_(noise_update(s, change, dgn.noise, problem.noise_floor))
        if "prior" in chosen:
            dgn.prior.copy_(prior_update(s))

    return attempt(problem, now.nll, problem.parameters(), move) or now


def hidden_step(problem: Problem, now: Evaluation, damping: float) -> tuple[Evaluation, float]:
    """Damped update of all hidden layers, with backtracking on the exact NLL."""
    system = problem.system(now)
    if system is None:
        return now, damping
    before = problem.parameters()

    def move() -> None:
        problem.change(system.changes(system.direction(damping)))

    for _ in range(_TRIES):
        better = attempt(problem, now.nll, before, move)
        if better is not None:
            return better, max(damping / _LOWER, LEAST_DAMPING)
        damping = min(damping * _RAISE, MOST_DAMPING)
    return now, damping


def attempt(
    problem: Problem, bound: float, before: dict[str, Tensor], move: Callable[[], object] | None = None
) -> Evaluation | None:
    """Move the parameters and evaluate them; `None`, and the parameters of `before`, when that fails.

    A move fails that leaves the NLL above the bound, overflows, or gives a covariance that is not positive definite,
    and so does one that cannot be computed at all.
    """
    try:
        with torch.no_grad():
            if move is not None:
                move()
        after = problem.evaluate() if problem.is_finite() else None
    except (NonFiniteError, LinAlgError):
        after = None
    if after is not None and -math.inf < after.nll <= bound:  # false for NaN
        return after
    problem.restore(before)
    return None


def noise_floor(dgn: DGN, x: Tensor, weight: Tensor, share: float = 1e-6) -> Tensor:
    """The lower bound on the noise variances: a share of the variance of the data, column by column.

    Columns without variance are measured by the mean variance, and data without any by their size.
    """
    entry, mean, deviation = column_spread(x, weight)
    size = root_mean_square(entry + mean)
    common = root_mean_square(deviation) or (size if 1e-140 < size < 1e150 else 1.0)  # its square is a number
    if dgn.noise.ndim == 0:
        return share * deviation.new_tensor(common).square()
    return share * torch.where(deviation > 0, deviation, common).square()
