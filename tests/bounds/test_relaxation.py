"""Relaxations hold what networks do: at random points of boxes of every size, and exactly where nothing bends.

Rectifiers are what networks do.
"""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.bounds.relaxation import relax
from girih.bounds.units import units_of, values_of

DECODERS = {
    "relu": lambda: girih.mlp([3, 8, 7, 4], seed=0),
    "leaky": lambda: girih.mlp([2, 9, 3], activation="leaky_relu", negative_slope=0.2, seed=1),
    "abs": lambda: girih.mlp([4, 6, 6, 2], activation="abs", seed=2),
    "hardtanh": lambda: nn.Sequential(
        nn.Linear(3, 8), nn.Hardtanh(), nn.Linear(8, 4), nn.ReLU6(), nn.Linear(4, 2)
    ).double(),
    "maximum": lambda: nn.Sequential(
        nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)), nn.MaxPool2d(2), nn.Flatten(), nn.ReLU(), nn.Linear(4, 3)
    ).double(),
    "convolution": lambda: nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 2, 2), nn.ReLU(), nn.Flatten()
    ).double(),
}


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5).double(), nn.Linear(5, 5).double()

    def forward(self, z):
        h = torch.relu(self.first(z))
        return torch.relu(h + self.second(h)) - 0.5 * h


DECODERS["skip"] = Skip


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [1e-3, 0.3, 4.0])
def test_every_point_of_a_box_is_enclosed(name, size):
    torch.manual_seed(3)
    trace = girih.trace(DECODERS[name]())
    S, rng = trace.latent_dim, np.random.default_rng(0)
    frame = torch.as_tensor(np.linalg.qr(rng.normal(size=(S, S)))[0])
    middle = torch.as_tensor(rng.normal(size=(20, S)))
    half = torch.as_tensor(size * rng.random((20, S)))
    features, blame = relax(trace, frame, middle, half)
    assert (features.radius >= 0).all()
    assert (blame >= 0).all()
    corners = rng.choice([-1.0, 1.0], size=(300, 20, S)) * np.where(
        rng.random((300, 1, 1)) < 0.3, 1.0, rng.random((300, 20, S))
    )
    d = torch.as_tensor(corners) * half
    h = trace.hidden_values(((middle + d) @ frame.mT).reshape(-1, S)).reshape(300, 20, -1)
    linear = features.value + torch.einsum("bhs,nbs->nbh", features.slope, d)
    assert ((h - linear).abs() <= features.radius).all()


@pytest.mark.parametrize("name", DECODERS)
def test_it_is_exact_where_nothing_bends(name):
    torch.manual_seed(3)
    trace = girih.trace(DECODERS[name]())
    S = trace.latent_dim
    z = torch.as_tensor(np.random.default_rng(1).normal(size=(10, S)))
    features, blame = relax(trace, torch.eye(S).double(), z, torch.full_like(z, 1e-9))
    jet = trace.hidden_jet(trace.pattern(z), z)
    assert (features.radius < 1e-10).all()
    assert torch.allclose(features.slope, jet.slope, atol=1e-12)
    assert torch.allclose(features.value, jet.value, atol=1e-12)
    assert (blame == 0).all()


@pytest.mark.parametrize("name", DECODERS)
def test_rectifiers_are_the_network(name):
    torch.manual_seed(3)
    trace = girih.trace(DECODERS[name]()).frozen()
    S, rng = trace.latent_dim, np.random.default_rng(2)
    factor, u = torch.as_tensor(rng.normal(size=(S, S))), torch.as_tensor(2.0 * rng.normal(size=(50, S)))
    units = units_of(trace, factor)
    v, a = values_of(units, u)
    assert sum(block.stop - block.start for block in units.blocks) == len(units.bias)
    for block in units.blocks:
        assert not units.weight[block, S + block.start :].any()  # earlier units alone
    assert torch.allclose(v @ units.weight.mT + units.bias, a, atol=1e-12)
    assert torch.equal(v[:, S:], a.clamp(min=0.0))
    assert torch.allclose(v @ units.head.mT + units.shift, trace.hidden_values(u @ factor.mT), atol=1e-11)
