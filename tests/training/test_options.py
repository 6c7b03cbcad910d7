"""One vocabulary: the same options and results for everything that is trained, and the names of before."""

import dataclasses
import inspect
import math
import pickle

import numpy as np
import pytest
import torch

import girih
from girih.errors import CheckpointError, ModelFileError, ParameterError
from girih.flows import DGNFlow, Flow, RealNVP, fit_flow
from girih.gan import GAN
from girih.training import Checkpoint, Recorder, fit_gradient, seed_of_run
from girih.vae import VAE, GaussVAE

from .helpers import X, fit, line, same, weights

ROWS = girih.datasets.load("moons", n=60, seed=0).X
FIELDS = {field.name: field.default for field in dataclasses.fields(girih.FitOptions)}
FITS = {
    "fit_gradient": fit_gradient,
    "train": girih.train,
    "GAN": GAN.fit,
    "Flow": Flow.fit,
    "DGNFlow": DGNFlow.fit,
    "VAE": VAE.fit,
}


def dgn():
    return girih.DGN(girih.mlp([1, 3, 2], seed=0), noise=0.5)


@pytest.mark.parametrize("name", FITS)
def test_every_fit_has_all_options_with_the_same_defaults(name):
    parameters = inspect.signature(FITS[name]).parameters
    assert {field: parameters[field].default for field in FIELDS} == FIELDS
    assert all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


@pytest.mark.parametrize(
    "call",
    [
        lambda **o: fit_gradient(line(), X, **o),
        lambda **o: girih.train(dgn(), X, **o),
        lambda **o: GAN(girih.mlp([1, 2], seed=0), hidden=(4,), seed=0).fit(ROWS, **o),
        lambda **o: RealNVP(2, seed=0).fit(ROWS, **o),
        lambda **o: fit_flow(RealNVP(2, seed=0), ROWS, **o),
        lambda **o: DGNFlow.square(2, depth=1).fit(ROWS, **o),
        lambda **o: GaussVAE([1, 3, 2], seed=0).fit(ROWS, **o),
        lambda **o: girih.em.fit_em(dgn(), ROWS, **o),
        lambda **o: girih.select_model(ROWS, **o),
    ],
)
def test_a_typo_is_pythons_own_error(call):
    with pytest.raises(TypeError, match=r"(fit\w*|train|select_model)\(\) got an unexpected .*'patienc'"):
        call(patienc=3)


def test_options_are_short_to_read_and_are_passed_on():
    options = girih.FitOptions(max_epochs=3, validation=X[:4], progress=False)
    assert repr(options) == "FitOptions(max_epochs=3, validation=rows (4, 1), progress=False)"
    assert repr(girih.FitOptions()) == "FitOptions()"
    result = fit_gradient(line(), X, loss=lambda model, x: model(x).square(), **vars(options))
    assert result.steps == 3 and pickle.loads(pickle.dumps(options)).max_epochs == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.lr = 1.0


@pytest.mark.parametrize(
    ("given", "steps", "ended"),
    [
        ({"max_epochs": 2}, 6, "max_epochs"),
        ({"max_steps": 5}, 5, "max_steps"),
        ({"max_epochs": 2, "max_steps": 5}, 5, "max_steps"),
        ({"max_epochs": 2, "max_steps": 50}, 6, "max_epochs"),
    ],
)
def test_the_lower_of_two_lengths_counts(given, steps, ended):
    options = {"batch_size": 5, "progress": False, "loss": lambda model, x: model(x).square(), **given}
    result = fit_gradient(line(), X, **options)
    assert (result.steps, result.ended) == (steps, ended)


def test_any_loss_can_be_watched_on_held_out_rows():
    def loss(model, x):
        return (model(x) - 3.0 * x - torch.randn_like(x)).square()

    model = line()
    result = fit(model, loss, validation=0.25, lr=0.3, max_epochs=40, record_every=1, patience=3)
    curve = result.history["held_out"]
    assert result.held_out == curve.min() and result.best_step == curve.argmin() and len(curve) == result.steps + 1
    rows = X[:2]
    other = fit(line(), loss, validation=rows, max_epochs=1, keep_best=False)
    assert other.best_step == 1 and other.held_out == other.history["held_out"][-1]
    same_draws = fit(line(), loss, validation=rows, lr=1e-300, record_every=1, max_epochs=3).history["held_out"]
    assert (same_draws == same_draws[0]).all()


def test_a_gan_is_watched_on_held_out_rows_where_it_is_asked_for():
    gan = GAN(girih.mlp([1, 3, 2], seed=0), hidden=(4,), seed=0)
    result = gan.fit(ROWS, validation=0.2, max_epochs=5, record_every=1, progress=False)
    assert result.best_step == result.steps and len(result.history["held_out"]) == result.steps + 1
    gan = GAN(girih.mlp([1, 3, 2], seed=0), hidden=(4,), seed=0)
    options = {"monitor": "held_out", "keep_best": True, "lr": 0.05}
    result = gan.fit(ROWS, validation=0.2, max_epochs=20, record_every=1, progress=False, **options)
    assert result.held_out == result.history["held_out"].min()


def test_what_the_user_records_is_of_the_model_itself():
    model, seen = dgn(), []
    recorder = Recorder(lambda given: seen.append(given) or {"noise": float(given.noise.detach())}, every=2)
    result = girih.train(model, ROWS, max_epochs=4, record=recorder, validation=0.2, keep_best=False)
    assert all(given is model for given in seen) and result.history["step"].tolist() == [0, 2, 4]
    assert result.history["noise"][0] == 0.5 and result.history["noise"][-1] == float(model.noise.detach())
    flow = RealNVP(2, transforms=1, seed=0)
    record = lambda given: {"spread": float(given().sample((100,), seed=0).std())}  # noqa: E731
    result = flow.fit(ROWS, max_steps=8, record=record, record_every=4, validation=None, progress=False)
    assert result.history["spread"][-1] == record(flow)["spread"]


def test_a_result_is_one_line_and_knows_the_old_names():
    result = girih.train(dgn(), ROWS, max_epochs=3, record_every=1)
    assert repr(result).startswith(f"FitResult({result.curve[-1]:.5g} after 3 steps in") and len(repr(result)) < 80
    assert result.curve is result.history["nll"] and not result.converged
    with pytest.warns(DeprecationWarning, match=r"FitResult\.nll_curve is deprecated .*; use FitResult\.curve"):
        assert result.nll_curve is result.curve
    with pytest.warns(DeprecationWarning, match="best_step"):
        assert result.nll == result.curve[result.best_step] == -result.log_likelihood
    with pytest.warns(DeprecationWarning, match=r"FitResult\.steps"):
        assert result.n_iter == 3
    with pytest.warns(DeprecationWarning, match=r"FitResult\.ended"):
        assert result.interrupted is False


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (girih.training, "TrainingRun"),
        (girih.training, "LikelihoodRun"),
        (girih.flows, "FlowRun"),
        (girih.em, "EMResult"),
    ],
)
def test_old_results_are_the_new_one(module, name):
    with pytest.warns(DeprecationWarning, match=f"{name} is deprecated .*; use girih.FitResult"):
        assert getattr(module, name) is girih.FitResult
    with pytest.warns(DeprecationWarning, match=r"use girih\.train"):
        assert girih.training.train is girih.train
    with pytest.raises(AttributeError, match="no attribute 'Runs'"):
        _ = module.Runs


@pytest.mark.parametrize("make", [lambda: RealNVP(2, transforms=1, seed=0), lambda: GaussVAE([1, 3, 2], seed=0)])
def test_old_keywords_are_the_new_ones(make):
    old, new = make(), make()
    with pytest.warns(DeprecationWarning, match=r"fit\(steps=\.\.\.\) is deprecated .*; use fit\(max_steps=\.\.\.\)"):
        old.fit(ROWS, steps=8, validation=None, progress=False)
    new.fit(ROWS, max_steps=8, validation=None, progress=False)
    assert same(weights(old), weights(new))
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        old.fit(ROWS, steps=8, max_steps=9, progress=False)


def test_a_checkpoint_keeps_every_plain_value(tmp_path):
    contents = {
        "nothing": None,
        "numbers": [1, -(2**80), 0.1, math.inf, True],
        "pair": (1.5, ["a", ()]),
        "by number": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "empty": torch.zeros(0, 2),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "numpy": np.float64(0.3),
    }
    saved = Checkpoint(tmp_path / "a" / "run.ckpt", {"lr": 0.1, "seed": 2**70})
    assert saved.read() is None
    saved.write({**contents, "unknown": math.nan})
    found = saved.read()
    assert math.isnan(found.pop("unknown"))
    assert found.keys() == contents.keys() and found["pair"] == contents["pair"] and found["numpy"] == 0.3
    assert found["numbers"] == contents["numbers"] and found["numbers"][4] is True
    assert found["by number"].keys() == {0, 1} and found["by number"][0]["step"].item() == 3.0
    assert found["empty"].shape == (0, 2) and torch.equal(found["bytes"], contents["bytes"])
    assert seed_of_run(None, saved.path) == 2**70
    for kind in (CheckpointError, ModelFileError, ParameterError):
        with pytest.raises(kind, match=r"lr=0\.1, but now lr=0\.2"):
            Checkpoint(saved.path, {"lr": 0.2}).read()
    with pytest.raises(ParameterError, match="plain values, no function"):
        saved.write({"loss": lambda: 0.0})


def test_a_checkpoint_of_em_is_not_one_of_a_gradient_run(tmp_path):
    path = tmp_path / "run.ckpt"
    girih.em.fit_em(dgn(), ROWS, n_init=0, max_iter=40, tol=10.0, checkpoint=path)
    with pytest.raises(CheckpointError, match="belongs to a run with"):
        girih.train(dgn(), ROWS, max_epochs=2, checkpoint=path)


def test_em_follows_torch_without_a_seed(tmp_path):
    curves = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        curves.append(
            girih.em.fit_em(dgn(), ROWS, n_init=1, init="random", max_iter=40, tol=0.1, seed=None).curve.tolist()
        )
    assert curves[0] == curves[1] != curves[2]
