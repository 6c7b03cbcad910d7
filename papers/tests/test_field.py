"""`field-*`: they run small, and what they compare with the exact value is what the field computes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import ndtri

import girih
from girih.vae import GaussVAE
from girih_papers import field_evidence, registry
from girih_papers.em_fair_arms import starting_point
from girih_papers.field_evidence import _needed, discrete, random_generator, sobol
from girih_papers.field_posteriors import _bound, exact_optimum, fixed, gaps_of, information, optima, verdict, without

NAMES = {"field-quadrature": "quadrature", "field-iwae": "iwae"}
NAMES |= {"field-amortisation": "amortisation", "field-collapse": "collapse"}
X = girih.datasets.load("circle", n=40, seed=0).X


@pytest.mark.parametrize(("name", "picture"), NAMES.items())
def test_it_runs_small_and_writes_what_it_says(tmp_path, name, picture):
    found = registry.run(name, tmp_path, quick=True, progress=False)
    assert found["figures"] == [f"{picture}.png"]
    with Image.open(tmp_path / f"{picture}.png") as image:
        assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["settings"]["seeds"] == [0] and written["quick"] is True


def test_the_discrete_mixture_is_the_mean_of_gaussians_and_tends_to_the_exact_density():
    dgn = random_generator(1, 3, 0.5, seed=0)
    x = dgn().sample((6,), seed=0).numpy()
    z = np.random.default_rng(0).normal(size=(5, 1))
    with torch.no_grad():
        centres = dgn.net(torch.as_tensor(z))
        normal = torch.distributions.MultivariateNormal(centres, 0.25 * torch.eye(3).double())
        twin = normal.log_prob(torch.as_tensor(x)[:, None]).exp().mean(1).log()
        exact = dgn().log_prob(x).numpy()
    np.testing.assert_allclose(discrete(dgn, z, x), twin.numpy(), rtol=1e-10)
    np.testing.assert_allclose(discrete(dgn, ndtri(sobol(2**14, 1, 0)), x), exact, atol=1e-3)


def test_columns_of_random_generators_have_variance_one():
    dgn = random_generator(2, 4, 0.1, seed=1)
    z = torch.randn(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(dgn.net(z).std(0).numpy(), 1.0, atol=0.05)
    assert dgn.noise.item() == pytest.approx(0.01)


def test_nodes_are_enough_only_where_all_more_are():
    sizes = [{"mean": value} for value in (0.001, 0.5, -0.009, 0.002)]
    assert _needed((1, 2, 4, 8), sizes) == 4
    assert _needed((1, 2), [{"mean": 0.0}, {"mean": 1.0}]) is None


def test_rows_of_iwae_are_apart():
    for data in ("circle", "digits"):
        train, held_out, strange = field_evidence.rows_of(data, 0, 20)
        assert not set(map(bytes, train)) & set(map(bytes, held_out))
        assert len(held_out) == len(strange) == 20 and train.max() < 3.0


def test_gaps_add_up_and_fall():
    found = gaps_of("wave", 8, 0, rows=60, measured=4, steps=(5, 200))
    np.testing.assert_allclose(np.add(found["approximation"], found["amortisation"]), found["gap"], atol=1e-8)
    assert found["gap"][1] < found["gap"][0] and min(found["amortisation"]) >= 0.0


def test_information_against_a_quadrature_of_the_posterior():
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.3)
    z = torch.linspace(-12.0, 12.0, 40_001, dtype=torch.float64)[:, None]
    prior = -0.5 * z[:, 0] ** 2 - 0.5 * np.log(2.0 * np.pi)
    with torch.no_grad():
        joint = -0.5 * (torch.as_tensor(X)[:, None] - dgn.net(z)).square().sum(2) / 0.3 + prior
        mass = joint.softmax(1)
        divergence = (mass * (mass.clamp(min=1e-300).log() - prior.softmax(0).log())).sum(1).mean()
    assert information(dgn, X) == pytest.approx(divergence.item(), abs=1e-6)


def test_the_model_without_z_is_that_of_a_constant_generator():
    net = girih.mlp([1, 3, 2], seed=0)
    with torch.no_grad():
        net[-1].weight.zero_()
        net[-1].bias.copy_(torch.as_tensor(X.mean(0)))
    dgn = girih.DGN(net, noise=0.4)
    assert without(X, 0.4) == pytest.approx(-dgn().log_prob(X).mean().item(), abs=1e-10)
    assert information(dgn, X) == pytest.approx(0.0, abs=1e-10)


def test_the_exact_optimum_holds_its_noise_and_is_below_every_bound():
    start = fixed(starting_point("plain", X, 4, 0.2, 0), 0.2)
    before = -start().log_prob(X).mean().item()
    nll, dgn = exact_optimum(start, X, 100)
    assert dgn.noise.item() == 0.2 and nll < before
    found = optima("circle", 0.2, 0, rows=40, steps=20, starts=1, descent=100)
    assert found["exact"] < min(found["best_bound"], found["vae_bound"], found["vae_exact"])
    assert found["vae_exact"] < found["vae_bound"] and found["exact"] < found["without"]
    vae = GaussVAE(girih.mlp([1, 4, 2], seed=0), hidden=(8,), noise=0.5, learn_noise=False, seed=0)
    assert _bound(vae, X) == pytest.approx(-vae.exact(X).elbo.mean().item(), abs=1e-8)


def test_a_verdict_says_who_has_collapsed():
    run = {"without": 2.0, "best_bound": 2.1, "vae_bound": 1.9, "exact_information": 0.0, "vae_information": 0.5}
    assert verdict([run]) == {"likelihood_collapsed": 1, "bound_collapsed": 0, "vae_collapsed": 0}
    other = {**run, "vae_bound": 2.2, "vae_information": 0.001}
    assert verdict([run, other]) == {"likelihood_collapsed": 2, "bound_collapsed": 1, "vae_collapsed": 1}
