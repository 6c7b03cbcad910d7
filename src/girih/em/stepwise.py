r"""Stepwise EM for rows that can be passed once only.

The first 10,000 rows are kept and fitted as rows in memory are. Every further batch of B rows is then seen once: its
exact E-step at the current parameters is blended into the statistics so far,

    s <- (1 - gamma) s + gamma s_batch,    gamma = (B / rows so far)^0.8,

and the M-steps of the last map, the noise and the prior follow; the hidden layers take `gamma` times their damped step.
The exponent lies between 1/2 and 1, for which the steps add up to infinity and their squares do not, so that the
parameters come to rest; with 1 early batches, seen at poor parameters, would count as much as late ones. The NLL of a
batch before it is learned is that of fresh rows. Without a second pass nothing can be undone, so that this NLL need not
fall at each step, and what comes out is near to, not at, the optimum of all rows: where the rows can be read again, let
them be read again.

Source:
    Cappé and Moulines (2009), On-line expectation-maximization algorithm, J. R. Statist. Soc. B 71.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih._progress import Progress
from girih.em.in_memory import Around, HeldOutRows, fit_rows, noise_bounds
from girih.em.iteration import BLENDED, Problem, batch_step
from girih.em.options import EMOptions
from girih.em.runs import HeldOut
from girih.em.scaling import Scaling
from girih.em.streamed import SAMPLE, numbers
from girih.errors import NonFiniteError, ParameterError
from girih.inference import DGN, Statistics
from girih.streams import Blocks, Processes
from girih.training import FitResult, split

EXPONENT = 0.8
_BATCH = 1000  # rows of a batch at least, but for the last


def rate(batch: int, rows: int) -> float:
    """gamma, the share of a batch among so many rows with it."""
    return float((batch / rows) ** EXPONENT)


def fit_once(dgn: DGN, blocks: Blocks, validation: object, options: EMOptions, around: Around) -> FitResult:
    """Fit to blocks that can be passed once; see `girih.em.fit_em`."""
    if around.checkpoint is not None:
        raise ParameterError("an iterator cannot be passed again after a kill; leave checkpoint out, or pass files")
    batches = _batches(numbers(dgn, blocks, Processes.now()))
    x, held = _first(dgn, batches, validation, options.seed)
    weight = x.new_ones(len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first = fit_rows(dgn, x, weight, held, options, replace(around, callback=None))
    scaling = Scaling.for_fit(dgn, x, weight, rescale=options.prior is None)
    bounds = noise_bounds(dgn, x, weight, options, scaling)
    began = time.perf_counter()
    with scaling.inside(dgn):
        problem = Problem(dgn, scaling.apply(x), weight, options.prior, bounds.floor)
        bounds.hold(problem, options)
        steps = _Steps(problem, options, None if held is None else HeldOut.of(*held, scaling))
        bar = Progress("stepwise EM", options.max_iter, 0, around.progress)
        interrupted = first.ended == "interrupted"
        try:
            for batch in batches if not interrupted else ():
                nll = steps.take(scaling.apply(batch), float(scaling.log_jacobian(batch).mean()))
                bar.show(len(steps.curve), f"NLL {nll:.4f}")
                if around.callback is not None:
                    with scaling.outside(dgn):
                        around.callback(len(steps.curve), nll)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            bar.close()
    warn_of(steps.left_out, len(steps.curve))
    curve = np.array([first.curve[-1], *steps.curve])
    history = {"step": np.arange(len(curve)), "nll": curve}
    if steps.held_out is not None:
        history["held_out"] = np.array(steps.scores) + steps.held_out.shift
    return replace(
        first,
        history=history,
        steps=len(curve) - 1,
        seconds=first.seconds + time.perf_counter() - began,
        ended="interrupted" if interrupted else "stream",
        best_step=len(curve) - 1,
        held_out=float(history["held_out"][-1]) if steps.held_out is not None else None,
        log_likelihood=-float(curve[-1]),
    )


def warn_of(left_out: int, batches: int) -> None:
    """Warn where batches were passed that no step could be made from."""
    if left_out:
        warnings.warn(
            f"{left_out} of {batches} batches were left out, as a step from them has no finite numbers; look for "
            "extreme values in the stream, or give larger blocks",
            ConvergenceWarning,
            stacklevel=4,
        )


class _Steps:
    """The statistics so far, and the steps that batches take from there."""

    def __init__(self, problem: Problem, options: EMOptions, held_out: HeldOut | None) -> None:
        self.problem, self.chosen, self.held_out = problem, set(options.updates), held_out
        now = problem.evaluate()
        self.rows, self.blended = len(problem.x), now.statistics
        self.curve: list[float] = []
        self.left_out = 0  # batches whose step failed
        self.scores = [] if held_out is None else [held_out.nll(now.model)]

    def take(self, x: Tensor, shift: float) -> float:
        """Learn a batch in the units of EM, unless the step fails; returns its NLL before that, `shift` added."""
        problem, before = self.problem, self.problem.parameters()
        rows = self.rows + len(x)
        part = problem.evaluate_on(x, x.new_ones(len(x)), x.new_tensor(float(rows)))
        grown = {name: getattr(self.blended, name) * (rows / self.rows) for name in BLENDED}
        blended: Statistics = replace(self.blended, **grown)
        try:
            blended = batch_step(problem, part, blended, self.chosen, rate(len(x), rows))
            good = problem.is_finite()
        except (NonFiniteError, LinAlgError):
            good = False
        if not good:
            problem.restore(before)
            self.left_out += 1
        else:
            self.rows, self.blended = rows, blended
        self.curve.append(-part.log_likelihood + shift)
        if self.held_out is not None:
            self.scores.append(self.held_out.nll(problem.dgn.model()))
        return self.curve[-1]


def _batches(blocks: Iterator[tuple[int, Tensor]]) -> Iterator[Tensor]:
    """Blocks joined to batches of a size that a step is worth."""
    waiting: list[Tensor] = []
    for _, x in blocks:
        waiting.append(x)
        if sum(map(len, waiting)) >= _BATCH:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _first(dgn: DGN, batches: Iterator[Tensor], validation: object, seed: int) -> tuple[Tensor, HeldOutRows | None]:
    """The rows that are fitted in memory, and those that are held out of them."""
    kept: list[Tensor] = []
    for batch in batches:
        kept.append(batch)
        if sum(map(len, kept)) >= SAMPLE:
            break
    rows = torch.cat(kept) if kept else dgn.rows(torch.empty(0, dgn.output_dim))  # says that there are none
    x, held = split(rows, validation, seed, lambda given: dgn.rows(given).detach())  # type: ignore[arg-type]
    return x, None if held is None else (held, held.new_ones(len(held)))
