"""Convex hulls of points: masses of the same sets by half-spaces, gradients in the points against differences."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from girih.errors import DerivativeError, NonFiniteError, ShapeError
from girih.gaussian import box_log_mass, hull_log_mass, polytope_log_mass
from twins import f64


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("far", [0.0, 7.0])
def test_masses_are_those_of_half_spaces(S, far):
    points = np.random.default_rng(S).normal(size=(12, 9, S)) + far
    for one, log_p in zip(points, hull_log_mass(points), strict=True):
        sides = ConvexHull(one).equations
        assert log_p.item() == pytest.approx(
            polytope_log_mass(sides[:, :-1], -sides[:, -1]).item(), abs=1e-10, rel=1e-11
        )


@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("far", [0.0, 6.0])
def test_gradients_in_points_mean_and_covariance_are_differences(S, far):
    rng = np.random.default_rng(S)
    points = f64(1.5 * rng.normal(size=(5, 7, S)) + far).requires_grad_()
    mean = f64(0.2 * rng.normal(size=(5, S))).requires_grad_()
    root = f64(np.eye(S) + 0.2 * rng.normal(size=(5, S, S))).requires_grad_()

    def of(points, mean, root):
        return hull_log_mass(points, mean, root @ root.mT)

    assert torch.autograd.gradcheck(of, (points, mean, root), eps=1e-5, atol=1e-6, rtol=1e-6)


def test_points_inside_have_no_part_in_it():
    points = f64([[-1.0, -1.0], [2.0, -1.0], [0.0, 2.0], [0.1, 0.1]]).requires_grad_()
    hull_log_mass(points).backward()
    assert (points.grad[3] == 0).all()
    assert (points.grad[:3].norm(dim=1) > 0.01).all()


def test_boxes_have_masses_but_their_corners_no_gradients():
    corners = f64(np.stack(np.meshgrid([0.0, 1.0], [-1.0, 0.5], [2.0, 3.0]), -1).reshape(8, 3))
    assert hull_log_mass(corners).item() == pytest.approx(
        box_log_mass([0.0, -1.0, 2.0], [1.0, 0.5, 3.0]).item(), abs=1e-11
    )
    with pytest.raises(DerivativeError, match="more than 3 of set 0 share a side"):
        hull_log_mass(corners.requires_grad_())


def test_what_spans_nothing_has_no_mass():
    flat = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    log_p = hull_log_mass(np.stack((flat, flat * [1.0, -1.0] + [0.0, 1.0], [[0.0, 0], [1, 0], [0, 1]])))
    assert log_p[:2].tolist() == [-math.inf, -math.inf]
    assert log_p[2] > -math.inf
    assert hull_log_mass(np.zeros((1, 3))).item() == -math.inf
    assert hull_log_mass([[2.0], [0.5]]).item() == pytest.approx(box_log_mass([0.5], [2.0]).item(), abs=1e-14)


@pytest.mark.parametrize(
    ("error", "points"),
    [(ShapeError, np.zeros((4, 4))), (ShapeError, np.zeros(3)), (NonFiniteError, [[0.0, math.nan], [1, 0], [0, 1]])],
)
def test_errors_are_typed(error, points):
    with pytest.raises(error):
        hull_log_mass(points)
