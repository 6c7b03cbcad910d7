"""The networks on which the laws of partitions are tested, by name."""

from collections.abc import Callable

import torch
from torch import nn

import girih
from girih.networks import Maxout


class Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, 6), nn.Linear(6, dim)
        self.head = nn.Linear(dim + 6, 3)

    def forward(self, z):
        h = torch.relu(self.inner(z))
        return self.head(torch.cat((z + self.outer(h), torch.nn.functional.leaky_relu(h - 0.2, 0.3)), 1))


def convolutional(dim: int) -> nn.Module:
    net = nn.Sequential(
        nn.Linear(dim, 4),
        nn.Unflatten(1, (1, 2, 2)),
        nn.ConvTranspose2d(1, 2, 2, stride=2),
        nn.BatchNorm2d(2),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.AvgPool2d(2),
        nn.Conv2d(2, 1, 3, padding=1),
        nn.ReLU(),
    )
    with torch.no_grad():
        net[3].running_mean.normal_(), net[3].running_var.uniform_(0.5, 2.0)
    return net.eval()


def pooled(dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(dim, 8), nn.Unflatten(1, (1, 8)), nn.MaxPool1d(3, 2, padding=1), nn.Flatten(), nn.Linear(4, 3)
    )


def saturating(dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(dim, 5), nn.Hardtanh(), nn.Linear(5, 5), nn.ReLU6(), nn.Linear(5, 2), nn.Softshrink()
    )


def trained(dim: int) -> nn.Module:
    """A regression on a smooth surface, after some steps of Adam: units die and align."""
    generator = torch.Generator().manual_seed(0)
    net = girih.mlp([dim, 12, 12, 1], "relu", seed=3)
    z = 2.0 * torch.randn(256, dim, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (net(z)[:, 0] - z.square().sum(1).sqrt()).square().mean().backward()
        optimizer.step()
    return net


def degenerate(dim: int) -> nn.Module:
    """Duplicate, opposite, scaled and dead units, zero rows, and many hyperplanes through the origin."""
    net = girih.mlp([dim, 9, 8, 2], "relu", seed=1)
    with torch.no_grad():
        W, v = net[0].weight, net[0].bias
        W[1], v[1] = W[0], v[0]
        W[2], v[2] = -W[0], -v[0]
        W[3], v[3] = 0.3 * W[0], 0.3 * v[0]
        W[4], v[4] = 0.0, 0.0
        W[5], v[5] = 0.0, -1.0
        v[6:] = 0.0
        net[2].weight[1], net[2].bias[1] = net[2].weight[0], net[2].bias[0]
        net[2].weight[2] = 0.0
        net[2].bias[3:] = 0.0  # kinks of the second layer through corners of the first
    return net


def grid(dim: int) -> nn.Module:
    """Hyperplanes along the axes at whole numbers, and diagonals of the second layer through their corners."""
    net = girih.mlp([dim, 3 * dim, 2, 1], "abs", seed=0)
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(dim, dtype=torch.float64).repeat_interleave(3, 0))
        net[0].bias.copy_(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).repeat(dim))
        net[2].weight.zero_()
        net[2].weight[0, 1::3], net[2].weight[1, ::3] = 1.0, 1.0
        net[2].bias.copy_(torch.tensor([-1.0, -2.0], dtype=torch.float64))
    return net


def parallel(dim: int) -> nn.Module:
    """Every hyperplane has the same normal, so cells hold whole lines."""
    net = girih.mlp([dim, 4, 3, 2], "relu", seed=0)
    with torch.no_grad():
        net[0].weight[:] = net[0].weight[:1] * torch.tensor([[1.0], [-2.0], [0.5], [1.0]], dtype=torch.float64)
    return net


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda dim: girih.mlp([dim, 8, 8, 3], "relu", seed=0),
    "leaky": lambda dim: girih.mlp([dim, 10, 3], "leaky_relu", 0.3, seed=1),
    "abs": lambda dim: girih.mlp([dim, 5, 5, 3], "abs", seed=2),
    "deep": lambda dim: girih.mlp([dim, 5, 5, 5, 5, 2], "relu", seed=3),
    "one unit": lambda dim: girih.mlp([dim, 1, 3], "relu", seed=0),
    "affine": lambda dim: nn.Linear(dim, 3),
    "float32": lambda dim: girih.mlp([dim, 7, 6, 2], "relu", seed=5).float(),
    "residual": Residual,
    "convolutional": convolutional,
    "max-pooled": pooled,
    "maxout": lambda dim: nn.Sequential(nn.Linear(dim, 9), Maxout(3), nn.Linear(3, 4), nn.ReLU()),
    "saturating": saturating,
    "trained": trained,
    "degenerate": degenerate,
    "grid": grid,
    "parallel": parallel,
}


def make(name: str, dim: int) -> nn.Module:
    """A network of the registry, with weights that depend on nothing but its name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETWORKS[name](dim)
    return net if name == "float32" else net.double()
