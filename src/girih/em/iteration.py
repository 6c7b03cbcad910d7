r"""One safeguarded EM iteration, on all rows or in batches.

`evaluate` is the E-step: the exact penalised NLL and the statistics. Each update proposes parameters, evaluates
them exactly, and is undone when the NLL rose: the exact M-steps cannot raise it beyond rounding, the update of
the hidden layers can, and is then damped more and tried again. So the NLL never increases, by construction.

An epoch over batches, for data with many rows, gives each batch an exact E-step of its own rows. The statistics of the
head, the noise and the prior are blended,

    s <- (1 - rate) s + rate s_batch N / n,

starting from those of all rows, which the safeguard of the epoch before has left; after each move of the head they
are rewritten about the new residuals, which is exact. The hidden layers take `rate` times their damped step on the
batch. The epoch ends with the exact NLL of all rows: where it rose, everything is undone.

Source:
    Cappé and Moulines (2009), On-line expectation-maximization algorithm, J. R. Statist. Soc. B 71.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih.em.jacobian import JacobianSystem
from girih.em.mstep import WeightPrior, about, head_change, noise_update, prior_update
from girih.em.normal_equations import HiddenSystem, NormalSystem, hidden_layers, sweep
from girih.em.parameters import Trained
from girih.em.penalties import penalised
from girih.em.scaling import noise_floor
from girih.errors import NonFiniteError, ParameterError
from girih.inference import DGN, Model, Statistics, sufficient_statistics
from girih.networks import LinearStep
from girih.partition import Partition

# Damping of the hidden update: relative to the diagonal of its normal matrix.
INITIAL_DAMPING = 1e-3
_RAISE, _LOWER = 5.0, 3.0
_LEAST, _MOST = 1e-9, 1e8
_TRIES = 8

# The share of a batch in the blended statistics, and of its damped step in the hidden layers.
RATE = 0.7

# Damping of a step that only a batch has decided; the rows of the other batches have no say in it.
_DAMPING = 0.1

# The statistics of the last map, the noise and the prior; the others belong to the cells, which move.
BLENDED = ("outer", "features", "scatter", "latent")


@dataclass
class Evaluation:
    """An E-step gives the exact NLL and the statistics at the current parameters."""

    nll: float  # penalised, nats per row
    log_likelihood: float  # without the penalty, nats per row
    model: Model
    partition: Partition
    statistics: Statistics
    system: NormalSystem | None = field(default=None, repr=False)  # made once it is asked for
    found: dict[object, object] = field(default_factory=dict, repr=False)  # what else is known of these parameters


class Problem:
    """A problem holds a model, weighted rows and the settings of the M-step, and changes the model in place.

    Raises:
        UnsupportedLayerError: a layer that EM cannot train.
        ParameterError: a weight prior that this generator cannot have.

    Attributes:
        kink_ridge, noise_prior: the penalties of `girih.em.penalties`: lambda, and the variances `rho U` `(D,)` or
            `None`.
        shared: whether other processes take part in every evaluation.
        layerwise: whether the hidden layers move one by one to their closed-form M-steps, not together.
        safeguard: whether a step that raises the exact NLL is undone.
        has_statistics: whether M-steps have closed forms, of the statistics, as they have with Gaussian noise.
        dear: how many times fewer rows starts are tried on than elsewhere.
    """

    kink_ridge: float = 0.0
    noise_prior: Tensor | None = None
    shared: bool = False
    layerwise: bool = False
    safeguard: bool = True
    has_statistics: ClassVar[bool] = True
    dear: ClassVar[int] = 1

    def __init__(
        self, dgn: DGN, x: Tensor, weight: Tensor, prior: WeightPrior | None = None, floor: Tensor | None = None
    ) -> None:
        self.dgn, self.x, self.weight, self.prior = dgn, x, weight, prior
        self.evaluations = 0  # exact evaluations of all rows so far
        self.noise_floor = noise_floor(dgn, x, weight) if floor is None else floor
        self.trace = dgn.trace  # EM changes numbers, not what the network is built of
        self.trained = Trained.of(dgn.net, self.trace)
        self._named = dict(dgn.named_parameters())
        if prior is not None and prior.family != "gaussian" and not self.trained.is_chain:
            raise ParameterError(
                f"a {prior.family} weight prior needs a chain of Linear layers and activations, and this network has "
                "other layers or branches; use a Gaussian weight prior"
            )
        self.admit()

    @property
    def suggested(self) -> Tensor:
        """The outputs of the network that the rows suggest, where starts are looked for."""
        return self.x

    def step(self, now: Evaluation, damping: float, updates: Iterable[str]) -> tuple[Evaluation, float]:
        """One iteration of EM; returns the new E-step and damping."""
        return em_step(self, now, damping, updates)

    def evaluate(self, index: Tensor | None = None) -> Evaluation:
        """The E-step: exact NLL and statistics at the current parameters.

        Args:
            index: the rows of a batch, which then stands for all rows: their weights are scaled up.
        """
        with torch.no_grad():
            if index is None:
                self.evaluations += 1
                return self._evaluated(self.expect)
            return self.evaluate_on(self.x[index], self.weight[index], self.weight.sum())

    @torch.no_grad()
    def evaluate_on(self, x: Tensor, weight: Tensor, total: Tensor) -> Evaluation:
        """The E-step of rows `(B, D)`, whose weights `(B,)` are scaled to the sum `total`."""
        weight = weight * (total / weight.sum())
        return self._evaluated(lambda model: sufficient_statistics(model, x, weight))

    def some(self, index: Tensor) -> Problem:
        """The problem of some rows, which stand for all: their weights are scaled up."""
        few = copy.copy(self)
        few.x, few.evaluations = self.x[index], 0
        few.weight = self.weight[index] * (self.weight.sum() / self.weight[index].sum())
        return few

    def expect(self, model: Model) -> Statistics:
        """The statistics of all rows."""
        return sufficient_statistics(model, self.x, self.weight)

    def _evaluated(self, expect: Callable[[Model], Statistics]) -> Evaluation:
        partition = self.dgn._partition(self.trace)
        model = self.dgn.model(partition, self.trace)
        s = expect(model)
        penalty = 0.0 if self.prior is None else self.prior.energy(self.trained.weights)
        total = float(s.log_likelihood)
        rows = float(s.weight)
        if self.kink_ridge or self.noise_prior is not None:
            s, more = penalised(model, s, self.kink_ridge, self.noise_prior)
            penalty += more
        return Evaluation((penalty - total) / rows, total / rows, model, partition, s)

    def parameters(self) -> dict[str, Tensor]:
        """A copy of everything that EM changes."""
        return {name: p.detach().clone() for name, p in self._named.items()}

    def restore(self, parameters: dict[str, Tensor]) -> None:
        """Put back what `parameters` gave."""
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(parameters[name])

    def is_finite(self) -> bool:
        """Tell whether all parameters are finite."""
        return bool(torch.isfinite(torch.cat([p.detach().flatten() for p in self._named.values()])).all())

    def system(self, now: Evaluation) -> NormalSystem | None:
        """The hidden update at the current parameters, those of `now`; `None` if there is nothing to update."""
        if now.system is None and self.trained.hidden:
            with torch.no_grad():
                if self.trained.is_chain:
                    layers = hidden_layers(self.trace, now.partition)
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
            chain = self.trace.chain or ()
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

    def move() -> None:
        problem.change_head(_m_step(problem, now, now.statistics, set(updates)))

    return attempt(problem, now.nll, problem.parameters(), move) or now


def _m_step(problem: Problem, now: Evaluation, s: Statistics, chosen: set[str]) -> Tensor:
    """Set noise and prior to their M-steps, if chosen; returns the change `(D, H + 1)` of the last map by its own."""
    dgn, head = problem.dgn, problem.trained.head
    change = torch.zeros_like(s.outer)
    if "head" in chosen and head is not None:
        change = head_change(now.model, s, head.has_bias, problem.prior)
    if "noise" in chosen:
        dgn.noise_covariance = noise_update(s, change, now.model.noise, problem.noise_floor)
    if "prior" in chosen:
        dgn.prior.copy_(prior_update(s))
    return change


def hidden_step(problem: Problem, now: Evaluation, damping: float) -> tuple[Evaluation, float]:
    """Damped update of all hidden layers, with backtracking on the exact NLL."""
    if problem.layerwise:
        return layerwise_step(problem, now, damping)
    system = problem.system(now)
    if system is None:
        return now, damping
    before = problem.parameters()

    def move() -> None:
        problem.change(system.changes(system.direction(damping)))

    for _ in range(_TRIES):
        better = attempt(problem, now.nll, before, move)
        if better is not None:
            return better, lowered(damping)
        damping = raised(damping)
    return now, damping


def layerwise_step(problem: Problem, now: Evaluation, damping: float) -> tuple[Evaluation, float]:
    """The hidden layers on the way to their closed-form M-steps: all of it or, where the NLL rose, a smaller share.

    The share is `1 / damping`, at most 1: it halves with each step that is undone, and doubles after one that is kept.
    """
    before = problem.parameters()
    parameters = list(problem.trained.hidden.values())
    old = [p.detach().clone() for p in parameters]
    try:
        sweep(problem.trace, now.partition, now.model, now.statistics, problem.prior)
    except LinAlgError:
        problem.restore(before)
        return now, damping
    step = [p.detach() - was for p, was in zip(parameters, old, strict=True)]
    problem.restore(before)
    damping = max(damping, 1.0)

    def move() -> None:
        problem.change((p, change / damping) for p, change in zip(parameters, step, strict=True))

    for _ in range(_TRIES):
        better = attempt(problem, now.nll, before, move)
        if better is not None:
            return better, max(0.5 * damping, 1.0)
        damping = min(2.0 * damping, _MOST)
    return now, damping


def raised(damping: float) -> float:
    """The damping after a step that failed."""
    return min(damping * _RAISE, _MOST)


def lowered(damping: float) -> float:
    """The damping after a step that was kept."""
    return max(damping / _LOWER, _LEAST)


def attempt(
    problem: Problem, bound: float, before: dict[str, Tensor], move: Callable[[], object] | None = None
) -> Evaluation | None:
    """Move the parameters and evaluate them; `None`, and the parameters of `before`, when that fails.

    A move fails that leaves the NLL above the bound (if the problem has a safeguard), overflows, or gives a covariance
    that is not positive definite, and so does one that cannot be computed at all.
    """
    bound = bound if problem.safeguard else math.inf
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


def epoch(
    problem: Problem,
    now: Evaluation,
    updates: Iterable[str],
    batch: int,
    generator: torch.Generator,
) -> Evaluation | None:
    """Go once through the rows in random batches; `None`, and the old parameters, when the exact NLL rose."""
    chosen, before = set(updates), problem.parameters()
    blended = now.statistics
    order = torch.randperm(len(problem.x), generator=generator).to(problem.x.device)
    try:
        for index in order.split(batch):
            if float(problem.weight[index].sum()) > 0.0:
                blended = batch_step(problem, problem.evaluate(index), blended, chosen)
    except (NonFiniteError, LinAlgError):
        problem.restore(before)
        return None
    return attempt(problem, now.nll, before)


@torch.no_grad()
def batch_step(
    problem: Problem, part: Evaluation, blended: Statistics, chosen: set[str], rate: float | None = None
) -> Statistics:
    """Move all parameters on a batch; returns the blended statistics about the new residuals.

    Args:
        problem: at the parameters of `part`.
        part: the E-step of the batch, which stands for all rows.
        blended: the statistics so far, about the same residuals.
        chosen: what is updated.
        rate: the share of the batch; by default `RATE`.
    """
    rate = RATE if rate is None else rate
    blended = _blend(blended, part.statistics, rate)
    system = problem.system(part) if "hidden" in chosen else None
    change = _m_step(problem, part, blended, chosen)
    if system is not None:
        problem.change(system.changes(rate * system.direction(_DAMPING)))
    problem.change_head(change)
    return about(part.model.noise, blended, change)


def _blend(old: Statistics, new: Statistics, rate: float) -> Statistics:
    return replace(new, **{n: torch.lerp(getattr(old, n), getattr(new, n), rate) for n in BLENDED})
