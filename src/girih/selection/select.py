"""`girih.select_model`: generators of several sizes, compared by their exact likelihoods.

Finished fits lie in files, so that a comparison that was killed goes on from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from girih._arrays import Rows, as_rows, check_observed
from girih._deprecated import renamed
from girih._files import finite, read_json, write_json
from girih._jobs import side_by_side
from girih._options import whole
from girih._progress import Progress
from girih.em import DGNEstimator, WeightPrior
from girih.errors import ParameterError
from girih.selection.candidates import (
    Array,
    Candidate,
    Outcome,
    Shared,
    Split,
    fit_candidate,
    fit_estimator,
    grid,
    make_splits,
)
from girih.selection.result import CRITERIA, Row, SelectionResult, find_elbow, score


@renamed({"test_fraction": "validation"})
def select_model(
    X: Rows,
    latent_dims: Sequence[int] = (1,),
    hidden: Sequence[Sequence[int]] = ((8,), (16,)),
    noise: str | Sequence[str] = "diagonal",
    *,
    criterion: str = "bic",
    validation: float | None = 0.2,
    folds: int | None = None,
    baselines: bool | str | Sequence[str] = False,
    standardize: bool = True,
    activation: str = "leaky_relu",
    negative_slope: float = 0.1,
    weight_prior: WeightPrior | tuple[str, float] | str | None = None,
    learn_prior: bool = False,
    max_iter: int = 200,
    tol: float = 1e-6,
    n_init: int = 5,
    noise_floor: float = 1e-6,
    seed: int = 0,
    n_jobs: int | None = 1,
    out: str | os.PathLike[str] | None = None,
    refit: bool = True,
    progress: bool = True,
) -> SelectionResult:
    r"""Fit every generator of a grid by exact EM, compare them, and refit the best to all rows.

    Every number is from the exact likelihood: AIC and BIC of the rows that a model was fitted to, and the NLL of
    rows that were held out. With folds, each row is held out once, and AIC, BIC and NLL are means over the folds.

    Args:
        X: `(N, D)`; NaN entries are missing.
        latent_dims: latent dimensions S to try.
        hidden: networks to try, each a tuple of widths of its hidden layers; `()` is a linear generator.
        noise: one or several of "isotropic", "diagonal", "full" and "low_rank" (of rank 1).
        criterion: "bic", "aic" or "held_out", what chooses the best.
        validation: share of the rows that are held out; `None` holds out none.
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
        n_jobs: fits at the same time, through joblib, whose backend may be a cluster (see `girih fit` at scale in the
            docs); -1 for one on each processor. The fits of a worker that is killed are made again.
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
    table = as_rows(X, "X", None, "the data dimension D", allow_missing=True).detach().cpu()
    check_observed(table, "X")
    rows = table.numpy()
    seed = whole(seed, "seed", 0)
    candidates = grid(latent_dims, hidden, noise, baselines)
    splits = make_splits(len(rows), validation, folds, seed)
    if criterion not in CRITERIA:
        raise ParameterError(f"criterion must be one of {', '.join(CRITERIA)}; got {criterion!r}")
    if criterion == "held_out" and not len(splits[0].test):
        raise ParameterError("criterion='held_out' needs held-out rows; pass validation or folds")
    estimator = DGNEstimator(
        activation=activation,
        negative_slope=negative_slope,
        weight_prior=WeightPrior.parse(weight_prior),
        learn_prior=learn_prior,
        max_iter=max_iter,
        tol=tol,
        n_init=whole(n_init, "n_init"),
        noise_floor=noise_floor,
        random_state=seed,
    )
    estimator.em_options()  # refuses what it cannot fit with, before anything is fitted
    shared = Shared(estimator, bool(standardize), seed)
    skipped = {}
    if np.isnan(rows).any():
        skipped = {c.model: "cannot take missing entries" for c in candidates if not c.is_dgn}
        candidates = [candidate for candidate in candidates if candidate.is_dgn]
    store = Store(None if out is None else Path(out), rows, shared)
    outcomes, resumed = _fit_all(candidates, splits, rows, shared, store, n_jobs, progress)
    compared = [Row.of(candidate, outcomes[candidate]) for candidate in candidates]
    best = min((row for row in compared if row.candidate.is_dgn), key=lambda row: score(row, criterion))
    fitted = fit_estimator(best.candidate, rows, shared, progress=progress) if refit else None
    names = getattr(X, "columns", None)
    if fitted is not None and names is not None:
        fitted.feature_names_in_ = np.array([str(name) for name in names], dtype=object)
    return SelectionResult(compared, criterion, best, find_elbow(compared, criterion), fitted, skipped, resumed)


def _fit_all(
    candidates: list[Candidate],
    splits: list[Split],
    X: Array,
    shared: Shared,
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
        tasks = [(c, X, splits[i], shared, store) for c, i in missing]
        for count, (place, outcome) in enumerate(side_by_side(_fit, tasks, n_jobs), 1):
            key = missing[place]
            found[key] = outcome
            bar.show(resumed + count, f"{key[0].label}: NLL {-outcome.log_likelihood / outcome.n_train:.4g}")
    finally:
        bar.close()
    return {c: [found[c, i] for i in range(len(splits))] for c in candidates}, resumed  # type: ignore[misc]


def _fit(task: tuple[Candidate, Array, Split, Shared, Store]) -> Outcome:
    """One fit, kept as soon as it is finished."""
    candidate, X, split, shared, store = task
    outcome = fit_candidate(candidate, X, split, shared, store.checkpoint(candidate, split))
    store.write(candidate, split, outcome)
    return outcome


class Store:
    """A store keeps one JSON file for each finished fit in a folder; without a folder it remembers nothing.

    The name of a file holds a fingerprint of the rows, the split and the options: fits of other runs are never used.
    """

    def __init__(self, folder: Path | None, X: Array, shared: Shared) -> None:
        self.folder = folder
        options = sorted(shared.estimator.get_params().items())  # all: scikit-learn's repr is cut short
        run = hashlib.sha256(repr((options, shared.standardize, shared.seed, X.shape)).encode())
        run.update(np.ascontiguousarray(X).data)
        self._run = run.digest()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def checkpoint(self, candidate: Candidate, split: Split) -> Path | None:
        """An unfinished fit saves its state here."""
        path = self._path(candidate, split)
        return None if path is None or not candidate.is_dgn else path.with_suffix(".safetensors")

    def read(self, candidate: Candidate, split: Split) -> Outcome | None:
        """A finished fit, or `None`; a damaged file counts as none."""
        path = self._path(candidate, split)
        if path is None:
            return None
        try:
            written = read_json(path)
            value = written["outcome"]
            if written.get("sha256") not in (None, _digest(value)):
                return None
            value["unexplained"] = math.nan if value["unexplained"] is None else value["unexplained"]
            outcome = Outcome(**{field.name: value[field.name] for field in fields(Outcome)})
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return outcome if len(outcome.held_out) == len(split.test) else None

    def write(self, candidate: Candidate, split: Split, outcome: Outcome) -> None:
        """Keep a finished fit, in one piece."""
        path = self._path(candidate, split)
        if path is not None:
            value = json.loads(json.dumps(finite(asdict(outcome))))
            sums = {"outcome": value, "sha256": _digest(value)}
            write_json(path, {"format": "girih-selection-fit", "label": candidate.label, **sums})

    def _path(self, candidate: Candidate, split: Split) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(self._run)
        digest.update(repr(candidate).encode() + split.train.tobytes() + b"/" + split.test.tobytes())
        name = re.sub(r"[^a-z0-9]+", "-", candidate.label.lower()).strip("-")
        return self.folder / f"{name}-{digest.hexdigest()[:12]}.json"


def _digest(value: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
