"""Compiled cuts give what NumPy gives, to the bit."""

import numpy as np
import pytest
import torch

import girih
from girih.gaussian import prepared
from girih.partition import complex as complex_
from girih.partition import intervals

pytestmark = pytest.mark.skipif(prepared.kernels() is None, reason="needs Numba, the extra `fast`")


def parallel():
    """Units that coincide, are parallel and dead: cuts through vertices, whose signs only the error bounds tell."""
    net = girih.mlp([2, 8, 6, 1], activation="relu", seed=0)
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
        net[0].weight[2], net[0].bias[2] = 2.0 * net[0].weight[0], -net[0].bias[0]
        net[0].weight[3] = 0.0
        net[2].weight[1] = -net[2].weight[0]
    return net


NETS = {
    "two latents": lambda: girih.mlp([2, 12, 70, 3], seed=1),
    "three latents": lambda: girih.mlp([3, 8, 8, 2], activation="abs", seed=2),
    "degenerate": parallel,
}


@pytest.mark.parametrize("net", NETS)
def test_partitions_are_the_same_to_the_bit(net, monkeypatch):
    net = NETS[net]()
    ours = girih.Partition(net)
    monkeypatch.setattr(complex_, "_fast", lambda: None)
    theirs = girih.Partition(net)
    assert len(ours) == len(theirs) and torch.equal(ours.patterns, theirs.patterns)
    assert np.array_equal(ours.polytopes.complex.points, theirs.polytopes.complex.points)
    for one, other in zip(ours.affine, theirs.affine, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(ours.neighbors, theirs.neighbors)


@pytest.mark.parametrize("width", [1, 63, 64])
def test_signs_are_packed_alike(width, monkeypatch):
    rng = np.random.default_rng(width)
    value, error = rng.normal(size=(50, width)), rng.uniform(size=(50, width)).astype(np.float32)
    value[0], value[1], error[2] = 0.0, np.nan, 0.0
    words = [np.empty(50, np.uint64) for _ in range(4)]
    complex_._write_signs(value, error, *words[:2])
    monkeypatch.setattr(complex_, "_fast", lambda: None)
    complex_._write_signs(value, error, *words[2:])
    assert np.array_equal(words[0], words[2]) and np.array_equal(words[1], words[3])
    assert words[0].any() and words[1].any() and not (words[0] & words[1]).any()


@pytest.mark.parametrize("hidden", [[], [9], [5, 5], [20, 20, 20]], ids=str)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs"])
def test_cells_of_a_line_are_those_of_the_torch_form(hidden, activation, monkeypatch):
    for seed in range(10):
        net = girih.mlp([1, *hidden, 3], activation=activation, seed=seed)
        if hidden and seed % 2:  # a dead unit, and two that coincide
            with torch.no_grad():
                net[0].weight[0] = 0.0
                net[0].weight[-1], net[0].bias[-1] = net[0].weight[1], net[0].bias[1]
        ours = girih.Partition(net)
        with monkeypatch.context() as patch:
            patch.setattr(intervals, "compiled_form", lambda module: None)
            theirs = girih.Partition(net)
        assert torch.equal(ours.patterns, theirs.patterns)
        assert torch.allclose(ours.breakpoints, theirs.breakpoints, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("bad", [1e308, float("inf"), float("nan")])
def test_lines_that_overflow_are_refused_by_both_forms(bad, monkeypatch):
    net = girih.mlp([1, 4, 4, 2], seed=0)
    with torch.no_grad():
        net[2].weight[1] = bad
        net[0].weight.mul_(1e3)
    with pytest.raises(girih.errors.NonFiniteError, match="layer '2' has weights"):
        girih.Partition(net)
    monkeypatch.setattr(intervals, "compiled_form", lambda module: None)
    with pytest.raises(girih.errors.NonFiniteError, match="layer '2' has weights"):
        girih.Partition(net)
