"""Each update by theorem: the exact penalised NLL never rises, and exact M-steps minimise the expected NLL."""

import numpy as np
import pytest
import torch

import girih
from girih.em import WeightPrior
from girih.em.iteration import INITIAL_DAMPING, Problem, em_step, exact_step, hidden_step
from girih.em.mstep import head_change, noise_update, prior_update
from girih.em.normal_equations import HiddenSystem, hidden_layers
from girih.inference import accumulate
from girih.inference.fisher import gradient

from .conftest import build, ones

PRIORS = [None, WeightPrior("gaussian", 0.7), WeightPrior("laplace", 0.3), WeightPrior("uniform", 0.6)]
ACTIVATIONS = ["relu", "leaky_relu", "abs"]


def problem_of(dgn, X, prior=None):
    x = torch.as_tensor(X)
    return Problem(dgn, x, ones(len(x)), prior)


def expected_nll(model, s, head, noise, prior):
    """The expected complete-data NLL in the statistics, written out: a function of the parameters an M-step moves."""
    D = model.output_dim
    noise = noise.tensors[0] if isinstance(noise, girih.Covariance) else noise
    covariance = (
        noise * torch.eye(D, dtype=torch.float64)
        if noise.ndim == 0
        else torch.diag(noise)
        if noise.ndim == 1
        else noise
    )
    if noise.ndim < 2:  # scatter is a trace or a diagonal: move only what the statistics know
        precision = 1.0 / noise.expand(D)
        quadratic = ((head @ s.features - 2 * s.outer) * head).sum(1)
        total = (s.scatter * (1.0 / noise)).sum() + (precision * quadratic).sum()
    else:
        moved = s.scatter - 2 * s.outer @ head.mT + head @ s.features @ head.mT
        total = torch.trace(torch.linalg.solve(covariance, moved))
    latent = s.latent[0, 0] / prior + s.weight * torch.log(prior)
    return 0.5 * (total + s.weight * torch.logdet(covariance) + latent)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_update_raises_the_nll(circle, noise, activation, prior):
    problem = problem_of(build((1, 5, 4, 2), noise, activation=activation), circle, prior)
    now, damping = problem.evaluate(), INITIAL_DAMPING
    first = now.nll
    for _ in range(4):
        for update in ("head", "noise", "prior"):
            after = exact_step(problem, now, {update})
            assert after.nll <= now.nll
            now = after
        after, damping = hidden_step(problem, now, damping)
        assert after.nll <= now.nll
        now = after
    assert now.nll < first - 0.1
    assert problem.evaluate().nll == now.nll  # the parameters are those of the last evaluation


@pytest.mark.parametrize("update", ["head", "noise", "prior"])
def test_exact_updates_are_never_rejected_far_from_the_optimum(circle, holes, noise, update):
    """Far from convergence, an exact M-step strictly lowers the NLL, so the safeguard has nothing to undo."""
    for X in (circle, holes):
        for seed in range(5):
            problem = problem_of(build(noise=noise, seed=seed), X)
            now = problem.evaluate()
            assert exact_step(problem, now, {update}).nll < now.nll


def test_missing_entries_do_not_raise_the_nll(holes, noise):
    problem = problem_of(build(noise=noise), holes)
    now, damping = problem.evaluate(), INITIAL_DAMPING
    first = now.nll
    for _ in range(10):
        after, damping = em_step(problem, now, damping, ("head", "noise", "prior", "hidden"))
        assert after.nll <= now.nll
        now = after
    assert now.nll < first - 0.2


def test_head_and_noise_minimise_the_expected_nll(circle, noise):
    """No small change of what the M-step returns lowers the expected NLL, in any direction."""
    problem = problem_of(build(noise=noise), circle)
    now = problem.evaluate()
    model, s = now.model, now.statistics
    head = head_change(model, s, True, None)
    new_noise, new_prior = (
        noise_update(s, head, model.noise, 1e-12 * torch.ones(2 if s.scatter.ndim else ()).double()).tensors[0],
        prior_update(s)[0, 0],
    )
    least = expected_nll(model, s, head, new_noise, new_prior)
    assert least < expected_nll(model, s, torch.zeros_like(head), model.noise, model.prior)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        step = 1e-3 * torch.randn(head.shape, dtype=torch.float64, generator=generator)
        factor = torch.exp(1e-3 * torch.randn(noise_shape(new_noise), dtype=torch.float64, generator=generator))
        factor = 0.5 * (factor + factor.mT) if factor.ndim == 2 else factor
        assert expected_nll(model, s, head + step, new_noise, new_prior) >= least
        assert expected_nll(model, s, head, new_noise * factor, new_prior) >= least - 1e-12
        assert expected_nll(model, s, head, new_noise, new_prior * (1 + float(step[0, 0]))) >= least


def noise_shape(noise):
    return tuple(noise.shape)


def test_noise_floor_is_the_bounded_maximum(circle):
    problem = problem_of(build(noise=np.array([0.2, 0.5])), circle)
    s = problem.evaluate().statistics
    none = torch.zeros_like(s.outer)
    diagonal = girih.Covariance.diagonal([1.0, 1.0])
    free = noise_update(s, none, diagonal, torch.zeros(2).double()).variances
    floor = free.mean().expand(2)
    bounded = noise_update(s, none, diagonal, floor).variances
    assert bounded.tolist() == [max(v, float(floor[0])) for v in free.tolist()]
    full = noise_update(
        s.__class__(**{**vars(s), "scatter": torch.diag(s.scatter)}), none, girih.Covariance.full(torch.eye(2)), floor
    )
    assert torch.allclose(full.variances, bounded)


@pytest.mark.parametrize("prior", PRIORS[1:], ids=str)
def test_penalised_head_against_brute_force(circle, noise, prior):
    """The penalised M-step of the last map against a general-purpose minimiser from scipy."""
    from scipy.optimize import minimize

    problem = problem_of(build((1, 3, 2), noise), circle, prior)
    now = problem.evaluate()
    model, s = now.model, now.statistics

    def value(flat):
        head = torch.as_tensor(flat).reshape(s.outer.shape)
        penalty = prior.energy([model.weight + head[:, :-1]]) if prior.family != "uniform" else 0.0
        return float(expected_nll(model, s, head, model.noise, model.prior)) + penalty

    head = head_change(model, s, True, prior)
    if prior.family == "uniform":
        assert float((model.weight + head[:, :-1]).abs().max()) <= prior.scale + 1e-12
    bound = [
        (None, None)
        if prior.family != "uniform" or column == s.outer.shape[1] - 1
        else (-prior.scale - w, prior.scale - w)
        for row in model.weight
        for column, w in enumerate([*row.tolist(), 0.0])
    ]
    best = min(
        minimize(value, start, method="L-BFGS-B", bounds=bound, options={"ftol": 1e-15, "maxfun": 200000}).fun
        for start in (np.zeros(s.outer.numel()), head.flatten().numpy())
    )
    # a full noise couples the rows: the update then minimises an upper bound, so it gains, but need not reach the end
    slack = 1e-6 * abs(best) if model.noise.kind != "full" or prior.family == "gaussian" else np.inf
    assert value(head.flatten().numpy()) <= best + slack
    assert value(head.flatten().numpy()) < value(np.zeros(s.outer.numel()))


def test_hidden_gradient_is_the_gradient_of_the_exact_nll(circle, holes, noise):
    """Fisher's identity: the right-hand side of the hidden update against autograd and the exact log-likelihood."""
    for X in (circle, holes):
        dgn = build((1, 5, 4, 2), noise)
        problem = problem_of(dgn, X)
        now = problem.evaluate()
        system = HiddenSystem(now.model, now.statistics, hidden_layers(dgn.trace, now.partition), None)
        dgn().log_prob(X).sum().backward()
        expected = [
            torch.cat((layer.stage.module.weight.grad, layer.stage.module.bias.grad[:, None]), 1).flatten()
            for layer in system.layers
        ]
        assert torch.allclose(system.gradient, torch.cat(expected), rtol=1e-9, atol=1e-9)


def test_conjugate_gradients_agree_with_the_dense_solution(circle, monkeypatch):
    dgn = build((1, 6, 5, 2))
    problem = problem_of(dgn, circle)
    now = problem.evaluate()
    layers = hidden_layers(dgn.trace, now.partition)
    dense = HiddenSystem(now.model, now.statistics, layers, None).direction(1e-2)
    monkeypatch.setattr("girih.em.normal_equations.DENSE_LIMIT", 0)
    sparse = HiddenSystem(now.model, now.statistics, layers, None).direction(1e-2)
    assert torch.allclose(sparse, dense, rtol=1e-3, atol=1e-4 * float(dense.abs().max()))


def test_statistics_add_over_rows(circle, holes, noise):
    """Two halves of a data set give the statistics of the whole, so batches and machines combine by a sum."""
    X = torch.as_tensor(np.concatenate((circle, holes)))
    model = build(noise=noise).model()
    weight = torch.rand(len(X), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, whole = accumulate(model, X, weight)
    parts = accumulate(model, X[:50], weight[:50])[1] + accumulate(model, X[50:], weight[50:])[1]
    for name, value in vars(whole).items():
        assert torch.allclose(getattr(parts, name), value, rtol=1e-10, atol=1e-10), name


def test_statistics_against_quadrature(circle):
    """Moments, pull, outer and scatter against sums over a dense grid of latents."""
    dgn = build((1, 4, 2), noise=np.array([0.2, 0.4]))
    X = torch.as_tensor(circle[:8])
    model = dgn.model()
    _, s = accumulate(model, X, ones(8))
    z = torch.linspace(-9, 9, 400_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        g = dgn.trace(z)
        jets = dgn.trace.chain[0].module(z)
        h = torch.nn.functional.leaky_relu(jets, 0.1)
    log_joint = -0.5 * (((X[:, None] - g) ** 2) / dgn.noise.detach()).sum(-1) - 0.5 * z[:, 0] ** 2
    p = torch.softmax(log_joint, 1)
    residual = X[:, None] - g
    features = torch.cat((h, torch.ones_like(z)), 1)
    assert torch.allclose(s.outer, torch.einsum("nk,nkd,kh->dh", p, residual, features), atol=1e-5)
    assert torch.allclose(s.scatter, torch.einsum("nk,nkd->d", p, residual**2), atol=1e-5)
    assert torch.allclose(s.features, torch.einsum("nk,kh,kj->hj", p, features, features), atol=1e-5)
    assert torch.allclose(s.latent, torch.einsum("nk,ki,kj->ij", p, z, z), atol=1e-5)
    cell = dgn.partition.locate(z)
    local = torch.cat((z - dgn.partition.origins[cell], torch.ones_like(z)), 1)
    for r in range(len(dgn.partition)):
        inside = cell == r
        moments = torch.einsum("nk,ki,kj->ij", p[:, inside], local[inside], local[inside])
        assert torch.allclose(s.moments[r], moments, atol=1e-3)  # the grid misses up to a step (5e-5) at each end


def test_gradient_uses_the_same_statistics(circle):
    dgn = build()
    model = dgn.model()
    _, s = accumulate(model, torch.as_tensor(circle), ones(64))
    in_noise = gradient(model, s)[5]
    dgn().log_prob(circle).sum().backward()
    assert torch.allclose(in_noise, dgn.noise.grad)


def test_unfit_networks_are_refused(circle):
    shared = torch.nn.Linear(2, 2, dtype=torch.float64)
    net = torch.nn.Sequential(torch.nn.Linear(1, 2, dtype=torch.float64), shared, torch.nn.ReLU(), shared)
    with pytest.raises(girih.errors.UnsupportedLayerError, match="used more than once"):
        girih.em.fit_em(girih.DGN(net), circle)
    with pytest.raises(girih.errors.UnsupportedLayerError, match=r"net\.double\(\)"):
        girih.em.fit_em(girih.DGN(girih.mlp([1, 3, 2]).float()), circle)
