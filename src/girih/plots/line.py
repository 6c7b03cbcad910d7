"""A partition: on a latent line g(z), the prior mass and any value of the cells; beyond, the cells themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.special import ndtri

from girih._arrays import as_tensor
from girih._options import wholes
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.geometry import log_volume
from girih.partition import Partition
from girih.plots.cells import plot_cells
from girih.plots.numbers import Array, to_array
from girih.plots.style import BLACK, BLUE, CYCLE, GREY, LIGHT, legend_below, new_axes, styled

# More lines than this in one picture cannot be told apart.
_MAX_LINES = 5


def plot_partition(part: Partition, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw a partition: for S = 1 the generator's output with the cell limits, for S = 2, 3 the cells.

    Args:
        part: the partition.
        ax: axes to draw into; those of a new figure by default.
        **options: those of `plot_line_partition` for S = 1, of `plot_cells` for S = 2, 3.

    Example:
        >>> import girih
        >>> from girih.plots import plot_partition
        >>> plot_partition(girih.Partition(girih.mlp([2, 8, 2], seed=0)), span=(-2.0, 2.0)).get_xlabel()
        '$z_1$'
    """
    return (plot_line_partition if part.latent_dim == 1 else plot_cells)(part, ax=ax, **options)


@styled
def plot_line_partition(
    part: Partition,
    ax: Axes | None = None,
    span: tuple[float, float] | None = None,
    coordinates: Sequence[int] | None = None,
    mass: ArrayLike | None = None,
) -> Axes:
    """Draw the coordinates of g(z) against z, with cell limits and, in a strip above, the prior mass of each cell.

    Args:
        part: a partition with S = 1.
        ax: axes to draw into; those of a new figure by default.
        span: the z to draw between; 3 prior deviations to either side by default, inside the domain.
        coordinates: which of the D coordinates to draw; by default all, or the five that vary most under the prior.
        mass: of each cell under another prior than that of the partition, `(R,)`.

    Returns:
        The axes of the curves.

    Raises:
        LatentDimensionError: S is not 1.
        ParameterError: an empty span, or a coordinate that does not exist.

    Example:
        >>> import girih
        >>> girih.Partition(girih.mlp([1, 8, 2], seed=0)).plot().get_ylabel()
        'coordinates of g(z)'
    """
    if part.trace.latent_dim != 1:
        raise LatentDimensionError(
            f"plot_line_partition draws S = 1, and this partition has S = {part.trace.latent_dim}"
        )
    low, high = _span(part, span)
    limits = to_array(part.breakpoints)
    inside = limits[(limits > low) & (limits < high)]
    z = np.concatenate(([low], inside, [high]))
    with torch.no_grad():
        values = to_array(part.trace(torch.as_tensor(z[:, None])))
    lines = _lines(part, values.shape[1], coordinates)

    own, ax = ax is None, new_axes(ax, height=2.9)
    for limit in inside:
        ax.axvline(limit, color=GREY, lw=0.5, zorder=0.5)
    for style, line in zip(CYCLE, lines, strict=False):
        drawn = {key: value for key, value in style.items() if key != "marker"}
        ax.plot(z, values[:, line], label=f"$g_{{{line}}}(z)$", **drawn)
    hidden = len(limits) - len(inside)
    beyond = f", {hidden} beyond" if hidden else ""
    ax.plot([], [], color=GREY, lw=0.5, label=f"{len(limits)} cell limits{beyond}")
    ax.set(xlabel="latent z", xlim=(low, high))
    total = values.shape[1]
    ax.set_ylabel("coordinates of g(z)" if len(lines) == total else f"{len(lines)} of {total} coordinates")
    legend_below(ax, own)
    _draw_masses(ax, part, z, to_array(part.prior_mass if mass is None else as_tensor(mass, "mass")))
    return ax


def _span(part: Partition, span: tuple[float, float] | None) -> tuple[float, float]:
    low, high = (-3.0 * math.sqrt(part.prior), 3.0 * math.sqrt(part.prior)) if span is None else span
    first, last = part.intervals.domain
    low, high = max(float(low), first), min(float(high), last)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        given = "the part of the domain near the prior is empty" if span is None else f"got {span}"
        raise ParameterError(f"span must be (low, high), finite and inside the domain {part.domain}; {given}")
    return low, high


def _lines(part: Partition, total: int, coordinates: Sequence[int] | None) -> list[int]:
    if coordinates is None:
        if total <= _MAX_LINES:
            return list(range(total))
        z = math.sqrt(part.prior) * ndtri((np.arange(200) + 0.5) / 200)
        with torch.no_grad():
            spread = to_array(part.trace(torch.as_tensor(z[:, None]))).std(0)
        return sorted(int(i) for i in np.argsort(-spread, kind="stable")[:_MAX_LINES])
    lines = list(wholes(coordinates, "coordinates", None))
    if not 1 <= len(lines) <= len(CYCLE) or min(lines) < 0 or max(lines) >= total:
        raise ParameterError(f"coordinates must be 1 to {len(CYCLE)} of 0 to {total - 1}; got {lines}")
    return lines


def _draw_masses(ax: Axes, part: Partition, z: Array, masses: Array) -> None:
    """A strip above the axes: each cell as a bar as high as its prior mass."""
    strip = ax.inset_axes((0.0, 1.04, 1.0, 0.18), sharex=ax)
    first = int(np.searchsorted(to_array(part.breakpoints), z[0], side="right"))
    mass = masses[first : first + len(z) - 1]
    strip.bar(z[:-1], mass, width=np.diff(z), align="edge", color=LIGHT, edgecolor=BLACK, lw=0.5)
    top = 1.15 * float(mass.max())
    strip.set(ylim=(0.0, top if top > 0 else 1.0))
    strip.set_ylabel("prior\nmass", fontsize=7)
    strip.yaxis.set_major_locator(MaxNLocator(2, prune="lower"))
    strip.tick_params(axis="x", labelbottom=False, length=0)


@styled
def plot_line_values(
    part: Partition,
    values: ArrayLike | None = None,
    label: str = r"$\log\sqrt{\det A^\top\!A}$ (nats)",
    ax: Axes | None = None,
    span: tuple[float, float] | None = None,
) -> Axes:
    """Draw a quantity of the cells against z, a step for each cell. Cells where it is not finite are shaded grey.

    Args:
        part: a partition with S = 1.
        values: one number for each cell `(R,)`; the log-volume by default, for S = 1 the log of the speed `|g'(z)|`.
        label: what the numbers are.
        ax: axes to draw into; those of a new figure by default.
        span: the z to draw between; 3 prior deviations to either side by default, inside the domain.

    Raises:
        LatentDimensionError: S is not 1.
        ShapeError: not one value for each cell.
        ParameterError: an empty span.

    Source:
        MAS, section 5.1, Lemma 1.

    Example:
        >>> import girih
        >>> girih.plots.plot_line_values(girih.Partition(girih.mlp([1, 8, 2], seed=0))).get_xlabel()
        'latent z'
    """
    if part.latent_dim != 1:
        raise LatentDimensionError(f"plot_line_values draws S = 1, and this partition has S = {part.latent_dim}")
    numbers = to_array(log_volume(part).values if values is None else as_tensor(values, "values"))
    if numbers.shape != (len(part),):
        raise ShapeError(f"values must hold one number for each of the {len(part)} cells; got shape {numbers.shape}")
    reach = 3.0 * math.sqrt(part.prior)
    first, last = part.intervals.domain
    low, high = (max(-reach, first), min(reach, last)) if span is None else map(float, span)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ParameterError(f"span must be (low, high), finite and not empty; got {(low, high)}")
    limits = to_array(part.breakpoints)
    z = np.concatenate(([low], limits[(limits > low) & (limits < high)], [high]))
    start = int(np.searchsorted(limits, low, side="right"))
    shown = numbers[start : start + len(z) - 1]
    own, ax = ax is None, new_axes(ax)
    known = np.isfinite(shown)
    for k in np.flatnonzero(~known):
        ax.axvspan(z[k], z[k + 1], color=LIGHT, lw=0, label="not finite" if k == np.flatnonzero(~known)[0] else None)
    ax.stairs(np.where(known, shown, np.nan), z, baseline=None, color=BLUE, lw=1.3)
    ax.set(xlabel="latent z", ylabel=label, xlim=(low, high))
    if not known.all():
        legend_below(ax, own)
    return ax
