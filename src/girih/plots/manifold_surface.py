"""The image of a latent space with S = 2 or 3 over the data: a grid of latents, deformed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from scipy.special import ndtri

from girih.errors import LatentDimensionError
from girih.inference import DGN
from girih.plots.data import Array, folded, generate, noise_covariance, prior_factor, spread_latents
from girih.plots.density import draw_density
from girih.plots.plane import Plane, fit_figure, limits_around, plane_axes
from girih.plots.style import BLACK, GREEN, GREY, VERMILLION, legend_below

_COLOURS = (VERMILLION, BLACK, GREEN)
# Lines of the grid for each coordinate of z, and points along each.
_LINES = {2: 9, 3: 3}
_STEPS = 240
# Fewest and most pixels of the density below, for each S.
_PIXELS = {2: (80, 120), 3: (36, 44)}
_TAIL = 0.01


def draw_surface(
    dgn: DGN, plane: Plane | None, rows: Array | None, incomplete: NDArray[np.bool_] | None, ax: Axes | None
) -> Axes:
    """Draw the image of a grid of latents, S = 2 or 3, in a plane; see `girih.plots.plot_manifold`."""
    if plane is None:
        raise LatentDimensionError(
            f"plot_manifold needs D of 2 or more where S = {dgn.latent_dim}; draw the density of x with "
            "girih.plots.plot_marginal instead"
        )
    own = ax is None
    factor = prior_factor(dgn)
    flat = None if rows is None else plane.project(rows)
    z = spread_latents(dgn)
    near = np.linalg.norm(np.linalg.solve(factor, z.T), axis=0) < 2.5
    ax = plane_axes(ax, limits_around(flat, plane.project(generate(dgn, z[near]))))
    if dgn.output_dim == 2:
        deviation = np.sqrt(noise_covariance(dgn, np.eye(2)).diagonal())
        draw_density(ax, dgn.model(), deviation, pixels=_PIXELS[dgn.latent_dim])
    if flat is not None and incomplete is not None:
        draw_rows(ax, flat, incomplete, zorder=2.0)
    for axis, colour in zip(range(dgn.latent_dim), _COLOURS, strict=False):
        lines = grid_lines(factor, axis)
        points = plane.project(generate(dgn, lines.reshape(-1, dgn.latent_dim))).reshape(*lines.shape[:2], 2)
        style: dict[str, Any] = {"color": colour, "lw": 0.5, "alpha": 0.7, "zorder": 1.8}
        ax.add_collection(LineCollection(list(points), **style), autolim=False)
        ax.plot([], [], color=colour, lw=1.2, label=f"g(z) along $z_{axis + 1}$")
    ax.set(xlabel=plane.labels[0], ylabel=folded(plane.labels[1]))
    legend_below(ax, own)
    if own:
        fit_figure(ax)
    return ax


def grid_lines(factor: Array, axis: int) -> Array:
    """Lines of latents along one coordinate, the others at even prior quantiles, `(lines, points, S)`."""
    S, count = len(factor), _LINES[len(factor)]
    reach = -float(ndtri(_TAIL))
    along = np.linspace(-reach, reach, _STEPS)
    fixed = ndtri((np.arange(count) + 0.5) / count)
    others = np.stack(np.meshgrid(*[fixed] * (S - 1)), -1).reshape(-1, S - 1)
    lines = np.empty((len(others), _STEPS, S))
    lines[:, :, axis] = along
    lines[:, :, [i for i in range(S) if i != axis]] = others[:, None]
    return np.asarray(lines @ factor.T)


def draw_rows(ax: Axes, rows: Array, incomplete: NDArray[np.bool_], label: str = "rows", zorder: float = 1.5) -> None:
    """Grey dots, and crosses for rows with imputed entries."""
    size = float(np.clip(2000.0 / max(len(rows), 1), 2.0, 9.0))
    options: dict[str, Any] = {"color": GREY, "rasterized": len(rows) > 500, "zorder": zorder}
    ax.scatter(rows[~incomplete, 0], rows[~incomplete, 1], s=size, lw=0, alpha=0.75, label=label, **options)
    if incomplete.any():
        ax.scatter(
            rows[incomplete, 0],
            rows[incomplete, 1],
            s=2.2 * size,
            marker="x",
            lw=0.7,
            label="with imputed entries",
            **options,
        )
