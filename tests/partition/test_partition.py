import math

import pytest
import torch
from torch import nn

import girih
from girih.errors import (
    LatentDimensionError,
    NonFiniteError,
    ParameterError,
    ShapeError,
    UnsupportedLayerError,
)
from girih.gaussian import interval_log_mass
from twins import f64, linear


@pytest.fixture
def three_cells() -> nn.Sequential:
    """Kinks at -1 and 2."""
    return nn.Sequential(
        linear([[1.0], [1.0]], [1.0, -2.0]), nn.LeakyReLU(0.1), linear([[1.0, 0.5], [0.0, 1.0]], [0, 0])
    )


def test_the_whole_line(three_cells):
    part = girih.Partition(three_cells)
    assert part.volume.tolist() == [math.inf, 3.0, math.inf]
    assert part.neighbors.tolist() == [[0, 1], [1, 2]]
    assert part.patterns.tolist() == [[-1, -1], [1, -1], [1, 1]]
    assert part.vertices(0).tolist() == [[-1.0]]
    assert part.vertices(1).tolist() == [[-1.0], [2.0]]
    assert part.vertices(-1).tolist() == [[2.0]]
    assert repr(part) == "Partition(cells=3, latent_dim=1, domain=(-inf, inf))"


def test_half_spaces_hold_exactly_the_cell(three_cells):
    part = girih.Partition(three_cells)
    z = torch.linspace(-4, 4, 100, dtype=torch.float64)[:, None]
    for i in range(len(part)):
        normals, offsets = part.halfspaces(i)
        assert len(normals) == len(part.vertices(i))
        assert torch.equal((z @ normals.T <= offsets).all(1), part.locate(z) == i)
    normals, offsets = girih.Partition(nn.Linear(1, 2)).halfspaces(0)
    assert normals.shape == (0, 1) and offsets.shape == (0,)


@pytest.mark.parametrize(
    ("domain", "volume"),
    [
        ((-3.0, 5.0), [2.0, 3.0, 3.0]),
        ((-math.inf, 0.0), [math.inf, 1.0]),
        ((0.0, 1.0), [1.0]),
        ((5.0, math.inf), [math.inf]),
        ((-1.0, 2.0), [3.0]),
        (torch.tensor([[-3.0], [0.0]]), [2.0, 1.0]),
    ],
)
def test_a_domain_cuts_the_cells(three_cells, domain, volume):
    whole, part = girih.Partition(three_cells), girih.Partition(three_cells, domain=domain)
    assert part.volume.tolist() == volume
    lower, upper = part.bounds
    middle = torch.where(lower.isinf(), upper - 1, torch.where(upper.isinf(), lower + 1, 0.5 * (lower + upper)))
    cells = whole.locate(middle)
    assert torch.equal(part.patterns, whole.patterns[cells])
    assert torch.equal(part.affine[0], whole.affine[0][cells])
    assert torch.equal(part.affine[1], whole.affine[1][cells])
    mass = interval_log_mass(*f64(domain).reshape(-1)).exp()
    assert part.prior_mass.sum().item() == pytest.approx(mass.item(), rel=1e-12)


def test_locate(three_cells):
    z = f64([-5.0, -0.5, 2.5, 100.0])
    assert girih.Partition(three_cells).locate(z).tolist() == [0, 1, 2, 2]
    assert girih.Partition(three_cells, domain=(-3, 5)).locate(z).tolist() == [-1, 1, 2, -1]
    assert girih.Partition(three_cells).locate([[-1.0], [2.0]]).tolist() == [0, 1]
    assert girih.Partition(three_cells).locate(torch.empty(0, 1)).tolist() == []


def test_prior_mass_of_a_wide_prior(three_cells):
    part = girih.Partition(three_cells, prior=100.0)
    expected = torch.distributions.Normal(f64(0.0), f64(10.0)).cdf(f64([-1.0, 2.0]))
    assert torch.allclose(part.prior_mass.cumsum(0)[:2], expected, rtol=1e-12)


def test_prior_masses_far_in_the_tails_keep_their_logarithm():
    net = nn.Sequential(linear([[1.0], [1.0]], [-50.0, -60.0]), nn.ReLU(), linear([[1.0, 1.0]], [0.0]))
    log_mass = girih.Partition(net).log_prior_mass
    assert log_mass[1].item() == pytest.approx(-1250 - math.log(50 * math.sqrt(2 * math.pi)), abs=1e-3)
    assert log_mass[2].item() == pytest.approx(-1800 - math.log(60 * math.sqrt(2 * math.pi)), abs=1e-3)


def test_the_partition_of_a_model_uses_its_prior():
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), prior=4.0)
    assert torch.equal(dgn.partition.prior_mass, girih.Partition(dgn.net, prior=4.0).prior_mass)


def test_maps_are_differentiable(three_cells):
    slope, offset = girih.Partition(three_cells).affine
    (slope.sum() + offset.sum()).backward()
    assert all(parameter.grad is not None for parameter in three_cells.parameters())


def test_float32_networks():
    part = girih.Partition(girih.mlp([1, 6, 2], seed=0).float())
    assert part.breakpoints.dtype == part.affine[0].dtype == torch.float64
    exact = girih.Partition(girih.mlp([1, 6, 2], seed=0)).breakpoints
    assert torch.allclose(part.breakpoints, exact, rtol=1e-5)


def test_bad_input_is_refused(three_cells):
    with pytest.raises(
        LatentDimensionError, match=r"S = 1 to 3, and this generator has S = 4, .* girih\.Partition\.slice"
    ):
        girih.Partition(girih.mlp([4, 4, 2]))
    with pytest.raises(UnsupportedLayerError, match=r"expected a torch\.nn\.Module.*, got int"):
        girih.Partition(3)
    with pytest.raises(UnsupportedLayerError, match=r"net is not a \.pt2 file"):
        girih.Partition("net")
    with pytest.raises(ShapeError, match=r"domain must be \(low, high\)"):
        girih.Partition(three_cells, domain=(0.0, 1.0, 2.0))
    with pytest.raises(ParameterError, match=r"domain must have low < high, got \(1.0, 1.0\)"):
        girih.Partition(three_cells, domain=(1.0, 1.0))
    with pytest.raises(NonFiniteError, match="domain holds NaN"):
        girih.Partition(three_cells, domain=(math.nan, 1.0))
    with pytest.raises(ParameterError, match="prior must be a positive variance, got -1"):
        girih.Partition(three_cells, prior=-1.0)
    part = girih.Partition(three_cells)
    with pytest.raises(ParameterError, match="cell index 3 is out of range for 3 cells"):
        part.vertices(3)
    with pytest.raises(NonFiniteError, match="z holds NaN"):
        part.locate([[math.nan]])
    with pytest.raises(ShapeError, match="z has 2 columns, but the latent dimension S is 1"):
        part.locate([[0.0, 1.0]])
