"""Generators with S = D as flows, against quadrature, histograms, autograd and finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import LatentDimensionError, NonFiniteError, ParameterError, ShapeError
from girih.flows import DGNFlow, invert_chain, square_net


def draws(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(dim: int, depth: int, seed: int, prelu: bool = False) -> nn.Sequential:
    """A random bijection, away from the start that `square_net` makes."""
    net = girih.mlp([dim] * (depth + 2), negative_slope=0.4, seed=seed)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight += torch.eye(dim, dtype=torch.float64)
    if prelu:
        layers = [nn.PReLU(dim, init=0.6).double() if isinstance(layer, nn.LeakyReLU) else layer for layer in net]
        with torch.no_grad():
            for layer in layers[1::2]:
                layer.weight[0] = 1.7
        net = nn.Sequential(*layers)
    return net


def slow_log_det(net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """log|det dg/dz| by autograd, row by row."""
    J = torch.stack([torch.autograd.functional.jacobian(net, row[None])[0, :, 0] for row in z])
    return torch.linalg.slogdet(J).logabsdet


@pytest.mark.parametrize(("dim", "prelu"), [(1, False), (2, True), (3, False), (12, True)])
def test_layers_are_undone(dim, prelu):
    net = chain(dim, 3, seed=dim, prelu=prelu)
    flow, z = DGNFlow(net), draws(60, dim)
    assert flow.is_bijective
    x = net(z).detach()
    back, size = invert_chain(flow.trace, x)
    torch.testing.assert_close(back, z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(size, slow_log_det(net, z), rtol=0, atol=1e-9)
    prior = torch.distributions.Normal(torch.zeros(dim, dtype=torch.float64), 1.0)
    slow = prior.log_prob(z).sum(1) - slow_log_det(net, z)
    torch.testing.assert_close(flow().log_prob(x), slow, rtol=0, atol=1e-7)
    assert torch.equal(flow().latents(x).row, torch.arange(60))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_partition_agrees_with_layer_by_layer(monkeypatch, dim):
    """Values and gradients of the same bijection, in x and in all parameters."""
    net = chain(dim, 2, seed=7 + dim, prelu=True)
    x = net(draws(30, dim)).detach()
    results = []
    for bijective in (True, False):
        if not bijective:
            monkeypatch.setattr("girih.flows.push_forward.is_bijective_chain", lambda traced: False)
        at = x.clone().requires_grad_()
        value = DGNFlow(net)().log_prob(at)
        weights = torch.linspace(0.5, 2.0, 30, dtype=torch.float64)
        results.append([value.detach(), *torch.autograd.grad((weights * value).sum(), [at, *net.parameters()])])
    for quick, slow in zip(*results, strict=True):
        torch.testing.assert_close(quick, slow, rtol=1e-7, atol=1e-7)


def folding_nets():
    return [
        girih.mlp([1, 6, 1], "abs", seed=0),
        girih.mlp([1, 5, 5, 1], "leaky_relu", seed=3),
        girih.mlp([2, 6, 2], "abs", seed=0),
        girih.mlp([2, 6, 6, 2], "leaky_relu", seed=2),
        girih.mlp([3, 5, 3], "abs", seed=1),
    ]


@pytest.mark.parametrize("which", range(5))
def test_folds_add_up(which):
    """Against the maps of all cells, one cell after another."""
    net = folding_nets()[which]
    flow, dim = DGNFlow(net), DGNFlow(net).features
    x = net(draws(20, dim, 5)).detach()
    part = girih.Partition(net)
    A, b = (side.detach() for side in part.affine)
    total = torch.zeros(20, dtype=torch.float64)
    prior = torch.distributions.Normal(torch.zeros(dim, dtype=torch.float64), 1.0)
    for i in range(len(part)):
        z = torch.linalg.solve(A[i], (x - b[i]).mT).mT
        H, h = part.halfspaces(i)
        inside = (z @ H.mT <= h).all(1)
        total += inside * (prior.log_prob(z).sum(1) - torch.linalg.slogdet(A[i]).logabsdet).exp()
    torch.testing.assert_close(flow().log_prob(x), total.log(), rtol=0, atol=1e-8)
    found = flow().latents(x)
    torch.testing.assert_close(net(found.z).detach(), x[found.row], rtol=1e-8, atol=1e-8)
    assert torch.bincount(found.row).max() > 1


@pytest.mark.parametrize("which", range(5))
def test_gradients_against_finite_differences(which):
    net = folding_nets()[which]
    flow = DGNFlow(net)
    x = net(draws(12, flow.features, 9)).detach()
    x.requires_grad_()
    flow().log_prob(x).sum().backward()
    rng = np.random.default_rng(which)
    checked = 0
    with torch.no_grad():
        for tensor in (x, *net.parameters()):
            flat, slope = tensor.data.view(-1), tensor.grad.view(-1)
            for k in rng.choice(len(flat), min(4, len(flat)), replace=False):
                at, values = float(flat[k]), []
                for step in (1e-6, -1e-6):
                    flat[k] = at + step
                    values.append(flow().log_prob(x).sum().item())
                flat[k] = at
                assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope[k].item(), rel=2e-5, abs=2e-5)
                checked += 1
    assert checked > 8


def test_density_of_a_line_integrates_to_one():
    for net in folding_nets()[:2]:
        flow = DGNFlow(net)
        with torch.no_grad():
            draw = flow().sample((4000,), seed=0)
            low, high = draw.min().item() - 6 * draw.std().item(), draw.max().item() + 6 * draw.std().item()
            # split where the density jumps: at the images of the kinks
            kinks = net(girih.Partition(net).breakpoints[:, None])[:, 0].sort().values
            ends = torch.cat((torch.tensor([low]), kinks[(kinks > low) & (kinks < high)], torch.tensor([high])))
            nodes, weights = np.polynomial.legendre.leggauss(200)
            total = 0.0
            for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
                at = torch.as_tensor(0.5 * (a + b) + 0.5 * (b - a) * nodes)[:, None]
                total += 0.5 * (b - a) * float((torch.as_tensor(weights) * flow().log_prob(at).exp()).sum())
        assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("bijective", [True, False])
def test_density_of_a_plane_against_a_histogram_and_one(bijective):
    net = chain(2, 3, seed=4) if bijective else girih.mlp([2, 6, 2], "abs", seed=3)
    flow = DGNFlow(net)
    x = flow().sample((400_000,), seed=3)
    low, high = x.quantile(0.001, 0), x.quantile(0.999, 0)
    size = (high - low) / 24
    place = ((x - low) / size).floor().long()
    inside = ((place >= 0) & (place < 24)).all(1)
    counts = torch.bincount(place[inside] @ torch.tensor([24, 1]), minlength=24 * 24) / len(x)
    axis = (torch.arange(24 * 6, dtype=torch.float64) + 0.5) / 6
    with torch.no_grad():
        p = flow().log_prob(low + size * torch.cartesian_prod(axis, axis)).exp()
    mass = size.prod() * p.reshape(24, 6, 24, 6).mean((1, 3)).flatten()
    assert mass.sum().item() == pytest.approx(inside.double().mean().item(), abs=3e-3)
    error = 5 * (counts.clamp(min=1e-6) / len(x)).sqrt() + 0.1 * counts + 2e-4  # cells of the grid that a kink cuts
    assert ((mass - counts).abs() <= error).double().mean() > 0.99
    assert (mass - counts).abs().sum() < 0.04


def test_points_that_nothing_reaches():
    net = nn.Sequential(girih.networks.Abs(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(2))
        net[1].bias.zero_()
    flow = DGNFlow(net)
    value = flow().log_prob([[1.0, 2.0], [-1.0, 2.0]])
    four = math.log(4.0) - math.log(2.0 * math.pi) - 2.5
    assert value.tolist() == [pytest.approx(four, abs=1e-12), -math.inf]
    value[0].backward()
    assert torch.isfinite(net[1].bias.grad).all()
    with pytest.raises(NonFiniteError, match="1 of 2 rows"):
        flow.fit([[1.0, 2.0], [-1.0, 2.5]], max_epochs=1, progress=False)
    with pytest.raises(NonFiniteError, match="2 of 2 rows"):
        flow.fit([[-1.0, -2.0], [-2.0, -2.5]], max_epochs=1, progress=False)


def test_cells_without_volume():
    flow = DGNFlow(girih.mlp([2, 3, 2], "relu", seed=0))
    dead = flow.trace(girih.Partition(flow.net).interior).detach()
    rank = girih.geometry.intrinsic_dimension(flow.net).values
    assert (rank < 2).any()
    assert torch.equal(flow().log_prob(dead) == math.inf, rank < 2)


def test_a_bounded_prior():
    flow = DGNFlow(girih.mlp([2, 5, 2], "abs", seed=0), prior=girih.geometry.Uniform(-1.0, 1.0))
    x = flow().sample((50,), seed=0)
    assert torch.isfinite(flow().log_prob(x)).all()
    far = flow.trace(torch.tensor([[40.0, 30.0]]))
    assert flow().log_prob(far).item() == -math.inf


def test_refusals():
    with pytest.raises(ShapeError, match=r"geometry\.density"):
        DGNFlow(girih.mlp([2, 4, 3], seed=0))
    with pytest.raises(LatentDimensionError, match="square_net"):
        DGNFlow(girih.mlp([4, 6, 4], seed=0))
    with pytest.raises(LatentDimensionError):
        DGNFlow(chain(5, 1, seed=0).append(nn.ReLU()))
    flow = DGNFlow.square(2, depth=1)
    with pytest.raises(ShapeError, match="2 features"):
        flow().log_prob(torch.zeros(4, 3))
    with pytest.raises(NonFiniteError):
        flow().log_prob([[math.nan, 0.0]])
    with pytest.raises(ParameterError, match="does not vary"):
        flow.fit(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), progress=False)
    with pytest.raises(ParameterError, match="hyperplane"):
        square_net(2, data=draws(20, 1).expand(20, 2))
    with pytest.raises(ParameterError, match="negative_slope"):
        square_net(2, negative_slope=1.5)
    with pytest.raises(ParameterError, match="context"):
        flow(torch.zeros(1))
    with torch.no_grad():
        flow.net[0].weight.zero_()
    with pytest.raises(NonFiniteError, match="singular"):
        flow().log_prob(torch.zeros(1, 2))
