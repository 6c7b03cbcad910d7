import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

from girih.errors import EmptyDataError, LatentDimensionError, NoiseError, NonFiniteError, ParameterError, ShapeError
from girih.gaussian import Polygons, from_halfspaces, interval_moments, log_mass, moments
from random_polytopes import KINDS, random_polytope
from twins import f64

inf = math.inf
SPANS = [
    ((-1, 2), (-1, 1), (-0.5, 3)),
    ((0, inf), (0, inf), (0, inf)),
    ((0, inf), (0, inf), (-inf, inf)),
    ((0, inf), (-inf, inf), (-inf, inf)),
    ((-1, 1), (-inf, inf), (-inf, inf)),
    ((-1, 1), (0, 1), (-inf, inf)),
    ((-1, 1), (0, inf), (-2, inf)),
    ((3, 4), (-1, 1), (2, 5)),
    ((37, 38), (5, 6), (7, 8)),
    ((37, inf), (-5, inf), (-7, 9)),
    ((300, inf), (-inf, inf), (-inf, inf)),
    ((1e5, 1e5 + 1), (-1, 1), (0, inf)),
]


def box(spans, turn):
    rows = [(sign * turn[i], sign * b) for i, (lo, hi) in enumerate(spans) for sign, b in ((-1, lo), (1, hi))]
    rows = [(n, b) for n, b in rows if b < inf]
    return np.array([n for n, _ in rows]), np.array([b for _, b in rows])


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("spans", SPANS)
def test_boxes_are_products_of_intervals(spans, seed, S):
    turn = np.eye(S) if seed is None else special_ortho_group.rvs(S, random_state=seed)
    spans = spans[:S]
    lines = [interval_moments(f64(lo), f64(hi)) for lo, hi in spans]
    exact = sum(line.log_mass.item() for line in lines)
    H, h = box(spans, turn)
    if not len(H):
        return
    ours = moments(halfspaces=(H, h))
    # rounding of the input: |c|^2 eps in the exponent, |c| eps in the coordinates
    far = max(abs(line.anchor.item()) for line in lines)
    assert abs(ours.log_mass.item() - exact) < 1e-11 * max(1, abs(exact))
    assert abs(log_mass(halfspaces=(H, h)).item() - exact) < 1e-11 * max(1, abs(exact))
    spread = torch.stack([line.variance for line in lines]).sqrt()
    mean = torch.stack([line.anchor + line.mean for line in lines])
    turned = f64(turn)
    tolerance = 1e-9 + 1e-15 * far / spread.min().item()
    assert ((turned @ ours.mean - mean) / spread).abs().max() < tolerance
    error = (turned @ ours.covariance @ turned.T - torch.diag(spread.square())) / spread / spread[:, None]
    assert error.abs().max() < tolerance + 1e-15 / spread.min().item() ** 2


@pytest.mark.parametrize("rho", [-0.45, 0.0, 0.3, 0.9])
def test_orthants_follow_the_arcsine_law(rho):
    for S, exact in ((2, 0.25 + math.asin(rho) / (2 * math.pi)), (3, 0.125 + 3 * math.asin(rho) / (4 * math.pi))):
        covariance = np.full((S, S), rho) + (1 - rho) * np.eye(S)
        ours = log_mass(halfspaces=(-np.eye(S), np.zeros(S)), covariance=covariance)
        assert abs(ours.exp().item() - exact) < 1e-13


@pytest.mark.parametrize("angle", [1e-6, 0.1, 1.0, 2.5, 3.14])
def test_wedges_hold_their_angle(angle):
    H = np.array([[0.0, -1.0], [-math.sin(angle), math.cos(angle)]])
    assert log_mass(halfspaces=(H, np.zeros(2))).exp().item() == pytest.approx(angle / (2 * math.pi), rel=1e-9)
    H3 = np.c_[H, np.zeros(2)]
    assert log_mass(halfspaces=(H3, np.zeros(2))).exp().item() == pytest.approx(angle / (2 * math.pi), rel=1e-9)


@pytest.mark.parametrize("far", [0.0, 2.0, 7.0, 30.0, 36.5, 400.0])
def test_triangles_against_mpmath(far):
    mpmath.mp.dps = 30
    # x from far to far + 1, y between two lines
    vertices = [[far, -0.7], [far + 1, 0.2], [far, 1.5]]

    def slice_mass(t):
        low, high = mpmath.mpf(0.9) * t - mpmath.mpf(0.7), mpmath.mpf(1.5) - mpmath.mpf(1.3) * t
        return mpmath.exp(-far * t - t * t / 2) * (mpmath.ncdf(high) - mpmath.ncdf(low))

    cuts = [
        mpmath.mpf(0),
        *(mpmath.mpf(10) ** -k for k in (3, 2.5, 2, 1.5, 1.2)),
        *(mpmath.mpf(k) / 10 for k in range(1, 11)),
    ]
    exact = float(mpmath.log(mpmath.quad(slice_mass, cuts)) - mpmath.mpf(far) ** 2 / 2 - mpmath.log(2 * mpmath.pi) / 2)
    assert abs(log_mass(vertices=vertices).item() - exact) < 1e-11 * max(1, abs(exact) * 1e-2)
    # a prism over it: times an interval
    prism = [[*v, z] for v in vertices for z in (-0.3, 5.0)]
    z = interval_moments(f64(-0.3), f64(5.0)).log_mass.item()
    assert abs(log_mass(vertices=prism).item() - exact - z) < 1e-11 * max(1, abs(exact) * 1e-2)


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_random_cells_against_monte_carlo(S, seed):
    rng = np.random.default_rng(seed)
    H, h = rng.normal(size=(S + seed, S)), rng.normal(size=S + seed) * 0.3 + 0.7
    x = rng.normal(size=(400_000, S))
    inside = x[(x @ H.T <= h).all(1)]
    ours = moments(halfspaces=(H, h))
    p = ours.log_mass.exp().item()
    assert abs(len(inside) / len(x) - p) < 5 * math.sqrt(p * (1 - p) / len(x))
    assert np.abs((inside.mean(0) - ours.mean.numpy()) / inside.std(0)).max() < 5 / math.sqrt(len(inside))
    assert np.abs(np.cov(inside.T) - ours.covariance.numpy()).max() < 10 / math.sqrt(len(inside))


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("shift", [0.0, 3.0, 9.0, 45.0, 1000.0])
def test_parts_add_up(S, shift):
    rng = np.random.default_rng(S)
    for m in (1, 2, S + 1, S + 4):
        H, h = rng.normal(size=(m, S)), rng.normal(size=m) * 0.3 + 1.0
        H[0], h[0] = np.eye(S)[0], -shift
        n, c = rng.normal(size=S), rng.normal()
        c += n @ (-shift * np.eye(S)[0])
        h[1:] -= shift * H[1:, 0]
        parts = log_mass(halfspaces=[(np.r_[H, [n]], np.r_[h, c]), (np.r_[H, [-n]], np.r_[h, -c])])
        whole = log_mass(halfspaces=(H, h))
        assert abs(torch.logsumexp(parts, 0) - whole).item() < 1e-9 + 1e-12 * abs(whole.item())


def test_vertices_and_rays_say_the_same_as_half_spaces():
    assert log_mass(vertices=[[0.0, 0]], rays=[[1.0, 0], [0, 1]]).exp().item() == pytest.approx(0.25, rel=1e-12)
    octant = log_mass(vertices=[[0.0, 0, 0]], rays=np.eye(3))
    assert octant.exp().item() == pytest.approx(0.125, rel=1e-12)
    assert log_mass(vertices=[[1.0], [2.0]]).item() == log_mass(halfspaces=([[1.0], [-1]], [2.0, -1])).item()
    several = log_mass(vertices=[[[0, 0], [1, 0], [0, 1]], [[0, 0], [1, 0], [0, 1], [1, 1]]])
    assert several.shape == (2,) and several[0] < several[1]


def test_mean_and_covariance_change_coordinates():
    mean, covariance = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])
    H, h = np.array([[1.0, 0.0], [0.3, 1.0], [-1, -1]]), np.array([1.0, -1.0, 3.0])
    ours = moments(halfspaces=(H, h), mean=mean, covariance=covariance)
    x = np.random.default_rng(0).multivariate_normal(mean, covariance, 400_000)
    inside = x[(x @ H.T <= h).all(1)]
    assert abs(ours.log_mass.exp().item() - len(inside) / len(x)) < 4e-3
    assert np.abs(inside.mean(0) - ours.mean.numpy()).max() < 1e-2
    assert np.abs(np.cov(inside.T) - ours.covariance.numpy()).max() < 2e-2


def test_half_spaces_that_exclude_each_other():
    for S in (1, 2, 3):
        H = np.eye(S)[[0, 0]] * [[1], [-1]]
        assert log_mass(halfspaces=(H, [-1.0, -1.0])).item() == -inf
        with pytest.raises(EmptyDataError):
            moments(halfspaces=(H, [-1.0, -1.0]))


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ParameterError, {}),
        (ParameterError, {"vertices": [[0.0, 0], [1, 1], [2, 2]]}),
        (ParameterError, {"vertices": [[0.0, 0]], "rays": [[0.0, 0.0]]}),
        (ShapeError, {"vertices": [0.0, 1.0]}),
        (ShapeError, {"halfspaces": (np.eye(2), [1.0, 2.0, 3.0])}),
        (ShapeError, {"halfspaces": (np.eye(2), np.ones(2)), "mean": [0.0]}),
        (NonFiniteError, {"halfspaces": (np.eye(2), [1.0, inf])}),
        (EmptyDataError, {"vertices": np.zeros((0, 2))}),
        (EmptyDataError, {"halfspaces": []}),
        (NoiseError, {"halfspaces": (np.eye(2), np.ones(2)), "covariance": [[1.0, 2.0], [2.0, 1.0]]}),
        (LatentDimensionError, {"halfspaces": (np.eye(4), np.ones(4))}),
    ],
)
def test_errors_are_typed(error, arguments):
    with pytest.raises(error):
        log_mass(**arguments)


@pytest.mark.parametrize("far", [0.0, 5.0, 60.0])
def test_a_list_gives_what_each_gives_alone(far):
    rng = np.random.default_rng(0)
    for S in (2, 3):
        cells = [rng.normal(size=(k, S)) + far for k in (4, 4, 5, 8, 12, 30)]
        together = moments(vertices=cells)
        for i, cell in enumerate(cells):
            alone = moments(vertices=cell)
            assert abs(alone.log_mass - together.log_mass[i]).item() < 1e-12 * max(1, abs(alone.log_mass.item()))
            assert torch.allclose(alone.mean, together.mean[i], rtol=1e-11, atol=1e-11)
            assert torch.allclose(alone.covariance, together.covariance[i], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("far", [0.0, 9.0, 100.0])
def test_polygons_of_many_edges(far):
    angle = 2 * np.pi * (np.arange(300) + 0.3) / 300
    circle = np.c_[np.cos(angle) + far, np.sin(angle)]
    assert log_mass(vertices=circle) < 0
    H = np.array([[0.0, 1.0]])
    n = np.c_[np.cos(angle), np.sin(angle)]
    h = n @ [far, 0.0] + 1.0
    round_ = log_mass(halfspaces=(n, h))
    parts = log_mass(halfspaces=[(np.r_[n, s * H], np.r_[h, 0.1 * s]) for s in (-1, 1)])
    assert abs(torch.logsumexp(parts, 0) - round_).item() < 1e-9 * max(1, abs(round_.item()))


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_bounds_are_below_the_mass_and_not_far(kind, S):
    rng = np.random.default_rng(S)
    shapes, empty = from_halfspaces([random_polytope(kind, S, rng) for _ in range(20)])
    assert not empty.any()
    exact, nearest = shapes.log_mass(), shapes.nearest()
    bound = shapes.least_log_mass(nearest, torch.full_like(exact, 1e-14))
    assert (bound <= exact + 1e-9 * (1.0 + exact.abs())).all()
    known = torch.isfinite(bound)  # corners at infinity are no cones over edges
    assert known.any() or kind == "wedge"
    assert not (exact - bound > 12.0)[known].any()


@pytest.mark.parametrize("S", [2, 3])
def test_lower_bounds_are_those_of_jensen_on_simplices(S):
    """Against a rule that is exact for squares, on simplices so small that none is taken shorter."""
    shapes, _ = from_halfspaces([(np.r_[np.eye(S), -np.eye(S)], np.r_[[0.7, 0.5, 0.4][:S], [0.3] * S])])
    apex = f64([0.1, -0.05, 0.02][:S])
    if S == 2:
        simplices = torch.stack((shapes.tail, shapes.head), 1)[:, :, :2]
        rule = f64([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    else:
        corner = torch.stack([shapes.tail[shapes.face == f][0] for f in shapes.face])
        simplices = torch.stack((corner, shapes.tail, shapes.head), 1)[:, :, :3]
        a, b = (5.0 + 3.0 * 5.0**0.5) / 20.0, (5.0 - 5.0**0.5) / 20.0
        rule = b + (a - b) * torch.eye(4, dtype=torch.float64)
    total = 0.0
    for corners in simplices:
        square = (rule @ torch.cat((apex[None], corners))).square().sum(1).mean()
        volume = torch.linalg.det(corners - apex) / math.factorial(S)
        total += volume * (2.0 * math.pi) ** (-S / 2) * (-0.5 * square).exp()
    ours = shapes.least_log_mass(apex[None], f64([1e-15])).exp().item()
    assert ours == pytest.approx(total.item(), rel=1e-11)


@pytest.mark.parametrize("S", [2, 3])
def test_a_point_outside_gives_no_lower_bound(S):
    shapes, _ = from_halfspaces([(np.r_[np.eye(S), -np.eye(S)], np.ones(2 * S))])
    assert torch.isneginf(shapes.least_log_mass(f64([[1.001, 0.2, 0.3][:S]]), f64([1e-15]))).all()
    assert torch.isfinite(shapes.least_log_mass(f64([[0.999, 0.2, 0.3][:S]]), f64([1e-15]))).all()


def test_slivers_thinner_than_their_rounding_give_no_lower_bound():
    tail, head = f64([[0, 0, 1], [1, 0, 1], [0.5, 1e-9, 1]]), f64([[1, 0, 1], [0.5, 1e-9, 1], [0, 0, 1]])
    sliver = Polygons(tail, head, torch.zeros(3, dtype=torch.long), 1)
    for slack, finite in ((0.0, True), (1e-10, True), (1e-8, False)):
        assert torch.isfinite(sliver.least_log_mass(f64([[0.0, 0.0]]), f64([slack]))).item() is finite
