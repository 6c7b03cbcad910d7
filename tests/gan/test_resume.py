"""Adversarial runs that are killed or interrupted go on to the same numbers, optimizers of both players included."""

import signal

import pytest
import torch

from girih.errors import ParameterError
from girih.gan import losses
from girih.training import Checkpoint

from ..training.helpers import check_same_history, same, weights
from .test_gan import fit, make, rows

OPTIONS = {"batch_size": 15, "max_epochs": 12, "record_every": 7, "lr": 1e-3}


class CrashError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 5, 28, 40])
@pytest.mark.parametrize("loss", ["non_saturating", "wasserstein"])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch, loss, at):
    x, path = rows(55), tmp_path / "run.ckpt"
    whole, resumed = make(loss), make(loss)
    options = {**OPTIONS, "discriminator_steps": 3 if loss == "wasserstein" else 1}
    expected = fit(whole, x, **options)
    name = "wasserstein_critic" if loss == "wasserstein" else "logistic_discriminator"
    calls, original = [], getattr(losses, name)

    def crashing(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise CrashError
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(CrashError):
        patch.setattr(losses, name, crashing)
        fit(make(loss), x, checkpoint=path, checkpoint_seconds=0.0, **options)
    torch.rand(7)  # the state of the global generator must not matter
    run = fit(resumed, x, checkpoint=path, checkpoint_seconds=0.0, **options)
    check_same_history(run.history, expected.history)
    assert same(weights(resumed), weights(whole))


def test_the_optimizers_of_both_players_are_kept(tmp_path, monkeypatch):
    x, path, whole, resumed = rows(55), tmp_path / "run.ckpt", make(), make()
    expected = fit(whole, x, **OPTIONS)
    fit(resumed, x, **{**OPTIONS, "max_epochs": 5}, checkpoint=path)
    saved = Checkpoint(path).read()
    assert [len(state["state"]) for state in saved["optimizers"]] == [6, 2]  # parameters of critic and generator
    assert all(int(entry["step"]) == 20 for state in saved["optimizers"] for entry in state["state"].values())
    check_same_history(fit(resumed, x, checkpoint=path, **OPTIONS).history, expected.history)
    assert same(weights(resumed), weights(whole))
    # a checkpoint without the generator's optimizer does not give the same numbers: the test above can fail
    saved["optimizers"][1]["state"] = {}
    monkeypatch.setattr(Checkpoint, "read", lambda self: saved)
    other = make()
    fit(other, x, **OPTIONS, checkpoint=path)
    assert not same(weights(other), weights(whole))


def test_ctrl_c_ends_the_run_and_it_goes_on_later(tmp_path, monkeypatch):
    x, path, whole, model = rows(55), tmp_path / "run.ckpt", make(), make()
    expected = fit(whole, x, **OPTIONS)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        calls, original = [], losses.logistic_generator

        def interrupting(*arguments):
            calls.append(1)
            if len(calls) == 17:
                signal.raise_signal(signal.SIGINT)
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(losses, "logistic_generator", interrupting)
            run = fit(model, x, checkpoint=path, **OPTIONS)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert (run.ended, run.steps) == ("interrupted", 17)
    check_same_history(fit(model, x, checkpoint=path, **OPTIONS).history, expected.history)
    assert same(weights(model), weights(whole))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 2e-3}, "lr="),
        ({"betas": (0.1, 0.9)}, "betas="),
        ({"discriminator_steps": 2}, "discriminator_steps=1, but now discriminator_steps=2"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, says):
    path = tmp_path / "run.ckpt"
    fit(make(), rows(30), **{**OPTIONS, "max_epochs": 1}, checkpoint=path)
    with pytest.raises(ParameterError, match=says):
        fit(make(), rows(30), **{**OPTIONS, **change}, checkpoint=path)
    with pytest.raises(ParameterError, match="gan='non_saturating', but now gan='wasserstein'"):
        fit(make("wasserstein"), rows(30), **OPTIONS, checkpoint=path)


def test_a_watched_number_ends_a_run_and_the_best_networks_are_kept():
    x, counts = rows(60), []

    def record(model):
        counts.append(weights(model))
        return {"gap": [5.0, 4.0, 2.0, 3.0, 3.0, 3.0][min(len(counts) - 1, 5)]}

    gan = make()
    run = fit(gan, x, **{**OPTIONS, "record_every": 4}, record=record, monitor="gap", patience=3, keep_best=True)
    assert run.ended == "patience" and run.history["step"].tolist() == [0, 4, 8, 12, 16, 20]
    assert same(weights(gan), counts[2])
