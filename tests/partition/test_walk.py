"""The walk over neighbouring cells, and an enumeration by linear programs (EM-DGN, Algorithm 1) as a slow twin."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import girih
from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.partition import walk


def net_of(*layers, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(*layers).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def duplicated():
    net = net_of(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        for part in (net[0].weight, net[0].bias):
            part[1], part[2], part[3] = part[0], -2 * part[0], 0.0
        for part in (net[2].weight, net[2].bias):
            part[2] = part[0]
    return net


NETS = {
    "relu": lambda: girih.mlp([2, 6, 5, 2], activation="relu", seed=0),
    "space": lambda: girih.mlp([3, 5, 3, 2], activation="relu", seed=0),
    "line": lambda: girih.mlp([1, 6, 5, 2], seed=0),
    "few planes": lambda: girih.mlp([3, 2, 2], seed=0),
    "hardtanh": lambda: net_of(nn.Linear(2, 4), nn.Hardtanh(), nn.Linear(4, 3), nn.Hardtanh(), nn.Linear(3, 2)),
    "duplicated": duplicated,
    "through a point": lambda: net_of(
        nn.Linear(2, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)
    ),
    "twice relu": lambda: net_of(nn.Linear(2, 6), nn.ReLU(), nn.ReLU(), nn.Linear(6, 2)),
    "max pool": lambda: net_of(
        nn.Linear(2, 12), nn.Unflatten(1, (2, 6)), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(4, 4), nn.ReLU()
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_walk_finds_the_partition(name):
    net = NETS[name]()
    part = girih.Partition(net)
    cells = list(walk(net, torch.zeros(part.latent_dim), max_cells=10_000))
    rows = {tuple(row): i for i, row in enumerate(part.patterns.tolist())}
    assert sorted(rows) == sorted(tuple(cell.pattern.tolist()) for cell in cells)
    assert [cell.index for cell in cells] == list(range(len(cells)))
    for cell in cells:
        i = rows[tuple(cell.pattern.tolist())]
        ours, theirs = (torch.cat((H, h[:, None]), 1) for H, h in (cell.halfspaces, part.halfspaces(i)))
        assert ours.shape == theirs.shape
        if len(ours):
            assert (torch.cdist(ours, theirs).amin(1) < 1e-7 * (1.0 + ours[:, -1].abs())).all()
        assert part.locate(cell.interior[None]).tolist() == [i]
        assert all(torch.allclose(a, b[i], atol=1e-9) for a, b in zip(cell.affine, part.affine, strict=True))
        if cell.parent >= 0:
            assert i in part.neighbors_of(rows[tuple(cells[cell.parent].pattern.tolist())])
            assert cell.depth == cells[cell.parent].depth + 1


def test_facets_in_ten_dimensions():
    net = girih.mlp([10, 24, 16, 5], seed=0)
    traced = girih.trace(net)
    for cell in walk(net, torch.full((10,), 0.3), max_cells=4):
        H, h = cell.halfspaces
        assert (H @ cell.interior < h).all() and torch.allclose(H.norm(dim=1), torch.ones(len(h)).double())
        own = traced.pattern(cell.interior)[0]
        assert torch.equal(own, cell.pattern)
        for normal, unit, point in zip(H, cell.units, cell.facet_points, strict=True):
            beyond = traced.pattern(point + 1e-8 * normal)[0]
            assert (beyond != own).nonzero()[:, 0].tolist() == [unit.item()]
            assert torch.equal(traced.pattern(point - 1e-8 * normal)[0], own)
        generator = torch.Generator().manual_seed(0)
        near = cell.interior + torch.randn(4000, 10, dtype=torch.float64, generator=generator)
        inside = (near @ H.mT < h).all(1)
        assert torch.equal(inside, (traced.pattern(near) == own).all(1))
        z = cell.interior[None]
        assert torch.allclose(cell.affine[0] @ z[0] + cell.affine[1], net(z)[0])


def test_walk_is_lazy_and_refuses_bad_input():
    net = girih.mlp([4, 6, 2], seed=0)
    assert next(walk(net, [0.0] * 4, max_cells=10**9)).depth == 0
    assert len(list(walk(net, [0.0] * 4, max_cells=3))) == 3
    with pytest.raises(ShapeError, match="z has 3 columns"):
        walk(net, [[0.0] * 3])
    with pytest.raises(ShapeError, match="one point"):
        walk(net, torch.zeros(2, 4))
    with pytest.raises(NonFiniteError):
        walk(net, [float("nan")] * 4)
    with pytest.raises(ParameterError, match="max_cells"):
        walk(net, [0.0] * 4, max_cells=0)


def radius(H, h):
    """Of the largest ball in `H z <= h`, up to 1."""
    if not len(h):
        return 1.0
    dim = H.shape[1]
    rows = np.concatenate((H, np.linalg.norm(H, axis=1)[:, None]), 1)
    bounds = [(None, None)] * dim + [(0, 1)]
    result = linprog(np.append(np.zeros(dim), -1.0), rows, h, bounds=bounds, method="highs")
    return -result.fun if result.status == 0 else 0.0


def enumerate_cells(net, dim, box=None):
    """All sign patterns that have an interior, unit by unit: linear programs only, nothing of girih."""
    H, h = np.empty((0, dim)), np.empty(0)
    if box is not None:
        H, h = np.concatenate((np.eye(dim), -np.eye(dim))), np.full(2 * dim, box)
    cells = [(H, h, np.eye(dim), np.zeros(dim), ())]
    for layer in net:
        if isinstance(layer, nn.Linear):
            W, v = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            cells = [(H, h, W @ A, W @ b + v, code) for H, h, A, b, code in cells]
            continue
        slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
        for unit in range(len(cells[0][3])):
            split = []
            for H, h, A, b, code in cells:
                row, offset = A[unit], b[unit]
                if np.abs(row).max() < 1e-13:
                    signs = [1 if offset > 1e-13 else -1]
                    sides = [(H, h)]
                else:
                    signs = [1, -1]
                    sides = [(np.vstack((H, -s * row)), np.append(h, s * offset)) for s in signs]
                for sign, side in zip(signs, sides, strict=True):
                    if len(signs) == 1 or radius(*side) > 1e-7:
                        factor = np.ones(len(b))
                        factor[unit] = 1.0 if sign > 0 else slope
                        split.append((*side, A * factor[:, None], b * factor, (*code, sign)))
            cells = split
    return sorted(cell[-1] for cell in cells)


TWINS = {
    "leaky": lambda: girih.mlp([2, 5, 4, 2], seed=3),
    "relu": lambda: girih.mlp([2, 5, 5, 2], activation="relu", seed=1),
    "space": lambda: girih.mlp([3, 4, 3, 2], activation="relu", seed=2),
    "few planes": lambda: girih.mlp([3, 2, 2], seed=0),
    "duplicated": duplicated,
}


@pytest.mark.slow
@pytest.mark.parametrize("box", [None, 1.5])
@pytest.mark.parametrize("name", TWINS)
def test_partition_equals_an_enumeration_by_linear_programs(name, box):
    net = TWINS[name]()
    part = girih.Partition(net, domain=None if box is None else (-box, box))
    assert sorted(map(tuple, part.patterns.tolist())) == enumerate_cells(net, part.latent_dim, box)
