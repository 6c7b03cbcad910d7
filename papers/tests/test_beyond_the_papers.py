"""The comparisons with other density models, and the latent plane of digits: they run, and the densities are right."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import girih
from girih.datasets import load
from girih_papers import registry
from girih_papers.density_race import dequantised_mnist
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
