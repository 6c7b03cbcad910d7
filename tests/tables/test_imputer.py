"""`DGNImputer`: the imputations of `TableModel` where scikit-learn wants a transformer."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

import girih
from girih.errors import ParameterError, ShapeError

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("fewest_settings")


def array(n=50, seed=0):
    """Two columns that say nearly the same, with holes."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    X = np.column_stack([a, 2.0 * a + 0.1 * rng.normal(size=n)])
    X[::7, 1], X[3::7, 0] = NAN, NAN
    return X


def frame(n=50):
    """The same with text, booleans, whole numbers, and a column without an entry."""
    X = array(n)
    a = np.random.default_rng(0).normal(size=n)
    out = pd.DataFrame(
        {"a": X[:, 0], "b": X[:, 1], "c": np.where(a > 0, "up", "down"), "e": NAN, "n": np.arange(n) % 5},
        index=np.arange(n) + 10,
    )
    out.loc[12, "c"] = None
    return out


def imputer(**options):
    return girih.DGNImputer(n_folds=2, random_state=0, **options)


@pytest.fixture(scope="module")
def fitted(fewest_settings):
    return imputer().fit(array())


@pytest.fixture(scope="module")
def kept(fewest_settings):
    return imputer(add_indicator=True, keep_empty_features=True).fit(frame())


def test_holes_become_conditional_means(fitted):
    X = array()
    out = fitted.transform(X)
    np.testing.assert_array_equal(out, fitted.model_.impute(X))
    np.testing.assert_array_equal(out[~np.isnan(X)], X[~np.isnan(X)])
    np.testing.assert_allclose(out[::7, 1], 2.0 * X[::7, 0], atol=0.4)
    np.testing.assert_array_equal(imputer().fit_transform(X), out)
    assert fitted.get_feature_names_out().tolist() == ["x0", "x1"] and fitted.n_features_in_ == 2


def test_draws_have_the_conditional_spread(fitted):
    X = np.column_stack([np.full(3000, 0.5), np.full(3000, NAN)])
    given = fitted.model_.condition(X[:1])
    draws = clone(fitted).set_params(sample_posterior=True).fit(array()).transform(X)[:, 1]
    error = given.std[0, 1] / np.sqrt(3000)
    assert draws.mean() == pytest.approx(given.mean[0, 1], abs=5 * error)
    assert draws.std() == pytest.approx(given.std[0, 1], rel=0.1)


@pytest.mark.slow
def test_draws_are_repeated_by_the_seed():
    X = array()
    one, two = imputer(sample_posterior=True), imputer(sample_posterior=True)
    np.testing.assert_array_equal(one.fit(X).transform(X), two.fit(X).transform(X))
    np.testing.assert_array_equal(one.transform(X), one.transform(X))
    assert (two.set_params(random_state=1).fit(X).transform(X) != one.transform(X))[np.isnan(X)].all()


def test_a_table_without_holes_may_be_fitted():
    X = array()
    complete = X[~np.isnan(X).any(1)]
    out = imputer(add_indicator=True).fit(complete)
    np.testing.assert_array_equal(out.transform(complete), complete)
    assert out.transform([[1.0, NAN]]).shape == (1, 2) and out.transform([[1.0, NAN]])[0, 1] == pytest.approx(
        2.0, abs=0.4
    )


def test_columns_are_never_lost_without_a_word(kept):
    X = frame()
    with pytest.warns(UserWarning, match=r"without any observed value are left out: \['e'\]"):
        less = imputer().fit(X)
    assert less.get_feature_names_out().tolist() == list(less.transform(X)) == ["a", "b", "c", "n"]
    more = kept.transform(X)
    names = ["a", "b", "c", "e", "n", *(f"missingindicator_{name}" for name in "abce")]
    assert kept.get_feature_names_out().tolist() == list(more) == names
    assert (more["e"] == 0.0).all() and not more.isna().any().any()
    np.testing.assert_array_equal(more[names[5:]], X[list("abce")].isna())
    Y = np.column_stack([array(), np.full(50, NAN)])
    out = imputer(keep_empty_features=True, add_indicator=True).fit_transform(Y)
    assert out.shape == (50, 6) and (out[:, 2] == 0.0).all() and not np.isnan(out).any()
    with pytest.warns(UserWarning, match=r"left out: \[2\]"):
        assert imputer().fit_transform(Y).shape == (50, 2)


def test_tables_come_back_as_they_came(kept):
    X = frame()
    out = kept.transform(X)
    assert out.index.equals(X.index) and out["n"].dtype == X["n"].dtype and out["c"].isin(["up", "down"]).all()
    other = kept.transform(pl.from_pandas(X))
    assert isinstance(other, pl.DataFrame) and other.columns == list(out)
    np.testing.assert_allclose(other["b"].to_numpy(), out["b"])
    tensor = torch.tensor(array())
    assert isinstance(imputer(add_indicator=True).fit(tensor).transform(tensor), torch.Tensor)


@pytest.mark.parametrize(("container", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame)])
def test_set_output(container, kind, kept, fitted):
    other = copy.deepcopy(kept).set_output(transform=container)
    for X in (frame(), pl.from_pandas(frame())):
        out = other.transform(X)
        assert isinstance(out, kind) and list(out.columns) == kept.get_feature_names_out().tolist()
    assert copy.deepcopy(fitted).set_output(transform=container).transform(array()).shape == (50, 2)


def test_in_pipelines_and_column_transformers():
    X, y = frame(), np.random.default_rng(1).normal(size=50)
    columns = ColumnTransformer([("holes", imputer(), ["a", "b"]), ("text", OneHotEncoder(), ["c"])])
    pipe = make_pipeline(columns, LinearRegression()).fit(X.fillna({"c": "up"}), y)
    assert pipe.predict(X.fillna({"c": "up"})).shape == (50,)
    named = ColumnTransformer([("holes", imputer(add_indicator=True), ["a", "b"])]).set_output(transform="pandas")
    assert list(named.fit_transform(X)) == [
        "holes__a",
        "holes__b",
        "holes__missingindicator_a",
        "holes__missingindicator_b",
    ]


def test_what_does_not_fit_is_refused(fitted, kept):
    with pytest.raises(ParameterError, match="add_indicator must be True or False"):
        imputer(add_indicator=3).fit(array())
    with pytest.raises(ShapeError, match="3 features, but DGNImputer is expecting 2"):
        fitted.transform(np.zeros((2, 3)))
    with pytest.raises(ShapeError, match="Reshape your data"):
        fitted.transform(np.zeros(2))
    with pytest.raises(ShapeError, match="same order as they were in fit"):
        kept.transform(frame()[["b", "a", "c", "e", "n"]])
    with pytest.raises(TypeError, match="sparse"):
        imputer().fit(sparse.csr_array(np.eye(4)))


@pytest.mark.slow
@pytest.mark.usefixtures("shortest_search")
@parametrize_with_checks([girih.DGNImputer(n_folds=2), girih.DGNImputer(n_folds=2, add_indicator=True)])
def test_sklearn_compatible(estimator, check):
    check(estimator)
