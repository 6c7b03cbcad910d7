"""Beyond the papers: the latent plane of ten digits, with its cells, exact posteriors and decoded images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import ndimage
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier

from girih.em import DGNEstimator
from girih.inference import DGN
from girih.plots import (
    BLACK,
    BLUE,
    GREEN,
    PURPLE,
    SKY,
    VERMILLION,
    draw_classes,
    draw_prior,
    new_figure,
    plot_cells,
    plot_image_manifold,
    styled,
)
from girih.training import Progress
from girih_papers.arrays import Array, to_array
from girih_papers.density_race import dequantised_mnist
from girih_papers.figures import draw_images, save

_HIDDEN, _TRAIN, _HELD_OUT, _ITERATIONS = (32,), 1000, 1000, 60
_SHAPE = (28, 28)
_NEIGHBOURS = 5
_PANELS = 6
_DRAWS = 4000
_COLOURS = (BLUE, VERMILLION, GREEN, BLACK, SKY, PURPLE)
_SHARES = np.array([0.5, 0.9, 0.99])  # of a posterior, in the regions that are drawn

Window = tuple[tuple[float, float], tuple[float, float]]


def run(out: Path, quick: bool, seed: int, progress: bool) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    hidden, train, fresh, iterations = ((8,), 100, 60, 3) if quick else (_HIDDEN, _TRAIN, _HELD_OUT, _ITERATIONS)
    X, labels = dequantised_mnist(seed)
    rows, held_out = slice(0, train), slice(train, train + fresh)
    est = DGNEstimator(
        latent_dim=2,
        hidden=hidden,
        max_iter=iterations,
        tol=1e-4,
        n_init=1,
        weight_prior=("gaussian", 1.0),
        random_state=seed,
    )
    bar = Progress("mnist-latent-plane", 3, 0, progress)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est.fit(X[rows])
        dgn = est.dgn_
        bar.show(1, f"{len(dgn.partition)} cells")
        posterior, new = dgn.posterior(X[rows]), dgn.posterior(X[held_out])
        means, means_new = to_array(posterior.mean), to_array(new.mean)
        bar.show(2, "posteriors")
        shown = _spread(X[held_out], means_new, new)
        figures = [
            save(_plane(dgn, means, labels[rows]), out / "plane.png"),
            save(_posteriors(dgn, X[held_out][shown], labels[held_out][shown]), out / "posteriors.png"),
            save(_images(dgn), out / "images.png"),
        ]
        bar.show(3, "figures")
    finally:
        bar.close()
    pca = PCA(2).fit(X[rows])
    masses = to_array(dgn.partition.prior_mass)
    probs = new.cell_probs().coalesce()
    return {
        "nll": -float(posterior.log_evidence.mean()),
        "held_out_nll": -float(new.log_evidence.mean()),
        "left_out_at_most": float(torch.cat((posterior.left_out, new.left_out)).max()),
        "noise_deviation": float(dgn.noise.detach()) ** 0.5,
        "cells": len(masses),
        "cells_with_a_thousandth_of_the_prior": int((masses > 1e-3).sum()),
        "cells_in_a_posterior": float((probs.values() > 1e-3).sum() / fresh),
        "accuracy_of_neighbours": _accuracy(means, labels[rows], means_new, labels[held_out]),
        "accuracy_of_neighbours_pca": _accuracy(
            pca.transform(X[rows]), labels[rows], pca.transform(X[held_out]), labels[held_out]
        ),
        "em_largest_rise": float(max(0.0, np.diff(est.nll_curve_).max(initial=0.0))),
        "settings": {
            "rows": train,
            "held_out_rows": fresh,
            "generator": [2, *hidden, X.shape[1]],
            "em_iterations": iterations,
            "weight_prior": ["gaussian", 1.0],
            "neighbours": _NEIGHBOURS,
            "seeds": [seed],
        },
        "figures": figures,
    }


def _accuracy(points: Array, labels: Any, new: Array, truth: Any) -> float:
    """How often the nearest neighbours in the plane have the class of a row held out."""
    return float(KNeighborsClassifier(_NEIGHBOURS).fit(points, labels).score(new, truth))


def _spread(X: Array, means: Array, posterior: Any) -> Any:
    """Rows held out to draw: from the most certain to the least certain one, by posterior entropy."""
    order = np.argsort(to_array(posterior.entropy()), kind="stable")
    return order[np.linspace(0.02 * len(X), 0.98 * len(X) - 1, _PANELS).round().astype(int)]


@styled
def _plane(dgn: DGN, means: Array, labels: Any) -> Figure:
    """Cells in pale tints, and each row as its digit at its posterior mean."""
    part = dgn.partition
    figure = new_figure(6.4, 6.4)
    ax = figure.add_subplot()
    plot_cells(part, ax, span=_view(to_array(dgn.prior), means))
    (cells,) = ax.collections
    rgba = np.asarray(cells.get_facecolor()).copy()
    rgba[:, :3] = 0.55 + 0.45 * rgba[:, :3]  # paler, so that the digits stand out
    cells.set(linewidths=0.15, edgecolors="#999999", facecolors=rgba)
    draw_prior(ax, to_array(dgn.prior))
    draw_classes(ax, means, labels)
    ax.set(xlabel="latent $z_1$", ylabel="latent $z_2$")
    ax.set_title(f"{len(part)} cells; each training row as its digit at E[z | x]; prior: 1, 2, 3 standard deviations")
    return figure


def _view(prior: Array, means: Array) -> Window:
    """A square window around the rows and 2.5 deviations of the prior."""
    reach = 2.5 * np.sqrt(prior.diagonal())
    low, high = np.minimum(means.min(0), -reach), np.maximum(means.max(0), reach)
    middle, half = 0.5 * (low + high), 0.54 * float((high - low).max())
    return (middle[0] - half, middle[0] + half), (middle[1] - half, middle[1] + half)


@styled
def _posteriors(dgn: DGN, rows: Array, labels: Any) -> Figure:
    """Where the exact posteriors of rows are, the heaviest patch of each from near, and what g makes of their means."""
    figure = new_figure(7.6, 4.9)
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.0, 2.0))
    left = panels[0].add_subplot()
    grid = panels[1].subplots(3, 4, width_ratios=(2.0, 1.0, 2.0, 1.0)).reshape(len(rows), 2)
    posterior = dgn.posterior(rows)
    draws, mean = to_array(posterior.sample((_DRAWS,), seed=0)), to_array(posterior.mean)
    with torch.no_grad():
        decoded = to_array(dgn.trace(posterior.mean))
    for i, (near, images) in enumerate(grid):
        letter, colour = chr(97 + i), _COLOURS[i]
        one = dgn.posterior(rows[i : i + 1])
        levels = _levels(one, draws[:, i])
        patches = _patches(one, draws[:, i], levels[0])
        for low, high, share in patches:
            told = letter if len(patches) == 1 else f"{letter}, {100 * share:.0f}%"
            left.plot(*(0.5 * (low + high)), "o", color=colour, ms=3.5)
            left.annotate(told, high, xytext=(3, 2), textcoords="offset points", color=colour, fontsize=8.0)
        low, high, share = patches[0]
        _contours(near, one, low, high, levels, colour)
        near.plot(*mean[i], "o", color=colour, mec=BLACK, mew=0.5, ms=4.0)
        room = 0.1 * (high - low)
        near.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
        rest = f", {100 * share:.0f}% here" if len(patches) > 1 else ""
        near.set_title(f"{letter}: a {labels[i]}{rest}", fontsize=8.0, color=colour)
        near.tick_params(labelsize=6.0, length=2.0)
        for axis in (near.xaxis, near.yaxis):
            axis.set_major_locator(MaxNLocator(3))
        draw_images(images, np.stack((rows[i], decoded[i])).reshape(1, -1), (2 * _SHAPE[0], _SHAPE[1]))
    left.margins(0.16)
    left.set(xlabel="latent $z_1$", ylabel="latent $z_2$", title="patches of the posteriors")
    panels[1].supxlabel("p(z | x) around its heaviest patch: regions of 50, 90 and 99%; dots: E[z | x]\n"
                        "beside each the row, and g(E[z | x]) below it", fontsize=8.0)  # fmt: skip
    return figure


def _levels(posterior: Any, draws: Array) -> Array:
    """The log-densities around the smallest regions that hold shares of one posterior, the largest region first."""
    at_draws = to_array(posterior.log_prob(torch.as_tensor(draws[:, None])))[:, 0]
    return np.asarray(np.quantile(at_draws, 1.0 - _SHARES[::-1]))


def _log_density(posterior: Any, low: Array, high: Array, side: int) -> tuple[Array, Array, Array]:
    """A grid in a box, and the log-density there, `(side, side)`."""
    x, y = (np.linspace(a, b, side) for a, b in zip(low, high, strict=True))
    grid = torch.as_tensor(np.stack(np.meshgrid(x, y), -1).reshape(-1, 1, 2))
    return x, y, to_array(posterior.log_prob(grid)).reshape(side, side)


def _patches(posterior: Any, draws: Array, level: float) -> list[tuple[Array, Array, float]]:
    """Boxes around the connected parts of the region above a level, with the share of draws in each, the most first."""
    low, high = draws.min(0), draws.max(0)
    x, y, log_p = _log_density(posterior, low, high, 600)
    step = (high - low) / 599
    found = ndimage.find_objects(ndimage.label(log_p >= level)[0])
    ends = [(np.array([x[a.start], y[b.start]]), np.array([x[a.stop - 1], y[b.stop - 1]])) for b, a in found]
    boxes = [(first - step, last + step) for first, last in ends]
    shares = [float(((draws >= first) & (draws <= last)).all(1).mean()) for first, last in boxes]
    return sorted(((*box, share) for box, share in zip(boxes, shares, strict=True)), key=lambda patch: -patch[2])


def _contours(ax: Axes, posterior: Any, low: Array, high: Array, levels: Array, colour: str) -> None:
    """The regions of one posterior in a box around one of its patches."""
    room = 0.1 * (high - low)
    x, y, log_p = _log_density(posterior, low - room, high + room, 150)
    ax.contour(x, y, log_p, levels=levels, colors=colour, linewidths=(0.5, 0.8, 1.2))


@styled
def _images(dgn: DGN) -> Figure:
    """g(z) at a grid of prior quantiles, in greys from 0 to 1."""
    figure = new_figure(5.2, 5.4)
    ax = plot_image_manifold(dgn, _SHAPE, ax=figure.add_subplot(), count=225, columns=15)
    for image in ax.images:
        image.set_clim(0.0, 1.0)
    ax.set_title("white is 0 and less, black is 1 and more", fontsize=8.0)
    return figure
