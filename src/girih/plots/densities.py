"""Exact densities: p(x) of one or two coordinates of x, and p(z | x) of a few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike

from girih._options import wholes
from girih.errors import ParameterError
from girih.inference import DGN, Model, Posterior, evidence
from girih.partition import Partition
from girih.partition.polygons import Window
from girih.plots.embedding import draw_limits
from girih.plots.numbers import (
    Array,
    check_axes,
    complete_rows,
    curve_latents,
    fit_figure,
    folded,
    generate,
    label_columns,
    limits_around,
    noise_covariance,
    plane_axes,
    prior_factor,
    spread_latents,
    to_array,
)
from girih.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    VERMILLION,
    colour_bar,
    legend_below,
    new_axes,
    new_figure,
    styled,
)

# A logarithmic scale shows this many nats below the peak.
_DEPTH = 16.0
_MAX_ROWS = 5_000
# Fewest and most pixels a side, for each latent dimension: a pixel costs more where there are more dimensions.
PIXELS = {1: (150, 420), 2: (120, 180), 3: (44, 52)}


@styled
def plot_marginal(
    dgn: DGN,
    ax: Axes | None = None,
    X: ArrayLike | None = None,
    coordinates: Sequence[int] | None = None,
    log: bool = False,
    feature_names: list[str] | None = None,
) -> Axes:
    """Draw the exact density of x: a heat map of two coordinates, or a curve for one.

    Other coordinates are integrated out exactly, so that any pair of a wide table can be drawn.

    Args:
        dgn: a model with S = 1, 2 or 3.
        ax: axes to draw into; those of a new figure by default.
        X: rows to draw over the density, or `None`. Missing entries are imputed.
        coordinates: one or two columns of x; the first two by default.
        log: colour by log p(x) in nats instead of p(x).
        feature_names: D names; those of X by default.

    Returns:
        The axes.

    Raises:
        ParameterError: coordinates are not one or two different columns.

    Example:
        >>> import girih
        >>> from girih.plots import plot_marginal
        >>> dgn = girih.DGN(girih.mlp([1, 8, 5], seed=0), noise=0.1)
        >>> plot_marginal(dgn, coordinates=[1, 3]).get_ylabel()
        '$x_{3}$'
    """
    chosen = _check_coordinates(dgn, coordinates)
    names = label_columns(X, feature_names, dgn.output_dim)
    names = [names[i] for i in chosen]
    rows = None if X is None else complete_rows(dgn, X, _MAX_ROWS)[0][:, chosen]
    part = dgn.partition
    line = dgn.latent_dim == 1
    z, limits = curve_latents(dgn, part) if line else (spread_latents(dgn), np.zeros((0, dgn.latent_dim)))
    curve = generate(dgn, z)[:, chosen]
    model = _keep(dgn.model(part), chosen)
    deviation = np.sqrt(noise_covariance(dgn, np.eye(dgn.output_dim)[chosen]).diagonal())
    own = ax is None
    if len(chosen) == 1:
        ax = new_axes(ax)
        both = curve if rows is None else np.concatenate((curve, rows))
        low, high = float(both.min() - 3.0 * deviation[0]), float(both.max() + 3.0 * deviation[0])
        _draw_line(ax, model, generate(dgn, limits)[:, chosen[0]], low, high, float(deviation[0]), log)
        if rows is not None:
            _draw_rug(ax, rows[:, 0])
        ax.set(xlabel=names[0], ylabel="log p(x) (nats)" if log else "density p(x)")
    else:
        scaled = np.abs(z / z[-1] if line else np.linalg.norm(z @ np.linalg.inv(prior_factor(dgn)).T, axis=1) / 3.1)
        central = curve[scaled <= 0.75]
        corners = limits_around(rows, central) + np.stack((-2.0 * deviation, 2.0 * deviation))
        ax = plane_axes(ax, corners)
        label = "marginal density" if dgn.output_dim > 2 else "density p(x)"
        draw_density(ax, model, deviation, log, label, PIXELS[dgn.latent_dim])
        if rows is not None:
            ax.scatter(
                rows[:, 0],
                rows[:, 1],
                s=5,
                facecolor="none",
                edgecolor=VERMILLION,
                lw=0.5,
                rasterized=True,
                label="rows",
            )
        ax.set(xlabel=names[0], ylabel=folded(names[1]))
    legend_below(ax, own)
    if own and len(chosen) == 2:
        fit_figure(ax)
    return ax


def _check_coordinates(dgn: DGN, coordinates: Sequence[int] | None) -> list[int]:
    if coordinates is None:
        return list(range(min(2, dgn.output_dim)))
    chosen = list(wholes(coordinates, "coordinates", None))
    inside = all(0 <= i < dgn.output_dim for i in chosen)
    if len(chosen) not in (1, 2) or len(set(chosen)) != len(chosen) or not inside:
        raise ParameterError(
            f"coordinates must be one or two different columns of 0 to {dgn.output_dim - 1}; got {list(coordinates)}"
        )
    return chosen


def _keep(model: Model, chosen: list[int]) -> Model:
    """The model of some coordinates of x: the others' rows of the last map and of the noise are dropped."""
    noise = model.noise.marginal(chosen)
    return replace(model, weight=model.weight[chosen], bias=model.bias[chosen], noise=noise)


def _density(model: Model, x: Array) -> Array:
    with torch.no_grad():
        return to_array(evidence(model, torch.as_tensor(x, dtype=torch.float64, device=model.bias.device)).log_prob)


def draw_density(
    ax: Axes,
    model: Model,
    deviation: Array,
    log: bool = False,
    label: str = "density p(x)",
    pixels: tuple[int, int] = (150, 420),
) -> None:
    """The exact density of a model with D = 2 over the window of the axes, with its colour bar."""
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    # pixels finer than the noise, where that is affordable
    counts = np.clip(np.ceil(2.0 * (high - low) / deviation), *pixels).astype(int)
    edges = [np.linspace(low[i], high[i], counts[i] + 1) for i in range(2)]
    centres = [0.5 * (edge[:-1] + edge[1:]) for edge in edges]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*centres)], 1)
    log_p = _density(model, grid).reshape(counts[1], counts[0])
    top = float(log_p.max())
    values, limits = (log_p, (top - _DEPTH, top)) if log else (np.exp(log_p), (0.0, float(np.exp(top))))
    mesh = ax.imshow(
        values,
        extent=(low[0], high[0], low[1], high[1]),
        origin="lower",
        cmap="Blues",
        vmin=limits[0],
        vmax=limits[1],
        aspect=ax.get_aspect(),
        interpolation="bilinear",
    )
    colour_bar(ax, mesh, f"log {label} (nats)" if log else label, extend="min" if log else "neither")


def _draw_line(ax: Axes, model: Model, bends: Array, low: float, high: float, deviation: float, log: bool) -> None:
    """A curve on an even grid, refined where a cell limit makes a corner of the density."""
    near = (bends[:, None] + deviation * np.linspace(-4.0, 4.0, 81)).ravel()
    near = near[(near >= low) & (near <= high)]
    steps = 800 if model.latent_dim == 1 else int(np.clip(np.ceil(4.0 * (high - low) / deviation), 200, 800))
    x = np.unique(np.concatenate((np.linspace(low, high, steps), near)))
    log_p = _density(model, x[:, None])
    ax.plot(x, log_p if log else np.exp(log_p), color=BLUE, label="p(x), exact")
    ax.set_xlim(low, high)
    if not log:
        ax.set_ylim(bottom=0.0)


def _draw_rug(ax: Axes, rows: Array) -> None:
    marks: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "rasterized": len(rows) > 500}
    ax.plot(rows, np.full(len(rows), 0.02), "|", color=GREY, ms=5, mew=0.5, label="rows", **marks)


# A panel shows the cells, or the window, that hold this much of the posterior, down to this many nats below a peak.
_SHARE = 0.999
_NEAR_PEAK = 9.0
_MAX_PANELS = 24
_DRAWS = 4000
_STEPS = 220
# Regions of highest density that hold these shares, the smallest darkest.
SHARES = np.array([0.5, 0.9, 0.99])
SHADES = ("#D6E6F2", "#8DB9DA", "#0072B2")


@styled
def plot_posteriors(
    dgn: DGN,
    X_rows: ArrayLike,
    columns: int = 2,
    titles: Sequence[str] | None = None,
    figure: Figure | None = None,
    coordinates: Sequence[int] = (0, 1),
) -> Figure:
    """Draw p(z | x) of each row in a panel of its own, with cell limits, mean and mode (EM-DGN, Fig. 3 right).

    Each panel has the range of z that holds 99.9% of its posterior. For S = 1 the grid is fine enough for every cell
    in it, so posteriors of any width are resolved; for S = 2 the regions of highest density are shaded, and for S = 3
    exact draws of the posterior are shown in two of the coordinates. Entries that are NaN are marginalised.

    Args:
        dgn: a model with S = 1, 2 or 3.
        X_rows: up to 24 rows, `(n, D)`.
        columns: how many panels in a line.
        titles: one for each row; "row 0", "row 1", ... by default.
        figure: a figure, or subfigure, to draw into; a new one by default.
        coordinates: the two coordinates of z to draw, where S is 2 or 3.

    Returns:
        The figure.

    Raises:
        ParameterError: too many rows, not one title for each, or coordinates that are not two of z.
        ShapeError, NonFiniteError, EmptyDataError: the rows do not fit the model.

    Example:
        >>> import girih
        >>> from girih.plots import plot_posteriors
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.01)
        >>> len(plot_posteriors(dgn, dgn().sample((3,), seed=0)).axes)
        3
    """
    chosen = check_axes(dgn, coordinates) if dgn.latent_dim > 1 else [0]
    rows = dgn.rows(X_rows).detach()
    if len(rows) > _MAX_PANELS:
        raise ParameterError(f"{len(rows)} rows are too many panels; pass at most {_MAX_PANELS}, e.g. X[:6]")
    if columns < 1:
        raise ParameterError(f"columns must be 1 or more, got {columns}")
    if titles is None:
        titles = [f"row {i}" for i in range(len(rows))]
    elif len(titles) != len(rows):
        raise ParameterError(f"titles holds {len(titles)} texts for {len(rows)} rows; pass one for each")
    columns = min(columns, len(rows))
    lines = math.ceil(len(rows) / columns)
    line = dgn.latent_dim == 1
    if figure is None:
        figure = new_figure(COLUMN * max(1.0, columns / 2), 0.3 + (1.35 if line else 1.75) * lines)
    part = dgn.partition
    limits = to_array(part.breakpoints) if line else np.zeros(0)
    first: Axes | None = None
    for i, title in enumerate(titles):
        ax = figure.add_subplot(lines, columns, i + 1)
        posterior = dgn.posterior(rows[i : i + 1])
        if line:
            _draw_posterior(ax, _grid(posterior), posterior, limits)
            spread = float(posterior.variance[0, 0]) ** 0.5
            summary, across, up = _with_error(float(posterior.mean[0, 0]), spread), "latent z", "p(z | x)"
        else:
            draw_posterior_plane(ax, posterior, part, chosen)
            summary = f"sd {spread_text(posterior)}"
            across, up = (f"latent $z_{j + 1}$" for j in chosen)
        ax.set_title(f"{title}: {summary}", fontsize=7.5)
        ax.set_xlabel(across if i >= len(rows) - columns else "")
        ax.set_ylabel(up if i % columns == 0 else "")
        first = first or ax
    if first is not None:
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, columnspacing=0.9, handlelength=1.5)
    return figure


def _grid(posterior: Posterior) -> Array:
    """Latents that resolve the posterior of one row on every cell that matters to it."""
    low, high = (end[0] for end in posterior.spans(_NEAR_PEAK))
    weight = posterior.cell_probs().to_dense()[0]
    order = weight.argsort(descending=True)
    keep = order[weight[order].cumsum(0) - weight[order] < _SHARE]
    steps = torch.linspace(0.0, 1.0, 161, dtype=torch.float64)
    z = low[keep, None] + (high - low)[keep, None] * steps
    inside = np.unique(to_array(z))
    margin = 0.04 * (inside[-1] - inside[0])
    return np.unique(np.concatenate((np.linspace(inside[0] - margin, inside[-1] + margin, 161), inside)))


def _draw_posterior(ax: Axes, z: Array, posterior: Posterior, limits: Array) -> None:
    density = np.exp(to_array(posterior.log_prob(torch.as_tensor(z)[:, None, None]))[:, 0])
    ax.fill_between(z, density, color=BLUE, alpha=0.15, lw=0)
    ax.plot(z, density, color=BLUE, lw=1.1, label="p(z | x)")
    mean, mode = float(posterior.mean[0, 0]), float(posterior.mode[0, 0])
    peak = math.exp(float(posterior.log_prob(posterior.mode)[0]))
    style: dict[str, Any] = {"color": GREY, "lw": 0.6, "zorder": 0.5}
    for limit in limits[(limits > z[0]) & (limits < z[-1])]:
        ax.axvline(limit, **style)
    ax.plot([], [], label="cell limits", **style)
    ax.axvline(mean, color=GREEN, ls=(0, (4, 2)), lw=1.1, label="mean")
    ax.plot([mode], [peak], "v", color=VERMILLION, mec=BLACK, mew=0.4, ms=4.5, label="mode", clip_on=False)
    ax.set(xlim=(z[0], z[-1]), ylim=(0.0, 1.12 * peak))
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_locator(MaxNLocator(3))
    plain = ScalarFormatter(useOffset=False)
    plain.set_powerlimits((-4, 5))
    ax.xaxis.set_major_formatter(plain)


def _with_error(mean: float, spread: float) -> str:
    """Mean and standard deviation with as many digits as the latter warrants."""
    digits = 2 if spread <= 0 else max(0, 1 - math.floor(math.log10(spread)))
    if digits > 6:
        return f"{mean:.4f} ± {spread:.0e}".replace("-", "\N{MINUS SIGN}")
    return f"{mean:.{digits}f} ± {spread:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def draw_posterior_plane(ax: Axes, posterior: Posterior, part: Partition, coordinates: Sequence[int]) -> None:
    """The posterior of one row, with cell limits where S = 2, its mean and its mode.

    For S = 2 shades are regions of highest density, with levels from exact draws.
    """
    chosen = list(coordinates)
    draws = to_array(posterior.sample((_DRAWS,), seed=0))[:, 0]
    view = _view(draws[:, chosen])
    dots: dict[str, Any] = {"lw": 0, "zorder": 1.2, "rasterized": True}
    if part.latent_dim == 2:
        turned = chosen == [1, 0]
        frame = (view[1], view[0]) if turned else view
        (x, y), log_p = posterior_grid(posterior, frame)
        levels = np.quantile(to_array(posterior.log_prob(torch.as_tensor(draws[:, None])))[:, 0], 1.0 - SHARES[::-1])
        shades = [*levels.tolist(), max(float(log_p.max()), float(levels[-1])) + 1.0]
        across, up, height = (y, x, log_p.T) if turned else (x, y, log_p)
        ax.contourf(across, up, height, levels=shades, colors=SHADES)
        draw_limits(ax, part, frame, turned, GREY)
        for shade, share in zip(SHADES[::-1], SHARES, strict=True):
            ax.fill([], [], color=shade, lw=0, label=f"{share:.0%}" + (" of p(z | x)" if share == SHARES[-1] else ""))
        ax.scatter(draws[:200, chosen[0]], draws[:200, chosen[1]], s=0.8, color=BLACK, label="exact draws", **dots)
    else:
        ax.scatter(draws[:, chosen[0]], draws[:, chosen[1]], s=1.5, color=BLUE, alpha=0.35, **dots)
        ax.scatter([], [], s=6, lw=0, color=BLUE, label="exact draws")
    mean, mode = to_array(posterior.mean)[0, chosen], to_array(posterior.mode)[0, chosen]
    style: dict[str, Any] = {"ls": "none", "mec": BLACK, "mew": 0.5, "clip_on": False}
    ax.plot(*mean, "o", color=GREEN, ms=4.5, label="mean", **style)
    ax.plot(*mode, "v", color=VERMILLION, ms=4.5, label="mode", **style)
    ax.set(xlim=view[0], ylim=view[1])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]


def posterior_grid(posterior: Posterior, view: Window, steps: int = _STEPS) -> tuple[tuple[Array, Array], Array]:
    """The coordinates of the pixels of a window, and log p(z | x) at each, `(steps, steps)`, for S = 2 and one row."""
    axes = [low + (np.arange(steps) + 0.5) * (high - low) / steps for low, high in view]
    z = np.stack(np.meshgrid(*axes), -1).reshape(-1, 1, 2)
    log_p = to_array(posterior.log_prob(torch.as_tensor(z)))
    return (axes[0], axes[1]), log_p.reshape(steps, steps)


def spread_text(posterior: Posterior) -> str:
    """The posterior deviation of each coordinate."""
    return ", ".join(f"{value:.2g}" for value in to_array(posterior.variance)[0] ** 0.5)


def _view(draws: Array) -> Window:
    """A window around nearly all draws; both axes have the same scale unless the posterior is very thin."""
    tail = 0.5 * (1.0 - _SHARE)
    low, high = np.quantile(draws, (tail, 1.0 - tail), axis=0)
    size = np.maximum(high - low, 1e-12 * (1.0 + np.abs(high)))
    size = np.maximum(size, size.max() / 20.0 if math.isfinite(size.max()) else size)
    middle = 0.5 * (low + high)
    low, high = middle - 0.62 * size, middle + 0.62 * size
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
