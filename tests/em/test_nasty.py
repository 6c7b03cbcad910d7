"""Tables that break fits: the answer is finite and monotone, or a typed error."""

import itertools

import numpy as np
import pytest
import torch

import girih
from effort import LONG

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 1)) @ RNG.normal(size=(1, 3)) + 0.1 * RNG.normal(size=(16, 3))


def with_column(value):
    table = X.copy()
    table[:, 1] = value
    return table


def with_missing(rows, columns):
    table = X.copy()
    table[rows, columns] = np.nan
    return table


FITS = {
    "constant column": with_column(1e6),
    "zero column": with_column(0.0),
    "a column of rounding errors": with_column(1e6 * (1 + 2.3e-16 * (np.arange(16) % 3))),
    "all constant": np.full((6, 3), 3.0),
    "all zero": np.zeros((6, 3)),
    "duplicated columns": X[:, [0, 1, 1]],
    "collinear columns": np.column_stack((X[:, :2], X[:, 0] - 2 * X[:, 1])),
    "duplicated rows": np.repeat(X[:3], 5, 0),
    "one row": X[:1],
    "two rows": X[:2],
    "more columns than rows": RNG.normal(size=(4, 9)),
    "a row without entries": with_missing(3, slice(None)),
    "a column with one entry": with_missing(slice(1, None), 2),
    "1e140": X * 1e140,
    "1e-130": X * 1e-130,
    "columns 200 decades apart": X * [1e100, 1e-100, 1.0],
    "offset 1e9": X + 1e9,
    "offset 1e15": X + 1e15,
    "boolean": X > 0,
    "integer": np.round(3 * X).astype(int),
    "objects": X.astype(object),
    "float32": X.astype(np.float32),
    "a tensor with gradients": torch.tensor(X, requires_grad=True),
    "an outlier": np.vstack((X, [1e12, 0.0, 0.0])),
    "one column": X[:, :1],
}

REFUSED = {
    "a column without entries": with_missing(slice(None), 2),
    "no entries": with_missing(slice(None), slice(None)),
    "infinite": with_column(np.inf),
    "constant column of 1e300": with_column(1e300),
    "all 1e300": np.full((6, 3), 1e300),
    "1e300": X * 1e300,
    "1e-300": X * 1e-300,
    "one column of 1e300": X * [1e300, 1.0, 1.0],
    "the largest numbers": np.where(X > 0, 1.7e308, -1.7e308),
    "subnormal numbers": X * 1e-310,
}

KINDS = list(itertools.product((1, 2), ("isotropic", "diagonal", "full")))


def fit(table, S, noise, max_iter=2):
    est = girih.DGNEstimator(S, hidden=(3,), noise=noise, max_iter=max_iter, n_init=1, random_state=0, tol=0)
    return est.fit(table)


# Each table with one kind of noise has two latents, too, and a fit that is accelerated, after 20 iterations; in
# `make fuzz` with all three.
CASES = [
    (name, S, noise, LONG or (i + j) % 3 == 0)
    for i, name in enumerate(FITS)
    for j, (S, noise) in enumerate(KINDS)
    if S == 1 or LONG or (i + j) % 3 == 0
]


@pytest.mark.fuzz
@pytest.mark.parametrize("name, S, noise, accelerated", CASES)
def test_fits(name, S, noise, accelerated):
    rows = FITS[name].detach().numpy() if isinstance(FITS[name], torch.Tensor) else FITS[name]
    est = fit(FITS[name], S, noise, 2 if S == 2 else 23 if accelerated else 5)
    scores = est.score_samples(rows)
    assert (np.diff(est.nll_curve_) <= 0).all() and np.isfinite(est.nll_curve_).all()
    assert est.nll_curve_[-1] == pytest.approx(-scores.mean(), rel=1e-8, abs=1e-8)
    for numbers in (scores, est.transform(rows), est.impute(rows), est.sample(3, random_state=0)):
        assert np.isfinite(numbers).all()


@pytest.mark.parametrize("S, noise", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, S, noise):
    with pytest.raises(ValueError, match=r"X|infinity"):
        fit(REFUSED[name], S, noise)


@pytest.mark.parametrize(
    "scale, message", [(1e300, r"X holds values up to .* in column 2"), (1e-300, r"columns \[2\] of X have a standard")]
)
def test_the_message_names_the_columns(scale, message):
    with pytest.raises(girih.errors.NonFiniteError, match=message):
        fit(X * [1.0, 1.0, scale], 1, "diagonal")
