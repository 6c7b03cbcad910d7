"""`girih.train`: gradient training of a `DGN` on its exact NLL."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.covariance import Covariance, Unconstrained
from girih.em import fit_em
from girih.errors import EmptyDataError, NonFiniteError, ParameterError, ShapeError
from girih.inference import MAX_LATENT_DIM
from girih.likelihood import Likelihood

from .helpers import check_same_history, same, weights

X = girih.datasets.load("circle", n=128, seed=0).X
NOISES = {"isotropic": 0.3, "diagonal": [0.3, 0.4], "full": [[0.3, 0.1], [0.1, 0.4]]}


def model(noise=0.3, hidden=4, seed=0):
    return girih.DGN(girih.mlp([1, hidden, 2], seed=seed), noise=noise)


def nll(dgn, x=X):
    with torch.no_grad():
        return -float(dgn().log_prob(x).mean())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("optimizer", "epochs"), [("adam", 450), ("lbfgs", 18)])
def test_it_comes_as_far_as_em_from_the_same_start(optimizer, epochs):
    start = model()
    fit_em(start, X, n_init=1, max_iter=10)
    by_em, by_gradient = copy.deepcopy(start), copy.deepcopy(start)
    em = fit_em(by_em, X, n_init=0, max_iter=100)
    run = girih.train(by_gradient, X, optimizer=optimizer, max_epochs=epochs, patience=None)
    assert run.curve[0] == pytest.approx(em.curve[0], abs=1e-8)
    assert -run.log_likelihood < em.curve[-1] + 0.05  # nats per row; EM gained more than 1 on the same way
    assert nll(by_gradient) == pytest.approx(-run.log_likelihood, abs=1e-10)
    assert run.steps == epochs and run.ended == "max_epochs" and not run.converged


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_noise_and_prior_are_trained_in_their_shape(noise, optimizer):
    dgn = model(noise)
    before = dgn.noise.detach().clone()
    run = girih.train(dgn, X, optimizer=optimizer, max_epochs=5, record_every=1, learn_prior=True)
    assert dgn.noise.shape == before.shape and not torch.equal(dgn.noise, before)
    assert dgn.prior.item() != 1.0 and isinstance(dgn.noise, nn.Parameter)
    assert -run.log_likelihood < run.curve[0] and run.held_out is None
    fixed = model(noise)
    girih.train(fixed, X, optimizer=optimizer, max_epochs=2, learn_noise=False)
    assert torch.equal(fixed.noise, before) and fixed.prior.item() == 1.0


@pytest.mark.skipif(MAX_LATENT_DIM < 2, reason="exact inference covers S = 1 only")
def test_two_latent_dimensions():
    rows = np.column_stack((X, X.prod(1)))[:20]
    dgn = girih.DGN(girih.mlp([2, 3, 3], seed=0), noise=0.5)
    run = girih.train(dgn, rows, max_epochs=3, record_every=1, learn_prior=True)
    assert -run.log_likelihood < run.curve[0] and nll(dgn, rows) == pytest.approx(-run.log_likelihood, abs=1e-8)
    assert dgn.prior.shape == (2, 2) and not torch.equal(dgn.prior, torch.eye(2, dtype=torch.float64))


def test_missing_entries_are_marginalised():
    rows = torch.as_tensor(X).clone()
    rows[::3, 0] = torch.nan
    rows[1::3, 1] = torch.nan
    dgn = model()
    run = girih.train(dgn, rows, optimizer="lbfgs", max_epochs=5)
    assert -run.log_likelihood < run.curve[0] and nll(dgn, rows) == pytest.approx(-run.log_likelihood, abs=1e-10)


def test_noise_stays_above_its_floor():
    line = np.stack((np.linspace(-2, 2, 32), np.linspace(-1, 1, 32)), 1)  # no noise at all
    for noise in NOISES.values():
        dgn = model(noise)
        girih.train(dgn, line, optimizer="lbfgs", max_epochs=8, noise_floor=1e-2)
        floor = 1e-2 * np.mean(line.var(0)) if dgn.noise.ndim == 0 else 1e-2 * line.var(0)
        above = dgn.noise.detach().numpy() - (np.diag(floor) if dgn.noise.ndim == 2 else floor)
        assert (np.linalg.eigvalsh(above) if dgn.noise.ndim == 2 else above).min() > -1e-15


def test_a_covariance_below_its_floor_starts_just_above():
    floor = torch.tensor([1.0, 2.0], dtype=torch.float64)
    value = torch.tensor([[0.5, 0.1], [0.1, 50.0]], dtype=torch.float64)
    full = Unconstrained(Covariance.full(value), floor)().matrix
    assert torch.linalg.eigvalsh(full - floor.diag()).min() > 0
    torch.testing.assert_close(full[1, 1], value[1, 1], rtol=0.01, atol=0.0)
    diagonal = Unconstrained(Covariance.diagonal([0.5, 50.0]), floor)().variances
    torch.testing.assert_close(diagonal, torch.tensor([1.001, 50.0], dtype=torch.float64))


@pytest.mark.parametrize("validation", [0.25, "rows"])
def test_the_best_held_out_parameters_are_kept(validation):
    rows = X[:40]
    held_out = X[40:] if validation == "rows" else validation
    dgn = model(hidden=16)
    run = girih.train(dgn, rows, validation=held_out, lr=0.1, max_epochs=40, record_every=1, patience=None)
    curve = run.history["held_out"]
    assert run.held_out == curve.min() and run.best_step == run.history["step"][curve.argmin()]
    if validation == "rows":
        assert nll(dgn, X[40:]) == pytest.approx(run.held_out, abs=1e-10)
    stopped = girih.train(model(hidden=16), rows, validation=held_out, lr=0.1, record_every=1, patience=5)
    assert stopped.ended == "patience" and stopped.converged


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("prior", [("gaussian", 0.1), ("laplace", 0.1)])
def test_a_weight_prior_is_that_of_em(prior):
    free, held = model(), model()
    girih.train(free, X, optimizer="lbfgs", max_epochs=5)
    run = girih.train(held, X, optimizer="lbfgs", max_epochs=5, weight_prior=prior)
    size = [sum(float(layer.weight.detach().square().sum()) for layer in d.net[::2]) for d in (free, held)]
    assert size[1] < size[0]
    again = fit_em(copy.deepcopy(held), X, weight_prior=prior, n_init=0, max_iter=1, tol=1e9)
    assert again.curve[0] == pytest.approx(run.history["penalised"].min(), abs=1e-9)


@pytest.mark.parametrize("options", [{"max_epochs": 30}, {"batch_size": 50}, {"optimizer": "lbfgs", "max_epochs": 3}])
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch, options):
    options = {"validation": 0.2, "max_epochs": 9, "record_every": 3, "seed": 3, **options}
    whole, resumed, path = model(), model(), tmp_path / "run.ckpt"
    expected = girih.train(whole, X, **options)
    calls, original = [], Likelihood.penalty

    def crashing(self):
        calls.append(1)
        if len(calls) == 19:
            raise RuntimeError("killed")
        return original(self)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Likelihood, "penalty", crashing)
        girih.train(model(), X, checkpoint=path, checkpoint_seconds=0.0, **options)
    options["checkpoint"] = path
    run = girih.train(resumed, X, **options)
    check_same_history(run.history, expected.history)
    assert same(weights(resumed), weights(whole))
    assert (run.best_step, run.held_out) == (expected.best_step, expected.held_out)
    with pytest.raises(ParameterError, match="noise_floor"):
        girih.train(model(), X, noise_floor=0.1, **options)


def test_a_value_that_is_not_finite_names_the_parameter():
    dgn = model()
    with torch.no_grad():
        dgn.net[2].bias.fill_(1e200)
    with pytest.raises(NonFiniteError):
        girih.train(dgn, X, max_epochs=3)
    dgn = model()
    handle = dgn.net[0].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match=r"parameter 'net\.0\.weight' is not finite after step 1; .*smaller lr"):
        girih.train(dgn, X, max_epochs=3)
    handle.remove()
    assert torch.isfinite(dgn.net[0].weight).all()  # the best recorded parameters
    with pytest.raises(NonFiniteError, match=r"parameter 'noise' left the range"):
        girih.train(model(), X, lr=1e4, max_epochs=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "sgd"}, ParameterError, "'adam' or 'lbfgs'; got 'sgd'"),
        ({"optimizer": "lbfgs", "batch_size": 10}, ParameterError, "needs all rows"),
        ({"lr": 0.0}, ParameterError, "lr"),
        ({"max_epochs": 0}, ParameterError, "max_epochs"),
        ({"validation": 1.0}, ParameterError, "leaves rows on both sides"),
        ({"validation": [[1.0, 2.0, 3.0]]}, ShapeError, "3 columns"),
        ({"weight_prior": ("uniform", 1.0)}, ParameterError, "no gradient"),
        ({"noise_floor": 0.0}, ParameterError, "noise_floor"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        girih.train(model(), X, **options)


def test_refusals_of_models_and_data():
    with pytest.raises(ParameterError, match=r"pass est\.dgn_"):
        girih.train(girih.DGNEstimator(), X)
    noise = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ParameterError, match="computed elsewhere"):
        girih.train(model(noise.exp()), X)
    with pytest.raises(EmptyDataError, match=r"columns \[1\]"):
        girih.train(model(), [[1.0, float("nan")]] * 3)
