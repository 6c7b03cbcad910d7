"""`girih.select_model`: generators of several sizes, compared by their exact likelihoods."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from girih._arrays import as_rows
from girih._options import real, whole
from girih._progress import Progress
from girih.em import WeightPrior
from girih.errors import EmptyDataError, ParameterError
from girih.selection.candidates import Candidate, grid
from girih.selection.fitting import Array, Options, Outcome, fit_candidate, fit_estimator
from girih.selection.result import CRITERIA, Row, SelectionResult, find_elbow, score
from girih.selection.splits import Split, make_splits
from girih.selection.store import Store


def select_model(
    X: Any,
    latent_dims: Sequence[int] = (1,),
    hidden: Sequence[Sequence[int]] = ((8,), (16,)),
    noise: str | Sequence[str] = "diagonal",
    *,
    criterion: str = "bic",
    test_fraction: float | None = 0.2,
    folds: int | None = None,
    baselines: bool | str | Sequence[str] = False,
    standardize: bool = True,
    activation: str = "leaky_relu",
    negative_slope: float = 0.1,
    weight_prior: Any = None,
    learn_prior: bool = False,
    max_iter: int = 200,
    tol: float = 1e-6,
    n_init: int = 5,
    noise_floor: float = 1e-6,
    seed: int = 0,
    n_jobs: int | None = 1,
    out: str | os.PathLike[str] | None = None,
    refit: bool = True,
    progress: bool = False,
) -> SelectionResult:
    r"""Fit every generator of a grid by exact EM, compare them, and refit the best to all rows.

    Every number is from the exact likelihood: AIC and BIC of the rows that a model was fitted to, and the NLL of
    rows that were held out. With folds, each row is held out once, and AIC, BIC and NLL are means over the folds.

    Args:
        X: `(N, D)`; NaN entries are missing.
        latent_dims: latent dimensions S to try.
        hidden: networks to try, each a tuple of widths of its hidden layers; `()` is a linear generator.
        noise: one or several of "isotropic", "diagonal" and "full".
        criterion: "bic", "aic" or "held_out", what chooses the best.
        test_fraction: share of the rows held out; `None` holds out none.
        folds: number of folds instead of one split.
        baselines: also fit scikit-learn's `GaussianMixture` and `FactorAnalysis`, with 1 to 10 components, their
            number by BIC, other settings as they are by default; or the names of those to fit. They are left out
            where entries are missing, which they cannot take.
        standardize: fit with every column at mean 0 and variance 1 on the training rows; densities and the
            estimator are in the units of X all the same.
        activation: of every `DGNEstimator`, as all arguments down to `noise_floor`.
        negative_slope: of the leaky ReLU.
        weight_prior: `None` or a pair such as `("gaussian", 1.0)`.
        learn_prior: also fit the variance of z.
        max_iter: EM iterations.
        tol: when EM has converged.
        n_init: random starts.
        noise_floor: least noise variance, as a share of the variance of the data.
        seed: of the split and of every fit.
        n_jobs: processes that fit at the same time; -1 for one on each processor.
        out: a folder for finished fits. A comparison that was killed, or is asked for more, takes them from there.
        refit: fit the best to all rows.
        progress: show a bar.

    Returns:
        The table, the best, the elbow in S and the refitted estimator; see `SelectionResult`.

    Raises:
        LatentDimensionError: S is too large for exact inference.
        ShapeError, NonFiniteError, EmptyDataError: X is not a table, or has too few rows.
        ParameterError: an option is out of its domain.

    Example:
        >>> import girih
        >>> X = girih.datasets.load("circle", n=80, seed=0).X
        >>> result = girih.select_model(X, hidden=((2,), (6,)), max_iter=20, n_init=1)
        >>> [row.candidate.label for row in result.rows]
        ['DGN S=1 2 diagonal', 'DGN S=1 6 diagonal']
        >>> result.best.candidate.hidden == result.estimator.hidden, result.elbow.suggested
        (True, 1)
    """
    rows = as_rows(X, "X", None, "the data dimension D", allow_missing=True).detach().cpu().numpy()
    empty = np.flatnonzero(np.isnan(rows).all(0))
    if len(empty):
        raise EmptyDataError(f"columns {empty[:10].tolist()} of X have no observed entries; drop them")
    seed = whole(seed, "seed", 0)
    candidates = grid(latent_dims, hidden, noise, baselines)
    splits = make_splits(len(rows), test_fraction, folds, seed)
    if criterion not in CRITERIA:
        raise ParameterError(f"criterion must be one of {', '.join(CRITERIA)}; got {criterion!r}")
    if criterion == "held_out" and not len(splits[0].test):
        raise ParameterError("criterion='held_out' needs held-out rows; pass test_fraction or folds")
    options = Options(
        activation=activation,
        negative_slope=negative_slope,
        weight_prior=WeightPrior.parse(weight_prior),
        learn_prior=bool(learn_prior),
        max_iter=whole(max_iter, "max_iter"),
        tol=real(tol, "tol", positive=False),
        n_init=whole(n_init, "n_init"),
        noise_floor=real(noise_floor, "noise_floor"),
        standardize=bool(standardize),
        seed=seed,
    )
    skipped = {}
    if np.isnan(rows).any():
        skipped = {c.model: "cannot take missing entries" for c in candidates if not c.is_dgn}
        candidates = [candidate for candidate in candidates if candidate.is_dgn]
    store = Store(None if out is None else Path(out), rows, options)
    outcomes, resumed = _fit_all(candidates, splits, rows, options, store, n_jobs, progress)
    table = [Row.of(candidate, outcomes[candidate]) for candidate in candidates]
    best = min((row for row in table if row.candidate.is_dgn), key=lambda row: score(row, criterion))
    estimator = fit_estimator(best.candidate, rows, options, progress=progress) if refit else None
    if estimator is not None and hasattr(X, "columns"):
        estimator.feature_names_in_ = np.array([str(name) for name in X.columns], dtype=object)
    return SelectionResult(table, criterion, best, find_elbow(table, criterion), estimator, skipped, resumed)


def _fit_all(
    candidates: list[Candidate],
    splits: list[Split],
    X: Array,
    options: Options,
    store: Store,
    n_jobs: int | None,
    progress: bool,
) -> tuple[dict[Candidate, list[Outcome]], int]:
    """The fits of each candidate, and how many were there already."""
    found = {(c, i): store.read(c, split) for c in candidates for i, split in enumerate(splits)}
    missing = [key for key, outcome in found.items() if outcome is None]
    resumed = len(found) - len(missing)
    bar = Progress("fits", len(found), resumed, progress)
    try:
        work = (delayed(_fit)(c, X, splits[i], options, store) for c, i in missing)
        done = Parallel(n_jobs=n_jobs, return_as="generator")(work)
        for count, (key, outcome) in enumerate(zip(missing, done, strict=True), 1):
            found[key] = outcome
            bar.show(resumed + count, f"{key[0].label}: NLL {-outcome.log_likelihood / outcome.n_train:.4g}")
    finally:
        bar.close()
    return {c: [found[c, i] for i in range(len(splits))] for c in candidates}, resumed  # type: ignore[misc]


def _fit(candidate: Candidate, X: Array, split: Split, options: Options, store: Store) -> Outcome:
    """One fit, kept as soon as it is finished."""
    outcome = fit_candidate(candidate, X, split, options, store.checkpoint(candidate, split))
    store.write(candidate, split, outcome)
    return outcome
