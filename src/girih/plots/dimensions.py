"""The dimension of the image of a generator, cell by cell, and the layers that bound it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from girih.geometry import CellValues
from girih.plots.data import Array, to_array
from girih.plots.histograms import cell_weights, named
from girih.plots.style import BLUE, CYCLE, GREY, LIGHT, PALE, legend_below, new_axes, styled


@styled
def plot_dimensions(dimensions: CellValues | Mapping[str, CellValues], ax: Axes | None = None) -> Axes:
    """Draw which share of the prior is mapped to an image of which dimension.

    Whiskers are one standard error, for sampled cells.

    Args:
        dimensions: from `girih.geometry.intrinsic_dimension` or `dimension_bound`, or several by name, side by side.
        ax: axes to draw into; those of a new figure by default.

    Source:
        MAS, section 3.2, Proposition 1.

    Example:
        >>> import girih
        >>> dims = girih.geometry.intrinsic_dimension(girih.mlp([2, 3, 3], activation="relu", seed=0))
        >>> girih.plots.plot_dimensions(dims).get_xlabel()
        'dimension of the image of a cell'
    """
    some = named(dimensions)
    own, ax = ax is None, new_axes(ax)
    top = max(of.cells.latent_dim for of in some.values())
    least = min(int(of.values.min()) for of in some.values())
    first = 0 if top <= 12 else least
    at = np.arange(first, top + 1)
    width = 0.8 / len(some)
    for k, ((name, of), look) in enumerate(zip(some.items(), CYCLE, strict=False)):
        weight, what = cell_weights(of.cells)
        share = np.bincount(to_array(of.values).astype(np.int64), weight / weight.sum(), top + 1)[first:]
        draws = of.cells.draws
        error = np.sqrt(share * (1.0 - share) / draws) if draws else None
        place = at + (k - 0.5 * (len(some) - 1)) * width
        face = PALE if len(some) == 1 else (look["color"] if k == 0 else LIGHT if k == 1 else "none")
        ax.bar(
            place,
            share,
            width,
            facecolor=face,
            edgecolor=BLUE if k == 0 else GREY if k == 1 else look["color"],
            lw=0.8,
            yerr=error,
            error_kw={"lw": 0.8, "capsize": 1.5},
            label=name or None,
        )
    ax.set(xlabel="dimension of the image of a cell", ylabel=what, xlim=(at[0] - 0.6, at[-1] + 0.6))
    ax.set_ylim(0.0, min(1.03, 1.02 * ax.get_ylim()[1]))
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
    if len(some) > 1:
        legend_below(ax, own)
    return ax


@styled
def plot_layer_ranks(
    ranks: Tensor, names: Sequence[str], latent_dim: int, ax: Axes | None = None, weights: Tensor | None = None
) -> Axes:
    """Draw how many dimensions each layer lets through: the mean over cells, and the least and most.

    Args:
        ranks: `(R, L)` of `girih.geometry.layer_ranks`.
        names: of the layers.
        latent_dim: S, drawn as a line.
        ax: axes to draw into; those of a new figure by default.
        weights: prior masses of the cells `(R,)`; equal by default. Cells without mass are left out.

    Source:
        MAS, section 3.2, Proposition 1.

    Example:
        >>> import girih
        >>> ranks, names = girih.geometry.layer_ranks(girih.mlp([2, 3, 3], activation="relu", seed=0))
        >>> girih.plots.plot_layer_ranks(ranks, names, 2).get_ylabel()
        'dimensions let through'
    """
    table = to_array(ranks)
    weight: Array = np.ones(len(table)) if weights is None else np.clip(to_array(weights), 0.0, None)
    table, weight = table[weight > 0], weight[weight > 0]
    own, ax = ax is None, new_axes(ax)
    at = np.arange(table.shape[1])
    mean = weight @ table / weight.sum()
    ax.axhline(latent_dim, color=GREY, lw=0.8, ls=(0, (4, 2)), label=f"latent dimension {latent_dim}")
    ax.vlines(at, table.min(0), table.max(0), color=BLUE, lw=4, alpha=0.3, label="least to most")
    ax.plot(at, mean, color=BLUE, marker="o", ms=4, label="mean over the prior" if weights is not None else "mean")
    ax.set(
        xlabel="layer, by its name in the module",
        ylabel="dimensions let through",
        ylim=(0.0, latent_dim * 1.12),
        xlim=(-0.5, len(at) - 0.5),
    )
    step = -(-len(at) // 12)
    ax.set_xticks(at[::step], [names[i] for i in at[::step]], rotation=45 if max(map(len, names)) > 4 else 0)
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    legend_below(ax, own)
    return ax
