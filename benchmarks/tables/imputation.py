"""Hidden cells, filled in: RMSE, and coverage of girih's intervals."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from scipy.special import softmax
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.mixture import GaussianMixture

import girih
from tables.data import Table
from tables.records import Key, Record

RATES = (0.1, 0.2, 0.4)
CASES = tuple(f"{kind} {rate:.0%}" for kind in ("MCAR", "MAR") for rate in RATES)
COVERED = 0.9

Filled = Callable[[np.ndarray], np.ndarray]  # rows with NaN -> complete rows, fitted to them


def hide(X: np.ndarray, case: str, random: np.random.Generator) -> np.ndarray:
    """Which cells are hidden `(N, D)`; every row and column keeps some.

    MAR: one column is always seen; the log-odds of the others are `2 (x - mean) / deviation` of it, shifted so that as
    many are hidden as was asked for.
    """
    kind, rate = case.split()
    share = float(rate.rstrip("%")) / 100
    N, D = X.shape
    if kind == "MCAR":
        chance = np.full((N, D), share)
    else:
        cause = int(random.integers(D))
        chance = np.repeat(_with_mean(2 * _standard(X[:, cause]), share)[:, None], D, 1)
        chance[:, cause] = 0.0
    hidden = random.uniform(size=(N, D)) < chance
    empty = hidden.all(1)
    hidden[empty, random.integers(D, size=empty.sum())] = False
    return hidden


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


def _with_mean(log_odds: np.ndarray, mean: float) -> np.ndarray:
    """The probabilities of these log-odds, shifted to this mean by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = 1 / (1 + np.exp(-log_odds - middle))
        low, high = (middle, high) if chance.mean() < mean else (low, middle)
    return chance


def conditional_means(model: GaussianMixture, X: np.ndarray) -> np.ndarray:
    """`E[x_missing | x_observed]` under a mixture with full covariances."""
    out = X.copy()
    for i, row in enumerate(X):
        gone = np.isnan(row)
        if not gone.any():
            continue
        seen = ~gone
        log_share, means = np.log(model.weights_), []
        for k, (mean, covariance) in enumerate(zip(model.means_, model.covariances_, strict=True)):
            e = row[seen] - mean[seen]
            solved = np.linalg.solve(covariance[np.ix_(seen, seen)], np.c_[e, covariance[np.ix_(seen, gone)]])
            log_share[k] -= 0.5 * (e @ solved[:, 0] + np.linalg.slogdet(covariance[np.ix_(seen, seen)])[1])
            means.append(mean[gone] + e @ solved[:, 1:])
        out[i, gone] = softmax(log_share) @ np.stack(means)
    return out


def _by_mixture(X: np.ndarray, components: int, floor: float, rounds: int = 4) -> np.ndarray:
    """A mixture fitted to completed rows, which it completes again, from IterativeImputer's on."""
    filled = _start(X.tobytes(), X.shape)
    for _ in range(rounds):
        model = GaussianMixture(components, reg_covar=floor, random_state=0, max_iter=200).fit(filled)
        filled = conditional_means(model, X)
    return filled


@lru_cache(maxsize=2)  # the same for all settings
def _start(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    return _iterative(np.frombuffer(data).reshape(shape), 30)


def _iterative(X: np.ndarray, rounds: int) -> np.ndarray:
    return IterativeImputer(max_iter=rounds, random_state=0).fit_transform(X)


def _forest(X: np.ndarray, trees: int, rounds: int) -> np.ndarray:
    """As missForest does it, a third of the columns tried at each node."""
    forest = RandomForestRegressor(trees, max_features=1 / 3, random_state=0)
    return IterativeImputer(forest, max_iter=rounds, random_state=0).fit_transform(X)


def settings(model: str, rows: int, quick: bool) -> dict[str, Filled]:
    """What a rival chooses among."""
    if model == "mean":
        return {"": SimpleImputer().fit_transform}
    if model == "knn":
        return {
            f"{k} neighbours, {weights}": KNNImputer(n_neighbors=k, weights=weights).fit_transform
            for k in (3, 5, 10, 20, 40)
            for weights in ("uniform", "distance")
        }
    if model == "iterative":
        return {f"BayesianRidge, {n} rounds": partial(_iterative, rounds=n) for n in ((10,) if quick else (10, 100))}
    if model == "forest":
        return {"": partial(_forest, trees=5, rounds=1) if quick else partial(_forest, trees=60, rounds=4)}
    counts = (1, 2, 3) if quick else (1, 2, 3, 4, 6, 8)
    floors = (1e-2,) if quick else (1e-3, 1e-2)
    return {
        f"{k} components, reg_covar {floor:g}": partial(_by_mixture, components=k, floor=floor)
        for k in counts
        if k < rows / 10
        for floor in floors
    }


MODELS = ("girih", "mean", "knn", "iterative", "forest", "gmm")


def keys(table: str, number: int, models: tuple[str, ...], quick: bool) -> list[Key]:
    """One for each model and way to hide cells."""
    cases = ("MCAR 20%",) if quick else CASES
    return [Key("imputation", table, number, model, case, quick=quick) for model in models for case in cases]


def run(key: Key, table: Table) -> list[tuple[Key, Record]]:
    """Hide, fill in, measure."""
    random = np.random.default_rng([key.split, *key.case.encode()])
    X = table.X[random.permutation(len(table.X))[: 100 if key.quick else None]]
    hidden = hide(X, key.case, random)
    centre, spread = X.mean(0), X.std(0)
    Z = (X - centre) / spread
    Z[hidden] = np.nan
    truth = (X - centre) / spread
    start = time.process_time()
    if key.model == "girih":
        return [(key, _girih(np.where(hidden, np.nan, X), hidden, truth, centre, spread))]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        label, fill = _chosen(settings(key.model, len(X), key.quick), Z, random)
        searched = time.process_time() - start
        start = time.process_time()
        filled = fill(Z)
    return [
        (
            key,
            {
                "rmse": _rmse(filled, truth, hidden),
                "setting": label,
                "seconds_search": searched,
                "seconds": time.process_time() - start,
            },
        )
    ]


def _rmse(filled: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    return float(np.sqrt(np.mean((filled - truth)[where] ** 2)))


def _chosen(choices: dict[str, Filled], Z: np.ndarray, random: np.random.Generator) -> tuple[str, Filled]:
    """The setting that fills best what is hidden besides."""
    if len(choices) == 1:
        return next(iter(choices.items()))
    more = (random.uniform(size=Z.shape) < 0.1) & ~np.isnan(Z)
    more[np.isfinite(Z).sum(1) - more.sum(1) == 0] = False
    less = np.where(more, np.nan, Z)
    errors = {}
    for label, fill in choices.items():
        try:
            errors[label] = _rmse(fill(less), Z, more)
        except (ValueError, np.linalg.LinAlgError):
            errors[label] = np.inf
    label = min(errors, key=errors.__getitem__)
    return label, choices[label]


def _girih(X: np.ndarray, hidden: np.ndarray, truth: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> Record:
    start = time.process_time()
    model = girih.TableModel(random_state=0).fit(X)
    seconds = time.process_time() - start
    filled, deviations = (np.asarray(part, float) for part in model.impute(X, return_std=True))
    conditional = model.condition(X)
    low, high = (
        (np.asarray(conditional.quantile(q), float) - centre) / spread for q in (0.5 - COVERED / 2, 0.5 + COVERED / 2)
    )
    # Within the rounding of the arithmetic: a bound that is a value of the column covers it.
    inside = (low <= truth + 1e-9) & (truth <= high + 1e-9)
    return {
        "rmse": _rmse((filled - centre) / spread, truth, hidden),
        "rms_std": float(np.sqrt(np.mean((deviations / spread)[hidden] ** 2))),
        "coverage": float(inside[hidden].mean()),
        "seconds": seconds,
        "setting": "",
    }
