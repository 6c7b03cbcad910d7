"""`girih.vae.gap` of Gaussian posteriors: laws, and dense grids over z."""

import pytest
import torch
from torch.distributions import Normal

import girih
from girih.errors import LatentDimensionError, NonFiniteError, ParameterError, ShapeError, UnsupportedLayerError
from girih.vae import CatVAE, GaussVAE, MixtureVAE, gap

from .gap_twins import grid_over, log_density, normal, truth


def make(S=1, width=6, D=2, noise=0.1, seed=0, **options):
    return GaussVAE(girih.mlp([S, width, D], seed=seed), noise=noise, seed=seed, **options)


@pytest.fixture(scope="module")
def line():
    vae = make(seed=1)
    x = vae().sample((4,), seed=0)
    vae.fit(vae().sample((200,), seed=1), max_steps=60, lr=0.02, seed=0, progress=False)
    return vae, x, gap(vae, x)


def test_everything_is_what_a_dense_grid_says(line):
    vae, x, found = line
    z, volume = grid_over(-9.0, 9.0, 200_000, 1)
    nll, divergence = truth(vae, x, z, volume)
    with torch.no_grad():
        own = divergence(log_density(vae.encode(x), z))
    torch.testing.assert_close(found.nll, nll, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.gap, own, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.bound, nll + own, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.approximation, divergence(log_density(found.best, z)), rtol=0, atol=1e-7)


def test_in_a_plane_too():
    vae = make(S=2, width=5, D=3, noise=0.3)
    x = vae().sample((2,), seed=0)
    found = gap(vae, x, starts=2)
    z, volume = grid_over(-7.0, 7.0, 1400, 2)
    nll, divergence = truth(vae, x, z, volume)
    with torch.no_grad():
        own = divergence(log_density(vae.encode(x), z))
    torch.testing.assert_close(found.nll, nll, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.gap, own, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.approximation, divergence(log_density(found.best, z)), rtol=0, atol=1e-6)


def test_no_gaussian_of_a_dense_search_is_nearer(line):
    """Every mean and deviation of a fine grid, and around the best of them a finer one."""
    vae, x, found = line
    steps = torch.linspace(-1.0, 1.0, 61, dtype=torch.float64)
    offsets = torch.cartesian_prod(steps, steps)  # of the mean and of the log deviation
    posterior = vae.dgn().posterior(x.repeat_interleave(len(offsets), 0))
    centre = torch.zeros(4, 2, dtype=torch.float64)
    for reach in (3.0, 0.2, 0.015, 0.001):
        tried = centre[:, None] + reach * offsets
        mean, log_deviation = tried.reshape(-1, 2).unbind(1)
        least, best = posterior.kl(Normal(mean, log_deviation.exp())).reshape(4, -1).min(1)
        centre = tried[torch.arange(4), best]
    assert (found.approximation <= least + 1e-10).all()
    assert (found.approximation >= least - 1e-6).all()
    assert (found.approximation > 1e-3).any()  # or there was nothing to find


def test_laws(line):
    vae, x, found = line
    assert (found.nll <= found.bound).all()
    assert (found.amortisation >= 0).all() and (found.approximation >= 0).all()
    torch.testing.assert_close(found.approximation + found.amortisation, found.gap, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.bound - found.nll, found.gap, rtol=1e-12, atol=1e-12)
    exact = vae.exact(x)
    torch.testing.assert_close(found.nll, exact.nll, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.gap, exact.kl, rtol=1e-10, atol=1e-10)
    assert found.error.max() < 1e-8
    again = gap(vae, x)
    assert torch.equal(again.approximation, found.approximation)


def test_more_starts_never_find_worse(line):
    vae, x, found = line
    assert (gap(vae, x, starts=12).approximation <= found.approximation + 1e-9).all()


@pytest.mark.parametrize("S", [1, 2, 3])
def test_a_linear_decoder_has_a_gaussian_posterior(S):
    vae = GaussVAE(girih.mlp([S, 4], seed=3), noise=0.5, hidden=(8,), seed=0)
    x = vae().sample((3,), seed=0)
    (A, _), noise = vae.dgn().trace.affine(torch.zeros(1, S)), vae.noise.item()
    precision = torch.eye(S, dtype=torch.float64) + A[0].mT @ A[0] / noise
    # the best diagonal Gaussian has the mean and the precisions of the posterior
    lost = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).detach()
    found = gap(vae, x, starts=1)
    torch.testing.assert_close(found.approximation, lost.expand(3), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        found.best.base_dist.scale, precision.diagonal().rsqrt().detach().expand(3, S), rtol=1e-4, atol=0
    )
    full = gap(vae, x, starts=1, covariance="full")
    assert full.approximation.max() < 1e-9
    torch.testing.assert_close(
        full.best.covariance_matrix, torch.linalg.inv(precision).detach().expand(3, S, S), rtol=1e-4, atol=1e-6
    )


def test_any_covariance_is_nearer_than_a_diagonal_one():
    vae = make(S=2, width=5, D=3, seed=4)
    x = vae().sample((4,), seed=0)
    diagonal, full = gap(vae, x, starts=2), gap(vae, x, starts=2, covariance="full")
    assert (full.approximation < diagonal.approximation).all()
    torch.testing.assert_close(full.gap, diagonal.gap)


def test_rows_do_not_depend_on_each_other(line, monkeypatch):
    vae, x, found = line
    monkeypatch.setattr("girih.vae.inference_gap._ROWS", 3)
    parts = gap(vae, x)
    torch.testing.assert_close(parts.gap, found.gap)
    assert parts.best.batch_shape == found.best.batch_shape == (4,)
    torch.testing.assert_close(parts.best.base_dist.loc[:3], found.best.base_dist.loc[:3], rtol=1e-3, atol=1e-4)


def test_the_mode_and_the_random_state_of_the_networks_stay(line):
    vae, x, _ = line
    vae.train()
    state = torch.get_rng_state()
    gap(vae, x[:1])
    assert vae.training and torch.equal(state, torch.get_rng_state())


def test_what_is_refused(line):
    vae, x, _ = line
    with pytest.raises(ParameterError, match="Gaussian likelihood, and this VAE has 'bernoulli'"):
        gap(MixtureVAE([1, 8, 2], likelihood="bernoulli", seed=0), torch.ones(2, 2))
    with pytest.raises(LatentDimensionError, match="S = 1, 2 and 3 latents, and this VAE has 4"):
        gap(MixtureVAE([4, 8, 2], seed=0), x)
    smooth = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    with pytest.raises(UnsupportedLayerError, match="Tanh"):
        gap(GaussVAE(smooth, latent_dim=1, seed=0), x)
    with pytest.raises(ShapeError, match="3 columns"):
        gap(vae, torch.zeros(2, 3))
    with pytest.raises(NonFiniteError):
        gap(vae, torch.full((2, 2), torch.nan))
    with pytest.raises(ParameterError, match="starts"):
        gap(vae, x, starts=-1)
    with pytest.raises(ParameterError, match="tolerance"):
        gap(vae, x, tolerance=0.0)
    with pytest.raises(ParameterError, match="'diagonal' or 'full'"):
        gap(vae, x, covariance="round")
    with pytest.raises(ParameterError, match="continuous=True is for a CGBPEFVAE"):
        gap(vae, x, continuous=True)
    with pytest.raises(ParameterError, match="covariance='full' is for Gaussian"):
        gap(CatVAE([1, 4, 2], categories=3, seed=0), x, covariance="full")


def test_the_twin_integrates_to_one():
    z, volume = grid_over(-9.0, 9.0, 2000, 1)
    assert normal(z).exp().sum().item() * volume == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("S", [1, 2])
def test_bernoulli_pixels_beside_quadrature(S):
    vae = GaussVAE(girih.mlp([S, 6, 5], activation="relu", seed=1), likelihood="bernoulli", seed=0)
    x = vae.dgn()().sample((3,), seed=0)
    found = gap(vae, x, starts=2)
    line = torch.linspace(-9.0, 9.0, 6001 if S == 1 else 401, dtype=torch.float64)
    z = torch.cartesian_prod(*[line] * S).reshape(-1, 1, S)
    log_w = S * (line[1] - line[0]).log()
    with torch.no_grad():
        log_joint = vae.log_likelihood(x, z) + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        log_p, q = (log_joint + log_w).logsumexp(0), vae.encode(x)
    torch.testing.assert_close(found.nll, -log_p, rtol=0.0, atol=1e-5)
    for own, divergence in ((q, found.gap), (found.best, found.approximation)):
        log_q = own.log_prob(z)
        expected = (log_q.exp() * (log_q - log_joint + log_p)).sum(0) * log_w.exp()
        torch.testing.assert_close(divergence, expected, rtol=0.0, atol=1e-4)
    assert (found.amortisation >= 0.0).all()
    assert (found.error < 1e-6).all()
    exact = vae.exact(x)
    torch.testing.assert_close(exact.kl, found.gap, rtol=1e-8, atol=1e-8)
    # no Gaussian nearby is nearer
    best = found.best.base_dist
    for shift, scale in ((0.02, 1.0), (-0.02, 1.0), (0.0, 1.02), (0.0, 0.98)):
        near = torch.distributions.Independent(torch.distributions.Normal(best.loc + shift, best.scale * scale), 1)
        assert (vae.dgn().posterior(x).kl(near) >= found.approximation - 1e-6).all()
