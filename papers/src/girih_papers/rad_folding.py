"""RAD, Figs. 11, 12 and 14-17: how each fold of a trained flow lays the plane onto itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from girih.flows import Flow, FoldTransform
from girih.plots import BLUE, GREEN, LIGHT, VERMILLION, new_figure, styled
from girih_papers import rad_toys
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.rad_inference import position_colours, scatter, states
from girih_papers.rad_toys import Settings, described, rows_of, trained_pairs

SETTINGS = replace(rad_toys.SETTINGS, draws=3000)
QUICK = rad_toys.QUICK
_PIECES = (VERMILLION, GREEN, BLUE)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    flows, _ = trained_pairs(settings, out, seed, "rad-folding", quick, progress)
    table: dict[str, Any] = {}
    figures = []
    for problem in settings.problems:
        x = rows_of(problem, settings.rows, seed, "test")[: settings.draws]
        layers = folds(flows[problem, "RAD"], x)
        found = flows[problem, "RAD"]().components(x)
        mass = to_array(found.mass)
        table[problem] = {
            "share_in_folds": [float(layer["inside"].mean()) for layer in layers],
            "shares_of_pieces": [(np.bincount(layer["k"], minlength=3) / len(x)).tolist() for layer in layers],
            "components_used": len(mass),
            "components_for_nine_tenths": int(np.searchsorted(np.cumsum(mass), 0.9) + 1),
        }
        path = states(flows[problem, "Real NVP"], x)
        figures.append(save(_draw(layers, path, x), out / f"{problem}.png"))
    return {"problems": table, "settings": described(settings, seed), "figures": figures}


def folds(flow: Flow, x: Array) -> list[dict[str, NDArray[Any]]]:
    """For each fold: the points before and after, their pieces, and whether they are where pieces overlap."""
    distribution, out = flow(), []
    with torch.no_grad():
        for transform, step in zip(distribution.transforms, distribution.path(x), strict=True):
            if isinstance(transform, FoldTransform):
                folded = transform.fold(step.x)
                out.append(
                    {
                        "x": to_array(step.x),
                        "z": to_array(folded.z),
                        "k": folded.k[:, 0].numpy(),
                        "inside": (folded.log_gate < 0.0).numpy(),  # in a tail one piece is left, and the gate is 1
                    }
                )
    return out


@styled
def _draw(layers: list[dict[str, NDArray[Any]]], path: list[Array], x: Array) -> Figure:
    figure = new_figure(7.4, 3.8)
    axes = figure.subplots(3, len(layers))
    colours = position_colours(x)
    for number, (column, layer) in enumerate(zip(axes.T, layers, strict=True)):
        pieces = np.array([to_rgba(colour) for colour in _PIECES])[layer["k"]]
        scatter(column[0], layer["x"], pieces)
        scatter(column[1], layer["z"], np.where(layer["inside"][:, None], pieces, to_rgba(LIGHT)))
        scatter(column[2], path[number + 1], colours)
        column[0].set_title(f"layer {number + 1}", fontsize=7.5)
    for ax, label in zip(axes[:, 0], ("RAD: before", "RAD: after", "Real NVP: after"), strict=True):
        ax.set_ylabel(label)
    names = {f"piece {i + 1}": colour for i, colour in enumerate(_PIECES)} | {"a tail: one piece only": LIGHT}
    handles = [Line2D([], [], ls="", marker="o", ms=3.0, color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure
