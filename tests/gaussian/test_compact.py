import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

from girih.gaussian import Polygons, from_halfspaces, interval_moments
from twins import f64


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("far", [0.0, 5.0, 40.0])
@pytest.mark.parametrize("size", [1e-6, 0.01, 0.05, 0.19])
def test_small_boxes_are_products_of_intervals(S, far, size):
    turn = special_ortho_group.rvs(S, random_state=3)
    low = np.array([far, -0.4, 0.2])[:S]
    high = low + size * np.array([1.0, 0.3, 0.7])[:S]
    H, h = np.r_[turn, -turn], np.r_[high, -low]
    parts = from_halfspaces([(H, h)])[0]
    line = interval_moments(f64(low), f64(high))
    log_mass, mean, covariance = parts.moments()
    alone = parts.log_mass()
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
    polygons = Polygons(tail.flatten(0, 1), head.flatten(0, 1), torch.arange(200).repeat_interleave(5), 200)
    by_nodes = polygons.log_mass("cones")
    rows = by_nodes.isfinite()
    assert rows.sum() > (100 if far < 20 else 20)
    log_mass, mean, root = (part[rows] for part in polygons.roots("slices"))
    ours = [part[rows] for part in polygons.moments()]
    for value in (ours[0], by_nodes[rows], polygons.log_mass("slices")[rows]):
        assert ((value - log_mass).abs() < 1e-10 * log_mass.abs().clamp(min=1)).all()
    covariance = root @ root.mT
    assert torch.linalg.solve(root, ours[1] - mean).abs().max() < 1e-7
    off = torch.linalg.solve(root, torch.linalg.solve(root, ours[2] - covariance).mT)
    assert off.abs().max() < 1e-6


@pytest.mark.parametrize("far", [0.0, 5.0, 20.0])
def test_polyhedra_by_nodes_and_by_slices(far):
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(12):
        H = np.r_[np.eye(3), -np.eye(3), rng.normal(size=(3, 3))]
        H /= np.linalg.norm(H, axis=1, keepdims=True)
        h = rng.uniform(0.03, 0.15, 9) + H @ [far, 0.3, -0.2]
        pairs.append((H, h))
    parts = from_halfspaces(pairs)[0]
    log_mass, mean, covariance = parts.moments()
    theirs, about, root = parts.roots("slices")
    assert ((log_mass - theirs).abs() < 1e-9 * theirs.abs().clamp(min=1)).all()
    assert torch.linalg.solve(root, mean - about).abs().max() < 1e-8
    off = torch.linalg.solve(root, torch.linalg.solve(root, covariance - root @ root.mT).mT)
    assert off.abs().max() < 1e-7
