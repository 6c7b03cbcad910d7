"""Densities: what is drawn is the exact density, resolved however narrow it is."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import girih
from girih.errors import EmptyDataError, ParameterError
from girih.plots import plot_marginal, plot_posteriors

Check = Callable[[Axes | Figure], None]


def area(ax: Axes, line: int = 0) -> float:
    x, y = ax.lines[line].get_data()
    return float(np.trapezoid(y, x))


@pytest.mark.parametrize("log", [False, True])
def test_marginals_of_every_width(
    dgn: girih.DGN, rows: np.ndarray, holes: np.ndarray, finished: Check, log: bool
) -> None:
    for X in (None, rows, holes):
        finished(plot_marginal(dgn, X=X, log=log))


def test_the_map_is_the_density() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 2], seed=2), noise=0.02)
    ax = plot_marginal(dgn)
    image = ax.images[0]
    values, (left, right, bottom, top) = image.get_array(), image.get_extent()
    pixel = (right - left) * (top - bottom) / values.size
    assert values.sum() * pixel == pytest.approx(1.0, abs=0.04)
    i, j = np.unravel_index(values.argmax(), values.shape)
    x = [left + (j + 0.5) * (right - left) / values.shape[1], bottom + (i + 0.5) * (top - bottom) / values.shape[0]]
    assert values[i, j] == pytest.approx(dgn().log_prob([x]).exp().item(), rel=1e-9)
    assert image.norm.vmin == 0.0


@pytest.mark.parametrize("noise", [0.3, [0.1, 0.2, 0.3], [[0.3, 0.1, 0.0], [0.1, 0.3, 0.1], [0.0, 0.1, 0.2]]])
def test_a_marginal_of_one_coordinate_is_exact(noise: object) -> None:
    dgn = girih.DGN(girih.mlp([1, 6, 3], seed=0), noise=noise)
    ax = plot_marginal(dgn, coordinates=[2])
    x, y = ax.lines[0].get_data()
    table = np.full((len(x), 3), np.nan)
    table[:, 2] = x
    assert np.allclose(y, dgn().log_prob(table).exp().detach().numpy(), rtol=1e-10)
    assert area(ax) == pytest.approx(1.0, abs=5e-3)


def test_a_narrow_marginal_of_one_coordinate_is_resolved() -> None:
    dgn = girih.DGN(girih.mlp([1, 6, 1], "relu", seed=1), noise=1e-8)  # a dead stretch is a spike of mass
    assert area(plot_marginal(dgn)) == pytest.approx(1.0, abs=2e-2)


@pytest.mark.parametrize("coordinates", [[0, 0], [0, 5], [-1], [0, 1, 2], []])
def test_coordinates_that_do_not_exist(coordinates: list[int]) -> None:
    dgn = girih.DGN(girih.mlp([1, 4, 5], seed=0), noise=0.1)
    with pytest.raises(ParameterError, match="one or two different columns of 0 to 4"):
        plot_marginal(dgn, coordinates=coordinates)


def test_posteriors_of_every_width(dgn: girih.DGN, rows: np.ndarray, holes: np.ndarray, finished: Check) -> None:
    for X in (rows[:1], rows[:5], holes[:4]):
        figure = plot_posteriors(dgn, X)
        assert isinstance(figure, Figure) and len(figure.axes) == len(X)
        finished(figure)


@pytest.mark.parametrize("noise", [1e-8, 1e-4, 1.0, 100.0])
def test_a_posterior_of_any_width_is_resolved(noise: float) -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 8, 3], seed=0), noise=noise)
    X = torch.cat((dgn().sample((4,), seed=1), torch.full((1, 3), 30.0, dtype=torch.float64)))
    figure = plot_posteriors(dgn, X)
    posterior = dgn.posterior(X)
    for n, ax in enumerate(figure.axes):
        assert area(ax) == pytest.approx(1.0, abs=6e-3)
        low, high = ax.get_xlim()
        assert low < float(posterior.mean[n, 0]) < high and low < float(posterior.mode[n, 0]) < high


def test_cell_limits_in_view_are_drawn() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=10.0)  # about the prior: all near limits in view
    ax = plot_posteriors(dgn, [[0.0, 0.0]]).axes[0]
    drawn = sorted(
        line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2 and line.get_label()[0] == "_"
    )
    low, high = ax.get_xlim()
    limits = dgn.partition.breakpoints
    assert np.allclose(drawn, limits[(limits > low) & (limits < high)])


def test_posterior_panels_have_titles_and_a_limit() -> None:
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)
    figure = plot_posteriors(dgn, np.zeros((2, 2)), titles=["a", "b"], columns=5)
    assert [ax.get_title()[:2] for ax in figure.axes] == ["a:", "b:"]
    with pytest.raises(ParameterError, match="titles holds 1 texts for 2 rows"):
        plot_posteriors(dgn, np.zeros((2, 2)), titles=["a"])
    with pytest.raises(ParameterError, match="25 rows are too many panels"):
        plot_posteriors(dgn, np.zeros((25, 2)))
    with pytest.raises(ParameterError, match="columns must be 1 or more"):
        plot_posteriors(dgn, np.zeros((2, 2)), columns=0)
    with pytest.raises(EmptyDataError):
        plot_posteriors(dgn, np.zeros((0, 2)))


def test_posteriors_fit_into_a_given_figure() -> None:
    figure = Figure(layout="constrained")
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)
    assert plot_posteriors(dgn, np.zeros((2, 2)), figure=figure) is figure
