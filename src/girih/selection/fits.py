"""One fit: a candidate on the training rows of a split, measured there and on the rows held out.

Baselines of scikit-learn are fitted to the same rows, their number of components chosen by BIC.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from girih.em import DGNEstimator, Scaling, fold_estimator
from girih.selection.candidates import Candidate, Split

Array = NDArray[np.float64]

# The largest number of components of a baseline that is tried.
MOST_COMPONENTS = 10


@dataclass(frozen=True)
class Shared:
    """All candidates share these options.

    Attributes:
        estimator: unfitted, with the options of all generators.
        standardize: whether columns are standardised.
        seed: of every fit.
    """

    estimator: DGNEstimator
    standardize: bool
    seed: int


@dataclass(frozen=True)
class Outcome:
    """An outcome holds the numbers of one fit.

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
    candidate: Candidate, X: Array, split: Split, shared: Shared, checkpoint: Path | None = None
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
        return fit_baseline(candidate.model, train, test, shared)
    est = fit_estimator(candidate, train, shared, checkpoint)
    seconds = time.perf_counter() - start
    variances = est.dgn_.noise_covariance.detached().variances.numpy()
    spread = np.nanvar(train, 0)
    varies = spread > 0
    shares = np.broadcast_to(variances, spread.shape)[varies] / spread[varies]
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
    candidate: Candidate, X: Array, shared: Shared, checkpoint: Path | None = None, progress: bool = False
) -> DGNEstimator:
    """A fitted estimator in the units of X."""
    est: DGNEstimator = clone(shared.estimator).set_params(
        latent_dim=candidate.latent_dim,
        hidden=candidate.hidden,
        noise=candidate.noise,
        verbose=int(progress),
        checkpoint=checkpoint,
    )
    scaling = Scaling.of(X) if shared.standardize else None
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


def fit_baseline(name: str, train: Array, test: Array, shared: Shared) -> Outcome:
    """`GaussianMixture` (full covariances) or `FactorAnalysis`, with 1 to 10 components, the number by BIC.

    All other settings are scikit-learn's defaults. Densities are in the units of the data.
    """
    start = time.perf_counter()
    scaling = Scaling.of(train) if shared.standardize else None
    rows = train if scaling is None else scaling.apply(train).numpy()
    most = MOST_COMPONENTS if name == "GaussianMixture" else min(MOST_COMPONENTS, train.shape[1] - 1)
    best: tuple[float, int, GaussianMixture | FactorAnalysis, int] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(1, max(1, min(most, len(train) - 1)) + 1):
            if name == "GaussianMixture":
                model: GaussianMixture | FactorAnalysis = GaussianMixture(k, random_state=shared.seed).fit(rows)
                count = int(model._n_parameters())
            else:
                model = FactorAnalysis(k, random_state=shared.seed).fit(rows)
                count = factor_parameters(train.shape[1], k)
            bic = count * math.log(len(rows)) - 2.0 * float(model.score_samples(rows).sum())
            if best is None or bic < best[0]:
                best = bic, k, model, count
    assert best is not None
    _, k, model, count = best
    shift = 0.0 if scaling is None else float(scaling.scale.log().sum())
    noise = getattr(model, "noise_variance_", None)
    return Outcome(
        n_train=len(train),
        n_parameters=count,
        log_likelihood=float((model.score_samples(rows) - shift).sum()),
        held_out=_score(model, test, scaling, shift) if len(test) else [],
        unexplained=float("nan") if noise is None else float(np.mean(noise / np.maximum(rows.var(0), 1e-300))),
        seconds=time.perf_counter() - start,
        n_iter=int(model.n_iter_),
        converged=bool(getattr(model, "converged_", model.n_iter_ < getattr(model, "max_iter", 0))),
        components=k,
    )


def factor_parameters(columns: int, factors: int) -> int:
    """Free parameters of factor analysis: mean, noise and loadings, less a rotation of the factors."""
    return 2 * columns + columns * factors - factors * (factors - 1) // 2


def _score(model: GaussianMixture | FactorAnalysis, test: Array, scaling: Scaling | None, shift: float) -> list[float]:
    rows = test if scaling is None else scaling.apply(test).numpy()
    result: list[float] = (model.score_samples(rows) - shift).tolist()
    return result
