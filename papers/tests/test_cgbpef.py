"""The reproductions of the CG-BPEF paper: they run small, and what they measure is what it is called."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import kv
from scipy.stats import chi2

from girih.errors import DataSourceError, ParameterError
from girih.training import FitResult
from girih.vae import VAE, evidence
from girih_papers import cgbpef_table, registry
from girih_papers.cgbpef_data import images, split
from girih_papers.cgbpef_fits import CAT, CGBPEF, GAUSS, MODELS, make_vae, measured, relaxed_terms
from girih_papers.concrete_density import agree, counts_image, density_image, draw_log, log_density
from girih_papers.concrete_kl import PRINTED, TERM, divergences, drawn, kl, sampling_bias
from girih_papers.concrete_law import characteristic, ratio_cdf, triangle_masses, z_law

FIGURES = {
    "concrete-density": {"fig7.png", "masses.png"},
    "concrete-kl": {"kl.png"},
    "cgbpef-table": {"free-energies.png", "curves.png", "images.png"},
}
ALPHA = np.array([1 / 2, 1 / 3, 1 / 6])
TEMPERATURES = [0.1, 0.5, 1.0, 1.6]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            known[name] = folder, registry.run(name, folder, quick=True, progress=False)
        return known[name]

    return get


def gumbel_draws(alpha, temperature, count, seed=0):
    """y by the definition, `(count, R)`."""
    g = np.random.default_rng(seed).gumbel(size=(count, len(alpha)))
    y = np.exp((g + np.log(alpha) - 30.0) / temperature)
    return y / y.sum(1, keepdims=True)


@pytest.mark.parametrize("name", FIGURES)
def test_it_runs_small_and_writes_what_it_says(results, name):
    folder, result = results(name)
    assert set(result["figures"]) == FIGURES[name]
    for figure in FIGURES[name]:
        with Image.open(folder / figure) as image:
            assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    assert json.loads((folder / "result.json").read_text())["settings"] == json.loads(json.dumps(result["settings"]))


# The Concrete distribution on three categories


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_density_is_the_derivative_of_the_distribution(temperature):
    """p(y) dy_1 dy_2 = d2F / da db times the Jacobian of (y_1, y_2) to the ratios, y_3^-3."""
    y = np.array([[0.2, 0.3, 0.5], [0.7, 0.1, 0.2], [0.05, 0.05, 0.9]])
    a, b = y[:, 0] / y[:, 2], y[:, 1] / y[:, 2]
    h = 1e-3
    mixed = sum(
        i * j * ratio_cdf(ALPHA, temperature, a * (1 + i * h), b * (1 + j * h)) for i in (-1, 1) for j in (-1, 1)
    ) / (4 * h**2 * a * b)
    np.testing.assert_allclose(np.exp(log_density(ALPHA, temperature, y)), mixed * y[:, 2] ** -3, rtol=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_density_integrates_to_one_over_the_first_two_coordinates(temperature):
    grid = np.linspace(-35.0, 35.0, 701) / temperature
    u, v = np.meshgrid(grid, grid)
    log_y = np.stack([u, v, np.zeros_like(u)], -1)
    log_y -= np.logaddexp.reduce(log_y, axis=-1, keepdims=True)
    inside = log_y.min(-1) > -700.0
    jacobian = log_y[inside].sum(-1)  # of (y_1, y_2) with respect to the two log-ratios: y_1 y_2 y_3
    mass = np.exp(log_density(ALPHA, temperature, np.exp(log_y[inside])) + jacobian).sum() * (grid[1] - grid[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.3])
def test_the_power_of_the_distance_to_a_face(temperature):
    y = np.array([[0.4, 0.6 - e, e] for e in (1e-60, 1e-61)])
    slope = np.diff(log_density(ALPHA, temperature, y)) / np.log(0.1)
    assert slope[0] == pytest.approx(2 * temperature - 1, abs=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_masses_near_corners_and_faces(temperature):
    y, width = gumbel_draws(ALPHA, temperature, 200_000), 0.05
    corner, inside = y.max(1) > 1 - width, y.min(1) >= width
    masses = triangle_masses(ALPHA, temperature, width)
    for name, shares in (("corner", corner), ("inside", inside), ("face", ~corner & ~inside)):
        assert abs(shares.mean() - masses[name]) < 5 * np.sqrt(masses[name] / len(y)) + 1e-6
    assert masses["face"] > 0.03


def test_masses_of_the_uniform_distribution_of_ratios():
    """At T = 1 and equal alpha, 1 / y is proportional to exponentials: masses of y_3 > 1/2 by the closed form."""
    masses = [triangle_masses(np.full(3, 1 / 3), t, 0.05) for t in (0.02, 0.01)]
    # what is not at a corner is of order T, and what is not at a face either is of order T^2
    assert masses[0]["face"] / masses[1]["face"] == pytest.approx(2.0, abs=0.05)
    assert masses[0]["inside"] / masses[1]["inside"] == pytest.approx(4.0, abs=0.15)


def test_a_wrong_temperature_or_alpha_of_the_draws_is_noticed():
    rng = np.random.default_rng(0)
    log_y = draw_log(ALPHA, 0.5, 20_000, rng)
    assert agree(log_y, ALPHA, 0.5)[0] > 1e-3
    assert agree(log_y, ALPHA, 0.55)[0] < 1e-9
    assert agree(log_y, np.array([0.45, 0.38, 0.17]), 0.5)[0] < 1e-9


def test_both_images_show_the_same_density():
    """Means over the triangle: 1 for both, since they are relative to the uniform density."""
    exact = density_image(ALPHA, 1.0, 200)
    assert np.nanmean(exact) == pytest.approx(1.0, abs=0.05)
    counted = counts_image(gumbel_draws(ALPHA, 1.0, 50_000), 20)
    i, j = np.indices(counted.shape)
    area = np.where(i + j < 19, 1.0, 0.5)[np.isfinite(counted)]
    assert np.average(counted[np.isfinite(counted)], weights=area) == pytest.approx(1.0)


# The law of z


def test_the_characteristic_function_at_temperature_one():
    log_frequency = np.linspace(-6.0, 3.0, 10)
    root = 2.0 * np.sqrt(-1j * np.exp(log_frequency))
    np.testing.assert_allclose(characteristic(1.0, log_frequency), root * kv(1, root), rtol=1e-10)


@pytest.mark.parametrize("temperature", [0.05, *TEMPERATURES])
def test_two_categories_have_a_closed_law(temperature):
    """z = y_2 - y_1, so z <= t where y_2 / y_1 <= (1 + t) / (1 - t), a logistic variable."""
    alpha = np.array([0.3, 0.0, 0.7])
    t = np.linspace(-1.0, 1.0, 11)[1:-1]
    odds = ((1 + t) / (1 - t)) ** -temperature
    cdf = np.concatenate([[0.0], 0.3 / (0.3 + 0.7 * odds), [1.0]])
    np.testing.assert_allclose(z_law(alpha, temperature, 10), np.diff(cdf), atol=3e-8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_law_of_z_against_draws(temperature):
    alpha = np.random.default_rng(3).dirichlet(np.full(30, 0.5))
    z = gumbel_draws(alpha, temperature, 100_000) @ np.linspace(-1.0, 1.0, 30)
    expected = z_law(alpha, temperature, 40) * len(z)
    counts = np.histogram(z, np.linspace(-1.0, 1.0, 41))[0]
    enough = expected > 5.0
    statistic = ((counts - expected)[enough] ** 2 / expected[enough]).sum()
    assert chi2.sf(statistic, enough.sum() - 1) > 1e-3
    assert enough.sum() > 15


def test_a_temperature_beyond_the_tables_is_refused():
    with pytest.raises(ParameterError, match=r"from 0\.05 to 2"):
        z_law(ALPHA, 3.0, 10)


def test_small_temperatures_give_the_categories_back():
    """What is between the levels has a mass of order T, so the divergences are that far from the category's."""
    common = {"levels": 30, "repeats": 4, "order": 5, "deviation": 3.0, "finer": 1, "seed": 0}
    half, full = (divergences(0.5, temperature, **common) for temperature in (0.05, 0.1))
    for name in (PRINTED, TERM):
        shortfall = half["category"] - half[name]
        assert (shortfall > 0.0).all() and (shortfall < 0.35 * half["category"]).all()
        assert (shortfall < 0.7 * (full["category"] - full[name])).all()
    assert (half[TERM + "_finer"] >= half[TERM][:1]).all()  # finer intervals can only tell more


def test_the_generators_of_categories():
    for shape in (0.5, 0.0):
        alphas = drawn(shape, 20, 5, 3, 2.0, 0)
        assert alphas.shape == (5, 20)
        np.testing.assert_allclose(alphas.sum(1), 1.0)
    # the second differences of log alpha of a polynomial of order 2 are constant
    second = np.diff(np.log(drawn(0.0, 20, 5, 2, 2.0, 0)), 2, axis=1)
    np.testing.assert_allclose(second, second[:, :1] * np.ones(18), atol=1e-9)


def test_a_sampled_divergence_is_too_high_by_what_is_predicted():
    found = sampling_bias(1.0, 0.5, 50, 5, 5, 3.0, (1_000, 4_000), 0)
    np.testing.assert_allclose(found["excess"], found["predicted"], rtol=0.35)
    assert (np.abs(found["excess_extrapolated"]) < 0.5 * found["excess"]).all()


# The table


def test_the_grid_is_that_of_the_paper():
    grid = [tuple(choice.items()) for choice in cgbpef_table.choices(cgbpef_table.SETTINGS)]
    assert len(set(grid)) == len(grid) == 2 * (64 + 1024 + 2048)


def test_every_cell_has_the_best_by_validation(results):
    folder, result = results("cgbpef-table")
    assert [row["model"] for row in result["table"]] == list(MODELS)
    assert result["rows"] == {"training": 165, "validation": 15, "test": 30}
    runs = [dict(np.load(path)) for path in (folder / "runs").glob("fit_job*")]
    assert len(runs) == 2 * 6
    for row in result["table"]:
        assert row["configurations"] == 2
        assert row["free_energy"]["mean"] == pytest.approx(row["term_1"]["mean"] + row["term_2"]["mean"], rel=1e-6)
        assert row["paper"]["free_energy"] > 90.0
        mine = [float(run["validation"]) for run in runs if int(run["parameters"]) == row["parameters"]]
        assert row["validation"]["mean"] == pytest.approx(np.mean(mine))
    lowest = min(np.mean([float(r["validation"]) for r in runs if int(r["parameters"]) == size]) for size in
                 {int(r["parameters"]) for r in runs})  # fmt: skip
    assert min(row["validation"]["mean"] for row in result["table"]) == pytest.approx(lowest)
    assert {entry["model"] for entry in result["differences"]} == {CAT, CGBPEF}
    assert (folder / "table.md").read_text().count("\n") == 2 + 3


def test_splits_share_no_rows():
    X = np.arange(1400.0)[:, None]
    rows = split(X, "mnist", 0)
    assert [len(rows.train), len(rows.validation), len(rows.held_out)] == [1100, 100, 200]
    everything = np.concatenate([rows.train, rows.validation, rows.held_out])
    np.testing.assert_array_equal(np.sort(everything, 0), X)
    assert not np.array_equal(split(X, "mnist", 1).train, rows.train)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="data must be one of"):
        images("cifar", "")
    with pytest.raises(DataSourceError):
        images("svhn", "")
    with pytest.raises(ParameterError, match="no model"):
        registry.run("cgbpef-table", tmp_path, quick=True, progress=False, changes={"models": "VAE"})


@pytest.mark.parametrize("model", MODELS)
def test_the_networks_for_house_numbers(model):
    vae = make_vae(model, "svhn", 0, 0, 0, 3, 5, 21, 4, 0.5, "legendre")
    terms = vae.free_energy(torch.rand(2, 1024, generator=torch.Generator().manual_seed(0)), seed=0)
    assert terms.total.shape == (2,) and torch.isfinite(terms.total).all()


def trained(model, steps=60):
    vae = make_vae(model, "mnist", 0, 1, 16, 2, 3, 21, 3, 0.5, "legendre")
    X = images("mnist", "")[::25]
    vae.fit(X, max_steps=steps, lr=1e-2, progress=False)
    return vae, X[:12]


def test_a_run_that_was_interrupted_is_no_result(tmp_path, monkeypatch):
    def interrupted(self, *_, **__):
        return FitResult({"step": np.arange(2), "held_out": np.ones(2)}, 1, 0.0, "interrupted")

    monkeypatch.setattr(VAE, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.run("cgbpef-table", tmp_path, quick=True, progress=False)
    assert not list((tmp_path / "runs").glob("*.npz"))


@pytest.mark.parametrize("model", MODELS)
def test_what_is_measured_adds_up(model):
    vae, X = trained(model)
    found = measured(vae, X, samples=2, more=200, draws=200, law_rows=2)
    assert found["free_energy"] == pytest.approx(found["term_1"] + found["term_2"], rel=1e-6)
    assert found["free_energy_more"] == pytest.approx(found["free_energy"], rel=0.1)
    assert found["reconstructions"].shape == (8, 784) and found["samples"].shape == (8, 784)
    assert ("nll_relaxed" in found) == (model != GAUSS) and ("free_energy_relaxed" in found) == (model != GAUSS)
    if model == GAUSS:  # a bound on what importance sampling estimates
        assert found["nll"] - 3 * found["nll_error"] < found["free_energy_more"]


@pytest.mark.parametrize("model", [CAT, CGBPEF])
def test_term_1_at_the_temperature_of_training(model):
    vae, X = trained(model, steps=1)
    x = torch.as_tensor(X[:3])
    found = relaxed_terms(vae, x, 4000, intervals=21)
    assert found["term_1_same_rows"] == pytest.approx(vae.free_energy(x).divergence.mean().item(), rel=1e-4)
    q, p = vae.encode(x).base_dist.probs.detach().numpy(), vae.prior().base_dist.probs.detach().numpy()
    if model == CGBPEF:  # by draws: the laws of both latents as histograms
        edges, zeta = np.linspace(-1.0, 1.0, 22), np.linspace(-1.0, 1.0, 21)

        def law(probs):
            return np.histogram(gumbel_draws(probs, 0.5, 200_000) @ zeta, edges)[0] / 200_000

        slow = np.mean([sum(kl(law(q[n, s]), law(p[s])) for s in range(2)) for n in range(3)])
    else:  # two of the three coordinates by quadrature over log-ratios
        u, v = np.meshgrid(*[np.linspace(-70.0, 70.0, 701)] * 2)
        log_y = np.stack([u, v, np.zeros_like(u)], -1)
        log_y -= np.logaddexp.reduce(log_y, axis=-1, keepdims=True)
        y, jacobian = np.exp(log_y), np.exp(log_y.sum(-1)) * 0.2**2

        def divergence(alpha, beta):
            log_q, log_p = (log_density(one, 0.5, y) for one in (alpha, beta))
            return (np.exp(log_q) * (log_q - log_p) * jacobian).sum()

        slow = np.mean([sum(divergence(q[n, s], p[s]) for s in range(2)) for n in range(3)])
    assert found["term_1_relaxed"] == pytest.approx(slow, rel=0.03)
    if model == CAT:  # Theorem 1: the KL of categories is a lower bound
        assert found["term_1_relaxed"] > found["term_1_same_rows"]


def test_hard_codes_make_a_bound():
    """On the likelihood of hard codes, which all of them give exactly here."""
    vae, X = trained(CGBPEF)
    found = measured(vae, X, samples=1, more=100, draws=10, law_rows=0)
    exact = -evidence.enumerate_exact(vae, X).mean().item()
    assert exact < found["free_energy_hard"] < exact + 30.0
