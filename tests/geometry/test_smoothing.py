"""Smoothed generators, against formulas written out layer by layer."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih import geometry
from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks import Abs, Maxout

Z = torch.linspace(-4.0, 4.0, 41, dtype=torch.float64)[:, None]

# kinks, and the pieces as pairs (slope, offset)
ACTIVATIONS = {
    "relu": (nn.ReLU(), [0.0], [(0, 0), (1, 0)]),
    "leaky_relu": (nn.LeakyReLU(0.2), [0.0], [(0.2, 0), (1, 0)]),
    "steep": (nn.LeakyReLU(3.0), [0.0], [(3, 0), (1, 0)]),
    "prelu": (nn.PReLU(init=0.3, dtype=torch.float64), [0.0], [(0.3, 0), (1, 0)]),
    "abs": (Abs(), [0.0], [(-1, 0), (1, 0)]),
    "threshold": (nn.Threshold(0.5, 0.5), [0.5], [(0, 0.5), (1, 0)]),
    "hardtanh": (nn.Hardtanh(-1.0, 2.0), [-1.0, 2.0], [(0, -1), (1, 0), (0, 2)]),
    "relu6": (nn.ReLU6(), [0.0, 6.0], [(0, 0), (1, 0), (0, 6)]),
    "hardsigmoid": (nn.Hardsigmoid(), [-3.0, 3.0], [(0, 0), (1 / 6, 0.5), (0, 1)]),
    "softshrink": (nn.Softshrink(0.7), [-0.7, 0.7], [(1, 0.7), (0, 0), (1, -0.7)]),
}


def identity() -> nn.Linear:
    layer = nn.Linear(1, 1, dtype=torch.float64)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def by_hand(u: float, kinks, pieces, beta: float) -> float:
    """The soft activation of one number; the score of a piece adds up over the kinks below it."""
    scores = [
        sum(abs(pieces[j + 1][0] - pieces[j][0]) * (u - kinks[j]) for j in range(k)) * beta / (1 - beta)
        for k in range(len(pieces))
    ]
    weights = [math.exp(score - max(scores)) for score in scores]
    return sum(w * (s * u + o) for w, (s, o) in zip(weights, pieces, strict=True)) / sum(weights)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_its_pieces_weighed_by_hand(name, beta):
    layer, kinks, pieces = ACTIVATIONS[name]
    soft = geometry.smooth(nn.Sequential(identity(), layer), beta)
    expected = [by_hand(float(u), kinks, pieces, beta) for u in Z]
    np.testing.assert_allclose(soft(Z)[:, 0].detach(), expected, atol=1e-13)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "prelu", "abs"])
def test_a_convex_activation_is_the_softmax_of_its_own_pieces(name):
    layer, _, pieces = ACTIVATIONS[name]
    values = torch.cat([s * Z + o for s, o in pieces], 1)
    expected = ((0.8 / 0.2 * values).softmax(1) * values).sum(1)
    torch.testing.assert_close(geometry.smooth(nn.Sequential(identity(), layer), 0.8)(Z)[:, 0], expected)


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.PReLU(3),
        nn.MaxPool2d(3, 2, padding=1), nn.ConvTranspose2d(3, 2, 2), nn.Hardtanh(),
    )  # fmt: skip
    maxout = nn.Sequential(nn.Linear(2, 12), Maxout(3), nn.Dropout(), nn.Linear(4, 3), Abs())
    return [girih.mlp([2, 8, 8, 3], seed=0), conv.double().eval(), maxout.double().eval()]


@pytest.mark.parametrize("net", networks(), ids=["mlp", "conv", "maxout"])
def test_from_affine_to_the_network_itself(net):
    z = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = geometry.smooth(net, 0.0)
    with torch.no_grad():
        middle = soft((z[:10] + z[10:]) / 2)
        torch.testing.assert_close(middle, (soft(z[:10]) + soft(z[10:])) / 2)
        gaps = []
        for beta in (0.9, 0.99, 0.9999, 1 - 1e-12):
            soft.beta = beta
            gaps.append(float((soft(z) - net(z)).abs().max()))
        assert gaps[0] > gaps[1] > gaps[2] >= gaps[3] and gaps[3] < 1e-9
        soft.beta = 1.0
        assert torch.equal(soft(z), net(z))


def test_maxima_are_weighed_over_distinct_features():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)), nn.MaxPool2d(3, 2, padding=1)).double()
    z = torch.randn(3, 2, dtype=torch.float64)
    images = net[0](z).reshape(3, 4, 4)
    expected = torch.empty(3, 1, 2, 2, dtype=torch.float64)
    for n in range(3):
        for i in range(2):
            for j in range(2):
                window = images[n, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].flatten()
                expected[n, 0, i, j] = (window.mul(4.0).softmax(0) * window).sum()
    torch.testing.assert_close(geometry.smooth(net, 0.8)(z), expected)


def test_parameters_are_shared_and_learn():
    net = nn.Sequential(nn.Linear(2, 5), nn.PReLU(5), nn.Linear(5, 3)).double()
    soft = geometry.smooth(net, 0.7)
    assert {id(p) for p in soft.parameters()} == {id(p) for p in net.parameters()}
    z = torch.randn(6, 2, dtype=torch.float64)
    target = torch.randn(6, 3, dtype=torch.float64)
    loss = (soft(z) - target).square().sum()
    loss.backward()
    slope, step = net[1].weight, 1e-6
    for k in range(5):
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                slope[k] += sign * step
                ends.append(float((soft(z) - target).square().sum()))
                slope[k] -= sign * step
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope.grad[k]), rel=1e-5, abs=1e-6)
    torch.optim.SGD(soft.parameters(), lr=1e-3).step()
    assert bool((soft(z) - target).square().sum() < loss)
    assert torch.autograd.gradcheck(soft, z.requires_grad_())


def test_copies_are_independent_and_float32_stays_float32():
    net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    soft = geometry.smooth(net, 0.7)
    twin = copy.deepcopy(soft)
    z = torch.randn(4, 2)
    before = soft(z)
    assert before.dtype == torch.float32 and torch.equal(twin(z), before)
    with torch.no_grad():
        twin.net[2].bias += 1.0
    assert torch.equal(soft(z), before)
    torch.testing.assert_close(twin(z), before + 1.0)
    soft.load_state_dict(twin.state_dict())
    torch.testing.assert_close(soft(z), before + 1.0)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan, "half", True])
def test_refuses_other_beta(beta):
    with pytest.raises(ParameterError, match="beta"):
        geometry.smooth(girih.mlp([1, 2, 1]), beta)


def test_refuses_what_has_no_pieces():
    with pytest.raises(UnsupportedLayerError, match="layer '1' is Tanh"):
        geometry.smooth(nn.Sequential(nn.Linear(1, 2), nn.Tanh()), 0.5)
    with pytest.raises(UnsupportedLayerError, match="Module"):
        geometry.smooth(lambda z: z, 0.5)
    soft = geometry.smooth(girih.mlp([1, 2, 1]), 0.5)
    with pytest.raises(ParameterError, match="beta"):
        soft.beta = 2.0
