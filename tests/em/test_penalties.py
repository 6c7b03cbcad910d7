"""The kink ridge and the noise prior: against quadrature, finite differences, their limits, and that nothing rises."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import FactorAnalysis

import girih
from girih.em import fit_em
from girih.em.iteration import Problem
from girih.em.penalties import penalised
from girih.em.quasi_newton import LocalModel

from .conftest import build, ones

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::girih.em.OverfitWarning"),
]

RIDGE = 0.7
LOW_RANK = girih.Covariance.low_rank([[0.3], [-0.2]], [0.2, 0.4])


def problem(dgn, X, ridge=RIDGE, noise_prior=None):
    made = Problem(dgn, torch.as_tensor(X), ones(len(X)))
    made.kink_ridge, made.noise_prior = ridge, noise_prior
    return made


def penalty(dgn, X, **options):
    now = problem(dgn, X, **options).evaluate()
    return len(X) * (now.nll + now.log_likelihood)


def bends_by_quadrature(dgn):
    """`E |noise^-1/2 (g - best affine fit of g)|^2` on a fine grid of the prior."""
    S = dgn.latent_dim
    line = torch.linspace(-9.0, 9.0, 40_001 if S == 1 else 1_201, dtype=torch.float64)
    u = torch.cartesian_prod(*[line] * S).reshape(-1, S)
    weight = torch.exp(-0.5 * u.square().sum(1))
    weight = weight / weight.sum()
    z = u @ torch.linalg.cholesky(dgn.prior.detach()).mT
    with torch.no_grad():
        g = dgn.trace(z)
    one = torch.cat((z, torch.ones(len(z), 1)), 1)
    affine = torch.linalg.solve(one.mT @ (weight[:, None] * one), one.mT @ (weight[:, None] * g))
    left = g - one @ affine
    return float(weight @ (left * torch.linalg.solve(dgn.noise_covariance.matrix.detach(), left.mT).mT).sum(1))


@pytest.mark.parametrize(
    "sizes, prior", [((1, 5, 2), [[2.5]]), ((1, 4, 3, 2), None), ((2, 4, 2), [[1.0, 0.6], [0.6, 2.0]])]
)
def test_the_ridge_is_the_distance_from_the_best_affine_map(circle, noise, sizes, prior):
    dgn = build(sizes, noise, prior=prior)
    found = penalty(dgn, circle[:4])
    assert found == pytest.approx(0.5 * RIDGE * bends_by_quadrature(dgn), rel=1e-5)
    assert found > 1e-3


def test_the_ridge_of_an_affine_generator_is_nothing(circle):
    """Units that never bend where the prior is, whatever their slope."""
    dgn = build((1, 4, 2))
    with torch.no_grad():
        dgn.net[0].bias.fill_(40.0)
        dgn.net[2].weight.mul_(5.0)
    assert penalty(dgn, circle) == pytest.approx(0.0, abs=1e-12)
    assert penalty(build((1, 2)), circle) == pytest.approx(0.0, abs=1e-12)


def test_the_ridge_knows_the_function_alone(circle):
    """Units rescaled and in another order: the same generator, the same penalty."""
    dgn, other = build((1, 5, 2), seed=3), build((1, 5, 2), seed=3)
    order, scale = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([0.1, 3.0, 7.0, 1.0, 20.0]).double()
    with torch.no_grad():
        first, last = other.net[0], other.net[2]
        first.weight.copy_((first.weight * scale[:, None])[order])
        first.bias.copy_((first.bias * scale)[order])
        last.weight.copy_((last.weight / scale)[:, order])
    assert penalty(other, circle) == pytest.approx(penalty(dgn, circle), rel=1e-12)


@pytest.mark.parametrize("kind", [0.3, np.array([0.2, 0.5]), np.array([[0.4, 0.1], [0.1, 0.3]]), LOW_RANK])
@pytest.mark.parametrize("sizes", [(1, 4, 2), (1, 3, 3, 2), (2, 3, 2)])
def test_gradients_have_the_penalties(circle, kind, sizes):
    """The gradient that quasi-Newton steps follow, in every coordinate, against central differences."""
    dgn = build(sizes, kind, seed=1)
    X, U = circle[:12], torch.tensor([0.3, 0.05], dtype=torch.float64)
    at = problem(dgn, X, noise_prior=U)
    now = at.evaluate()
    local = LocalModel(at, now, False)
    before = at.parameters()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(len(local.gradient), dtype=torch.float64, generator=generator)
        values = []
        for length in (1e-5, -1e-5):
            at.restore(before)
            local.move(length * direction)
            values.append(-len(X) * at.evaluate().nll)
        at.restore(before)
        slope = (values[0] - values[1]) / 2e-5
        assert float(local.gradient @ direction) == pytest.approx(slope, rel=2e-6, abs=1e-5)


def test_the_last_map_is_the_best_for_what_the_rows_would_be(circle):
    """M-step of W against a general minimiser of the expected penalised square, whatever the noise."""
    dgn = build((1, 4, 2), np.array([[0.4, 0.1], [0.1, 0.3]]))
    with torch.no_grad():
        x = torch.as_tensor(circle)
        _, plain = girih.inference.accumulate(dgn.model(dgn.partition), x, ones(len(x)))
        s, _ = penalised(dgn.model(dgn.partition), plain, RIDGE, None)
    P = (s.features - plain.features)[:-1, :-1]
    W = dgn.net[2].weight.detach()
    change = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    precision = torch.linalg.inv(dgn.noise.detach())

    def loss():
        rows = (precision * (change @ plain.features @ change.mT - 2.0 * plain.outer @ change.mT)).sum()
        moved = W + change[:, :-1]
        return 0.5 * rows + 0.5 * (precision * (moved @ P @ moved.mT)).sum()

    solver = torch.optim.LBFGS(
        [change], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    solver.step(closure)
    found = girih.em.mstep.head_change(dgn.model(dgn.partition), s, True, None)
    assert torch.allclose(found, change.detach(), atol=1e-6)


@pytest.mark.parametrize("acceleration", ["none", "quasi-newton"])
@pytest.mark.parametrize("kind", [0.3, np.array([0.2, 0.5]), np.array([[0.4, 0.1], [0.1, 0.3]]), LOW_RANK])
@pytest.mark.parametrize("init", ["auto", "random"])
def test_the_penalised_nll_never_rises(holes, kind, acceleration, init):
    dgn = build((1, 5, 2), kind)
    options = {"kink_ridge": 0.05, "noise_prior": 0.5, "acceleration": acceleration, "init": init}
    result = fit_em(dgn, holes, n_init=2, init_iter=5, max_iter=40, tol=0.0, **options)
    assert all(later <= earlier for earlier, later in itertools.pairwise(result.curve))
    variance = torch.as_tensor(np.nanvar(holes, 0))
    if dgn.noise_covariance.kind == "scalar":
        variance = variance.mean().expand(2)
    more = 0.25 * float(variance @ torch.linalg.inv(dgn.noise_covariance.matrix.detach()).diagonal())
    more += 0.025 * bends_by_quadrature(dgn)
    assert result.curve[-1] == pytest.approx(-result.log_likelihood + more / 64, abs=2e-5)


@pytest.mark.parametrize("sizes", [(2, 3, 2), (1, 3, 3, 2), (1, 2)])
@pytest.mark.parametrize("weight_prior", [None, ("gaussian", 1.0), ("laplace", 0.5)])
def test_nothing_rises_with_a_weight_prior_or_in_planes(circle, sizes, weight_prior):
    options = {"kink_ridge": 0.2, "noise_prior": 0.1, "weight_prior": weight_prior, "batch_size": 30}
    result = fit_em(build(sizes), circle[:40], n_init=2, init_iter=3, max_iter=8, tol=0.0, **options)
    assert all(later <= earlier for earlier, later in itertools.pairwise(result.curve))


def test_networks_of_any_kind_may_have_the_penalties(circle):
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(1, 2).double(), torch.nn.Linear(1, 2).double()

        def forward(self, z):
            return torch.relu(self.a(z)) + self.b(z)

    torch.manual_seed(0)
    dgn = girih.DGN(Residual(), noise=0.3)
    assert penalty(dgn, circle) == pytest.approx(0.5 * RIDGE * bends_by_quadrature(dgn), rel=1e-5)
    result = fit_em(dgn, circle, n_init=1, max_iter=10, tol=0.0, kink_ridge=0.1, noise_prior=0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(result.curve))


def test_an_endless_ridge_is_factor_analysis():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 1)) @ rng.normal(size=(1, 4)) + rng.normal(size=(300, 4)) * [0.3, 0.5, 0.4, 0.6]
    est = girih.DGNEstimator(hidden=(4,), noise="diagonal", kink_ridge=1e9, max_iter=500, tol=1e-10, random_state=0)
    est.fit(X)
    assert est.score(X) == pytest.approx(FactorAnalysis(1, tol=1e-10, max_iter=5000).fit(X).score(X), abs=1e-5)
    assert bends_by_quadrature(est.dgn_) < 1e-9


def test_a_ridge_bends_less(circle):
    bends = []
    for ridge in (0.0, 0.1, 1.0, 10.0):
        dgn = build((1, 6, 2))
        fit_em(dgn, circle, n_init=1, max_iter=60, kink_ridge=ridge)
        bends.append(bends_by_quadrature(dgn))
    assert bends == sorted(bends, reverse=True) and bends[-1] < 0.1 * bends[0]


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full", "low_rank"])
def test_the_noise_prior_is_an_absolute_floor(kind):
    """Columns that a line explains completely keep noise of `rho / N` of their variances, in every direction."""
    t = np.random.default_rng(0).normal(size=100)
    X = np.stack((t, -2.0 * t), 1)
    least = []
    for rho in (0.0, 2.0):
        est = girih.DGNEstimator(hidden=(), noise=kind, noise_prior=rho, max_iter=300, tol=1e-9, random_state=0).fit(X)
        unit = np.full(2, X.var(0).mean()) if kind == "isotropic" else X.var(0)
        noise = est.dgn_.noise_covariance.matrix.detach().numpy() / np.sqrt(np.outer(unit, unit))
        least.append(np.linalg.eigvalsh(noise)[0])
    assert least[0] < 1e-3 and 0.02 * (1.0 - 1e-6) <= least[1] < 0.06


def test_the_noise_prior_is_in_the_units_of_the_data(circle):
    scores = []
    for unit in (np.ones(2), np.array([1e3, 1e-3])):
        dgn = build(noise=np.ones(2))
        result = fit_em(dgn, circle * unit + unit, n_init=1, max_iter=15, noise_prior=1.0, kink_ridge=0.1)
        scores.append(result.curve[-1] - math.log(unit.prod()))
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise_prior": -1.0}, "noise_prior must be a number of 0 or more"),
        ({"kink_ridge": float("inf")}, "kink_ridge must be a number of 0 or more"),
        ({"kink_ridge": 1.0, "learn_prior": True}, "which learn_prior would move"),
        ({"init": "spectral"}, "init must be one of auto, random"),
        ({"patience": 0}, "patience must be a whole number, 1 or more"),
        ({"validation": 1.5}, "validation=1.5 of 64 rows holds out 96"),
        ({"validation": np.zeros((3, 3))}, "3 columns, but the data dimension D is 2"),
    ],
)
def test_bad_options(circle, options, message):
    with pytest.raises(girih.errors.GirihError, match=message):
        fit_em(build(), circle, **options)
