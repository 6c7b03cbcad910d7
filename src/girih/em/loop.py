"""The EM loop: trials of random starts, the continuation of the best, convergence, the saved state.

Starts are told apart by far more than a sample of the rows would blur, and the way to the optimum of a sample leads
most of the way to that of all rows. So of many rows a sample is drawn, the starts are tried on it, and the best goes on
there; what it comes to begins the run that is kept, whose every iteration is of all rows.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from girih._jobs import jobs, side_by_side
from girih._progress import Progress
from girih.em.iteration import INITIAL_DAMPING, Evaluation, Problem, epoch, exact_step
from girih.em.options import EMOptions
from girih.em.orderings import Ordered, ordered_rows
from girih.em.quasi_newton import no_pairs, quasi_newton_step
from girih.em.runs import HeldOut, Run, State
from girih.em.starting_points import be_constant, be_curve, randomise
from girih.errors import NonFiniteError
from girih.inference.priors import MixturePrior
from girih.training import Checkpoint, Ended, FitResult

# A run has converged when this many iterations in a row each gained less than `tol`.
_PATIENCE = 3
# So many orderings of the rows are tried as starts, those that a regression explains best.
_CURVES = 2
# A finalist among the starts has this many times the iterations of a trial.
_FINAL = 4
# Rows that starts are tried on at most, by latent dimension: on a line they cost a tenth of what they do elsewhere.
TRIED_ON = {1: 16_384, 2: 2048, 3: 2048}


class Loop:
    """The loop tries each start for some iterations, then goes on with the best."""

    def __init__(
        self,
        problem: Problem,
        options: EMOptions,
        callback: Callable[[int, float], None],
        checkpoint: Checkpoint | None,
        held_out: HeldOut | None = None,
        n_jobs: int | None = 1,
    ) -> None:
        self.held_out, self.n_jobs = held_out, n_jobs
        self.problem, self.updates, self.options = problem, options.updates, options
        self.every = problem  # that of all rows; `self.problem` is that of the run under way
        self.callback, self.checkpoint, self.prior = callback, checkpoint, problem.prior
        # a Laplace or uniform prior has no gradient everywhere, which quasi-Newton steps need
        smooth = problem.prior is None or problem.prior.family == "gaussian"
        self.accelerated = (
            smooth and options.acceleration != "none" and options.m_step == "joint" and problem.has_statistics
        )
        self.trial_length = min(options.init_iter, options.max_iter)
        self.final_length = min(_FINAL * options.init_iter, options.max_iter)
        # at the high noise of a start a weight prior outweighs the data and pulls every weight to 0, where it stays
        self.warmup = self.trial_length if problem.prior is not None and options.n_init > 0 else 0

    def run(self, progress: bool, shift: float = 0.0) -> FitResult:
        """Run to the end; NLLs are shown and returned with `shift` added, which the units of the rows make."""
        found = None if self.checkpoint is None else self.checkpoint.read()
        self.problem = self._few or self.every
        state = State(self._new_run(0)) if found is None else State.of(found)
        if state.start >= self._stages:
            self.problem = self.every
        self.since = time.perf_counter() - state.seconds
        interrupted = False
        finals = len(self._finals)
        total = self.trials * self.trial_length + finals * self.final_length + self.options.max_iter
        bar = Progress("EM", total, self._done(state), progress)
        try:
            for description in self._iterations(state):
                bar.show(self._done(state), f"NLL {state.run.curve[-1] + shift:.4f}", description)
        except KeyboardInterrupt:
            if self.problem.shared:  # the other processes wait in a pass that this one has left
                raise
            interrupted = True
        finally:
            bar.close()
        self._save(state)
        kept = self._with_prior(state.run)
        if interrupted and state.start < self._stages:
            best = state.best
            kept = self._on_all_rows(kept if best is None or not best.score < kept.score else best)
        self.problem.restore(kept.best or kept.parameters)
        return self._result(kept, state, interrupted, shift)

    def _iterations(self, state: State) -> Iterator[str]:
        """Run to the end, yielding what is going on after each iteration."""
        if jobs(self.n_jobs) > 1:
            yield from self._tried_together(state)
        while state.start < self._stages:
            trial, kind = state.start < self.trials, self._kind(state.start)
            of = f"start {state.start + 1} of {self.trials}" if trial else f"{kind} goes on"
            now: Evaluation | None = None
            while not self._ended(state.run, self.trial_length if trial else self.final_length):
                now = self._iterate(state, now)
                yield of + ", no weight prior yet" * bool(state.run.warmup)
            self._end(state)
        now = None
        while not self._ended(state.run, self.options.max_iter):
            now = self._iterate(state, now)
            self.callback(len(state.run.curve) - 1, state.run.curve[-1])
            yield "EM"
        state.run = self._no_worse_than_constant(state.run)

    def _end(self, state: State) -> None:
        """Note what a trial or a finalist has come to, and begin what follows."""
        self._note(state)
        following = self._begin(state, state.start + 1)
        state.run, state.start = following, state.start + 1

    def _note(self, state: State) -> None:
        trial, kind = state.start < self.trials, self._kind(state.start)
        best = state.finalists.get(kind)
        if not trial or best is None or state.run.score < best.score:
            state.finalists[kind] = state.run
        if trial:
            state.starts.append(state.run.curve[-1])

    def _tried_together(self, state: State) -> Iterator[str]:
        """Make the trials that are left side by side; they count in their order, so the numbers are the same."""
        left = range(state.start, self.trials)
        if len(left) < 2:
            return
        self.problem.prior = self.prior
        tasks = [_Trial(self.problem, self.options, self.held_out, start) for start in left]
        done: dict[int, Run] = {}
        for place, run in side_by_side(_tried, tasks, self.n_jobs):
            done[left[place]] = run
            while state.start in done:
                state.run = done.pop(state.start)
                self._note(state)
                state.start += 1
                if self.checkpoint is not None and self.checkpoint.due():
                    state.run = self._begin(state, state.start)
                    self._save(state)
                yield f"{state.start} of {self.trials} starts"
        state.run = self._begin(state, state.start)

    @cached_property
    def _finals(self) -> tuple[str, ...]:
        """The finalists: the best curve and the best random start go on for a while, as these are slower, not worse.

        On a sample of the rows the best goes on in any case, where its iterations cost less.
        """
        kinds = ("curve", "random start") if self._curves else ("random start",)
        if self._few is None:
            return kinds * bool(self.trials and self._curves)
        return kinds[: self.trials]

    @property
    def _stages(self) -> int:
        """The trials and finalists, before the run that is kept."""
        return self.trials + len(self._finals)

    def _kind(self, start: int) -> str:
        if start < self.trials:
            return "curve" if start < len(self._curves) else "random start"
        return self._finals[start - self.trials]

    def _begin(self, state: State, start: int) -> Run:
        """What a trial or a finalist begins with, or what is continued after them."""
        if start < self.trials:
            return self._new_run(start)
        best = state.finalists[self._kind(start)] if start < self._stages else state.best
        assert best is not None
        return best if start < self._stages else self._on_all_rows(best)

    def _on_all_rows(self, run: Run) -> Run:
        """A run on a sample of the rows as it goes on with all of them, with what it has learned of the curvature."""
        if self._few is None:
            return run
        self.problem = self.every
        self.problem.restore(run.best or run.parameters)
        return replace(self._fresh(), pairs=run.pairs, damping=run.damping, pace=run.pace)

    def _ended(self, run: Run, length: int) -> bool:
        return not run.warmup and (len(run.curve) > length or run.quiet >= _PATIENCE or self._out_of_patience(run))

    def _out_of_patience(self, run: Run) -> bool:
        patience = self.options.patience
        return patience is not None and run.idle(self.options.tol) >= patience

    def _watched(self, run: Run, now: Evaluation) -> Run:
        """The run with what its last parameters, those of an evaluation, give on the held-out rows."""
        if run.warmup:
            return run
        if self.held_out is None:
            rises = not self.problem.safeguard  # then the lowest point may not be the last
            return replace(run, best=run.parameters) if rises and run.curve[-1] <= min(run.curve) else run
        nll = self.held_out.nll(now.model)
        best = run.parameters if not nll >= min(run.held_out, default=math.inf) else run.best
        return replace(run, held_out=[*run.held_out, nll], best=best)

    def _iterate(self, state: State, now: Evaluation | None) -> Evaluation | None:
        run = state.run
        self.problem.prior = None if run.warmup else self.prior
        if now is None:
            self.problem.restore(run.parameters)
            now = self.problem.evaluate()
        if not math.isfinite(now.nll):
            raise NonFiniteError(
                "the likelihood is not finite at the starting parameters; rescale the columns of X to moderate values"
            )
        # one assignment, so that Ctrl-C finds either the old run or the new one
        after: Evaluation | None
        after, done = self._epoch(run, now) if run.batch else self._step(run, now)
        if run.warmup:
            left = run.warmup - 1 if done.quiet < _PATIENCE else 0
            done, after = replace(done, warmup=left, curve=done.curve[-1:]), after if left else None
        elif after is not None:
            done = self._watched(done, after)
        state.run = done if after is not None else self._with_prior(replace(done, warmup=1))
        if self.checkpoint is not None and self.checkpoint.due():
            self._save(state)
        return after

    def _save(self, state: State) -> None:
        state.seconds = time.perf_counter() - self.since
        if self.checkpoint is not None:
            self.checkpoint.write(state.contents())

    def _step(self, run: Run, now: Evaluation) -> tuple[Evaluation, Run]:
        """An iteration on all rows."""
        problem, pace, pairs, before = self.problem, run.pace, run.pairs, self.problem.evaluations
        if self.accelerated and pace.accelerated:
            after, damping, pairs = quasi_newton_step(problem, now, run.damping, self.updates, pairs)
        else:
            after, damping = problem.step(now, run.damping, self.updates)
        gain = run.curve[-1] - after.nll
        if self.accelerated:
            pace = pace.after(gain, problem.evaluations - before)
        quiet = run.quiet + 1 if abs(gain) < self.options.tol else 0
        curve = [*run.curve, after.nll]
        done = replace(run, parameters=problem.parameters(), pairs=pairs, damping=damping, curve=curve)
        return after, replace(done, quiet=quiet, batch=0, pace=pace, warmup=0)

    def _epoch(self, run: Run, now: Evaluation) -> tuple[Evaluation, Run]:
        """An iteration in batches; after one that had to be undone, batches are twice as large."""
        problem, batch = self.problem, run.batch
        generator = torch.Generator().manual_seed(_mix(self.options.seed, len(run.curve) - run.warmup))
        after = epoch(problem, now, self.updates, batch, generator)
        if after is None or run.curve[-1] - after.nll < self.options.tol:
            batch = 2 * batch if 2 * batch < len(problem.x) else 0
        after = after or now
        curve = [*run.curve, after.nll]
        return after, replace(run, parameters=problem.parameters(), curve=curve, batch=batch)

    @cached_property
    def trials(self) -> int:
        """The starts that are tried: a single one needs no trial, it simply goes on, but for many rows on a sample."""
        if self.options.n_init > 1:
            return self.options.n_init + len(self._curves)
        return self.options.n_init if self._few is not None else 0

    @cached_property
    def _few(self) -> Problem | None:
        """The problem of the rows that starts are tried on, where these are not all of them."""
        problem = self.every
        rows, most = (problem.weight > 0).nonzero()[:, 0], TRIED_ON[problem.dgn.latent_dim] // problem.dear
        if not self.options.n_init or len(rows) <= most:
            return None
        generator = torch.Generator().manual_seed(_mix(self.options.seed, -1))
        chosen = torch.randperm(len(rows), generator=generator)[:most].sort().values
        few = problem.some(rows[chosen.to(rows.device)])
        # a column that the sample knows nothing of needs them all
        return None if bool(torch.isnan(few.x).all(0).any()) else few

    @cached_property
    def _curves(self) -> list[Ordered]:
        """The orderings of the rows that a start may follow, the one that a regression explains best first."""
        problem = self.problem
        dgn, head = problem.dgn, problem.trained.head
        # a mixture of Gaussians as the prior has no quantiles to place kinks at
        line = dgn.latent_dim == 1 and not isinstance(dgn.latent_prior, MixturePrior)
        bends = line and head is not None and dgn.trace.hidden_units > 0
        if self.options.init == "random" or not bends:
            return []
        left = [
            (float(self._follow(rows, 0).log().sum()), rows) for rows in ordered_rows(problem.suggested, problem.weight)
        ]
        return [rows for _, rows in sorted(left, key=lambda pair: pair[0])][:_CURVES]

    def _follow(self, rows: Ordered, start: int) -> Tensor:
        problem, generator = self.problem, torch.Generator().manual_seed(_mix(self.options.seed, start))
        return be_curve(problem.dgn, problem.trained, rows, problem.noise_floor, generator)

    def _new_run(self, start: int) -> Run:
        problem = self.problem
        if self.options.n_init and start < len(self._curves):
            self._follow(self._curves[start], start)
        elif self.options.n_init:
            generator = torch.Generator().manual_seed(_mix(self.options.seed, start - len(self._curves)))
            randomise(problem.dgn, problem.trained, problem.suggested, problem.weight, problem.noise_floor, generator)
        warmup = self.warmup
        if warmup and start == len(self._curves) + 1:
            warmup = 0  # one has the prior from the beginning: the best of all counts
        problem.prior = None if warmup else self.prior
        run = self._fresh()
        return replace(run, warmup=warmup, held_out=[], best={}) if warmup else run

    def _fresh(self) -> Run:
        """A run that begins at the current parameters, moved into the support of the prior."""
        problem, size = self.problem, self.options.batch_size
        problem.admit()
        batch = size if size is not None and size < len(problem.x) else 0
        now = problem.evaluate()
        run = Run(problem.parameters(), no_pairs(), INITIAL_DAMPING, [now.nll], batch=batch)
        return self._watched(run, now)

    def _with_prior(self, run: Run) -> Run:
        """Follow a run without the prior by a fresh one with it, from the same parameters."""
        self.problem.prior = self.prior
        if not run.warmup:
            return run
        self.problem.restore(run.parameters)
        self.problem.balance()
        return self._fresh()

    def _no_worse_than_constant(self, run: Run) -> Run:
        """The run, or that of a generator without weights, which under a strong prior may be the better optimum."""
        problem, head = self.problem, self.problem.trained.head
        if self.prior is None or head is None or not head.has_bias:
            return run
        problem.restore(run.parameters)
        be_constant(problem.dgn, problem.trained, problem.x, problem.weight, problem.noise_floor)
        constant = problem.evaluate()
        for _ in range(_PATIENCE):
            constant = exact_step(problem, constant, self.updates)
        if not constant.nll < run.curve[-1]:
            return run
        curve = [*run.curve[:-1], constant.nll]
        run = replace(run, parameters=problem.parameters(), pairs=no_pairs(), curve=curve)
        if self.held_out is None:
            return self._watched(run, constant)
        if self.held_out is not None and (nll := self.held_out.nll(constant.model)) < min(run.held_out):
            run = replace(run, held_out=[*run.held_out[:-1], nll], best=run.parameters)
        return run

    def _done(self, state: State) -> int:
        trials = min(state.start, self.trials)
        finals = state.start - trials
        return trials * self.trial_length + finals * self.final_length + len(state.run.curve) - 1

    def _result(self, run: Run, state: State, interrupted: bool, shift: float) -> FitResult:
        now = self.problem.evaluate()
        converged, patient = run.quiet >= _PATIENCE, not self._out_of_patience(run)
        if interrupted:
            warnings.warn(
                f"EM was interrupted after {len(run.curve) - 1} iterations; the best model so far is kept",
                ConvergenceWarning,
                stacklevel=5,
            )
        elif not converged and patient:
            warnings.warn(
                f"EM did not converge in {self.options.max_iter} iterations: it still gains more than "
                f"tol={self.options.tol:g} nats per row; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=5,
            )
        curve = np.array(run.curve) + shift
        history = {"step": np.arange(len(curve)), "nll": curve}
        if self.held_out is not None:
            history["held_out"] = np.array(run.held_out) + self.held_out.shift
        ended: Ended = "tol" if converged else "max_iter" if patient else "patience"
        return FitResult(
            history,
            steps=len(curve) - 1,
            seconds=state.seconds,
            ended="interrupted" if interrupted else ended,
            best_step=run.best_step,
            held_out=None if self.held_out is None else float(history["held_out"][run.best_step]),
            log_likelihood=now.log_likelihood - shift,
            starts=[nll + shift for nll in state.starts or run.curve[-1:]],
        )


@dataclass(frozen=True)
class _Trial:
    """A start that is tried in another process."""

    problem: Problem
    options: EMOptions
    held_out: HeldOut | None
    start: int


def _tried(trial: _Trial) -> Run:
    """Where a start has come to after its iterations."""
    loop = Loop(trial.problem, trial.options, _ignore, None, trial.held_out)
    state, now = State(loop._new_run(trial.start), trial.start), None
    while not loop._ended(state.run, loop.trial_length):
        now = loop._iterate(state, now)
    return state.run


def _ignore(iteration: int, nll: float) -> None:
    """A callback of a trial, which has none."""


def _mix(seed: int, start: int) -> int:
    """A seed of its own for each start."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{start}".encode()).digest()[:8], "big") >> 1
