"""MAS, Fig. 1: the partition of a plane of latents, and the piecewise flat surface that it is mapped to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from girih.networks import mlp
from girih.partition import Partition
from girih.plots import cell_polygons, draw_image, image_points, new_figure, styled
from girih.training import Progress
from girih_papers.arrays import to_array
from girih_papers.figures import save

_ACTIVATIONS = {"relu": "ReLU", "leaky_relu": "leaky ReLU", "abs": "absolute value"}
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
    figure = new_figure(6.6, 3.0 * len(parts))
    for i, (name, part) in enumerate(parts.items()):
        left = figure.add_subplot(len(parts), 2, 2 * i + 1)
        right = figure.add_subplot(len(parts), 2, 2 * i + 2, projection="3d")
        draw_image(left, right, part)
        left.set_title(f"{_ACTIVATIONS[name]}: {left.get_title()}")
    return figure
