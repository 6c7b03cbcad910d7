"""EM of generators that are no chains: convolutions, branches, maxima, layers that are used twice."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.em import count_parameters, fit_em
from girih.em.iteration import Problem
from girih.em.jacobian import JacobianSystem
from girih.em.normal_equations import HiddenSystem, hidden_layers
from girih.inference import MAX_LATENT_DIM
from girih.networks import Maxout

from .conftest import build, ones

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LATENT_DIMS = range(1, MAX_LATENT_DIM + 1)


class Residual(nn.Module):
    """Two branches that are added."""

    def __init__(self, latent_dim):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(latent_dim, 3), nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, z):
        h = nn.functional.leaky_relu(self.first(z), 0.1)
        return self.last(h + nn.functional.leaky_relu(self.second(h), 0.1))


def convolution(latent_dim):
    """A decoder of 8 x 8 images; there is no head."""
    return nn.Sequential(
        *(nn.Linear(latent_dim, 2), nn.LeakyReLU(0.1), nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 2, 2)),
        *(nn.LeakyReLU(0.1), nn.ConvTranspose2d(2, 1, 5, 3)),
    )


def pooled(latent_dim):
    return nn.Sequential(
        *(nn.Linear(latent_dim, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1), nn.MaxPool1d(2)),
        *(nn.Flatten(), nn.Linear(4, 4)),
    )


def maxout(latent_dim):
    return nn.Sequential(nn.Linear(latent_dim, 6), Maxout(2), nn.Linear(3, 4))


def twice(latent_dim):
    layer = nn.Linear(3, 3)
    return nn.Sequential(
        *(nn.Linear(latent_dim, 3), nn.LeakyReLU(0.1), layer, nn.LeakyReLU(0.1), layer, nn.LeakyReLU(0.1)),
        nn.Linear(3, 4),
    )


def normalised(latent_dim):
    return nn.Sequential(nn.Linear(latent_dim, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 4)).eval()


NETS = {f.__name__: f for f in (Residual, convolution, pooled, maxout, twice, normalised)}


# three dimensions take seconds for an evaluation: the quick ones are always run
CASES = [
    pytest.param(name, S, marks=() if S < 3 or name in ("normalised", "maxout") else pytest.mark.slow)
    for name in NETS
    for S in LATENT_DIMS
]


def make(name, latent_dim=1, noise="diagonal"):
    """A model and rows for it."""
    torch.manual_seed(1)
    net = NETS[name](latent_dim).double()
    if name == "convolution":
        X = girih.datasets.load("digits").X[:24]
    else:
        X = np.random.default_rng(0).normal(size=(24, 4)) @ np.diag([1.0, 0.7, 0.4, 0.2]) + 0.5
    D = X.shape[1]
    start = {"isotropic": 0.5, "diagonal": np.linspace(0.3, 0.6, D), "full": 0.1 + 0.4 * np.eye(D)}[noise]
    return girih.DGN(net, noise=start), X


def problem_of(dgn, X, prior=None):
    return Problem(dgn, torch.as_tensor(X), ones(len(X)), prior)


def system_of(problem):
    now = problem.evaluate()
    return JacobianSystem(problem.dgn, problem.trained, now.model, now.partition, now.statistics, problem.prior)


@pytest.mark.parametrize("name, latent_dim", CASES)
def test_curve_never_rises(name, latent_dim):
    dgn, X = make(name, latent_dim)
    kept = dgn.net[1].weight.detach().clone() if name == "normalised" else None
    options = {"n_init": 1, "tol": 0.0, "max_iter": 7 - 2 * latent_dim, "weight_prior": ("gaussian", 3.0)}
    result = fit_em(dgn, X, learn_prior=True, **options)
    assert all(later <= earlier for earlier, later in itertools.pairwise(result.curve))
    assert result.curve[-1] < result.curve[0] - 0.01
    assert -result.log_likelihood == pytest.approx(-float(dgn().log_prob(X).mean().detach()), abs=1e-9)
    assert all(isinstance(p, nn.Parameter) for p in dgn.net.parameters())
    if kept is not None:
        assert torch.equal(dgn.net[1].weight, kept)


@pytest.mark.parametrize("name, latent_dim", CASES)
def test_gradient_is_that_of_the_exact_nll(name, latent_dim):
    """Fisher's identity, against autograd."""
    dgn, X = make(name, latent_dim, "full" if name == "maxout" else "isotropic" if name == "twice" else "diagonal")
    problem = problem_of(dgn, X)
    system = system_of(problem)
    dgn().log_prob(X).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in problem.trained.hidden.values()])
    assert torch.allclose(system.gradient, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("latent_dim", LATENT_DIMS)
def test_a_chain_moves_the_same_way(noise, latent_dim):
    dgn = build((latent_dim, 3, 3, 2), noise)
    X = np.random.default_rng(0).normal(size=(10, 2))
    problem = problem_of(dgn, X, girih.em.WeightPrior("gaussian", 1.5))
    now = problem.evaluate()
    chain = HiddenSystem(now.model, now.statistics, hidden_layers(dgn.trace, now.partition), problem.prior)
    generic = JacobianSystem(dgn, problem.trained, now.model, now.partition, now.statistics, problem.prior)
    expected = {id(p): change for p, change in chain.changes(chain.direction(1e-2))}
    for parameter, change in generic.changes(generic.direction(1e-2)):
        assert torch.allclose(change, expected[id(parameter)], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name, kind", [("twice", "isotropic"), ("maxout", "full"), ("convolution", "diagonal")])
def test_products_agree_with_the_matrix(monkeypatch, name, kind):
    """Without the matrix: the same products, the same step up to a tolerance, and a diagonal of the right size."""
    dgn, X = make(name, noise=kind)
    problem = problem_of(dgn, X)
    dense = system_of(problem)
    assert dense.dense is not None
    monkeypatch.setattr("girih.em.jacobian.DENSE_LIMIT", 0)
    sparse = system_of(problem)
    v = torch.randn(sparse.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(sparse.times(v), dense.dense @ v, rtol=1e-9, atol=1e-9 * float(dense.dense.abs().max()))
    for estimate, exact in zip(sparse.split(sparse.diagonal), dense.split(dense.diagonal), strict=True):
        assert 0.3 < float(estimate.mean() / exact.mean()) < 3.0
    monkeypatch.setattr(JacobianSystem, "_tolerance", 1e-8)
    monkeypatch.setattr(JacobianSystem, "_steps", 500)
    sparse.diagonal = dense.diagonal
    assert torch.allclose(sparse.direction(0.1), dense.direction(0.1), rtol=1e-4, atol=1e-6)


def test_fits_without_the_matrix(monkeypatch):
    monkeypatch.setattr("girih.em.jacobian.DENSE_LIMIT", 0)
    dgn, X = make("Residual")
    curve = fit_em(dgn, X, n_init=1, tol=0.0, max_iter=6).curve
    assert all(later <= earlier for earlier, later in itertools.pairwise(curve)) and curve[-1] < curve[0]


def test_starts_depend_on_the_seed_alone():
    first, second, other = (make("convolution") for _ in range(3))
    curves = []
    for (dgn, X), seed in ((first, 3), (second, 3), (other, 4)):
        torch.manual_seed(len(curves))  # the global generator has no say, and is left as it was
        before = torch.get_rng_state()
        curves.append(fit_em(dgn, X, n_init=2, init_iter=1, max_iter=2, tol=0.0, seed=seed).curve.tolist())
        assert torch.equal(torch.get_rng_state(), before)
    assert curves[0] == curves[1] != curves[2]


def test_only_smooth_priors():
    dgn, X = make("maxout")
    with pytest.raises(girih.errors.ParameterError, match="needs a chain of Linear layers"):
        fit_em(dgn, X, weight_prior=("laplace", 1.0))


def test_parameters_are_counted():
    """Shared layers once, and a diagonal noise; a chain has a free scale for each hidden unit."""
    assert count_parameters(make("twice")[0]) == 6 + 12 + 16 + 4 - 9
    assert count_parameters(make("Residual")[0]) == 6 + 12 + 16 + 4
