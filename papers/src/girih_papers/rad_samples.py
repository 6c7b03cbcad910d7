"""RAD, Figs. 5 and 7: the six problems, and what trained flows draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial import cKDTree

from girih.plots import BLUE, GREY, VERMILLION, new_figure, styled
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.rad_toys import HIDDEN, QUICK, SETTINGS, Settings, described, rows_of, short, trained_pairs

__all__ = ["QUICK", "SETTINGS", "run"]

_COLOURS = {"data": GREY, "Real NVP": VERMILLION, "RAD": BLUE}


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    flows, results = trained_pairs(settings, out, seed, "rad-samples", quick, progress)
    drawn: dict[str, dict[str, Array]] = {}
    table: dict[str, Any] = {}
    for problem in settings.problems:
        rows = rows_of(problem, settings.rows, seed)
        drawn[problem] = {"data": rows[: settings.draws]}
        table[problem] = {}
        for model in reversed(HIDDEN):
            result = results[problem, model]
            points = to_array(flows[problem, model]().sample((settings.draws,), seed=seed))
            drawn[problem][model] = points
            table[problem][model] = {
                "astray": astray(points, rows, rows_of(problem, settings.rows, seed, "test")),
                "log_likelihood": float(result["log_likelihood"]),
                "parameters": int(result["parameters"]),
                "seconds": float(result["seconds"]),
            }
    return {
        "problems": table,
        "settings": described(settings, seed),
        "figures": [save(_draw(drawn), out / "samples.png")],
    }


def astray(points: Array, rows: Array, others: Array, share: float = 0.001) -> float:
    """The share of points that lie further from the nearest of the rows than all but `share` of other rows do.

    Example:
        >>> import numpy as np
        >>> from girih_papers.rad_samples import astray
        >>> x = np.random.default_rng(0).standard_normal((3, 1000, 2))
        >>> astray(x[0] + 9.0, x[1], x[2]), bool(astray(x[0], x[1], x[2]) < 0.01)
        (1.0, True)
    """
    tree = cKDTree(rows)
    limit = np.quantile(tree.query(others)[0], 1.0 - share)
    return float((tree.query(points)[0] > limit).mean())


@styled
def _draw(drawn: dict[str, dict[str, Array]]) -> Figure:
    figure = new_figure(0.3 + 1.3 * len(drawn), 4.2)
    axes = figure.subplots(3, len(drawn), squeeze=False)
    for column, (problem, kinds) in zip(axes.T, drawn.items(), strict=True):
        low, high = kinds["data"].min(0), kinds["data"].max(0)
        centre, reach = 0.5 * (low + high), 0.56 * (high - low).max()
        for ax, (kind, points) in zip(column, kinds.items(), strict=True):
            ax.scatter(points[:, 0], points[:, 1], s=1.0, lw=0, color=_COLOURS[kind], rasterized=True)
            ax.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach))
            ax.set(aspect="equal", xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
        column[0].set_title(short(problem), fontsize=7.5)
    for ax, kind in zip(axes[:, 0], next(iter(drawn.values())), strict=True):
        ax.set_ylabel(kind)
    return figure
