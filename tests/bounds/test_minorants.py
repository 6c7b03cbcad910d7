"""Gaussians below the joint density lie below it where given signs are right, and their masses are below p(x)."""

import math

import pytest
import torch
from torch import nn

import girih
from girih.bounds.branches import Branches
from girih.bounds.minorants import _log_wrong, _of_signs, log_mass_below
from girih.bounds.units import values_of
from girih.sampling.modes import find_modes
from girih.sampling.row import Model, root_of

NEVER = math.inf


def case(S, seed, noise, layers=(8, 7), D=9):
    """The units of a row, its highest mode, its exact log-mass where S is small."""
    net = girih.mlp([S, *layers, D], activation=("relu", "leaky_relu", "abs")[seed % 3], seed=seed)
    x = girih.DGN(net, noise=noise)().sample((1,), seed=seed) if S <= 3 else net(torch.ones(1, S).double()).detach()
    rows, common, _ = Model.of(net, noise, None, "").reduced(x)
    generator = torch.Generator().manual_seed(seed)
    modes = find_modes(rows, generator)[0]
    tree = Branches(rows.take(0), NEVER)
    exact = girih.bracket(net, x, noise=noise).estimate.item() - common.item() if S <= 3 else None
    return tree.units, tree.y, modes.place[0], modes.slope[0], generator, exact


def signs_near(units, mode, slope, generator, share):
    """As the search has them."""
    u = mode + torch.randn(4000, units.dim, dtype=torch.float64, generator=generator) @ torch.linalg.inv(root_of(slope))
    on = (values_of(units, u)[1] > 0.0).double().mean(0)
    return torch.where(on < share, -1, torch.where(on > 1.0 - share, 1, 0)).to(torch.int8)


def restricted(units, sign, u):
    """Which points have all given signs right, in the network in which they are given."""
    v, a = torch.cat((u, u.new_zeros(len(u), len(units.bias))), 1), u.new_zeros(len(u), len(units.bias))
    for block in units.blocks:
        a[:, block] = v @ units.weight[block].mT + units.bias[block]
        given = torch.where(sign[block] > 0, a[:, block], 0.0)
        v[:, units.dim + block.start : units.dim + block.stop] = torch.where(
            sign[block] == 0, a[:, block].clamp(min=0.0), given
        )
    return ((sign == 0) | (sign.double() * a > 0.0)).all(1)


@pytest.mark.parametrize("seed", range(6))
def test_they_lie_below_where_signs_are_right(seed):
    S = (1, 2, 3, 6)[seed % 4]
    units, y, mode, slope, generator, _ = case(S, seed, (0.3, 0.03)[seed % 2])
    with torch.no_grad():
        for share in (0.05, 0.4):
            sign = signs_near(units, mode, slope, generator, share)
            _, below = _of_signs(units, y, sign, NEVER)
            assert below is not None
            mean, precision = below.mean[:S], below.precision
            spread = torch.linalg.inv(torch.linalg.cholesky(precision))
            u = mean + torch.randn(4000, S, dtype=torch.float64, generator=generator) @ spread
            u = torch.cat((u, mean + 3.0 * (u - mean), mode + 0.1 * (u - mean)))
            inside = restricted(units, sign, u)
            v, a = values_of(units, u)
            # where given signs are right in the network in which they are given, they are right
            assert ((sign == 0) | ((sign > 0) == (a > 0.0)))[inside].all()
            energy = 0.5 * ((y - v @ units.head.mT).square().sum(1) + u.square().sum(1))
            off = u - mean
            height = below.log_mass + 0.5 * torch.logdet(precision) - 0.5 * ((off @ precision) * off).sum(1)
            assert (height <= -energy + 1e-8 * (1.0 + energy))[inside].all()
            assert inside.sum() > 1000


@pytest.mark.parametrize("seed", range(4))
def test_wrong_signs_have_no_more_than_they_may(seed):
    """Beside draws of the Gaussian."""
    units, y, mode, slope, generator, _ = case((2, 3, 6, 8)[seed], seed, 0.05)
    with torch.no_grad():
        sign = signs_near(units, mode, slope, generator, 0.2)
        _, below = _of_signs(units, y, sign, NEVER)
        most = _log_wrong(units, sign, below, NEVER)
        spread = torch.linalg.inv(torch.linalg.cholesky(below.precision))
        u = below.mean[: units.dim] + torch.randn(100_000, units.dim, dtype=torch.float64, generator=generator) @ spread
        wrong = (~restricted(units, sign, u)).double().mean().item()
    assert wrong > 0.0
    assert math.exp(most) >= wrong - 4.0 * math.sqrt(wrong / len(u))
    assert math.exp(most) < 30.0 * wrong + 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_masses_are_below_the_exact_ones(seed):
    S = 1 + seed % 3
    units, y, mode, slope, generator, exact = case(S, seed, (0.01, 0.1)[seed % 2], layers=(5, 4))
    with torch.no_grad():
        found = log_mass_below(units, y, mode, slope, generator, NEVER)
    assert found <= exact + 1e-9


def test_eight_latents_are_within_some_nats():
    """Of what draws of envelopes say."""
    units, y, mode, slope, generator, _ = case(8, 1, 0.02, layers=(12, 12), D=24)
    net = girih.mlp([8, 12, 12, 24], activation="leaky_relu", seed=1)
    rows, _, _ = Model.of(net, 0.02, None, "").reduced(net(torch.ones(1, 8).double()).detach())
    with torch.no_grad():
        tree = Branches(rows.take(0), NEVER)
        for _ in range(12):
            tree.split(NEVER)
        kept = tree.draws(2.0, generator)
        found = log_mass_below(units, y, mode, slope, generator, NEVER)
    low, high = kept.interval(0.999999)
    assert found <= high
    assert found >= low - 12.0


def test_a_linear_generator_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7)).double()
    x = torch.randn(1, 7, dtype=torch.float64)
    rows, common, _ = Model.of(net, 0.3, None, "").reduced(x)
    generator = torch.Generator().manual_seed(0)
    modes, tree = find_modes(rows, generator)[0], Branches(rows.take(0), NEVER)
    with torch.no_grad():
        found = log_mass_below(tree.units, tree.y, modes.place[0], modes.slope[0], generator, NEVER)
        whole = net[0].weight @ net[0].weight.mT + 0.3 * torch.eye(7, dtype=torch.float64)
        exact = torch.distributions.MultivariateNormal(net[0].bias, whole).log_prob(x).item() - common.item()
    assert exact - 1e-8 < found <= exact + 1e-11


def test_what_is_cut_short_says_nothing():
    units, y, mode, slope, generator, _ = case(6, 0, 0.05)
    with torch.no_grad():
        assert log_mass_below(units, y, mode, slope, generator, 0.0) == -math.inf
