"""Cells, their maps and everything that follows from singular values, against Jacobians by autograd."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih import geometry
from girih.errors import LatentDimensionError, NoiseError, ParameterError, ShapeError
from networks_to_partition import NETWORKS, make


def jacobian(net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda v: net(v[None]).reshape(-1), z)


def wide():
    return girih.mlp([6, 24, 24, 40], activation="relu", seed=1)


@pytest.fixture(scope="module")
def sampled():
    return geometry.sample_cells(wide(), 300, seed=2)


def test_singular_values_are_those_of_the_jacobian(sampled):
    net = wide()
    for k in range(0, len(sampled), 37):
        values = torch.linalg.svdvals(jacobian(net, sampled.points[k]))
        assert (sampled.singular_values[k] - values).abs().max() <= 1e-12 * values[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_volumes_and_ranks_on_a_registry(name):
    net = make(name, 2)
    cells = geometry.enumerate_cells(net)
    volume, rank = geometry.log_volume(cells), geometry.intrinsic_dimension(cells)
    bound = geometry.dimension_bound(cells)
    assert (rank.values <= bound.values).all() and (bound.values <= 2).all()
    pseudo = geometry.log_volume(cells, pseudo=True).values
    for k in np.random.default_rng(0).choice(len(cells), 8):
        values = np.linalg.svd(jacobian(net.double(), cells.points[k]).detach().numpy())[1]
        counts = values > 1e-10 * values[0]
        assert rank.values[k] == counts.sum()
        assert pseudo[k] == pytest.approx(np.log(values[counts]).sum(), abs=1e-9)
        assert volume.values[k] == (pseudo[k] if counts.sum() == 2 else -math.inf)


def test_small_singular_values_are_right_to_rounding_of_the_largest():
    torch.manual_seed(0)
    U = torch.linalg.qr(torch.randn(30, 4, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    net = nn.Sequential(nn.Linear(4, 30, dtype=torch.float64))
    net[0].weight = nn.Parameter(U * torch.tensor([1.0, 1e-4, 1e-8, 3e-11], dtype=torch.float64) @ V.mT)
    mpmath.mp.dps = 40
    weights = net[0].weight.detach()
    A = mpmath.matrix(weights.tolist())
    exact = torch.as_tensor(sorted(map(float, mpmath.svd_r(A, compute_uv=False)), reverse=True), dtype=torch.float64)
    found = geometry.singular_values(geometry.sample_cells(net, 1))[0]
    assert (found - exact).abs().max() <= 1e-15
    assert geometry.intrinsic_dimension(geometry.sample_cells(net, 1)).values.item() == 3
    assert geometry.intrinsic_dimension(geometry.sample_cells(net, 1), tolerance=1e-12).values.item() == 4


def test_fewer_outputs_than_latents_are_degenerate():
    cells = geometry.enumerate_cells(girih.mlp([3, 5, 2], seed=0))
    assert cells.singular_values.shape == (len(cells), 3)
    assert (cells.singular_values[:, 2] == 0).all()
    assert (geometry.intrinsic_dimension(cells).values == 2).all()
    assert geometry.log_volume(cells).mean == -math.inf
    assert math.isfinite(geometry.log_volume(cells, pseudo=True).mean)


def test_masses_of_sampled_cells_agree_with_the_exact_ones():
    net = girih.mlp([2, 6, 3], seed=0)
    exact = geometry.enumerate_cells(net, prior=[[2.0, 0.5], [0.5, 1.0]])
    met = geometry.sample_cells(net, 20_000, prior=[[2.0, 0.5], [0.5, 1.0]], seed=1)
    where = exact.partition.locate(met.points)
    assert (exact.patterns[where] == met.patterns).all()
    assert len(where.unique()) == len(met)
    z = (met.mass - exact.mass[where]) / met.mass_error
    assert z.square().mean() < 2.0
    assert met.unseen_mass < 0.01
    volume, rough = geometry.log_volume(exact), geometry.log_volume(met)
    assert abs(volume.mean - rough.mean) < 4 * rough.mean_error < 0.1
    assert volume.mean_error == 0.0


def test_the_mean_is_the_average_over_draws(sampled):
    z = torch.randn(300, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value = geometry.disentanglement(sampled)
    index = [int((sampled.patterns == code).all(1).nonzero()[0]) for code in sampled.trace.pattern(z)]
    draws = value.values[index]
    assert value.mean == pytest.approx(draws.mean().item(), rel=1e-12)
    assert value.mean_error == pytest.approx(draws.std().item() / math.sqrt(300), rel=1e-9)
    assert value.max == value.values[value.argmax]


def test_a_uniform_prior_cuts_the_cells_at_its_box():
    net = girih.mlp([2, 6, 3], seed=0)
    cells = geometry.enumerate_cells(net, geometry.Uniform([-1.0, 0.0], 2.0))
    z = torch.rand(50_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.tensor([-1.0, 0.0]) + z * torch.tensor([3.0, 2.0])
    share = torch.bincount(cells.partition.locate(z), minlength=len(cells)) / 50_000
    assert (share - cells.mass).abs().max() < 0.01
    line = geometry.enumerate_cells(girih.mlp([1, 6, 3], seed=0), geometry.Uniform(-1.0, 1.0))
    assert line.mass.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_layer_ranks_are_those_of_the_masked_weights():
    net = girih.mlp([5, 4, 7, 6], activation="relu", seed=0)
    cells = geometry.sample_cells(net, 200)
    ranks, names = geometry.layer_ranks(cells)
    first, second, last = (net[k].weight.detach() for k in (0, 2, 4))
    assert len(names) == 3
    for k in range(0, len(cells), 13):
        on = cells.patterns[k] > 0
        direct = [torch.linalg.matrix_rank(W).item() for W in (first[on[:4]], second[on[4:]], last)]
        assert ranks[k].tolist() == [min(5, rank) for rank in direct]
    gate = torch.tensor([1.0, 0.0, 0.0, 1.0])
    step = next(i for i, s in enumerate(cells.trace.steps) if s.size == 4 and s.path == names[0])
    fewer = geometry.dimension_bound(cells, gates={step: gate}).values
    assert (fewer <= 2).all() and (fewer <= geometry.dimension_bound(cells).values).all()


def test_layers_inside_a_branch_are_no_bottlenecks():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.back, self.head = nn.Linear(3, 1), nn.Linear(1, 3), nn.Linear(3, 4)

        def forward(self, z):
            return self.head(z + self.back(torch.relu(self.narrow(z))))

    torch.manual_seed(0)
    cells = geometry.enumerate_cells(Residual().double())
    assert (geometry.dimension_bound(cells).values == 3).all()
    assert (geometry.intrinsic_dimension(cells).values == 3).all()


@pytest.mark.parametrize("norm", ["spectral", "frobenius", "sum"])
def test_disentanglement_against_its_definition(sampled, norm):
    net, S = wide(), 6
    values = geometry.disentanglement(sampled, norm).values
    for k in range(0, len(sampled), 61):
        A = jacobian(net, sampled.points[k]).numpy()
        Q = np.array([[abs(A[:, i] @ A[:, j]) / np.sqrt(A[:, i] @ A[:, i] * (A[:, j] @ A[:, j])) for j in range(S)]
                      for i in range(S)])  # fmt: skip
        gap = Q - np.eye(S)
        direct = {"spectral": np.linalg.norm(gap, 2), "frobenius": np.linalg.norm(gap), "sum": np.triu(gap, 1).sum()}
        assert values[k].item() == pytest.approx(direct[norm], rel=1e-10)


def test_basis_vectors_are_columns_of_the_jacobian(sampled):
    images = geometry.basis(sampled, shape=(5, 8), index=[7, 3])
    assert images.shape == (2, 6, 5, 8)
    J = jacobian(wide(), sampled.points[3])
    torch.testing.assert_close(images[1], J.mT.reshape(6, 5, 8), rtol=1e-10, atol=1e-14)
    assert geometry.basis(sampled).shape == (len(sampled), 6, 40)


def test_chunks_agree_with_one_chunk(sampled, monkeypatch):
    whole = geometry.singular_values(geometry.sample_cells(wide(), 300, seed=2))
    monkeypatch.setattr("girih.geometry.cells._BUDGET", 5000)
    assert len(list(sampled.maps())) > 10
    torch.testing.assert_close(geometry.singular_values(geometry.sample_cells(wide(), 300, seed=2)), whole)


def test_no_gradients_are_kept(sampled):
    assert not geometry.log_volume(sampled).values.requires_grad
    assert not geometry.basis(sampled, index=[0]).requires_grad


def test_same_seed_same_cells():
    a, b = (geometry.sample_cells(wide(), 50, seed=5) for _ in range(2))
    assert torch.equal(a.points, b.points) and torch.equal(a.patterns, b.patterns)


def test_refusals(sampled):
    net = girih.mlp([2, 4, 3], seed=0)
    with pytest.raises(LatentDimensionError, match="sample_cells"):
        geometry.log_volume(wide())
    with pytest.raises(ParameterError, match="domain does not fit"):
        geometry.enumerate_cells(girih.Partition(net, domain=(-1.0, 1.0)))
    with pytest.raises(ParameterError, match="domain does not fit"):
        geometry.enumerate_cells(girih.Partition(net), geometry.Uniform(-1.0, 1.0))
    with pytest.raises(ParameterError, match="low < high"):
        geometry.sample_cells(net, 10, geometry.Uniform(1.0, 0.0))
    with pytest.raises(NoiseError):
        geometry.sample_cells(net, 10, [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ShapeError):
        geometry.sample_cells(net, 10, torch.eye(3))
    with pytest.raises(ParameterError, match="positive variance"):
        geometry.sample_cells(net, 10, -1.0)
    with pytest.raises(ParameterError):
        geometry.sample_cells(net, 0)
    with pytest.raises(ParameterError, match="norm"):
        geometry.disentanglement(sampled, "nuclear")
    with pytest.raises(ShapeError, match="D = 40"):
        geometry.basis(sampled, shape=(7, 7))
    with pytest.raises(ParameterError, match="index"):
        geometry.basis(sampled, index=[10_000])
    with pytest.raises(ParameterError, match="below 1"):
        geometry.intrinsic_dimension(sampled, tolerance=1.0)
    with pytest.raises(ParameterError, match="prior="):
        geometry.entropy(sampled, 2.0)
