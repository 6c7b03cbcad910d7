"""Masses, moments and draws agree with each other and with brute force, whatever the polytope."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

import girih
from effort import cases
from girih.gaussian import Polygons, from_halfspaces, interval_moments, log_mass, moments, sample_truncated
from random_polytopes import KINDS, by_simplices, random_polytope
from twins import f64

DRAWS = cases(4_000, 100_000)


def flat(H, h):
    return from_halfspaces([(H, h)])[0]


def nonempty(kind, S, rng):
    while True:
        H, h = random_polytope(kind, S, rng)
        if not from_halfspaces([(H, h)])[1]:
            return H, h


def assert_standard(z):
    """Draws with mean 0 and covariance 1, to five standard errors."""
    n, S = z.shape
    assert np.abs(z.mean(0)).max() < 5 / math.sqrt(n)
    products = z[:, :, None] * z[:, None]
    assert (np.abs(products.mean(0) - np.eye(S)) < 5 * products.std(0) / math.sqrt(n)).all()


@pytest.mark.fuzz
@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_their_moments(kind, S):
    rng = np.random.default_rng(KINDS.index(kind))
    for seed in range(cases(1, 30)):
        parts = flat(*nonempty(kind, S, rng))
        _, mean, root = parts.roots()
        x = parts.sample(torch.zeros(DRAWS, dtype=torch.long), torch.Generator().manual_seed(seed))
        assert_standard(torch.linalg.solve(root[0], (x - mean).mT).mT.numpy())


@pytest.mark.fuzz
@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_moments_by_brute_force(kind, S):
    rng = np.random.default_rng(100 + KINDS.index(kind))
    resolved = 0
    count = cases(2, 30)
    for _ in range(count):
        H, h = nonempty(kind, S, rng)
        parts = flat(H, h)
        nearest = parts.nearest()[0].numpy()
        size = 120 if S == 2 else 44
        coarse, fine = (by_simplices(H, h, nearest, nodes) for nodes in (size * 3 // 4, size))
        doubt = abs(coarse[0] - fine[0])
        resolved += doubt < 1e-8
        room = 1e-9 + 10.0 * doubt
        log_p, mean, root = parts.roots()
        alone = parts.log_mass()
        for ours in (log_p, alone):
            assert abs(ours.item() - fine[0]) < room * max(1.0, abs(fine[0]))
        _, expected, covariance, axes = fine
        deviation = np.sqrt(covariance.diagonal())
        rounding = 1e-13 * (1.0 + np.abs(expected).max()) / deviation.min()
        off = axes.T @ (mean[0].numpy() - expected) / deviation
        assert np.abs(off).max() < 30.0 * room + rounding
        ours = axes.T @ root[0].numpy()
        error = (ours @ ours.T - covariance) / deviation / deviation[:, None]
        assert np.abs(error).max() < 100.0 * room + rounding
    assert resolved >= count // 2  # brute force itself says something


@pytest.mark.fuzz
def test_truncated_draws_have_their_moments():
    rng = np.random.default_rng(0)
    for seed in range(cases(20, 500)):
        a = rng.normal() * 10.0 ** rng.uniform(-1, 3)
        b = a + 10.0 ** rng.uniform(-8, 2) if rng.random() < 0.8 else math.inf
        a, b = (a, b) if rng.random() < 0.5 else (-b, -a)
        line = interval_moments(f64(a), f64(b))
        u = sample_truncated(f64(a).expand(DRAWS), f64(b), torch.Generator().manual_seed(seed))
        z = (u - line.anchor - line.mean) / line.variance.sqrt()
        if line.variance.sqrt() > 1e-10 * abs(a):  # finer steps than double precision has are none
            assert_standard(z[:, None].numpy())


def test_draws_from_cones_with_their_apex_nearest():
    """The slice through the apex is a point; it passed for the whole plane, and the means were off by up to 0.1."""
    for seed in (101, 109, 115):
        rng = np.random.default_rng(seed)
        m = int(rng.integers(1, 12))
        H = rng.normal(size=(m, 3))
        H /= np.linalg.norm(H, axis=1, keepdims=True)
        c = rng.normal(size=3) * rng.choice([0, 1, 3])
        parts = flat(H, H @ c + np.abs(rng.normal(size=m)) * rng.choice([0.1, 1, 3]))
        x = parts.sample(torch.zeros(30_000, dtype=torch.long), torch.Generator().manual_seed(seed))
        _, mean, root = parts.roots()
        assert_standard(torch.linalg.solve(root[0], (x - mean).mT).mT.numpy())


def test_a_polygon_that_is_a_point_has_no_mass():
    for points in ([[0.3, -0.2]] * 3, [[0.0, 0.0]] * 4):
        tail = f64([[*p, 1.0] for p in points])
        owner = torch.zeros(len(points), dtype=torch.long)
        assert Polygons(tail, tail.roll(-1, 0), owner, 1).log_mass().item() == -math.inf
    nothing = torch.zeros(0, 3, dtype=torch.float64)
    assert Polygons(nothing, nothing, torch.zeros(0, dtype=torch.long), 1).log_mass().item() == 0.0
    at_infinity = f64([[1.0, 0, 0], [-1, 0, 0]])
    assert Polygons(at_infinity, at_infinity.roll(-1, 0), torch.zeros(2, dtype=torch.long), 1).log_mass().item() == 0.0


def test_posterior_draws_have_the_posterior_moments():
    for seed in range(3):
        dgn = girih.DGN(girih.mlp([3, 6, 4], activation="relu", seed=seed), noise=0.3)
        x = dgn().sample((4,))
        torch.manual_seed(seed)
        posterior = dgn.posterior(x)
        draws = posterior.sample((5000,)).detach()
        for row in range(4):
            root = torch.linalg.cholesky(posterior.covariance[row].detach())
            z = torch.linalg.solve(root, (draws[:, row] - posterior.mean[row].detach()).mT).mT
            assert_standard(z.numpy())


@pytest.mark.fuzz
@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("thick", [1e-3, 1e-5, 1e-7, 1e-9])
def test_variances_across_thin_slabs(S, thick):
    """Across a slab the density is that of a line times areas of sections, affine up to `O(thick^2)`."""
    rng = np.random.default_rng(7)
    for number in range(cases(12, 300)):
        m, axis = int(rng.integers(0, 3 * S)), int(rng.integers(S))
        H = rng.normal(size=(m, S))
        H /= np.linalg.norm(H, axis=1, keepdims=True)
        centre = rng.normal(size=S) * rng.choice([0.1, 2.0, 5.0])
        normal = np.eye(S)[axis]
        upper = normal @ centre + thick
        G = np.r_[H, [normal], [-normal]]
        g = np.r_[H @ centre + rng.uniform(0.3, 2.0, m), upper, -normal @ centre]
        turn = np.eye(S) if number % 2 == 0 else special_ortho_group.rvs(S, random_state=rng)
        exact = (g[-1] + g[-2]) ** 2 / 12.0
        # what is rounded are coordinates of points with mass, which lie some deviations beyond the centre
        relative = 200.0 * thick**2 + 1e-14 * (3.0 + np.abs(centre).max()) / thick
        _, _, root = flat(G @ turn.T, g).roots()
        deviation = np.linalg.norm((turn @ normal) @ root[0].numpy())
        assert abs(deviation**2 / exact - 1.0) < relative + 2e-9
        covariance = moments(halfspaces=(G @ turn.T, g)).covariance.numpy()
        ours = (turn @ normal) @ covariance @ (turn @ normal)
        # entries of a turned covariance are rounded to 1e-16 of the largest
        rounding = 0.0 if number % 2 == 0 else 4e-16 * np.abs(covariance).max()
        assert abs(ours - exact) < exact * (relative + 2e-9) + rounding


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("thick", [1e-4, 1e-7, 1e-10])
def test_thin_boxes_are_products_of_intervals(S, thick):
    rng = np.random.default_rng(3)
    for _ in range(20):
        low = rng.normal(size=S) * rng.choice([0.0, 1.0, 6.0])
        high = low + np.where(rng.random(S) < 0.5, thick, rng.uniform(0.1, 3.0, S))
        ours = moments(halfspaces=(np.r_[np.eye(S), -np.eye(S)], np.r_[high, -low]))
        line = interval_moments(f64(low), f64(high))
        rounding = 1e-15 * (1.0 + np.abs(low).max()) / thick  # of vertices, to the width
        assert abs(ours.log_mass.item() - line.log_mass.sum().item()) < 1e-9 + rounding
        assert (
            (ours.covariance.diagonal() / line.variance - 1.0).abs() < 1e-8 + 1e-14 * (1 + abs(low).max()) / thick
        ).all()


def test_a_thin_slab_under_a_correlated_covariance():
    """What lies between x_3 = 0.2 and 0.2 + 1e-7 has that variance of x_3, though whitening turns and shears it."""
    covariance = np.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.4], [-0.3, 0.4, 0.7]])
    H, h = np.array([[0.0, 0, 1], [0, 0, -1]]), np.array([0.2 + 1e-7, -0.2])
    ours = moments(halfspaces=(H, h), covariance=covariance)
    assert ours.covariance[2, 2].item() == pytest.approx((h[0] + h[1]) ** 2 / 12, rel=1e-7)
    assert log_mass(halfspaces=(H, h), covariance=covariance).item() == pytest.approx(ours.log_mass.item(), rel=1e-10)
