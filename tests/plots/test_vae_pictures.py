"""Pictures of VAEs: traversals, posterior densities, embeddings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from torch.distributions import Normal

from girih.datasets import load
from girih.errors import ParameterError, ShapeError
from girih.plots import plot_posterior_densities, plot_traversals, plot_vae_embedding
from girih.vae import BPEF, CGBPEFVAE, CatVAE, CoarseBPEF, GaussVAE, MixtureVAE

Check = Callable[[Axes | Figure], None]

VAES = {
    "gauss": lambda S, D: GaussVAE([S, 8, D], seed=0),
    "mixture": lambda S, D: MixtureVAE([S, 8, D], seed=0),
    "categories": lambda S, D: CatVAE([S, 8, D], categories=4, seed=0),
    "polynomials": lambda S, D: CGBPEFVAE([S, 8, D], seed=0, levels=21),
}


def rows(n: int, D: int) -> torch.Tensor:
    return torch.randn(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VAES)
def test_traversals_of_images_are_those_of_the_decoder(name: str, finished: Check) -> None:
    vae, x = VAES[name](3, 12), rows(1, 12)
    figure = plot_traversals(vae, x, (3, 4), values=5)
    (ax,) = figure.axes
    count = 4 if name == "categories" else 5
    images = ax.get_images()
    assert len(images) == 3 * count
    for k in range(3):
        moved = vae.traverse(x, k, count=count)[0].numpy()
        for i in range(count):
            assert np.allclose(images[k * count + i].get_array(), moved[i].reshape(3, 4))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["$z_{1}$", "$z_{2}$", "$z_{3}$"]
    texts = [text.get_text() for text in ax.get_xticklabels()]
    if name == "categories":
        assert texts == ["0", "1", "2", "3"]
    elif name == "polynomials":
        assert texts == ["−1", "−0.5", "0", "0.5", "1"]
    finished(ax)


def test_chosen_dimensions_and_values(finished: Check) -> None:
    vae = VAES["polynomials"](4, 12)
    figure = plot_traversals(vae, [0.1, 0.2, 0.3, 0.4], (3, 4, 1), dimensions=[2, 0], values=[-1.5, 1.5])
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["$z_{3}$", "$z_{1}$"]
    expected = vae.decode([[0.1, 0.2, -1.5, 0.4]]).detach().numpy().reshape(3, 4)
    assert np.allclose(ax.get_images()[0].get_array(), expected)
    given = Figure(figsize=(6, 4), layout="constrained")
    assert plot_traversals(vae, [0.1, 0.2, 0.3, 0.4], (3, 4), figure=given) is given
    many = plot_traversals(VAES["gauss"](12, 12), np.zeros(12), (3, 4))
    assert len(many.axes[0].get_yticklabels()) == 10


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("D", [1, 2, 5, 30])
def test_traversals_of_tables_are_curves(name: str, D: int, finished: Check) -> None:
    vae, x = VAES[name](3, D), rows(1, D)
    figure = plot_traversals(vae, x, values=5)
    panels = figure.axes[:3]
    assert [ax.get_title() for ax in panels] == ["$z_{1}$ moves", "$z_{2}$ moves", "$z_{3}$ moves"]
    for k, ax in enumerate(panels):
        moved = vae.traverse(x, k, count=5)[0].numpy()
        if D == 2:
            assert np.allclose(ax.lines[0].get_xydata(), moved)
        else:
            assert np.allclose([line.get_ydata() for line in ax.lines], moved)
    finished(figure)


def test_names_of_columns_are_used() -> None:
    names = ["length", "width", "depth"]
    ax = plot_traversals(VAES["gauss"](1, 3), [0.0], feature_names=names).axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == names
    with pytest.raises(ParameterError, match="2 names for 3 columns"):
        plot_traversals(VAES["gauss"](1, 3), [0.0], feature_names=names[:2])


def test_traversals_that_cannot_be_drawn_are_refused() -> None:
    vae = VAES["gauss"](3, 12)
    with pytest.raises(ShapeError, match="start must be one row; got 4"):
        plot_traversals(vae, rows(4, 12), (3, 4))
    with pytest.raises(ShapeError, match="image_shape must be"):
        plot_traversals(vae, rows(1, 12), (5, 5))
    for dimensions in ([3], [], [0] * 41):
        with pytest.raises(ParameterError, match="latents"):
            plot_traversals(vae, rows(1, 12), (3, 4), dimensions=dimensions)
    with pytest.raises(ParameterError, match="values"):
        plot_traversals(vae, rows(1, 12), (3, 4), values=0)
    with pytest.warns(DeprecationWarning, match=r"use plot_traversals\(values=...\)"):
        plot_traversals(vae, rows(1, 12), (3, 4), count=2)


def test_densities_are_those_of_the_distributions(finished: Check) -> None:
    vae, x = VAES["polynomials"](3, 4), rows(4, 4)
    with torch.no_grad():
        q, p = vae.encode(x), vae.prior()
        figure = plot_posterior_densities(q, p)
    assert [ax.get_xlabel() for ax in figure.axes] == ["latent $z_{1}$", "latent $z_{2}$", "latent $z_{3}$"]
    for k, ax in enumerate(figure.axes):
        for line, probs in zip(ax.lines, q.base_dist.probs[:, k], strict=True):
            assert np.allclose(line.get_xdata(), np.linspace(-1.0, 1.0, 21))
            assert np.allclose(line.get_ydata(), 10.0 * probs)
    finished(figure)
    assert len(plot_posterior_densities(q, dimensions=[2]).axes) == 1


def test_continuous_densities_integrate_to_one(finished: Check) -> None:
    c = torch.tensor([[0.3, 80.0, 0.0, -1e2], [400.0, 0.0, 0.0, 0.0], [0.0, -900.0, 0.0, 0.0]])
    figure = plot_posterior_densities(BPEF(c), labels=["two", "an end", "one"])
    (ax,) = figure.axes
    for line in ax.lines:
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(1.0, abs=1e-3)
    assert [text.get_text() for text in ax.texts] == ["400"]  # the peak that is cut off
    assert 4.0 < ax.get_ylim()[1] < 100.0
    finished(figure)
    for q, panels in (
        (CoarseBPEF(torch.zeros(3)), 1),
        (CoarseBPEF(torch.zeros(2, 5, 3)), 5),
        (BPEF(torch.zeros(3)), 1),
    ):
        assert len(plot_posterior_densities(q).axes) == panels


def test_densities_that_cannot_be_drawn_are_refused() -> None:
    q = CoarseBPEF(torch.zeros(3, 2))
    with pytest.raises(ParameterError, match="must be a CoarseBPEF or a BPEF"):
        plot_posterior_densities(Normal(torch.zeros(3), 1.0))
    with pytest.raises(ParameterError, match="8 rows are too many"):
        plot_posterior_densities(CoarseBPEF(torch.zeros(8, 2)))
    with pytest.raises(ParameterError, match="2 texts for 3 rows"):
        plot_posterior_densities(q, labels=["a", "b"])
    with pytest.raises(ParameterError, match="dimensions must be latents from 0 to 0"):
        plot_posterior_densities(q, dimensions=[1])
    with pytest.raises(ParameterError, match="the prior has 1 latents, and the posteriors have 4"):
        plot_posterior_densities(CoarseBPEF(torch.zeros(3, 4, 2)), q)


@pytest.mark.parametrize("name", ["gauss", "mixture", "polynomials"])
def test_embeddings_are_the_means_and_deviations(name: str, finished: Check) -> None:
    vae, iris = VAES[name](3, 4), load("iris")
    ax = plot_vae_embedding(vae, iris.X, coordinates=(2, 0))
    mean, deviation = vae.embed(iris.X)
    assert np.allclose(ax.collections[-1].get_offsets(), mean[:, [2, 0]])
    ellipses = next(c for c in ax.collections if isinstance(c, EllipseCollection))
    assert np.isin(np.round(ellipses.get_widths(), 9), np.round(2.0 * deviation[:, [2, 0]].numpy(), 9)).all()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent $z_{3}$", "latent $z_{1}$")
    finished(ax)
    labelled = plot_vae_embedding(vae, iris)
    finished(labelled)
    legend = labelled.get_figure().legends[0]
    assert {"setosa", "versicolor", "virginica"} <= {text.get_text() for text in legend.get_texts()}


def test_embeddings_that_cannot_be_drawn_are_refused() -> None:
    X = load("iris").X
    with pytest.raises(ParameterError, match="no place in a plane"):
        plot_vae_embedding(VAES["categories"](2, 4), X)
    for coordinates in ((0, 0), (0, 3), (0,), (0, 1, 2)):
        with pytest.raises(ParameterError, match="two different latents"):
            plot_vae_embedding(VAES["gauss"](3, 4), X, coordinates=coordinates)
    with pytest.raises(ParameterError, match="two different latents from 0 to 0"):
        plot_vae_embedding(VAES["gauss"](1, 4), X)


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_pictures_are_saved(tmp_path: Path, kind: str) -> None:
    vae = VAES["polynomials"](2, 12)
    figures = (
        plot_traversals(vae, rows(1, 12), (3, 4)),
        plot_posterior_densities(vae.encode(rows(3, 12)), vae.prior()),
        plot_vae_embedding(vae, rows(50, 12)).get_figure(),
    )
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.{kind}", dpi=70)
        assert (tmp_path / f"{i}.{kind}").stat().st_size > 3_000
