"""Slow and obviously right versions of what girih computes, for S = 1.

They use the torch module itself, never girih's traces, patterns or truncated Gaussians. The limits of cells
that they take from elsewhere only say where quadrature panels end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mpmath
import numpy as np
import torch
from torch import Tensor, nn

import girih
from girih.networks import Abs

KINKS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, Abs)
NODES, WEIGHTS = (torch.as_tensor(array) for array in np.polynomial.legendre.leggauss(16))


def f64(value) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


# The partition of the line, by looking


def signs(net: nn.Sequential, z: Tensor) -> Tensor:
    """The sign of every hidden unit of a chain of layers, `(N, U)`."""
    h, out = z[:, None], [torch.empty(len(z), 0, dtype=torch.bool)]
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, KINKS):
                out.append(h > 0)
            h = layer(h)
    return torch.cat(out, 1)


def breakpoints(net: nn.Sequential, samples: int = 50_001) -> Tensor:
    """Every z where a sign changes between neighbours of a dense grid over R, polished by bisection.

    The grid is made finer around the roots of a first pass, for cells too narrow for it.
    """
    grid = torch.tan(torch.linspace(-0.5 * math.pi, 0.5 * math.pi, samples, dtype=torch.float64)[1:-1])
    roots = _sign_changes(net, grid)
    steps = torch.logspace(-12, -2, 41, dtype=torch.float64)
    around = (roots[:, None] + torch.cat((-steps, steps))).flatten()
    return _sign_changes(net, torch.cat((grid, around)).sort().values)


def _sign_changes(net: nn.Sequential, grid: Tensor) -> Tensor:
    pattern = signs(net, grid)
    row, unit = (pattern[1:] != pattern[:-1]).nonzero(as_tuple=True)
    left, right = grid[row], grid[row + 1]
    before = pattern[row, unit]
    index = torch.arange(len(unit))
    for _ in range(100):
        middle = 0.5 * (left + right)
        same = signs(net, middle)[index, unit] == before
        left, right = torch.where(same, middle, left), torch.where(same, right, middle)
    return left.sort().values


# Densities, by quadrature over z


class LogJoint:
    """`log p(x_n, z)` of one row with missing entries, straight from the definition of the model."""

    def __init__(self, net: nn.Module, noise, prior: float, row: Tensor) -> None:
        self.net, self.prior = net, float(prior)
        self.seen = ~row.isnan()
        self.x = row[self.seen]
        covariance = noise if noise.ndim == 2 else torch.diag(noise.expand(len(row)))
        root = torch.linalg.cholesky(covariance[self.seen][:, self.seen])
        self.whitener = torch.linalg.inv(root)
        self.constant = -0.5 * (len(self.x) * math.log(2 * math.pi) + math.log(2 * math.pi * self.prior))
        self.constant -= root.diagonal().log().sum().item()

    def __call__(self, z: Tensor) -> Tensor:
        g = self.net(z.reshape(-1, 1))[:, self.seen]
        energy = ((self.x - g) @ self.whitener.T).square().sum(1).reshape(z.shape) + z.square() / self.prior
        return self.constant - 0.5 * energy

    def gradient(self, z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(self(z).sum(), z)[0]


class Quadrature(NamedTuple):
    """Nodes over z for one row, with `log p(x, z)` and the log-mass of each; nodes are sorted."""

    z: Tensor
    log_joint: Tensor
    log_mass: Tensor

    @property
    def log_prob(self) -> Tensor:
        return self.log_mass.logsumexp(0)

    @property
    def weights(self) -> Tensor:
        return self.log_mass.softmax(0)

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.z

    @property
    def variance(self) -> Tensor:
        return self.weights @ (self.z - self.mean).square()

    @property
    def entropy(self) -> Tensor:
        return self.weights @ (self.log_prob - self.log_joint)


def quadrature(f: LogJoint, knots: Tensor, panels: int = 20) -> Quadrature:
    """Gauss-Legendre panels around the peak of every cell, out to where the integrand has lost 60 nats.

    On a cell f is a concave quadratic: two gradients give its peak, and how fast it falls from there. Cells
    whose peak is 100 nats below the highest are left out.
    """
    far = knots.new_tensor([1.0])
    ends = torch.cat((knots[:1] - far, knots, knots[-1:] + far)) if len(knots) else torch.cat((-far, far))
    inside, width = 0.5 * (ends[1:] + ends[:-1]), ends.diff()
    lower, upper = ends[:-1].clone(), ends[1:].clone()
    lower[0], upper[-1] = -torch.inf, torch.inf

    slope = f.gradient(inside)
    curvature = (f.gradient(inside - 0.25 * width) - f.gradient(inside + 0.25 * width)) / (0.5 * width)
    curvature = curvature.clamp(min=1 / f.prior)
    peak = torch.minimum(torch.maximum(inside + slope / curvature, lower), upper)
    with torch.no_grad():
        top = f(peak)
        keep = top > top.max() - 100
    inside, slope, curvature, peak = inside[keep], slope[keep], curvature[keep], peak[keep]
    fall = (slope - curvature * (peak - inside)).abs()
    reach = 120 / (fall + (fall.square() + 120 * curvature).sqrt())  # fall * t + curvature * t^2 / 2 = 60

    steps = torch.linspace(-1, 1, 2 * panels + 1, dtype=torch.float64)
    edges = peak[:, None] + reach[:, None] * steps
    edges = torch.minimum(torch.maximum(edges, lower[keep][:, None]), upper[keep][:, None])
    half = 0.5 * edges.diff(dim=1)[..., None]
    z = (edges[:, :-1, None] + half * (1 + NODES)).flatten()
    used = (half * WEIGHTS).flatten() > 0
    z, weight = z[used], (half * WEIGHTS).flatten()[used]
    with torch.no_grad():
        value = f(z)
    return Quadrature(z, value, value + weight.log())


def kl(mean: Tensor, deviation: Tensor, knots: Tensor, log_density: Callable[[Tensor], Tensor]) -> Tensor:
    """`KL(q || p)` of one Gaussian q, by panels over 12 deviations that end at the knots."""
    grid = mean + deviation * torch.linspace(-12, 12, 97, dtype=torch.float64)
    edges = torch.cat((grid, knots.clamp(grid[0], grid[-1]))).sort().values
    half = 0.5 * edges.diff()[:, None]
    z = (edges[:-1, None] + half * (1 + NODES)).flatten()
    log_q = -0.5 * ((z - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
    return ((half * WEIGHTS).flatten() * log_q.exp()) @ (log_q - log_density(z))


# Truncated normals, with 200 digits


def interval(lower: float, upper: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """Log-mass of N(0, 1) on an interval, mean about its point nearest to 0, and variance."""
    with mpmath.workdps(200):
        a, b = mpmath.mpf(lower), mpmath.mpf(upper)
        if b <= 0:
            log_mass, mean, variance = interval(-upper, -lower)
            return log_mass, -mean, variance

        def height(u: mpmath.mpf, power: int) -> mpmath.mpf:
            return mpmath.mpf(0) if mpmath.isinf(u) else u**power * mpmath.npdf(u)

        mass = (mpmath.erfc(a / mpmath.sqrt(2)) - mpmath.erfc(b / mpmath.sqrt(2))) / 2
        mean = (height(a, 0) - height(b, 0)) / mass
        second = 1 + (height(a, 1) - height(b, 1)) / mass
        return mpmath.log(mass), mean - max(a, mpmath.mpf(0)), second - mean**2


# Gradients


def central_difference(f: Callable[[], Tensor], parameter: Tensor, step: float = 1e-4) -> Tensor:
    """The gradient of a scalar f in a tensor that it reads, by the five-point formula."""
    flat = parameter.data.view(-1)
    gradient = torch.zeros_like(flat)
    with torch.no_grad():
        for k, centre in enumerate(flat.tolist()):
            if math.isnan(centre):
                continue
            values = []
            for multiple in (-2, -1, 1, 2):
                flat[k] = centre + multiple * step
                values.append(f().item())
            flat[k] = centre
            gradient[k] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return gradient.view_as(parameter)


def directional_difference(f: Callable[[], Tensor], tensors: list[Tensor], steps: list[Tensor]) -> float:
    """The derivative of a scalar f, as its tensors move along steps, by the five-point formula."""
    values = []
    kept = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for multiple in (-2, -1, 1, 2):
            for tensor, step, start in zip(tensors, steps, kept, strict=True):
                tensor.copy_(start + multiple * 1e-3 * step)
            values.append(f().item())
        for tensor, start in zip(tensors, kept, strict=True):
            tensor.copy_(start)
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-3


def entry_difference(f: Callable[[], Tensor], parameter: Tensor, step: float = 1e-5) -> float:
    """The derivative of a scalar f in the first entry of a parameter."""
    way = torch.zeros_like(parameter)
    way.view(-1)[0] = step / 1e-3
    return directional_difference(f, [parameter], [way]) / (step / 1e-3)


# Networks and models by name


def linear(weight, bias) -> nn.Linear:
    weight, bias = f64(weight), f64(bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def noise_of_kind(kind: str, variance: float, size: int, seed: int) -> Tensor:
    """A scalar, diagonal or full noise of about this variance."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return {
        "scalar": f64(variance),
        "diagonal": variance * spread[0].exp(),
        "full": variance * (spread @ spread.T / size + 0.1 * torch.eye(size, dtype=torch.float64)),
    }[kind]


def prior_of_dim(S: int, seed: int) -> Tensor:
    """A full `(S, S)` covariance of about unit size."""
    generator = torch.Generator().manual_seed(100 + seed)
    root = torch.eye(S, dtype=torch.float64) + 0.4 * torch.randn(S, S, dtype=torch.float64, generator=generator).tril()
    return root @ root.mT


def rows_near_and_far(dgn: girih.DGN, distances: tuple[float, ...], seed: int) -> Tensor:
    """Draws from the model, points at given distances from the manifold, and points out along its ends."""
    generator = torch.Generator().manual_seed(seed)
    p = dgn()
    away = torch.randn(len(distances), dgn.output_dim, dtype=torch.float64, generator=generator)
    away = away / away.norm(dim=1, keepdim=True) * f64(distances)[:, None]
    with torch.no_grad():
        S = dgn.latent_dim
        tails = dgn.net(f64([[-30.0] * S, [40.0] * S])) + 0.1
        on = dgn.net(f64([[0.2] * S])) + away
    return torch.cat((p.sample((2,), seed=seed), on, tails))
