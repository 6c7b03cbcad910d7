"""`DGNOutlierDetector`: shares, thresholds by pattern of holes, p-values and reasons."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import girih
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.tables.pairs import strongest

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("fewest_settings")


def array(n=80, seed=0, holes=0.0):
    """Three columns, of which the second says what the first does."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    X = np.column_stack([a, 2.0 * a + 0.1 * rng.normal(size=n), rng.normal(size=n)])
    X[rng.random(X.shape) < holes] = NAN
    return X


def detector(**options):
    return girih.DGNOutlierDetector(n_folds=2, random_state=0, **options)


@pytest.fixture(scope="module")
def fitted(fewest_settings):
    return detector(contamination=0.1).fit(array())


@pytest.fixture(scope="module")
def holey(fewest_settings):
    return detector(contamination=0.1).fit(array(120, 1, 0.25))


def by_pairs(model, X):
    """The score of rows, one pair of columns at a time as rows of which nothing else is known."""
    X = np.asarray(X)
    folds = model._unseen.folds_of(*model.columns_.read(X))
    total, count = np.zeros(len(X)), np.zeros(len(X))
    for pair in itertools.combinations(range(X.shape[1]), 2):
        less = np.full_like(X, NAN)
        less[:, pair] = X[:, pair]
        both = ~np.isnan(less[:, pair]).any(1)
        log_p = model._log_prob(*model.columns_.read(less), folds).numpy()
        total, count = total + np.where(both, log_p, 0.0), count + both
    shown = (~np.isnan(X)).sum(1)
    return np.where(
        count > 0, 0.5 * shown * total / np.maximum(count, 1), model._log_prob(*model.columns_.read(X), folds)
    )


def test_the_score_is_the_mean_of_all_pairs(holey):
    X = np.vstack([array(40, 3, 0.4), [[NAN, NAN, NAN], [1.0, NAN, NAN]]])
    np.testing.assert_allclose(holey.score_samples(X), by_pairs(holey.model_, X), rtol=1e-11, atol=1e-12)


def test_pairs_with_categories_and_spikes():
    rng = np.random.default_rng(1)
    a = rng.gamma(2.0, size=80)
    a[::4] = 0.0
    X = pd.DataFrame({"a": a, "b": rng.normal(size=80), "c": np.where(a > 1, "up", "down")})
    one = detector().fit(X)
    model, fresh = one.model_, pd.DataFrame({"a": [0.0, 1.5, 0.2], "b": [0.3, -1.0, NAN], "c": ["up", "up", None]})
    folds = torch.full((3,), -1)
    total, count = np.zeros(3), np.zeros(3)
    for pair in itertools.combinations(fresh, 2):
        less = fresh.assign(**{name: None for name in fresh if name not in pair})
        both = fresh[list(pair)].notna().all(axis=1).to_numpy()
        total = total + np.where(both, model._log_prob(*model.columns_.read(less), folds).numpy(), 0.0)
        count += both
    expected = total[:2] / count[:2] * 1.5
    np.testing.assert_allclose(one.score_samples(fresh)[:2], expected, rtol=1e-10)
    assert one.score_samples(fresh)[2] == pytest.approx(model.score_samples(fresh)[2])


def test_the_joint_density_can_be_the_score():
    X = array()
    joint = detector(score="joint").fit(X)
    np.testing.assert_array_equal(joint.score_samples(X), joint.model_.score_held_out(X))
    with pytest.raises(ParameterError, match="score must be"):
        detector(score="all").fit(X)


def test_of_many_columns_each_has_its_closest_ones():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(500, 30)))
    x[:, 15:] = x[:, :15] + 0.1 * torch.as_tensor(rng.normal(size=(500, 15)))
    codes, groups = torch.empty(500, 0, dtype=torch.long), [([j], []) for j in range(30)]
    found = strongest(x, codes, groups, 100)
    assert {(j, j + 15) for j in range(15)} <= set(found) and len(found) <= 100
    assert {j for pair in found for j in pair} == set(range(30)) and all(i < j for i, j in found)
    order = torch.as_tensor(rng.permutation(30))
    place = order.argsort()
    moved = {tuple(sorted((int(place[i]), int(place[j])))) for i, j in found}
    assert moved == set(strongest(x[:, order], codes, groups, 100))
    x[::3, 2] = NAN  # where a column has a value that is a mass of its own
    spiked = strongest(x, codes, groups, 100)
    assert all(i < j for i, j in spiked) and {j for pair in spiked for j in pair} == set(range(30))
    assert strongest(x[:, :4], codes, [([j], []) for j in range(4)]) == list(itertools.combinations(range(4), 2))


def test_complete_rows_are_judged_by_one_threshold(fitted):
    X = array()
    scores, decision = fitted.score_samples(X), fitted.decision_function(X)
    np.testing.assert_allclose(scores, by_pairs(fitted.model_, X), rtol=1e-12)
    np.testing.assert_allclose(decision, scores - fitted.offset_, rtol=1e-12)
    assert fitted.threshold_ == fitted.offset_ == pytest.approx(np.percentile(scores, 10.0))
    assert (fitted.predict(X) == -1).sum() == 8
    np.testing.assert_array_equal(fitted.predict(X) == -1, decision < 0.0)
    np.testing.assert_array_equal(detector(contamination=0.1).fit_predict(X), fitted.predict(X))


def test_what_is_common_alone_may_be_strange_together(fitted):
    X = [[1.0, -2.0, 0.0], [1.0, 2.0, 0.0], [1.0, NAN, 0.0], [NAN, -2.0, 0.0], [NAN, NAN, NAN]]
    assert fitted.predict(X).tolist() == [-1, 1, 1, 1, 1]
    reasons = fitted.explain(X)
    np.testing.assert_array_equal(reasons, fitted.model_.explain(X, held_out=True))
    assert reasons[0, 0] < reasons[0, 2] - 5.0 and reasons[0, 1] < reasons[0, 2] - 5.0
    assert fitted.decision_function(X)[4] == pytest.approx(0.0, abs=1e-12) and fitted.p_value(X)[4] == 1.0


def test_rows_with_the_same_holes_are_compared(fitted):
    """The threshold of a pattern is the quantile of the rows of `fit` seen through it, by those that held them out."""
    X = array()
    model = fitted.model_
    folds = model._unseen.folds_of(*model.columns_.read(X))
    for j in range(3):
        hidden = X.copy()
        hidden[:, j] = NAN
        held_out = model._log_prob(*model.columns_.read(hidden), folds).numpy()
        expected = model.score_samples(hidden) - np.percentile(held_out, 10.0)
        np.testing.assert_allclose(fitted.decision_function(hidden), expected, atol=1e-10)
        assert (fitted.predict(hidden) == -1).sum() <= 8


def test_holes_make_no_outliers(holey):
    """About the share `contamination` of rows is flagged, whatever is missing from them."""
    X = array(120, 1, 0.25)
    share = (holey.predict(X) == -1).mean()
    assert share == pytest.approx(0.1, abs=0.06)
    fresh = array(4000, 2, 0.25)
    strange, missing = holey.predict(fresh) == -1, np.isnan(fresh).sum(1)
    for holes in range(3):
        assert strange[missing == holes].mean() < 0.25
    decision = holey.decision_function(fresh[:50])
    np.testing.assert_array_equal(holey.decision_function(fresh[:50][::-1])[::-1], decision)


def test_p_values_are_levels_under_the_model(fitted):
    drawn = np.asarray(fitted.model_.sample(400, random_state=5))
    drawn[::2, 0] = NAN
    p = fitted.p_value(drawn)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert p.min() >= 0.001 and p.max() <= 1.0


def test_p_values_are_counts_of_draws(fitted):
    X = np.array([[0.1, 0.2, 0.0], [1.0, -2.0, 0.0], [NAN, 9.0, NAN]])
    p = fitted.p_value(X, n_simulations=99)
    np.testing.assert_allclose(p * 100, np.round(p * 100), atol=1e-9)
    assert p[1] == p[2] == 0.01 and p[0] > 0.1
    np.testing.assert_array_equal(fitted.p_value(X[::-1], n_simulations=99)[::-1], p)
    assert fitted.p_value(X, n_simulations=9999)[1] == 1e-4


def test_text_and_constants(fewest_settings):
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    X = pd.DataFrame({"a": a, "c": np.where(a > 0, "up", "down"), "one": 1.0, "none": NAN})
    one = detector(contamination=0.05).fit(X)
    odd = pd.DataFrame({"a": [2.5, 2.5, 0.1], "c": ["down", "up", "up"], "one": [1.0, 1.0, 7.0], "none": NAN})
    assert one.predict(odd)[0] == -1 and one.predict(odd)[2] == -1
    reasons = one.explain(odd)
    assert reasons.shape == (3, 4) and reasons[2].argmin() == 2 and (reasons[:, 3] == 0.0).all()
    assert one.feature_names_in_.tolist() == list(X)
    assert (one.predict(X) == -1).sum() == 3


def test_one_seed_gives_one_answer(fitted):
    X = array(30, 4, 0.3)
    again, other = detector(contamination=0.1).fit(array()), pickle.loads(pickle.dumps(fitted))
    for one in (again, other):
        np.testing.assert_array_equal(one.decision_function(X), fitted.decision_function(X))
        np.testing.assert_array_equal(one.p_value(X), fitted.p_value(X))


@pytest.mark.slow
def test_in_a_pipeline():
    X = array(50, 0, 0.1)
    pipe = make_pipeline(StandardScaler(), detector(contamination=0.1)).fit(X)
    assert set(pipe.predict(X)) == {-1, 1} and pipe.decision_function(X).shape == (50,)


@pytest.mark.parametrize("share", [0.0, 0.51, -0.1, NAN, "auto", True, None])
def test_shares_out_of_their_domain_are_refused(share):
    with pytest.raises(ParameterError, match=r"contamination must be above 0 and at most 0\.5"):
        detector(contamination=share).fit(array())


def test_what_does_not_fit_is_refused(fitted):
    with pytest.raises(ParameterError, match="n_simulations"):
        fitted.p_value(array(), n_simulations=0)
    with pytest.raises(ShapeError, match="2 features, but DGNOutlierDetector is expecting 3"):
        fitted.predict(np.zeros((2, 2)))
    with pytest.raises(EmptyDataError):
        detector().fit([[1.0, 2.0]])


@pytest.mark.slow
@pytest.mark.usefixtures("shortest_search")
@parametrize_with_checks([girih.DGNOutlierDetector(n_folds=2)])
def test_sklearn_compatible(estimator, check):
    check(estimator)
