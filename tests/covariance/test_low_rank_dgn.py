"""A DGN with a low-rank noise is the DGN with the same covariance given in full."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

import girih
from girih.em import fit_em

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

D = 4
NOISE = girih.Covariance.low_rank(
    torch.randn(D, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), [0.1, 0.2, 0.05, 0.3]
)


def pair(S, width=4):
    return [girih.DGN(girih.mlp([S, width, D], seed=1), noise=noise) for noise in (NOISE, NOISE.matrix)]


def rows(n=12, missing=False, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, D)) * np.where(np.arange(n) % 4 == 3, 30.0, 1.0)[:, None]  # a quarter of them far away
    if missing:
        X[rng.random(X.shape) < 0.3] = np.nan
        X[0] = np.nan
    return torch.as_tensor(X)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("S", [1, 2, 3])
def test_everything_is_that_of_the_full_covariance(S, missing):
    low, full = pair(S)
    x = rows(12 if S < 3 else 4, missing)
    a, b = low().log_prob(x), full().log_prob(x)
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
    for name in ("mean", "covariance"):
        first, second = (getattr(dgn.posterior(x), name) for dgn in (low, full))
        assert torch.allclose(first, second, rtol=1e-8, atol=1e-9), name
    assert torch.allclose(low.impute(x), full.impute(x), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert torch.allclose(low().score(x), full().score(x), rtol=1e-9, atol=1e-9)
        assert torch.allclose(low().denoise(x), full().denoise(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("S", [1, 2])
def test_gradients_are_those_of_the_full_covariance(S, missing):
    low, full = pair(S)
    x = rows(missing=missing)
    low().log_prob(x).sum().backward()
    matrix = low.noise_covariance.matrix
    full = girih.DGN(full.net, noise=matrix)  # a matrix that remembers the factor
    expected = torch.autograd.grad(full().log_prob(x).sum(), (low.noise, low.noise_factor, *full.net.parameters()))
    found = (low.noise.grad, low.noise_factor.grad, *(p.grad for p in low.net.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8 * float(other.abs().max()))


@pytest.mark.parametrize("options", [{}, {"batch_size": 10}, {"weight_prior": ("gaussian", 1.0)}], ids=str)
@pytest.mark.parametrize(("S", "missing"), [(1, False), (1, True), (2, False)])
def test_em_never_raises_the_nll(S, missing, options):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2)) @ rng.normal(size=(2, D)) + 0.2 * rng.normal(size=(40, D))
    if missing:
        X[rng.random(X.shape) < 0.2] = np.nan
    dgn = girih.DGN(girih.mlp([S, 3, D], seed=0), noise=NOISE)
    result = fit_em(dgn, X, n_init=1, max_iter=24 if S == 1 else 6, tol=0.0, **options)
    assert all(later <= earlier for earlier, later in itertools.pairwise(result.curve))
    # under a weight prior the curve begins only after iterations without it
    assert result.curve[-1] < result.curve[0] - (0.02 if "weight_prior" in options else 0.3)
    assert dgn.noise_factor.detach().abs().max() > 0.05
    assert -result.log_likelihood == pytest.approx(-float(dgn().log_prob(X).mean().detach()), abs=1e-9)


def test_saved_copied_and_pickled(tmp_path):
    low, _ = pair(1)
    girih.save(low, tmp_path / "model")
    x, expected = rows(), low().log_prob(rows())
    for other in (girih.load(tmp_path / "model"), copy.deepcopy(low), pickle.loads(pickle.dumps(low))):
        assert torch.equal(other().log_prob(x), expected) and other.noise_covariance.kind == "low_rank"
    assert sorted(set(low.state_dict()) - {f"net.{k}" for k in low.net.state_dict()}) == [
        *("noise", "noise_factor", "prior")
    ]
    assert "noise=low_rank" in repr(low)
    assert "noise_factor" not in pair(1)[1].state_dict()


def test_draws_and_their_gradient():
    low, _ = pair(1)
    draws = low().rsample((200_000,), seed=0)
    z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = (draws - low.trace(z)).detach()
    assert torch.allclose(spread.mT @ spread / len(spread), NOISE.matrix, atol=0.05)
    draws.square().sum().backward()
    assert low.noise_factor.grad is not None and torch.isfinite(low.noise_factor.grad).all()


def test_the_distribution_follows_the_factor():
    low, _ = pair(1)
    p, x = low(), rows()
    before = p.log_prob(x).detach()
    with torch.no_grad():
        low.noise_factor.mul_(2.0)
    assert not torch.allclose(p.log_prob(x), before)


def test_another_kind_cannot_be_assigned():
    low, _ = pair(1)
    with pytest.raises(girih.errors.ParameterError, match="make a new DGN"):
        low.noise_covariance = girih.Covariance.scalar(1.0, D)


def test_gradient_training_of_a_low_rank_noise():
    low, _ = pair(1)
    X = low().sample((60,), seed=0).numpy()
    before = float(low().log_prob(X).mean().detach())
    girih.train(low, X, max_epochs=5)
    assert float(low().log_prob(X).mean().detach()) > before
