import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

from girih.gaussian import interval_moments
from girih.gaussian.boundary import polygon_boundary, polyhedron_boundary
from girih.gaussian.compact import log_mass_of
from girih.gaussian.edges import describe
from girih.gaussian.polygon import polygon_log_mass, polygon_moments
from girih.gaussian.polygon_compact import compact_polygons
from girih.gaussian.polygon_slices import sliced_log_mass, sliced_moments
from girih.gaussian.polyhedron import polyhedron_log_mass, polyhedron_moments, tables
from girih.gaussian.polyhedron_slices import sliced_moments as sliced_space
from girih.gaussian.polytope import _flat
from girih.gaussian.roots import squared
from twins import f64


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("far", [0.0, 5.0, 40.0])
@pytest.mark.parametrize("size", [1e-6, 0.01, 0.05, 0.19])
def test_small_boxes_are_products_of_intervals(S, far, size):
    turn = special_ortho_group.rvs(S, random_state=3)
    low = np.array([far, -0.4, 0.2])[:S]
    high = low + size * np.array([1.0, 0.3, 0.7])[:S]
    H, h = np.r_[turn, -turn], np.r_[high, -low]
    parts = _flat([(polygon_boundary if S == 2 else polyhedron_boundary)(H, h)], S)
    line = interval_moments(f64(low), f64(high))
    log_mass, mean, covariance = (polygon_moments if S == 2 else polyhedron_moments)(*parts)
    alone = (polygon_log_mass if S == 2 else polyhedron_log_mass)(*parts)
    # the rounding of vertices moves sides by 1e-16 of their distance
    rounding = 1e-15 * (1 + far) / size
    for ours in (log_mass, alone):
        assert abs(ours.item() - line.log_mass.sum().item()) < 1e-11 + rounding * (10 + far * size)
    spread = line.variance.sqrt()
    turned = f64(turn)
    assert ((turned @ mean[0] - line.anchor - line.mean) / spread).abs().max() < 1e-10 + 30 * rounding
    error = (turned @ covariance[0] @ turned.T - torch.diag(line.variance)) / spread / spread[:, None]
    assert error.abs().max() < 1e-10 + 100 * rounding


@pytest.mark.parametrize("far", [0.0, 3.0, 20.0])
def test_polygons_by_nodes_and_by_slices(far):
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 2 * np.pi, (200, 5)), 1)
    points = np.stack((np.cos(angle), np.sin(angle)), -1) * rng.uniform(0.01, 0.4, (200, 1, 1)) + [far, 0.5]
    tail = f64(np.concatenate((points, np.ones((200, 5, 1))), -1))
    tail[:50, -1] = 0.0  # places that hold no edge
    head = tail.roll(-1, 1)
    head[:50, 3], head[:50, 4] = tail[:50, 0], 0.0
    rows, cones = compact_polygons(tail, head)
    assert len(rows) > (100 if far < 20 else 20)
    edges = describe(tail[rows], head[rows])
    log_mass, mean, root = sliced_moments(tail[rows], head[rows], edges)
    ours = polygon_moments(
        tail[rows].flatten(0, 1), head[rows].flatten(0, 1), torch.arange(len(rows)).repeat_interleave(5), len(rows)
    )
    for value in (ours[0], log_mass_of(cones), sliced_log_mass(tail[rows], head[rows], edges)):
        assert ((value - log_mass).abs() < 1e-10 * log_mass.abs().clamp(min=1)).all()
    covariance = squared(root)
    assert torch.linalg.solve(root, ours[1] - mean).abs().max() < 1e-7
    off = torch.linalg.solve(root, torch.linalg.solve(root, ours[2] - covariance).mT)
    assert off.abs().max() < 1e-6


@pytest.mark.parametrize("far", [0.0, 5.0, 20.0])
def test_polyhedra_by_nodes_and_by_slices(far):
    rng = np.random.default_rng(1)
    bounds = []
    for _ in range(12):
        H = np.r_[np.eye(3), -np.eye(3), rng.normal(size=(3, 3))]
        H /= np.linalg.norm(H, axis=1, keepdims=True)
        h = rng.uniform(0.03, 0.15, 9) + H @ [far, 0.3, -0.2]
        bounds.append(polyhedron_boundary(H, h))
    parts = _flat(bounds, 3)
    log_mass, mean, covariance = polyhedron_moments(*parts)
    for chosen, faces in tables(*parts):
        theirs = sliced_space(faces)
        assert ((log_mass[chosen] - theirs[0]).abs() < 1e-9 * theirs[0].abs().clamp(min=1)).all()
        root = theirs[2]
        assert torch.linalg.solve(root, mean[chosen] - theirs[1]).abs().max() < 1e-8
        off = torch.linalg.solve(root, torch.linalg.solve(root, covariance[chosen] - squared(root)).mT)
        assert off.abs().max() < 1e-7
