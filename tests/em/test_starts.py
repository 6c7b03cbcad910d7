"""Curves as starts, early stopping, and low-rank noise of the estimator."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis

import girih
from girih.em import fit_em
from girih.em.orderings import ordered_rows, orderings
from girih.em.parameters import Trained
from girih.em.starting_points import be_curve

from .conftest import KilledError, build, end_em, ones

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::girih.em.OverfitWarning"),
]


def rows_around(n=200, seed=0):
    angle = np.random.default_rng(seed).uniform(0, 2 * math.pi, n)
    return angle, torch.as_tensor(np.stack((np.cos(angle), np.sin(angle)), 1))


# Orderings ----------------------------------------------------------------------------------------------------------


def test_one_ordering_goes_once_around_a_circle():
    angle, x = rows_around()
    around = orderings(x)[2]
    placed = angle[around.argsort().numpy()]
    steps = (np.diff(placed) + math.pi) % (2 * math.pi) - math.pi
    assert abs(steps.sum()) > 5.5 and np.abs(steps).max() < 0.5


def test_the_fiedler_vector_follows_an_open_curve():
    t = np.random.default_rng(0).uniform(0, 1.5 * math.pi, 300)
    x = torch.as_tensor(np.stack((np.cos(t), np.sin(t)), 1))
    scores = orderings(x)[1].numpy()
    assert abs(np.corrcoef(np.argsort(np.argsort(scores)), np.argsort(np.argsort(t)))[0, 1]) > 0.999


def test_scores_are_normal_and_weights_are_repeated_rows():
    _, x = rows_around(50)
    weight = torch.as_tensor(np.random.default_rng(1).integers(0, 4, 50)).double()
    for z in orderings(x):
        expected = torch.special.ndtri((torch.arange(50, dtype=torch.float64) + 0.5) / 50)
        assert torch.allclose(z.sort().values, expected, atol=1e-12)
    weighted = ordered_rows(x, weight)
    repeated = x.repeat_interleave(weight.long(), 0)[torch.randperm(int(weight.sum()))]
    for a, b in zip(weighted, ordered_rows(repeated, torch.ones(len(repeated)).double()), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.weight, b.weight) and torch.equal(a.z, b.z)


def test_holes_are_completed_and_many_rows_are_thinned():
    _, x = rows_around(300)
    x = torch.cat((x, x @ torch.ones(2, 1, dtype=torch.float64)), 1)
    holes = x.clone()
    holes[::5, 2] = torch.nan
    found = ordered_rows(holes, ones(300))[0]
    assert bool(torch.isfinite(found.x).all())
    total = found.x[:, 0] + found.x[:, 1]
    assert float((total - found.x[:, 2]).abs().max()) < 0.3  # the mean would be off by up to 1.4
    many = ordered_rows(torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)).double(), ones(5000))
    assert len(many[0].x) == 1000


@pytest.mark.parametrize("rows", [np.zeros((30, 2)), np.eye(2), np.full((3, 2), np.nan), np.arange(25.0)[:, None]])
def test_degenerate_rows_have_orderings(rows):
    for found in ordered_rows(torch.as_tensor(rows), ones(len(rows))):
        assert bool(torch.isfinite(found.z).all()) and bool(torch.isfinite(found.x).all())


# Curves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs"])
@pytest.mark.parametrize("H", [1, 2, 3, 8])
def test_a_curve_is_the_regression_on_splines(activation, H):
    """H units are a basis of the piecewise-linear functions with H - 1 kinks: a plain least-squares spline does no
    better than the ridge allows."""
    _, x = rows_around(400)
    rows = ordered_rows(x, ones(400))[2]
    dgn = build((1, H, 2), activation=activation, prior=[[4.0]])
    left = be_curve(dgn, Trained.of(dgn.net, dgn.trace), rows, torch.tensor(1e-9).double(), torch.Generator())
    at = torch.special.ndtri(torch.arange(1, H, dtype=torch.float64) / H)
    phi = torch.cat((torch.ones(400, 1), rows.z[:, None], (rows.z[:, None] - at).clamp(min=0.0)), 1)
    best = (rows.x - phi @ torch.linalg.lstsq(phi, rows.x)[0]).square().mean(0)
    assert bool((left >= best - 1e-12).all()) and torch.allclose(left, best, rtol=0.05, atol=2e-3)
    with torch.no_grad():
        image = dgn.trace(2.0 * rows.z[:, None])
    assert torch.allclose((rows.x - image).square().mean(0), left, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 5, 4, 2), (1, 3, 3, 3, 2)])
def test_deeper_generators_regress_on_drawn_features(sizes, circle):
    dgn = build(sizes)
    rows = ordered_rows(torch.as_tensor(circle), ones(64))[2]
    left = be_curve(dgn, Trained.of(dgn.net, dgn.trace), rows, torch.tensor(1e-9).double(), torch.Generator())
    assert bool((left < rows.x.var(0)).all())
    assert fit_em(dgn, circle, n_init=2, max_iter=10).curve[-1] < 2.0


def test_curves_are_tried_beside_the_same_random_starts(circle):
    curves = fit_em(build(), circle, n_init=3, init_iter=4, max_iter=30)
    random = fit_em(build(), circle, n_init=3, init_iter=4, max_iter=30, init="random")
    assert len(curves.starts) == 5 and curves.starts[2:] == random.starts
    plane = fit_em(build((2, 3, 2)), circle[:20], n_init=2, init_iter=1, max_iter=2)
    assert len(plane.starts) == 2  # there are no curves
    assert len(fit_em(build((1, 2)), circle, n_init=2, init_iter=1, max_iter=2).starts) == 2  # nor kinks


def test_a_start_of_curves_beats_random_ones_on_the_wave():
    """Means over six seeds of fresh rows; one start each."""
    scores = {}
    for init in ("auto", "random"):
        found = []
        for seed in range(6):
            X, fresh = (girih.datasets.load("wave", n=n, seed=s).X for n, s in ((256, seed), (1000, 100 + seed)))
            est = girih.DGNEstimator(n_init=1, max_iter=60, init=init, random_state=seed).fit(X)
            found.append(est.score(fresh))
        scores[init] = np.mean(found)
    assert scores["auto"] > scores["random"] + 0.05


@pytest.mark.parametrize("stop_at", [3, 5, 9, 14, 17])
def test_killed_fits_with_curves_and_held_out_rows_go_on(circle, tmp_path, stop_at, monkeypatch):
    settings = {"max_iter": 20, "n_init": 2, "init_iter": 2, "tol": 0.0, "validation": 0.2, "patience": None}
    whole = fit_em(a := build(), circle, **settings)

    path, b = tmp_path / "fit.ckpt", build()
    end_em(monkeypatch, stop_at, KilledError)
    with pytest.raises(KilledError):
        fit_em(b, circle, checkpoint=path, checkpoint_seconds=0.0, **settings)
    monkeypatch.undo()
    resumed = fit_em(b, circle, checkpoint=path, **settings)
    assert resumed.curve.tolist() == whole.curve.tolist() and resumed.starts == whole.starts
    assert resumed.history["held_out"].tolist() == whole.history["held_out"].tolist()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    fit_em(b, circle, checkpoint=tmp_path / "other.ckpt", **{**settings, "validation": circle[:9]})
    with pytest.raises(girih.errors.CheckpointError, match="validation"):
        fit_em(b, circle, checkpoint=tmp_path / "other.ckpt", **{**settings, "validation": circle[1:10]})


# A sample of many rows ----------------------------------------------------------------------------------------------

FEW = {"max_iter": 12, "init_iter": 3, "tol": 0.0}


@pytest.fixture
def many(monkeypatch):
    """320 rows, more than starts are tried on, with weights; a fifth of them weigh nothing."""
    monkeypatch.setitem(girih.em.loop.TRIED_ON, 1, 100)
    weight = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 2.0, 3.0], size=320)
    return girih.datasets.load("circle", n=320, seed=0).X, weight


@pytest.mark.parametrize(("n_init", "init"), [(3, "auto"), (3, "random"), (1, "auto"), (1, "random")])
def test_starts_of_many_rows_are_tried_on_a_sample_of_them(many, n_init, init, monkeypatch):
    X, weight = many
    sizes, evaluate = [], girih.em.iteration.Problem.expect

    def counting(problem, model):
        sizes.append((len(problem.x), float(problem.weight.sum())))
        return evaluate(problem, model)

    monkeypatch.setattr(girih.em.iteration.Problem, "expect", counting)
    settings = {"n_init": n_init, "init": init, "sample_weight": weight, "seed": 3, **FEW}
    result = fit_em(a := build(), X, **settings)
    rows = [n for n, _ in sizes]
    assert rows == sorted(rows) and set(rows) == {100, 320}  # the sample first, then all rows to the end
    total = float((weight > 0).sum())
    assert {round(w, 6) for _, w in sizes} == {round(total, 6)}  # so that penalties weigh the same
    exact = -float(weight @ girih.DGN(a.net, noise=a.noise).forward().log_prob(X).detach().numpy() / weight.sum())
    assert result.curve[-1] == pytest.approx(exact, abs=1e-10) and len(result.curve) == 13
    assert (np.diff(result.curve) <= 0).all()
    again = fit_em(b := build(), X, **settings)
    assert again.curve.tolist() == result.curve.tolist()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert fit_em(build(), X, **{**settings, "seed": 4}).curve.tolist() != result.curve.tolist()
    if n_init > 1:
        assert fit_em(build(), X, n_jobs=2, **settings).curve.tolist() == result.curve.tolist()


def test_few_rows_and_warm_starts_need_no_sample(many, circle):
    X, _ = many
    before = fit_em(build(), circle, **FEW).curve
    fit_em(a := build(), X, n_init=2, **FEW)
    first = -float(a().log_prob(X).mean().detach())
    assert fit_em(a, X, n_init=0, **FEW).curve[0] == pytest.approx(first, abs=1e-10)
    assert len(circle) < 100 and fit_em(build(), circle, **FEW).curve.tolist() == before.tolist()


def test_a_column_that_the_sample_knows_nothing_of_needs_all_rows(many):
    X, _ = many
    X[1:, 1] = np.nan
    result = fit_em(build(), X, n_init=2, **FEW)
    assert np.isfinite(result.curve).all() and (np.diff(result.curve) <= 0).all()


@pytest.mark.parametrize("stop_at", [2, 5, 8, 15, 16, 24])
def test_killed_fits_of_many_rows_go_on(many, tmp_path, stop_at, monkeypatch):
    X, weight = many
    settings = {"n_init": 2, "init": "random", "validation": 0.2, "patience": None, "sample_weight": weight, **FEW}
    settings["acceleration"] = "none"
    whole = fit_em(a := build(), X, **settings)

    path, b = tmp_path / "fit.ckpt", build()
    end_em(monkeypatch, stop_at, KilledError)
    with pytest.raises(KilledError):
        fit_em(b, X, checkpoint=path, checkpoint_seconds=0.0, **settings)
    monkeypatch.undo()
    monkeypatch.setitem(girih.em.loop.TRIED_ON, 1, 100)
    resumed = fit_em(b, X, checkpoint=path, **settings)
    assert resumed.curve.tolist() == whole.curve.tolist() and resumed.starts == whole.starts
    assert resumed.history["held_out"].tolist() == whole.history["held_out"].tolist()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("stop_at", [4, 13, 25])
def test_an_interrupted_fit_of_many_rows_has_the_exact_nll_of_all(many, stop_at, monkeypatch):
    X, _ = many
    end_em(monkeypatch, stop_at, KeyboardInterrupt)
    with pytest.warns(girih.em.loop.ConvergenceWarning, match="interrupted"):
        result = fit_em(a := build(), X, n_init=3, init="random", acceleration="none", **FEW)
    assert result.ended == "interrupted"
    assert result.curve[-1] == pytest.approx(-float(a().log_prob(X).mean().detach()), abs=1e-10)


# Early stopping -----------------------------------------------------------------------------------------------------


def test_the_best_parameters_on_held_out_rows_are_kept(circle):
    fresh = girih.datasets.load("circle", n=100, seed=9).X
    fresh[::7, 0] = np.nan
    dgn = build((1, 12, 2))
    result = fit_em(dgn, circle, n_init=2, init_iter=5, max_iter=80, tol=0.0, validation=fresh, patience=None)
    held_out = result.history["held_out"]
    assert len(held_out) == len(result.curve) == 81 and result.best_step == int(held_out.argmin()) < 80
    with torch.no_grad():
        assert -float(dgn().log_prob(fresh).mean()) == pytest.approx(result.held_out, abs=1e-9)
        assert float(dgn().log_prob(circle).mean()) == pytest.approx(result.log_likelihood, abs=1e-9)
    assert result.held_out == held_out.min() and result.ended == "max_iter"
    impatient = fit_em(build((1, 12, 2)), circle, n_init=1, max_iter=80, tol=0.0, validation=fresh, patience=3)
    values = impatient.history["held_out"]
    assert impatient.ended == "patience" and impatient.converged
    assert impatient.steps == impatient.best_step + 3 and values[-3:].min() >= values.min()


def test_held_out_rows_have_no_say_in_the_fit(circle):
    """The same training rows give the same parameters, whatever is held out."""
    options = {"n_init": 1, "max_iter": 5, "patience": None, "tol": 0.0}
    curves = [fit_em(build(), circle, validation=rows, **options).curve for rows in (circle[:5], circle[30:] * 2, None)]
    assert curves[0].tolist() == curves[1].tolist() == curves[2].tolist()


def test_a_fraction_is_held_out_with_its_weights(circle):
    weight = np.random.default_rng(0).uniform(0.1, 2.0, 64)
    dgn = build()
    result = fit_em(dgn, circle, sample_weight=weight, validation=0.25, n_init=1, max_iter=10, seed=3)
    x = torch.cat((torch.as_tensor(circle), torch.as_tensor(weight)[:, None]), 1)
    _, held_out = girih.training.split(x, 0.25, 3, torch.as_tensor)
    with torch.no_grad():
        expected = -float(held_out[:, 2] @ dgn().log_prob(held_out[:, :2]) / held_out[:, 2].sum())
    assert result.held_out == pytest.approx(expected, abs=1e-9)


def test_a_weight_prior_and_held_out_rows(circle):
    dgn = build((1, 6, 2))
    options = {"weight_prior": ("gaussian", 0.3), "validation": 0.2, "n_init": 2, "init_iter": 4}
    result = fit_em(dgn, circle, max_iter=30, **options)
    assert result.held_out == result.history["held_out"].min()
    assert len(result.history["held_out"]) == len(result.curve)


def test_early_stopping_of_the_estimator():
    X, fresh = (girih.datasets.load("circle", n=n, seed=s).X for n, s in ((60, 0), (2000, 1)))
    options = {"hidden": (16,), "noise": "full", "n_init": 2, "random_state": 0}
    plain = girih.DGNEstimator(**options).fit(X)
    est = girih.DGNEstimator(early_stopping=True, validation_fraction=0.2, n_iter_no_change=5, **options).fit(X)
    assert len(est.validation_scores_) == est.n_iter_ + 1 <= plain.n_iter_
    assert est.score(fresh) > plain.score(fresh)
    assert plain.validation_scores_ is None


# The estimator ------------------------------------------------------------------------------------------------------

OPTIONS = {
    "noise": "low_rank",
    "noise_rank": 2,
    "noise_prior": 0.1,
    "kink_ridge": 0.01,
    "early_stopping": True,
    "validation_fraction": 0.25,
    "n_iter_no_change": 4,
    "init": "random",
}


def test_all_options_are_cloned_saved_and_loaded(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 4))
    est = girih.DGNEstimator(hidden=(3,), max_iter=4, n_init=2, random_state=0, **OPTIONS)
    assert {name: clone(est).get_params()[name] for name in OPTIONS} == OPTIONS
    est.fit(X)
    girih.save(est, tmp_path / "model")
    loaded = girih.load(tmp_path / "model")
    assert loaded.get_params() == est.get_params()
    assert np.array_equal(loaded.score_samples(X), est.score_samples(X))
    assert np.array_equal(loaded.validation_scores_, est.validation_scores_)
    assert loaded.dgn_.noise_covariance.rank == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise": "low_rank", "noise_rank": 3}, "noise_rank must be at most the number of columns, 2; got 3"),
        ({"noise_rank": 0}, "noise_rank must be a whole number, 1 or more"),
        ({"noise_prior": "much"}, "noise_prior must be a number of 0 or more"),
        ({"kink_ridge": -1}, "kink_ridge must be a number of 0 or more"),
        ({"early_stopping": "yes"}, "early_stopping must be True or False"),
        ({"validation_fraction": 1.0}, "validation_fraction must be below 1"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be a whole number"),
        ({"init": None}, "init must be one of auto, random"),
        ({"early_stopping": True, "validation_fraction": 1e-3}, "validation=0.001 of 64 rows holds out 0"),
    ],
)
def test_bad_options(circle, options, message):
    with pytest.raises(girih.errors.ParameterError, match=message):
        girih.DGNEstimator(**options).fit(circle)


def test_low_rank_noise_of_a_linear_generator_is_factor_analysis():
    """S = 1 and rank 1 are two factors."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(300, 6)) * rng.uniform(0.3, 1.0, 6)
    est = girih.DGNEstimator(hidden=(), noise="low_rank", max_iter=1000, tol=1e-10, random_state=0).fit(X)
    assert est.score(X) == pytest.approx(FactorAnalysis(2, tol=1e-12, max_iter=10_000).fit(X).score(X), abs=1e-5)
    assert est.n_parameters_ == 6 + 6 + 12


def test_warm_starts_between_ranks():
    X = np.random.default_rng(0).normal(size=(80, 5)) @ np.random.default_rng(1).normal(size=(5, 5))
    options = {"hidden": (3,), "max_iter": 30, "n_init": 1, "random_state": 0, "warm_start": True}
    est = girih.DGNEstimator(noise="low_rank", **options).fit(X)
    before = est.score(X)
    est.set_params(noise_rank=2).fit(X)
    assert -est.nll_curve_[0] == pytest.approx(before, abs=1e-9) and est.score(X) > before
    est.set_params(noise_rank=1, max_iter=5).fit(X)
    assert est.dgn_.noise_covariance.rank == 1 and np.isfinite(est.score(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        est.set_params(noise="full").fit(X)
