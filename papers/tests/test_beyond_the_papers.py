"""The comparisons with other density models, and the latent plane of digits: they run, and the densities are right."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import girih
from girih.datasets import load
from girih.errors import ParameterError
from girih_papers import ppca, registry
from girih_papers.density_race import dequantised_mnist
from girih_papers.ppca import PPCA, mixture_of_ppca
from girih_papers.rivals import Best, Rows, fitted_dgn, flow, flow_width, mixture, vae

FIGURES = {
    "em-circle-2d": {"nll.png", "densities.png"},
    "em-mnist-2d": {"nll.png", "samples.png"},
    "em-mnist-3d": {"nll.png", "samples.png"},
    "mnist-latent-plane": {"plane.png", "posteriors.png", "images.png"},
}


# that of three latents is that of two with another number
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "em-mnist-3d" else ()) for name in FIGURES]
)
def test_it_runs_small_and_writes_what_it_says(name, tmp_path):
    result = registry.run(name, tmp_path, quick=True, progress=False)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written.keys() == result.keys() and written["settings"]["seeds"] == [0]
    assert result["em_largest_rise"] == 0.0
    assert set(result["figures"]) == FIGURES[name] == {path.name for path in tmp_path.glob("*.png")}
    for figure in result["figures"]:
        with Image.open(tmp_path / figure) as image:
            assert min(image.size) > 150 and np.asarray(image.convert("L")).std() > 5
    if "methods" in result:
        table = result["methods"]
        assert np.isfinite([row["held_out_nll"] for row in table.values()]).all()
        lowest = min(table.values(), key=lambda row: row["held_out_nll"])
        assert table[result["lowest_held_out"]] is lowest
        assert result["settings"]["generator"][0] == int(name[-2])
    else:
        assert result["left_out_at_most"] <= 1e-9 and 0.0 < result["accuracy_of_neighbours"] <= 1.0


@pytest.fixture(scope="module")
def rows():
    return Rows(*(load("circle", n=n, seed=seed).X for seed, n in enumerate((80, 40, 30))))


def total(fitted, reach=5.0, steps=140):
    axis = np.linspace(-reach, reach, steps)
    grid = np.stack([part.ravel() for part in np.meshgrid(axis, axis)], 1)
    return np.exp(fitted.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2


def test_the_density_of_every_rival_integrates_to_one(rows):
    candidates = [
        mixture(rows, "full", (2, 4), (1e-3,), 0),
        mixture_of_ppca(rows, 1, (2, 4), (1e-3,), 0),
        vae(rows, (2, 4, 2), (1e-2,), 40, 0, (0.5,)),
        flow(rows, "flow", 2, 8, (3e-3,), 60, 0),
    ]
    for fitted in candidates:
        assert total(fitted) == pytest.approx(1.0, abs=0.01)
        assert fitted.sample(7).shape == (7, 2)
        assert fitted.nll(rows.held_out) == pytest.approx(-fitted.log_prob(rows.held_out).mean())


def test_choices_are_those_of_the_lowest_validation_nll(rows):
    alone = [mixture(rows, "full", (k,), (1e-3,), 0).nll(rows.validation) for k in (1, 6)]
    both = mixture(rows, "full", (1, 6), (1e-3,), 0)
    assert both.nll(rows.validation) == pytest.approx(min(alone))
    assert both.choice["validation_nll"] == pytest.approx(min(alone)) and both.choice["tried"] == 2


@pytest.mark.parametrize(("N", "D", "q"), [(400, 5, 2), (400, 3, 1), (12, 30, 4)])
def test_ppca_is_the_mixture_of_its_full_gaussians(N, D, q):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, D)) * np.linspace(3.0, 0.2, D) + 4.0 * rng.integers(0, 2, (N, 1))
    model = PPCA.fit(rows, q, 2, 1e-3)
    assert (model.variances >= model.noises[:, None]).all() and model.weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert np.allclose(model.axes.mT @ model.axes, np.eye(q), atol=1e-12)
    covariances = [
        (U * (v - s)) @ U.T + s * np.eye(D) for U, v, s in zip(model.axes, model.variances, model.noises, strict=True)
    ]
    x = np.concatenate((rows[:20], 30.0 * rng.standard_normal((20, D))))
    each = [multivariate_normal(m, C).logpdf(x) for m, C in zip(model.means, covariances, strict=True)]
    expected = logsumexp(np.stack(each, 1) + np.log(model.weights), axis=1)
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-9)
    free = len(model.weights) * (D + D * q - q * (q - 1) / 2 + 1) + len(model.weights) - 1
    assert model.parameters == free
    assert model.bic(rows) == pytest.approx(free * np.log(N) - 2.0 * model.log_prob(rows).sum())


def test_one_component_of_ppca_is_the_maximum_of_its_likelihood():
    """Against a descent over means, loadings and noise, from another point."""
    rows = np.random.default_rng(1).standard_normal((60, 3)) @ np.diag([2.0, 1.0, 0.3]) + 1.0
    model = PPCA.fit(rows, 1, 1)
    x = torch.as_tensor(rows)
    mean, loading, log_noise = (torch.ones(n, dtype=torch.float64, requires_grad=True) for n in (3, 3, 1))
    descent = torch.optim.LBFGS([mean, loading, log_noise], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        descent.zero_grad()
        covariance = torch.outer(loading, loading) + log_noise.exp() * torch.eye(3, dtype=torch.float64)
        value = -torch.distributions.MultivariateNormal(mean, covariance).log_prob(x).mean()
        value.backward()
        return value

    descent.step(loss)
    assert -model.log_prob(rows).mean() == pytest.approx(loss().item(), abs=1e-9)
    assert model.noises[0] == pytest.approx(log_noise.exp().item(), rel=1e-4)


def test_em_of_ppca_does_not_lower_the_likelihood_and_keeps_to_the_floor(monkeypatch):
    rows = load("circle", n=120, seed=0).X
    values = []
    for iterations in range(1, 12):
        monkeypatch.setattr(ppca, "_ITERATIONS", iterations)
        values.append(PPCA.fit(rows, 1, 6, 1e-6, seed=0).log_prob(rows).mean())
    assert (np.diff(values) > -1e-12).all() and values[-1] > values[0] + 0.01
    points = np.repeat(rows[:3], 20, 0)  # each component has one point alone
    model = PPCA.fit(points, 1, 3, 1e-3)
    assert np.isfinite(model.log_prob(rows)).all()
    np.testing.assert_array_equal(model.noises, 1e-3)
    np.testing.assert_array_equal(model.variances, 1e-3)


def test_draws_of_ppca_are_of_its_planes():
    rows = np.random.default_rng(2).standard_normal((500, 3)) * [3.0, 1.0, 0.1]
    model = PPCA.fit(rows, 2, 1)
    drawn = model.sample(4000, seed=0)
    assert np.linalg.matrix_rank(drawn - model.means[0], tol=1e-9) == 2
    spread = model.axes[0] * (model.variances[0] - model.noises[0]) @ model.axes[0].T
    np.testing.assert_allclose(np.cov(drawn.T), spread, atol=0.4)


@pytest.mark.parametrize(
    ("q", "floor", "message"), [(0, 1e-3, "latent_dim"), (2, 1e-3, "1 to D - 1 = 1"), (1, 0.0, "floor")]
)
def test_what_ppca_cannot_be_is_refused(q, floor, message):
    with pytest.raises(ParameterError, match=message):
        PPCA.fit(np.zeros((9, 2)), q, 1, floor)


def test_a_flow_is_left_at_its_best_and_the_same_seed_gives_the_same(rows):
    first, again = (flow(rows, "flow", 2, 8, (1e-3, 1e-2), 60, 3) for _ in range(2))
    assert first.choice["validation_nll"] == pytest.approx(first.nll(rows.validation), abs=1e-9)
    assert np.array_equal(first.log_prob(rows.held_out), again.log_prob(rows.held_out))
    assert np.array_equal(first.sample(3), again.sample(3))


@pytest.mark.parametrize(("columns", "wanted"), [(2, 400), (784, 14_000), (7, 5000)])
def test_the_width_of_a_flow_of_this_many_parameters(columns, wanted):
    data = np.random.default_rng(0).normal(size=(20, columns))
    fitted = flow(Rows(data, data, data), "flow", 2, flow_width(columns, 2, wanted), (1e-3,), 1, 0)
    assert fitted.parameters == pytest.approx(wanted, rel=0.1)


def test_the_best_parameters_are_kept():
    model = torch.nn.Linear(1, 1)
    values = iter([3.0, 1.0, 2.0])
    keeper = Best(lambda _: next(values))
    for weight in (30.0, 10.0, 20.0):
        with torch.no_grad():
            model.weight.fill_(weight)
        keeper(model)
    assert keeper.value == 1.0 and keeper.state["weight"].item() == 10.0


def test_a_generator_counts_its_parameters_and_draws_without_noise():
    dgn = girih.DGN(girih.mlp([2, 4, 3], seed=0), noise=[0.1, 0.2, 0.3])
    fitted = fitted_dgn("EM", dgn, 0.0, {}, 0)
    assert fitted.parameters == 2 * 4 + 4 + 4 * 3 + 3 + 3
    assert np.allclose(fitted.sample(5), fitted.sample(5))


def test_digits_have_noise_of_one_grey_level():
    X, labels = dequantised_mnist(1)
    assert X.shape == (5000, 784) and (np.bincount(labels) == 500).all()
    assert X.min() >= 0.0 and X.max() < 1.0
    order = np.random.default_rng(1).permutation(5000)
    assert np.array_equal(np.floor(256.0 * X), np.round(255.0 * load("mnist").X[order]))
