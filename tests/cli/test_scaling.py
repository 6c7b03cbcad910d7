"""A model fitted in standard units is, after folding, the same model in the units of the data."""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.em import Scaling, fold_estimator

NOISES = {
    "isotropic": torch.tensor(0.04, dtype=torch.float64),
    "diagonal": torch.tensor([0.02, 0.1, 0.5], dtype=torch.float64),
    "full": torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.1]], dtype=torch.float64),
}
NETS = {
    "mlp": girih.mlp([1, 5, 4, 3], seed=1),
    "no bias": nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).double(),
    "ends in a kink": nn.Sequential(nn.Linear(1, 3), nn.LeakyReLU(0.2)).double(),
    "single precision": nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3)),
}


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3)) * (1e-3, 5.0, 2e4) + (1.0, -3.0, 1e5)
    return np.where(rng.random(X.shape) < 0.2, np.nan, X)


@pytest.mark.parametrize("noise", NOISES.values(), ids=list(NOISES))
@pytest.mark.parametrize("net", NETS.values(), ids=list(NETS))
def test_log_density_changes_by_the_jacobian_alone(X, net, noise):
    dgn, scaling = girih.DGN(net, noise, prior=0.7), Scaling.of(X)
    before = dgn().log_prob(scaling.apply(X))
    folded = scaling.fold(dgn)
    exact = before - scaling.log_jacobian(X)
    torch.testing.assert_close(folded().log_prob(X), exact, rtol=0.0, atol=1e-10)
    # the model that was folded is left as it was
    torch.testing.assert_close(dgn().log_prob(scaling.apply(X)), before, rtol=0.0, atol=0.0)
    torch.testing.assert_close(
        folded.impute(X), scaling.mean + scaling.scale * dgn.impute(scaling.apply(X)), rtol=1e-10, atol=0.0
    )
    torch.testing.assert_close(folded.posterior(X).mean, dgn.posterior(scaling.apply(X)).mean, rtol=1e-9, atol=1e-12)


def test_jacobian_counts_observed_columns():
    scaling = Scaling(torch.zeros(2, dtype=torch.float64), torch.tensor([2.0, 8.0], dtype=torch.float64))
    X = [[1.0, 1.0], [1.0, np.nan], [np.nan, np.nan]]
    np.testing.assert_allclose(scaling.log_jacobian(X) / np.log(2.0), [4.0, 1.0, 0.0])


def test_standard_units():
    X = np.array([[1.0, 5.0, 0.1], [2.0, 5.0, 0.1], [6.0, 5.0, np.nan]])
    scaled = Scaling.of(X).apply(X).numpy()
    np.testing.assert_allclose(np.nanmean(scaled, 0), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(scaled, 0), [1.0, 0.0, 0.0], atol=1e-12)  # constant columns are only moved


def test_one_range_for_images_keeps_the_noise_isotropic():
    X = np.array([[0.0, 128.0, np.nan], [255.0, 10.0, 3.0]])
    scaling = Scaling.of_range(X)
    scaled = scaling.apply(X).numpy()
    assert np.nanmin(scaled) == 0.0 and np.nanmax(scaled) == 1.0
    dgn = girih.DGN(girih.mlp([1, 3, 3], seed=0), 0.01)
    assert scaling.fold(dgn).noise.item() == pytest.approx(0.01 * 255.0**2)
    np.testing.assert_allclose(Scaling.of_range(np.full((2, 2), 7.0)).scale, 1.0)


@pytest.mark.parametrize("noise", list(NOISES))
@pytest.mark.filterwarnings("ignore:EM did not converge")
def test_fold_an_estimator(X, noise, tmp_path):
    scaling = Scaling.of(X)
    est = girih.DGNEstimator(hidden=(3,), noise=noise, max_iter=5, n_init=1, random_state=0)
    est.fit(scaling.apply(X).numpy())
    expected = est.score_samples(scaling.apply(X).numpy()) - scaling.log_jacobian(X).numpy()
    assert fold_estimator(est, scaling, X) is est
    np.testing.assert_allclose(est.score_samples(X), expected, atol=1e-10, rtol=0.0)
    assert est.nll_curve_[-1] == pytest.approx(-expected.mean(), abs=1e-10)
    girih.save(est, tmp_path / "m")
    loaded = girih.load(tmp_path / "m")
    assert loaded.n_parameters_ == est.n_parameters_ and loaded.bic(X) == pytest.approx(est.bic(X))
    np.testing.assert_allclose(loaded.score_samples(X), expected, atol=1e-10, rtol=0.0)
