"""Baselines of scikit-learn on the same rows, their number of components chosen by BIC."""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from girih.em.scaling import Scaling

if TYPE_CHECKING:
    from girih.selection.fitting import Outcome

# The largest number of components that is tried.
MOST_COMPONENTS = 10


def fit_baseline(
    name: str, train: NDArray[np.float64], test: NDArray[np.float64], standardize: bool, seed: int
) -> Outcome:
    """`GaussianMixture` (full covariances) or `FactorAnalysis`, with 1 to 10 components, the number by BIC.

    All other settings are scikit-learn's defaults. Densities are in the units of the data.
    """
    from girih.selection.fitting import Outcome

    start = time.perf_counter()
    scaling = Scaling.of(train) if standardize else None
    rows = train if scaling is None else scaling.apply(train).numpy()
    most = MOST_COMPONENTS if name == "GaussianMixture" else min(MOST_COMPONENTS, train.shape[1] - 1)
    best: tuple[float, int, Any, int] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(1, max(1, min(most, len(train) - 1)) + 1):
            if name == "GaussianMixture":
                model: Any = GaussianMixture(k, random_state=seed).fit(rows)
                count = int(model._n_parameters())
            else:
                model = FactorAnalysis(k, random_state=seed).fit(rows)
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


def _score(model: Any, test: NDArray[np.float64], scaling: Scaling | None, shift: float) -> list[float]:
    rows = test if scaling is None else scaling.apply(test).numpy()
    return (model.score_samples(rows) - shift).tolist()
