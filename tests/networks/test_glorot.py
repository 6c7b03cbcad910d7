"""The networks of the CG-BPEF paper: their sizes, their initial weights, and that they are piecewise affine."""

import math

import pytest
import torch
from torch import nn

import girih
from girih.errors import ParameterError
from girih.networks import dense, svhn_decoder, svhn_encoder
from girih.vae import CGBPEFVAE


def shapes(network, x):
    found = []
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.ReLU | nn.MaxPool2d):
            found.append(tuple(x.shape[1:]))
    return found, tuple(x.shape)


def test_the_encoder_has_the_printed_sizes():
    found, out = shapes(svhn_encoder(60, torch.float32, seed=0), torch.zeros(2, 1024))
    assert found == [(32, 28, 28), (32, 14, 14), (64, 10, 10), (64, 5, 5), (128, 1, 1)]
    assert out == (2, 60)


def test_the_decoder_has_the_printed_sizes():
    found, out = shapes(svhn_decoder(20, torch.float32, seed=0), torch.zeros(2, 20))
    assert found == [(128,), (64, 4, 4), (32, 8, 8), (16, 16, 16)]
    assert out == (2, 1024)


def test_every_unit_of_the_features_reaches_the_image():
    """Cut borders do not cut a feature off, and all pixels depend on the latents."""
    decoder = svhn_decoder(3, seed=0)
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert ((decoder(z + 0.1) - decoder(z)).abs().sum(0) > 0).all()


def test_the_decoder_is_piecewise_affine():
    decoder = svhn_decoder(3, seed=0)
    trace = girih.trace(decoder)
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, b = trace.affine(z)
    torch.testing.assert_close((A @ z[:, :, None])[:, :, 0] + b, decoder(z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [svhn_encoder, svhn_decoder])
def test_weights_are_those_of_glorot_and_follow_from_the_seed(make):
    network, same, other = make(20, seed=0), make(20, seed=0), make(20, seed=1)
    before = torch.get_rng_state()
    make(20, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    for layer in network.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        twin = torch.empty_like(layer.weight)
        with torch.random.fork_rng():
            nn.init.xavier_uniform_(twin)
        assert not layer.bias.any() and layer.weight.abs().max() <= twin.abs().max() * 1.05
        assert layer.weight.std().item() == pytest.approx(twin.std().item(), rel=0.1)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(network.parameters()), next(other.parameters()))


def test_they_make_a_vae():
    vae = CGBPEFVAE(svhn_decoder(2, torch.float32, 0), svhn_encoder(10, torch.float32, 1), likelihood="bernoulli")
    x = torch.rand(6, 1024, generator=torch.Generator().manual_seed(0))
    run = vae.fit(x, max_steps=3, record_every=3, progress=False, accelerator="cpu")
    assert math.isfinite(run.history["loss"][-1]) and vae.reconstruct(x).shape == (6, 1024)


@pytest.mark.parametrize("options", [{"dtype": torch.float16}, {"seed": 0.5}])
def test_bad_options_are_refused(options):
    for make in (svhn_encoder, svhn_decoder):
        with pytest.raises(ParameterError):
            make(5, **options)
        with pytest.raises(ParameterError):
            make(0)


def test_dense_networks_need_widths():
    with pytest.raises(ParameterError, match="a width must be a whole number"):
        dense([2, 0, 3], torch.float64, torch.Generator())
