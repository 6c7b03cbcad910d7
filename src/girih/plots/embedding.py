"""The embedding of the rows: where each lies in the latent space, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from girih.errors import ParameterError, ShapeError
from girih.inference import DGN, Posterior
from girih.partition import Partition
from girih.partition.polygons import Window, segments
from girih.plots.numbers import Array, check_axes, plain_text, prior_deviation, quantiles, thin, to_array
from girih.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    colour_bar,
    latent_colours,
    legend_below,
    new_axes,
    styled,
)

_MAX_ROWS = 4_000
_MAX_CLASSES = 20
_PRIOR: dict[str, Any] = {"color": BLACK, "ls": (0, (4, 2)), "lw": 1.0, "label": "prior"}
# The colours of Okabe and Ito that can be seen on white, then three of Tol's that differ from them in lightness.
COLOURS = (BLUE, VERMILLION, GREEN, BLACK, ORANGE, PURPLE, SKY, "#882255", "#999933", "#7A4B00")
_MARKERS = "osD^vP*Xh<"
# Ellipses are drawn for at most so many rows, and for fewer where together they would fill the window.
_MAX_ELLIPSES = 250
_FILL = 0.7


@styled
def plot_embedding(
    dgn: DGN, X: ArrayLike, labels: ArrayLike | None = None, ax: Axes | None = None, coordinates: Sequence[int] = (0, 1)
) -> Axes:
    """Draw E[z | x] of each row with its posterior deviation, against the prior.

    For S = 1 the rows are sorted; with labels, each class has a band of its own. The strip above compares the
    posterior means of all rows with the density of the prior.

    For S = 2 and 3 the axes are two coordinates of z, and rows are points coloured by their class, or else by
    log p(x). Ellipses are one posterior deviation wide, circles are 1, 2 and 3 deviations of the prior, and for
    S = 2 thin lines are the cell limits.

    Entries that are NaN are marginalised; more than 4,000 rows are thinned evenly.

    Args:
        dgn: a model with S = 1, 2 or 3.
        X: rows `(N, D)`.
        labels: a class for each row, `(N,)`, at most 20 different; those of X, where it is a `Dataset`, by default.
        ax: axes to draw into; those of a new figure by default.
        coordinates: the two coordinates of z to draw, where S is 2 or 3.

    Returns:
        The axes of the rows.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError: X or labels do not fit.
        ParameterError: more than 20 classes, or coordinates that are not two of z.

    Example:
        >>> import girih
        >>> from girih.datasets import load
        >>> from girih.plots import plot_embedding
        >>> dgn = girih.DGN(girih.mlp([1, 8, 4], seed=0), noise=0.5)
        >>> [tick.get_text() for tick in plot_embedding(dgn, load("iris")).get_yticklabels()]
        ['setosa', 'versicolor', 'virginica']
    """
    rows = dgn.rows(X).detach()
    classes = classes_of(getattr(X, "labels", None) if labels is None else labels, len(rows))
    index = thin(np.arange(len(rows)), _MAX_ROWS)
    posterior = dgn.posterior(rows[index])
    if dgn.latent_dim > 1:
        return draw_plane(dgn, posterior, None if classes is None else classes[index], ax, coordinates)
    mean, deviation = to_array(posterior.mean)[:, 0], to_array(posterior.variance)[:, 0] ** 0.5
    own, ax = ax is None, new_axes(ax, height=3.2)
    if classes is None:
        order = np.argsort(mean, kind="stable")
        height = np.empty(len(mean))
        height[order] = (np.arange(len(mean)) + 0.5) / len(mean)
        _draw_rows(ax, mean, deviation, height, BLUE)
        share = np.linspace(0.001, 0.999, 400)
        ax.plot(quantiles(dgn, share), share, **_PRIOR)
        ax.set(ylim=(0.0, 1.0), ylabel="rank of the row / N")
    else:
        _draw_classes(ax, mean, deviation, classes[index])
        ax.plot([], [], **_PRIOR)
    ax.set_xlabel("latent z")
    ax.set_xlim(*_range(dgn, mean))
    legend_below(ax, own)
    _draw_strip(ax, dgn, mean)
    return ax


def classes_of(labels: ArrayLike | None, count: int) -> NDArray[Any] | None:
    """Labels as an array, one class for each row; `None` where there is nothing to tell apart.

    Raises:
        ShapeError: not one for each row.
        ParameterError: more classes than can be drawn.
    """
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ShapeError(f"labels must hold one class for each of the {count} rows; got shape {array.shape}")
    array = array.astype(str) if array.dtype.kind == "O" else array
    different = len(np.unique(array))
    if different > _MAX_CLASSES:
        raise ParameterError(f"labels holds {different} different classes; at most {_MAX_CLASSES} can be drawn")
    return array if different > 1 else None


def _draw_rows(ax: Axes, mean: Array, deviation: Array, height: Array, colour: str, label: bool = True) -> None:
    bars = np.stack((np.stack((mean - deviation, height), 1), np.stack((mean + deviation, height), 1)), 1)
    raster = len(mean) > 300
    width = float(np.clip(120.0 / len(mean), 0.35, 1.2))
    spread = LineCollection(list(bars), color=GREY, lw=width, alpha=0.6, rasterized=raster, zorder=1)
    ax.add_collection(spread)
    size = float(np.clip(1500.0 / len(mean), 1.5, 9.0))
    ax.scatter(
        mean, height, s=size, color=colour, lw=0, rasterized=raster, zorder=2, label="E[z | x]" if label else None
    )
    if label:
        ax.plot([], [], color=GREY, lw=1.0, label="±1 deviation")


def _draw_classes(ax: Axes, mean: Array, deviation: Array, classes: NDArray[Any]) -> None:
    """A band for each class, rows sorted within it."""
    names = np.unique(classes)
    for band, name in enumerate(names):
        own = np.flatnonzero(classes == name)
        own = own[np.argsort(mean[own], kind="stable")]
        height = band + 0.1 + 0.8 * (np.arange(len(own)) + 0.5) / len(own)
        _draw_rows(ax, mean[own], deviation[own], height, (BLUE, VERMILLION)[band % 2], label=band == 0)
        if band:
            ax.axhline(band, color=LIGHT, lw=0.6, zorder=0)
    ax.set(ylim=(0, len(names)), ylabel="class, rows sorted within", yticks=np.arange(len(names)) + 0.5)
    ax.set_yticklabels([plain_text(name) for name in names])
    ax.tick_params(axis="y", length=0)


def _range(dgn: DGN, mean: Array) -> tuple[float, float]:
    deviation = prior_deviation(dgn)
    low, high = min(-3.0 * deviation, float(mean.min())), max(3.0 * deviation, float(mean.max()))
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def _draw_strip(ax: Axes, dgn: DGN, mean: Array) -> None:
    strip = ax.inset_axes((0.0, 1.04, 1.0, 0.2), sharex=ax)
    low, high = ax.get_xlim()
    bins = int(np.clip(len(mean) ** 0.5 * 1.5, 12, 60))
    strip.hist(mean, np.linspace(low, high, bins + 1).tolist(), density=True, color=LIGHT, edgecolor=GREY, lw=0.4)
    z, deviation = np.linspace(low, high, 300), prior_deviation(dgn)
    density = np.exp(-0.5 * (z / deviation) ** 2) / (deviation * np.sqrt(2.0 * np.pi))
    strip.plot(z, density, **_PRIOR)
    strip.set_ylabel("density\nof E[z | x]", fontsize=7)
    strip.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
    strip.tick_params(axis="x", labelbottom=False, length=0)


def draw_plane(
    dgn: DGN, posterior: Posterior, classes: NDArray[Any] | None, ax: Axes | None, coordinates: Sequence[int]
) -> Axes:
    """Draw the posteriors of rows in two coordinates of z; see `girih.plots.plot_embedding`."""
    chosen = check_axes(dgn, coordinates)
    mean = to_array(posterior.mean)[:, chosen]
    covariance = to_array(posterior.covariance)[:, chosen][:, :, chosen]
    prior = to_array(dgn.prior)[np.ix_(chosen, chosen)]
    view = view_of(prior, mean)
    own, ax = ax is None, new_axes(ax, height=3.6 if classes is not None else 3.4)
    if dgn.latent_dim == 2:
        draw_limits(ax, dgn.partition, view if chosen == [0, 1] else (view[1], view[0]), chosen == [1, 0])
    draw_prior(ax, prior)
    draw_ellipses(ax, mean, covariance, view)
    size = float(np.clip(3000.0 / len(mean), 3.0, 12.0))
    if classes is None:
        log_p = to_array(posterior.log_evidence)
        low, high = np.percentile(log_p, (2.0, 100.0))
        style: dict[str, Any] = {"cmap": latent_colours(), "vmin": low, "vmax": high if high > low else low + 1.0}
        drawn = ax.scatter(mean[:, 0], mean[:, 1], c=log_p, s=size, lw=0, zorder=2, label="E[z | x]", **style)
        drawn.set_rasterized(len(mean) > 500)
        colour_bar(ax, drawn, "log p(x) (nats)", extend="min" if log_p.min() < low else "neither")
    else:
        draw_classes(ax, mean, classes)
    frame_plane(ax, view, chosen)
    legend_below(ax, own)
    return ax


def frame_plane(ax: Axes, view: Window, chosen: Sequence[int]) -> None:
    """The limits, the ticks and the names of the axes of a plane of two latents, counted from 0."""
    ax.set(xlim=view[0], ylim=view[1], aspect="equal")
    ax.set(xlabel=f"latent $z_{{{chosen[0] + 1}}}$", ylabel=f"latent $z_{{{chosen[1] + 1}}}$")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def view_of(prior: Array, mean: Array) -> Window:
    """A square window around the rows and 2.5 deviations of the prior."""
    reach = 2.5 * np.sqrt(prior.diagonal())
    low, high = np.minimum(mean.min(0), -reach), np.maximum(mean.max(0), reach)
    middle, half = 0.5 * (low + high), 0.54 * float((high - low).max())
    return (middle[0] - half, middle[0] + half), (middle[1] - half, middle[1] + half)


def draw_limits(ax: Axes, part: Partition, view: Window, swap: bool = False, colour: str = LIGHT) -> None:
    """The cell limits of a partition with S = 2 as thin lines."""
    lines, _ = segments(part, view)
    (x0, x1), (y0, y1) = view
    low, high = lines.min(1), lines.max(1)
    near = (high[:, 0] >= x0) & (low[:, 0] <= x1) & (high[:, 1] >= y0) & (low[:, 1] <= y1)
    lines = lines[near][:, :, ::-1] if swap else lines[near]
    drawn = LineCollection(list(lines), color=colour, lw=0.5, zorder=0.5, rasterized=len(lines) > 5000)
    drawn.set_label("cell limits")
    ax.add_collection(drawn, autolim=False)


def draw_prior(ax: Axes, prior: Array) -> None:
    """Draw one, two and three deviations of the prior."""
    style: dict[str, Any] = {"color": BLACK, "ls": (0, (4, 2)), "lw": 0.8, "zorder": 1.5}
    for reach in (1.0, 2.0, 3.0):
        ax.plot(*ellipse(np.zeros(2), reach**2 * prior).T, **style, label="prior, 1 to 3 sd" if reach == 1 else None)


def draw_ellipses(ax: Axes, mean: Array, covariance: Array, view: Window) -> None:
    """One posterior deviation around the means, of a part of the rows where there are many or they are large."""
    area = np.pi * float(np.sqrt(np.clip(np.linalg.det(covariance), 0.0, None)).mean())
    room = _FILL * (view[0][1] - view[0][0]) * (view[1][1] - view[1][0])
    index = thin(np.arange(len(mean)), max(20, min(_MAX_ELLIPSES, int(room / max(area, 1e-300)))))
    values, vectors = np.linalg.eigh(covariance[index])
    size = 2.0 * np.sqrt(np.clip(values, 0.0, None))
    angle = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": GREY, "lw": 0.5, "alpha": 0.8, "zorder": 1.7}
    ax.add_collection(
        EllipseCollection(
            size[:, 1], size[:, 0], angle, units="xy", offsets=mean[index], offset_transform=ax.transData, **style
        ),
        autolim=False,
    )
    some = "" if len(index) == len(mean) else f" ({len(index)} rows)"
    ax.plot([], [], color=GREY, lw=0.8, label=f"±1 posterior sd{some}")


def draw_classes(ax: Axes, mean: Array, classes: NDArray[Any]) -> None:
    """Rows as the name of their class where that is one letter or digit, else as marks with a legend."""
    names = np.unique(classes)
    texts = [str(name) for name in names]
    glyphs = all(len(text) == 1 and text.isalnum() for text in texts)
    size = float(np.clip(12000.0 / len(mean), 8.0, 20.0))
    for i, (name, text) in enumerate(zip(names, texts, strict=True)):
        own = mean[classes == name]
        marker = rf"$\mathrm{{{text}}}$" if glyphs else _MARKERS[(i + i // len(COLOURS)) % len(_MARKERS)]
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": marker, "zorder": 2}
        label = None if glyphs else plain_text(text)
        ax.scatter(own[:, 0], own[:, 1], s=1.6 * size if glyphs else size, lw=0, label=label, **style)


def ellipse(centre: Array, covariance: Array) -> Array:
    """A closed line one deviation around a centre, `(97, 2)`."""
    values, vectors = np.linalg.eigh(covariance)
    angle = np.linspace(0.0, 2.0 * np.pi, 97)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    return np.asarray(centre + np.stack((np.cos(angle), np.sin(angle)), 1) @ root.T)
