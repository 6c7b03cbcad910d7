"""`girih.select_model`: its numbers against their definitions, the choice, the elbow, resuming, refusals."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture

import girih
from girih.errors import EmptyDataError, LatentDimensionError, NonFiniteError, ParameterError
from girih.inference import MAX_LATENT_DIM
from girih.selection import Candidate, Outcome, Row, factor_parameters, find_elbow, make_splits

X = girih.datasets.load("circle", n=80, seed=0).X * [1.0, 50.0]
QUICK = {"max_iter": 8, "n_init": 1}


@pytest.fixture(scope="module")
def result():
    return girih.select_model(X, hidden=((), (4,)), noise=("isotropic", "diagonal"), baselines=True, **QUICK)


def test_the_grid(result):
    labels = [row.candidate.label for row in result.rows]
    assert labels == [
        "DGN S=1 none isotropic",
        "DGN S=1 none diagonal",
        "DGN S=1 4 isotropic",
        "DGN S=1 4 diagonal",
        "GaussianMixture",
        "FactorAnalysis",
    ]
    assert result.best is min(result.rows[:4], key=lambda row: row.bic)
    assert result.estimator.hidden == result.best.candidate.hidden
    assert result.skipped == {} and result.resumed == 0


def test_numbers_are_what_they_say(result):
    split = make_splits(len(X), 0.2, None, 0)[0]
    train, test = X[split.train], X[split.test]
    mean, scale = train.mean(0), train.std(0)
    est = girih.DGNEstimator(hidden=(4,), noise="diagonal", random_state=0, **QUICK)
    with pytest.warns(match="did not converge"):
        est.fit((train - mean) / scale)
    jacobian = np.log(scale).sum()
    row = result.rows[3]
    assert row.nll == pytest.approx(jacobian - est.score((train - mean) / scale), abs=1e-9)
    assert row.held_out == pytest.approx(jacobian - est.score((test - mean) / scale), abs=1e-9)
    log_l = -row.nll * len(train)
    assert row.n_parameters == est.n_parameters_
    assert row.aic == pytest.approx(2 * row.n_parameters - 2 * log_l)
    assert row.bic == pytest.approx(row.n_parameters * math.log(len(train)) - 2 * log_l)
    assert (row.aic_per_row, row.bic_per_row) == pytest.approx((row.aic / 64, row.bic / 64))
    noise = est.dgn_.noise.detach().numpy()  # in standard units the variance is 1
    assert row.unexplained == pytest.approx(noise.mean(), rel=1e-9)
    assert not row.converged and row.seconds > 0


def test_the_estimator_is_in_the_units_of_the_data(result):
    assert result.estimator.score(X) > -8.0  # the second column alone has a log deviation of 3.6
    assert result.estimator.checkpoint is None
    with pytest.warns(match="did not converge"):
        result.estimator.fit(X[:20])


def test_baselines_are_scikit_learn_with_components_by_bic(result):
    split = make_splits(len(X), 0.2, None, 0)[0]
    train, test = X[split.train], X[split.test]
    mean, scale = train.mean(0), train.std(0)
    models = [GaussianMixture(k, random_state=0).fit((train - mean) / scale) for k in range(1, 11)]
    best = min(models, key=lambda model: model.bic((train - mean) / scale))
    row = result.rows[4]
    assert row.components == best.n_components and row.n_parameters == best._n_parameters()
    assert row.held_out == pytest.approx(np.log(scale).sum() - best.score((test - mean) / scale))
    assert math.isnan(row.unexplained)
    factors = FactorAnalysis(1, random_state=0).fit((train - mean) / scale)
    assert result.rows[5].held_out == pytest.approx(np.log(scale).sum() - factors.score((test - mean) / scale))
    assert factor_parameters(5, 2) == 5 + 5 + 10 - 1


def test_table_and_json(result):
    frame = result.frame()
    assert isinstance(frame, pd.DataFrame) and len(frame) == 6 and frame["best"].sum() == 1
    value = json.loads(json.dumps(girih._files.finite(result.as_dict())))
    assert value["suggested_latent_dim"] == 1 and len(value["table"]) == 6
    assert value["table"][4]["latent_dim"] is None and value["table"][0]["components"] is None


def test_folds_hold_out_each_row_once():
    splits = make_splits(23, None, 4, seed=1)
    assert sorted(np.concatenate([split.test for split in splits]).tolist()) == list(range(23))
    assert all(not set(split.train) & set(split.test) for split in splits)
    result = girih.select_model(X, hidden=((2,),), folds=3, criterion="held_out", refit=False, **QUICK)
    assert len(result.rows[0].log_p) == len(X) and result.estimator is None
    again = girih.select_model(X, hidden=((2,),), folds=3, seed=1, refit=False, **QUICK)
    assert again.rows[0].held_out != result.rows[0].held_out


def test_missing_entries_and_data_frames():
    holes = pd.DataFrame(np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X), columns=["a", "b"])
    result = girih.select_model(holes, hidden=((2,),), baselines=True, validation=None, **QUICK)
    assert list(result.skipped) == ["GaussianMixture", "FactorAnalysis"] and len(result.rows) == 1
    assert math.isnan(result.rows[0].held_out) and result.elbow.suggested == 1
    assert list(result.estimator.feature_names_in_) == ["a", "b"]


def test_a_killed_comparison_goes_on_from_its_finished_fits(tmp_path, monkeypatch):
    options = {"hidden": ((2,), (3,)), "folds": 2, "baselines": "FactorAnalysis", "out": tmp_path / "fits", **QUICK}
    expected = girih.select_model(X, **options | {"out": None})
    fit, calls = girih.selection.select.fit_candidate, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("girih.selection.select.fit_candidate", killed)
        girih.select_model(X, **options)
    assert len(list((tmp_path / "fits").glob("*.json"))) == 3
    result = girih.select_model(X, **options)
    assert result.resumed == 3
    for ours, theirs in zip(result.table, expected.table, strict=True):
        assert ours | {"seconds": 0.0} == pytest.approx(theirs | {"seconds": 0.0}, nan_ok=True)
    assert girih.select_model(X, **options, refit=False).resumed == 6
    for path in (tmp_path / "fits").glob("dgn-s-1-2*.json"):
        path.write_text('{"outcome": {')
    assert girih.select_model(X, **options, refit=False).resumed == 4  # damaged ones are fitted again
    assert girih.select_model(X * 2, **options, refit=False).resumed == 0  # other data
    assert not list((tmp_path / "fits").glob("*.safetensors"))


def test_processes_give_the_same_numbers():
    options = {"hidden": ((2,), (3,)), "refit": False, **QUICK}
    one, two = (girih.select_model(X, n_jobs=n, **options) for n in (1, 2))
    assert [row.held_out for row in one.rows] == [row.held_out for row in two.rows]


def _row(S, nll, spread=0.0, unexplained=0.5):
    log_p = -nll + spread * np.tile([1.0, -1.0], 50)
    return Row.of(
        Candidate("DGN", S, (8,), "diagonal"), [Outcome(200, 10, -200 * nll, list(log_p), unexplained, 1, 1, True)]
    )


def test_the_elbow_is_the_smallest_dimension_within_one_standard_error():
    rows = [_row(1, 3.0, 2.0, 0.5), _row(2, 1.02, 1.0, 0.2), _row(3, 1.0, 0.5, 0.1), _row(3, 5.0)]
    elbow = find_elbow(rows, "bic")
    assert [point.latent_dim for point in elbow.points] == [1, 2, 3]
    assert [point.gap for point in elbow.points] == pytest.approx([2.0, 0.02, 0.0])
    assert elbow.points[1].gap_error == pytest.approx(0.5 / math.sqrt(99))  # of the difference, row by row
    assert [point.explained for point in elbow.points] == pytest.approx([0.5, 0.8, 0.9])
    assert elbow.suggested == 2
    assert find_elbow([_row(1, 1.0), _row(2, 2.0)], "aic").suggested == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"latent_dims": (MAX_LATENT_DIM + 1,)}, LatentDimensionError, "exact inference covers"),
        ({"latent_dims": ()}, ParameterError, "at least one"),
        ({"hidden": (8, 16)}, ParameterError, "each a tuple of widths"),
        ({"hidden": ((0,),)}, ParameterError, "width of a hidden layer"),
        ({"noise": "round"}, ParameterError, "noise must be one of"),
        ({"criterion": "loo"}, ParameterError, "criterion must be one of"),
        ({"criterion": "held_out", "validation": None}, ParameterError, "needs held-out rows"),
        ({"validation": 1.0}, ParameterError, "below 1"),
        ({"validation": 0.001}, EmptyDataError, "pass more rows"),
        ({"folds": 1}, ParameterError, "folds"),
        ({"folds": 50}, EmptyDataError, "fewer folds"),
        ({"baselines": "KMeans"}, ParameterError, "baselines must be"),
        ({"max_iter": 0}, ParameterError, "max_iter"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        girih.select_model(X, **options)


def test_refusals_of_data():
    with pytest.raises(EmptyDataError, match=r"columns \[0\]"):
        girih.select_model([[math.nan, 1.0]] * 9)
    with pytest.raises(NonFiniteError, match="infinite"):
        girih.select_model([[math.inf, 1.0]] * 9)
