"""Unbounded polyhedra whose rays and planes agree only up to rounding, as after steep affine maps."""

import numpy as np
import pytest
import torch

from girih.gaussian import Polyhedra, from_halfspaces, log_mass


def flat(H: np.ndarray, h: np.ndarray) -> Polyhedra:
    return from_halfspaces([(H, h)])[0]


@pytest.mark.parametrize("rounding", [0.0, 1e-15, 1e-12, 1e-10])
@pytest.mark.parametrize("seed", range(6))
def test_cones_near_and_far(rounding, seed):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(4, 3))
    H[:, 0] = -np.abs(H[:, 0])  # unbounded in the direction of x
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    h = H @ (np.array([1.0, 0.3, -0.2]) * rng.uniform(0.0, 6.0)) + rng.uniform(0.0, 0.5, 4)
    parts = flat(H, h)
    for ends in (parts.tail, parts.head):  # the same error for the same direction
        rays = ends[:, 3] == 0
        turned = ends[rays, :3] * (1.0 + rounding * torch.sin(37.0 * ends[rays, :3]))
        ends[rays, :3] = turned
    exact = log_mass(halfspaces=(H, h))
    assert float(parts.log_mass()) == pytest.approx(float(exact), abs=1e-8 + 100 * rounding)
    found, mean, covariance = parts.moments()
    assert float(found) == pytest.approx(float(exact), abs=1e-8 + 100 * rounding)
    assert (torch.as_tensor(H) @ mean[0] <= torch.as_tensor(h) + 1e-9).all()
    assert (torch.linalg.eigvalsh(covariance) > 0).all()


def test_moments_of_polyhedra_of_which_nothing_is_left():
    """Signed sums round to negative masses and variances there, which must not pass for large ones."""
    H, h = np.array([[-1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]]), np.array([-60.0, 3.0, 3.0])
    for shift in np.linspace(0.0, 5.0, 21):
        found, mean, covariance = flat(H, h - np.array([shift, 0.0, 0.0])).moments()
        assert float(found) == pytest.approx(-0.5 * (60 + shift) ** 2 - np.log((60 + shift) * 2.5066), abs=0.01)
        assert 60 + shift < float(mean[0, 0]) < 60.1 + shift
        assert float(covariance.abs().max()) < 2.0


THIN = [  # cones along which the slices change within a thousandth of a deviation of a vertex
    (
        [
            [0.9695969265349739, 0.233359433199003, -0.07365578721982796],
            [0.42676343535241806, 0.4001523124154534, 0.8110185553455408],
            [-0.75032656457678, -0.3926875691771436, -0.5317955617567276],
            [-0.9609013017498956, -0.18431509949046546, 0.20663163454605882],
        ],
        [0.22022392504203125, -0.12504335970374925, 0.1873335755342711, 0.03861204606481072],
    ),
    (
        [
            [1.1819306163722525, 0.21727715572449752, -0.21121802698849057],
            [-0.8760191306690414, -0.45906840326333886, -0.5344078191078684],
            [-0.4943799635435469, -0.469501573488707, -0.8080077756090668],
            [1.1818360432291468, 0.27705708868086804, -0.07184827816296738],
        ],
        [-3.531594560663566, 0.11711308880964003, -1.8777645497500215, -2.6580078508829588],
    ),
]


@pytest.mark.parametrize("number", [0, 1])
def test_slices_of_thin_cones(number):
    H, h = (np.array(part) for part in THIN[number])
    found = float(flat(H, h).log_mass("slices"))
    at, weight = np.polynomial.legendre.leggauss(16)
    ends = np.linspace(-9.0, 9.0, 73)
    x = (0.5 * (ends[1:] + ends[:-1])[:, None] + 0.125 * at).ravel()
    planes = log_mass(halfspaces=[(H[:, 1:], h - H[:, 0] * level) for level in x]).numpy()
    exact = np.log((np.tile(0.125 * weight, 72) * np.exp(planes - 0.5 * x**2)).sum() / np.sqrt(2 * np.pi))
    assert found == pytest.approx(exact, abs=1e-9)
