"""Real tables made continuous, so that densities of held-out rows can be compared, and how they are split."""

from __future__ import annotations

import numpy as np

from girih.datasets import load
from girih.errors import ParameterError
from girih_papers.arrays import Array
from girih_papers.rivals import Rows

# The tables of girih.datasets with at most 30 columns; scikit-learn's other ones have 20 rows, or 64 columns.
TABLES = {"iris": "iris", "wine": "wine", "diabetes": "diabetes", "breast_cancer": "breast cancer"}
# Left out: two values only; and rows where several columns are exactly 0, an atom and not a measurement.
_NO_COLUMN = {"diabetes": "sex"}
_NO_ZERO = {"breast_cancer": "mean concavity"}
# Logarithms of whole numbers.
_LOGS = {"diabetes": "s5"}
_FINEST = 8  # decimals


def continuous(name: str, seed: int) -> Array:
    """A table with uniform noise as wide as the last digit of each column, `(N, D)`.

    Measurements are rounded and repeat, and a density can be as high as it likes on a value that repeats. With the
    noise, a mean NLL has a lower bound: it costs at least as much as coding the rounded values, up to a constant.

    Args:
        name: one of `TABLES`.
        seed: of the noise.

    Raises:
        ParameterError: there is no such table.
    """
    if name not in TABLES:
        raise ParameterError(f"there is no table {name!r}; known are {', '.join(TABLES)}")
    data = load(name)
    X, names = data.X, list(data.feature_names)
    if name in _NO_ZERO:
        X = X[X[:, names.index(_NO_ZERO[name])] > 0.0]
    keep = [i for i, column in enumerate(names) if column != _NO_COLUMN.get(name)]
    X, names = X[:, keep].copy(), [names[i] for i in keep]
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, X.shape)
    for i, column in enumerate(names):
        if column == _LOGS.get(name):
            X[:, i] = np.log(np.round(np.exp(X[:, i])) + noise[:, i])
        else:
            X[:, i] += unit(X[:, i]) * noise[:, i]
    return X


def unit(column: Array) -> float:
    """The largest power of ten, up to 100, that most entries of a column are multiples of.

    Raises:
        ParameterError: there is none above 1e-8: the column is not rounded.

    Example:
        >>> import numpy as np
        >>> from girih_papers.rad_tables_data import unit
        >>> unit(np.array([1.5, 2.0, 0.7, 3.14]))
        0.1
    """
    for decimals in range(-2, _FINEST + 1):
        steps = column * 10.0**decimals
        near = np.abs(steps - np.round(steps)) < 1e-6 + 1e-15 * np.abs(steps)  # the second is rounding
        if near.mean() > 0.5:
            return float(f"1e{-decimals}")
    raise ParameterError(f"most entries of the column have more than {_FINEST} decimals; it needs no noise")


def split(X: Array, seed: int) -> Rows:
    """Three fifths of the rows to train on, a fifth to choose by and a fifth to compare on, in deviations.

    Columns have mean 0 and variance 1 on the rows to train on, so the NLL of all models is in the same units.
    """
    order = np.random.default_rng(seed).permutation(len(X))
    first, second = round(0.6 * len(X)), round(0.8 * len(X))
    train = X[order[:first]]
    X = (X - train.mean(0)) / train.std(0)
    return Rows(X[order[:first]], X[order[first:second]], X[order[second:]])
