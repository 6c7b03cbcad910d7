"""`girih.vae.gap` where all is sampled, S > 3, and of pairs: against the exact gap, closed forms, and long sums."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import girih
from girih.errors import LatentDimensionError, NonFiniteError, ParameterError, ShapeError, UnsupportedLayerError
from girih.vae import GaussVAE, MixtureVAE, Pair, gap
from girih.vae.families import gaussian as family


def test_estimates_are_those_of_the_exact_gap(monkeypatch):
    vae = GaussVAE(girih.mlp([2, 8, 4], seed=1), noise=0.2, seed=0)
    x = vae().sample((8,), seed=0)
    vae.fit(vae().sample((200,), seed=1), max_steps=60, lr=0.02, seed=0, progress=False)
    exact = gap(vae, x, starts=1)
    monkeypatch.setattr(family, "MAX_LATENT_DIM", 1)
    found = gap(vae, x, seed=1)
    assert not exact.sampled
    assert found.sampled
    assert found.method["nll"] == "importance sampling"
    for name in ("nll", "bound", "gap"):
        assert ((getattr(found, name) - getattr(exact, name)).abs() < 4.5 * found.error + 1e-9).all()
    assert (found.approximation > exact.approximation - 4.5 * found.error).all()
    assert (found.approximation < exact.approximation + 4.5 * found.error + 0.05).all()
    torch.testing.assert_close(found.gap, found.approximation + found.amortisation)
    assert (found.error < 0.1).all()


def linear_pair(spread, S=5, D=8, noise=0.3):
    """A linear decoder with its exact posterior as the encoder, shifted by half a deviation in each latent."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(S, D)).double().requires_grad_(False)
    weight, bias = decoder[0].weight, decoder[0].bias
    precision = torch.eye(S).double() + weight.mT @ weight / noise
    covariance = torch.linalg.inv(precision)
    mean = lambda x: (x - bias) @ weight @ covariance / noise  # noqa: E731
    shift = 0.5 * precision.diagonal().rsqrt()

    def encoder(x):
        wide = {"covariance": covariance, "std": precision.diagonal().rsqrt()}[spread]
        return mean(x) + shift, wide.expand(len(x), *wide.shape)

    whole = noise * torch.eye(D).double() + weight @ weight.mT
    return Pair(decoder, encoder, spread, noise=noise), MultivariateNormal(bias, whole), precision, shift


@pytest.mark.parametrize("spread", ["covariance", "std"])
def test_a_linear_decoder_has_a_gap_in_closed_form(spread):
    """The best Gaussian is the posterior, or has the deviations of its conditionals: Mahalanobis and determinants."""
    pair, truth, precision, shift = linear_pair(spread)
    x = truth.sample((4,))
    found = gap(pair, x)
    exact = -truth.log_prob(x)
    off = 0.5 * shift @ precision @ shift
    least = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)) if spread == "std" else 0.0
    assert ((found.nll - exact).abs() < 4.5 * found.error).all()
    assert torch.allclose(found.bound, exact + off + least, atol=1e-9)  # the cell of the mean says all
    assert ((found.amortisation - off).abs() < 1e-3).all()
    assert ((found.approximation - least).abs() < 4.5 * found.error + 1e-3).all()
    assert isinstance(found.best, MultivariateNormal if spread == "covariance" else Independent)


def test_bernoulli_pixels_agree_with_a_long_sum():
    S, D = 4, 12
    decoder, encoder = girih.mlp([S, 10, D], seed=0), girih.mlp([D, 10, 2 * S], seed=1)
    pair = Pair(decoder, lambda x: encoder(x).detach().chunk(2, 1), "log_std", likelihood="bernoulli")
    x = torch.bernoulli(torch.full((3, D), 0.5, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    found = gap(pair, x, seed=3)
    z = torch.randn(200_000, S, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q = pair.encode(x)
    for n in range(3):
        with torch.no_grad():
            log_w = pair.log_likelihood(x[n : n + 1], z[:, None])[:, 0]
            draws = q.sample((100_000,))[:, n]
            inner = pair.log_likelihood(x[n : n + 1], draws[:, None])[:, 0]
        log_p = torch.logsumexp(log_w, 0) - math.log(len(z))
        assert abs(float(found.nll[n] + log_p)) < 4.5 * float(found.error[n]) + 0.02
        normal = Independent(Normal(q.base_dist.loc[n], q.base_dist.scale[n]), 1)
        divergence = torch.distributions.kl_divergence(normal, pair.prior())
        assert abs(float(found.bound[n] - divergence + inner.mean())) < 4.5 * float(found.error[n]) + 0.02
    assert (found.gap > 0.0).all()
    assert (found.amortisation > -4.5 * found.error).all()


def test_a_budget_adds_certified_bounds():
    vae = GaussVAE(girih.mlp([4, 6, 4], seed=0), noise=0.5, seed=0)
    found = gap(vae, vae().sample((2,), seed=0), budget=3.0)
    assert (found.lower <= found.nll + 4.5 * found.error).all()
    assert (found.nll - 4.5 * found.error <= found.upper).all()
    assert "error" in repr(found)


def test_a_pair_is_the_vae_that_it_is_made_of():
    """All ways to say a spread, exactly for S <= 3."""
    vae = GaussVAE(girih.mlp([2, 6, 3], seed=0), noise=0.2, seed=0)
    x = vae().sample((2,), seed=0)
    expected = gap(vae, x, starts=1)
    mean, log_std = (lambda x: vae.encoder(x)[:, :2]), (lambda x: vae.encoder(x)[:, 2:])
    encoders = {
        "log_std": lambda x: (mean(x), log_std(x)),
        "std": lambda x: [mean(x), log_std(x).exp()],
        "variance": lambda x: (mean(x), (2.0 * log_std(x)).exp()),
        "log_variance": lambda x: (mean(x), 2.0 * log_std(x)),
        "covariance": lambda x: (mean(x), torch.diag_embed((2.0 * log_std(x)).exp())),
        None: lambda x: Normal(mean(x), log_std(x).exp()),
    }
    for spread, encoder in encoders.items():
        decoder = vae.decoder if spread != "std" else girih.trace(vae.decoder)
        found = gap(Pair(decoder, encoder, spread, noise=0.2), x, starts=1)
        torch.testing.assert_close(found.nll, expected.nll)
        torch.testing.assert_close(found.gap, expected.gap)
        if spread == "covariance":  # any Gaussian may be the best
            assert (found.approximation <= expected.approximation + 1e-6).all()
        else:
            torch.testing.assert_close(found.approximation, expected.approximation, rtol=0.0, atol=1e-6)


def test_networks_in_single_precision_get_rows_in_theirs():
    decoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
    encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    pair = Pair(decoder, lambda x: encoder(x).chunk(2, 1), "log_variance", noise=0.1)
    assert torch.isfinite(gap(pair, torch.zeros(2, 6)).bound).all()


def two(x):
    return torch.zeros(len(x), 2).double(), -torch.ones(len(x), 2).double()


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (ParameterError, "spread must be", lambda d: Pair(d, two, "sigma", noise=0.1)),
        (ParameterError, "needs noise", lambda d: Pair(d, two, "std")),
        (ParameterError, "has no noise", lambda d: Pair(d, two, "std", noise=0.1, likelihood="bernoulli")),
        (ParameterError, "a module or a function", lambda d: Pair(d, 3, "std", noise=0.1)),
        (ParameterError, "not positive", lambda d: Pair(d, two, "std", noise=0.1)),
        (ParameterError, "no spread=", lambda d: Pair(d, two, noise=0.1)),
        (ParameterError, "wrap it", lambda d: Pair(d, lambda x: x, "std", noise=0.1)),
        (ParameterError, "say so", lambda d: Pair(d, lambda x: MultivariateNormal(*full(x)), noise=0.1)),
        (
            ParameterError,
            "positive definite",
            lambda d: Pair(d, lambda x: (full(x)[0], -full(x)[1]), "covariance", noise=0.1),
        ),
        (ShapeError, "they must be", lambda d: Pair(d, lambda x: (x, x), "std", noise=0.1)),
        (NonFiniteError, "mean", lambda d: Pair(d, lambda x: (two(x)[0] / 0.0, two(x)[1].exp()), "std", noise=0.1)),
        (UnsupportedLayerError, "Tanh", lambda d: Pair(nn.Sequential(d, nn.Tanh()), two, "std", noise=0.1)),
    ],
)
def test_errors_of_pairs_are_typed(error, match, make):
    with pytest.raises(error, match=match):
        gap(make(girih.mlp([2, 6, 3], seed=0)), torch.zeros(2, 3))


def full(x):
    return torch.zeros(len(x), 2).double(), torch.eye(2).double().expand(len(x), 2, 2)


def test_what_is_not_covered_is_refused():
    x = torch.zeros(1, 4)
    with pytest.raises(LatentDimensionError):
        gap(MixtureVAE(girih.mlp([4, 6, 4], seed=0), components=2, noise=0.5, seed=0), x)
    with pytest.raises(ParameterError, match="budget"):
        gap(GaussVAE(girih.mlp([4, 6, 4], seed=0), likelihood="bernoulli", seed=0), x, budget=1.0)
