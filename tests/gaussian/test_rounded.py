"""Unbounded polyhedra whose rays and planes agree only up to rounding, as after steep affine maps."""

import numpy as np
import pytest
import torch

from girih.gaussian import log_mass, polyhedron_log_mass, polyhedron_moments
from girih.gaussian.boundary import polyhedron_boundary


def flat(H: np.ndarray, h: np.ndarray) -> tuple:
    b = polyhedron_boundary(H, h)
    tail, head, face = (torch.as_tensor(part) for part in (b.tail, b.head, b.face))
    return (
        tail,
        head,
        face,
        torch.as_tensor(b.normal),
        torch.as_tensor(b.offset),
        torch.zeros(len(b.normal), dtype=int),
        1,
    )


@pytest.mark.parametrize("rounding", [0.0, 1e-15, 1e-12, 1e-10])
@pytest.mark.parametrize("seed", range(6))
def test_cones_near_and_far(rounding, seed):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(4, 3))
    H[:, 0] = -np.abs(H[:, 0])  # unbounded in the direction of x
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    h = H @ (np.array([1.0, 0.3, -0.2]) * rng.uniform(0.0, 6.0)) + rng.uniform(0.0, 0.5, 4)
    tail, head, *rest = flat(H, h)
    for ends in (tail, head):  # the same error for the same direction
        rays = ends[:, 3] == 0
        turned = ends[rays, :3] * (1.0 + rounding * torch.sin(37.0 * ends[rays, :3]))
        ends[rays, :3] = turned
    exact = log_mass(halfspaces=(H, h))
    assert float(polyhedron_log_mass(tail, head, *rest)) == pytest.approx(float(exact), abs=1e-8 + 100 * rounding)
    found, mean, covariance = polyhedron_moments(tail, head, *rest)
    assert float(found) == pytest.approx(float(exact), abs=1e-8 + 100 * rounding)
    assert (torch.as_tensor(H) @ mean[0] <= torch.as_tensor(h) + 1e-9).all()
    assert (torch.linalg.eigvalsh(covariance) > 0).all()


def test_moments_of_polyhedra_of_which_nothing_is_left():
    """Signed sums round to negative masses and variances there, which must not pass for large ones."""
    H, h = np.array([[-1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]]), np.array([-60.0, 3.0, 3.0])
    for shift in np.linspace(0.0, 5.0, 21):
        found, mean, covariance = polyhedron_moments(*flat(H, h - np.array([shift, 0.0, 0.0])))
        assert float(found) == pytest.approx(-0.5 * (60 + shift) ** 2 - np.log((60 + shift) * 2.5066), abs=0.01)
        assert 60 + shift < float(mean[0, 0]) < 60.1 + shift
        assert float(covariance.abs().max()) < 2.0
