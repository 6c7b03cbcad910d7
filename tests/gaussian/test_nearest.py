import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import special_ortho_group

import girih
from girih.gaussian import Polygons, Polyhedra, from_halfspaces
from twins import f64


def nearest(H, h):
    return from_halfspaces([(H, h)])[0].nearest()[0].numpy()


def least_distance(H, h):
    """Lawson and Hanson's least distance programming."""
    u, _ = nnls(-np.c_[H, h].T, np.append(np.zeros(H.shape[1]), 1.0))
    r = -np.c_[H, h].T @ u - np.append(np.zeros(H.shape[1]), 1.0)
    return -r[:-1] / r[-1]


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0, 1e4])
def test_random_polytopes_against_a_quadratic_program(S, shift):
    rng = np.random.default_rng(S)
    for m in (1, 2, 3, 4, 6, 9):
        for _ in range(10):
            H = rng.normal(size=(m, S))
            H /= np.linalg.norm(H, axis=1, keepdims=True)
            h = np.abs(rng.normal(size=m)) + H @ (shift * rng.normal(size=S))
            scale = 1 + shift
            assert np.abs(nearest(H, h) / scale - least_distance(H, h / scale)).max() < 1e-11


@pytest.mark.parametrize("S", [2, 3])
def test_half_spaces_and_slabs(S):
    for turn in (np.eye(S), special_ortho_group.rvs(S, random_state=0)):
        n = turn[:1]
        for offset in (3.0, 1e-9, -1e-9, -40.0):
            foot = min(offset, 0.0) * n[0]
            assert np.abs(nearest(n, np.array([offset])) - foot).max() < 1e-13
            assert np.abs(nearest(np.r_[n, -n], np.array([offset, 50.0])) - foot).max() < 1e-13
            wedge = np.r_[n, n * 0.6 + turn[1:2] * 0.8]
            bounds = np.array([offset, -7.0])
            assert np.abs(nearest(wedge, bounds) - least_distance(wedge, bounds)).max() < 1e-10


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 0.5, 3.0, np.pi - 1e-9])
def test_wedges_seen_from_inside_and_outside(angle):
    a, b = np.array([1.0, 0.0]), np.array([np.cos(angle), np.sin(angle)])
    middle = np.array([np.cos(angle / 2), np.sin(angle / 2)])
    for apex, expected in ((-5 * middle, 0 * middle), (4 * middle, 4 * middle)):
        tail = f64(np.array([[*b, 0], [*apex, 1]]))
        head = f64(np.array([[*apex, 1], [*a, 0]]))
        ours = Polygons(tail, head, torch.tensor([0, 0]), 1).nearest()[0]
        assert np.abs(ours.numpy() - expected).max() < 1e-14


def polygon(points):
    tail = f64(np.c_[points, np.ones(len(points))])
    return tail, tail.roll(-1, 0), torch.zeros(len(tail), dtype=torch.long), 1


@pytest.mark.parametrize("width", [1e-3, 1e-9, 1e-13, 0.0])
@pytest.mark.parametrize("centre", [0.0, 1e-6, 0.7, 20.0])
def test_slivers_and_short_edges(width, centre):
    rng = np.random.default_rng(1)
    for _ in range(40):
        turn = special_ortho_group.rvs(2, random_state=rng)
        ends = np.sort(rng.uniform(-1, 1, 2))
        points = np.array(
            [[ends[0], 0], [ends[1], 0], [ends[1] + width / 3, width / 2], [ends[1], width], [ends[0], width]]
        )
        points = (points + centre * rng.normal(size=2) * rng.integers(0, 2, 2)) @ turn
        c = Polygons(*polygon(points)).nearest()[0].numpy()
        # a point of the polygon, and no vertex lies before the plane through it
        scale = np.abs(points).max()
        _, miss = nnls(np.r_[points.T, np.ones((1, 5))], np.append(c, 1.0))
        assert miss < 1e-14 * (1 + scale)
        assert (points @ c - c @ c).min() >= -1e-14 * scale * (np.linalg.norm(c) + 1e-15)


def test_thin_boxes():
    rng = np.random.default_rng(2)
    for size in ([1, 1, 1e-9], [1, 1e-9, 1e-9], [1e-3, 1e-6, 1]):
        for _ in range(20):
            turn = special_ortho_group.rvs(3, random_state=rng)
            low = rng.normal(size=3) * rng.integers(0, 2, 3) - 0.5 * np.array(size)
            high = low + size
            H, h = np.r_[turn, -turn], np.r_[high, -low]
            ours, exact = turn @ nearest(H, h), np.clip(0, low, high)
            # the vertices' rounding turns the short edges: any point of these may come out
            assert np.abs(ours - exact).max() < 1e-14 + min(size)
            assert abs(np.linalg.norm(ours) - np.linalg.norm(exact)) < 1e-15 + 0.6 * min(size) * (exact == 0).all()


def test_many_at_once_and_items_without_edges():
    rng = np.random.default_rng(3)
    n = 30_000
    angle = np.sort(rng.uniform(0, 2 * np.pi, (n, 4)), 1)
    points = rng.normal(size=(n, 1, 2)) * 2 + np.stack((np.cos(angle), np.sin(angle)), -1)
    tail = f64(np.concatenate((points, np.ones((n, 4, 1))), -1))
    head = tail.roll(-1, 1)
    owner = 2 * torch.arange(n).repeat_interleave(4) + 1
    ours = Polygons(tail.reshape(-1, 3), head.reshape(-1, 3), owner, 2 * n + 5).nearest()
    assert (ours[::2] == 0).all() and (ours[2 * n :] == 0).all()
    for i in rng.integers(0, n, 50):
        single = Polygons(*polygon(points[i])).nearest()
        assert torch.equal(single[0], ours[2 * i + 1])
        _, miss = nnls(np.r_[points[i].T, np.ones((1, 4))], np.append(ours[2 * i + 1].numpy(), 1.0))
        assert miss < 1e-14
    products = (tail[..., :2] * ours[1 : 2 * n : 2, None]).sum(-1) - ours[1 : 2 * n : 2].square().sum(-1)[:, None]
    assert products.min() > -1e-14
    none = torch.zeros(0, dtype=torch.long)
    assert Polygons(f64(np.zeros((0, 3))), f64(np.zeros((0, 3))), none, 2).nearest().eq(0).all()
    empty = f64(np.zeros((0, 4)))
    assert Polyhedra(empty, empty, none, empty[:, :3], empty[:, 0], none, 2).nearest().eq(0).all()


def test_functions_of_0_1_say_what_they_are_now():
    tail = f64([[0.0, 1, 0], [3, 4, 1]])  # the quadrant x > 3, y > 4
    head, owner = f64([[3.0, 4, 1], [1, 0, 0]]), torch.tensor([0, 0])
    now = Polygons(tail, head, owner, 1)
    with pytest.warns(DeprecationWarning, match=r"girih.gaussian.Polygons\(...\).nearest"):
        function = girih.gaussian.polygon_nearest
    assert torch.equal(function(tail, head, owner=owner, count=1), now.nearest())
    with pytest.warns(DeprecationWarning, match="sample"):
        function = girih.gaussian.sample_polygons
    which = torch.zeros(5, dtype=torch.long)
    seeds = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(function(tail, head, owner, 1, which, generator=next(seeds)), now.sample(which, next(seeds)))


def test_a_ray_that_leaves_its_face_by_rounding_does_not_make_the_origin_an_inner_point():
    """A cone 5.7 away whose ray, in the nearest face, has that face's normal as 7e-18 of its rounded length."""
    apex, ray, down, back = (
        [-5.701529, 0.0998, -0.57629, 1.0],
        [1.404e-3, -0.51414, -0.17319, 0.0],
        [-5.522e-3, -0.16397, 0.86992, 0.0],
        [-147.16, 2.9758e-3, -1.3054, 0.0],
    )
    faces = [(ray, down), (back, ray), (down, back)]
    tail = f64([end for a, b in faces for end in (a, apex)])
    head = f64([end for a, b in faces for end in (apex, b)])
    normal = torch.stack([torch.linalg.cross(f64(b[:3]), f64(a[:3]), dim=0) for a, b in faces])
    normal = normal / normal.norm(dim=1, keepdim=True)
    offset = normal @ f64(apex[:3])
    exact = offset.amin() * normal[offset.argmin()]  # the foot of the only face with the origin behind it
    face, owner = torch.arange(3).repeat_interleave(2), torch.zeros(3, dtype=torch.long)
    for lean in (0.0, 1e-13, -1e-13):  # as a root that stretches rays a thousand times leaves them
        moved = torch.cat((tail[:, :3] + lean * exact * (tail[:, 3:] == 0), tail[:, 3:]), 1)
        ended = torch.cat((head[:, :3] + lean * exact * (head[:, 3:] == 0), head[:, 3:]), 1)
        cone = Polyhedra(moved, ended, face, normal, offset, owner, 1)
        assert (cone.nearest()[0] - exact).abs().max() < 1e-11
