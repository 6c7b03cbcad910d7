"""Quasi-Newton iterations and batches: faster, and the exact NLL never rises."""

import itertools

import numpy as np
import pytest
import torch

import girih
from girih.em import fit_em
from girih.em.iteration import INITIAL_DAMPING, Problem, epoch
from girih.em.quasi_newton import LocalModel, Pace, no_pairs, quasi_newton_step

from .conftest import KilledError, build, ones

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def never_rises(curve):
    return all(later <= earlier for earlier, later in itertools.pairwise(curve))


def problem_of(dgn, X, prior=None):
    return Problem(dgn, torch.as_tensor(X), ones(len(X)), prior)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_gradient_is_that_of_the_exact_nll(holes, noise, latent_dim):
    """Of all coordinates, against differences along random directions."""
    prior = np.array([[0.8, 0.2], [0.2, 0.6]]) if latent_dim == 2 else 0.8
    X = holes[:12]
    weights = girih.em.WeightPrior("gaussian", 1.5)
    problem = problem_of(build((latent_dim, 4, 2), noise, prior=prior), X, weights)
    now = problem.evaluate()
    local = LocalModel(problem, now, True)
    generator = torch.Generator().manual_seed(0)
    before = problem.parameters()
    for _ in range(3):
        step = 1e-4 * torch.randn(len(local.gradient), dtype=torch.float64, generator=generator)
        values = []
        for sign in (1.0, -1.0):
            assert torch.allclose(local.move(sign * step), sign * step, atol=1e-12)
            values.append(problem.evaluate().nll * 12)
            problem.restore(before)
        assert float(-local.gradient @ step) == pytest.approx((values[0] - values[1]) / 2, rel=1e-4, abs=1e-8)


def test_preconditioner_is_symmetric_and_positive(circle, noise):
    problem = problem_of(build(noise=noise), circle)
    local = LocalModel(problem, problem.evaluate(), True)
    columns = torch.stack([local.precondition(e, 0.1) for e in torch.eye(len(local.gradient)).double()])
    assert torch.allclose(columns, columns.mT, atol=1e-10)
    assert torch.linalg.eigvalsh(columns).min() > -1e-12


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_quasi_newton_never_raises_the_nll(holes, noise, latent_dim):
    problem = problem_of(build((latent_dim, 4, 2), noise), holes[:30])
    now, damping, pairs = problem.evaluate(), INITIAL_DAMPING, no_pairs()
    first = now.nll
    for _ in range(8):
        after, damping, pairs = quasi_newton_step(problem, now, damping, ("head", "noise", "hidden", "prior"), pairs)
        assert after.nll <= now.nll
        now = after
    assert now.nll < first - 0.1 and pairs.shape[1] > 0


def test_noise_stays_above_its_floor():
    """Three points, which a network can pass through: the noise goes to its floor, and no further."""
    X = np.array([[0.0, 0.0], [1.0, 0.5], [2.0, -1.0]])
    dgn = build((1, 6, 2), noise=np.ones(2))
    result = fit_em(dgn, X, n_init=1, max_iter=80, tol=0.0, noise_floor=1e-3)
    floor = 1e-3 * X.var(0)
    assert never_rises(result.curve)
    assert (dgn.noise.detach().numpy() >= floor * (1 - 1e-12)).all()


def test_it_pays():
    """With as many exact evaluations, the NLL is lower; seeds as they come."""
    X = girih.datasets.load("circle", n=200, seed=0).X
    ends = {"none": [], "quasi-newton": []}
    for seed in range(2):
        for kind, found in ends.items():
            iterations = 60 if kind == "none" else 75  # a quasi-Newton iteration costs one evaluation, not two
            found.append(
                fit_em(build((1, 8, 2)), X, n_init=1, max_iter=iterations, seed=seed, tol=0.0, acceleration=kind)
            )
    assert np.mean([r.curve[-1] for r in ends["quasi-newton"]]) < np.mean([r.curve[-1] for r in ends["none"]])
    assert all(never_rises(r.curve) for found in ends.values() for r in found)


def test_pace_follows_the_better_kind():
    pace = Pace()
    kinds = []
    for _ in range(100):
        kinds.append(pace.accelerated)
        pace = pace.after(1.0 if pace.accelerated else 0.1, 1)
    assert not any(kinds[:20]) and all(kinds[20:30]) and sum(kinds) >= 60


def test_other_priors_are_plain_em(circle):
    options = {"n_init": 1, "max_iter": 24, "tol": 0.0, "weight_prior": ("laplace", 0.5)}
    plain = fit_em(build(), circle, acceleration="none", **options)
    assert fit_em(build(), circle, **options).curve.tolist() == plain.curve.tolist()


@pytest.mark.parametrize("weight_prior", [None, ("gaussian", 2.0), ("laplace", 1.0)])
def test_batches_never_raise_the_nll(noise, weight_prior):
    X = girih.datasets.load("circle", n=150, seed=0).X
    X[::7, 0] = np.nan
    options = {"n_init": 1, "max_iter": 5, "tol": 0.0, "weight_prior": weight_prior, "learn_prior": True}
    result = fit_em(build((1, 4, 2), noise), X, batch_size=40, **options)
    assert never_rises(result.curve)
    assert result.curve[-1] < result.curve[0]


def test_batches_gain_more_in_a_pass():
    X = girih.datasets.load("circle", n=2000, seed=0).X
    whole, batches = (
        fit_em(build(), X, n_init=1, max_iter=6, tol=0.0, batch_size=size).curve[-1] for size in (None, 200)
    )
    assert batches < whole


def test_an_epoch_that_fails_leaves_no_trace(circle, monkeypatch):
    problem = problem_of(build(), circle)
    now, before = problem.evaluate(), problem.parameters()
    monkeypatch.setattr("girih.em.iteration.RATE", 50.0)
    assert epoch(problem, now, ("head", "noise", "hidden"), 16, torch.Generator().manual_seed(0)) is None
    assert all(torch.equal(p, q) for p, q in zip(problem.parameters().values(), before.values(), strict=True))


@pytest.mark.parametrize("stop_at", [9, 27, 33])
def test_killed_fit_goes_on_with_the_same_numbers(circle, tmp_path, stop_at):
    """In batches, in EM and in quasi-Newton iterations: the memory is in the checkpoint."""
    settings = {"max_iter": 36, "n_init": 1, "tol": 0.0, "batch_size": 32}
    uninterrupted = fit_em(a := build(), circle, **settings)

    def kill(iteration, nll):
        if iteration == stop_at:
            raise KilledError

    path, b = tmp_path / "fit.ckpt", build()
    with pytest.raises(KilledError):
        fit_em(b, circle, checkpoint=path, checkpoint_seconds=0.0, callback=kill, **settings)
    resumed = fit_em(b, circle, checkpoint=path, **settings)
    assert resumed.curve.tolist() == uninterrupted.curve.tolist()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    "options, message",
    [({"acceleration": "warp"}, "acceleration must be one of none, quasi-newton"), ({"batch_size": 0}, "batch_size")],
)
def test_bad_options(circle, options, message):
    with pytest.raises(girih.errors.ParameterError, match=message):
        fit_em(build(), circle, **options)
