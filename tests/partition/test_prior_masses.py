"""Prior masses are right however small they are, and however far the vertices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import girih
from effort import cases
from girih.gaussian import from_halfspaces
from random_polytopes import by_simplices
from twins import f64


def shifted(seed: int, units: int, factor: float) -> nn.Sequential:
    """A ReLU network with its kinks moved away from the origin."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, units), nn.ReLU(), nn.Linear(units, 2)).double()
    with torch.no_grad():
        net[0].bias.mul_(factor)
    return net


def test_small_masses_are_what_their_logarithms_say():
    part = girih.Partition(shifted(1, 8, 12.0))
    mass, log_mass = part.prior_mass, part.log_prior_mass
    normal = log_mass > -700
    assert (mass > 0)[normal].all() and normal.sum() > 30
    assert torch.allclose(mass[normal].log(), log_mass[normal], rtol=0, atol=1e-12)
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_orthants_far_out_are_products():
    """Units that read one coordinate each: cells are boxes, 2.4e-46 and the like come out as they are."""
    cuts = [1.0, 6.0, 14.0]
    net = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3, dtype=torch.float64).repeat(3, 1))
        net[0].bias.copy_(-f64(np.repeat(cuts, 3)))
    part = girih.Partition(net)
    edges = f64([-np.inf, *cuts, np.inf])
    line = girih.gaussian.interval_log_mass(edges[:-1], edges[1:])
    place = (part.interior[:, :, None] > edges[1:-1]).sum(2)
    exact = line[place].sum(1)
    assert exact.min() < -280 and len(part) == 64
    assert ((part.log_prior_mass - exact).abs() < 1e-11 * exact.abs().clamp(min=1)).all()
    assert ((part.prior_mass / exact.exp() - 1).abs() < 1e-9).all()


@pytest.mark.fuzz
def test_prior_masses_by_brute_force():
    rng = np.random.default_rng(0)
    resolved = tried = 0
    for seed in range(cases(1, 12)):
        part = girih.Partition(shifted(seed, 6, float(rng.choice([1.0, 5.0, 12.0]))))
        log_mass = part.log_prior_mass
        for i in rng.permutation(len(part))[: cases(4, 20)]:
            H, h = (side.numpy() for side in part.halfspaces(int(i)))
            nearest = from_halfspaces([(H, h)])[0].nearest()[0].numpy()
            coarse, fine = (by_simplices(H, h, nearest, nodes)[0] for nodes in (33, 44))
            tried += 1
            resolved += abs(coarse - fine) < 1e-8
            assert abs(log_mass[i].item() - fine) < (1e-9 + 10 * abs(coarse - fine)) * max(1.0, abs(fine))
    assert resolved >= tried // 2


def nearly_parallel(seed: int, angle: float, S: int) -> nn.Sequential:
    """Pairs of units whose hyperplanes differ by some angle: their vertices lie as far as its inverse."""
    torch.manual_seed(seed)
    net = girih.mlp([S, 8, 3], activation="leaky_relu", seed=seed)
    with torch.no_grad():
        weight = net[0].weight
        weight[4:] = weight[:4] + angle * torch.randn(4, S, dtype=weight.dtype)
    return net


@pytest.mark.fuzz
@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("angle", [1e-4, 1e-7])
def test_cells_between_nearly_parallel_units(angle, S):
    """Cells thinner than the rounding of a point inside: one without mass came out with all of it (seed 2 at S = 3)."""
    for seed in range(2, 3 + cases(0, 40)):
        part = girih.Partition(nearly_parallel(seed, angle, S))
        mass = part.prior_mass
        assert mass.sum().item() == pytest.approx(1.0, abs=1e-8)
        codes = part.patterns.numpy()
        # the same cells without the second units of the pairs, whose kinks are some 1e-7 away near the origin
        whole = girih.Partition(_halved(seed, angle, S))
        assert whole.prior_mass.sum().item() == pytest.approx(1.0, abs=1e-12)
        for code in np.unique(codes[:, :4], axis=0):
            ours = mass[torch.as_tensor((codes[:, :4] == code).all(1))].sum().item()
            theirs = whole.prior_mass[torch.as_tensor((whole.patterns.numpy() == code).all(1))].sum().item()
            assert ours == pytest.approx(theirs, abs=1e-8)


def _halved(seed: int, angle: float, S: int) -> nn.Sequential:
    full = nearly_parallel(seed, angle, S)
    net = nn.Sequential(nn.Linear(S, 4), nn.LeakyReLU(0.1), nn.Linear(4, 3)).double()
    with torch.no_grad():
        net[0].weight.copy_(full[0].weight[:4])
        net[0].bias.copy_(full[0].bias[:4])
    return net
