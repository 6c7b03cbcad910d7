r"""Acceleration of EM: limited-memory BFGS whose first guess of the curvature is that of EM.

By Fisher's identity the E-step gives the gradient of the exact likelihood, so every exact evaluation that the
safeguard needs anyway can also move all parameters at once. A step is `-H g`, with H the inverse BFGS matrix of
the last pairs (change of parameters, change of gradient), grown from the inverse curvature of the complete-data
log-likelihood: without pairs it is an EM step, with them it learns the missing information that makes EM slow. A
step is accepted if the exact penalised NLL falls enough (Armijo); if no step along the direction does, the
iteration is a plain EM step.

The parameters move as one vector without constraints. The coordinates of a noise or prior are
`Covariance.coordinates`; weights and biases are themselves. So every vector is admissible, and the noise only has to
be held above its floor.

Source:
    Lange (1995), A quasi-Newton acceleration of the EM algorithm, Statistica Sinica 5; Jamshidian and Jennrich
    (1997), J. R. Statist. Soc. B 59.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih.covariance import Covariance
from girih.em.iteration import Evaluation, Problem, attempt, em_step, lowered, raised
from girih.em.mstep import head_parameters, pseudo_inverse
from girih.em.normal_equations import NormalSystem

_MEMORY = 20
_TRIES = 4
_ARMIJO = 1e-4


def no_pairs() -> Tensor:
    """An empty memory; otherwise it is `(2, m, n)`, the pairs (change of parameters, change of gradient)."""
    return torch.empty(2, 0, 0, dtype=torch.float64)


def quasi_newton_step(
    problem: Problem, now: Evaluation, damping: float, updates: Iterable[str], pairs: Tensor
) -> tuple[Evaluation, float, Tensor]:
    """One accelerated iteration; returns the new E-step, damping and memory."""
    learn_prior = "prior" in set(updates)
    local = _local(problem, now, learn_prior)
    if local is None:
        return *em_step(problem, now, damping, updates), no_pairs()
    direction = _two_loop(local, pairs, damping)
    slope = -float(local.gradient @ direction)
    if not slope < 0.0:  # an indefinite memory, or NaN
        pairs = no_pairs()
        direction = local.precondition(local.gradient, damping)
        slope = -float(local.gradient @ direction)
    before, rows = problem.parameters(), float(now.statistics.weight)
    length = 1.0
    made: list[Tensor] = []
    for _ in range(_TRIES):
        made.clear()
        step = length * direction
        bound = now.nll + _ARMIJO * length * slope / rows
        after = attempt(problem, bound, before, lambda step=step: made.append(local.move(step)))  # type: ignore[misc]
        if after is not None:
            if length == 1.0:
                damping = lowered(damping)
            there = _local(problem, after, learn_prior)
            pairs = no_pairs() if there is None else _remember(pairs, made[0], local.gradient - there.gradient)
            return after, damping, pairs
        damping = raised(damping)
        length *= 0.3
    after, damping = em_step(problem, now, damping, updates)
    return after, damping, no_pairs()


def _local(problem: Problem, now: Evaluation, learn_prior: bool) -> LocalModel | None:
    """Gradient and curvature; `None` where a covariance is too near to a singular one for them."""
    if learn_prior not in now.found:  # where a step has ended the next one begins
        now.found[learn_prior] = _local_of(problem, now, learn_prior)
    return cast("LocalModel | None", now.found[learn_prior])


def _local_of(problem: Problem, now: Evaluation, learn_prior: bool) -> LocalModel | None:
    try:
        local = LocalModel(problem, now, learn_prior)
    except LinAlgError:
        return None
    return local if bool(torch.isfinite(local.gradient).all()) else None


def _remember(pairs: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The memory with one pair more, if that keeps the BFGS matrix positive definite."""
    if not float(step @ change) > 1e-10 * float(step.norm() * change.norm()):
        return pairs
    new = torch.stack((step, change))[:, None, :]
    # whole tensors, no views: where a vector starts in memory decides how its sums are rounded, and a memory that
    # comes back from a checkpoint must give the same sums
    return (
        new
        if not pairs.shape[1]
        else torch.cat((pairs, new), 1)[:, -_MEMORY:].clone(memory_format=torch.contiguous_format)
    )


def _two_loop(local: LocalModel, pairs: Tensor, damping: float) -> Tensor:
    """The inverse BFGS matrix times the gradient of the log-likelihood (Nocedal and Wright, algorithm 7.4)."""
    steps, changes = pairs
    q = local.gradient.clone()
    shares = []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        share = (s @ q) / (s @ y)
        shares.append(share)
        q -= share * y
    r = local.precondition(q, damping)
    for s, y, share in zip(steps, changes, reversed(shares), strict=True):
        r += s * (share - (y @ r) / (s @ y))
    return r


@dataclass(frozen=True)
class _Block:
    """A block is a covariance that is moved: its coordinates, and gradient and information in them."""

    covariance: Covariance
    assign: Callable[[Covariance], object]
    vector: Tensor
    gradient: Tensor
    information: Tensor


class LocalModel:
    """It has gradient and complete-data curvature of the penalised log-likelihood in the coordinates, at one point.

    Args:
        problem: with the parameters of the evaluation.
        now: the evaluation.
        learn_prior: whether the latent prior is a coordinate.
    """

    def __init__(self, problem: Problem, now: Evaluation, learn_prior: bool) -> None:
        s, model, dgn = now.statistics, now.model, problem.dgn
        self.problem, self._noise = problem, model.noise
        self.system: NormalSystem | None = problem.system(now)
        head = problem.trained.head
        self._columns = 0 if head is None else head.in_features + int(head.has_bias)
        parts = [] if self.system is None else [self.system.penalised_gradient]
        self._inverse = s.features[:0, :0]
        if head is not None:
            n = self._columns
            ridge = torch.zeros(n, dtype=torch.float64, device=s.features.device)
            pull = model.noise.solve(s.outer[:, :n])
            if problem.prior is not None:
                ridge[: head.in_features] = 1.0 / problem.prior.scale**2
                pull = pull - ridge * head_parameters(model, n)
            self._inverse = pseudo_inverse(s.features[:n, :n] + model.noise.mean_variance * torch.diag(ridge))
            parts.append(pull.flatten())
        self.blocks = [_block(model.noise, partial(setattr, dgn, "noise_covariance"), s.scatter, s.weight)]
        if learn_prior:
            prior = Covariance.from_tensors((model.prior,), dgn.latent_dim)
            self.blocks.append(_block(prior, lambda value: dgn.prior.copy_(value.tensors[0]), s.latent, s.weight))
        self.gradient = torch.cat([*parts, *(block.gradient for block in self.blocks)])

    def precondition(self, vector: Tensor, damping: float) -> Tensor:
        """The inverse of the damped complete-data curvature, block by block, times a vector."""
        hidden, head, *blocks = self._split(vector)
        parts = [] if self.system is None else [self.system.solve(hidden, damping)]
        if self._columns:
            scaled = head.reshape(-1, self._columns) @ self._inverse
            parts.append(self._noise.times(scaled).flatten())
        parts += [part / block.information for part, block in zip(blocks, self.blocks, strict=True)]
        return torch.cat(parts)

    @torch.no_grad()
    def move(self, step: Tensor) -> Tensor:
        """Change the parameters by a step; returns the step that was made once the noise is above its floor."""
        hidden, head, *blocks = self._split(step)
        if self.system is not None:
            self.problem.change(self.system.changes(hidden))
        if self._columns:
            self.problem.change_head(head.reshape(-1, self._columns))
        made = [hidden, head]
        for index, (block, part) in enumerate(zip(self.blocks, blocks, strict=True)):
            value = block.covariance.from_coordinates(block.vector + part)
            if index == 0:
                value = value.at_least(self.problem.noise_floor)
                part = value.coordinates - block.vector
            block.assign(value)
            made.append(part)
        return torch.cat(made)

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        hidden = 0 if self.system is None else self.system.size
        blocks = [len(block.vector) for block in self.blocks]
        result: tuple[Tensor, ...] = vector.split([hidden, len(vector) - hidden - sum(blocks), *blocks])
        return result


def _block(covariance: Covariance, assign: Callable[[Covariance], object], scatter: Tensor, weight: Tensor) -> _Block:
    vector, slope = covariance.coordinates, covariance.gradient(scatter, weight)
    with torch.enable_grad():
        leaf = vector.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(covariance.from_coordinates(leaf).tensors, leaf, slope)
    return _Block(covariance, assign, vector, gradient, covariance.information(weight))


# The first block of EM steps, and every later block: the basin is chosen by EM, which is the more robust.
_FIRST, _BLOCK = 20, 10

# The measured rate of the way that rests is trusted this much less after each block.
_FADE = 0.7


@dataclass(frozen=True)
class Pace:
    """Iterations come in blocks of one kind; after each, the kind with the better gain for each evaluation goes on.

    Neither kind wins everywhere: far from the optimum the damped EM step moves further, near it the quasi-Newton
    step is worth many of them. So both are measured on the fit itself.

    Attributes:
        accelerated: the kind of the block under way.
        left: its iterations that are left.
        gain: the fall of the NLL in it.
        evaluations: exact evaluations in it.
        em, quasi_newton: gain for each evaluation in the last block of that kind, fading; `None` before the first.
    """

    accelerated: bool = False
    left: int = _FIRST
    gain: float = 0.0
    evaluations: int = 0
    em: float | None = None
    quasi_newton: float | None = None

    def after(self, gain: float, evaluations: int) -> Pace:
        """The state after an iteration.

        Example:
            >>> from girih.em.quasi_newton import Pace
            >>> pace = Pace(left=1).after(0.1, 2)
            >>> pace.accelerated, pace.em
            (True, 0.05)
        """
        total, count, left = self.gain + gain, self.evaluations + evaluations, self.left - 1
        if left > 0:
            return replace(self, left=left, gain=total, evaluations=count)
        rate = total / max(count, 1)
        other = self.em if self.accelerated else self.quasi_newton
        change = other is None or rate < _FADE * other
        if other is not None and not change:
            other *= _FADE
        em, quasi_newton = (other, rate) if self.accelerated else (rate, other)
        return Pace(self.accelerated != change, _BLOCK, 0.0, 0, em, quasi_newton)
