"""Draws and annealed estimates against the exact engine, importance sampling, and simulation-based calibration."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import girih
from girih.covariance import Covariance
from girih.errors import EmptyDataError, NoiseError, ParameterError, ShapeError
from girih.sampling import annealed, effective_samples, motion, r_hat
from girih.sampling.annealing import estimates, modes_of, spread
from girih.sampling.row import Model
from twins import f64, noise_of_kind


def rows_of(net, noise, count, seed=0, prior=None):
    """Rows of a model with the latents they were drawn from."""
    model = Model.of(net, noise, prior, "")
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, len(model.factor), dtype=torch.float64, generator=generator) @ model.factor.mT
    return model.trace(z) + model.noise.sample(count, generator), z


@pytest.mark.parametrize(
    ("S", "kind", "activation"), [(1, "scalar", "relu"), (2, "full", "leaky_relu"), (3, "diagonal", "abs")]
)
def test_draws_are_those_of_the_exact_posterior(S, kind, activation):
    """Moments, cells and marginals, with missing entries, a noise of each kind and a prior that is not white."""
    prior = 0.5 * torch.eye(S, dtype=torch.float64) + 0.5
    net, noise = girih.mlp([S, 7, 6, 4], activation=activation, seed=S), noise_of_kind(kind, 0.3, 4, 0)
    dgn = girih.DGN(net, noise, prior)
    x, _ = rows_of(net, noise, 3, prior=prior)
    x[1, 2], x[2, :3] = torch.nan, torch.nan
    draws = girih.sample_posterior(dgn, x, samples=600, chains=32, seed=1)
    post = dgn.posterior(x)
    assert (draws.r_hat < 1.05).all()
    assert ((draws.mean - post.mean).abs() < 4.5 * draws.standard_error).all()
    assert torch.allclose(draws.covariance, post.covariance, atol=0.06 * float(post.covariance.abs().max()))
    cells = girih.Partition(dgn.net)
    probs = post.cell_probs().to_dense()
    for n in range(3):
        where = cells.locate(draws.flat[n])
        share = torch.bincount(where, minlength=len(cells)) / len(where)
        assert ((share - probs[n]).abs() < 0.02).all()
        every = float(draws.effective_samples[n].min()) / len(where)
        thin = draws.flat[n][:: max(1, math.ceil(1.0 / min(every, 1.0)))]
        exact = post.sample((4000,), seed=n)[:, n]
        for s in range(S):
            assert stats.ks_2samp(thin[:, s], exact[:, s].detach()).pvalue > 1e-4


def test_eight_latents_agree_with_importance_sampling():
    net = girih.mlp([8, 16, 12, 5], seed=0)
    x, _ = rows_of(net, 0.5, 1)
    draws = girih.sample_posterior(net, x, 0.5, samples=1000, chains=32, seed=0)
    z = torch.randn(400_000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_w = -0.5 * (x - net(z)).square().sum(1) / 0.5
    w = torch.softmax(log_w, 0)
    mean = w @ z
    error = (w.square() @ (z - mean).square()).sqrt()
    assert ((draws.mean[0] - mean).abs() < 4.5 * (error.square() + draws.standard_error[0].square()).sqrt()).all()
    log_p = float(torch.logsumexp(log_w, 0)) - math.log(len(z)) - 2.5 * math.log(2.0 * math.pi * 0.5)
    found = annealed(net, x, 0.5, chains=200)
    own = float((w.square().sum() - 1.0 / len(w)).sqrt())
    assert abs(float(found.log_prob) - log_p) < 4.5 * math.hypot(own, float(found.standard_error))


def test_draws_are_calibrated():
    """Ranks of the latent that made a row, among draws of its posterior, are uniform (Talts et al., 2018)."""
    net = girih.mlp([4, 10, 5], seed=3)
    x, z = rows_of(net, 0.2, 600, seed=2)
    draws = girih.sample_posterior(net, x, 0.2, samples=8, chains=8, warmup=5, seed=3)
    kept = draws.z[:, :, 3::4].flatten(1, 2)  # (N, 16, S)
    for s in range(4):
        rank = (kept[:, :, s] < z[:, None, s]).sum(1)
        counts = np.histogram(rank + 0.5, bins=[0, 2, 4, 6, 8, 9, 11, 13, 15, 17])[0]
        expected = 600 * np.array([2, 2, 2, 2, 1, 2, 2, 2, 2]) / 17
        assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_annealing_encloses_the_exact_value():
    """From the prior below, from the latents above, in expectation; both close with more temperatures."""
    dgn = girih.DGN(girih.mlp([3, 10, 8, 5], seed=1), noise=0.05)
    x, z = rows_of(dgn.trace, 0.05, 40, seed=1)
    with torch.no_grad():
        exact = dgn().log_prob(x)
    widths = []
    for steps in (8, 80):
        up, down = annealed(dgn, x, temperatures=steps), annealed(dgn, x, temperatures=steps, z=z)
        error = (up.log_prob - exact).std() / math.sqrt(40)
        assert (up.log_prob - exact).mean() < 4.0 * error
        assert (down.log_prob - exact).mean() > -4.0 * (down.log_prob - exact).std() / math.sqrt(40)
        widths.append(float((down.log_prob - up.log_prob).mean()))
    known = torch.isfinite(up.standard_error)
    off = ((up.log_prob - exact) / up.standard_error)[known]
    assert known.float().mean() > 0.9
    assert off.square().mean() < 2.0
    assert widths[1] < widths[0]


def test_importance_sampling_is_as_good_as_its_error_says():
    """Modes of little weight are found, and what lies between modes is covered."""
    net = girih.mlp([3, 16, 16, 10], seed=3)
    x, _ = rows_of(net, 0.02, 40)
    model, generator = Model.of(net, 0.02, None, ""), torch.Generator().manual_seed(0)
    with torch.no_grad():
        exact = girih.DGN(net, noise=0.02)().log_prob(x)
        row, common, _ = model.reduced(x)
        found = estimates(row, modes_of(row, generator), generator)
    off = (common + found.value - exact) / found.error
    assert off.square().mean() < 2.0
    assert off.abs().max() < 4.5
    assert found.error[~found.annealed].median() < 0.03


def test_weights_have_no_bias():
    dgn = girih.DGN(girih.mlp([2, 6, 3], seed=0), noise=0.1)
    x = rows_of(dgn.trace, 0.1, 1)[0].repeat(40, 1)
    found = annealed(dgn, x, temperatures=3, chains=200, seed=5)
    ratio = (found.log_prob - dgn().log_prob(x[:1])).detach().exp()
    assert abs(float(ratio.mean()) - 1.0) < 4.0 * float(ratio.std()) / math.sqrt(40)


def test_rows_without_entries_and_generators_without_kinks():
    linear = torch.nn.Sequential(torch.nn.Linear(5, 6)).double().requires_grad_(False)
    whole = Covariance.of(0.3, 6).matrix + linear[0].weight @ linear[0].weight.mT
    x = torch.zeros(2, 6, dtype=torch.float64)
    x[1] = torch.nan
    found = annealed(linear, x, noise=0.3, temperatures=200)
    exact = torch.distributions.MultivariateNormal(linear[0].bias, whole).log_prob(x[:1])
    assert abs(float(found.log_prob[0] - exact)) < 4.0 * float(found.standard_error[0])
    assert abs(float(found.log_prob[1])) < 1e-12
    draws = girih.sample_posterior(linear, x, noise=0.3, samples=500)
    assert (draws.mean[1].abs() < 4.5 / math.sqrt(8000)).all()
    assert draws.facets == 0.0
    assert "fewest effective samples" in repr(draws)


def test_diagnostics_are_those_of_known_chains():
    """A chain of order one has `(1 + rho) / (1 - rho)` draws for each that counts; chains apart have a large R-hat."""
    rng = np.random.default_rng(0)
    for rho in (0.0, 0.7, -0.5):
        chain = rng.normal(size=(4, 20_000))
        for t in range(1, chain.shape[1]):
            chain[:, t] = rho * chain[:, t - 1] + math.sqrt(1 - rho * rho) * chain[:, t]
        expected = chain.size * (1 - rho) / (1 + rho)
        assert float(effective_samples(f64(chain))) == pytest.approx(expected, rel=0.1)
        assert float(r_hat(f64(chain))) < 1.01
    assert float(r_hat(f64(chain + 3.0 * np.arange(4)[:, None]))) > 2.0
    assert float(r_hat(torch.zeros(2, 8))) == 1.0


def test_a_schedule_has_the_levels_of_its_pilot():
    levels = f64([[0.0, 0.01, 0.1, 1.0], [0.0, 0.5, 1.0, 1.0]])
    assert torch.allclose(spread(levels, 3)[0], levels[0])
    assert torch.allclose(spread(levels, 2)[1], f64([0.0, 0.5, 1.0]))
    fine = spread(levels, 50)
    assert (fine.diff(dim=1) > 0.0).all()
    assert torch.equal(fine[:, -1], torch.ones(2).double())


def test_the_same_seed_gives_the_same_draws():
    net, x = girih.mlp([4, 8, 3], seed=0), torch.zeros(2, 3)
    first, again, other = (girih.sample_posterior(net, x, samples=20, seed=seed).z for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ParameterError, {"samples": 3}),
        (ParameterError, {"chains": 1}),
        (ParameterError, {"warmup": -1}),
        (NoiseError, {"noise": -1.0}),
        (ShapeError, {"prior": np.eye(3)}),
        (ShapeError, {"x": np.zeros((1, 3))}),
        (EmptyDataError, {"x": np.zeros((0, 4))}),
    ],
)
def test_errors_are_typed(error, options):
    x = options.pop("x", np.zeros((1, 4)))
    with pytest.raises(error):
        girih.sample_posterior(girih.mlp([4, 6, 4], seed=0), x, **options)


def test_what_is_not_covered_is_refused_by_name():
    net = girih.mlp([2, 6, 4], seed=0)
    for dgn in (girih.DGN(net, likelihood="bernoulli"), girih.DGN(net, noise=0.1, prior=girih.Uniform(-1, 1))):
        with pytest.raises(ParameterError, match="Gaussian noise and a Gaussian prior"):
            girih.sample_posterior(dgn, np.zeros((1, 4)))
    with pytest.raises(ShapeError, match="one latent for each row"):
        annealed(net, np.zeros((2, 4)), z=np.zeros((1, 2)))
    with pytest.raises(ParameterError, match="its own noise"):
        annealed(girih.DGN(net, noise=0.1), np.zeros((2, 4)), noise=1.0)


def test_noise_that_is_too_small_for_double_precision_is_refused(monkeypatch):
    """More latents than outputs: along some directions the prior alone says something."""
    net, x = girih.mlp([4, 6, 2], seed=0), torch.zeros(1, 2)
    with torch.no_grad():
        x = net(torch.zeros(1, 4, dtype=torch.float64)) + 1e-9
    assert torch.isfinite(girih.sample_posterior(net, x, 1e-9, samples=4, chains=4).z).all()
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(motion, "compiled_form", lambda name: None)
        with pytest.raises(NoiseError, match="double precision"):
            girih.sample_posterior(net, x, 1e-20, samples=4, chains=4)
