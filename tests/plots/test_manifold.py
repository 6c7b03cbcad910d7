"""The manifold over the data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

import girih
from girih.datasets import load
from girih.errors import ParameterError, ShapeError
from girih.plots import limits_around, plane_of, plot_manifold

Check = Callable[[Axes | Figure], None]


def test_with_rows_without_and_with_holes(dgn: girih.DGN, rows: np.ndarray, holes: np.ndarray, finished: Check) -> None:
    for X in (rows, None, holes):
        ax = plot_manifold(dgn, X)
        assert isinstance(ax, Axes)
        finished(ax)


def test_given_axes_are_used(dgn: girih.DGN, rows: np.ndarray, finished: Check) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    assert plot_manifold(dgn, rows, ax=axes[0]) is axes[0]
    assert figure.get_size_inches().tolist() == [8, 4]
    assert axes[0].get_legend() is not None
    finished(axes[0])


def test_the_curve_is_that_of_the_generator() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 2], seed=1), noise=0.01)
    ax = plot_manifold(dgn)
    curve = next(c for c in ax.collections if isinstance(c, LineCollection) and c.get_array() is not None)
    ends = np.array([piece[0] for piece in curve.get_segments()])
    z = torch.linspace(-3.0, 3.0, 50, dtype=torch.float64)[:, None]
    truth = dgn.trace(z).detach().numpy()
    assert np.sqrt(((truth[:, None] - ends) ** 2).sum(-1)).min(1).max() < 0.1
    bends = ax.collections[-1].get_offsets()
    assert len(bends) == (dgn.partition.breakpoints.abs() < 3.09).sum()


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
def test_the_band_is_one_deviation_wide(kind: str) -> None:
    covariance = {"scalar": 0.04, "diagonal": [0.04, 0.09], "full": [[0.05, 0.02], [0.02, 0.03]]}[kind]
    net = torch.nn.Linear(1, 2, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0], [1.0]]))
        net.bias.zero_()
    ax = plot_manifold(girih.DGN(net, noise=covariance))
    band = next(c for c in ax.collections if isinstance(c, PolyCollection))
    points = np.concatenate([path.vertices for path in band.get_paths()])
    direction = np.array([1.0, -2.0]) / 5**0.5
    full = np.diag(np.broadcast_to(covariance, 2)) if kind != "full" else np.array(covariance)
    assert np.abs(points @ direction).max() == pytest.approx((direction @ full @ direction) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("noise", [1e-9, 1e4])
def test_extreme_noise(noise: float, finished: Check) -> None:
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=noise)
    finished(plot_manifold(dgn, dgn().sample((20,), seed=0)))


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_pictures_are_saved(tmp_path: Path, kind: str) -> None:
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.01)
    plot_manifold(dgn, load("circle", n=600)).get_figure().savefig(tmp_path / f"picture.{kind}", dpi=70)
    assert (tmp_path / f"picture.{kind}").stat().st_size > 3_000


def test_rows_alike_or_alone(dgn: girih.DGN, width: int, finished: Check) -> None:
    finished(plot_manifold(dgn, np.ones((1, width))))
    finished(plot_manifold(dgn, np.ones((9, width))))
    finished(plot_manifold(dgn, np.full((2, width), np.nan)))


def test_a_generator_without_kinks(finished: Check) -> None:
    finished(plot_manifold(girih.DGN(girih.mlp([1, 3], seed=0), noise=0.1)))


def test_an_outlier_of_the_curve_does_not_shrink_the_data() -> None:
    net = girih.mlp([1, 8, 2], seed=0)
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0], net[2].weight[:, 0] = 1.0, -1.5, 1000.0
    X = load("circle").X
    ax = plot_manifold(girih.DGN(net, noise=0.01), X)
    assert max(np.abs([ax.get_xlim(), ax.get_ylim()]).ravel()) < 4.0


def test_labels_come_from_names_or_principal_axes(finished: Check) -> None:
    iris = load("iris")
    dgn = girih.DGN(girih.mlp([1, 8, 4], seed=0), noise=0.2)
    ax = plot_manifold(dgn, iris)
    assert ax.get_xlabel() == "principal axis 1 (92% of variance)" and ax.get_ylabel() == "principal axis 2 (5%)"
    assert plot_manifold(dgn).get_xlabel().startswith("principal axis 1 of g(z) (")
    two = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.2)
    ax = plot_manifold(two, iris.X[:, :2], feature_names=["price ($) or {$}", "a" * 99])
    assert ax.get_xlabel() == r"price (\$) or {\$}" and ax.get_ylabel() == "a" * 22 + "\n" + "a" * 7 + "…"
    finished(ax)
    with pytest.raises(ParameterError, match="feature_names holds 3 names for 2 columns"):
        plot_manifold(two, feature_names=["a", "b", "c"])


def test_rows_that_do_not_fit_are_refused(dgn: girih.DGN, width: int) -> None:
    with pytest.raises(ShapeError, match="the data dimension D"):
        plot_manifold(dgn, np.zeros((4, width + 1)))


@pytest.mark.parametrize("shape", [(200, 6), (40, 90), (200, 90), (2, 5), (3, 90)])
def test_principal_axes_are_those_of_a_dense_decomposition(shape: tuple[int, int]) -> None:
    X = np.random.default_rng(0).normal(size=shape) * np.linspace(3, 1, shape[1]) ** 2
    plane = plane_of(X, [])
    assert np.allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-8)
    singular = np.linalg.svd(X - X.mean(0), compute_uv=False)
    assert np.allclose(np.linalg.norm(plane.project(X), axis=0), singular[:2], atol=1e-6 * singular[0])
    assert f"({100 * singular[0] ** 2 / (singular**2).sum():.0f}% of variance)" in plane.labels[0]


def test_limits_hold_all_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 2))
    low, high = limits_around(rows, 100.0 * rows)
    assert (low < rows.min(0)).all() and (high > rows.max(0)).all() and (high - low < 2.0 * np.ptp(rows, axis=0)).all()
