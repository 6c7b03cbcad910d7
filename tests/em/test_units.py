"""A fit does not depend on the units of the data: offsets, scales and the size of the row weights."""

import numpy as np
import pytest
import torch

import girih
from effort import cases
from girih.em import Scaling
from girih.em.scaling import column_spread

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

KINDS = ("isotropic", "diagonal", "full")


def table(rng, n=20):
    X = rng.normal(size=(n, 1)) @ rng.normal(size=(1, 3)) + 0.1 * rng.normal(size=(n, 3))
    if rng.random() < 0.5:
        X[rng.random(X.shape) < 0.1] = np.nan
    X[0] = rng.normal(size=3)
    return X


def fitted(X, noise, weight=None, **options):
    options = {"hidden": (3,), "max_iter": 24, "n_init": 1, "random_state": 1, "tol": 0.0, **options}
    return girih.DGNEstimator(noise=noise, **options).fit(X, sample_weight=weight)


@pytest.mark.fuzz
def test_an_offset_moves_the_fit_and_nothing_else():
    """`fit(X + c) = fit(X) + c`, from the curve to the scores of single rows, up to 1e12 spreads from 0."""
    for seed in range(cases(3, 150)):
        rng = np.random.default_rng(seed)
        noise = KINDS[seed % 3]
        c = rng.choice([-1.0, 1.0], 3) * 10.0 ** rng.uniform(0, 12, 3)
        far = table(rng) + c
        near = far - c  # exact: what the rounding of X + c has left
        a, b = fitted(far, noise), fitted(near, noise)
        # near 0 the rows themselves are rounded when an entry of the column is subtracted
        assert np.abs(a.nll_curve_ - b.nll_curve_).max() < 1e-6
        assert np.abs(a.score_samples(far) - b.score_samples(near)).max() < 1e-6
        assert np.abs(a.transform(far) - b.transform(near)).max() < 1e-6
        assert a.nll_curve_[-1] == pytest.approx(-a.score(far), abs=1e-9)
        digits = 4 * np.spacing(np.abs(c).max())
        assert np.nanmax(np.abs((a.impute(far) - c) - b.impute(near))) < 1e-6 + digits
        draws = a.sample(9, random_state=0) - c, b.sample(9, random_state=0)
        assert np.abs(draws[0] - draws[1]).max() < 1e-6 + digits


@pytest.mark.fuzz
def test_a_scale_multiplies_the_fit_and_nothing_else():
    """`fit(X s) = fit(X) s`: column by column unless the noise ties the columns together."""
    for seed in range(cases(3, 150)):
        rng = np.random.default_rng(seed)
        noise = KINDS[seed % 3]
        X = table(rng)
        s = 2.0 ** rng.integers(-300, 300, 1 if noise == "isotropic" else 3) * np.ones(3)
        a, b = fitted(X * s, noise), fitted(X, noise)
        shift = (np.where(np.isnan(X), 0.0, np.log(s))).sum(1)
        assert a.nll_curve_ == pytest.approx(b.nll_curve_ + shift.mean(), abs=1e-9)
        assert a.score_samples(X * s) == pytest.approx(b.score_samples(X) - shift, abs=1e-8)
        assert a.transform(X * s) == pytest.approx(b.transform(X), abs=1e-8)
        assert a.sample(5, random_state=0) / s == pytest.approx(b.sample(5, random_state=0), abs=1e-8)


@pytest.mark.fuzz
def test_only_ratios_of_weights_count():
    for seed in range(cases(2, 100)):
        rng = np.random.default_rng(seed)
        X, weight = table(rng), rng.uniform(0.1, 3.0, 20)
        prior = ("gaussian", 1.0) if seed % 2 else None
        options = {"noise": KINDS[seed % 3], "weight_prior": prior}
        c = 2.0 ** int(rng.integers(-1000, 1000))
        a, b = fitted(X, weight=weight * c, **options), fitted(X, weight=weight, **options)
        assert np.array_equal(a.nll_curve_, b.nll_curve_)


@pytest.mark.parametrize("size", [1e-200, 1e200, 1e308, 5e-324])
def test_equal_weights_are_no_weights(size):
    X = table(np.random.default_rng(0))
    assert np.array_equal(fitted(X, "diagonal", np.full(20, size)).nll_curve_, fitted(X, "diagonal").nll_curve_)


@pytest.mark.parametrize("bad", [np.zeros(20), -np.ones(20), np.full(20, np.nan), np.full(20, np.inf)])
def test_bad_weights(bad):
    with pytest.raises(ValueError, match=r"(?i)weight"):
        fitted(table(np.random.default_rng(0)), "diagonal", bad)
    with pytest.raises(girih.errors.GirihError, match="sample_weight"):
        girih.em.fit_em(girih.DGN(girih.mlp([1, 3, 3], seed=0)), np.eye(20)[:, :3], sample_weight=bad)


def test_a_fit_far_from_0_is_saved_and_unfolded_with_all_its_digits(tmp_path):
    rng = np.random.default_rng(3)
    near = np.round(rng.normal(size=(20, 1)) @ [[1.0, -0.5, 2.0]] + 0.1 * rng.normal(size=(20, 3)), 3)
    far = near + 1e12
    est = fitted(far, "full")
    scores = est.score_samples(far)
    girih.save(est, tmp_path / "model")
    assert np.array_equal(girih.load(tmp_path / "model").score_samples(far), scores)
    assert est.dgn_.bias_rest is not None
    # another bias is not corrected by what was left of the old one
    with torch.no_grad():
        est.dgn_.net[-1].bias.sub_(1e12)
    assert not est.dgn_.model().bias_rest.any()


def test_callbacks_see_the_units_of_the_data():
    X = table(np.random.default_rng(0)) * 1e3 + 1e5
    X[0] = 1e5
    dgn, seen = girih.DGN(girih.mlp([1, 3, 3], seed=0)), []

    def look(iteration, nll):
        with torch.no_grad():
            seen.append((nll, -float(dgn().log_prob(X).mean())))

    result = girih.em.fit_em(dgn, X, n_init=1, max_iter=4, callback=look)
    assert [nll for nll, _ in seen] == result.curve.tolist()[1:]
    assert [nll for nll, _ in seen] == pytest.approx([exact for _, exact in seen], abs=1e-9)


def test_spread_of_columns_of_any_size():
    ones = torch.ones(4, dtype=torch.float64)
    rows = [[1e300, 5.0, 1e12, 7.0], [3e300, 5.0, 1e12 + 1, 9e9], [2e300, 5.0, 1e12 + 2, 7.0], [np.nan] * 4]
    x = torch.tensor(rows, dtype=torch.float64)
    x[3, 3] = 8.0
    x[:, 3] = torch.tensor([7.0, 9e9, 7.0, 8.0])
    entry, mean, deviation = column_spread(x, torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    assert (entry + mean)[:3].tolist() == pytest.approx([2e300, 5.0, 1e12 + 1])
    assert deviation[:3].tolist() == pytest.approx([np.sqrt(2 / 3) * 1e300, 0.0, np.sqrt(2 / 3)])
    assert column_spread(x[:3], ones[:3])[2][3] > 0.0


def test_units_and_back_are_the_same_model():
    dgn = girih.DGN(girih.mlp([2, 3, 2], seed=0), noise=[[0.3, 0.1], [0.1, 0.2]])
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1e3, 1e-3]) - 1e4
    with torch.no_grad():
        before = dgn().log_prob(x)
        scaling = Scaling.for_fit(dgn, x, torch.ones(9).double(), rescale=True)
        with scaling.inside(dgn):
            assert torch.allclose(dgn().log_prob(scaling.apply(x)) - scaling.log_jacobian(x), before, rtol=1e-9)
        assert torch.allclose(dgn().log_prob(x), before, rtol=1e-9)
