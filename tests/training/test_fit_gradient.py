"""The common trainer: what it minimises, when it stops, what it refuses, what it leaves behind."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from girih.errors import EmptyDataError, NonFiniteError, ParameterError, ShapeError
from girih.training import Recorder, fit_gradient

from .helpers import X, fit, line, noisy, same, weights


def test_it_is_adam():
    ours, theirs = line(), line()
    fit(ours, lambda model, x: (model(x) - 3.0 * x).square())
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        (theirs(X) - 3.0 * X).square().mean().backward()
        optimizer.step()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_batches_cover_the_data_once_an_epoch():
    seen = []

    def loss(model, x):
        seen.append(x[:, 0].tolist())
        return model(x).square().mean()

    run = fit(line(), loss, batch_size=5, max_epochs=3)
    assert run.steps == 9
    assert [len(rows) for rows in seen] == [5, 5, 2] * 3
    epochs = [[*seen[i], *seen[i + 1], *seen[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(epoch) == X[:, 0].tolist() for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("steps", "every"), [(1, 10), (10, 10), (24, 10), (25, 10), (26, 10), (57, 10), (1, 1), (100, 7), (60, 1000)]
)
def test_records_lie_on_the_grid_and_at_the_end(steps, every):
    run = fit(line(), max_epochs=steps, record_every=every)
    expected = sorted({*range(0, steps + 1, every), steps})
    assert run.history["step"].tolist() == expected
    assert run.history["step"].dtype == np.int64


def test_recorded_numbers_and_the_mean_loss_between_records():
    losses = []

    def loss(model, x):
        value = noisy(model, x).mean()
        losses.append(value.item())
        return value

    run = fit(
        line(), loss, max_epochs=20, record=lambda model: {"weight": float(model.weight.detach())}, record_every=10
    )
    assert run.history["weight"][0] == 0.5
    np.testing.assert_allclose(run.history["loss"][1:], [np.mean(losses[:10]), np.mean(losses[10:])], rtol=1e-14)


def test_seconds_leave_out_the_recording():
    def slow(model):
        import time

        time.sleep(0.05)
        return {}

    run = fit(line(), max_epochs=10, record=slow, record_every=1)
    assert run.seconds < 0.3 < 0.05 * 11


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_model_there():
    calls, states = [], []

    def loss(model, x):
        calls.append(1)
        states.append(weights(model))
        return noisy(model, x) + (float("inf") if len(calls) == 31 else 0.0)

    model = line()
    with pytest.raises(NonFiniteError, match=r"the loss became inf at step 31; .*smaller lr \(now 0.01\)"):
        fit(model, loss, max_epochs=60)
    assert same(weights(model), states[-1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_broken_by_the_last_step_are_not_returned():
    def loss(model, x):
        return (model.weight * 1e200 * 1e108).sqrt().mean() * 0.0 + model.bias.mean()

    model = line()
    with torch.no_grad():
        model.weight.zero_()  # the gradient of the root is infinite, the loss is not
    with pytest.raises(NonFiniteError, match="'weight' is not finite after step 1"):
        fit(model, loss, max_epochs=1)


def test_a_measured_number_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteError, match="recorded score is nan at step 0"):
        fit(line(), record=lambda model: {"score": float("nan")})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"lr": "fast"}, "lr must be a positive number"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ({"max_epochs": 0}, "max_epochs must be a whole number, 1 or more"),
        ({"max_epochs": 2.5}, "max_epochs must be a whole number"),
        ({"record_every": 0}, "between records must be a whole number"),
        ({"patience": 0}, "patience must be a whole number"),
        ({"min_improvement": -1.0}, "min_improvement must be a number of 0 or more"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds must be"),
        ({"accelerator": "tpu"}, "accelerator must be"),
        ({"monitor": "accuracy"}, "monitor 'accuracy' is not recorded; choose one of loss"),
        ({"loss": None}, "Linear has no method free_energy"),
        ({"loss": lambda model, x: 1.0}, "loss must return a tensor that depends on the parameters"),
        ({"loss": lambda model, x: x.sum()}, "loss must return a tensor that depends on the parameters"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ParameterError, match=says):
        fit(line(), **options)


def test_numpy_numbers_are_numbers():
    assert fit(line(), max_epochs=np.int64(3), lr=np.float64(0.1), seed=np.int32(1)).steps == 3


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ParameterError, match="no trainable parameters"):
        fit(nn.ReLU())


@pytest.mark.parametrize(
    ("x", "error"),
    [
        ([[1.0], [float("nan")]], NonFiniteError),
        (np.zeros((0, 1)), EmptyDataError),
        (np.zeros((2, 3, 4)), ShapeError),
    ],
)
def test_bad_data_are_refused(x, error):
    with pytest.raises(error):
        fit_gradient(line(), x, loss=noisy)


def test_a_missing_gpu_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ParameterError, match="torch finds none"):
        fit(line(), accelerator="gpu")


def test_frozen_parameters_stay():
    model = line()
    model.bias.requires_grad_(False)
    fit(model)
    assert model.bias.item() == -1.0
    assert model.weight.item() != 0.5


def test_measuring_other_names_later_is_an_error():
    recorder = Recorder(lambda model: {str(len(recorder.entries)): 1.0}, every=5)
    with pytest.raises(ParameterError, match="same names"):
        fit(line(), record=recorder)


def test_it_leaves_no_folder_and_says_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    fit(line(), progress=True)  # standard error is not a terminal here
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_training_needs_neither_lightning_nor_tensorboard():
    code = """
import sys
import girih, girih.gan, girih.training, girih.vae
vae = girih.vae.GaussVAE(girih.mlp([1, 4, 2], seed=0), seed=0)
vae.fit([[0.0, 1.0], [1.0, 0.5]], max_epochs=2, progress=False)
found = {name.split(".")[0] for name in sys.modules}
assert not found & {"lightning", "pytorch_lightning", "tensorboard"}, found
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_bar_shows_the_loss(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take the captured stream for a terminal
    fit(line(), progress=True, max_epochs=30)
    assert "loss" in capsys.readouterr().err
