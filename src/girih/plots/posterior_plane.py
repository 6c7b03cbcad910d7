"""The exact posterior of a row in two coordinates of z: a density for S = 2, exact draws for S = 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from girih.inference import Posterior
from girih.partition import Partition
from girih.plots.data import Array, to_array
from girih.plots.latents import draw_limits
from girih.plots.polygons import Window
from girih.plots.style import BLACK, BLUE, GREEN, GREY, VERMILLION

_DRAWS = 4000
_SHARE = 0.999
_STEPS = 220
# Regions of highest density that hold these shares, the smallest darkest.
SHARES = np.array([0.5, 0.9, 0.99])
SHADES = ("#D6E6F2", "#8DB9DA", "#0072B2")


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
