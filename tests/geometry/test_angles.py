"""Angles between neighbouring cells, against projections and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import nn

import girih
from girih import geometry
from girih.errors import ParameterError, ShapeError
from networks_to_partition import NETWORKS, make


def projection(A: np.ndarray) -> np.ndarray:
    return A @ np.linalg.pinv(A, rcond=1e-10)


def maps(cells, pair):
    return [A.numpy() for _, A, _ in cells.maps(cells.patterns[pair]) for A in A]


@pytest.mark.parametrize("sizes", [[1, 8, 3], [2, 8, 8, 5], [3, 5, 7]])
def test_the_largest_angle_is_that_of_the_projections(sizes):
    cells = geometry.enumerate_cells(girih.mlp(sizes, seed=0))
    found = geometry.angles(cells)
    assert torch.equal(found.pairs, cells.partition.neighbors)
    for k in np.random.default_rng(0).choice(len(found.pairs), 10):
        A, B = maps(cells, found.pairs[k])
        assert math.sin(found.largest[k]) == pytest.approx(np.linalg.norm(projection(A) - projection(B), 2), abs=1e-9)
        assert found.angles[k].numpy() == pytest.approx(np.sort(subspace_angles(A, B)), abs=1e-7)
        assert (found.angles[k, :-1] < 1e-7).all()  # the facet


def test_small_angles_are_right():
    net = nn.Sequential(nn.Linear(1, 2), nn.LeakyReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight[:], net[0].bias[:] = torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 1.0])
        net[1].negative_slope = 1.0 - 1e-9
        net[2].weight[:] = torch.eye(2)
        net[0].weight[1] = 1.0  # (kink(z), z + 1): slopes 1 : 1 and 1 - 1e-9 : 1
        net[0].bias[1] = 1e6
    found = geometry.angles(geometry.enumerate_cells(net, geometry.Uniform(-1.0, 1.0)))
    assert found.largest.item() == pytest.approx(0.5e-9, rel=1e-6)


def test_dead_cells():
    cells = geometry.enumerate_cells(girih.mlp([2, 4, 4], activation="relu", seed=0))
    rank = geometry.intrinsic_dimension(cells).values
    found = geometry.angles(cells)
    differ = rank[found.pairs[:, 0]] != rank[found.pairs[:, 1]]
    assert differ.any()
    assert (found.largest[differ] == 0.5 * math.pi).all()
    least = rank[found.pairs].amin(1)
    assert torch.equal(found.angles.isfinite().sum(1), least)
    for k in range(len(found.pairs)):
        A, B = maps(cells, found.pairs[k])
        assert math.sin(found.largest[k]) == pytest.approx(np.linalg.norm(projection(A) - projection(B), 2), abs=1e-8)


def test_segments_give_the_cells_they_cross():
    net = girih.mlp([7, 12, 12, 9], activation="relu", seed=0)
    cells = geometry.segment_cells(net, 2, seed=3)
    assert torch.equal(cells.trace.pattern(cells.points), cells.patterns)
    ends = torch.randn(4, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    known = {code.numpy().tobytes() for code in cells.patterns}
    for start, stop in (ends[:2], ends[2:]):
        z = start + torch.linspace(0, 1, 5001, dtype=torch.float64)[:, None] * (stop - start)
        assert {code.numpy().tobytes() for code in cells.trace.pattern(z)} <= known
    changed = (cells.patterns[cells.neighbors[:, 0]] != cells.patterns[cells.neighbors[:, 1]]).sum(1)
    assert (changed == 1).all()
    assert geometry.angles(cells).angles.shape == (len(cells.neighbors), 7)
    assert math.isnan(geometry.log_volume(cells).mean)


def test_walks_and_enumeration_agree():
    net = girih.mlp([2, 5, 4], seed=0)
    whole = geometry.enumerate_cells(net)
    near = geometry.walk_cells(net, [0.0, 0.0], 6)
    where = whole.partition.locate(near.points)
    pairs = {tuple(sorted(pair)) for pair in where[near.neighbors].tolist()}
    assert pairs <= {tuple(pair) for pair in whole.neighbors.tolist()}
    torch.testing.assert_close(geometry.log_volume(near).values, geometry.log_volume(whole).values[where])


def test_refusals():
    cells = geometry.sample_cells(girih.mlp([2, 5, 4], seed=0), 20)
    with pytest.raises(ParameterError, match="segment_cells"):
        geometry.angles(cells)
    with pytest.raises(ShapeError):
        geometry.angles(cells, pairs=[0, 1])
    with pytest.raises(ParameterError):
        geometry.angles(cells, pairs=[[0, 99]])
    with pytest.raises(ParameterError, match="prior masses"):
        geometry.entropy(geometry.walk_cells(girih.mlp([2, 5, 4], seed=0), [0.0, 0.0], 3))
    assert geometry.angles(cells, pairs=[[0, 1]]).largest.shape == (1,)


@pytest.mark.parametrize("name", NETWORKS)
def test_segments_on_a_registry(name):
    net = make(name, 5)
    cells = geometry.segment_cells(net, 2)
    assert torch.equal(cells.trace.pattern(cells.points), cells.patterns)
    found = geometry.angles(cells)
    assert found.largest.isfinite().all() and (found.largest <= 0.5 * math.pi).all()
    assert len(geometry.sample_cells(net, 30)) <= 30
