"""`vae-geometry`: it runs small, and its numbers keep the laws that it is there to show."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from girih.vae import information
from girih_papers import registry, vae_geometry
from girih_papers.vae_geometry import BPEF, FIXED, FREE, MODELS, make_vae


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae-geometry")
    return folder, registry.run("vae-geometry", folder, quick=True, progress=False, changes={"rows": "16"})


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
