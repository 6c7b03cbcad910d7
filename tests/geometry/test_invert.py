"""Inversion and injectivity, against dense grids, another quadratic solver and known folds."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import girih
from girih import geometry
from girih.errors import CellLimitError, LatentDimensionError, ParameterError, ShapeError
from girih.geometry import nearest_in_cell
from networks_to_partition import NETWORKS, make


def draws(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_nearest(R, y, H, h):
    return minimize(
        lambda v: ((R @ v - y) ** 2).sum(),
        np.zeros(R.shape[1]),
        jac=lambda v: 2 * R.T @ (R @ v - y),
        constraints={"type": "ineq", "fun": lambda v: h - H @ v, "jac": lambda v: -H},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_nearest_in_a_polytope_against_a_general_solver(dim):
    rng = np.random.default_rng(dim)
    for trial in range(6):
        H = rng.normal(size=(dim + 3, dim))
        H /= np.linalg.norm(H, axis=1, keepdims=True)
        h = rng.uniform(0.2, 1.0, len(H))
        R = rng.normal(size=(dim, dim))
        if trial == 5:
            R[-1] = R[0]  # rank below S
        y = 3.0 * rng.normal(size=(4, dim))
        z = nearest_in_cell(R, y, H, h)
        assert (z @ H.T <= h + 1e-9).all()
        for k in range(4):
            slow = slow_nearest(R, y[k], H, h)
            assert ((R @ z[k] - y[k]) ** 2).sum() <= slow.fun + 1e-9
            if slow.success:
                assert ((R @ z[k] - y[k]) ** 2).sum() == pytest.approx(slow.fun, abs=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_latent_on_a_grid_is_nearer(name):
    net = make(name, 2).double()
    part = girih.Partition(net)
    z = torch.cartesian_prod(*(torch.linspace(-6, 6, 241, dtype=torch.float64),) * 2)
    images = part.trace(z).detach()
    x = images[::6007] + 0.5 * draws(len(images[::6007]), images.shape[1], 1)
    found = geometry.invert(part, x)
    nearest = torch.cdist(x, images).amin(1)
    assert (found.distance <= nearest + 1e-9).all()
    assert torch.equal(found.distance, (part.trace(found.z) - x).norm(dim=1))
    assert all(int(c) in part.touching(z) for c, z in zip(found.cell, found.z, strict=True))
    near = found.z.abs().amax(1) < 5.5
    step = torch.linalg.matrix_norm(part.affine[0].detach(), ord=2).max() * 0.05 * 2**-0.5
    assert (found.distance[near] >= nearest[near] - step).all()


@pytest.mark.parametrize("sizes", [[1, 8, 8, 5], [2, 8, 8, 6], [3, 6, 9]])
def test_points_on_the_manifold_are_inverted(sizes):
    net = girih.mlp(sizes, seed=0)
    z = 3.0 * draws(40, sizes[0])
    found = geometry.invert(net, net(z).detach())
    torch.testing.assert_close(found.z, z, rtol=1e-9, atol=1e-9)
    assert found.distance.max() < 1e-10
    assert (found.partition.locate(z) == found.cell).all()


def test_three_latents_against_local_search():
    net = girih.mlp([3, 6, 5, 4], activation="relu", seed=2)
    x = net(draws(6, 3)).detach() + 0.7 * draws(6, 4, 1)
    found = geometry.invert(net, x)
    start = 4.0 * draws(20_000, 3, 2)
    gaps = torch.cdist(x, net(start).detach())
    assert (found.distance <= gaps.amin(1)).all()
    for k in range(6):
        best = np.inf
        for i in gaps[k].argsort()[:10]:
            slow = minimize(
                lambda v, k=k: (net(torch.as_tensor(v)[None]) - x[k]).norm().item(),
                start[i].numpy(),
                method="Nelder-Mead",
                options={"xatol": 1e-9, "fatol": 1e-10, "maxiter": 600},
            )
            best = min(best, slow.fun)
        assert found.distance[k].item() <= best + 1e-8


def test_local_search_finds_points_on_the_manifold():
    net = girih.mlp([8, 32, 32, 60], seed=0)
    z = draws(20, 8, 5)
    found = geometry.invert(net, net(z).detach())
    assert not found.exact and found.cell is None
    torch.testing.assert_close(found.distance, (net(found.z) - net(z)).norm(dim=1).detach())
    assert (found.distance < 1e-9).double().mean() >= 0.9
    again = geometry.invert(net, net(z).detach())
    assert torch.equal(again.z, found.z)


def test_local_search_comes_close_to_the_exact_answer():
    net = girih.mlp([3, 8, 6], seed=0)
    x = net(draws(30, 3)).detach() + 0.3 * draws(30, 6, 1)
    exact = geometry.invert(net, x)
    distance = geometry.invert(net, x, seed=2, exact=False).distance
    assert exact.exact and (distance >= exact.distance - 1e-10).all()
    assert ((distance - exact.distance) <= 1e-3 * exact.distance + 1e-9).double().mean() >= 0.8


def test_a_domain_bounds_the_inverse():
    net = girih.mlp([2, 6, 4], seed=0)
    part = girih.Partition(net, domain=(-0.5, 0.5))
    found = geometry.invert(part, net(3.0 * draws(30, 2)).detach())
    assert (found.z.abs() <= 0.5 + 1e-9).all()
    grid = torch.cartesian_prod(*(torch.linspace(-0.5, 0.5, 201, dtype=torch.float64),) * 2)
    gaps = torch.cdist(net(3.0 * draws(30, 2)).detach(), net(grid).detach()).amin(1)
    assert (found.distance <= gaps + 1e-12).all() and (found.distance >= gaps - 0.01).all()


def check_witness(net, answer):
    z = answer.witness
    assert (z[0] - z[1]).norm() > 1e-6
    x = net(z)
    assert (x[0] - x[1]).norm() <= 1e-8 * (1.0 + x[0].norm())


@pytest.mark.parametrize("sizes", [[1, 8, 4], [2, 6, 6, 9], [3, 5, 9], [2, 6, 4]])
def test_generic_leaky_generators_in_many_dimensions_are_injective(sizes):
    answer = geometry.is_injective(girih.mlp(sizes, seed=0))
    assert answer and answer.witness is None and answer.pairs <= 152


def test_linear_programs_agree_with_planes(monkeypatch):
    """All pairs by linear programs, none by the shortcuts."""

    def everything(part, A, b, candidates):
        return torch.triu_indices(len(A), len(A), 1).mT, None

    nets = [girih.mlp([2, 4, 5], seed=0), girih.mlp([2, 5, 2], seed=5), girih.mlp([2, 4, 4, 4], "leaky_relu", seed=1)]
    quick = [geometry.is_injective(net).injective for net in nets]
    monkeypatch.setattr("girih.geometry.injective.second_preimage", lambda search: None)
    monkeypatch.setattr("girih.geometry.injective._open_pairs", everything)
    slow = [geometry.is_injective(net) for net in nets]
    assert [answer.injective for answer in slow] == quick
    assert slow[0].pairs == math.comb(len(girih.Partition(nets[0])), 2)
    for net, answer in zip(nets, slow, strict=True):
        if not answer:
            check_witness(net, answer)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_degenerate_cell_has_a_witness(dim):
    net = girih.mlp([dim, 4, 5], activation="relu", seed=0)
    answer = geometry.is_injective(net)
    assert not answer and answer.reason == "degenerate cell"
    check_witness(net, answer)


def test_fewer_outputs_than_latents():
    net = girih.mlp([3, 4, 2], seed=0)
    check_witness(net, geometry.is_injective(net))


@pytest.mark.parametrize("dim", [1, 2])
def test_folds_have_a_witness(dim):
    net = girih.mlp([dim, 6, dim], activation="abs", seed=0)
    answer = geometry.is_injective(net)
    assert answer.reason == "cells meet"
    check_witness(net, answer)


def crossing(gap: float) -> nn.Module:
    """A curve in the plane that turns three times by a right angle and ends on, or at a gap from, its start."""
    net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    skip = nn.Sequential(nn.Linear(1, 2)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias[:] = torch.tensor([0.0, -1.0, -2.0])
        # directions (1, 0), (0, 1), (-1, 0), (0, -1) on the four intervals
        net[2].weight[:] = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, -1.0]])
        net[2].bias.zero_()
        skip[0].weight[:], skip[0].bias[:] = torch.tensor([[1.0], [0.0]]), 0.0

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.skip = net, skip

        def forward(self, z):
            return self.net(z) + self.skip(z)

    return Sum()


def test_full_rank_everywhere_is_not_enough():
    net = crossing(0.0)
    assert (geometry.intrinsic_dimension(net).values == 1).all()
    answer = geometry.is_injective(net)
    assert answer.reason == "cells meet"
    check_witness(net, answer)
    assert geometry.is_injective(girih.Partition(net, domain=(-5.0, 2.5)))  # before the curve closes


def test_a_witness_that_no_sample_would_find(monkeypatch):
    monkeypatch.setattr("girih.geometry.injective.second_preimage", lambda search: None)
    for net in (crossing(0.0), girih.mlp([2, 6, 2], "abs", seed=0), girih.mlp([2, 5, 4, 3], "abs", seed=1)):
        answer = geometry.is_injective(net)
        slow = geometry.preimages(net, net(2.0 * draws(300, next(net.parameters()).shape[1])).detach())
        if torch.bincount(slow.row).max() > 1:
            assert not answer
        if not answer:
            check_witness(net, answer)


def test_refusals():
    net = girih.mlp([2, 8, 2], seed=3)
    with pytest.raises(ShapeError):
        geometry.invert(net, torch.zeros(3, 5))
    with pytest.raises(ParameterError, match="restarts"):
        geometry.invert(girih.mlp([4, 5, 6], seed=0), torch.zeros(1, 6), restarts=2000)
    with pytest.raises(LatentDimensionError):
        geometry.is_injective(girih.mlp([4, 5, 6], seed=0))
    with pytest.raises(LatentDimensionError):
        geometry.invert(girih.mlp([4, 5, 6], seed=0), torch.zeros(1, 6), exact=True)
    with pytest.raises(ParameterError, match="domain"):
        geometry.invert(girih.Partition(net, domain=(-1.0, 1.0)), torch.zeros(1, 2), exact=False)
    with pytest.raises(CellLimitError, match="max_pairs"):
        geometry.is_injective(girih.mlp([2, 8, 3], seed=0), max_pairs=1)
