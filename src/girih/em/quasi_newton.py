r"""Acceleration of EM: limited-memory BFGS whose first guess of the curvature is that of EM.

By Fisher's identity the E-step gives the gradient of the exact likelihood, so every exact evaluation that the
safeguard needs anyway can also move all parameters at once. A step is `-H g`, with H the inverse BFGS matrix of
the last pairs (change of parameters, change of gradient), grown from the inverse curvature of the complete-data
log-likelihood: without pairs it is an EM step, with them it learns the missing information that makes EM slow. A
step is accepted if the exact penalised NLL falls enough (Armijo); if no step along the direction does, the
iteration is a plain EM step.

Source:
    Lange (1995), A quasi-Newton acceleration of the EM algorithm, Statistica Sinica 5; Jamshidian and Jennrich
    (1997), J. R. Statist. Soc. B 59.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih.em.coordinates import LocalModel
from girih.em.step import LEAST_DAMPING, MOST_DAMPING, Evaluation, Problem, attempt, em_step

_MEMORY = 20
_TRIES = 4
_ARMIJO = 1e-4
_RAISE, _LOWER = 5.0, 3.0


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
                damping = max(damping / _LOWER, LEAST_DAMPING)
            there = _local(problem, after, learn_prior)
            pairs = no_pairs() if there is None else _remember(pairs, made[0], local.gradient - there.gradient)
            return after, damping, pairs
        damping = min(damping * _RAISE, MOST_DAMPING)
        length *= 0.3
    after, damping = em_step(problem, now, damping, updates)
    return after, damping, no_pairs()


def _local(problem: Problem, now: Evaluation, learn_prior: bool) -> LocalModel | None:
    """Gradient and curvature; `None` where a covariance is too near to a singular one for them."""
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
