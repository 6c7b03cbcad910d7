"""`TableModel`: what users ask of it, against its own laws, quadrature and scikit-learn's checks."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import integrate
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import girih
from girih._progress import Counted
from girih.errors import EmptyDataError, GirihError, NonFiniteError, NotNumericError, ParameterError, ShapeError
from girih.tables import TableModel
from girih.tables import model as module

NAN = float("nan")
pytestmark = pytest.mark.usefixtures("short_search")


def frame(n=70, seed=0):
    """Two numbers along a curve, text and booleans that go with them, and holes."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=n)
    out = pd.DataFrame(
        {
            "a": t,
            "b": t**2 + 0.2 * rng.normal(size=n),
            "c": np.where(t > 0, "up", "down"),
            "d": rng.random(n) < 1 / (1 + np.exp(-2 * t)),
        },
        index=np.arange(n) + 100,
    )
    out = out.astype({"d": "boolean"})
    for name in out:
        out.loc[rng.random(n) < 0.15, name] = None
    return out


@pytest.fixture(scope="module")
def numbers():
    """Three columns of numbers with holes."""
    rng = np.random.default_rng(1)
    t = rng.normal(size=80)
    X = np.column_stack([t, t**2 + 0.3 * rng.normal(size=80), 2 * t + 0.2 * rng.normal(size=80)])
    X[rng.random(X.shape) < 0.15] = NAN
    X[np.isnan(X).all(1)] = 0.1
    return X


@pytest.fixture(scope="module")
def fitted(short_search, numbers):
    return girih.TableModel(n_folds=2, random_state=0).fit(numbers)


@pytest.fixture(scope="module")
def mixed(short_search):
    return girih.TableModel(n_folds=2, random_state=0).fit(frame())


def whole(model, n=6):
    return np.asarray(model.sample(n, random_state=3))


# Laws ----------------------------------------------------------------------------------------------------------------


def test_the_density_integrates_to_one(short_search):
    X = np.random.default_rng(0).gamma(2.0, size=(60, 1))
    model = girih.TableModel(n_folds=2, random_state=0).fit(X)
    grid = np.linspace(-30.0, 60.0, 90_001)[:, None]
    assert integrate.simpson(np.exp(model.score_samples(grid)), x=grid[:, 0]) == pytest.approx(1.0, abs=1e-4)


def test_one_seed_gives_one_model(fitted, numbers):
    other = clone(fitted).fit(numbers)
    np.testing.assert_array_equal(other.score_samples(numbers), fitted.score_samples(numbers))
    np.testing.assert_array_equal(other.sample(4, random_state=1), fitted.sample(4, random_state=1))
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.impute(numbers), fitted.impute(numbers))


def test_units_change_the_density_by_their_jacobian(fitted, numbers):
    units = np.array([4.0, 2.0**-30, 2.0**100])
    other = clone(fitted).fit(numbers * units)
    jacobian = (~np.isnan(numbers) * np.log(units)).sum(1)
    np.testing.assert_allclose(
        other.score_samples(numbers * units) + jacobian, fitted.score_samples(numbers), atol=1e-6
    )
    np.testing.assert_allclose(other.impute(numbers * units) / units, fitted.impute(numbers), atol=1e-6)


def test_frames_are_matched_by_name(mixed):
    X = frame()
    other = X[["c", "a", "d", "b"]]
    np.testing.assert_array_equal(mixed.score_samples(other), mixed.score_samples(X))
    pd.testing.assert_frame_equal(mixed.impute(other)[list(X)], mixed.impute(X))


def test_rows_of_nothing_and_of_no_weight_do_not_count(fitted, numbers):
    more = np.vstack([numbers, np.full((3, 3), NAN), numbers[:5] + 9.0])
    weight = np.r_[np.ones(83), np.zeros(5)]
    other = clone(fitted).fit(more, sample_weight=weight)
    np.testing.assert_array_equal(other.score_samples(numbers), fitted.score_samples(numbers))
    assert fitted.score_samples(np.full((1, 3), NAN))[0] == pytest.approx(0.0, abs=1e-12)


def test_the_average_is_that_of_its_members(fitted, numbers):
    x, codes = fitted.columns_.read(numbers)
    each = np.stack([np.exp(member.log_prob(x, codes).numpy()) for member in fitted.members_], 1)
    assert fitted.weights_.sum() == pytest.approx(1.0) and (fitted.weights_ > 0.0).all()
    np.testing.assert_allclose(np.log(each @ fitted.weights_), fitted.score_samples(numbers), rtol=1e-9)


# Conditionals --------------------------------------------------------------------------------------------------------


def test_a_conditional_is_a_quotient_of_densities_and_has_its_moments(fitted):
    c = fitted.condition({0: 0.7, 2: 1.2})
    grid = np.linspace(-12.0, 12.0, 24_001)
    rows = np.column_stack([np.full(len(grid), 0.7), grid, np.full(len(grid), 1.2)])
    log_p = fitted.score_samples(rows) - fitted.score_samples([[0.7, NAN, 1.2]])
    p = np.exp(log_p)
    assert integrate.simpson(p, x=grid) == pytest.approx(1.0, abs=1e-5)
    mean = integrate.simpson(grid * p, x=grid)
    assert c.mean[0, 1] == pytest.approx(mean, abs=1e-4)
    assert c.variance[0, 1] == pytest.approx(integrate.simpson((grid - mean) ** 2 * p, x=grid), abs=1e-3)
    assert c.log_prob({1: 0.5})[0] == pytest.approx(np.interp(0.5, grid, log_p), abs=1e-6)
    middle = c.quantile(0.5)[0, 1]
    below = grid <= middle
    assert integrate.trapezoid(p[below], grid[below]) == pytest.approx(0.5, abs=2e-3)


def test_imputations_are_conditional_means_and_keep_what_was_observed(fitted, numbers):
    imputed, std = fitted.impute(numbers, return_std=True)
    seen = ~np.isnan(numbers)
    np.testing.assert_array_equal(imputed[seen], numbers[seen])
    assert np.isfinite(imputed).all() and (std[seen] == 0.0).all() and (std[~seen] > 0.0).all()
    c = fitted.condition(numbers)
    np.testing.assert_allclose(imputed, c.mean)
    draws = fitted.impute(numbers, draws=2000, random_state=0)
    assert draws.shape == (2000, *numbers.shape)
    np.testing.assert_array_equal(draws[0][seen], numbers[seen])
    error = std / np.sqrt(2000)
    assert (np.abs(draws.mean(0) - imputed)[~seen] < 6.0 * error[~seen]).all()
    np.testing.assert_allclose(draws.std(0)[~seen], std[~seen], rtol=0.35)


def test_means_of_bent_columns_are_held_to_what_was_seen_and_others_are_not(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.normal(size=80)
    X = np.column_stack([a, np.exp(2.0 * a + 0.2 * rng.normal(size=80)), 3.0 * a + 0.2 * rng.normal(size=80)])
    model = girih.TableModel(n_folds=2, random_state=0).fit(X)
    far = np.array([[5.0, NAN, NAN], [0.0, NAN, NAN]])
    exact, filled = model.condition(far).mean, model.impute(far)
    assert exact[0, 1] > 2.0 * X[:, 1].max()  # a tail that no row has shown
    assert filled[0, 1] == X[:, 1].max()
    assert filled[0, 2] == exact[0, 2] > X[:, 2].max()
    np.testing.assert_array_equal(filled[1], exact[1])
    girih.save(model, tmp_path / "model")
    np.testing.assert_array_equal(girih.load(tmp_path / "model").impute(far), filled)


def test_reasons_are_conditional_densities(fitted, numbers):
    reasons = fitted.explain(numbers)
    assert reasons.shape == numbers.shape and (reasons[np.isnan(numbers)] == 0.0).all()
    log_p = fitted.score_samples(numbers)
    for j in range(3):
        without = numbers.copy()
        without[:, j] = NAN
        np.testing.assert_allclose(reasons[:, j], log_p - fitted.score_samples(without), atol=1e-10)
    alone = np.full((1, 3), NAN)
    alone[0, 1] = 0.4
    assert fitted.explain(alone)[0].sum() == pytest.approx(fitted.score_samples(alone)[0])


@pytest.mark.usefixtures("fewest_settings")
def test_relative_reasons_do_not_depend_on_units(numbers):
    units = np.array([1e-3, 1.0, 1e4])
    both = [girih.TableModel(n_folds=2, random_state=0).fit(numbers * unit) for unit in (1.0, units)]
    reasons = [one.explain(numbers * unit, relative=True) for one, unit in zip(both, (1.0, units), strict=True)]
    np.testing.assert_allclose(reasons[1], reasons[0], atol=1e-6)
    assert (reasons[0][np.isnan(numbers)] == 0.0).all()
    drawn = both[1].explain(both[1].sample(4000, random_state=1), relative=True)
    assert (np.abs(drawn.mean(0)) < 6.0 * drawn.std(0) * np.sqrt(1 / 4000 + 1 / 1000)).all()
    plain = both[1].explain(numbers * units)
    gaps = (plain - reasons[1])[~np.isnan(numbers).any(1)]
    np.testing.assert_allclose(gaps, gaps[:1].repeat(len(gaps), 0), atol=1e-9)  # the usual value of each column


def test_reasons_of_text_and_atoms(mixed):
    X = frame()
    reasons, log_p = mixed.explain(X), mixed.score_samples(X)
    for j, name in enumerate(X):
        without = X.assign(**{name: None})
        np.testing.assert_allclose(reasons[:, j], log_p - mixed.score_samples(without), atol=1e-10)
    rain = np.random.default_rng(0).gamma(2.0, size=(60, 1))
    rain[::3] = 0.0
    model = girih.TableModel(n_folds=2, random_state=0).fit(rain)
    np.testing.assert_allclose(model.explain(rain)[:, 0], model.score_samples(rain), atol=1e-10)


def test_the_probabilities_of_text(mixed):
    one = mixed.condition({"a": 2.0}).probabilities("c")
    assert one["up"][0] > 0.9 and one["up"][0] + one["down"][0] == pytest.approx(1.0)
    ratio = mixed.score_samples(pd.DataFrame({"a": [2.0], "b": [NAN], "c": ["up"], "d": [None]}))
    alone = mixed.score_samples(pd.DataFrame({"a": [2.0], "b": [NAN], "c": [None], "d": [None]}))
    assert np.log(one["up"][0]) == pytest.approx(ratio[0] - alone[0])


# Draws, components, embedding ----------------------------------------------------------------------------------------


def test_draws_have_the_moments_of_the_model(fitted):
    nothing = fitted.condition(np.full((1, 3), NAN))
    X = fitted.sample(20_000, random_state=0)
    np.testing.assert_allclose(X.mean(0), nothing.mean[0], atol=6 * nothing.std[0].max() / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(X.T), nothing.covariance[0], rtol=0.2, atol=0.2)


def test_components_and_embedding(fitted, numbers):
    assert fitted.predict(numbers).shape == (80,)
    assert fitted.predict(numbers).max() < fitted.best_.setting_.components
    place, std = fitted.transform(numbers, return_std=True)
    assert place.shape == std.shape == (80, 1) and (std > 0.0).all()
    clear = ~np.isnan(numbers[:, [0, 2]]).any(1)
    order = place[clear, 0].argsort().argsort(), numbers[clear, 0].argsort().argsort()
    assert abs(np.corrcoef(*order)[0, 1]) > 0.7  # along the curve, from one end to the other
    assert fitted.get_feature_names_out().tolist() == ["tablemodel0"]
    nothing, wide = fitted.transform(np.full((1, 3), NAN), return_std=True)
    assert nothing[0, 0] == pytest.approx(0.0, abs=1e-9) and wide[0, 0] == pytest.approx(1.0)


def test_criteria_count_the_parameters_of_the_best_model(fitted, numbers, mixed):
    for model, X, levels in ((fitted, numbers, 0), (mixed, frame(), 2)):
        setting, log_p = model.best_.setting_, model.best_.score_samples(X)
        D = len(model.columns_.width)
        each = {"full": D * (D + 1) // 2, "diagonal": D}[setting.kind] * (1 if setting.tied else setting.components)
        curve = D * (setting.kinks + 2 if setting.kinks else 1)
        count = setting.components * (curve + levels) + setting.components - 1 + each
        assert model.aic(X) == pytest.approx(2 * count - 2 * log_p.sum())
        assert model.bic(X) == pytest.approx(np.log(len(X)) * count - 2 * log_p.sum())


def test_what_was_tried_is_told(fitted):
    results = fitted.cv_results_
    scores = results["mean_test_score"]
    assert scores == sorted(scores, reverse=True) and {0, 1} == set(results["latent_dim"])
    assert sum(results["weight"]) == pytest.approx(1.0) and np.isfinite(fitted.held_out_score_)


# Containers ----------------------------------------------------------------------------------------------------------


def test_tables_come_back_as_they_came(mixed):
    X = frame()
    imputed = mixed.impute(X)
    assert isinstance(imputed, pd.DataFrame) and imputed.index.equals(X.index) and not imputed.isna().any().any()
    assert imputed.dtypes["d"] == "boolean" and set(imputed["c"]) == {"up", "down"}
    seen = X.notna()
    assert imputed.where(seen).astype(object).fillna("?").equals(X.astype(object).where(seen).fillna("?"))
    other = pl.from_pandas(X)
    np.testing.assert_allclose(mixed.score_samples(other), mixed.score_samples(X))
    assert isinstance(mixed.impute(other), pl.DataFrame) and mixed.impute(other)["a"].null_count() == 0
    drawn = mixed.sample(3, random_state=0)
    assert isinstance(drawn, pd.DataFrame) and list(drawn) == list(X)
    assert mixed.feature_names_in_.tolist() == list(X) and mixed.n_features_in_ == 4


def test_an_array_for_a_frame_is_warned_of(mixed):
    X = frame().astype(object).to_numpy()
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        np.testing.assert_allclose(mixed.score_samples(X), mixed.score_samples(frame()))


@pytest.mark.slow
def test_in_a_pipeline(numbers):
    pipe = make_pipeline(StandardScaler(), girih.TableModel(n_folds=2, random_state=0)).fit(numbers)
    assert np.isfinite(pipe.score(numbers)) and pipe.transform(numbers).shape == (80, 1)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "options", "fit", "error", "match"),
    [
        ([[1.0, 2.0]], {}, {}, EmptyDataError, "at least 2 rows"),
        ([1.0, 2.0, 3.0], {}, {}, ShapeError, "Reshape your data"),
        ([[1.0], [np.inf]], {}, {}, NonFiniteError, "infinite|inf"),
        ([[1.0], [2.0]], {"n_folds": 1}, {}, ParameterError, "n_folds"),
        ([[1.0], [2.0]], {"kinds": {0: "colour"}}, {}, ParameterError, "kinds"),
        ([[1.0], [2.0]], {}, {"sample_weight": [1.0]}, ShapeError, "sample_weight"),
        ([[1.0], [2.0]], {}, {"sample_weight": [1.0, -1.0]}, ParameterError, "weight"),
        ([[1.0], [2.0]], {}, {"sample_weight": [0.0, 0.0]}, ParameterError, "zero"),
        ([[1.0], ["red"], [2.0]], {}, {}, NotNumericError, "text among numbers"),
        (np.full((4, 2), NAN), {}, {}, EmptyDataError, "observed"),
    ],
)
def test_what_cannot_be_fitted_is_refused(X, options, fit, error, match):
    with pytest.raises(error, match=match):
        girih.TableModel(**options).fit(X, **fit)


def test_rows_of_another_table_are_refused(fitted, mixed):
    with pytest.raises(ShapeError, match="2 features, but TableModel is expecting 3"):
        fitted.score_samples([[1.0, 2.0]])
    with pytest.raises(ShapeError, match="Reshape your data"):
        fitted.transform(np.zeros(3))
    with pytest.raises(ShapeError, match="feature names should match"):
        mixed.predict(frame().rename(columns={"a": "z"}))
    with pytest.raises(ParameterError, match="sideways"):
        mixed.score_samples(frame().assign(c="sideways"))
    with pytest.raises(ParameterError, match="n_samples"):
        fitted.sample(0)
    with pytest.raises(GirihError):
        fitted.condition({7: 1.0})


# Small and strange tables --------------------------------------------------------------------------------------------

_RNG = np.random.default_rng(0)
STRANGE = {
    "two rows": np.array([[1.0, 2.0], [3.0, 4.0]]),
    "one row, repeated": np.repeat([[1.0, 2.0, 3.0]], 12, 0),
    "three rows, repeated": np.repeat(_RNG.normal(size=(3, 2)), 5, 0),
    "a constant": np.column_stack([np.ones(15), _RNG.normal(size=15)]),
    "collinear": np.outer(_RNG.normal(size=20), [1.0, 2.0, -1.0]) + np.arange(3.0),
    "tiny": 1e-100 * _RNG.normal(size=(20, 2)),
    "huge": 1e100 * _RNG.normal(size=(20, 2)),
    "subnormal": 1e-310 * _RNG.normal(size=(12, 2)),
    "many sizes": _RNG.normal(size=(25, 3)) * [1e-100, 1.0, 1e100],
    "far from 0": 1e8 + 1e-3 * _RNG.normal(size=(25, 2)),
    "whole numbers": _RNG.integers(0, 5, size=(25, 3)),
    "booleans": _RNG.integers(0, 2, size=(25, 3)).astype(bool),
    "wide": _RNG.normal(size=(5, 8)),
    "a far row": np.r_[_RNG.normal(size=(25, 2)), [[1e9, -1e9]]],
    "heavy tails": _RNG.standard_cauchy(size=(40, 2)),
    "never together": np.r_[
        np.c_[_RNG.normal(size=10), np.full(10, NAN)], np.c_[np.full(10, NAN), _RNG.normal(size=10)]
    ],
    "an empty column": np.c_[_RNG.normal(size=12), np.full(12, NAN)],
    "a column of one value": np.c_[_RNG.normal(size=12), np.r_[1.5, np.full(11, NAN)]],
}


@pytest.mark.parametrize("X", STRANGE.values(), ids=STRANGE)
def test_strange_tables(X):
    model = girih.TableModel(n_folds=2, random_state=0).fit(X)
    assert np.isfinite(model.score_samples(X)).all() and np.isfinite(model.explain(X)).all()
    assert np.isfinite(model.bic(X)) and model.predict(X).shape == (len(X),)
    known = ~np.isnan(X.astype(float)).all(0)
    assert np.isfinite(model.impute(X).astype(float)[:, known]).all() and len(model.sample(3, random_state=0)) == 3


def test_a_column_that_varies_far_from_0_is_no_constant():
    X = STRANGE["far from 0"]
    model = girih.TableModel(n_folds=2, random_state=0).fit(X)
    assert model.columns_[0].constant is None and model.score(X) > 5.0  # nats, as the numbers vary by 0.001


# scikit-learn's checks -----------------------------------------------------------------------------------------------

_TEXT = "it is made on a table of text alone, which has no curve that transform could place rows on"
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "repeated rows fall into several folds, one of weight 2 does not",
    **dict.fromkeys(
        ("check_fit_score_takes_y", "check_dtype_object", "check_pipeline_consistency", "check_estimators_pickle"),
        _TEXT,
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("shortest_search")
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@parametrize_with_checks(
    [girih.TableModel(n_folds=2)],
    expected_failed_checks=lambda estimator: EXPECTED,
    xfail_strict=True,
)
def test_sklearn_compatible(estimator, check):
    check(estimator)


def test_the_bar_ends_where_it_said(numbers, monkeypatch):
    seen = []

    class Told(Counted):
        def step(self, words):
            super().step(words)
            seen.append((self.done, self.total))

    monkeypatch.setattr("girih.tables.model.Counted", Told)
    girih.TableModel(n_folds=3, random_state=0).fit(numbers)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done < total for done, total in seen[:-1])
    assert seen[-1][0] == seen[-1][1]


def test_a_bar_of_unknown_length_never_says_that_nothing_is_left():
    bar = Counted("search", 5, show=False)
    for _ in range(30):
        bar.step("")
        assert bar.done < bar.total
    bar.left(2)
    bar.step("")
    bar.step("")
    assert bar.done == bar.total == 32
    bar.close()


@pytest.mark.parametrize(("most", "used"), [(10**9, 1), (0, 2)])
def test_a_small_table_is_fitted_by_one_thread_which_is_put_back(monkeypatch, most, used):
    before, seen = torch.get_num_threads(), []
    choose = module.choose
    monkeypatch.setattr(module, "_ALONE", most)
    monkeypatch.setattr(module, "choose", lambda *given: seen.append(torch.get_num_threads()) or choose(*given))
    try:
        torch.set_num_threads(2)
        TableModel(n_folds=2, random_state=0).fit(np.random.default_rng(0).normal(size=(20, 1)))
        assert seen == [used] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
