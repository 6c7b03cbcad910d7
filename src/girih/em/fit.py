"""The EM loop: restarts, convergence, progress, interruption and checkpoints."""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from girih._arrays import Rows, as_tensor, check_finite, check_largest
from girih._options import real
from girih._progress import Progress
from girih.em.checkpoint import Run, State, told_apart_by
from girih.em.initial import be_constant, randomise
from girih.em.minibatch import epoch
from girih.em.options import EMOptions
from girih.em.overfit import OverfitWarning, overfit_reason
from girih.em.penalty import WeightPrior
from girih.em.quasi_newton import no_pairs, quasi_newton_step
from girih.em.scaling import Scaling
from girih.em.step import INITIAL_DAMPING, Evaluation, Problem, em_step, exact_step
from girih.em.step import noise_floor as floor_of
from girih.em.trained import Trained, count_parameters
from girih.errors import EmptyDataError, NonFiniteError, ParameterError, ShapeError
from girih.inference import DGN
from girih.training import Checkpoint, FitResult, seed_of_run

# A run has converged when this many iterations in a row each gained less than `tol`.
_PATIENCE = 3


def fit_em(
    dgn: DGN,
    X: Rows,
    *,
    sample_weight: Tensor | np.ndarray | Sequence[float] | None = None,
    weight_prior: WeightPrior | tuple[str, float] | str | None = None,
    learn_prior: bool = False,
    noise_floor: float = 1e-6,
    max_iter: int = 200,
    tol: float = 1e-6,
    n_init: int = 5,
    init_iter: int = 25,
    acceleration: str = "quasi-newton",
    batch_size: int | None = None,
    seed: int | None = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 2.0,
    callback: Callable[[int, float], None] | None = None,
) -> FitResult:
    r"""Fit a `DGN` by exact EM, in place.

    Each iteration does the E-step exactly, then the exact M-step of the last affine map (W and v jointly) and the
    noise, then a damped least-squares update of all hidden layers, which is kept only if the exact NLL does not
    rise. Blocks of quasi-Newton iterations take turns with EM where they gain more. The penalised exact NLL never
    increases.

    Any generator that `girih.trace` reads can be fitted. The weights and biases of its Linear and convolution layers
    are trained; batch normalisation (in eval mode), PReLU slopes and bare parameters keep their values.

    Args:
        dgn: the model; its network's float64 layers, noise and (if asked) prior are changed in place.
        X: `(N, D)`; NaN entries are missing.
        sample_weight: `(N,)` non-negative row weights; only their ratios matter, as they are scaled to the mean 1
            over the rows that have any.
        weight_prior: `None`, `("gaussian", s)`, `("laplace", s)` or `("uniform", s)`; see `WeightPrior`.
            The last two need a chain of Linear layers and activations.
        learn_prior: also update the latent prior.
        noise_floor: lower bound on the noise variance, as a share of the variance of the data (column by column
            unless the noise is isotropic). Without one the likelihood is unbounded: a network that passes through
            points can let the noise go to 0.
        max_iter: iterations of the run that is kept.
        tol: converged when three iterations in a row each gain less than this (nats per row).
        n_init: random starts; each gets `init_iter` iterations, the best is continued. 0 keeps the parameters
            that the model has (a warm start).
        init_iter: trial iterations of each start.
        acceleration: "quasi-newton", or "none" for EM alone. With a Laplace or uniform weight prior it is EM alone.
        batch_size: rows in a batch, for data with many rows: an iteration is then a pass over the rows in batches,
            undone where it raised the exact NLL of all rows. Batches double when that happens or little is gained,
            until all rows are used together. `None` uses all rows from the start.
        seed: of the starts and the batches; `None` lets `torch.manual_seed` decide, or the checkpoint.
        progress: show a bar with the NLL on a terminal or in a notebook.
        checkpoint: a file to continue from if it exists, and to save progress to; a killed fit that is started
            again ends with the same numbers.
        checkpoint_seconds: time between writes of that file.
        callback: called as `callback(iteration, nll)` after each iteration of the kept run.

    Returns:
        The `FitResult`; its curve is the penalised exact NLL (nats per row) before the first iteration and after each.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError, ParameterError, ModelFileError, UnsupportedLayerError.

    Source:
        EM-DGN, section 4 and appendices G, H.

    Example:
        >>> import girih
        >>> dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)
        >>> X = girih.datasets.load("circle", n=64, seed=0).X
        >>> result = girih.em.fit_em(dgn, X, n_init=1, max_iter=100, tol=0.01)
        >>> bool(result.curve[-1] < result.curve[0]), result.converged
        (True, True)
    """
    x, weight = _check_data(dgn, X, sample_weight)
    seed = seed_of_run(seed, checkpoint)
    options = EMOptions.among(locals())
    Trained.of(dgn.net, dgn.trace)  # refuses what EM cannot train before anything is changed
    scaling = Scaling.for_fit(dgn, x, weight, rescale=options.prior is None)
    floor = scaling.variance(floor_of(dgn, x, weight, options.noise_floor))
    shift = float(weight @ scaling.log_jacobian(x) / weight.sum())
    with scaling.inside(dgn):
        problem = Problem(dgn, scaling.apply(x), weight, options.prior, floor)
        saved = None
        if checkpoint is not None:
            seconds = real(checkpoint_seconds, "checkpoint_seconds", positive=False)
            saved = Checkpoint(checkpoint, told_apart_by(problem, x, options), seconds)

        def watch(iteration: int, nll: float) -> None:
            if callback is not None:
                with scaling.outside(dgn):
                    callback(iteration, nll + shift)

        result = _Loop(problem, options, watch, saved).run(progress, shift)
    reason = overfit_reason(count_parameters(dgn, learn_prior), x, weight)
    if reason is not None:
        warnings.warn(reason, OverfitWarning, stacklevel=2)
    return replace(result, overfit=reason)


class _Loop:
    """The state machine: trial of each start, then continuation of the best."""

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
        """What follows on a run without the prior: a fresh one with it, from the same parameters."""
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


def _check_data(
    dgn: DGN, X: Rows, sample_weight: Tensor | np.ndarray | Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    x = dgn.rows(X).detach()
    check_largest(x, "X")
    if sample_weight is None:
        weight = torch.ones(len(x), dtype=torch.float64, device=x.device)
    else:
        weight = as_tensor(sample_weight, "sample_weight", x.device).detach().reshape(-1)
        if len(weight) != len(x):
            raise ShapeError(f"sample_weight has {len(weight)} entries for {len(x)} rows; pass one weight a row")
        check_finite(weight, "sample_weight")
        if (weight < 0).any() or not (weight > 0).any():
            raise ParameterError("sample_weight must be non-negative, and positive for one row at least")
        weight = weight / weight.max()  # their size means nothing, and their sum must not overflow
        weight = weight * ((weight > 0).sum() / weight.sum())
    unseen = (~torch.isnan(x[weight > 0]).all(0)).logical_not().nonzero()[:, 0].tolist()
    if unseen:
        raise EmptyDataError(f"columns {unseen[:10]} of X have no observed entries; drop them")
    return x, weight


def _mix(seed: int, start: int) -> int:
    """A seed of its own for each start."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{start}".encode()).digest()[:8], "big") >> 1
