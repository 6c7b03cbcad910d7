"""Samples, embedding, partition and images."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import girih
from girih.datasets import load
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.plots import (
    plot_embedding,
    plot_image_manifold,
    plot_image_samples,
    plot_line_partition,
    plot_samples,
)

Check = Callable[[Axes | Figure], None]


def test_samples_of_every_width(dgn: girih.DGN, rows: np.ndarray, holes: np.ndarray, finished: Check) -> None:
    for X in (rows, holes, torch.as_tensor(rows), pd.DataFrame(rows), np.ones_like(rows)):
        finished(plot_samples(X, dgn().sample((40,), seed=1)))


def test_wide_constant_rows(finished: Check) -> None:
    finished(plot_samples(np.zeros((200, 70)), np.zeros((3, 70))))


def test_samples_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="samples has 3 columns"):
        plot_samples(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(EmptyDataError, match="X has no complete row to draw"):
        plot_samples(np.full((4, 2), np.nan), np.zeros((4, 2)))


def test_many_rows_are_thinned_and_rasterised() -> None:
    X = np.random.default_rng(0).normal(size=(20_000, 2))
    ax = plot_samples(X, X[:100])
    assert len(ax.collections[0].get_offsets()) == 5_000 and ax.collections[0].get_rasterized()


def test_embeddings_of_every_width(dgn: girih.DGN, rows: np.ndarray, holes: np.ndarray, finished: Check) -> None:
    for X in (rows, holes, rows[:1]):
        finished(plot_embedding(dgn, X))
    for labels in (np.arange(len(rows)) % 3, ["a", "b"] * 30, np.array([True, False] * 30), ["one"] * 60):
        finished(plot_embedding(dgn, rows, labels=labels))


def test_the_embedding_is_the_posterior_mean() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.05)
    X = dgn().sample((30,), seed=0)
    drawn = plot_embedding(dgn, X).collections[1].get_offsets()
    order = np.argsort(drawn[:, 1])
    assert np.allclose(drawn[order, 0], np.sort(dgn.posterior(X).mean[:, 0].numpy()))


def test_labels_of_a_dataset_are_used() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 4], seed=0), noise=0.5)
    texts = [tick.get_text() for tick in plot_embedding(dgn, load("iris")).get_yticklabels()]
    assert texts == ["setosa", "versicolor", "virginica"]
    assert plot_embedding(dgn, load("iris").X).get_ylabel() == "rank of the row / N"


def test_labels_that_do_not_fit() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.5)
    with pytest.raises(ShapeError, match="one class for each of the 5 rows"):
        plot_embedding(dgn, np.zeros((5, 2)), labels=[1, 2])
    with pytest.raises(ParameterError, match="30 different classes"):
        plot_embedding(dgn, np.zeros((30, 2)), labels=np.arange(30))


@pytest.mark.parametrize("sizes", [[1, 8, 1], [1, 8, 2], [1, 8, 8, 9], [1, 3]])
def test_partitions(sizes: list[int], finished: Check) -> None:
    part = girih.Partition(girih.mlp(sizes, seed=0))
    finished(part.plot())
    ax = Figure(layout="constrained").add_subplot()
    assert part.plot(ax=ax) is ax
    finished(ax)


def test_partition_lines_are_the_generator() -> None:
    net = girih.mlp([1, 8, 3], seed=0)
    ax = plot_line_partition(girih.Partition(net), span=(-1.0, 2.0), coordinates=[2])
    line = next(line for line in ax.lines if line.get_label() == "$g_{2}(z)$")
    z = np.linspace(-1.0, 2.0, 40)
    with torch.no_grad():
        truth = net(torch.as_tensor(z)[:, None])[:, 2].numpy()
    assert np.allclose(np.interp(z, *line.get_data()), truth)


def test_the_strip_shows_the_prior_mass_of_each_cell() -> None:
    part = girih.Partition(girih.mlp([1, 8, 2], seed=0))
    ax = part.plot(span=(-50.0, 50.0))
    heights = [bar.get_height() for bar in ax.child_axes[0].patches]
    inside = part.breakpoints[part.breakpoints.abs() < 50]
    assert len(heights) == len(inside) + 1
    assert sum(heights) == pytest.approx(1.0)


def test_a_domain_bounds_the_picture() -> None:
    part = girih.Partition(girih.mlp([1, 8, 2], seed=0), domain=(-1.0, 0.5))
    assert part.plot().get_xlim() == (-1.0, 0.5)
    with pytest.raises(ParameterError, match="inside the domain"):
        part.plot(span=(1.0, 2.0))


def test_partition_options_are_checked() -> None:
    part = girih.Partition(girih.mlp([1, 4, 3], seed=0))
    for bad in ([3], [], [-1], list(range(9))):
        with pytest.raises(ParameterError, match="coordinates must be 1 to 7 of 0 to 2"):
            part.plot(coordinates=bad)
    with pytest.raises(ParameterError, match="span must be"):
        part.plot(span=(2.0, 1.0))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 2, 3)])
def test_image_manifolds(shape: tuple[int, ...], finished: Check) -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 24], seed=0), noise=0.1)
    for count in (1, 5, 16):
        ax = plot_image_manifold(dgn, shape, count=count)
        assert len(ax.images) == count and len(ax.texts) == count
        finished(ax)


def test_image_captions_are_prior_quantiles() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 24], seed=0), noise=0.1, prior=4.0)
    ax = plot_image_manifold(dgn, (4, 6), count=2)
    assert [text.get_text() for text in ax.texts] == ["\N{MINUS SIGN}1.35", "1.35"]
    expected = dgn.trace(torch.tensor([[1.349]], dtype=torch.float64)).detach().numpy().reshape(4, 6)
    assert np.allclose(ax.images[1].get_array(), expected, atol=1e-3)


def test_image_samples(finished: Check) -> None:
    fours = load("digits-4")
    assert len(plot_image_samples(fours, (8, 8), rows=3, cols=5).images) == 15
    holes = fours.X[:7].copy()
    holes[0], holes[1, :5] = np.nan, np.nan
    for images in (holes, fours.X[:3].reshape(3, 8, 8), np.full((2, 64), np.nan)):
        finished(plot_image_samples(images, (8, 8), label="fours"))


def test_images_of_another_shape_are_refused() -> None:
    dgn = girih.DGN(girih.mlp([1, 8, 24], seed=0), noise=0.1)
    for shape in [(5, 5), (24,), (4, 3, 2), (2, 2, 2, 3)]:
        with pytest.raises(ShapeError, match="with D = 24 values in all"):
            plot_image_manifold(dgn, shape)
    with pytest.raises(ShapeError, match="rows of shape"):
        plot_image_samples(np.zeros((0, 4)), (2, 2))
    with pytest.raises(ParameterError, match="at least one line"):
        plot_image_samples(np.zeros((3, 4)), (2, 2), rows=0)
