"""Imputation: a fifth of the entries is removed at random, every method fills them in.

python examples/imputation.py [--quick] [--latent-dims 1 2] [--out DIR]
"""

from __future__ import annotations

import warnings

import common
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

TABLES = ("iris", "wine", "breast_cancer", "diabetes", "digits")


def measure(name, seed, options):
    """Root mean squared error at the removed entries, in standard deviations of their column."""
    X, _ = common.load(name, seed)
    (X,) = common.standardise(X)
    removed = np.random.default_rng(seed).random(X.shape) < 0.2
    holes = np.where(removed, np.nan, X)
    filled = {method: est.impute(holes) for method, est in common.fit_girih(holes, seed, options).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        filled["KNNImputer, defaults"] = KNNImputer().fit_transform(holes)
        filled["IterativeImputer, defaults"] = IterativeImputer(random_state=seed).fit_transform(holes)
        filled["mean of the column"] = SimpleImputer().fit_transform(holes)
    return {method: float(np.sqrt(((Y - X)[removed] ** 2).mean())) for method, Y in filled.items()}


if __name__ == "__main__":
    common.run("imputation", "RMSE of removed entries (standard deviations; lower is better)", measure, TABLES, 3)
