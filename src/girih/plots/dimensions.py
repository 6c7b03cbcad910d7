"""The spectrum of the maps of the cells: singular values, their rank, and the layers that bound it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from girih.errors import EmptyDataError, ParameterError
from girih.geometry import Cells, CellValues
from girih.geometry.dimension import nonzero
from girih.plots.histograms import cell_weights, named, weighted_quantiles
from girih.plots.numbers import Array, to_array
from girih.plots.style import BLUE, CYCLE, GREY, LIGHT, PALE, legend_below, log_scale, new_axes, styled


@styled
def plot_singular_values(
    cells: Cells | Mapping[str, Cells],
    ax: Axes | None = None,
    quantiles: tuple[float, float, float] = (0.05, 0.5, 0.95),
    tolerance: float = 1e-10,
) -> Axes:
    """Draw the singular values of A, largest first: the median over the prior, and a band between two quantiles.

    The largest is how much a cell is stretched in the direction in which it is stretched most, in units of x for one
    unit of z. Where singular values are 0 a line ends, and the band reaches to the bottom.

    Args:
        cells: those of one generator, or of several by name.
        ax: axes to draw into; those of a new figure by default.
        quantiles: lower end of the band, line, upper end.
        tolerance: singular values up to this multiple of the largest one of the cell count as 0.

    Raises:
        ParameterError: quantiles that are not increasing numbers from 0 to 1.
        EmptyDataError: all singular values are 0.

    Source:
        MAS, section 5.1, Lemma 1.

    Example:
        >>> import girih
        >>> cells = girih.geometry.sample_cells(girih.mlp([6, 16, 16, 10], seed=0), 200)
        >>> girih.plots.plot_singular_values(cells).get_xlabel()
        'index of singular value'
    """
    low, middle, high = quantiles
    if not 0.0 <= low < middle < high <= 1.0:
        raise ParameterError(f"quantiles must be three increasing numbers from 0 to 1, got {quantiles}")
    lines = {name: _quantiles(of, quantiles, tolerance) for name, of in named(cells).items()}
    if len(lines) > len(CYCLE):
        raise ParameterError(f"at most {len(CYCLE)} spectra can be told apart in one picture, got {len(lines)}")
    positive = np.concatenate([line[line > 0] for line in lines.values()])
    if not len(positive):
        raise EmptyDataError("all singular values are 0: the generator is constant on these cells")
    floor = 0.7 * float(positive.min())
    own, ax = ax is None, new_axes(ax)
    for (name, line), look in zip(lines.items(), CYCLE, strict=False):
        index = np.arange(1, line.shape[1] + 1)
        band = np.where(line > 0, line, 0.5 * floor)
        some = line[2] > 0
        label = f"{name}: median" if name else "median"
        ax.plot(index, np.where(line[1] > 0, line[1], np.nan), label=label, **look, ms=3.5)
        ax.fill_between(
            index,
            band[0],
            band[2],
            where=some.tolist(),
            color=look["color"],
            alpha=0.18,
            lw=0,
            label=None if name else f"{100 * low:g}% to {100 * high:g}% of the prior",
        )
        if len(index) == 1:  # a band of no width
            ax.vlines(index, band[0], band[2], color=look["color"], alpha=0.4, lw=6)
    log_scale(ax, "y")
    ax.set_ylim(floor, 1.4 * float(positive.max()))
    log_scale(ax, "y")  # ticks for these limits
    width = max(line.shape[1] for line in lines.values())
    ax.set(xlabel="index of singular value", ylabel="singular value of A", xlim=(0.7, width + 0.3))
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    legend_below(ax, own)
    return ax


def _quantiles(cells: Cells, at: tuple[float, float, float], tolerance: float) -> Array:
    counts = to_array(nonzero(cells, tolerance)) > 0
    return weighted_quantiles(np.where(counts, to_array(cells.singular_values), 0.0), cell_weights(cells)[0], at)


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
