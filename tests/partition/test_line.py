"""Breakpoints of every layer over the whole line, general position or not."""

import math

import pytest
import torch
from torch import nn

import girih
from girih.errors import NonFiniteError
from girih.networks import Abs
from twins import breakpoints, f64, linear, signs

GRID = torch.tan(torch.linspace(-1.57, 1.57, 2001, dtype=torch.float64))


def interior_points(part: girih.Partition) -> torch.Tensor:
    """Three points inside each cell, `(R, 3)`."""
    lower, upper = part.bounds
    start = torch.where(lower.isinf(), upper.nan_to_num(posinf=1.0) - 2.0, lower)
    end = torch.where(upper.isinf(), start + 2.0, upper)
    return start[:, None] + (end - start)[:, None] * f64([0.1, 0.5, 0.8])


def assert_valid(net: nn.Module) -> girih.Partition:
    """The laws of a partition: increasing cells that cover the line, each with its own map, and all of the prior."""
    part = girih.Partition(net)
    lower, upper = part.bounds
    assert lower[0] == -math.inf and upper[-1] == math.inf
    assert torch.equal(lower[1:], upper[:-1])
    assert (upper > lower).all()
    assert abs(part.prior_mass.sum().item() - 1) < 1e-12
    assert part.patterns.shape == (len(part), girih.trace(net).hidden_units)

    z = interior_points(part)
    assert torch.equal(part.locate(z.reshape(-1, 1)), torch.arange(len(part)).repeat_interleave(3))
    slope, offset = part.affine
    moved = slope[:, None, :, 0] * z[:, :, None]
    rounding = 1e-14 * (moved.abs().max() + offset.abs().max() + 1).item()
    output = net(z.reshape(-1, 1)).reshape(len(part), 3, -1)
    assert torch.allclose(moved + offset[:, None], output, rtol=1e-11, atol=rounding)
    return part


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs"])
@pytest.mark.parametrize("widths", [[1], [12], [7, 5], [6, 5, 4], [5, 5, 4, 4]])
def test_random_networks_against_dense_sampling(activation, widths):
    for seed in range(3):
        net = girih.mlp([1, *widths, 3], activation=activation, seed=seed)
        part = assert_valid(net)
        assert (part.patterns[1:] != part.patterns[:-1]).any(1).all()
        seen = breakpoints(net)
        assert len(part.breakpoints) == len(seen)
        assert torch.allclose(part.breakpoints, seen, rtol=1e-9, atol=1e-12)
        samples = GRID[((GRID[:, None] - seen).abs() > 1e-9).all(1)]
        assert torch.equal(part.patterns[part.locate(samples)] > 0, signs(net, samples))


def test_negative_slopes_that_fold():
    assert_valid(girih.mlp([1, 6, 6, 2], negative_slope=-0.7, seed=3))


def test_a_wide_deep_network():
    assert len(assert_valid(girih.mlp([1, 64, 64, 64, 2], seed=0))) > 150


def leaky(weight, bias, *rest: nn.Module) -> nn.Sequential:
    return nn.Sequential(linear(weight, bias), nn.LeakyReLU(0.1), *rest)


DEGENERATE = {
    # name: network, breakpoints
    "no activation": (lambda: nn.Linear(1, 3), []),
    "two Linear": (lambda: nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 2)), []),
    "activation last": (lambda: leaky([[1.0], [2.0]], [0.0, -2.0]), [0.0, 1.0]),
    "activation first": (lambda: nn.Sequential(nn.LeakyReLU(0.1), linear([[2.0]], [1.0])), [0.0]),
    "two activations": (lambda: leaky([[1.0]], [-3.0], nn.ReLU()), [3.0]),
    "dead unit": (lambda: leaky([[0.0], [1.0]], [-1.0, 0.0], linear([[1.0, 1.0]], [0.0])), [0.0]),
    "unit with zero weight and bias": (lambda: leaky([[0.0], [1.0]], [0.0, 0.5], linear([[1.0, 1.0]], [0.0])), [-0.5]),
    "zero weights": (lambda: leaky([[0.0], [0.0]], [1.0, -1.0], linear([[1.0, 1.0]], [0.0])), []),
    "all zero": (lambda: leaky([[0.0], [0.0]], [0.0, 0.0], linear([[0.0, 0.0]], [0.0])), []),
    "duplicate units": (lambda: leaky([[0.7], [0.7]], [0.3, 0.3], linear([[1.0, -2.0]], [0.0])), [-3 / 7]),
    "tripled unit": (lambda: leaky([[0.1], [0.3]], [0.7, 2.1], linear([[1.0, 1.0]], [0.0])), [-7.0]),
    "opposite units": (lambda: leaky([[0.7], [-0.7]], [0.3, -0.3], linear([[1.0, 1.0]], [0.0])), [-3 / 7]),
    "opposite, scaled": (lambda: leaky([[0.1], [-0.3]], [0.7, -2.1], linear([[1.0, 1.0]], [0.0])), [-7.0]),
    "second layer kinks at the first's": (
        lambda: leaky([[1.0]], [-1.0], linear([[2.0]], [0.0]), nn.ReLU(), linear([[1.0]], [0.0])),
        [1.0],
    ),
    "second layer constant on a ReLU cell": (
        lambda: nn.Sequential(
            linear([[1.0]], [0.0]), nn.ReLU(), linear([[1.0]], [-1.0]), nn.ReLU(), linear([[2.0]], [0])
        ),
        [0.0, 1.0],
    ),
    "constant at exactly 0 in the second layer": (
        lambda: nn.Sequential(linear([[1.0]], [0.0]), nn.ReLU(), linear([[1.0]], [0.0]), Abs(), linear([[2.0]], [0.0])),
        [0.0],
    ),
    "constant up to rounding": (  # 3 * 0.1 - 0.3 is 6e-17, which would put a root at 2e16
        lambda: nn.Sequential(linear([[0.1], [0.3]], [0.0, 0.0]), linear([[3.0, -1.0]], [-1.0]), nn.LeakyReLU()),
        [],
    ),
    "huge weights": (
        lambda: leaky([[1e150], [-3e149]], [1e150, 6e149], linear([[1e-150, 1e-150]], [0.0])),
        [-1.0, 2.0],
    ),
    "tiny weights": (lambda: leaky([[1e-150], [-3e-160]], [1e-150, 6e-160], linear([[1.0, 1.0]], [0.0])), [-1.0, 2.0]),
    "far kinks": (lambda: leaky([[1e-12], [1.0]], [1.0, 1e9], linear([[1.0, 1.0]], [0.0])), [-1e12, -1e9]),
    "close kinks": (
        lambda: leaky([[1.0], [1.0]], [-0.5, -0.5 - 1e-13], linear([[1.0, 1.0]], [0.0])),
        [0.5, 0.5 + 1e-13],
    ),
}


@pytest.mark.parametrize(("build", "expected"), DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_networks(build, expected):
    part = assert_valid(build().double())
    assert part.breakpoints.tolist() == pytest.approx(expected, rel=1e-15)


def test_duplicates_in_every_layer_of_a_deep_network():
    """Doubling each unit, the copies scaled by 3, changes no breakpoint."""
    net = girih.mlp([1, 4, 4, 4, 2], seed=5)
    doubled, copies = nn.Sequential(), 1
    for layer in net:
        if isinstance(layer, nn.Linear):
            weight = torch.cat((layer.weight, torch.zeros_like(layer.weight)), 1) if copies == 2 else layer.weight
            bias = layer.bias
            if layer is not net[-1]:
                weight, bias, copies = torch.cat((weight, 3 * weight)), torch.cat((bias, 3 * bias)), 2
            doubled.append(linear(weight.detach(), bias.detach()))
        else:
            doubled.append(layer)
    plain, twice = girih.Partition(net), girih.Partition(doubled)
    assert torch.allclose(plain.breakpoints, twice.breakpoints, rtol=1e-12)
    assert len(plain) == len(twice)


def test_relu_cells_where_the_generator_is_constant():
    net = nn.Sequential(linear([[1.0], [1.0]], [0.0, -1.0]), nn.ReLU(), linear([[1.0, -1.0], [2.0, 0.0]], [0.5, -0.5]))
    part = assert_valid(net)
    assert torch.equal(part.affine[0][0], torch.zeros(2, 1, dtype=torch.float64))
    assert torch.equal(part.affine[1][0], f64([0.5, -0.5]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_refused_with_the_name_of_the_layer(value):
    net = girih.mlp([1, 4, 2], seed=0)
    net[2].bias.data[1] = value
    with pytest.raises(NonFiniteError, match="layer '2' has weights that are not finite"):
        girih.Partition(net)


def test_weights_that_overflow_are_refused():
    net = girih.mlp([1, 4, 4, 2], seed=0)
    for layer in net[::2]:
        layer.weight.data *= 1e200
    with pytest.raises(NonFiniteError, match=r"layer '2'.*so large that its output overflows"):
        girih.Partition(net)
