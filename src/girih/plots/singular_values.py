"""The spectrum of the cells' maps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from girih.errors import EmptyDataError, ParameterError
from girih.geometry import Cells
from girih.geometry.dimension import nonzero
from girih.plots.data import Array, to_array
from girih.plots.histograms import cell_weights, named, weighted_quantiles
from girih.plots.style import CYCLE, legend_below, log_scale, new_axes, styled


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
