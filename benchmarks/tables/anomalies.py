"""Rare classes as anomalies."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor

import girih
from girih._extras import require
from tables.data import from_r, penguins
from tables.records import Key, Record
from tables.rivals import gaussian_mixtures, search

Case = tuple[np.ndarray, np.ndarray]  # rows (N, D), and which are of the rare class (N,)

SHARE = 0.05  # of the training rows that are of the rare class


def _sklearn(name: str, rare: int) -> Case:
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return X, y == rare


def _digit(rare: int) -> Case:
    X, rare_rows = _sklearn("digits", rare)
    return X[:, X.std(0) > 0.5], rare_rows  # pixels that are not always white


def _frame(frame: pd.DataFrame, label: str, rare: str) -> Case:
    numbers = [name for name in frame.select_dtypes("number") if name != "index"]
    frame = frame.dropna(subset=[*numbers, label])
    return frame[numbers].to_numpy(float), (frame[label] == rare).to_numpy()


def _r(package: str, item: str, label: str, rare: str) -> Case:
    return _frame(from_r(package, item), label, rare)


def _hawks() -> Case:
    frame = from_r("Stat2Data", "Hawks")[["Species", "Wing", "Weight", "Culmen", "Hallux", "Tail"]]
    return _frame(frame, "Species", "CH")


def _planted() -> Case:
    X = from_r("robustbase", "hbk")[["X1", "X2", "X3", "Y"]].to_numpy(float)
    return X, np.arange(len(X)) < 14  # Hawkins, Bradu and Kass (1984): rows 1 to 14


CASES: dict[str, Callable[[], Case]] = {
    "breast_cancer: malignant": partial(_sklearn, "breast_cancer", 0),
    "iris: virginica": partial(_sklearn, "iris", 2),
    "wine: first": partial(_sklearn, "wine", 0),
    "wine: second": partial(_sklearn, "wine", 1),
    "wine: third": partial(_sklearn, "wine", 2),
    "digits: 0": partial(_digit, 0),
    "digits: 8": partial(_digit, 8),
    "glass: headlamps": partial(_r, "MASS", "fgl", "type", "Head"),
    "hawks: Cooper's": _hawks,
    "penguins: Chinstrap": lambda: _frame(penguins(), "species", "Chinstrap"),
    "olive_oil: Sardinia": partial(_r, "dslabs", "olive", "region", "Sardinia"),
    "insulin: overt": partial(_r, "heplots", "Diabetes", "group", "Overt_Diabetic"),
    "athletes: men": partial(_r, "DAAG", "ais", "sex", "m"),
    "hbk: planted": _planted,
}
QUICK = ("iris: virginica",)


def keys(case: str, number: int, models: tuple[str, ...], quick: bool) -> list[Key]:
    """One for each model."""
    return [Key("anomalies", case, number, model, quick=quick) for model in models]


def rows_of(case: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, fresh rows, and which of the fresh ones are rare: 70 % of the usual rows, and a few rare ones."""
    X, rare = CASES[case]()
    random = np.random.default_rng(2000 + number)
    usual, unusual = (random.permutation(np.flatnonzero(which)) for which in (~rare, rare))
    cut = round(0.7 * len(usual))
    few = min(max(1, round(SHARE * cut / (1 - SHARE))), len(unusual) // 2)
    train = random.permutation(np.concatenate((usual[:cut], unusual[:few])))
    fresh = np.concatenate((usual[cut:], unusual[few:]))
    return X[train], X[fresh], rare[fresh]


def _mixture(train: np.ndarray, fresh: np.ndarray, quick: bool) -> np.ndarray:
    """The Gaussian mixture that is best on a fifth of the training rows, fitted to all of them."""
    cut = round(0.8 * len(train))
    best = search(gaussian_mixtures(cut, train.shape[1], quick), train[:cut], train[cut:])[0]
    density, _ = best.candidate.fit(train, None, None)
    return -density(fresh)


def _forest(train: np.ndarray, fresh: np.ndarray, quick: bool) -> np.ndarray:
    return -IsolationForest(n_estimators=50 if quick else 300, random_state=0).fit(train).score_samples(fresh)


def _local(train: np.ndarray, fresh: np.ndarray, quick: bool) -> np.ndarray:
    return -LocalOutlierFactor(n_neighbors=20, novelty=True).fit(train).score_samples(fresh)


def _ecod(train: np.ndarray, fresh: np.ndarray, quick: bool) -> np.ndarray:
    """Row by row: pyod ranks all rows that are passed among each other, where many rare ones would look usual."""
    model = require("pyod.models.ecod", "benchmarks").ECOD().fit(train)
    return np.concatenate([model.decision_function(row[None]) for row in fresh])


SCORES: dict[str, Callable[[np.ndarray, np.ndarray, bool], np.ndarray]] = {
    "gmm": _mixture,
    "isolation_forest": _forest,
    "lof": _local,
    "ecod": _ecod,
}
MODELS = ("girih", *SCORES)


def run(key: Key) -> list[tuple[Key, Record]]:
    """Fit to the training rows, rank the fresh ones."""
    train, fresh, rare = rows_of(key.table, key.split)
    start = time.process_time()
    if key.model == "girih":
        scores = -girih.DGNOutlierDetector(random_state=0).fit(train).score_samples(fresh)
    else:
        spread = np.where(train.std(0) > 0, train.std(0), 1.0)
        centre = train.mean(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = SCORES[key.model]((train - centre) / spread, (fresh - centre) / spread, key.quick)
    seconds = time.process_time() - start
    return [(key, {"auc": float(roc_auc_score(rare, scores)), "seconds": seconds, "setting": ""})]
