"""A quantity of the cells of a one-dimensional latent space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from girih._arrays import as_tensor
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.geometry import log_volume
from girih.partition import Partition
from girih.plots.data import to_array
from girih.plots.style import BLUE, LIGHT, legend_below, new_axes, styled


@styled
def plot_line_values(
    part: Partition,
    values: Any = None,
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
