"""RAD, Figs. 9 and 10: what each layer of a trained flow does to the data, on their way to the Gaussian."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

from girih.flows import Flow
from girih.plots import new_figure, styled
from girih_papers import rad_toys
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.rad_toys import HIDDEN, Settings, described, rows_of, trained_pairs

SETTINGS = replace(rad_toys.SETTINGS, problems=("moons",), draws=3000)
QUICK = replace(rad_toys.QUICK, problems=("moons",))


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    flows, _ = trained_pairs(settings, out, seed, "rad-inference", quick, progress)
    table: dict[str, Any] = {}
    figures = []
    for problem in settings.problems:
        x = rows_of(problem, settings.rows, seed, "test")[: settings.draws]
        paths = {model: states(flows[problem, model], x) for model in HIDDEN}
        table[problem] = {model: {"met_from_afar": met_from_afar(x, path[-1])} for model, path in paths.items()}
        figures.append(save(_draw(paths, x), out / f"{problem}.png"))
    return {"problems": table, "settings": described(settings, seed), "figures": figures}


def states(flow: Flow, x: Array) -> list[Array]:
    """The standardised rows, and what each coupling makes of them, `(N, 2)` each."""
    with torch.no_grad():
        return [to_array(step.z) for step in flow().path(x)]


def met_from_afar(x: Array, z: Array, far: float = 0.5) -> float:
    """The share of points whose nearest neighbour in z was further than `far` standard deviations away in x.

    Example:
        >>> import numpy as np
        >>> from girih_papers.rad_inference import met_from_afar
        >>> x = np.random.default_rng(0).uniform(-1.0, 1.0, (1000, 2))
        >>> met_from_afar(x, x), met_from_afar(x, np.abs(x)) > 0.3
        (0.0, True)
    """
    neighbour = cKDTree(z).query(z, k=2)[1][:, 1]
    scaled = x / x.std(0)
    return float((np.linalg.norm(scaled - scaled[neighbour], axis=1) > far).mean())


def position_colours(x: Array) -> Array:
    """A colour for each row by where it lies: hue by the angle around the middle, paler towards it."""
    centred = (x - x.mean(0)) / x.std(0)
    hue = np.arctan2(centred[:, 1], centred[:, 0]) / (2.0 * np.pi) % 1.0
    radius = np.linalg.norm(centred, axis=1)
    strength = 0.45 + 0.55 * np.minimum(radius / np.quantile(radius, 0.9), 1.0)
    return matplotlib.colors.hsv_to_rgb(np.stack((hue, strength, np.full(len(x), 0.85)), 1))


def scatter(ax: Axes, points: Array, colours: Any) -> None:
    """A panel that shows all but the outermost points, without ticks."""
    ax.scatter(points[:, 0], points[:, 1], s=1.0, lw=0, c=colours, rasterized=True)
    low, high = np.quantile(points, 0.002, 0), np.quantile(points, 0.998, 0)
    margin = 0.08 * (high - low) + 1e-9
    ax.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)


@styled
def _draw(paths: dict[str, list[Array]], x: Array) -> Figure:
    columns = len(next(iter(paths.values())))
    figure = new_figure(7.4, 2.5)
    axes = figure.subplots(2, columns)
    colours = position_colours(x)
    titles = ["x", *(f"after layer {number}" for number in range(1, columns - 1)), "z"]
    for line, (model, path) in zip(axes, paths.items(), strict=True):
        for ax, points in zip(line, path, strict=True):
            scatter(ax, points, colours)
        line[0].set_ylabel(model)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=7.5)
    return figure
