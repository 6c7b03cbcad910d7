r"""One epoch of EM over batches of rows, for data with many rows.

Each batch gives an exact E-step of its own rows. The statistics of the head, the noise and the prior are blended,

    s <- (1 - rate) s + rate s_batch N / n,

starting from those of all rows, which the safeguard of the epoch before has left; after each move of the head they
are rewritten about the new residuals, which is exact. The hidden layers take `rate` times their damped step on the
batch. The epoch ends with the exact NLL of all rows: where it rose, everything is undone.

Source:
    Cappé and Moulines (2009), On-line expectation-maximization algorithm, J. R. Statist. Soc. B 71.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih.em.mstep import about, head_change, noise_update, prior_update
from girih.em.step import Evaluation, Problem, attempt
from girih.errors import NonFiniteError
from girih.inference.statistics import Statistics

# The share of a batch in the blended statistics, and of its damped step in the hidden layers.
RATE = 0.7

# Damping of a step that only a batch has decided; the rows of the other batches have no say in it.
_DAMPING = 0.1


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
                blended = _step(problem, problem.evaluate(index), blended, chosen)
    except (NonFiniteError, LinAlgError):
        problem.restore(before)
        return None
    return attempt(problem, now.nll, before)


@torch.no_grad()
def _step(problem: Problem, part: Evaluation, blended: Statistics, chosen: set[str]) -> Statistics:
    """Move all parameters on a batch; returns the blended statistics about the new residuals."""
    dgn, head = problem.dgn, problem.trained.head
    blended = _blend(blended, part.statistics)
    system = problem.system(part) if "hidden" in chosen else None
    change = torch.zeros_like(blended.outer)
    if "head" in chosen and head is not None:
        change = head_change(part.model, blended, head.has_bias, problem.prior)
    if "noise" in chosen:
        dgn.noise_covariance = noise_update(blended, change, dgn.noise_covariance, problem.noise_floor)
    if "prior" in chosen:
        dgn.prior.copy_(prior_update(blended))
    if system is not None:
        problem.change(system.changes(RATE * system.direction(_DAMPING)))
    problem.change_head(change)
    return about(part.model.noise, blended, change)


# The statistics of the last map, the noise and the prior; the others belong to the cells, which move.
_BLENDED = ("outer", "features", "scatter", "latent")


def _blend(old: Statistics, new: Statistics) -> Statistics:
    return replace(new, **{n: torch.lerp(getattr(old, n), getattr(new, n), RATE) for n in _BLENDED})
