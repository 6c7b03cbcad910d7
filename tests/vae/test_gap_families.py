"""`girih.vae.gap` of mixtures, categories and polynomial families."""

import itertools
import math

import pytest
import torch

import girih
from girih.errors import LatentDimensionError, ParameterError
from girih.vae import BPEF, CGBPEFVAE, CatVAE, CoarseBPEF, GaussVAE, MixtureVAE, bpef, evidence, gap

from .gap_twins import grid_over, log_density, truth


def decoder(S=1, width=6, D=2, seed=1):
    return girih.mlp([S, width, D], seed=seed)


@pytest.fixture(scope="module")
def mixtures():
    vae = MixtureVAE(decoder(), noise=0.1, components=2, seed=0)
    x = vae().sample((4,), seed=0)
    return vae, x, gap(vae, x, starts=3)


@pytest.fixture(scope="module")
def polynomial():
    vae = CGBPEFVAE(decoder(), noise=0.1, order=3, levels=21, seed=0)
    with torch.no_grad():
        vae.family.prior_coefficients.copy_(torch.tensor([[0.5, -1.0, 0.3]]))
    x = vae.sample(4, seed=0)
    return vae, x, gap(vae, x, starts=3)


def test_a_mixture_is_what_a_dense_grid_says(mixtures):
    vae, x, found = mixtures
    z, volume = grid_over(-16.0, 16.0, 200_000, 1)
    nll, divergence = truth(vae, x, z, volume)
    torch.testing.assert_close(found.nll, nll, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.gap, divergence(log_density(vae.encode(x), z)), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.approximation, divergence(log_density(found.best, z)), rtol=0, atol=1e-6)
    assert found.error.max() < 1e-9


def test_a_mixture_in_a_plane():
    vae = MixtureVAE(decoder(S=2, width=4, D=3), noise=0.3, components=2, seed=0)
    x = vae().sample((2,), seed=0)
    found = gap(vae, x, starts=1)
    z, volume = grid_over(-10.0, 10.0, 1200, 2)
    nll, divergence = truth(vae, x, z, volume)
    torch.testing.assert_close(found.nll, nll, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.gap, divergence(log_density(vae.encode(x), z)), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.approximation, divergence(log_density(found.best, z)), rtol=0, atol=1e-5)
    single = gap(GaussVAE(vae.decoder, noise=0.3, seed=0), x, starts=1)
    assert (found.approximation < single.approximation + 1e-9).all()


def test_more_components_are_never_further_away(mixtures):
    vae, x, two = mixtures
    one = gap(GaussVAE(vae.decoder, noise=0.1, seed=0), x, starts=3)
    three = gap(MixtureVAE(vae.decoder, noise=0.1, components=3, seed=0), x, starts=3)
    torch.testing.assert_close(one.nll, two.nll)
    assert (two.approximation <= one.approximation + 1e-9).all()
    assert (three.approximation <= one.approximation + 1e-9).all()
    assert three.approximation.mean() < two.approximation.mean() < 0.5 * one.approximation.mean()


def test_one_component_is_a_gaussian():
    net = decoder()
    vae = MixtureVAE(net, noise=0.1, components=1, seed=0)
    x = vae().sample((3,), seed=0)
    one, gaussian = gap(vae, x, starts=2), gap(GaussVAE(net, noise=0.1, seed=0), x, starts=2)
    torch.testing.assert_close(one.approximation, gaussian.approximation, rtol=0, atol=1e-9)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("family", ["categories", "polynomial"])
def test_codes_are_what_another_enumeration_says(family, likelihood):
    kind = {"categories": (CatVAE, {"categories": 4}), "polynomial": (CGBPEFVAE, {"order": 3, "levels": 9})}
    make, options = kind[family]
    vae = make([2, 8, 3], seed=0, likelihood=likelihood, **options)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    found, twin, exact = gap(vae, x, starts=2), evidence.enumerate_bound(vae, x), evidence.enumerate_posterior(vae, x)
    torch.testing.assert_close(found.nll, -twin.log_prob, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.bound, twin.bound, rtol=0, atol=1e-10)
    log_q = found.best.log_prob(exact.codes[:, None]).mT
    kl = (log_q.exp() * (log_q - exact.log_prob)).sum(1)
    torch.testing.assert_close(found.approximation, kl, rtol=0, atol=1e-10)
    assert (found.approximation <= found.gap).all() and (found.error == 0).all()


def test_one_category_has_no_approximation_gap():
    vae = CatVAE([1, 8, 3], categories=6, seed=0, likelihood="bernoulli")
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    found = gap(vae, x)
    assert found.approximation.max() < 1e-10
    exact = evidence.enumerate_posterior(vae, x).log_prob.exp()
    torch.testing.assert_close(found.best.base_dist.probs[:, 0], exact, rtol=1e-3, atol=1e-5)


def test_no_product_of_two_coins_is_nearer():
    """The family of two binary latents has two parameters: all of them, on a fine grid."""
    vae = CatVAE([2, 8, 3], categories=2, seed=2, likelihood="bernoulli")
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(6.0)  # a posterior that is far from a product
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    found, exact = gap(vae, x), evidence.enumerate_posterior(vae, x)
    first, second = exact.codes[:, 0, 0], exact.codes[:, 1, 0]
    p = torch.linspace(1e-6, 1 - 1e-6, 1001, dtype=torch.float64)
    a, b = torch.cartesian_prod(p, p).T
    q = torch.where(first > 0, a[:, None], 1 - a[:, None]) * torch.where(second > 0, b[:, None], 1 - b[:, None])
    least = ((q * q.log()).sum(1)[:, None] - q @ exact.log_prob.mT).amin(0)
    assert (found.approximation <= least + 1e-12).all()
    assert (found.approximation >= least - 1e-5).all() and found.approximation.max() > 0.01


def test_no_polynomial_of_a_dense_search_is_nearer():
    """All densities of order 2 by their two coefficients on ever finer grids."""
    vae = CGBPEFVAE(decoder(), noise=0.3, order=2, levels=21, seed=0)
    x = vae.sample(3, seed=0)
    found, exact = gap(vae, x), evidence.enumerate_posterior(vae, x)
    steps = torch.linspace(-1.0, 1.0, 41, dtype=torch.float64)
    offsets = torch.cartesian_prod(steps, steps)
    centre, order = torch.zeros(3, 2, dtype=torch.float64), exact.codes[:, 0].argsort()
    for reach in (60.0, 6.0, 0.6, 0.06):
        tried = centre[:, None] + reach * offsets
        log_q = CoarseBPEF(tried, 21).logits
        least, best = (log_q.exp() * (log_q - exact.log_prob[:, None, order])).sum(2).min(1)
        centre = tried[torch.arange(3), best]
    assert (found.approximation <= least + 1e-10).all()
    assert (found.approximation >= least - 1e-4).all() and found.approximation.max() > 0.01


def test_the_basis_does_not_matter(polynomial):
    vae, x, found = polynomial
    other = CGBPEFVAE(vae.decoder, noise=0.1, order=3, levels=21, basis="legendre", seed=0)
    with torch.no_grad():
        other.family.prior_coefficients.copy_(bpef.to_basis(vae.family.prior_coefficients, "monomial", "legendre"))
    again = gap(other, x, starts=3)
    torch.testing.assert_close(again.nll, found.nll, rtol=0, atol=1e-10)
    torch.testing.assert_close(again.approximation, found.approximation, rtol=0, atol=1e-6)


def test_a_higher_order_is_nearer(polynomial):
    vae, x, _ = polynomial
    values = []
    for order in (1, 2, 4, 8):
        other = CGBPEFVAE(vae.decoder, noise=0.1, order=order, levels=21, learn_prior=False, seed=0)
        values.append(gap(other, x).approximation)
    for low, high in itertools.pairwise(values):
        assert (high <= low + 1e-7).all() and high.mean() < 0.9 * low.mean()


@pytest.mark.parametrize(("S", "count", "atol"), [(1, 400_000, 1e-8), (2, 1000, 1e-5)])
def test_densities_are_what_a_dense_grid_says(S, count, atol):
    vae = CGBPEFVAE(decoder(S=S, width=5, D=3), noise=0.05, order=3, levels=21, seed=0)
    with torch.no_grad():
        vae.family.prior_coefficients.copy_(torch.tensor([[0.5, -1.0, 0.3]]).expand(S, 3))
    x = vae.sample(2, seed=0)
    found = gap(vae, x, starts=1, continuous=True)
    z, volume = grid_over(-1.0, 1.0, count, S)
    prior = BPEF(vae.prior().base_dist.coefficients.detach())
    nll, divergence = truth(vae, x, z, volume, lambda z: prior.log_prob(z).sum(1))
    own = BPEF(vae.encode(x).base_dist.coefficients.detach())
    torch.testing.assert_close(found.nll, nll, rtol=0, atol=atol)
    for value, family in ((found.gap, own), (found.approximation, found.best.base_dist)):
        with torch.no_grad():
            log_q = torch.stack([BPEF(c).log_prob(z).sum(1) for c in family.coefficients])
        torch.testing.assert_close(value, divergence(log_q), rtol=0, atol=10 * atol)
    assert found.error.max() < 1e-6


def test_levels_tend_to_densities(polynomial):
    vae, x, _ = polynomial
    limit = gap(vae, x, continuous=True)
    off = []
    for levels in (51, 201, 801):
        fine = CGBPEFVAE(vae.decoder, noise=0.1, order=3, levels=levels, encoder=vae.encoder, seed=0)
        fine.load_state_dict(vae.state_dict())
        off.append((gap(fine, x).nll - limit.nll).abs().max().item())
    assert off[0] > 3.5 * off[1] > 3.5**2 * off[2] and off[2] < 0.02


def test_cubature_says_how_far_it_got(polynomial, monkeypatch):
    vae, x, _ = polynomial
    fine = gap(vae, x, continuous=True, starts=0, tolerance=1e-10)
    monkeypatch.setattr("girih.vae.families.polynomial._MOST_SIMPLICES", 1)
    sharp = CGBPEFVAE(vae.decoder, noise=0.002, order=3, levels=21, seed=0)
    rough = gap(sharp, x, continuous=True, starts=0)
    monkeypatch.undo()
    exact = gap(sharp, x, continuous=True, starts=0)
    off = (rough.nll - exact.nll).abs()
    assert (off <= rough.error + exact.error).all() and off.max() > 1e-6
    assert exact.error.max() < 1e-7 and fine.error.max() < 1e-9


def test_a_narrow_posterior_is_not_missed():
    """A noise variance of 1e-8: the posterior is ten thousand times narrower than the box."""
    vae = CGBPEFVAE(girih.mlp([1, 2], seed=0), noise=1e-8, order=2, levels=21, hidden=(4,), seed=0)
    (A, b), z = girih.trace(vae.decoder).affine(torch.zeros(1, 1)), 0.123456
    x = (A[0] @ torch.tensor([z], dtype=torch.float64) + b[0])[None].detach()
    size = A.detach().square().sum().item()
    log_p = -0.5 * math.log(2 * math.pi * 1e-8) * 2 - math.log(2) + 0.5 * math.log(2 * math.pi * 1e-8 / size)
    found = gap(vae, x, continuous=True, starts=0)
    assert found.nll.item() == pytest.approx(-log_p, abs=1e-6)


def test_what_is_refused():
    many = CatVAE([6, 8, 3], categories=10, seed=0)
    with pytest.raises(LatentDimensionError, match="1,000,000 codes"):
        gap(many, torch.zeros(1, 3))
    fine = CGBPEFVAE([3, 8, 3], levels=101, seed=0)
    with pytest.raises(LatentDimensionError, match="or continuous=True"):
        gap(fine, torch.zeros(1, 3))
    with pytest.raises(ParameterError, match="'bernoulli'"):
        gap(CGBPEFVAE([1, 8, 3], likelihood="bernoulli", seed=0), torch.zeros(1, 3), continuous=True)
    with pytest.raises(ParameterError, match="'full' is for Gaussian"):
        gap(fine, torch.zeros(1, 3), covariance="full")
