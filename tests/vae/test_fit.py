"""Training a VAE: the exact likelihood falls, and the numbers are reproducible."""

import math
import os

import numpy as np
import pytest
import torch

import girih
from girih.errors import NonFiniteError, ParameterError
from girih.training import ExactRecorder, Recorder
from girih.vae import GaussVAE


def circle(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, dtype=torch.float64, generator=generator)
    x = torch.stack((angle.cos(), angle.sin()), 1)
    return x + 0.05 * torch.randn(n, 2, dtype=torch.float64, generator=generator)


def make(sizes=(1, 8, 2)):
    return GaussVAE(girih.mlp(list(sizes), seed=0), noise=0.1, seed=0)


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first.keys() - {"seconds"}:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_training_lowers_the_exact_nll_and_records_it():
    vae, x = make(), circle()
    run = vae.fit(x, lr=0.01, max_epochs=400, record_every=100, progress=False)
    history = run.history
    assert history["step"].tolist() == [0, 100, 200, 300, 400]
    assert history["nll"][-1] < history["nll"][0] - 1.0
    np.testing.assert_allclose(-history["nll"], history["elbo"] + history["kl"], atol=1e-10)
    assert (history["kl"] >= 0).all()
    assert history["noise"][-1] == vae.noise.item() != history["noise"][0]
    assert history["nll"][-1] == pytest.approx(vae.exact(x).nll.mean().item(), abs=1e-12)
    # the mean training loss of the last steps is an estimate of the negative bound
    assert abs(history["loss"][-1] + history["elbo"][-1]) < 0.3
    assert math.isnan(history["loss"][0])
    assert (np.diff(history["seconds"]) > 0).all()
    assert (run.ended, run.steps, run.converged) == ("max_epochs", 400, False)


@pytest.mark.parametrize("batch_size", [None, 20])
def test_same_seed_same_numbers_whatever_the_global_state(batch_size):
    options = {"max_epochs": 12, "record_every": 5, "batch_size": batch_size, "progress": False}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make().fit(circle(), **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    equal(first.history, make().fit(circle(), **options).history)
    other = make().fit(circle(), seed=1, **options)
    assert other.history["nll"][-1] != first.history["nll"][-1]


def test_recording_does_not_disturb_training():
    x = circle()
    runs = [make() for _ in range(2)]
    runs[0].fit(x, max_epochs=30, record=ExactRecorder(x, every=7), progress=False)
    runs[1].fit(x, max_epochs=30, record=Recorder(lambda vae: {"draw": torch.rand(()).item()}, 4), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


def test_without_exact_inference_only_the_loss_is_recorded():
    x = torch.cat((circle(), circle(), circle(), circle()), 1)
    run = make((6, 8, 8)).fit(x, max_epochs=4, record_every=2, samples=3, progress=False)
    assert sorted(run.history) == ["loss", "seconds", "step"]


def test_it_stops_when_the_exact_nll_no_longer_falls():
    run = make().fit(circle(), lr=1e-9, max_epochs=10_000, record_every=5, patience=3, progress=False)
    assert (run.ended, run.steps, run.converged) == ("patience", 15, True)


def test_a_diverging_run_names_the_step():
    vae = make()
    with pytest.raises(NonFiniteError, match=r"the loss became \w+ at step \d+; train with a smaller lr \(now 1000\)"):
        vae.fit(circle(), lr=1e3, max_epochs=200, progress=False, record=Recorder())


def test_another_number_of_samples_is_another_run(tmp_path):
    vae, path = make(), os.path.join(tmp_path, "run.ckpt")
    vae.fit(circle(), max_epochs=3, checkpoint=path, progress=False)
    with pytest.raises(ParameterError, match="samples=1, but now samples=2"):
        vae.fit(circle(), max_epochs=6, checkpoint=path, samples=2, progress=False)


def test_a_fixed_noise_stays():
    vae = GaussVAE(girih.mlp([1, 4, 2], seed=0), noise=0.2, learn_noise=False, seed=0)
    run = vae.fit(circle(), max_epochs=4, record_every=2, progress=False)
    np.testing.assert_allclose(run.history["noise"], 0.2)


def test_parts_in_evaluation_mode_stay_there_without_a_warning():
    vae = make()
    vae.encoder.eval()
    vae.fit(circle(), max_epochs=2, progress=False)
    assert vae.training
    assert not vae.encoder.training
