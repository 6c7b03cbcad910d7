"""Envelopes lie above the joint density, integrals are what they say, and what is kept of draws is the posterior."""

import math

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy.optimize import minimize
from torch import nn

import girih
from girih.bounds.branches import Branches, Kept, _Tree
from girih.bounds.envelopes import _BARRIER, Forms, _Work, envelopes, whole_space
from girih.bounds.units import units_of, values_of
from girih.sampling.row import Model
from twins import f64

NEVER = math.inf


def units_and_row(S, seed, noise=0.05, layers=(6, 5), D=6):
    """Units with the head of a row, and the row."""
    activation = ("relu", "leaky_relu", "abs")[seed % 3]
    net = girih.trace(girih.mlp([S, *layers, D], activation=activation, seed=seed)).frozen()
    rng = np.random.default_rng(seed)
    x = net(f64(rng.normal(size=(1, S)))) + math.sqrt(noise) * f64(rng.normal(size=(1, D)))
    row = Model.of(net, noise, None, "").reduced(x)[0].take(0)
    units = units_of(net, row.factor)
    units = units._replace(head=row.head @ units.head, shift=row.head @ units.shift)
    return units, row.y - units.shift, row


def some_sets(units, y, count, seed):
    """Envelopes of random sets, down to cells: the signs are those of points."""
    rng = np.random.default_rng(seed)
    root = whole_space(units, y, NEVER)
    points = values_of(units, f64(2.0 * rng.normal(size=(count, units.dim))))[1]
    given = torch.as_tensor(rng.random((count, len(units.bias))) < np.linspace(0.1, 1.0, count)[:, None])
    sign = torch.where(given, torch.where(points > 0.0, 1, -1), 0).to(torch.int8)
    return root, envelopes(units, y, sign, root.multipliers.repeat(1, count, 1), NEVER)


@pytest.mark.parametrize("seed", range(6))
def test_they_lie_above_the_density_on_their_sets(seed):
    units, y, row = units_and_row(1 + seed % 4, seed, noise=(0.3, 0.03, 0.003)[seed % 3])
    root, sets = some_sets(units, y, 30, seed)
    sets = root.joined(sets)
    u = f64(np.random.default_rng(seed).normal(size=(4000, units.dim)) * np.repeat([0.3, 1.0, 3.0, 9.0], 1000)[:, None])
    v, a = values_of(units, u)
    energy = 0.5 * ((y - v @ units.head.mT).square().sum(1) + u.square().sum(1))
    assert torch.allclose(energy, row.energy(u), rtol=1e-10)
    met = 0
    for b in range(len(sets.sign)):
        inside = ((sets.sign[b] == 0) | ((sets.sign[b] > 0) == (a > 0.0))).all(1)
        s = torch.linalg.solve_triangular(sets.root[b], (u - sets.mean[b])[:, :, None], upper=False)[:, :, 0]
        room = 1e-9 * (1.0 + energy + s.square().sum(1))
        assert (-energy <= sets.height[b] - 0.5 * s.square().sum(1) + room)[inside].all()
        assert (s @ sets.wall[b] >= sets.least[b] - 1e-9 * (1.0 + s.abs().sum(1)))[inside].all()
        met += int(inside.sum())
    assert met > 5000


@pytest.mark.parametrize("seed", range(4))
def test_masses_of_sets_are_at_most_theirs(seed):
    """By a dense grid over one and two latents."""
    S = 1 + seed % 2
    units, y, _ = units_and_row(S, seed, noise=0.1)
    root, sets = some_sets(units, y, 25, seed)
    sets = root.joined(sets)
    t = f64(np.linspace(-8.0, 8.0, 40_001 if S == 1 else 801))
    u = torch.cartesian_prod(*[t] * S).reshape(-1, S)
    v, a = values_of(units, u)
    height = -0.5 * ((y - v @ units.head.mT).square().sum(1) + u.square().sum(1)) + S * math.log(t[1] - t[0])
    for b in range(len(sets.sign)):
        inside = ((sets.sign[b] == 0) | ((sets.sign[b] > 0) == (a > 0.0))).all(1)
        mass = torch.logsumexp(height[inside], 0) - 0.5 * S * math.log(2.0 * math.pi)
        assert sets.log_mass[b] >= mass - (1e-3 if S == 1 else 0.03)  # of the grid
    total = torch.logsumexp(height, 0) - 0.5 * S * math.log(2.0 * math.pi)
    assert root.log_mass[0] < 0.0  # less than that of the highest density
    assert root.log_mass[0] >= total - 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_integral_is_that_of_the_least_over_units(seed):
    """One latent: minimised over units point by point, and summed."""
    units, y, _ = units_and_row(1, seed, layers=(4, 3))
    root = whole_space(units, y, NEVER)
    solved = Forms.of(units, y, root.sign).at(root.multipliers)
    H, c = solved.H[0], solved.c[0]
    t = f64(np.linspace(-12.0, 12.0, 100_001))[:, None]
    r = -torch.linalg.solve(H[1:, 1:], (H[1:, :1] @ t.mT) + c[1:, None]).mT
    v = torch.cat((t, r), 1)
    _, m, n = root.multipliers[:, 0]
    a = v @ units.weight.mT + units.bias
    f = 0.5 * (y - v @ units.head.mT).square().sum(1) + 0.5 * t[:, 0].square()
    f = f + (root.multipliers[0, 0] * v[:, 1:] * (v[:, 1:] - a) - m * v[:, 1:] - n * (v[:, 1:] - a)).sum(1)
    integral = torch.logsumexp(-f, 0) + math.log(24.0 / 100_000) - 0.5 * math.log(2.0 * math.pi)
    assert solved.log_mass[0].item() == pytest.approx(integral.item(), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_newton_ends_at_the_least(seed):
    """Another optimiser, with differences for gradients, finds nothing lower."""
    units, y, _ = units_and_row(2, seed, layers=(4, 3))
    root = whole_space(units, y, NEVER)
    forms, work = Forms.of(units, y, root.sign), _Work.of(root.sign)

    def objective(values):
        at = f64(values).reshape(3, 1, -1)
        value = work.objective(forms.at(at), at, _BARRIER).item()
        return min(value, 1e6)

    start = root.multipliers.flatten().numpy()
    here = objective(start)
    found = minimize(objective, start, method="Nelder-Mead", options={"maxfev": 4000, "adaptive": True})
    assert here - found.fun < 0.02
    rng = np.random.default_rng(seed)
    for _ in range(200):
        assert objective(start * (1.0 + 0.1 * rng.normal(size=start.shape))) > here - 0.02


def test_splits_gain_at_least_what_is_foretold():
    """With the multipliers as they are: what each unit is worth is an identity."""
    units, y, _ = units_and_row(3, 1)
    root = whole_space(units, y, NEVER)
    unit = torch.arange(len(units.bias))
    every = root.take(torch.zeros_like(unit))
    sign, multipliers = every.split(unit)
    work = torch.stack((sign == 0, sign >= 0, sign <= 0))
    masses = Forms.of(units, y, sign).at(torch.where(work, multipliers, 0.0)).log_mass
    on, off = masses.split(len(unit))
    whole = Forms.of(units, y, root.sign).at(root.multipliers).log_mass
    assert torch.allclose(whole - torch.logaddexp(on, off), root.worth[0], atol=1e-8)
    solved = envelopes(units, y, sign, multipliers, NEVER)
    assert (solved.log_mass <= masses + 0.05).all()  # a barrier apart


def test_rounding_is_within_its_room():
    """With fifty digits."""
    units, y, _ = units_and_row(2, 0, noise=1e-4, layers=(4, 3))
    root = whole_space(units, y, NEVER)
    q, m, n = ([mp.mpf(float(value)) for value in part] for part in root.multipliers[:, 0])
    S, count = 2, len(q)
    with mp.workdps(50):
        A = mp.matrix(units.head.tolist())
        H, c, k = A.T * A, -(A.T * mp.matrix(y.tolist())), sum(mp.mpf(value) ** 2 for value in y.tolist()) / 2
        for j in range(S):
            H[j, j] += 1
        for i in range(count):
            r = mp.matrix(S + count, 1)
            r[S + i] = 1
            d, shift = r - mp.matrix(units.weight[i].tolist()), -mp.mpf(float(units.bias[i]))
            H += q[i] * (r * d.T + d * r.T)
            c += (q[i] * shift - m[i]) * r - n[i] * d
            k -= n[i] * shift
        inner = H[S:, S:]
        exact = (c.T * mp.lu_solve(H, c))[0] / 2 - k - (mp.log(mp.det(H)) - mp.log(mp.det(inner))) / 2
        solved = Forms.of(units, y, root.sign).at(root.multipliers).log_mass[0].item()
        room = root.log_mass[0].item() - solved
        assert 0.0 < abs(solved - float(exact)) < room < 1e-3


def tree_of(S, seed, noise, splits=40):
    row = units_and_row(S, seed, noise)[2]
    tree = Branches(row, NEVER)
    for _ in range(splits):
        if not tree.split(NEVER):
            break
    return tree


def test_sets_are_a_partition_and_their_sum_goes_down():
    row = units_and_row(5, 1, noise=0.01, layers=(8, 8))[2]
    tree = Branches(row, NEVER)
    u = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = units_of(row.trace, row.factor)
    a, before = values_of(units, u)[1], math.inf
    for _ in range(12):
        assert tree.upper <= before
        before = tree.upper
        sign = tree.leaves().sign
        inside = ((sign[None] == 0) | ((sign[None] > 0) == (a[:, None] > 0.0))).all(2)
        assert (inside.sum(1) == 1).all()
        tree.split(NEVER)
    assert tree.count > 10


@pytest.mark.parametrize(("S", "noise"), [(1, 0.3), (2, 0.05), (3, 0.1)])
def test_draws_that_are_kept_are_the_posterior(S, noise):
    tree = tree_of(S, S, noise)
    dgn = girih.DGN(girih.mlp([S, 6, 5, 6], activation=("relu", "leaky_relu", "abs")[S % 3], seed=S), noise=noise)
    rng = np.random.default_rng(S)
    x = dgn.trace(f64(rng.normal(size=(1, S)))) + math.sqrt(noise) * f64(rng.normal(size=(1, 6)))
    common = Model.of(dgn.trace.frozen(), noise, None, "").reduced(x)[1].item()
    exact, posterior = girih.bracket(dgn, x).estimate.item() - common, dgn.posterior(x)
    assert tree.upper >= exact - 1e-9
    generator, leaves = torch.Generator().manual_seed(0), tree.leaves()
    parts = [tree.sample(leaves, 8192, generator) for _ in range(24)]
    u, kept = (torch.cat(part) for part in zip(*parts, strict=True))
    count = Kept(float(leaves.log_mass.logsumexp(0)), len(u), int(kept.sum()))
    low, high = count.interval(1.0 - 1e-6)
    assert count.kept > 500
    assert low <= exact <= high
    assert abs(count.value - exact) < 5.0 * count.error
    u = u[kept]
    variance = posterior.covariance[0].diagonal()
    assert ((u.mean(0) - posterior.mean[0]).abs() < 5.0 * (variance / len(u)).sqrt()).all()
    assert torch.allclose(u.var(0), variance, rtol=0.15)


def test_intervals_miss_as_often_as_they_say():
    share, drawn = 0.03, 500
    rng = np.random.default_rng(0)
    ends = [Kept(0.0, drawn, int(rng.binomial(drawn, share))).interval(0.8) for _ in range(400)]
    below, above = (
        np.mean([math.log(share) < low for low, _ in ends]),
        np.mean([math.log(share) > high for _, high in ends]),
    )
    assert 0.02 < below <= 0.13
    assert 0.02 < above <= 0.13
    none = Kept(-1.0, 100, 0)
    assert none.interval(0.9)[0] == -math.inf
    assert none.interval(0.9)[1] == pytest.approx(-1.0 + math.log1p(-(0.05**0.01)))
    assert Kept(-1.0, 100, 100).interval(0.9)[1] == -1.0
    assert math.isinf(none.error)


def test_a_tree_keeps_the_least_sum():
    tree = _Tree(0.0)
    tree.grow([0], [[-0.5, -0.5]])  # in vain so far
    assert tree.cut() == [0]
    assert tree.best[0] == 0.0
    tree.grow([1, 2], [[-3.0, -3.0], [-2.0, -4.0]])
    assert tree.cut() == [3, 4, 5, 6]
    assert tree.best[0] == pytest.approx(math.log(2 * math.exp(-3.0) + math.exp(-2.0) + math.exp(-4.0)))
    tree.grow([3], [[-2.9, -2.9]])
    assert tree.cut() == [3, 4, 5, 6]


def test_a_linear_generator_has_one_envelope_which_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30)).double()
    x = torch.randn(2, 30, dtype=torch.float64)
    whole = net[0].weight @ net[0].weight.mT + 0.3 * torch.eye(30, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(net[0].bias, whole).log_prob(x).detach()
    found = girih.bracket(net, x, noise=0.3, method="envelopes", budget=2.0)
    assert torch.allclose(found.upper, exact, atol=1e-8)
    assert (found.upper >= exact - 1e-10).all()
    assert (found.confidence_gap < 1e-2).all()
    assert (found.envelopes == 1).all()


def test_dead_units_and_large_weights_are_no_obstacle():
    """Bounds hold, and a constant generator is exact."""
    flat = girih.mlp([2, 6, 4], seed=0)
    steep, deep = girih.mlp([2, 10, 10, 6], seed=0), girih.mlp([2, *[6] * 8, 6], seed=1)
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
        for parameter in steep.parameters():
            parameter.mul_(10.0)
    for net, noise in ((flat, 0.1), (steep, 0.1), (deep, 0.1), (girih.mlp([2, 12, 8], seed=2), 1e-6)):
        D = girih.trace(net).output_dim
        x = torch.cat(
            (girih.DGN(net, noise=noise)().sample((1,), seed=0), torch.full((1, D), 5.0, dtype=torch.float64))
        )
        exact = girih.bracket(net, x, noise=noise)
        found = girih.bracket(net, x, noise=noise, budget=2.0, method="envelopes", confidence=1.0 - 1e-6)
        assert (found.upper >= exact.lower).all()
        assert (found.confidence_upper >= exact.lower).all()
        assert (found.confidence_lower <= exact.upper).all()
        if net is flat:
            assert torch.allclose(found.upper, exact.upper, atol=1e-9)
