"""Angles between the images of neighbouring cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from girih.geometry import Angles
from girih.plots.data import to_array
from girih.plots.histograms import named, plot_histograms
from girih.plots.style import styled


@styled
def plot_angles(
    angles: Angles | Mapping[str, Angles],
    ax: Axes | None = None,
    weights: Any = None,
    bins: int = 45,
    full: bool = False,
) -> Axes:
    """Draw the distribution of the largest principal angle over pairs of neighbouring cells, in degrees.

    Args:
        angles: of the cells of one generator, or of several by name.
        ax: axes to draw into; those of a new figure by default.
        weights: of the pairs, `(E,)`, or arrays by name; equal by default.
        bins: how many bars.
        full: show 0 to 90 degrees even where all angles are smaller.

    Raises:
        EmptyDataError: there are no pairs.

    Source:
        MAS, appendix A, Theorem 4, Figures 8 and 11.

    Example:
        >>> import girih
        >>> girih.plots.plot_angles(girih.geometry.angles(girih.mlp([2, 8, 3], seed=0))).get_xlabel()
        'largest angle between neighbours (degrees)'
    """
    degrees = {name: np.degrees(to_array(found.largest)) for name, found in named(angles).items()}
    top = 90.0 if full else min(90.0, max(float(value.max(initial=0.0)) for value in degrees.values()) * 1.001 + 1e-9)
    given = weights if weights is None or isinstance(weights, Mapping) else {"": weights}
    ax = plot_histograms(
        degrees,
        "largest angle between neighbours (degrees)",
        ax,
        given,
        np.linspace(0.0, top, bins + 1).tolist(),
        "share of pairs",
        means=True,
    )
    ax.set_xlim(0.0, top)
    return ax
