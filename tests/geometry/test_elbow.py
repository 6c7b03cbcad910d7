"""The elbow, against principal components, exact one-cell fits and curves of known dimension."""

import math

import numpy as np
import pytest
import torch

from girih import geometry
from girih.errors import EmptyDataError, NonFiniteError, ParameterError, ShapeError

QUICK = {"epochs": 60, "restarts": 1, "progress": False}


def plane(n: int, S: int, D: int, noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, S)) @ rng.normal(size=(S, D)) + 3.0 + noise * rng.normal(size=(n, D))


def principal(x: np.ndarray, S: int) -> float:
    """The error of the best plane in the squared sense, from the covariance."""
    centred = x - x.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, x.shape[1] - S :]
    return float(np.linalg.norm(centred - centred @ axes @ axes.T, axis=1).sum())


@pytest.mark.parametrize("true", [2, 4])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_plane_has_its_dimension(true, noise):
    found = geometry.elbow(plane(120, true, 8, noise), range(1, 7), hidden=(8,), **QUICK)
    assert found.suggested == true
    assert found.dims.tolist() == [1, 2, 3, 4, 5, 6] and found.sizes.tolist() == [30, 60, 120]
    if not noise:
        assert float(found.error[true - 1 :].max()) < 1e-8


def test_no_worse_than_principal_axes_and_never_less_than_nothing():
    x = plane(80, 5, 6, 0.1)
    found = geometry.elbow(x, [5, 1, 3], sizes=[80], **QUICK)
    assert found.dims.tolist() == [1, 3, 5]
    for S, error in zip(found.dims.tolist(), found.error[:, 0].tolist(), strict=True):
        assert 0.0 <= error <= principal(x, S) * (1 + 1e-12)
    assert float(found.baseline[0]) == pytest.approx(principal(x, 0))
    torch.testing.assert_close(found.per_row, found.error / 80)
    torch.testing.assert_close(found.unexplained, found.error / found.baseline)


def test_one_dimension_bends_where_the_data_do():
    t = np.linspace(-1.0, 1.0, 101)
    x = np.stack((t, 2 * np.abs(t) - 1), 1)  # a leaky ReLU network with one latent is this curve
    found = geometry.elbow(x, [1, 2], sizes=[101], hidden=(16,), epochs=400, restarts=2, progress=False)
    assert float(found.error[0, 0]) < 0.1 * principal(x, 1)
    assert found.suggested == 1


def test_too_few_dimensions_fit_few_rows_and_fail_on_many():
    x = plane(150, 3, 5)
    found = geometry.elbow(x, [1, 3], sizes=[4, 40, 150], hidden=(16,), epochs=400, restarts=1, progress=False)
    short, full = found.per_row
    assert float(short[0]) < 0.25 * float(short[1]) and float(short[1]) < float(short[2]) * 1.2
    assert bool((found.error[0].diff() > 0).all())
    assert float(full.max()) < 1e-9


def test_errors_do_not_grow_with_latents_nor_shrink_with_rows():
    t = np.random.default_rng(0).uniform(0.0, 2 * np.pi, 200)
    x = np.stack((np.cos(t), np.sin(t), 0.3 * np.cos(3 * t)), 1)
    for seed in range(3):
        found = geometry.elbow(x, [1, 2, 3], sizes=[100, 110, 120, 130, 140], seed=seed, **QUICK)
        assert bool((found.error.diff(dim=0) <= 0).all()) and bool((found.error.diff(dim=1) >= 0).all())


def test_scale_and_repeats_change_nothing():
    x = plane(50, 2, 4, 0.3)
    first = geometry.elbow(x, [1, 2], **QUICK)
    again = geometry.elbow(x, [1, 2], **QUICK)
    assert torch.equal(first.error, again.error)
    scaled = geometry.elbow(1024.0 * x, [1, 2], **QUICK)  # a power of 2: the fit is the same bit by bit
    torch.testing.assert_close(scaled.error, 1024.0 * first.error, rtol=1e-12, atol=0.0)


def test_constant_data_and_more_latents_than_columns():
    found = geometry.elbow(np.ones((10, 3)), [1, 5], **QUICK)
    assert found.suggested == 1 and float(found.error.max()) == 0.0 and float(found.unexplained.max()) == 0.0
    assert float(geometry.elbow(plane(10, 2, 3), [5], **QUICK).error.max()) < 1e-9


def test_refuses_what_it_cannot_take():
    x = plane(20, 2, 4)
    for options in (
        {"dims": []}, {"dims": [0]}, {"dims": 2}, {"sizes": [1]}, {"sizes": [21]}, {"hidden": []}, {"epochs": -1},
        {"restarts": 0}, {"tolerance": 1.0}, {"tolerance": math.nan}, {"seed": -1},
    ):  # fmt: skip
        with pytest.raises(ParameterError, match=next(iter(options))):
            geometry.elbow(x, **({"dims": [1]} | QUICK | options))
    with pytest.raises(ParameterError, match="hidden layers must have at least"):
        geometry.elbow(x, [3], hidden=(2,), **QUICK)
    with pytest.raises(ShapeError):
        geometry.elbow(x[0], [1], **QUICK)
    with pytest.raises(EmptyDataError):
        geometry.elbow(x[:1], [1], **QUICK)
    x[0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        geometry.elbow(x, [1], **QUICK)
