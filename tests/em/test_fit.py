"""The EM loop: monotone, resumable, interruptible, and honest about its end."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import girih
from girih.em import fit_em

from .conftest import NOISES, KilledError, build, end_em, ones

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def never_rises(curve):
    return all(later <= earlier for earlier, later in itertools.pairwise(curve))


@pytest.mark.parametrize("sizes", [(1, 2), (1, 4, 2), (1, 4, 3, 2), (1, 3, 3, 3, 3, 2)])
@pytest.mark.parametrize("weight_prior", [None, ("gaussian", 1.0), ("laplace", 0.5), ("uniform", 0.8)])
def test_curve_never_rises(circle, sizes, weight_prior):
    dgn = build(sizes)
    result = fit_em(
        dgn, circle, weight_prior=weight_prior, max_iter=8, n_init=2, init_iter=3, tol=0.0, learn_prior=True
    )
    assert never_rises(result.curve)
    assert result.steps == 8 and len(result.curve) == 9
    if weight_prior is None:
        assert -result.log_likelihood == result.curve[-1]
    if weight_prior and weight_prior[0] == "uniform":
        weights = [layer.weight.detach() for layer in dgn.net if isinstance(layer, torch.nn.Linear)]
        assert max(float(w.abs().max()) for w in weights) <= 0.8


WEIGHT_PRIORS = [None, ("gaussian", 1.0), ("laplace", 0.5), ("uniform", 0.8)]
# every weight prior with every noise; in spaces, which take seconds, each prior with one of them always
PLANES_AND_SPACES = [
    pytest.param(S, prior, kind, marks=pytest.mark.slow if S == 3 and (i + j) % 3 else ())
    for S in (2, 3)
    for i, prior in enumerate(WEIGHT_PRIORS)
    for j, kind in enumerate(sorted(NOISES))
]


@pytest.mark.parametrize(("S", "weight_prior", "kind"), PLANES_AND_SPACES)
def test_curve_never_rises_in_planes_and_spaces(circle, holes, S, weight_prior, kind):
    """With missing entries, row weights, a full prior that is learned, and each weight prior."""
    noise = NOISES[kind]
    X = (holes if weight_prior in (None, ("laplace", 0.5)) else circle)[: 24 if S == 2 else 12]
    dgn = build((S, 4, 2), noise, prior=np.eye(S) + 0.2)
    weight = np.random.default_rng(0).uniform(0.2, 2.0, len(X))
    options = {"weight_prior": weight_prior, "learn_prior": True, "sample_weight": weight}
    result = fit_em(dgn, X, max_iter=3 if S == 2 else 2, n_init=1, tol=0.0, **options)
    assert never_rises(result.curve)
    assert result.curve[-1] < result.curve[0]
    prior = dgn.prior.detach()
    assert torch.allclose(prior, prior.mT) and torch.linalg.eigvalsh(prior).min() > 0.0
    if weight_prior is None:
        with torch.no_grad():
            exact = -float(torch.as_tensor(weight) @ dgn().log_prob(X)) / weight.sum()
        assert result.curve[-1] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("S", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_linear_generators_reach_probabilistic_pca(S):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, S)) @ rng.normal(size=(S, 5)) + 0.3 * rng.normal(size=(120, 5)) + 2.0
    result = fit_em(build((S, 5)), X, max_iter=400, tol=1e-12, n_init=1)
    eigenvalues = np.linalg.eigvalsh(np.cov(X.T, bias=True))
    log_determinant = np.log(eigenvalues[-S:]).sum() + (5 - S) * np.log(eigenvalues[:-S].mean())
    assert result.log_likelihood == pytest.approx(-0.5 * (5 * np.log(2 * np.pi) + log_determinant + 5), abs=1e-6)


def test_last_curve_point_is_the_exact_nll(circle):
    dgn = build()
    result = fit_em(dgn, circle, max_iter=10, n_init=1)
    assert result.curve[-1] == pytest.approx(-float(dgn().log_prob(circle).mean().detach()), abs=1e-12)


def test_linear_generator_reaches_probabilistic_pca():
    """Without kinks it is probabilistic PCA, whose maximum likelihood is known (Tipping and Bishop, 1999)."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1)) @ rng.normal(size=(1, 5)) + 0.3 * rng.normal(size=(200, 5)) + 2.0
    result = fit_em(build((1, 5)), X, max_iter=500, tol=1e-12, n_init=1)
    eigenvalues = np.linalg.eigvalsh(np.cov(X.T, bias=True))
    log_determinant = np.log(eigenvalues[-1]) + 4 * np.log(eigenvalues[:-1].mean())
    assert result.log_likelihood == pytest.approx(-0.5 * (5 * np.log(2 * np.pi) + log_determinant + 5), abs=1e-8)


@pytest.mark.parametrize("width, bound", [(8, 0.65), pytest.param(32, 0.33, marks=pytest.mark.slow)])
def test_quality_on_the_circle(width, bound):
    X = girih.datasets.load("circle", n=256, seed=0).X
    est = girih.DGNEstimator(hidden=(width,), random_state=0, max_iter=60 if width == 32 else 200).fit(X)
    assert -est.score(X) <= bound


def test_same_seed_same_numbers(circle):
    first = fit_em(a := build(), circle, max_iter=8, n_init=2, init="random", seed=5)
    second = fit_em(b := build(), circle, max_iter=8, n_init=2, init="random", seed=5)
    other = fit_em(build(), circle, max_iter=8, n_init=2, init="random", seed=6)
    assert first.curve.tolist() == second.curve.tolist() != other.curve.tolist()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("sizes", [(1, 6, 2), (2, 4, 2)])
def test_rows_may_come_in_chunks(circle, monkeypatch, sizes):
    whole = fit_em(build(sizes), circle, max_iter=5, n_init=1)
    monkeypatch.setattr("girih.inference.model._CHUNK", 50 if sizes[0] == 1 else 5000)
    parts = fit_em(build(sizes), circle, max_iter=5, n_init=1)
    assert parts.curve == pytest.approx(whole.curve, abs=1e-9)


@pytest.mark.parametrize("sizes", [(1, 6, 2), (2, 4, 2)])
def test_sample_weights_equal_repeated_rows(circle, sizes):
    weight = np.random.default_rng(0).integers(0, 4, len(circle))
    weighted = fit_em(build(sizes), circle, sample_weight=weight, max_iter=5, n_init=1)
    repeated = fit_em(build(sizes), np.repeat(circle, weight, 0), max_iter=5, n_init=1)
    assert weighted.curve == pytest.approx(repeated.curve, abs=1e-9)


def test_missing_entries_are_used(circle):
    """Rows with one coordinate missing still improve the fit, and imputation uses what is left of the circle."""
    rng = np.random.default_rng(0)
    X = girih.datasets.load("circle", n=300, seed=1).X
    holes = X.copy()
    holes[np.arange(300), rng.integers(0, 2, 300)] = np.where(rng.random(300) < 0.3, np.nan, 0.0)
    holes = np.where(np.isnan(holes), np.nan, X)
    est = girih.DGNEstimator(max_iter=60, n_init=3, random_state=0).fit(holes)
    assert np.isnan(holes).sum() > 50
    assert est.score(X) > -1.0
    filled = est.impute(holes)
    assert np.isfinite(filled).all() and np.array_equal(filled[~np.isnan(holes)], holes[~np.isnan(holes)])


def test_imputation_is_the_conditional_mean(noise):
    """Against importance sampling from the prior."""
    dgn = build(noise=noise)
    x = torch.tensor([[0.4, torch.nan]], dtype=torch.float64)
    z = torch.randn(400_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        g, S = dgn.trace(z), dgn.noise
        S = S * torch.eye(2) if S.ndim == 0 else torch.diag(S) if S.ndim == 1 else S
        p = torch.softmax(-0.5 * (0.4 - g[:, 0]) ** 2 / S[0, 0], 0)
        expected = (p * (g[:, 1] + S[1, 0] / S[0, 0] * (0.4 - g[:, 0]))).sum()
    assert dgn.impute(x)[0, 1].item() == pytest.approx(float(expected), abs=5e-3)


def test_warm_start_goes_on(circle):
    est = girih.DGNEstimator(max_iter=5, n_init=1, random_state=0, warm_start=True).fit(circle)
    before = est.nll_curve_[-1]
    est.fit(circle)
    assert est.nll_curve_[0] == pytest.approx(before, abs=1e-12)
    assert est.nll_curve_[-1] < before


def test_converges_and_says_so(circle):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        result = fit_em(build(), circle, tol=1e-2, max_iter=500, n_init=1)
    assert result.converged and result.steps < 500


def test_interrupt_keeps_the_best_model(circle):
    def stop(iteration, nll):
        if iteration == 6:
            raise KeyboardInterrupt

    dgn = build()
    with pytest.warns(ConvergenceWarning, match="interrupted after 6 iterations"):
        result = fit_em(dgn, circle, n_init=1, callback=stop)
    assert result.ended == "interrupted" and result.steps == 6
    assert result.curve[-1] == pytest.approx(-float(dgn().log_prob(circle).mean().detach()), abs=1e-12)


@pytest.mark.parametrize("stop_at", [3, 11, 17])
def test_killed_fit_goes_on_and_ends_with_the_same_numbers(circle, tmp_path, stop_at):
    settings = {"max_iter": 20, "n_init": 2, "init_iter": 6, "tol": 0.0, "weight_prior": ("gaussian", 2.0)}
    settings["init"] = "random"  # curves go on in a final, to all of the 20 iterations
    uninterrupted = fit_em(a := build(), circle, **settings)

    def kill(iteration, nll):
        if iteration == stop_at:
            raise KilledError

    path = tmp_path / "fit.ckpt"
    b = build()
    if stop_at > 6:  # the kept run continues a trial of 6 iterations
        with pytest.raises(KilledError):
            fit_em(b, circle, checkpoint=path, checkpoint_seconds=0.0, callback=kill, **settings)
        assert path.exists()
    resumed = fit_em(b, circle, checkpoint=path, **settings)
    assert resumed.curve.tolist() == uninterrupted.curve.tolist()
    assert resumed.starts == uninterrupted.starts
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("S", [2, 3])
def test_killed_fit_of_planes_and_spaces_goes_on(holes, tmp_path, S):
    settings = {"checkpoint_seconds": 0.0, "max_iter": 7, "n_init": 2, "init_iter": 2, "tol": 0.0, "learn_prior": True}
    X, sizes = holes[: 20 if S == 2 else 8], (S, 3, 2)
    whole = fit_em(a := build(sizes), X, **settings)

    def kill(iteration, nll):
        if iteration == 5:
            raise KilledError

    b = build(sizes)
    with pytest.raises(KilledError):
        fit_em(b, X, checkpoint=tmp_path / "fit.ckpt", callback=kill, **settings)
    assert fit_em(b, X, checkpoint=tmp_path / "fit.ckpt", **settings).curve.tolist() == whole.curve.tolist()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_interrupted_fit_goes_on_too(circle, tmp_path, monkeypatch):
    """Ctrl-C in a trial: the best model so far is returned, and the checkpoint still holds where EM really was."""
    settings = {"max_iter": 9, "n_init": 3, "init_iter": 4, "tol": 0.0, "init": "random"}
    whole = fit_em(build(), circle, **settings)
    path = tmp_path / "fit.ckpt"
    end_em(monkeypatch, 10, KeyboardInterrupt)  # in the second iteration of the third start
    part = fit_em(build(), circle, checkpoint=path, **settings)
    assert part.ended == "interrupted" and part.curve[-1] == min(part.starts)
    monkeypatch.undo()
    assert fit_em(build(), circle, checkpoint=path, **settings).curve.tolist() == whole.curve.tolist()


def test_checkpoint_of_other_data_is_refused(circle, tmp_path):
    path = tmp_path / "fit.ckpt"
    fit_em(build(), circle, n_init=1, max_iter=3, checkpoint=path)
    with pytest.raises(girih.errors.ModelFileError, match="a run on other data"):
        fit_em(build(), circle + 1, n_init=1, max_iter=3, checkpoint=path)
    with pytest.raises(girih.errors.ModelFileError, match=r"tol=1e-06, but now tol=0\.1"):
        fit_em(build(), circle, n_init=1, max_iter=3, tol=0.1, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(girih.errors.ModelFileError, match="damaged"):
        fit_em(build(), circle, n_init=1, max_iter=3, checkpoint=path)


def test_progress_bar_shows_the_nll(circle, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured stream for a terminal
    fit_em(build(), circle, n_init=1, max_iter=3, progress=True)
    assert "NLL" in capsys.readouterr().err


@pytest.mark.parametrize(
    "X, message",
    [
        (np.zeros((0, 2)), "no rows"),
        (np.zeros((4, 3)), "3 columns, but the data dimension D is 2"),
        (np.array([[0.0, np.inf]]), "infinite values"),
        (np.array([[0.0, np.nan], [1.0, np.nan]]), r"columns \[1\] of X have no observed entries"),
        (np.zeros((2, 2, 2)), "must be a table"),
        (np.array([["a", "b"]]), "must be an array of numbers"),
    ],
)
def test_bad_data(X, message):
    with pytest.raises(girih.errors.GirihError, match=message):
        fit_em(build(), X)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1.0}, "tol"),
        ({"n_init": -1}, "n_init must be a whole number, 0 or more"),
        ({"noise_floor": float("nan")}, "noise_floor"),
        ({"weight_prior": ("cauchy", 1.0)}, "weight_prior must be one of"),
        ({"weight_prior": ("gaussian", 0.0)}, "scale of weight_prior"),
        ({"weight_prior": 3}, "weight_prior must be None"),
        ({"sample_weight": [1.0]}, "sample_weight has 1 entries for 64 rows"),
        ({"sample_weight": -np.ones(64)}, "non-negative"),
    ],
)
def test_bad_options(circle, options, message):
    with pytest.raises(girih.errors.GirihError, match=message):
        fit_em(build(), circle, **options)


def test_estimator_options(circle):
    for options, message in [
        ({"noise": "pink"}, "noise must be one of"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"latent_dim": 4}, "S = 4"),
        ({"hidden": (0,)}, "hidden must be a whole number"),
        ({"n_init": 0}, "n_init"),
    ]:
        with pytest.raises(girih.errors.GirihError, match=message):
            girih.DGNEstimator(**options).fit(circle)


def test_constant_and_single_rows():
    """No variance to explain: the noise stops at its floor, and nothing is NaN."""
    for X in (np.full((5, 2), 3.0), np.zeros((4, 2)), np.array([[1.0, -2.0]])):
        est = girih.DGNEstimator(max_iter=4, n_init=2, random_state=0).fit(X)
        assert np.isfinite(est.score(X)) and np.isfinite(est.transform(X)).all()


def test_information_criteria(circle):
    est = girih.DGNEstimator(hidden=(4,), max_iter=4, n_init=1, random_state=0).fit(circle)
    # 4 + 4 first layer, 8 + 2 last layer, 1 noise, less the free scale of 4 units
    assert est.n_parameters_ == 8 + 10 + 1 - 4
    log_likelihood = est.score_samples(circle).sum()
    assert est.aic(circle) == pytest.approx(2 * 15 - 2 * log_likelihood)
    assert est.bic(circle) == pytest.approx(15 * np.log(64) - 2 * log_likelihood)


def test_identifiable_parameters_are_the_rank_of_the_model(circle):
    """`n_parameters_` against the rank of the Fisher information, from the scores of many rows."""
    dgn = build((1, 4, 2), seed=2)
    x = dgn().sample((100,), seed=0)
    scores = []
    for row in x:
        dgn.zero_grad()
        dgn().log_prob(row[None]).sum().backward()
        scores.append(torch.cat([p.grad.flatten() for n, p in dgn.named_parameters() if n != "prior"]))
    singular = torch.linalg.svdvals(torch.stack(scores))
    assert int((singular > 1e-9 * singular[0]).sum()) == girih.em.count_parameters(dgn)


def test_large_offsets_and_scales():
    """Columns far from 0 and on different scales: exact answers follow the change of units."""
    X = girih.datasets.load("circle", n=100, seed=0).X
    scaled = X * [1e3, 1e-3] + [1e5, -20.0]
    result = fit_em(build(noise=np.ones(2)), scaled, max_iter=40, n_init=2)
    reference = fit_em(build(noise=np.ones(2)), X, max_iter=40, n_init=2)
    assert result.curve[-1] == pytest.approx(reference.curve[-1], abs=0.5)


def test_weights_of_unit_rows_do_nothing(circle):
    assert fit_em(build(), circle, n_init=1, max_iter=3).curve == pytest.approx(
        fit_em(build(), circle, n_init=1, max_iter=3, sample_weight=ones(64)).curve
    )
