"""EM-DGN, Figs. 1 and 2: the partition found cell by cell, and the triangulation of one of its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path
from scipy.spatial import Delaunay

from girih.gaussian import Polygons
from girih.networks import mlp
from girih.partition import Partition
from girih.plots import BLACK, new_figure, plot_discovery, styled
from girih.training import Progress
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save

_SIZES = (2, 6, 6, 2)
_CORNERS = 5  # of the cell of Fig. 2: three triangles
_POINTS = 100_000
_COLOURS = ("#CFE3F1", "#F7D98C", "#AFD8C0", "#F0B08C", "#D7A9C8")


def run(out: Path, quick: bool, seed: int, progress: bool) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    seeds = [seed + i for i in range(2 if quick else 10)]
    checks = []
    bar = Progress("partition-discovery", len(seeds), 0, progress)
    try:
        for i, one in enumerate(seeds):
            checks.append(_check(Partition(mlp(_SIZES, activation="relu", seed=one)), one, quick))
            bar.show(i + 1, f"{checks[-1]['cells']} cells")
    finally:
        bar.close()
    part = Partition(mlp(_SIZES, activation="relu", seed=seed))
    cell = _example(part)
    corners = to_array(part.vertices(cell))
    triangles = triangulate(corners)
    figures = [
        save(plot_discovery(part, span=(-1.5, 1.5)), out / "walk.png"),
        save(plot_discovery(part, by="layer", span=(-1.5, 1.5)), out / "layers.png"),
        save(_draw_triangles(corners, triangles), out / "triangulation.png"),
    ]
    return {
        "cells": checks[0]["cells"],
        "prior_mass_error": max(abs(c["prior_mass"] - 1.0) for c in checks),
        "cells_not_reached": sum(c["cells"] - c["cells_reached"] for c in checks),
        "points_without_cell": sum(c["points_without_cell"] for c in checks),
        "triangulation_mass_error": max(c["triangulation_mass_error"] for c in checks),
        "settings": {"generator": list(_SIZES), "activation": "relu", "prior_variance": 1.0, "seeds": seeds},
        "triangulated_cell": {"cell": cell, "corners": len(corners), "triangles": len(triangles)},
        "networks": checks,
        "figures": figures,
    }


def triangulate(corners: Array) -> Array:
    """The Delaunay triangles of a convex polygon, counter-clockwise, `(T, 3, 2)` (EM-DGN, equation 9).

    Example:
        >>> import numpy as np
        >>> from girih_papers.partition_discovery import triangulate
        >>> triangulate(np.array([[0.0, 0.0], [1.0, 0.0], [1.2, 1.0], [0.0, 1.0]])).shape
        (2, 3, 2)
    """
    found = corners[Delaunay(corners).simplices]
    a, b = found[:, 1] - found[:, 0], found[:, 2] - found[:, 0]
    turned = a[:, 0] * b[:, 1] < a[:, 1] * b[:, 0]
    found[turned] = found[turned][:, ::-1]
    return np.asarray(found)


def _check(part: Partition, seed: int, quick: bool) -> dict[str, Any]:
    found = _walk(part)
    generator = torch.Generator().manual_seed(seed)
    points = 2.0 * torch.randn(_POINTS // (20 if quick else 1), 2, dtype=torch.float64, generator=generator)
    index = part.locate(points)
    met = part.patterns[index.clamp(min=0)] == part.trace.pattern(points)
    cell = _example(part)
    triangles = torch.as_tensor(triangulate(to_array(part.vertices(cell))))
    mass = float(part.prior_mass[cell])
    return {
        "seed": seed,
        "cells": len(part),
        "unbounded_cells": int(torch.isinf(part.volume).sum()),
        "prior_mass": float(part.prior_mass.sum()),
        "steps": int(found.max()),
        "cells_by_step": np.bincount(found[found >= 0]).tolist(),
        "cells_reached": int((found >= 0).sum()),
        "points_without_cell": int((~met.all(1) | (index < 0)).sum()),
        "triangulation_mass_error": abs(float(_masses(triangles).sum()) - mass) / mass,
    }


def _walk(part: Partition) -> NDArray[np.int64]:
    """The step at which a walk over facets from the origin finds each cell, `(R,)`; -1 if it never does."""
    first, last = part.neighbors.cpu().numpy().T
    graph = csr_array((np.ones(len(first)), (first, last)), shape=(len(part), len(part)))
    start = int(part.locate(torch.zeros(1, 2, dtype=torch.float64))[0])
    steps = shortest_path(graph, directed=False, unweighted=True, indices=start)
    return np.where(np.isfinite(steps), steps, -1).astype(np.int64)


def _masses(triangles: torch.Tensor) -> torch.Tensor:
    """The mass of triangles under the standard normal."""
    tail = torch.nn.functional.pad(triangles, (0, 1), value=1.0)
    owner = torch.arange(len(tail)).repeat_interleave(3)
    head = tail.roll(-1, 1)
    return Polygons(tail.reshape(-1, 3), head.reshape(-1, 3), owner, len(tail)).log_mass().exp()


def _example(part: Partition) -> int:
    """The roundest bounded cell among those with five corners, or else with the most corners."""
    bounded = np.flatnonzero(np.isfinite(to_array(part.volume)))
    count = np.array([len(part.vertices(int(i))) for i in bounded])
    best = bounded[count == (_CORNERS if (count == _CORNERS).any() else count.max())]
    area = to_array(part.volume)[best]
    size = np.array([np.ptp(to_array(part.vertices(int(i))), axis=0).max() for i in best])
    return int(best[(area / size**2).argmax()])


@styled
def _draw_triangles(corners: Array, triangles: Array) -> Figure:
    columns = 1 + len(triangles)
    figure = new_figure(7.2, 0.55 + 6.6 / columns)
    axes = figure.subplots(1, columns, sharex=True, sharey=True)
    axes[0].fill(*corners.T, facecolor="#EEEEEE", edgecolor=BLACK, lw=1.0)
    axes[0].set(title=f"cell with {len(corners)} corners", ylabel="$z_2$")
    total = float(_masses(torch.as_tensor(triangles)).sum())
    for i, (ax, triangle, mass) in enumerate(
        zip(axes[1:], triangles, _masses(torch.as_tensor(triangles)).tolist(), strict=True)
    ):
        ax.fill(*corners.T, facecolor="none", edgecolor="#AAAAAA", lw=0.6, ls=(0, (4, 2)))
        ax.fill(*triangle.T, facecolor=_COLOURS[i % len(_COLOURS)], edgecolor=BLACK, lw=1.0)
        ax.set_title(f"simplex {i + 1}: {100.0 * mass / total:.1f}% of mass")
    for ax in axes:
        ax.plot(*corners.T, "o", color=BLACK, ms=2.5)
        ax.set(xlabel="$z_1$", aspect="equal")
        ax.locator_params(nbins=4)
    return figure
