"""Compiled masses and moments against their twins: the torch form, slices, products of intervals, 20 digits."""

import math

import mpmath
import numpy as np
import pytest
import torch

from girih.gaussian import Polygons, Polyhedra, from_halfspaces, interval_moments, prepared
from random_polytopes import KINDS, random_polytope
from twins import f64

pytestmark = pytest.mark.skipif(prepared.kernels() is None, reason="needs Numba, the extra `fast`")


@pytest.fixture
def torch_form(monkeypatch):
    """A method of a list in the torch form."""

    def call(method):
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "kernels", lambda: None)
            return method()

    return call


def farthest(shapes):
    """Distance of the farthest vertex of each set, at least 1."""
    owner = shapes.owner if isinstance(shapes, Polygons) else shapes.owner[shapes.face]
    away = (shapes.tail[:, :-1] * shapes.tail[:, -1:]).norm(dim=1)
    return torch.ones(shapes.count, dtype=torch.float64).scatter_reduce(0, owner, away, "amax")


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_masses_and_moments_are_those_of_the_torch_form_and_of_slices(kind, S, torch_form):
    rng = np.random.default_rng(S)
    shapes, _ = from_halfspaces([random_polytope(kind, S, rng) for _ in range(25)])
    far = farthest(shapes)
    ours, theirs = shapes.raw_moments(), torch_form(shapes.raw_moments)
    assert torch.equal(shapes.mass(), ours[0].clamp(min=0.0))
    for one, other in zip(ours, theirs, strict=True):  # the torch form is the less exact one at S = 3
        error = (one - other).abs().flatten(1).amax(1) if one.ndim > 1 else (one - other).abs()
        assert (error < (1e-15 if S == 2 else 5e-14) * far).all()
    slices = shapes.log_mass("slices").exp()
    assert ((ours[0] - slices).abs() < 1e-15 * far + 1e-12 * slices).all()


@pytest.mark.parametrize("form", ["best", "slices"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_masses_and_moments_of_polygons_are_those_of_tables(kind, form, torch_form):
    rng = np.random.default_rng(1)
    shapes, _ = from_halfspaces([random_polytope(kind, 2, rng) for _ in range(60)])
    (log_p, mean, root), (twin_p, twin_mean, twin_root) = shapes.roots(form), torch_form(lambda: shapes.roots(form))
    bound = 1e-10 if form == "best" else 1e-12  # the signed forms differ in what they do about small masses
    size = twin_p.abs().clamp(min=1.0)
    assert torch.isfinite(twin_p).all()
    assert ((log_p - twin_p).abs() < bound * size).all()
    assert ((shapes.log_mass(form) - torch_form(lambda: shapes.log_mass(form))).abs() < bound * size).all()
    covariance, twin = root @ root.mT, twin_root @ twin_root.mT
    spread = twin.flatten(1).norm(dim=1)
    assert ((mean - twin_mean).norm(dim=1) < bound * (spread.sqrt() + mean.norm(dim=1))).all()
    assert ((covariance - twin).flatten(1).norm(dim=1) < 10.0 * bound * spread).all()


def test_polygons_far_out_are_seen_from_their_nearest_points(torch_form):
    rng = np.random.default_rng(2)
    shapes, _ = from_halfspaces([random_polytope("far cone", 2, rng) for _ in range(40)])
    away = shapes.nearest()
    some = (away.norm(dim=1) > 1.0).nonzero()[:, 0]
    ends = [
        torch.cat((end[:, :2] - away[shapes.owner] * end[:, 2:], end[:, 2:]), 1) for end in (shapes.tail, shapes.head)
    ]
    moved, tilt = Polygons(*ends, shapes.owner, shapes.count), 1e4 * torch.nn.functional.normalize(away, dim=1)
    tilt[away.norm(dim=1) <= 1.0] = f64([1e4, 0.0])
    ours, theirs = moved.tilted_moments(tilt), torch_form(lambda: moved.tilted_moments(tilt))
    for one, other in zip(ours, theirs, strict=True):
        scale = other[some].abs().flatten(1).amax(1) if other.ndim > 1 else torch.ones(len(some)).double()
        assert ((one - other)[some].abs().reshape(len(some), -1).amax(1) < 1e-11 * scale).all()


def test_flat_polygons_points_and_planes_in_every_form():
    zero = torch.zeros(3, 3, dtype=torch.float64)
    corner = f64([[1.0, 2.0, 1.0]]).expand(3, 3)
    flat = f64([[0.0, 1.0, 1.0], [2.0, 1.0, 1.0]])  # to and fro
    tail = torch.cat((corner, flat, zero))
    head = torch.cat((corner, flat.flip(0), zero))
    shapes = Polygons(tail, head, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), 4)
    for form in ("best", "slices"):
        log_mass = shapes.log_mass(form)
        assert torch.equal(log_mass[:2], f64([-math.inf, -math.inf]))
        assert log_mass[2:].abs().max() < 1e-14
        assert torch.isfinite(shapes.roots(form)[1]).all()


@pytest.mark.parametrize("S", [2, 3])
def test_sets_seen_from_a_centre_are_sets_moved(S):
    rng = np.random.default_rng(0)
    halfspaces = [random_polytope(KINDS[i % len(KINDS)], S, rng) for i in range(40)]
    shapes, _ = from_halfspaces(halfspaces)
    index = torch.as_tensor(rng.integers(0, 40, 200))
    centre = torch.as_tensor(rng.normal(size=(200, S)) * 10.0 ** rng.uniform(-2, 1, (200, 1)))
    moved, _ = from_halfspaces(
        [(H, h - H @ c) for (H, h), c in zip((halfspaces[i] for i in index), centre.numpy(), strict=True)]
    )
    far = farthest(moved) + centre.norm(dim=1)
    for one, other in zip(shapes.prepared().moments(index, centre), moved.raw_moments(), strict=True):
        assert ((one - other).flatten(1 if one.ndim > 1 else 0).abs().reshape(200, -1).amax(1) < 4e-15 * far).all()


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("size", [1e-8, 1e-3, 0.3, 4.0, 8.83, 30.0, 1e5, 1e12])
@pytest.mark.parametrize("shift", [0.0, 1e-9, 0.1, 3.0, 8.9])
def test_boxes_are_products_of_intervals(S, size, shift):
    """Sides through the mean, thin and long ones, on either side of where the exponential ends."""
    low = np.array([-shift * size, 0.0, -0.2])[:S]
    high = low + np.array([size, 1.0, 0.7])[:S]
    box, _ = from_halfspaces([(np.r_[np.eye(S), -np.eye(S)], np.r_[high, -low])])
    lines = [interval_moments(f64(a), f64(b)) for a, b in zip(low, high, strict=True)]
    exact = math.exp(sum(line.log_mass.item() for line in lines))
    mean = torch.stack([line.anchor + line.mean for line in lines])
    mass, first, second = (part[0] for part in box.raw_moments())
    rounding = 1e-15 * (1.0 + np.abs(np.r_[low, high]).max())
    assert abs(mass.item() - exact) < rounding
    assert (first - exact * mean).abs().max() < rounding
    square = torch.diag(torch.stack([line.variance for line in lines])) + mean[:, None] * mean
    assert (second - exact * square).abs().max() < rounding * (1.0 + mean.abs().max() ** 2)


@pytest.mark.parametrize("corner", [(0.0, 0.0), (1e-12, 0.0), (0.5, -1e-7), (-3.0, 2.0)])
def test_triangles_with_mpmath(corner):
    points = np.array(corner) + np.array([[0.0, 0.0], [1.3, 0.4], [0.2, 5.0]])
    shape = Polygons(
        f64(np.c_[points, np.ones(3)]), f64(np.c_[np.roll(points, -1, 0), np.ones(3)]), torch.zeros(3).long(), 1
    )
    with mpmath.workdps(20):
        (a, b), (c, d), (e, f) = ([mpmath.mpf(float(v)) for v in point] for point in points)
        area = (c - a) * (f - b) - (e - a) * (d - b)

        def density(s, t):
            x, y = a + s * ((c - a) + t * (e - c)), b + s * ((d - b) + t * (f - d))
            return s * area * mpmath.exp(-(x * x + y * y) / 2) / (2 * mpmath.pi)

        exact = float(mpmath.quad(density, [0, 1], [0, 1], maxdegree=4, method="gauss-legendre"))
    assert abs(shape.raw_moments()[0].item() - exact) < 4e-16 * (1.0 + abs(corner[0]))


def test_whole_spaces_half_spaces_and_what_is_not_a_number():
    none = torch.zeros(0, dtype=torch.long)
    plane = Polygons(torch.zeros(0, 3).double(), torch.zeros(0, 3).double(), none, 2)
    assert plane.mass().tolist() == [1.0, 1.0]
    space = Polyhedra(
        torch.zeros(0, 4).double(), torch.zeros(0, 4).double(), none, torch.zeros(0, 3).double(), none.double(), none, 1
    )
    assert space.raw_moments()[2][0].equal(torch.eye(3).double())
    for S in (2, 3):
        half, _ = from_halfspaces([(np.eye(S)[:1], np.array([0.3]))])
        assert half.mass().item() == pytest.approx(0.5 * math.erfc(-0.3 / math.sqrt(2.0)), abs=3e-16)
        for bad in (math.nan, math.inf):
            out = half.prepared().moments(torch.tensor([0]), torch.full((1, S), bad, dtype=torch.float64))
            assert not (out[0] > 1.0).any()


def test_polyhedra_whose_faces_do_not_share_their_edges():
    """The upper face of a box as two: the edges of its sides are none of theirs."""
    box, _ = from_halfspaces([(np.r_[np.eye(3), -np.eye(3)], np.array([1.0, 0.8, 0.6, 0.3, 0.5, 0.7]))])
    top = int((box.normal[:, 2] > 0.5).nonzero()[0, 0])
    some = box.face == top
    corners = box.tail[some]
    halves = [corners[[0, 1, 2]], corners[[0, 2, 3]]]
    tail = torch.cat([box.tail[~some], *halves])
    head = torch.cat([box.head[~some], *(half.roll(-1, 0) for half in halves)])
    face = torch.cat((box.face[~some], torch.full((3,), 6), torch.full((3,), 7)))
    face = torch.where(face > top, face - 1, face)
    normal = torch.cat((box.normal[box.owner.new_tensor([f for f in range(6) if f != top])], box.normal[[top, top]]))
    offset = torch.cat((box.offset[[f for f in range(6) if f != top]], box.offset[[top, top]]))
    split = Polyhedra(tail, head, face, normal, offset, torch.zeros(7, dtype=torch.long), 1)
    for shift in (0.0, 1e-9):  # and, the second time, not to the last digit
        moved = torch.where(((face >= 5)[:, None] & (tail[:, 3:] > 0)), torch.tensor(shift).double(), 0.0)
        moved = moved * f64([1.0, 1.0, 0.0, 0.0])
        other = Polyhedra(tail + moved, head + moved, face, normal, offset, split.owner, 1)
        for ours, theirs in zip(other.raw_moments(), box.raw_moments(), strict=True):
            assert (ours - theirs).abs().max() < 1e-14 + shift
    assert (split.prepared().sides[:, 1] >= 0).all()  # the diagonal belongs to both halves


@pytest.mark.parametrize("S", [2, 3])
def test_threads_change_nothing(S):
    rng = np.random.default_rng(2)
    shapes, _ = from_halfspaces([random_polytope("bulk", S, rng) for _ in range(5)])
    index, centre = torch.arange(3000) % 5, torch.as_tensor(rng.normal(size=(3000, S)))
    alone = shapes.prepared().moments(index, centre)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = shapes.prepared().moments(index, centre)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_each_rule_is_right_on_its_longest_panel():
    kernels = prepared.kernels()
    rng = np.random.default_rng(0)
    many, weight = kernels._legendre(60)
    s, w = 0.5 + 0.5 * many, 0.5 * weight

    def plane(p, t):
        u = 0.5 * (p**2 + t**2)
        return p * np.where(u < 1e-9, 1.0 - 0.5 * u, -np.expm1(-u) / np.maximum(u, 1e-9)) / (4.0 * math.pi)

    for _, longest in kernels._RULES:
        for _ in range(200):
            p, middle = rng.uniform(0, 5) * 10.0 ** rng.choice([0, -3, -9]), rng.uniform(-6, 6) * rng.choice([0, 1])
            h = rng.uniform(0, 5) * 10.0 ** rng.choice([0, -3, -9])
            t0, t1 = middle - 0.5 * longest, middle + 0.5 * longest
            t = middle + 0.5 * longest * many
            exact = 0.5 * longest * plane(p, t) @ weight
            assert abs(kernels._plane_flux(p, t0, t1)[0] - exact) < 1e-15
            # the difference quotient of G as an integral, of positive terms
            q2 = (p * p + t * t)[:, None] * s**2 / 2
            part = np.where(q2 < 1e-9, 1.0 - 0.5 * q2, -np.expm1(-q2) / np.maximum(q2, 1e-9)) * s**2 / 2
            quotient = math.sqrt(2.0 / math.pi) * (part * np.exp(-h * h * s**2 / 2)) @ w
            exact = 0.5 * longest * (p * h * quotient) @ weight / (4.0 * math.pi)
            faces, series = np.zeros((1, 5)), np.ones((1, kernels._TERMS))
            kernels._of_a_face(h, 0.0, 0, faces)
            flux, line = kernels._space_flux(0, -1, p, 0.0, t0, t1, faces, series)
            flux /= 4.0 * math.pi
            # the mass of an edge and that of its face, both as densities in space
            density = np.exp(-0.5 * (h * h + p * p + t * t)) / (2.0 * math.pi) ** 1.5
            assert abs(line / (2.0 * math.pi) ** 1.5 - 0.5 * longest * density @ weight) < 1e-15
            area = 0.5 * longest * plane(p, t) @ weight * math.exp(-0.5 * h * h) / math.sqrt(2.0 * math.pi)
            assert abs(faces[0, kernels._AREA] / (4.0 * math.pi * math.sqrt(2.0 * math.pi)) - area) < 1e-15
            assert abs(flux - exact) < 1e-15


def test_what_compiled_code_cannot_take_is_left_to_torch():
    square, _ = from_halfspaces([(np.r_[np.eye(3), -np.eye(3)], np.ones(6))])
    assert prepared.serve(square.tail)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moved = Polyhedra(
        square.tail + torch.cat((shift, f64([0.0]))),
        square.head + torch.cat((shift, f64([0.0]))),
        square.face,
        square.normal,
        square.offset + square.normal @ shift,
        square.owner,
        1,
    )
    assert not prepared.serve(moved.tail)
    assert abs(moved.mass().item() - square.mass().item()) < 1e-14
    assert not prepared.serve(square.tail.float())


def test_numba_that_cannot_be_loaded_is_told_of_and_done_without(monkeypatch):
    def broken(name):
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(prepared.importlib, "import_module", broken)
    with pytest.warns(UserWarning, match="NumPy 2.3"):
        assert prepared.kernels.__wrapped__() is None


def test_code_that_cannot_be_kept_on_disk_runs_all_the_same(monkeypatch):
    kernels = prepared.kernels()
    monkeypatch.setattr(kernels, "njit", lambda **settings: _no_folder if settings.pop("cache", False) else lambda f: f)
    assert kernels.compiled(lambda x: abs(x))(-2.0) == 2.0


def _no_folder(function):
    raise RuntimeError("cannot cache function: no locator available")
