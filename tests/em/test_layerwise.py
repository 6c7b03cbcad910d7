"""The layer-wise M-step of EM-DGN: its closed forms by two slow twins, and what it promises of the exact NLL."""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.em import DGNEstimator, EMOptions, WeightPrior, fit_em
from girih.em.iteration import Problem, layerwise_step
from girih.em.normal_equations import sweep
from girih.errors import ParameterError
from girih.partition import Partition

from .conftest import build, ones

SIZES = (1, 5, 2, 2)


def problem_of(dgn, X, prior=None):
    problem = Problem(dgn, torch.as_tensor(X), ones(len(X)), prior)
    problem.layerwise = True
    return problem


def posterior(dgn, X):
    """Nodes `z (K, 1)` far finer than any posterior, their patterns, their share of each row's mass `(N, K)`, and rows.

    Rows `(N, K, D)` have their missing entries at the mean given z and what was observed.
    """
    limits = Partition(dgn.net).breakpoints
    edges = torch.cat((torch.linspace(-10, 10, 801).double(), limits[limits.abs() < 10])).unique()
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(8))
    half = 0.5 * edges.diff()[:, None]
    z, weights = (edges[:-1, None] + half * (nodes + 1.0)).reshape(-1, 1), (half * weights).flatten()
    noise = dgn.noise_covariance.to("full").tensors[0].detach()
    joint, rows = [], []
    with torch.no_grad():
        g = dgn.net(z)
        for x in torch.as_tensor(X):
            seen = ~torch.isnan(x)
            e, own = (x - g)[:, seen], noise[seen][:, seen]
            normal = torch.distributions.MultivariateNormal(torch.zeros(len(own)).double(), own) if seen.any() else None
            joint.append((normal.log_prob(e) if normal else 0.0) - 0.5 * z[:, 0] ** 2 + weights.log())
            rows.append(torch.where(seen, x, g + e @ torch.linalg.solve(own, noise[seen])))
        return z, dgn.trace.pattern(z), torch.stack(joint).softmax(1), torch.stack(rows)


def forward(layers, slope, patterns, z):
    """g(z) of a chain whose units keep the signs that the patterns name, whatever their inputs are."""
    h, unit = z, 0
    for index, (W, v) in enumerate(layers):
        h = h @ W.mT + v
        if index < len(layers) - 1:
            on = patterns[:, unit : unit + len(W)] > 0
            h, unit = h * torch.where(on, 1.0, slope), unit + len(W)
    return h


def expected_error(layers, dgn, nodes):
    """Minus the expected complete-data log-likelihood in the weights, node by node: nothing of girih's statistics."""
    z, patterns, mass, rows = nodes
    e = rows - forward(layers, 0.1, patterns, z)
    precision = torch.linalg.inv(dgn.noise_covariance.to("full").tensors[0].detach())
    return 0.5 * (mass * ((e @ precision) * e).sum(2)).sum()


def slope(error, flat):
    return torch.autograd.functional.jacobian(error, flat)


def layers_of(dgn):
    return [(m.weight.detach().clone(), m.bias.detach().clone()) for m in dgn.net if isinstance(m, torch.nn.Linear)]


@pytest.mark.parametrize(("name", "prior"), [("circle", None), ("holes", WeightPrior("gaussian", 0.7))], ids=str)
def test_the_sweep_against_dense_derivatives_of_the_expected_likelihood(request, noise, name, prior):
    """Layer by layer the minimum of a quadratic function, from its gradient and Hessian by automatic derivatives."""
    dgn = build(SIZES, noise, seed=1)
    X = request.getfixturevalue(name)
    problem, nodes, layers = problem_of(dgn, X, prior), posterior(dgn, X), layers_of(dgn)
    now = problem.evaluate()
    for index in range(len(layers) - 1):
        W, v = layers[index]

        def error(flat, index=index, W=W):
            own = (flat[: W.numel()].reshape(W.shape), flat[W.numel() :])
            penalty = 0.0 if prior is None else prior.penalty([own[0]])
            return expected_error([*layers[:index], own, *layers[index + 1 :]], dgn, nodes) + penalty

        flat = torch.cat((W.flatten(), v))
        hessian = torch.autograd.functional.hessian(error, flat)
        flat = flat - torch.linalg.solve(hessian, slope(error, flat))
        assert slope(error, flat).abs().max() < 1e-8  # a quadratic function: one Newton step is all
        layers[index] = (flat[: W.numel()].reshape(W.shape), flat[W.numel() :])
    sweep(problem.trace, now.partition, now.model, now.statistics, prior)
    for (W, v), (mine, own) in zip(layers, layers_of(dgn), strict=True):
        assert torch.allclose(W, mine, rtol=1e-6, atol=1e-7) and torch.allclose(v, own, rtol=1e-6, atol=1e-7)


def test_the_equations_of_the_paper_hold_together(circle, noise):
    """EM-DGN's (23), with the weight e0 in its inverse, and (24): each gives what the other was solved with."""
    dgn = build((1, 4, 2), noise, seed=2)
    problem, x = problem_of(dgn, circle), torch.as_tensor(circle)
    _, (W2, v2) = layers_of(dgn)
    z, patterns, mass, _ = posterior(dgn, circle)
    precision = torch.linalg.inv(dgn.noise_covariance.to("full").tensors[0].detach())
    cells, which = torch.unique(patterns, dim=0, return_inverse=True)
    now = problem.evaluate()
    sweep(problem.trace, now.partition, now.model, now.statistics, None)
    W1, v1 = layers_of(dgn)[0]
    of_bias, of_weight, pull, P = (torch.zeros(*shape).double() for shape in ((4, 4), (4, 4), (4,), (4,)))
    for index, pattern in enumerate(cells):
        back = W2 * torch.where(pattern > 0, 1.0, 0.1)  # A^{l+1 -> L} D
        part, at = mass[:, which == index], z[which == index, 0]
        e0, e1, E2 = part.sum(1), part @ at, part @ at**2
        U = back.mT @ precision @ back
        residual = (x - v2) * e0[:, None] - (back @ W1).mT * e1[:, None]  # that without v1
        of_bias, pull = of_bias + e0.sum() * U, pull + back.mT @ precision @ residual.sum(0)
        of_weight, P = of_weight + E2.sum() * U, P + back.mT @ precision @ ((x - v2 - back @ v1).mT @ e1)
    assert torch.allclose(torch.linalg.solve(of_bias, pull), v1, rtol=1e-5)
    assert torch.allclose(torch.linalg.solve(of_weight, P), W1[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "family"),
    [
        ((1, 6, 2), None),
        ((1, 4, 3, 2), "gaussian"),
        ((1, 4, 3, 2), "laplace"),
        ((1, 6, 2), "uniform"),
        ((2, 3, 2), None),
    ],
    ids=str,
)
def test_the_nll_never_rises(circle, sizes, family):
    prior = None if family is None else WeightPrior(family, 1.0)
    problem = problem_of(build(sizes, seed=3), circle, prior)
    now, damping = problem.evaluate(), 1e-3
    first = now.nll
    for _ in range(4):
        after, damping = layerwise_step(problem, now, damping)
        assert after.nll <= now.nll and damping >= 1.0
        now = after
    assert now.nll < first
    assert problem.evaluate().nll == now.nll  # the parameters are those of the last evaluation


def test_dead_and_doubled_units_stay_where_they_are(circle):
    """Singular layers: what the rows say nothing of does not move."""
    dgn = build((1, 4, 2), activation="relu")
    with torch.no_grad():
        dgn.net[0].weight[0], dgn.net[0].bias[0] = 0.0, -1.0  # never on
        dgn.net[0].weight[2], dgn.net[0].bias[2] = dgn.net[0].weight[1], dgn.net[0].bias[1]
        dgn.net[2].weight[:, 2] = dgn.net[2].weight[:, 1]
    problem = problem_of(dgn, circle)
    now = problem.evaluate()
    after, _ = layerwise_step(problem, now, 1.0)
    assert after.nll < now.nll
    assert (dgn.net[0].weight[0, 0], dgn.net[0].bias[0]) == (0.0, -1.0)
    assert torch.allclose(dgn.net[0].weight[2], dgn.net[0].weight[1])


def wave(n=120):
    t = np.random.default_rng(0).normal(size=n)
    return np.stack((t, np.cos(1.4 * t)), 1) + 0.1 * np.random.default_rng(1).normal(size=(n, 2))


@pytest.mark.filterwarnings("ignore:EM did not converge")
def test_without_the_safeguard_the_nll_can_rise_and_the_lowest_is_kept():
    rose = 0
    for seed in range(6):
        dgn = build((1, 8, 2), 1.0, seed=seed)
        result = fit_em(dgn, wave(), n_init=0, max_iter=60, m_step="layerwise", safeguard=False)
        rose += bool(np.diff(result.curve).max() > 0.01)
        assert result.curve[result.best_step] == result.curve.min()
        assert -dgn().log_prob(wave()).mean().item() == pytest.approx(result.curve.min(), abs=1e-9)
        assert result.log_likelihood == pytest.approx(-result.curve.min(), abs=1e-9)
    assert rose > 0  # as the papers' guarantee has it, it would never


@pytest.mark.filterwarnings("ignore:EM did not converge")
def test_whole_fits_fall_to_where_joint_steps_do(circle):
    joint, layerwise = (
        fit_em(build((1, 8, 2)), circle, m_step=m_step, acceleration="none", seed=1)
        for m_step in ("joint", "layerwise")
    )
    assert (np.diff(layerwise.curve) <= 0).all()
    assert layerwise.curve[-1] < joint.curve[-1] + 0.1
    assert layerwise.best_step == layerwise.steps


def test_the_estimator_takes_it_and_it_is_em_alone(circle):
    est = DGNEstimator(hidden=(4,), n_init=1, max_iter=5, tol=0.5, m_step="layerwise", random_state=0)
    same = DGNEstimator(**{**est.get_params(), "acceleration": "none"})
    assert est.fit(circle).nll_curve_.tolist() == same.fit(circle).nll_curve_.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m_step": "jumps"}, "m_step must be one of joint, layerwise; got 'jumps'"),
        ({"m_step": "layerwise", "batch_size": 8}, "leave batch_size out"),
        ({"safeguard": False}, "goes with m_step='layerwise' only"),
        ({"m_step": "layerwise", "safeguard": 0}, "safeguard must be True or False; got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        EMOptions(**options)


def test_other_generators_and_rows_seen_once_are_refused(circle):
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 2), nn.Flatten())
    dgn = girih.DGN(net.double(), noise=0.3)
    before = [p.detach().clone() for p in dgn.parameters()]
    with pytest.raises(ParameterError, match="needs a chain of Linear layers"):
        fit_em(dgn, np.repeat(circle, 2, 1)[:, :3], m_step="layerwise")
    assert all(torch.equal(a, b) for a, b in zip(before, dgn.parameters(), strict=True))
    with pytest.raises(ParameterError, match="is passed once, in batches, without m_step='layerwise'"):
        fit_em(build(), iter([circle]), m_step="layerwise")
