"""RAD, Figs. 8 and 18: what trained flows make of the data, which should be a standard Gaussian."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from girih.plots import GREY, new_figure, styled
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.mas_toys import sliced_distance
from girih_papers.rad_toys import (
    HIDDEN,
    QUICK,
    SETTINGS,
    Settings,
    data_of,
    described,
    rows_of,
    short,
    trained_pairs,
)

__all__ = ["QUICK", "SETTINGS", "run"]

_REACH = 3.6
_LEVELS = (0.5, 0.9, 0.99)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    flows, _ = trained_pairs(settings, out, seed, "rad-gaussianization", quick, progress)
    table: dict[str, Any] = {}
    latents: dict[tuple[str, str], Array] = {}
    for problem in settings.problems:
        x = rows_of(problem, settings.rows, seed, "test")[: settings.draws]
        rng = np.random.default_rng(seed)
        normal, other = rng.standard_normal((2, len(x), 2))
        table[problem] = {"distance_of_a_gaussian_sample": sliced_distance(other, normal)}
        for model in HIDDEN:
            with torch.no_grad():
                z = to_array(flows[problem, model]().encode(x).z)
            latents[problem, model] = z
            table[problem][model] = {"distance_to_gaussian": sliced_distance(z, normal), "empty": empty(z)}
    return {
        "problems": table,
        "settings": described(settings, seed),
        "figures": [save(_draw(latents, settings, seed), out / "latents.png")],
    }


def empty(z: Array, cells: int = 100) -> float:
    """The share of the standard Gaussian's mass in cells of equal mass that hold less than a tenth of their share.

    Cells are rings by sectors: the square of the radius is exponential and the angle uniform under the Gaussian.

    Example:
        >>> import numpy as np
        >>> from girih_papers.rad_gaussianization import empty
        >>> z = np.random.default_rng(0).standard_normal((10_000, 2))
        >>> empty(z), empty(z[z[:, 1] > 0])
        (0.0, 0.5)
    """
    side = round(cells**0.5)
    ring = np.floor(side * (1.0 - np.exp(-0.5 * (z**2).sum(1)))).clip(0, side - 1)
    sector = np.floor(side * (np.arctan2(z[:, 1], z[:, 0]) / (2.0 * np.pi) % 1.0)).clip(0, side - 1)
    counts = np.bincount((ring * side + sector).astype(int), minlength=side * side)
    return float((counts < 0.1 * len(z) / side**2).mean())


@styled
def _draw(latents: dict[tuple[str, str], Array], settings: Settings, seed: int) -> Figure:
    figure = new_figure(0.3 + 1.3 * len(settings.problems), 3.05)
    axes = figure.subplots(2, len(settings.problems), squeeze=False)
    for column, problem in zip(axes.T, settings.problems, strict=True):
        labels = data_of(problem, settings.rows, seed, "test").labels
        for ax, model in zip(column, reversed(HIDDEN), strict=True):
            z = latents[problem, model]
            colours = GREY if labels is None else matplotlib.colormaps["turbo"](labels[: len(z)] / max(labels.max(), 1))
            ax.scatter(z[:, 0], z[:, 1], s=1.0, lw=0, c=colours, rasterized=True)
            for level in _LEVELS:
                radius = (-2.0 * np.log(1.0 - level)) ** 0.5
                ax.add_patch(Circle((0.0, 0.0), radius, fill=False, lw=0.6, ls="--", color="black"))
            ax.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH), aspect="equal", xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
        column[0].set_title(short(problem), fontsize=7.5)
    for ax, model in zip(axes[:, 0], reversed(HIDDEN), strict=True):
        ax.set_ylabel(f"{model}: z")
    return figure
