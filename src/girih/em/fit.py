"""The EM loop: restarts, convergence, progress, interruption and checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from girih._arrays import as_tensor, check_finite
from girih._files import read_tensors, write_tensors
from girih.em.initial import randomise
from girih.em.penalty import WeightPrior
from girih.em.step import INITIAL_DAMPING, Evaluation, Problem, em_step
from girih.errors import EmptyDataError, ModelFileError, NoiseError, ParameterError, ShapeError
from girih.inference import DGN

# A run has converged when this many iterations in a row each gained less than `tol`.
_PATIENCE = 3
_CHECKPOINT_ITERATIONS, _CHECKPOINT_SECONDS = 10, 2.0


@dataclass(frozen=True)
class EMResult:
    """What happened during `fit_em`.

    Attributes:
        nll_curve: penalised exact NLL (nats per row) before the first iteration and after each; never increases.
        log_likelihood: mean exact log-likelihood of the rows (nats per row), without the weight prior.
        n_iter: iterations of the run that was kept, those of its trial included.
        converged: whether the last iterations gained less than `tol`.
        interrupted: whether Ctrl-C ended it.
        starts: penalised NLL of each start after its trial iterations.
    """

    nll_curve: list[float]
    log_likelihood: float
    n_iter: int
    converged: bool
    interrupted: bool
    starts: list[float]


@dataclass
class _Run:
    """One run of EM: everything that its continuation depends on."""

    parameters: dict[str, Tensor]
    damping: float = INITIAL_DAMPING
    curve: list[float] = field(default_factory=list)
    quiet: int = 0  # iterations in a row that gained less than tol

    def copy(self) -> _Run:
        return _Run(self.parameters, self.damping, list(self.curve), self.quiet)


@dataclass
class _State:
    """Progress of the whole fit, as a checkpoint holds it."""

    run: _Run
    start: int = 0  # index of the start under trial; n_init once the best is being continued
    best: _Run | None = None
    starts: list[float] = field(default_factory=list)
    finished: bool = False


def fit_em(
    dgn: DGN,
    X: Any,
    *,
    sample_weight: Any = None,
    weight_prior: Any = None,
    learn_prior: bool = False,
    noise_floor: float = 1e-6,
    max_iter: int = 200,
    tol: float = 1e-6,
    n_init: int = 5,
    init_iter: int = 25,
    seed: int = 0,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> EMResult:
    r"""Fit a `DGN` by exact EM, in place.

    Each iteration does the E-step exactly, then the exact M-step of the last affine map (W and v jointly) and the
    noise, then a damped least-squares update of all hidden layers, which is kept only if the exact NLL does not
    rise. The penalised exact NLL therefore never increases.

    Args:
        dgn: the model; its network's float64 Linear layers, noise and (if asked) prior are changed in place.
        X: `(N, D)`; NaN entries are missing.
        sample_weight: `(N,)` non-negative row weights.
        weight_prior: `None`, `("gaussian", s)`, `("laplace", s)` or `("uniform", s)`; see `WeightPrior`.
        learn_prior: also update the latent prior.
        noise_floor: lower bound on the noise variance, as a share of the variance of the data (column by column
            unless the noise is isotropic). Without one the likelihood is unbounded: a network that passes through
            points can let the noise go to 0.
        max_iter: iterations of the run that is kept.
        tol: converged when three iterations in a row each gain less than this (nats per row).
        n_init: random starts; each gets `init_iter` iterations, the best is continued. 0 keeps the parameters
            that the model has (a warm start).
        init_iter: trial iterations of each start.
        seed: of the starts.
        progress: show a progress bar with the NLL.
        checkpoint: a file to continue from if it exists, and to save progress to; a killed fit that is started
            again ends with the same numbers.
        callback: called as `callback(iteration, nll)` after each iteration of the kept run.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError, ParameterError, ModelFileError.

    Source:
        EM-DGN, section 4 and appendices G, H.

    Example:
        >>> import girih
        >>> dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)
        >>> X = girih.datasets.load("circle", n=64, seed=0).X
        >>> result = girih.em.fit_em(dgn, X, n_init=1, max_iter=5, tol=0.0)
        >>> result.nll_curve[-1] < result.nll_curve[0], result.n_iter
        (True, 5)
    """
    x, weight = _check_data(dgn, X, sample_weight)
    _check_options(max_iter, tol, n_init, init_iter, noise_floor)
    problem = Problem(dgn, x, weight, WeightPrior.parse(weight_prior), noise_floor)
    updates = ("head", "noise", "hidden", *(("prior",) if learn_prior else ()))
    fingerprint = "" if checkpoint is None else _fingerprint(problem, [max_iter, tol, n_init, init_iter, seed, learn_prior])

    loop = _Loop(problem, updates, n_init, init_iter, max_iter, tol, seed, callback, checkpoint, fingerprint)
    return loop.run(progress)


class _Loop:
    """The state machine: trial of each start, then continuation of the best."""

    def __init__(
        self,
        problem: Problem,
        updates: tuple[str, ...],
        n_init: int,
        init_iter: int,
        max_iter: int,
        tol: float,
        seed: int,
        callback: Callable[[int, float], None] | None,
        checkpoint: str | os.PathLike[str] | None,
        fingerprint: str,
    ) -> None:
        self.problem, self.updates, self.tol, self.seed = problem, updates, tol, seed
        self.n_init, self.max_iter, self.callback = n_init, max_iter, callback
        # a single start needs no trial: it simply goes on
        self.trials = n_init if n_init > 1 else 0
        self.init_iter = min(init_iter, max_iter)
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        self._saved = time.monotonic()

    def run(self, progress: bool) -> EMResult:
        state = self._resume()
        interrupted = False
        with _progress_bar(self.trials * self.init_iter + self.max_iter) if progress else nullcontext() as bar:
            try:
                if state is None:
                    state = _State(self._new_run(0))
                for self._bar_text, run in self._iterations(state):
                    if bar is not None:
                        bar(self._bar_text, run.curve[-1], self._done(state))
            except KeyboardInterrupt:
                if state is None:
                    raise
                interrupted = True
        if interrupted and state.best is not None and state.best.curve[-1] < state.run.curve[-1]:
            state.run = state.best.copy()
        self.problem.restore(state.run.parameters)
        self._save(state, force=True)
        return self._result(state, interrupted)

    def _iterations(self, state: _State):  # type: ignore[no-untyped-def]
        """Run to the end, yielding a description and the current run after each iteration."""
        while state.start < self.trials:
            now: Evaluation | None = None
            while len(state.run.curve) <= self.init_iter and state.run.quiet < _PATIENCE:
                now = self._iterate(state, now)
                yield f"start {state.start + 1} of {self.trials}", state.run
            state.starts.append(state.run.curve[-1])
            if state.best is None or state.run.curve[-1] < state.best.curve[-1]:
                state.best = state.run.copy()
            state.start += 1
            state.run = self._new_run(state.start) if state.start < self.trials else state.best.copy()
        self.problem.restore(state.run.parameters)
        now = None
        while len(state.run.curve) <= self.max_iter and state.run.quiet < _PATIENCE:
            now = self._iterate(state, now)
            if self.callback is not None:
                self.callback(len(state.run.curve) - 1, state.run.curve[-1])
            yield "EM", state.run
        state.finished = True

    def _iterate(self, state: _State, now: Evaluation | None) -> Evaluation:
        run = state.run
        if now is None:
            self.problem.restore(run.parameters)
            now = self.problem.evaluate()
        if not now.nll - now.nll == 0.0:
            raise NoiseError(
                "the likelihood is not finite at the starting parameters; rescale the columns of X to moderate values"
            )
        after, damping = em_step(self.problem, now, run.damping, self.updates)
        gain = run.curve[-1] - after.nll
        # one assignment, so that Ctrl-C finds either the old run or the new one
        state.run = _Run(
            self.problem.parameters(), damping, [*run.curve, after.nll], run.quiet + 1 if gain < self.tol else 0
        )
        self._save(state)
        return after

    def _new_run(self, start: int) -> _Run:
        problem = self.problem
        if self.n_init > 0:
            generator = torch.Generator().manual_seed(_mix(self.seed, start))
            randomise(problem.dgn, problem.x, problem.weight, problem.noise_floor, generator)
            with torch.no_grad():
                if problem.prior is not None:
                    problem.prior.admit([stage.module.weight for stage in problem.affine])
        return _Run(problem.parameters(), curve=[problem.evaluate().nll])

    def _done(self, state: _State) -> int:
        iterations = len(state.run.curve) - 1
        if state.start < self.trials:
            return state.start * self.init_iter + iterations
        return self.trials * self.init_iter + iterations

    def _result(self, state: _State, interrupted: bool) -> EMResult:
        now = self.problem.evaluate()
        run = state.run
        converged = run.quiet >= _PATIENCE
        if interrupted:
            warnings.warn(
                f"EM was interrupted after {len(run.curve) - 1} iterations; the best model so far is kept",
                ConvergenceWarning,
                stacklevel=4,
            )
        elif not converged:
            warnings.warn(
                f"EM did not converge in {self.max_iter} iterations (the last one gained more than tol={self.tol:g} "
                "nats per row); raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=4,
            )
        return EMResult(
            run.curve, now.log_likelihood, len(run.curve) - 1, converged, interrupted, state.starts or [run.curve[-1]]
        )

    def _save(self, state: _State, force: bool = False) -> None:
        if self.checkpoint is None:
            return
        late = time.monotonic() - self._saved > _CHECKPOINT_SECONDS
        if not (force or late or len(state.run.curve) % _CHECKPOINT_ITERATIONS == 0):
            return
        tensors = {f"run.{k}": v for k, v in state.run.parameters.items()}
        if state.best is not None:
            tensors |= {f"best.{k}": v for k, v in state.best.parameters.items()}
        metadata = {
            "kind": "em-checkpoint",
            "fingerprint": self.fingerprint,
            "start": state.start,
            "starts": state.starts,
            "finished": state.finished,
            "run": _metadata(state.run),
            "best": None if state.best is None else _metadata(state.best),
        }
        write_tensors(self.checkpoint, tensors, metadata)
        self._saved = time.monotonic()

    def _resume(self) -> _State | None:
        if self.checkpoint is None or not Path(self.checkpoint).exists():
            return None
        tensors, metadata = read_tensors(self.checkpoint)
        if metadata.get("kind") != "em-checkpoint":
            raise ModelFileError(f"{self.checkpoint} is not an EM checkpoint; choose another file")
        if metadata["fingerprint"] != self.fingerprint:
            raise ModelFileError(
                f"the checkpoint {self.checkpoint} belongs to other data or settings; delete it or choose another file"
            )

        def run(prefix: str) -> _Run:
            names = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
            return _Run(names, **metadata[prefix])

        best = None if metadata["best"] is None else run("best")
        return _State(run("run"), metadata["start"], best, metadata["starts"], metadata["finished"])


def _metadata(run: _Run) -> dict[str, Any]:
    values = asdict(run)
    values.pop("parameters")
    return values


def _check_data(dgn: DGN, X: Any, sample_weight: Any) -> tuple[Tensor, Tensor]:
    x = dgn.rows(X).detach()
    if sample_weight is None:
        weight = torch.ones(len(x), dtype=torch.float64, device=x.device)
    else:
        weight = as_tensor(sample_weight, "sample_weight", x.device).detach().reshape(-1)
        if len(weight) != len(x):
            raise ShapeError(f"sample_weight has {len(weight)} entries for {len(x)} rows; pass one weight a row")
        check_finite(weight, "sample_weight")
        if (weight < 0).any() or not weight.sum() > 0:
            raise ParameterError("sample_weight must be non-negative with a positive sum")
    unseen = (~torch.isnan(x[weight > 0]).all(0)).logical_not().nonzero()[:, 0].tolist()
    if unseen:
        raise EmptyDataError(f"columns {unseen[:10]} of X have no observed entries; drop them")
    return x, weight


def _check_options(max_iter: int, tol: float, n_init: int, init_iter: int, noise_floor: float) -> None:
    for name, value, least in (("max_iter", max_iter, 1), ("n_init", n_init, 0), ("init_iter", init_iter, 1)):
        if int(value) != value or value < least:
            raise ParameterError(f"{name} must be a whole number of at least {least}, got {value}")
    if not 0 <= tol < float("inf"):
        raise ParameterError(f"tol must be non-negative and finite, got {tol}")
    if not 0 < noise_floor < float("inf"):
        raise ParameterError(f"noise_floor must be positive and finite, got {noise_floor}")


def _fingerprint(problem: Problem, settings: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps([settings, str(problem.prior), problem.noise_floor.tolist()]).encode())
    digest.update(str([tuple(p.shape) for p in problem.dgn.parameters()]).encode())
    digest.update(problem.x.cpu().contiguous().numpy())
    digest.update(problem.weight.cpu().contiguous().numpy())
    return digest.hexdigest()


def _mix(seed: int, start: int) -> int:
    """A seed of its own for each start."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{start}".encode()).digest()[:8], "big") >> 1


class _progress_bar:
    """A bar on standard error with the iteration and the current NLL."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("NLL {task.fields[nll]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("EM", total=total, nll="...")

    def __enter__(self) -> Callable[[str, float, int], None]:
        self._progress.start()
        return lambda text, nll, done: self._progress.update(
            self._task, description=text, nll=f"{nll:.4f}", completed=done
        )

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
