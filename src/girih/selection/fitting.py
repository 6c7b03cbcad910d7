"""One fit: a candidate on the training rows of a split, measured there and on the rows held out."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from girih.em import DGNEstimator
from girih.em.estimator import fold_estimator
from girih.em.scaling import Scaling
from girih.selection.baselines import fit_baseline
from girih.selection.candidates import Candidate
from girih.selection.splits import Split

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """What all candidates share; the arguments of `DGNEstimator`, and whether columns are standardised."""

    activation: str
    negative_slope: float
    weight_prior: Any
    learn_prior: bool
    max_iter: int
    tol: float
    n_init: int
    noise_floor: float
    standardize: bool
    seed: int


@dataclass(frozen=True)
class Outcome:
    """The numbers of one fit.

    Attributes:
        n_train: rows that it was fitted to.
        n_parameters: free parameters.
        log_likelihood: exact, summed over the training rows, in nats.
        held_out: exact `log p(x)` of each held-out row, in the order of the split.
        unexplained: mean over the columns of noise variance over data variance; NaN where a model has no noise.
        seconds: time of the fit.
        n_iter: iterations.
        converged: whether the fit converged.
        components: of a baseline that chooses them, else 0.
    """

    n_train: int
    n_parameters: int
    log_likelihood: float
    held_out: list[float]
    unexplained: float
    seconds: float
    n_iter: int
    converged: bool
    components: int = 0


def fit_candidate(
    candidate: Candidate, X: Array, split: Split, options: Options, checkpoint: Path | None = None
) -> Outcome:
    """Fit and measure.

    Raises:
        KeyboardInterrupt: Ctrl-C; with a checkpoint the fit goes on from there later.
        GirihError: the rows cannot be fitted.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the other processors have fits of their own
    train, test = X[split.train], X[split.test]
    start = time.perf_counter()
    if not candidate.is_dgn:
        return fit_baseline(candidate.model, train, test, options.standardize, options.seed)
    est = fit_estimator(candidate, train, options, checkpoint)
    seconds = time.perf_counter() - start
    variances = est.dgn_.noise_covariance.detached().variances.numpy()
    spread = np.nanvar(train, 0)
    varies = spread > 0
    shares = variances[varies] / spread[varies]
    return Outcome(
        n_train=len(train),
        n_parameters=est.n_parameters_,
        log_likelihood=float(est.score_samples(train).sum()),
        held_out=est.score_samples(test).tolist() if len(test) else [],
        unexplained=float(shares.mean()) if len(shares) else float("nan"),
        seconds=seconds,
        n_iter=est.n_iter_,
        converged=est.converged_,
    )


def fit_estimator(
    candidate: Candidate, X: Array, options: Options, checkpoint: Path | None = None, progress: bool = False
) -> DGNEstimator:
    """A fitted estimator in the units of X."""
    est = DGNEstimator(
        latent_dim=candidate.latent_dim,
        hidden=candidate.hidden,
        activation=options.activation,
        negative_slope=options.negative_slope,
        noise=candidate.noise,
        weight_prior=options.weight_prior,
        learn_prior=options.learn_prior,
        max_iter=options.max_iter,
        tol=options.tol,
        n_init=options.n_init,
        noise_floor=options.noise_floor,
        random_state=options.seed,
        verbose=int(progress),
        checkpoint=checkpoint,
    )
    scaling = Scaling.of(X) if options.standardize else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a column of the table says it
        est.fit(X if scaling is None else scaling.apply(X).numpy())
    if est.interrupted_:
        raise KeyboardInterrupt
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if scaling is not None:
        fold_estimator(est, scaling, X)
    est.set_params(checkpoint=None, verbose=0)
    return est
