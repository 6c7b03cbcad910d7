"""What an estimator takes: tables of every kind, values that are too large, and warm starts with other options."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import girih
from girih.errors import NonFiniteError, ParameterError

X = girih.datasets.load("circle", n=40, seed=1).X


def fit(table: Any, est: Any = None, **options: Any) -> girih.DGNEstimator:
    est = est or girih.DGNEstimator(hidden=(3,), max_iter=3, n_init=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return est.set_params(**options).fit(table)


MASKED = np.ma.array(np.where(X > 0.9, -1e12, X), mask=X > 0.9)


@pytest.mark.parametrize(
    ("table", "same"),
    [
        (torch.tensor(X, requires_grad=True), X),
        (list(torch.tensor(X, requires_grad=True)), X),
        (X.tolist(), X),
        (X.astype(object), X),
        (pd.DataFrame(X, columns=["a", "b"]).astype("Float64"), X),
        (pd.DataFrame(X, columns=["a", "b"]).astype(object), X),
        (torch.tensor(X).bfloat16(), torch.tensor(X).bfloat16().double().numpy()),
        (MASKED, np.where(X > 0.9, np.nan, X)),
        (pd.DataFrame(X).mask(X > 0.9, pd.NA).astype(object), np.where(X > 0.9, np.nan, X)),
    ],
)
def test_the_same_rows_give_the_same_numbers(table: Any, same: np.ndarray) -> None:
    first, second = fit(table), fit(same)
    assert first.score(table) == second.score(same)
    assert np.array_equal(first.transform(table), second.transform(same))
    assert np.array_equal(first.impute(table), second.impute(same)) and first.bic(table) == second.bic(same)


def test_values_that_are_too_large_are_blamed_on_their_column() -> None:
    table = pd.DataFrame(X, columns=["height", "width"])
    table.loc[3, "width"] = 1e300
    with pytest.raises(NonFiniteError, match=r"X holds values up to 1.0e\+300 in column 'width', too large"):
        fit(table)
    with pytest.raises(NonFiniteError, match="in column 1, too large"):
        girih.em.fit_em(girih.DGN(girih.mlp([1, 2, 2], seed=0)), table)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("before", ["isotropic", "diagonal", "full"])
def test_a_warm_start_converts_the_noise(before: str, kind: str) -> None:
    est = fit(X, noise=before, warm_start=True)
    noise, score = est.dgn_.noise.detach(), est.score(X)
    variance = (noise.diagonal() if noise.ndim == 2 else noise).expand(2)
    as_kind = {"isotropic": variance.mean(), "diagonal": variance, "full": torch.diag(variance)}
    start = girih.DGN(est.dgn_.net, noise=noise if before == kind else as_kind[kind])().log_prob(X).mean().item()
    fit(X, est, noise=kind)
    assert est.nll_curve_[0] == pytest.approx(-start, abs=1e-8)
    assert est.dgn_.noise.ndim == ("isotropic", "diagonal", "full").index(kind)
    if est.dgn_.noise.ndim >= noise.ndim:  # the old noise is one of the new kind
        assert est.score(X) >= score - 1e-9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": (4,)}, r"hidden = \(4,\) \(it has \(3,\)\)"),
        ({"hidden": ()}, "hidden"),
        ({"latent_dim": 2}, r"latent_dim = 2 \(it has 1\)"),
        ({"activation": "relu"}, "activation = ReLU"),
        ({"negative_slope": 0.3}, "negative_slope = 0.3"),
    ],
)
def test_a_warm_start_refuses_another_generator_by_name(change: dict[str, Any], words: str) -> None:
    est = fit(X, warm_start=True)
    score = est.score(X)
    with pytest.raises(ParameterError, match=words):
        fit(X, est, **change)
    assert est.score(X) == score
    with pytest.raises(ParameterError, match=r"D = 1 \(it has 2\)"):
        fit(X[:, :1], fit(X, warm_start=True))
