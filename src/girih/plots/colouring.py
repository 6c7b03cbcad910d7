"""Colours of cells: by a quantity, or so that neighbours differ."""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, LogNorm, Normalize, to_rgba_array

from girih._arrays import as_tensor
from girih.errors import ParameterError
from girih.partition import Partition
from girih.plots.data import Array, to_array
from girih.plots.style import LIGHT, latent_colours

# Tints that differ in hue and in lightness; six are enough for any map of cells in the plane.
TINTS = ("#F6F2E4", "#CFE3F1", "#F7D98C", "#AFD8C0", "#F0B08C", "#8DB9DA", "#D7A9C8", "#74AE93")

_LABELS = {
    "log_volume": "log of cell area (natural)",
    "prior_mass": "prior mass of cell",
    "rank": "rank of A",
    "index": "index of cell",
}


class Colouring(NamedTuple):
    """A colour for every cell, and the scale they are from, if they stand for a quantity."""

    rgba: Array  # (R, 4)
    scale: ScalarMappable | None
    label: str | None
    integers: list[int] | None  # ticks of a scale with few whole values
    missing: bool  # whether some cells have no finite value


def colouring(
    part: Partition,
    values: Any = None,
    label: str | None = None,
    cmap: Any = None,
    log: bool = False,
    within: Any = None,
) -> Colouring:
    """Colours for the cells of a partition.

    Args:
        part: the partition.
        values: one number for each cell, or "log_volume", "prior_mass", "rank" or "index"; `None` for tints that
            differ between neighbours. Cells without a finite value are grey.
        label: of the colour bar.
        cmap: a colour map or its name.
        log: a logarithmic scale.
        within: the cells that the scale must cover; all by default.

    Raises:
        ParameterError: an unknown name, not one value for each cell, or nothing to show on the scale.

    Example:
        >>> import girih
        >>> from girih.plots.colouring import colouring
        >>> part = girih.Partition(girih.mlp([2, 8, 2], seed=0))
        >>> colouring(part, "rank").label, colouring(part).rgba.shape
        ('rank of A', (37, 4))
    """
    if values is None:
        return Colouring(to_rgba_array(TINTS)[tints(part)], None, None, None, False)
    if label is None:
        label = _LABELS.get(values, values) if isinstance(values, str) else "value of cell"
    numbers = quantity(part, values)
    known = np.isfinite(numbers) & ((numbers > 0) if log else True)
    inside = np.ones(len(part), bool) if within is None else np.isin(np.arange(len(part)), within)
    shown = known & inside
    if not shown.any():
        raise ParameterError(f"no cell has a {'positive, ' if log else ''}finite value of {label!r} to colour by")
    colours = _colour_map(cmap)
    low, high = float(numbers[shown].min()), float(numbers[shown].max())
    integers = None
    norm: Normalize
    if log:
        norm = LogNorm(low, high if high > low else 1.01 * low)
    elif values is not None and (numbers[shown] == np.round(numbers[shown])).all() and high - low <= 8:
        integers = list(range(int(low), int(high) + 1))
        norm = BoundaryNorm(np.arange(low - 0.5, high + 1.0), len(integers))
        colours = colours.resampled(len(integers))
    else:
        room = 0.0 if high > low else max(abs(low), 1.0) * 0.01
        norm = Normalize(low - room, high + room)
    colours = colours.with_extremes(bad=LIGHT)
    scale = ScalarMappable(norm, colours)
    rgba = np.asarray(scale.to_rgba(np.ma.masked_array(numbers, ~known)))
    return Colouring(rgba, scale, label, integers, not known[inside].all())


def quantity(part: Partition, values: Any) -> Array:
    """A number for each cell, from an array or by name."""
    if isinstance(values, str):
        if values not in _LABELS:
            raise ParameterError(
                f"there is no quantity {values!r} of cells; known are {', '.join(_LABELS)}, or an array"
            )
        if values == "index":
            return np.arange(len(part), dtype=np.float64)
        if values == "prior_mass":
            return to_array(part.prior_mass)
        if values == "rank":
            with torch.no_grad():
                return to_array(torch.linalg.matrix_rank(part.affine[0]))
        with np.errstate(divide="ignore"):
            return np.log(to_array(part.volume))
    numbers = to_array(as_tensor(values, "values"))
    if numbers.shape != (len(part),):
        raise ParameterError(
            f"values must hold one number for each of the {len(part)} cells; got shape {numbers.shape}"
        )
    return numbers


def tints(part: Partition) -> Array:
    """A tint for each cell, other than those of its neighbours, each used about as often.

    Cells are coloured so that each has at most five coloured neighbours by then, which planar maps always allow.
    """
    count, pairs = len(part), part.neighbors.cpu().numpy()
    around: list[list[int]] = [[] for _ in range(count)]
    for a, b in pairs.tolist():
        around[a].append(b)
        around[b].append(a)
    degree = [len(others) for others in around]
    heap = [(d, i) for i, d in enumerate(degree)]
    heapq.heapify(heap)
    order, gone = [], [False] * count
    while heap:
        d, i = heapq.heappop(heap)
        if gone[i] or d != degree[i]:
            continue
        gone[i] = True
        order.append(i)
        for j in around[i]:
            if not gone[j]:
                degree[j] -= 1
                heapq.heappush(heap, (degree[j], j))
    out, used = [-1] * count, [0] * len(TINTS)
    for i in reversed(order):
        taken = {out[j] for j in around[i]}
        free = [c for c in range(len(TINTS)) if c not in taken] or list(range(len(TINTS)))
        out[i] = min(free, key=used.__getitem__)
        used[out[i]] += 1
    return np.array(out)


def _colour_map(cmap: Any) -> Colormap:
    if cmap is None:
        return latent_colours()
    try:
        return matplotlib.colormaps[cmap].copy() if isinstance(cmap, str) else cmap.copy()
    except KeyError:
        raise ParameterError(f"matplotlib has no colour map {cmap!r}; see matplotlib.colormaps") from None
