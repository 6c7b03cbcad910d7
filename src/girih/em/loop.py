"""The EM loop and its options: trials of random starts, the continuation of the best, convergence, the saved state."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from girih._options import real, whole
from girih._progress import Progress
from girih.em.iteration import INITIAL_DAMPING, Evaluation, Problem, em_step, epoch, exact_step
from girih.em.mstep import WeightPrior
from girih.em.quasi_newton import Pace, no_pairs, quasi_newton_step
from girih.em.starting_points import be_constant, randomise
from girih.errors import NonFiniteError, ParameterError
from girih.training import Checkpoint, FitResult, digest

ACCELERATIONS = ("none", "quasi-newton")
# A run has converged when this many iterations in a row each gained less than `tol`.
_PATIENCE = 3


@dataclass(frozen=True, kw_only=True)
class EMOptions:
    """They are the options of `girih.em.fit_em` that its numbers depend on, checked; `DGNEstimator` has them too.

    Attributes:
        weight_prior: `None`, `("gaussian", s)`, `("laplace", s)` or `("uniform", s)`; see `WeightPrior`. The last two
            need a chain of Linear layers and activations.
        learn_prior: also update the latent prior.
        noise_floor: lower bound on the noise variance, as a share of the variance of the data (column by column
            unless the noise is isotropic). Without one the likelihood is unbounded: a network that passes through
            points can let the noise go to 0.
        max_iter: iterations of the run that is kept.
        tol: converged when three iterations in a row each gain less than this (nats per row).
        n_init: random starts; each gets `init_iter` iterations, the best is continued. 0 keeps the parameters that
            the model has (a warm start).
        init_iter: trial iterations of each start.
        acceleration: "quasi-newton", or "none" for EM alone. With a Laplace or uniform weight prior it is EM alone.
        batch_size: rows in a batch, for data with many rows: an iteration is then a pass over the rows in batches,
            undone where it raised the exact NLL of all rows. Batches double when that happens or little is gained,
            until all rows are used together. `None` uses all rows from the start.
        seed: of the starts and the batches.

    Raises:
        ParameterError: an option is out of its domain.

    Example:
        >>> from girih.em import EMOptions
        >>> EMOptions(weight_prior=("gaussian", 1.0)).updates
        ('head', 'noise', 'hidden')
    """

    weight_prior: WeightPrior | tuple[str, float] | str | None = None
    learn_prior: bool = False
    noise_floor: float = 1e-6
    max_iter: int = 200
    tol: float = 1e-6
    n_init: int = 5
    init_iter: int = 25
    acceleration: str = "quasi-newton"
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.acceleration not in ACCELERATIONS:
            raise ParameterError(f"acceleration must be one of {', '.join(ACCELERATIONS)}; got {self.acceleration!r}")
        checked = {
            "weight_prior": WeightPrior.parse(self.weight_prior),
            "learn_prior": bool(self.learn_prior),
            "noise_floor": real(self.noise_floor, "noise_floor"),
            "max_iter": whole(self.max_iter, "max_iter"),
            "tol": real(self.tol, "tol", positive=False),
            "n_init": whole(self.n_init, "n_init", 0),
            "init_iter": whole(self.init_iter, "init_iter"),
            "batch_size": None if self.batch_size is None else whole(self.batch_size, "batch_size"),
            "seed": whole(self.seed, "seed", None),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # frozen: only while it is made

    @classmethod
    def among(cls, named: Mapping[str, Any]) -> EMOptions:
        """The options among named values; those that are not there have their defaults."""
        return cls(**{field.name: named[field.name] for field in fields(cls) if field.name in named})

    @property
    def prior(self) -> WeightPrior | None:
        """The prior of the weights."""
        return WeightPrior.parse(self.weight_prior)

    @property
    def updates(self) -> tuple[str, ...]:
        """These are changed by an iteration."""
        return ("head", "noise", "hidden", *(("prior",) if self.learn_prior else ()))

    def plain(self) -> dict[str, Any]:
        """The options as plain values, for the checks of a checkpoint."""
        return {**vars(self), "weight_prior": str(self.weight_prior)}


@dataclass(frozen=True)
class Run:
    """A run is where EM stands after an iteration: parameters, NLL curve, and what decides the next one."""

    parameters: dict[str, Tensor]
    pairs: Tensor  # the memory of the acceleration
    damping: float
    curve: list[float]
    quiet: int = 0  # iterations in a row that gained less than tol
    batch: int = 0  # rows in a batch; 0 once all rows are used together
    pace: Pace = field(default_factory=Pace)
    warmup: int = 0  # iterations without the weight prior that are left; the curve begins after them

    def contents(self) -> dict[str, Any]:
        """The run as tensors and plain values."""
        return {**vars(self), "pace": astuple(self.pace)}

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> Run:
        """The run of such contents."""
        return cls(**{**contents, "pace": Pace(*contents["pace"])})


@dataclass
class State:
    """The state says how far the whole fit has come: the trials done, the best of them, and the run under way."""

    run: Run
    start: int = 0  # the start under trial; the number of trials once the best is being continued
    best: Run | None = None
    starts: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def contents(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {**vars(self), "run": self.run.contents(), "best": None if self.best is None else self.best.contents()}

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> State:
        """The state of such contents."""
        best = contents["best"]
        return cls(**{**contents, "run": Run.of(contents["run"]), "best": None if best is None else Run.of(best)})


def told_apart_by(problem: Problem, x: Tensor, options: EMOptions) -> dict[str, Any]:
    """Everything that the numbers of a fit to the rows x depend on, by name."""
    return {
        **options.plain(),
        "the shapes of the parameters": [list(p.shape) for p in problem.dgn.parameters()],
        "the bounds on the noise": problem.noise_floor.tolist(),
        "data": digest(x),
        "sample_weight": digest(problem.weight),
    }


class Loop:
    """The loop tries each start for some iterations, then goes on with the best."""

    def __init__(
        self,
        problem: Problem,
        options: EMOptions,
        callback: Callable[[int, float], None],
        checkpoint: Checkpoint | None,
    ) -> None:
        self.problem, self.updates, self.options = problem, options.updates, options
        self.callback, self.checkpoint, self.prior = callback, checkpoint, problem.prior
        # a single start needs no trial: it simply goes on
        self.trials = options.n_init if options.n_init > 1 else 0
        # a Laplace or uniform prior has no gradient everywhere, which quasi-Newton steps need
        smooth = problem.prior is None or problem.prior.family == "gaussian"
        self.accelerated = smooth and options.acceleration != "none"
        self.trial_length = min(options.init_iter, options.max_iter)
        # at the high noise of a start a weight prior outweighs the data and pulls every weight to 0, where it stays
        self.warmup = self.trial_length if problem.prior is not None and options.n_init > 0 else 0

    def run(self, progress: bool, shift: float = 0.0) -> FitResult:
        """Run to the end; NLLs are shown and returned with `shift` added, which the units of the rows make."""
        found = None if self.checkpoint is None else self.checkpoint.read()
        state = State(self._new_run(0)) if found is None else State.of(found)
        self.since = time.perf_counter() - state.seconds
        interrupted = False
        total = self.trials * self.trial_length + self.options.max_iter
        bar = Progress("EM", total, self._done(state), progress)
        try:
            for description in self._iterations(state):
                bar.show(self._done(state), f"NLL {state.run.curve[-1] + shift:.4f}", description)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            bar.close()
        self._save(state)
        kept = self._with_prior(state.run)
        if interrupted and state.best is not None and state.best.curve[-1] < kept.curve[-1]:
            kept = state.best
        self.problem.restore(kept.parameters)
        return self._result(kept, state, interrupted, shift)

    def _iterations(self, state: State) -> Iterator[str]:
        """Run to the end, yielding what is going on after each iteration."""
        while state.start < self.trials:
            now: Evaluation | None = None
            while not self._ended(state.run, self.trial_length):
                now = self._iterate(state, now)
                yield f"start {state.start + 1} of {self.trials}" + (", no weight prior yet" * bool(state.run.warmup))
            state.starts.append(state.run.curve[-1])
            if state.best is None or state.run.curve[-1] < state.best.curve[-1]:
                state.best = state.run
            state.start += 1
            state.run = self._new_run(state.start) if state.start < self.trials else state.best
        now = None
        while not self._ended(state.run, self.options.max_iter):
            now = self._iterate(state, now)
            self.callback(len(state.run.curve) - 1, state.run.curve[-1])
            yield "EM"
        state.run = self._no_worse_than_constant(state.run)

    def _ended(self, run: Run, length: int) -> bool:
        return not run.warmup and (len(run.curve) > length or run.quiet >= _PATIENCE)

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
            after, damping = em_step(problem, now, run.damping, self.updates)
        gain = run.curve[-1] - after.nll
        if self.accelerated:
            pace = pace.after(gain, problem.evaluations - before)
        quiet = run.quiet + 1 if gain < self.options.tol else 0
        curve = [*run.curve, after.nll]
        return after, Run(problem.parameters(), pairs, damping, curve, quiet, 0, pace)

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

    def _new_run(self, start: int) -> Run:
        problem = self.problem
        if self.options.n_init > 0:
            generator = torch.Generator().manual_seed(_mix(self.options.seed, start))
            randomise(problem.dgn, problem.trained, problem.x, problem.weight, problem.noise_floor, generator)
        warmup = 0 if start == 1 else self.warmup  # one has the prior from the beginning: the best of all counts
        problem.prior = None if warmup else self.prior
        return replace(self._fresh(), warmup=warmup)

    def _fresh(self) -> Run:
        """A run that begins at the current parameters, moved into the support of the prior."""
        problem, size = self.problem, self.options.batch_size
        problem.admit()
        batch = size if size is not None and size < len(problem.x) else 0
        return Run(problem.parameters(), no_pairs(), INITIAL_DAMPING, [problem.evaluate().nll], batch=batch)

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
        return replace(run, parameters=problem.parameters(), pairs=no_pairs(), curve=[*run.curve[:-1], constant.nll])

    def _done(self, state: State) -> int:
        return state.start * self.trial_length + len(state.run.curve) - 1

    def _result(self, run: Run, state: State, interrupted: bool, shift: float) -> FitResult:
        now = self.problem.evaluate()
        converged = run.quiet >= _PATIENCE
        if interrupted:
            warnings.warn(
                f"EM was interrupted after {len(run.curve) - 1} iterations; the best model so far is kept",
                ConvergenceWarning,
                stacklevel=4,
            )
        elif not converged:
            warnings.warn(
                f"EM did not converge in {self.options.max_iter} iterations: it still gains more than "
                f"tol={self.options.tol:g} nats per row; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=4,
            )
        curve = np.array(run.curve) + shift
        return FitResult(
            {"step": np.arange(len(curve)), "nll": curve},
            steps=len(curve) - 1,
            seconds=state.seconds,
            ended="interrupted" if interrupted else "tol" if converged else "max_iter",
            best_step=len(curve) - 1,
            log_likelihood=now.log_likelihood - shift,
            starts=[nll + shift for nll in state.starts or run.curve[-1:]],
        )


def _mix(seed: int, start: int) -> int:
    """A seed of its own for each start."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{start}".encode()).digest()[:8], "big") >> 1
