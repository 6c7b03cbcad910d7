"""Anomaly scores: how well `-log p(x)` separates new rows of the known kind from others.

Every model sees rows of the known kind only. It then scores held-out rows of that kind, and outliers: rows of another
class, or (diabetes) rows whose columns were shuffled independently, so that each value alone is ordinary.

    python examples/anomaly.py [--quick] [--latent-dims 1 2] [--out DIR]
"""

from __future__ import annotations

import common
import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

# The classes that are known; the others are outliers.
KNOWN = {"wine": (0, 1), "breast_cancer": (1,), "digits": (0, 1, 2, 3, 4), "diabetes": None}


def split(name, seed):
    """Training rows, held-out rows of the same kind, outliers."""
    X, y = common.load(name, seed)
    if KNOWN[name] is None:
        train, test = train_test_split(X, test_size=0.3, random_state=seed)
        return train, test, np.random.default_rng(seed).permuted(test, axis=0)
    known = np.isin(y, KNOWN[name])
    return *train_test_split(X[known], test_size=0.3, random_state=seed), X[~known]


def measure(name, seed, options):
    """ROC AUC of each method."""
    train, test, outliers = common.standardise(*split(name, seed))
    models = common.fit_girih(train, seed, options)
    models["GaussianMixture, defaults"] = GaussianMixture(random_state=seed).fit(train)
    models["GaussianMixture, by BIC"] = common.mixture_by_bic(train, seed, options.quick)
    models["IsolationForest, defaults"] = IsolationForest(random_state=seed).fit(train)
    rows, is_outlier = np.concatenate((test, outliers)), np.repeat((0, 1), (len(test), len(outliers)))
    return {method: float(roc_auc_score(is_outlier, -model.score_samples(rows))) for method, model in models.items()}


if __name__ == "__main__":
    common.run("anomaly", "ROC AUC of anomaly scores (higher is better)", measure, tuple(KNOWN), 3)
