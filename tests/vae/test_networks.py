"""VAEs of other networks: float32, convolutions, dropout, decoders that are not piecewise affine."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import UnsupportedLayerError
from girih.geometry import smooth
from girih.networks import conv_generator, fc_encoder, fc_generator
from girih.training import ExactRecorder, Recorder
from girih.vae import GaussVAE


def rows(n=40, d=3, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fit(vae, x, **options):
    return vae.fit(x, **{"max_epochs": 6, "record_every": 3, "progress": False, "accelerator": "cpu", **options})


def test_float32_networks_and_exact_numbers_in_float64():
    double = GaussVAE(girih.mlp([1, 8, 3], seed=0), noise=0.2, seed=0)
    with torch.no_grad():
        for parameter in (*double.decoder.parameters(), *double.encoder.parameters()):
            parameter.copy_(parameter.float())  # weights that both types hold
    single = GaussVAE(copy.deepcopy(double.decoder).float(), copy.deepcopy(double.encoder).float(), noise=0.2)
    assert single.dtype == torch.float32 and single.log_noise.dtype == torch.float64
    x = rows()
    exact, expected = single.exact(x), double.exact(x)
    assert exact.nll.dtype == torch.float64
    torch.testing.assert_close(exact.nll, expected.nll, rtol=1e-12, atol=1e-12)  # the decoder is read in float64
    torch.testing.assert_close(exact.elbo, expected.elbo, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-exact.nll, exact.elbo + exact.kl, rtol=1e-12, atol=1e-10)
    assert single.encode(x).mean.dtype == torch.float64 and single.decode([[0.3]]).dtype == torch.float32
    assert single.free_energy(x).total.dtype == torch.float32
    seen = set()
    single.encoder.register_forward_hook(lambda module, inputs, output: seen.add(inputs[0].dtype))
    run = fit(single, x, lr=0.01, max_epochs=60)
    assert seen == {torch.float32} and run.history["nll"][-1] < run.history["nll"][0]
    assert {p.dtype for p in single.decoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_convolutional_vae_of_appendix_e(dtype):
    x = girih.datasets.load("mnist", n=8, seed=0).X
    vae = GaussVAE(conv_generator(10, dtype, seed=0), encoder=fc_encoder(784, 20, dtype=dtype, seed=1), noise=0.1)
    before = [value.clone() for value in vae.parameters()]
    run = fit(vae, x, max_epochs=1)
    assert run.steps == 1 and sorted(run.history) == ["loss", "seconds", "step"]
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert vae.decode(torch.zeros(2, 10)).shape == (2, 784)


def test_a_vae_can_be_cast_later():
    vae = GaussVAE(girih.mlp([1, 8, 3], seed=0), noise=0.2, seed=0)
    before = vae.exact(rows())
    vae.float()
    fit(vae, rows(), lr=1e-9, max_epochs=1)
    torch.testing.assert_close(vae.exact(rows()).nll, before.nll, rtol=1e-5, atol=1e-5)
    assert vae.dtype == vae.decode([[0.1]]).dtype == torch.float32 and vae.double().dtype == torch.float64


def test_a_default_encoder_for_a_float32_decoder():
    vae = GaussVAE(girih.mlp([2, 40, 3], seed=0).float(), seed=0)
    assert [tuple(p.shape) for p in vae.encoder.parameters()][::2] == [(40, 3), (4, 40)]
    assert {p.dtype for p in vae.encoder.parameters()} == {torch.float32}


def test_decoders_that_are_not_piecewise_affine():
    soft = smooth(girih.mlp([2, 8, 3], seed=0), 0.5)
    tanh = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 3)).double()
    for decoder, width in ((soft, 32), (tanh, 48)):
        vae = GaussVAE(decoder, latent_dim=2, noise=0.5, seed=0)
        assert (vae.latent_dim, vae.output_dim) == (2, 3) and vae.encoder[0].out_features == width
        run = fit(vae, rows(), lr=0.01, max_epochs=80, record_every=20)
        assert run.history["loss"][-1] < run.history["loss"][1]
        assert sorted(run.history) == ["loss", "seconds", "step"]
        assert vae.encode(rows()).mean.shape == (40, 2) and vae.decode([[0.0, 1.0]]).shape == (1, 3)
        assert not vae().exact
        for refused in (vae.dgn, lambda vae=vae: vae.exact(rows())):
            with pytest.raises(UnsupportedLayerError):
                refused()


def test_the_free_energy_of_a_smooth_decoder_averages_to_its_bound():
    """Its bound by quadrature over one latent."""
    vae = GaussVAE(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2)).double(), latent_dim=1, noise=0.3, seed=0)
    x = rows(1, 2)
    with torch.no_grad():
        q = vae.encode(x).base_dist
        z = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None] * q.stddev + q.mean
        density = q.log_prob(z).exp()[:, 0]
        normal = torch.distributions.Normal(vae.decode(z), math.sqrt(0.3))
        prior = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        log_joint = normal.log_prob(x).sum(1) + prior.log_prob(z)[:, 0]
        bound = torch.trapezoid(density * (q.log_prob(z)[:, 0] - log_joint), z[:, 0])
        estimates = vae.free_energy(x.repeat(40_000, 1), seed=1).total
    assert abs(estimates.mean() - bound) < 5 * estimates.std() / math.sqrt(40_000)


def test_dropout_acts_in_training_and_not_in_what_is_exact():
    decoder = fc_generator(1, 3, (8, 8), dropout=0.5, seed=0)
    vae = GaussVAE(decoder, fc_encoder(3, 2, (16, 8), seed=1), noise=0.1)
    x = rows()
    assert vae.training and not torch.equal(vae.free_energy(x, seed=0).total, vae.free_energy(x, seed=0).total)
    first, second = vae.exact(x), vae.exact(x)
    assert torch.equal(first.nll, second.nll) and torch.equal(first.kl, second.kl)
    run = fit(vae, x, lr=0.01, max_epochs=60, record_every=20)
    assert run.history["nll"][-1] < run.history["nll"][0]
    assert all(module.training for module in vae.modules())
    bound = vae.exact(x)
    assert bound.nll.mean().item() == pytest.approx(run.history["nll"][-1], abs=1e-10)
    torch.testing.assert_close(vae().log_prob(x).detach(), -bound.nll)
    vae.eval()
    torch.testing.assert_close(vae.decode([[0.7]]), vae.dgn().trace(torch.tensor([[0.7]], dtype=torch.float64)))


def test_held_out_rows_end_a_run_and_the_best_networks_are_kept(tmp_path):
    x, held_out = rows(12, seed=1), rows(200, seed=2)
    vae = GaussVAE(girih.mlp([2, 64, 3], seed=0), hidden=(64,), noise=0.3, seed=0)
    states = []

    def record(model):
        states.append([value.detach().clone() for value in model.parameters()])
        return {"norm": float(model.decoder[0].weight.detach().norm())}

    options = {"lr": 0.01, "max_epochs": 2000, "record": record, "record_every": 10, "patience": 4}
    run = fit(vae, x, validation=held_out, checkpoint=tmp_path / "run.ckpt", **options)
    curve = run.history["held_out"]
    assert run.ended == "patience" and 0 < curve.argmin() < len(curve) - 1
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), states[curve.argmin()], strict=True))
    assert sorted(run.history) == ["held_out", "loss", "norm", "seconds", "step"]
    with torch.no_grad():
        kept = vae.free_energy(held_out, seed=0).total.mean()
    assert kept.item() == pytest.approx(curve.min(), abs=1e-12)
    # the finished run is found again, from the model as it was left
    again = fit(vae, x, validation=held_out, checkpoint=tmp_path / "run.ckpt", **options)
    np.testing.assert_array_equal(again.history["held_out"], curve)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), states[curve.argmin()], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fraction_is_held_out_beside_the_exact_numbers(dtype):
    vae = GaussVAE(girih.mlp([1, 4, 3], seed=0).to(dtype), seed=0)
    sizes = set()
    vae.encoder.register_forward_hook(lambda module, inputs, output: sizes.add(len(inputs[0])))
    run = fit(vae, rows(), validation=0.25)
    assert sizes == {30, 10}
    assert sorted(run.history) == ["elbo", "held_out", "kl", "loss", "nll", "noise", "seconds", "step"]
    assert np.isfinite(run.history["held_out"]).all()


def test_the_draws_for_held_out_rows_do_not_disturb_training():
    x = rows()
    first, second = (GaussVAE(girih.mlp([1, 4, 3], seed=0), seed=0) for _ in range(2))
    fit(first, x, record=Recorder(), keep_best=False)
    fit(second, x, validation=rows(5), keep_best=False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("sizes", "count"), [((2, 300, 3), 40), ((3, 60, 3), 200), ((1, 1000, 3), 400)])
def test_a_generator_of_many_cells_is_not_evaluated_exactly_unasked(sizes, count):
    vae = GaussVAE(girih.mlp(sizes, seed=0), hidden=(8,), seed=0)
    assert sorted(fit(vae, rows(count), max_epochs=1).history) == ["loss", "seconds", "step"]


def test_exact_numbers_of_it_can_be_asked_for():
    vae = GaussVAE(girih.mlp([1, 1000, 3], seed=0), hidden=(8,), seed=0)
    run = fit(vae, rows(400), max_epochs=1, record=ExactRecorder(rows(3)))
    np.testing.assert_allclose(-run.history["nll"], run.history["elbo"] + run.history["kl"], atol=1e-8)
