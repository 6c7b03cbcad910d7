"""scikit-learn's own checks, and the places where estimators are used."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import girih


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        girih.DGNEstimator(max_iter=3, n_init=1),
        girih.DGNEstimator(latent_dim=2, hidden=(2,), max_iter=2, n_init=1),
    ]
)
def test_sklearn_compatible(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_pipeline_and_grid_search():
    X = girih.datasets.load("circle", n=90, seed=1).X
    pipeline = make_pipeline(StandardScaler(), girih.DGNEstimator(max_iter=5, n_init=1, random_state=0))
    search = GridSearchCV(pipeline, {"dgnestimator__hidden": [(2,), (6,)]}, cv=3).fit(X)
    assert search.best_params_["dgnestimator__hidden"] == (6,)
    assert search.score(X) == pytest.approx(search.best_estimator_.score(X))


def test_planes():
    """What users call, with two latents; a pickled estimator gives the same numbers."""
    X = girih.datasets.load("circle", n=60, seed=1).X
    X[0, 1] = np.nan
    est = girih.DGNEstimator(latent_dim=2, hidden=(4,), max_iter=4, tol=10.0, n_init=1, random_state=0).fit(X)
    copy = pickle.loads(pickle.dumps(est))
    for method in ("score_samples", "transform", "impute"):
        np.testing.assert_array_equal(getattr(est, method)(X), getattr(copy, method)(X))
    Z = est.transform(X)
    assert Z.shape == (60, 2) and est.inverse_transform(Z).shape == (60, 2)
    assert est.get_feature_names_out().tolist() == ["dgnestimator0", "dgnestimator1"]
    assert est.sample(5, random_state=0).shape == (5, 2)
    assert np.isfinite([est.aic(X), est.bic(X)]).all()


def test_pandas_names():
    frame = pd.DataFrame(girih.datasets.load("circle", n=40, seed=1).X, columns=["east", "north"])
    frame.iloc[0, 0] = np.nan
    est = girih.DGNEstimator(max_iter=3, n_init=1, tol=10.0, random_state=0).fit(frame)
    assert est.feature_names_in_.tolist() == ["east", "north"]
    assert est.get_feature_names_out().tolist() == ["dgnestimator0"]
    assert est.set_output(transform="pandas").transform(frame).columns.tolist() == ["dgnestimator0"]
    with pytest.raises(ValueError, match="feature names"):
        est.score_samples(frame.rename(columns={"east": "west"}))


def test_warns_when_not_converged():
    X = girih.datasets.load("circle", n=40, seed=1).X
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        est = girih.DGNEstimator(max_iter=2, n_init=1, random_state=0).fit(X)
    assert not est.converged_
