"""Densities, entropies and uniform points on the manifold, against pushed-forward samples, grids and autograd."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import girih
from girih import geometry
from girih.errors import LatentDimensionError, ParameterError
from networks_to_partition import NETWORKS, make


def draws(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_log_density(net: nn.Module, z: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    prior = MultivariateNormal(torch.zeros(z.shape[1], dtype=torch.float64), covariance)
    J = torch.func.vmap(torch.func.jacrev(net))(z)
    return (prior.log_prob(z) - 0.5 * torch.linalg.slogdet(J.mT @ J)[1]).detach()


@pytest.mark.parametrize("sizes", [[1, 8, 3], [2, 8, 8, 9], [3, 6, 12]])
def test_density_of_an_injective_generator(sizes):
    net, dim = girih.mlp(sizes, seed=0), sizes[0]
    z = draws(50, dim)
    covariance = 0.5 * torch.eye(dim, dtype=torch.float64) + 0.2
    found = geometry.density(net, net(z).detach(), covariance)
    assert (found.count == 1).all() and not found.degenerate.any()
    slow = slow_log_density(net, z, covariance)
    torch.testing.assert_close(found.log_density, slow, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.preimages.latent, z, rtol=0, atol=1e-8)
    torch.testing.assert_close(geometry.latent_density(net, z, covariance), slow, rtol=0, atol=1e-9)
    off = geometry.density(net, net(z).detach() + 0.1 * draws(50, sizes[-1], 1))
    assert (off.log_density == -math.inf).all() and (off.count == 0).all()


def test_density_of_a_uniform_prior_integrates_to_the_area():
    net, box = girih.mlp([2, 8, 3], seed=0), geometry.Uniform(-1.0, 2.0)
    axis = torch.linspace(-1.0, 2.0, 152, dtype=torch.float64)
    z = torch.cartesian_prod(0.5 * (axis[1:] + axis[:-1]), 0.5 * (axis[1:] + axis[:-1]))
    J = torch.func.vmap(torch.func.jacrev(net))(z)
    area = (9.0 * torch.linalg.det(J.mT @ J).sqrt().mean()).item()
    some = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:2000]]
    found = geometry.density(net, net(some).detach(), box)
    inverse = (-found.log_density).exp()
    assert inverse.mean().item() == pytest.approx(area, abs=4 * inverse.std().item() / math.sqrt(2000))
    outside = net(torch.tensor([[2.5, 0.0]], dtype=torch.float64)).detach()
    assert geometry.density(net, outside, box).log_density.item() == -math.inf


def test_density_of_a_folding_generator_matches_a_histogram():
    net = girih.mlp([2, 6, 2], activation="abs", seed=0)
    x = net(draws(400_000, 2)).detach()
    side, middle = 0.2, x[4:10]
    inside = torch.stack([((x - m).abs() <= 0.5 * side).all(1) for m in middle]).double().mean(1)
    steps = side * ((torch.arange(60, dtype=torch.float64) + 0.5) / 60 - 0.5)
    points = (middle[:, None] + torch.cartesian_prod(steps, steps)).reshape(-1, 2)
    found = geometry.density(net, points)
    mass = side**2 * found.log_density.exp().reshape(6, -1).mean(1)
    assert found.count.max() > 1
    assert ((mass - inside).abs() <= 4 * (inside / 400_000).sqrt() + 0.03 * inside).all()


@pytest.mark.parametrize(("name", "dim"), [(name, dim) for name in NETWORKS for dim in (2, 3)])
def test_the_latent_is_among_the_preimages_on_a_registry(name, dim):
    part = girih.Partition(make(name, dim).double(), domain=(-3.0, 3.0))
    z = -3.0 + 6.0 * torch.rand(40, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    x = part.trace(z).detach()
    found = geometry.density(part, x, geometry.Uniform(-3.0, 3.0))
    flat = geometry.latent_density(part, z) == math.inf
    assert (found.count >= 1).all() and (found.degenerate | ~flat).all()
    pairs = found.preimages
    torch.testing.assert_close(part.trace(pairs.latent).detach(), x[pairs.row], rtol=1e-8, atol=1e-8)
    gap = torch.full((40,), math.inf, dtype=torch.float64)
    gap.scatter_reduce_(0, pairs.row, (pairs.latent - z[pairs.row]).norm(dim=1), "amin")
    assert (gap[~flat] < 1e-6).all()
    alone = geometry.latent_density(part, z, geometry.Uniform(-3.0, 3.0))
    assert (found.log_density >= alone - 1e-9).all()
    once = (found.count == 1) & ~found.degenerate
    torch.testing.assert_close(found.log_density[once], alone[once], rtol=0, atol=1e-8)


def test_preimages_are_all_roots_of_a_function_of_one_latent():
    net = girih.mlp([1, 10, 10, 1], activation="leaky_relu", seed=4)
    z = torch.linspace(-50, 50, 200_001, dtype=torch.float64)
    values = net(z[:, None])[:, 0].detach()
    x = torch.linspace(values.quantile(0.3), values.quantile(0.7), 25, dtype=torch.float64)[:, None] + 1e-7
    found = geometry.preimages(girih.Partition(net, domain=(-50.0, 50.0)), x)
    crossings = ((values[1:] > x) != (values[:-1] > x)).sum(1)
    assert torch.equal(torch.bincount(found.row, minlength=25), crossings)
    torch.testing.assert_close(net(found.latent).detach(), x[found.row], rtol=0, atol=1e-10)


def test_a_point_on_a_face_counts_once():
    net = girih.mlp([2, 8, 4], seed=0)
    part = girih.Partition(net)
    corners = torch.cat([part.vertices(i) for i in range(len(part))])[:40]
    found = geometry.preimages(part, net(corners).detach())
    assert torch.equal(found.row, torch.arange(40))
    torch.testing.assert_close(found.latent, corners, rtol=1e-8, atol=1e-8)


def test_degenerate_cells_have_infinite_density():
    net = girih.mlp([2, 4, 4], activation="relu", seed=0)
    cells = geometry.enumerate_cells(net)
    rank = geometry.intrinsic_dimension(cells).values
    assert (rank < 2).any()
    found = geometry.density(net, net(cells.points).detach())
    assert torch.equal(found.degenerate, rank < 2)
    assert torch.equal(found.log_density == math.inf, rank < 2)
    assert (found.count >= 1).all()
    for k in found.preimages.degenerate.nonzero()[:, 0].tolist():
        x = net(cells.points[found.preimages.row[k]])
        torch.testing.assert_close(net(found.preimages.latent[k]), x, rtol=0, atol=1e-8)
        assert int(found.preimages.cell[k]) in cells.partition.touching(found.preimages.latent[k])


@pytest.mark.parametrize("sizes", [[1, 8, 3], [2, 8, 8, 9], [3, 6, 12]])
def test_entropy_is_the_average_of_minus_log_density(sizes):
    net, dim = girih.mlp(sizes, seed=0), sizes[0]
    z = draws(4000, dim, 3)
    slow = -slow_log_density(net, z, torch.eye(dim, dtype=torch.float64))
    found = geometry.entropy(net)
    error = slow.std().item() / math.sqrt(4000)
    assert abs(found.value - slow.mean().item()) < 4 * error
    assert found.standard_error == 0.0 and found.degenerate_mass == 0.0
    sampled = geometry.entropy(geometry.sample_cells(net, 4000, seed=7))
    assert abs(sampled.value - found.value) < 4 * sampled.standard_error


def test_entropy_of_an_affine_generator_is_that_of_a_gaussian():
    net = girih.mlp([2, 2], seed=0)
    covariance = torch.tensor([[2.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    W = net[0].weight.detach()
    exact = MultivariateNormal(torch.zeros(2, dtype=torch.float64), W @ covariance @ W.mT).entropy().item()
    assert geometry.entropy(net, covariance).value == pytest.approx(exact, abs=1e-12)
    box = geometry.entropy(net, geometry.Uniform(0.0, 3.0)).value
    assert box == pytest.approx(math.log(9.0 * abs(torch.linalg.det(W).item())), abs=1e-12)


def test_entropy_of_a_fold():
    fold = nn.Sequential(nn.Linear(2, 2, bias=False), girih.networks.Abs()).double()
    nn.init.eye_(fold[0].weight)
    normal = 1.0 + math.log(2 * math.pi)
    assert geometry.entropy(fold).value == pytest.approx(normal, abs=1e-12)
    value, error = geometry.folded_entropy(fold, 1000)
    assert abs(value - (normal - 2 * math.log(2.0))) < 4 * error


def test_entropy_reports_degenerate_mass():
    net = girih.mlp([2, 4, 4], activation="relu", seed=0)
    cells = geometry.enumerate_cells(net)
    flat = geometry.intrinsic_dimension(cells).values < 2
    found = geometry.entropy(cells)
    assert found.value == -math.inf
    assert found.degenerate_mass == pytest.approx(cells.mass[flat].sum().item(), abs=1e-12)
    volume = geometry.log_volume(cells).values[~flat]
    assert found.mean_log_volume == pytest.approx(np.average(volume, weights=cells.mass[~flat]), abs=1e-12)
    assert geometry.folded_entropy(net, 50)[0] == -math.inf


def test_uniformity():
    isometry = nn.Sequential(nn.Linear(2, 3), girih.networks.Abs(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        isometry[0].weight[:] = torch.linalg.qr(draws(3, 2)).Q
        isometry[0].bias.zero_()
        isometry[2].weight[:] = torch.linalg.qr(draws(3, 3)).Q
    box = geometry.Uniform(-1.0, 1.0)
    assert geometry.uniformity(isometry, box).uniform
    found = geometry.uniformity(girih.mlp([2, 4, 3], activation="relu", seed=0), box)
    assert not found.uniform and found.least < found.most


@pytest.mark.parametrize("sizes", [[1, 8, 3], [2, 6, 6, 3], [3, 6, 5]])
def test_points_are_uniform_on_the_manifold(sizes):
    net, dim = girih.mlp(sizes, seed=1), sizes[0]
    sample = geometry.sample_uniform_on_manifold(net, 20_000, domain=(-1.0, 1.5), seed=1)
    torch.testing.assert_close(sample.x, net(sample.z).detach(), rtol=0, atol=1e-12)
    assert (sample.z >= -1.0).all() and (sample.z <= 1.5).all()
    # the same distribution by rejection: uniform latents, kept in proportion to their Jacobian by autograd
    z = -1.0 + 2.5 * torch.rand(60_000, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    J = torch.func.vmap(torch.func.jacrev(net))(z).detach()
    weight = torch.linalg.det(J.mT @ J).sqrt()
    for power in (1, 2):
        expected = (weight[:, None] * z**power).mean(0) / weight.mean()
        spread = (weight[:, None] * (z**power - expected)).std(0) / weight.mean() / math.sqrt(len(z))
        error = (sample.z**power).std(0) / math.sqrt(len(sample.z)) + spread
        assert ((sample.z**power).mean(0) - expected).abs().le(4.5 * error).all()
    area = 2.5**dim * weight.mean().item()
    assert sample.image_volume.sum().item() == pytest.approx(area, rel=0.03)
    assert sample.degenerate == 0


@pytest.mark.parametrize("name", ["max-pooled", "maxout", "residual", "leaky"])
def test_points_fill_the_cells_of_a_registry(name):
    net = make(name, 2).double()
    sample = geometry.sample_uniform_on_manifold(net, 4000, domain=(-2.0, 2.0))
    assert (sample.partition.locate(sample.z) == sample.cell).all()
    torch.testing.assert_close(sample.x, sample.partition.trace(sample.z).detach(), rtol=0, atol=1e-10)
    share = torch.bincount(sample.cell, minlength=len(sample.partition)) / 4000
    assert (share - sample.image_volume / sample.image_volume.sum()).abs().max() < 0.04
    for i in share.topk(2).indices.tolist():  # uniform in z on each cell: the mean is the centroid
        z = sample.z[sample.cell == i]
        gap = z.mean(0) - sample.partition.centroid[i]
        assert (gap.abs() <= 4.5 * z.std(0) / math.sqrt(len(z))).all()


def test_degenerate_cells_get_no_points():
    net = girih.mlp([2, 4, 4], activation="relu", seed=0)
    sample = geometry.sample_uniform_on_manifold(net, 500, domain=(-2.0, 2.0))
    rank = geometry.intrinsic_dimension(geometry.enumerate_cells(sample.partition, geometry.Uniform(-2.0, 2.0)))
    assert sample.degenerate == int((rank.values < 2).sum()) > 0
    assert (rank.values[sample.cell] == 2).all()
    again = geometry.sample_uniform_on_manifold(net, 500, domain=(-2.0, 2.0))
    assert torch.equal(sample.x, again.x)


def test_refusals():
    net = girih.mlp([2, 4, 3], seed=0)
    with pytest.raises(ParameterError, match="bounded"):
        geometry.sample_uniform_on_manifold(net, 10)
    with pytest.raises(ParameterError, match="bounded"):
        geometry.sample_uniform_on_manifold(girih.Partition(net), 10)
    with pytest.raises(ParameterError, match="degenerate"):
        geometry.sample_uniform_on_manifold(girih.mlp([2, 4, 1], seed=0), 10, domain=(-1.0, 1.0))
    with pytest.raises(LatentDimensionError):
        geometry.density(girih.mlp([4, 4, 5], seed=0), torch.zeros(1, 5))
    with pytest.raises(ParameterError):
        geometry.density(net, torch.zeros(1, 3), tolerance=0.0)
