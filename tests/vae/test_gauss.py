"""The Gaussian VAE: its bound against the exact one, and its input checks."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal

import girih
from girih.errors import (
    EmptyDataError,
    GirihError,
    LatentDimensionError,
    NoiseError,
    NonFiniteError,
    ParameterError,
    ShapeError,
    UnsupportedLayerError,
)
from girih.vae import GaussVAE


def make(sizes=(1, 8, 2), noise=0.1, seed=0, **options):
    return GaussVAE(girih.mlp(list(sizes), seed=seed), noise=noise, seed=seed, **options)


def rows(n, d=2, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [(1, 8, 2), (1, 8, 8, 3), (1, 4)])
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_free_energy_averages_to_the_exact_bound(sizes, noise):
    vae = make(sizes, noise)
    x = rows(4, sizes[-1])
    draws = 20_000
    with torch.no_grad():
        estimates = vae.free_energy(x.repeat(draws, 1), seed=1).total.reshape(draws, 4)
    error = estimates.std(0) / math.sqrt(draws)
    assert ((estimates.mean(0) + vae.exact(x).elbo).abs() < 5 * error).all()


def test_free_energy_of_two_latents_averages_to_the_closed_form_of_a_linear_decoder():
    vae = make((2, 3), noise=0.5)
    x, draws = rows(3, 3), 20_000
    with torch.no_grad():
        terms = vae.free_energy(x.repeat(draws, 1), seed=1)
        q, weight, bias = vae.encode(x), vae.decoder[0].weight, vae.decoder[0].bias
        distance = (x - q.mean @ weight.mT - bias).square().sum(1) + q.variance @ weight.square().sum(0)
    expected = 0.5 * (distance / 0.5 + 3 * math.log(2 * math.pi * 0.5))
    reconstruction = terms.reconstruction.reshape(draws, 3)
    assert ((reconstruction.mean(0) - expected).abs() < 5 * reconstruction.std(0) / math.sqrt(draws)).all()
    prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    kl = torch.distributions.kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), prior)
    torch.testing.assert_close(terms.divergence[:3], kl, rtol=1e-12, atol=1e-12)


def test_more_samples_lower_the_spread_and_keep_the_mean():
    vae, x = make(), rows(1).repeat(4000, 1)
    with torch.no_grad():
        one, many = vae.free_energy(x, 1, seed=1).total, vae.free_energy(x, 16, seed=2).total
    assert one.shape == many.shape == (4000,)
    assert 3.0 < one.std() / many.std() < 5.0
    assert abs(one.mean() - many.mean()) < 5 * one.std() / math.sqrt(4000)


def test_draws_are_reproducible_and_differ_otherwise():
    vae, x = make(), rows(3)
    assert torch.equal(vae.free_energy(x, seed=3).total, vae.free_energy(x, seed=3).total)
    assert not torch.equal(vae.free_energy(x).total, vae.free_energy(x).total)


def test_exact_nll_is_the_bound_plus_the_gap():
    vae = make((1, 16, 16, 5), noise=0.01)
    x = 3.0 * rows(50, 5)
    bound = vae.exact(x)
    torch.testing.assert_close(-bound.nll, bound.elbo + bound.kl, rtol=0, atol=1e-8 * float(bound.nll.abs().max()))
    assert (bound.kl >= 0).all()
    with torch.no_grad():
        dgn, q = vae.dgn(), vae.encode(x)
        torch.testing.assert_close(bound.nll, -vae().log_prob(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bound.elbo, dgn.elbo(x, q), rtol=1e-10, atol=1e-8)
        torch.testing.assert_close(bound.kl, dgn.posterior(x).kl(q), rtol=1e-10, atol=1e-8)


def test_exact_in_chunks_equals_exact_at_once(monkeypatch):
    vae, x = make(), rows(25)
    whole = vae.exact(x)
    monkeypatch.setattr("girih.vae.model._CHUNK", 7)
    for part, all_at_once in zip(vae.exact(x), whole, strict=True):
        torch.testing.assert_close(part, all_at_once, rtol=1e-12, atol=1e-12)


def test_called_it_is_a_density_whose_gradients_reach_decoder_and_noise():
    vae = make()
    p = vae()
    assert p.sample((3,)).shape == (3, 2)
    p.log_prob(rows(5)).sum().backward()
    assert vae.log_noise.grad.abs() > 0
    assert all(parameter.grad is not None for parameter in vae.decoder.parameters())
    assert all(parameter.grad is None for parameter in vae.encoder.parameters())


def test_gradients_of_the_free_energy_reach_every_parameter():
    vae = make((2, 8, 3))
    vae.free_energy(rows(6, 3), samples=2).total.mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vae.parameters())


def test_encoder_is_the_mirrored_decoder_at_least_32_wide():
    vae = make((1, 8, 64, 5))
    assert [layer.out_features for layer in vae.encoder if isinstance(layer, nn.Linear)] == [64, 32, 2]
    assert [layer.out_features for layer in make(hidden=(5,)).encoder if isinstance(layer, nn.Linear)] == [5, 2]
    same = make((1, 8, 64, 5))
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), same.parameters(), strict=True))


def test_own_encoder_and_decoder_are_kept_by_reference():
    decoder, encoder = girih.mlp([1, 4, 3]), nn.Linear(3, 2, dtype=torch.float64)
    vae = GaussVAE(decoder, encoder)
    assert vae.decoder is decoder
    assert vae.encoder is encoder
    assert vae.dgn().net is decoder
    q = vae.encode(rows(4, 3))
    assert isinstance(q, Independent)
    assert (q.batch_shape, q.event_shape) == ((4,), (1,))
    torch.testing.assert_close(q.mean, encoder(rows(4, 3))[:, :1])
    torch.testing.assert_close(q.variance.log() / 2, encoder(rows(4, 3))[:, 1:])
    torch.testing.assert_close(vae.decode([[0.5]]), decoder(torch.tensor([[0.5]], dtype=torch.float64)))


def test_noise_is_a_parameter_only_when_it_is_learned():
    assert "log_noise" in dict(make().named_parameters())
    fixed = make(noise=0.25, learn_noise=False)
    assert "log_noise" not in dict(fixed.named_parameters())
    assert fixed.state_dict()["log_noise"].exp().item() == pytest.approx(0.25)
    assert fixed.dgn().noise.item() == pytest.approx(0.25)


def test_trying_an_encoder_does_not_move_its_statistics():
    norm = nn.BatchNorm1d(2, dtype=torch.float64)
    encoder = nn.Sequential(norm, nn.Linear(2, 2, dtype=torch.float64))
    GaussVAE(girih.mlp([1, 4, 2]), encoder)
    assert norm.training
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        ([[1.0, math.nan]], NonFiniteError, "NaN"),
        ([[1.0, math.inf]], NonFiniteError, "infinite"),
        ([[1.0, 2.0, 3.0]], ShapeError, "the data dimension D is 2"),
        (torch.zeros(0, 2), EmptyDataError, "no rows"),
        ("text", ShapeError, "numbers"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "free_energy", "exact", "fit"])
def test_bad_data_are_refused(method, x, error, says):
    with pytest.raises(error, match=says):
        getattr(make(), method)(x)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"encoder": nn.Linear(2, 3, dtype=torch.float64)}, ShapeError, r"gives \(2, 3\).*change its last layer to 2"),
        ({"encoder": nn.Linear(5, 2, dtype=torch.float64)}, ShapeError, "data dimension D = 2"),
        ({"encoder": nn.Flatten(0)}, ShapeError, "the encoder gives"),
        ({"encoder": nn.LSTM(2, 2, dtype=torch.float64)}, ShapeError, "gives tuple"),
        ({"encoder": nn.Linear(2, 2)}, ParameterError, r"encoder\.double\(\)"),
        ({"encoder": nn.Linear(2, 2, dtype=torch.float64), "hidden": (3,)}, ParameterError, "leave it out"),
        ({"hidden": (0,)}, ParameterError, "widths"),
        ({"noise": 0.0}, NoiseError, "positive"),
        ({"noise": math.nan}, NoiseError, "positive"),
        ({"noise": [1.0, 2.0]}, NoiseError, "one number"),
    ],
)
def test_bad_construction_is_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        GaussVAE(girih.mlp([1, 4, 2]), **arguments)


def test_decoder_must_be_traceable_or_say_its_latent_dimension():
    with pytest.raises(UnsupportedLayerError, match=r"Tanh.*pass latent_dim="):
        GaussVAE(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    with pytest.raises(ShapeError, match=r"decoder does not accept z of shape \(N, 3\)"):
        GaussVAE(girih.mlp([1, 4, 2]), latent_dim=3)
    with pytest.raises(ParameterError, match=r"float32 \(first '2.weight'\)"):
        GaussVAE(nn.Sequential(nn.Linear(1, 4).double(), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(ParameterError, match=r"encoder\.float\(\)"):
        GaussVAE(girih.mlp([1, 4, 2]).float(), nn.Linear(2, 2).double())


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, None])
def test_samples_must_be_a_count(samples):
    with pytest.raises(ParameterError, match="samples must be a whole number"):
        make().free_energy(rows(2), samples=samples)
    with pytest.raises(ParameterError, match="samples must be a whole number"):
        make().fit(rows(2), samples=samples)


def test_exact_is_refused_where_the_latent_dimension_is_too_large():
    vae = make((6, 8, 7))
    assert vae.free_energy(rows(2, 7)).total.shape == (2,)
    assert not vae().exact
    with pytest.raises(LatentDimensionError):
        vae.dgn()
    with pytest.raises(LatentDimensionError):
        vae.exact(rows(2, 7))


def test_an_encoder_that_overflows_is_named():
    vae = make()
    with torch.no_grad():
        vae.encoder[-1].bias[1] = 1000.0
    with pytest.raises(NonFiniteError, match="encoder's standard deviation"):
        vae.encode(rows(2))


def test_every_error_is_a_girih_error():
    with pytest.raises(GirihError):
        make(noise=-1.0)
