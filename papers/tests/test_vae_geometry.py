"""`vae-geometry`: it runs small, and its numbers keep the laws that it is there to show."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import norm

from girih.vae import information
from girih_papers import vae_geometry
from girih_papers.jobs import with_weights
from girih_papers.vae_geometry import BPEF, FIXED, FREE, MODELS, make_vae

REPRODUCTION = "vae-geometry"
CHANGES = {"rows": "16"}


def test_it_runs_small_and_writes_what_it_says(result):
    folder, body = result
    assert set(body["figures"]) == {"geometry.png", "bounds.png"}
    for figure in body["figures"]:
        with Image.open(folder / figure) as image:
            assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    assert json.loads((folder / "result.json").read_text())["models"] == json.loads(json.dumps(body["models"]))


def test_the_terms_are_in_order(result):
    _, body = result
    assert set(body["models"]) == set(MODELS)
    for model, states in body["models"].items():
        for when in ("before", "after"):
            numbers = states[when]
            assert numbers["term_1"] >= numbers["bound_5"] - 1e-9
            assert numbers["bound_5"] > numbers["bound_6"] > 0.0
            assert numbers["bound_6"] < body["log_n"]
            assert numbers["nll"] < numbers["free_energy"]
            assert numbers["free_energy"] == pytest.approx(numbers["term_1"] + numbers["term_2"])
            assert numbers["term_2_at_maximum_likelihood"] < numbers["term_2"]
            assert ("corollary_3" in numbers) == (model != BPEF)
    free = body["models"][FREE]["after"]
    assert free["term_1"] == pytest.approx(free["bound_5"], abs=1e-9)
    for model in MODELS:
        assert body["models"][model]["after"]["free_energy"] < body["models"][model]["before"]["free_energy"]


def test_the_exact_terms_agree_with_draws():
    x = torch.as_tensor(vae_geometry.load("wave", n=20, seed=0).X)
    for model in (FIXED, BPEF):
        vae = make_vae(model, 2, 6, 0.1, 5, seed=1)
        q = vae.encode(x)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            draws = -vae.log_likelihood(x, q.sample((4000,)))
        error = draws.std(0) / len(draws) ** 0.5
        assert bool(((vae_geometry.term_2(vae, x) - draws.mean(0)).abs() < 5 * error).all())


def test_the_likelihood_under_a_free_prior_is_that_of_its_draws():
    x = torch.as_tensor(vae_geometry.load("wave", n=5, seed=0).X)
    vae = make_vae(FREE, 2, 6, 0.3, 5, seed=1)
    family, natural = information.family_of(vae.encode(x))
    prior = family.distribution(information.bregman_centroid(family, natural))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        p = vae.log_likelihood(x, prior.sample((40_000, 1))).exp()
        exact = (-vae_geometry.exact_nll(FREE, vae, x)).exp()
    assert bool(((p.mean(0) - exact).abs() < 5 * p.std(0) / len(p) ** 0.5).all())


def test_the_points_of_maximum_likelihood_are_the_best_of_a_grid():
    x = torch.as_tensor(vae_geometry.load("wave", n=20, seed=0).X)
    grid = torch.linspace(-1.0, 1.0, 101, dtype=torch.float64)
    for model in (FIXED, BPEF):
        vae = make_vae(model, 2, 6, 0.1, 5, seed=1)
        z, least = vae_geometry.maximum_likelihood(vae, x)
        torch.testing.assert_close(least, -vae.log_likelihood(x, z))
        of_grid = -vae.log_likelihood(x, grid[:, None, None]).max(0).values
        assert bool((least <= of_grid + 1e-9).all())


@pytest.fixture(scope="module")
def small():
    """A model of each kind after some training on a few rows, and the rows."""
    told = {"data": "wave", "rows": 9, "hidden": 5, "steps": 300, "batch": 9, "lr": 1e-2, "noise": 0.1, "order": 4}
    models = {}
    for model in MODELS:
        result = vae_geometry.trained(model, **told, seed=3)
        models[model] = with_weights(make_vae(model, 2, told["hidden"], told["noise"], told["order"], 3), result)
    return models, torch.as_tensor(vae_geometry.load("wave", n=told["rows"], seed=3).X)


def lowest(loss, start):
    """By a simplex of points, over and over: it needs no derivative."""
    for _ in range(6):
        start = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 8000}).x
    return loss(start)


def test_both_bounds_of_theorem_2_come_out_again_without_the_library(small):
    """Eq. 5 is the least mean KL of a search over priors of the family, eq. 6 a sum over z of masses and densities."""
    models, x = small
    for model, vae in models.items():
        with torch.no_grad():
            q = vae.encode(x)
        if model == BPEF:
            p = q.base_dist.probs[:, 0].numpy()  # masses on the levels
            basis = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, p.shape[1]), 4)[:, 1:]

            def term_1(a, p=p, basis=basis):
                return (p * (np.log(p) - log_softmax(basis @ a))).sum(1).mean()

            any_prior = (p * np.log(p / p.mean(0))).sum(1).mean()
            start = np.zeros(4)
        else:
            mean, deviation = q.mean[:, 0].numpy(), q.stddev[:, 0].numpy()

            def term_1(prior, mean=mean, deviation=deviation):
                ratio = (deviation**2 + (mean - prior[0]) ** 2) * np.exp(-2.0 * prior[1])
                return (0.5 * (ratio - 1.0) - np.log(deviation) + prior[1]).mean()

            z = np.linspace((mean - 12 * deviation).min(), (mean + 12 * deviation).max(), 400_001)
            p = norm.pdf(z, mean[:, None], deviation[:, None])
            ratio = np.where(p > 0.0, p / np.maximum(p.mean(0), 1e-300), 1.0)
            any_prior = np.trapezoid(p * np.log(ratio), z, axis=1).mean()
            start = np.zeros(2)
        with torch.no_grad():
            found = vae_geometry.term_1(model, vae, x)
        assert found["bound_5"] == pytest.approx(lowest(term_1, start), abs=1e-7)
        assert found["bound_6"] == pytest.approx(any_prior, abs=1e-8)


def test_corollary_3_comes_out_again_from_its_own_formula(small):
    """The formula as printed (with its mean over k), the information by differences of g, and each mean by a grid.

    For a prior of mean m and variance P the best V_k is 1 / (G_k + 1 / P), and the best mu_k is found among 200,001
    points; the prior is that of the posteriors again, until nothing changes.
    """
    models, x = small
    vae, rows = models[FIXED], x.numpy()
    step, noise = 1e-4, float(vae.noise.detach())
    z = np.linspace(-4.0, 4.0, 200_001)
    with torch.no_grad():
        g, after, before = (vae.decoder(torch.as_tensor(z + d)[:, None]).numpy() for d in (0.0, step, -step))
    G = ((after - before) ** 2).sum(1) / (4.0 * step**2 * noise)  # of -log p(x | z), where g is affine
    energy = ((rows[:, None] - g) ** 2).sum(2) / (2.0 * noise) + np.log(2.0 * np.pi * noise)
    energy[:, np.abs(after + before - 2.0 * g).max(1) > 1e-9] = np.inf  # a kink is near
    best = vae_geometry.measured(FIXED, vae, x)["corollary_3"]
    m, P = best["prior_mean"], best["prior_deviation"] ** 2
    for _ in range(200):
        k = (energy + 0.5 * (z - m) ** 2 / P + 0.5 * np.log(G + 1.0 / P)).argmin(1)
        V = 1.0 / (G[k] + 1.0 / P)
        m, P = z[k].mean(), V.mean() + z[k].var()
    value = (energy[np.arange(len(rows)), k] + 0.5 * G[k] * V - 0.5 * np.log(V)).mean() + 0.5 * np.log(
        V.mean() + z[k].var()
    )
    assert best["converged"]
    assert best["value"] == pytest.approx(value, abs=2e-3)
    assert (best["prior_mean"], best["prior_deviation"]) == pytest.approx((m, P**0.5), abs=5e-3)
    assert best["value"] < information.optimal_free_energy(vae, x).value - 0.05  # that from the encoder is a local one
