"""The exact marginal density of one or two coordinates of x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from girih._options import wholes
from girih.errors import ParameterError
from girih.inference import DGN, Model, evidence
from girih.plots.numbers import (
    Array,
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
from girih.plots.style import BLUE, GREY, VERMILLION, colour_bar, legend_below, new_axes, styled

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
