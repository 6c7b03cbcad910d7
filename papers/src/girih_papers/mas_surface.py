"""MAS, Fig. 1: the partition of a plane of latents, and the piecewise flat surface that it is mapped to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.collections import PolyCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]

from girih.networks import mlp
from girih.partition import Partition
from girih.plots import BLACK, LIGHT, cell_polygons, image_points, new_figure, styled
from girih.training import Progress
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save

_ACTIVATIONS = {"relu": "ReLU", "leaky_relu": "leaky ReLU", "abs": "absolute value"}
_REACH = 1.5  # of the latents that are drawn, in prior deviations
_SIZES, _QUICK_SIZES = (2, 8, 8, 3), (2, 5, 3)


def run(out: Path, quick: bool, seed: int, progress: bool) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    sizes = _QUICK_SIZES if quick else _SIZES
    parts, checks = {}, []
    bar = Progress("mas-surface", len(_ACTIVATIONS), 0, progress)
    try:
        for i, name in enumerate(_ACTIVATIONS):
            parts[name] = Partition(mlp(sizes, activation=name, seed=seed))
            checks.append({"activation": name} | _check(parts[name]))
            bar.show(i + 1, f"{_ACTIVATIONS[name]}: {len(parts[name])} cells")
    finally:
        bar.close()
    return {
        "prior_mass_error": max(abs(c["prior_mass"] - 1.0) for c in checks),
        "largest_gap": max(c["largest_gap"] for c in checks),
        "largest_map_error": max(c["largest_map_error"] for c in checks),
        "settings": {"generator": list(sizes), "prior_variance": 1.0, "seeds": [seed]},
        "networks": checks,
        "figures": [save(_draw(parts), out / "surfaces.png")],
    }


def _check(part: Partition) -> dict[str, Any]:
    """The counts of cells, and how well the pieces of the surface fit the network and each other."""
    polygons = cell_polygons(part)
    image = image_points(part, polygons)
    with torch.no_grad():
        exact = to_array(part.trace(torch.as_tensor(polygons.points)))
        rank = to_array(torch.linalg.matrix_rank(part.affine[0])).astype(int)
    # the same corner, seen from each of the cells around it
    _, group = np.unique(np.round(polygons.points, 9), axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    begin = np.flatnonzero(np.concatenate(([True], np.diff(group[order]) > 0)))
    gap = np.maximum.reduceat(image[order], begin) - np.minimum.reduceat(image[order], begin)
    return {
        "cells": len(part),
        "cells_in_window": len(polygons.cell),
        "prior_mass": float(part.prior_mass.sum()),
        "cells_by_rank": {str(r): int((rank == r).sum()) for r in range(3)},
        "largest_gap": float(gap.max()),
        "largest_map_error": float(np.abs(image - exact).max()),
    }


@styled
def _draw(parts: dict[str, Partition]) -> Figure:
    """Latent plane and surface of each network; a cell has the same colour in both, and no other has it.

    The surface is drawn in its principal axes, stretched to fill the box, and seen from above the flattest of them.
    """
    figure = new_figure(7.2, 3.3 * len(parts))
    for i, (name, part) in enumerate(parts.items()):
        polygons = cell_polygons(part, ((-_REACH, _REACH), (-_REACH, _REACH)))
        pieces = np.split(polygons.points, polygons.start[1:-1])
        colours = _colours(np.array([piece.mean(0) for piece in pieces]))
        left = figure.add_subplot(len(parts), 2, 2 * i + 1)
        left.add_collection(PolyCollection(pieces, facecolors=colours, edgecolors=BLACK, lw=0.3))
        left.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")
        left.set_title(f"{_ACTIVATIONS[name]}: {len(pieces)} of {len(part)} cells")
        right: Any = figure.add_subplot(len(parts), 2, 2 * i + 2, projection="3d")
        _draw_surface(right, np.split(_turned(image_points(part, polygons)), polygons.start[1:-1]), colours)
    return figure


def _colours(middles: Array) -> Array:
    """The direction of a cell from the origin as its hue, the order of its distance as its saturation, `(R, 3)`."""
    turn = np.arctan2(middles[:, 1], middles[:, 0]) / (2.0 * np.pi) % 1.0
    order = np.hypot(middles[:, 0], middles[:, 1]).argsort(kind="stable").argsort(kind="stable")
    rank = order / max(1, len(middles) - 1)
    return np.asarray(hsv_to_rgb(np.stack((turn, 0.15 + 0.6 * rank, np.full(len(turn), 0.95)), 1)))


def _turned(points: Array) -> Array:
    """Points in their principal axes."""
    centred = points - points.mean(0)
    return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2].T)


def _draw_surface(ax: Any, pieces: list[Array], colours: Array) -> None:
    points = np.concatenate(pieces)
    low, high = points.min(0), points.max(0)
    ax.add_collection3d(Poly3DCollection(pieces, facecolors=colours, edgecolors=BLACK, lw=0.3))
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    ax.set(xlabel="principal axis 1", ylabel="2", zlabel="3")
    ax.set_title("g(z)")
    ax.view_init(elev=42.0, azim=-60.0)
    ax.set_box_aspect((1.25, 1.25, 0.75), zoom=1.05)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.labelpad = -4.0
        axis._axinfo["grid"].update(color=LIGHT, linewidth=0.4)
    ax.tick_params(pad=-2.0, labelsize=6.5)
