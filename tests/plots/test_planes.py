"""Pictures of models with two and three latent dimensions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure

import girih
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.plots import (
    densities,
    grid_lines,
    lattice,
    plot_embedding,
    plot_image_manifold,
    plot_manifold,
    plot_marginal,
    plot_posteriors,
    posterior_grid,
    spread_latents,
)

Check = Callable[[Axes | Figure], None]
PRIOR = {2: [[2.0, 0.6], [0.6, 0.5]], 3: None}


@pytest.fixture(scope="module", params=[2, 3])
def model(request: pytest.FixtureRequest) -> girih.DGN:
    S = request.param
    return girih.DGN(girih.mlp([S, 5, 4], seed=S), noise=0.05, prior=PRIOR[S])


@pytest.fixture(scope="module")
def table(model: girih.DGN) -> np.ndarray:
    return model().sample((30,), seed=0).numpy()


@pytest.fixture(scope="module")
def gaps(table: np.ndarray) -> np.ndarray:
    out = table.copy()
    out[:3, 1], out[5] = np.nan, np.nan
    return out


def test_embeddings_with_and_without_classes(
    model: girih.DGN, table: np.ndarray, gaps: np.ndarray, finished: Check
) -> None:
    for labels in (None, np.arange(30) % 10, ["setosa", "other $"] * 15):
        finished(plot_embedding(model, table, labels=labels))
    finished(plot_embedding(model, gaps, coordinates=(1, 0)))
    finished(plot_embedding(model, table[:1]))


def test_the_points_are_the_posterior_means_and_the_ellipses_the_covariances(
    model: girih.DGN, table: np.ndarray
) -> None:
    ax = plot_embedding(model, table, coordinates=(1, 0))
    posterior = model.posterior(table)
    means = posterior.mean[:, [1, 0]].numpy()
    drawn = next(c for c in ax.collections if c.get_array() is not None)
    assert np.allclose(drawn.get_offsets(), means)
    assert np.allclose(drawn.get_array(), posterior.log_evidence.numpy())
    ellipses = next(c for c in ax.collections if isinstance(c, EllipseCollection))
    assert len(ellipses.get_offsets()) >= 20
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    assert ((means > [x0, y0]) & (means < [x1, y1])).all()


@pytest.mark.parametrize("coordinates", [(0, 0), (0, 3), (-1, 0), (0,)])
def test_coordinates_that_are_not_two_latents(coordinates: tuple[int, ...]) -> None:
    dgn = girih.DGN(girih.mlp([2, 3, 2], seed=0), noise=0.1)
    with pytest.raises(ParameterError, match="two different coordinates of z, 0 to 1"):
        plot_embedding(dgn, np.zeros((2, 2)), coordinates=coordinates)
    with pytest.raises(ParameterError, match="two different coordinates of z, 0 to 1"):
        plot_posteriors(dgn, np.zeros((2, 2)), coordinates=coordinates)


def test_posteriors(model: girih.DGN, table: np.ndarray, gaps: np.ndarray, finished: Check) -> None:
    for X, coordinates in ((table[:3], (0, 1)), (gaps[:1], (1, 0))):
        figure = plot_posteriors(model, X, coordinates=coordinates)
        assert len(figure.axes) == len(X)
        finished(figure)
        mean = model.posterior(X).mean[:, list(coordinates)].numpy()
        for ax, point in zip(figure.axes, mean, strict=True):
            assert ax.get_xlim()[0] < point[0] < ax.get_xlim()[1]
            assert ax.get_ylim()[0] < point[1] < ax.get_ylim()[1]


@pytest.mark.parametrize("noise", [1e-4, 0.3])
def test_the_density_in_the_window_is_the_posterior(noise: float) -> None:
    dgn = girih.DGN(girih.mlp([2, 5, 3], seed=1), noise=noise)
    posterior = dgn.posterior(dgn().sample((1,), seed=3))
    draws = posterior.sample((500,), seed=1)[:, 0].numpy()
    low, high = draws.min(0), draws.max(0)
    room = 0.3 * (high - low)
    view = tuple((float(a), float(b)) for a, b in zip(low - room, high + room, strict=True))
    (x, y), log_p = posterior_grid(posterior, view, 200)
    pixel = (x[1] - x[0]) * (y[1] - y[0])
    assert np.exp(log_p).sum() * pixel == pytest.approx(1.0, abs=0.03)
    at = posterior.log_prob(torch.tensor([[x[7], y[40]]])).item()
    assert log_p[40, 7] == pytest.approx(at, abs=1e-12)


@pytest.mark.parametrize("coordinates", [[2], [0, 3]])
def test_marginals_are_exact(
    model: girih.DGN, table: np.ndarray, coordinates: list[int], finished: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(densities.PIXELS, model.latent_dim, (20, 24))
    ax = plot_marginal(model, X=table, coordinates=coordinates)
    finished(ax)
    if len(coordinates) == 1:
        x, y = ax.lines[0].get_data()
        at = np.full((len(x), 4), np.nan)
        at[:, coordinates[0]] = x
        assert np.allclose(y, model().log_prob(at).exp().detach().numpy(), rtol=1e-8)
        assert np.trapezoid(y, x) == pytest.approx(1.0, abs=0.02)
    else:
        image = ax.images[0]
        left, right, bottom, top = image.get_extent()
        total = image.get_array().sum() * (right - left) * (top - bottom) / image.get_array().size
        assert 0.8 < total < 1.02  # the window leaves tails out


def test_manifolds(model: girih.DGN, table: np.ndarray, gaps: np.ndarray, finished: Check) -> None:
    for X in (table, None, gaps):
        finished(plot_manifold(model, X))
    flat = girih.DGN(girih.mlp([model.latent_dim, 3, 2], seed=0), noise=0.05)
    ax = plot_manifold(flat, flat().sample((30,), seed=0))
    finished(ax)
    assert len(ax.images) == 1
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert len(lines) == model.latent_dim
    z = grid_lines(np.eye(model.latent_dim), 0)
    with torch.no_grad():
        image = flat.trace(torch.as_tensor(z[0])).numpy()
    assert np.allclose(lines[0].get_segments()[0], image)


def test_one_column_is_refused() -> None:
    with pytest.raises(LatentDimensionError, match="plot_marginal"):
        plot_manifold(girih.DGN(girih.mlp([2, 3, 1], seed=0), noise=0.1))


@pytest.mark.parametrize(("S", "tiles"), [(2, 100), (3, 27)])
def test_images_over_the_latent_space(S: int, tiles: int, finished: Check) -> None:
    dgn = girih.DGN(girih.mlp([S, 6, 12], seed=0), noise=0.1)
    ax = plot_image_manifold(dgn, (3, 4))
    finished(ax)
    assert len(ax.images) == tiles
    assert len(plot_image_manifold(dgn, (3, 4), count=6, columns=3).images) == (6 if S == 2 else 9)
    with pytest.raises(ShapeError):
        plot_image_manifold(dgn, (3, 3))
    with pytest.raises(ParameterError):
        plot_image_manifold(dgn, (3, 4), columns=0)


def test_the_lattice_has_z1_to_the_right_and_z2_up() -> None:
    dgn = girih.DGN(girih.mlp([2, 3, 2], seed=0), noise=0.1)
    grid = lattice(dgn, 3, 4)
    assert grid.shape == (3, 4, 2)
    assert (np.diff(grid[:, :, 0], axis=1) > 0).all() and (np.diff(grid[:, :, 1], axis=0) < 0).all()


def test_spread_latents_follow_the_prior() -> None:
    dgn = girih.DGN(girih.mlp([2, 3, 2], seed=0), noise=0.1, prior=PRIOR[2])
    z = spread_latents(dgn)
    assert np.allclose(np.cov(z.T), PRIOR[2], atol=0.05)
    assert np.array_equal(z, spread_latents(dgn))
