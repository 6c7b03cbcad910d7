"""What must hold of every partition, on a registry of networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

import girih
from networks_to_partition import NETWORKS, make
from twins import f64

CASES = [(name, dim) for name in NETWORKS for dim in (2, 3)]
BOX = 3.0


@pytest.fixture(scope="module")
def parts():
    """Partitions by name and dimension, over the whole space and over a box, made once."""
    made = {}

    def get(name, dim, box=False):
        key = name, dim, box
        if key not in made:
            made[key] = girih.Partition(make(name, dim), domain=(-BOX, BOX) if box else None)
        return made[key]

    return get


def some(part, count=60):
    return range(0, len(part), max(1, len(part) // count))


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_cells_cover_the_domain_once(parts, name, dim):
    whole, box = parts(name, dim), parts(name, dim, True)
    assert whole.prior_mass.sum().item() == pytest.approx(1.0, rel=1e-10)
    assert box.volume.sum().item() == pytest.approx((2 * BOX) ** dim, rel=1e-10)
    assert (box.volume > 0).all()
    inside = math.erf(BOX / math.sqrt(2.0)) ** dim
    assert box.prior_mass.sum().item() == pytest.approx(inside, rel=1e-10)


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_interiors_are_disjoint_and_patterns_unique(parts, name, dim):
    for box in (False, True):
        part = parts(name, dim, box)
        assert len({bytes(row) for row in part.patterns.numpy()}) == len(part)
        assert torch.equal(part.locate(part.interior), torch.arange(len(part)))


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_no_pattern_is_missing(parts, name, dim):
    part = parts(name, dim)
    generator = torch.Generator().manual_seed(1)
    z = 2.0 * torch.randn(20_000, dim, generator=generator, dtype=torch.float64)
    z[:5000] *= 1000.0
    found = part.locate(z)
    assert (found >= 0).all()
    same = (part.patterns[found] == part.trace.pattern(z)).all(1)
    assert same.all()


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_vertices_and_rays_satisfy_the_half_spaces(parts, name, dim):
    for box in (False, True):
        part = parts(name, dim, box)
        for i in some(part):
            H, h = part.halfspaces(i)
            assert torch.allclose(H.norm(dim=1), torch.ones(len(H), dtype=torch.float64))
            vertices, rays = part.vertices(i), part.rays(i)
            scale = 1.0 + vertices.abs().amax(1)
            assert ((H @ vertices.T - h[:, None]) <= 1e-10 * scale).all()
            assert (H @ rays.T <= 1e-10).all()
            assert (H @ part.interior[i] < h).all()
            assert len(rays) or torch.isfinite(part.volume[i])
            assert not (box and len(rays))


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_half_spaces_are_irredundant(parts, name, dim):
    """Just beyond each of them lies another cell, or the end of the domain: seen from a point of the facet."""
    part = parts(name, dim, True)
    for i in some(part, 25):
        H, h = part.halfspaces(i)
        vertices = part.vertices(i)
        for normal, offset in zip(H, h, strict=True):
            on = (vertices @ normal - offset).abs() <= 1e-9 * (1 + vertices.abs().amax(1))
            assert on.sum() >= dim
            middle = vertices[on].mean(0)
            slack = h - H @ middle
            assert (slack <= 1e-9 * (1.0 + h.abs())).sum() == 1


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_the_hull_of_the_vertices_has_the_volume(parts, name, dim):
    from scipy.spatial import ConvexHull

    part = parts(name, dim, True)
    for i in some(part, 40):
        hull = ConvexHull(part.vertices(i).numpy(), qhull_options="QJ" if part.volume[i] < 1e-8 else "Qt")
        assert hull.volume == pytest.approx(part.volume[i].item(), rel=1e-6, abs=1e-9)
        if part.volume[i] > 1e-8:
            assert (hull.equations[:, :dim] @ part.centroid[i].numpy() + hull.equations[:, dim] <= 1e-9).all()


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_maps_equal_the_network(parts, name, dim):
    part = parts(name, dim, True)
    net = make(name, dim).double()
    A, b = part.affine
    for i in some(part, 40):
        for z in (part.centroid[i], *part.vertices(i)):
            expected = net(z[None]).flatten()
            assert torch.allclose(A[i] @ z + b[i], expected, rtol=1e-10, atol=1e-10)
        slope = jacobian(lambda z: net(z[None]).flatten(), part.centroid[i])
        assert torch.allclose(A[i], slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_neighbours_agree_on_their_facet(parts, name, dim):
    part = parts(name, dim, True)
    A, b = part.affine
    pairs, units = part.neighbors, part.separating_units
    assert len(pairs) == len(units) == len(torch.unique(pairs, dim=0))
    for (i, j), unit in list(zip(pairs.tolist(), units.tolist(), strict=True))[:: max(1, len(pairs) // 20)]:
        assert part.patterns[i, unit] != part.patterns[j, unit]
        assert j in part.neighbors_of(i) and i in part.neighbors_of(j)
        H, h = part.halfspaces(j)
        mine = part.vertices(i)
        shared = mine[((mine @ H.T - h) <= 1e-9 * (1.0 + h.abs())).all(1)]
        if len(shared):
            assert torch.allclose(shared @ A[i].T + b[i], shared @ A[j].T + b[j], rtol=1e-8, atol=1e-8)
            assert j in part.touching(shared[0]) and i in part.touching(shared[0])


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_the_cells_are_those_of_small_steps(parts, name, dim):
    """Neighbours are what a walk along random segments meets, but for steps over more than one facet."""
    part = parts(name, dim, True)
    generator = torch.Generator().manual_seed(2)
    ends = BOX * (2.0 * torch.rand(2, 6, dim, generator=generator, dtype=torch.float64) - 1.0)
    t = torch.linspace(0.0, 1.0, 4001, dtype=torch.float64)[:, None]
    pairs = {tuple(pair) for pair in part.neighbors.tolist()}
    met = 0
    for a, b in zip(*ends, strict=True):
        cells = part.locate(a + t * (b - a)).tolist()
        steps = [(min(p), max(p)) for p in itertools.pairwise(cells) if p[0] != p[1]]
        met += sum(step in pairs for step in steps)
        assert sum(step not in pairs for step in steps) <= 0.1 * len(steps) + 1
    assert met > 0 or len(part) < 10


@pytest.mark.parametrize("name", ["relu", "max-pooled", "residual", "saturating", "convolutional", "maxout"])
def test_one_dimension(name):
    part = girih.Partition(make(name, 1))
    assert part.prior_mass.sum().item() == pytest.approx(1.0, rel=1e-12)
    z = torch.linspace(-20, 20, 4001, dtype=torch.float64)[:, None]
    assert torch.equal(part.patterns[part.locate(z)], part.trace.pattern(z))
    assert (part.patterns[1:] != part.patterns[:-1]).any(1).all()


def test_the_same_cells_on_a_slice():
    """A slice through three dimensions has the patterns that the cells of the space have on it."""
    net = make("relu", 3)
    part = girih.Partition(net)
    origin, u, v = f64([0.1, -0.2, 0.3]), f64([1.0, 0.5, 0.0]), f64([0.0, 1.0, -1.0])
    flat = girih.Partition.slice(net, origin, u, v)
    known = {bytes(row) for row in part.patterns.numpy()}
    assert all(bytes(row) in known for row in flat.patterns.numpy())
    z = 3.0 * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = part.locate(origin + z[:, :1] * u + z[:, 1:] * v)
    assert torch.equal(part.patterns[inside], flat.patterns[flat.locate(z)])
    A, b = flat.affine
    assert torch.allclose((A[flat.locate(z)] @ z[:, :, None])[:, :, 0] + b[flat.locate(z)], flat.trace(z))


def test_a_slice_of_a_decoder_of_images():
    torch.manual_seed(0)
    net = make("convolutional", 64)
    eye = torch.eye(64, dtype=torch.float64)
    part = girih.Partition.slice(net, torch.zeros(64), eye[3], eye[40], domain=(-2, 2))
    assert part.volume.sum().item() == pytest.approx(16.0, rel=1e-10)


@pytest.mark.parametrize("dim", [2, 3])
def test_half_spaces_as_a_domain(dim):
    """A simplex, a half-space, and a slab."""
    net = make("relu", dim)
    H = torch.cat((-torch.eye(dim), torch.ones(1, dim))).double()
    h = torch.cat((torch.zeros(dim), torch.ones(1))).double()
    simplex = girih.Partition(net, domain=(H, h))
    assert simplex.volume.sum().item() == pytest.approx(1.0 / math.factorial(dim), rel=1e-10)
    assert simplex.locate(f64([[2.0] * dim, [0.1] * dim])).tolist()[0] == -1
    half = girih.Partition(net, domain=(H[:1], h[:1]))
    assert half.prior_mass.sum().item() == pytest.approx(0.5, rel=1e-10)
    slab = girih.Partition(net, domain=(torch.stack((H[0], -H[0])), f64([0.5, 0.5])))
    assert slab.prior_mass.sum().item() == pytest.approx(math.erf(0.5 / math.sqrt(2)), rel=1e-10)
    mixed = girih.Partition(net, domain=([-1.0] + [-math.inf] * (dim - 1), [1.0] * dim))
    phi = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert mixed.prior_mass.sum().item() == pytest.approx((2 * phi - 1) * phi ** (dim - 1), rel=1e-10)


def test_masses_of_a_correlated_prior():
    prior = f64([[2.0, 0.6], [0.6, 0.5]])
    part = girih.Partition(make("relu", 2), prior=prior)
    z = np.random.default_rng(0).multivariate_normal([0, 0], prior.numpy(), 200_000)
    counts = torch.bincount(part.locate(z), minlength=len(part)) / len(z)
    mass = part.prior_mass
    assert mass.sum().item() == pytest.approx(1.0, rel=1e-10)
    assert ((counts - mass).abs() <= 5.0 * (mass / len(z)).sqrt() + 5.0 / len(z)).all()
    assert torch.allclose(part.log_prior_mass.exp(), mass, rtol=1e-9, atol=0)
