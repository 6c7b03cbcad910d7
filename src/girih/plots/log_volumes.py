"""How much the cells of a generator are stretched."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from girih.geometry import Cells, log_volume
from girih.plots.histograms import cell_weights, named, plot_histograms
from girih.plots.style import styled


@styled
def plot_log_volumes(
    cells: Cells | Mapping[str, Cells], ax: Axes | None = None, bins: int = 40, tolerance: float = 1e-10
) -> Axes:
    r"""Draw the distribution of `log sqrt det(A^T A)` over the prior, with its mean as a thin line.

    Cells of rank below S are at minus infinity; the legend says how much of the prior they hold. Cells without
    prior masses count once each.

    Args:
        cells: those of one generator, or of several by name.
        ax: axes to draw into; those of a new figure by default.
        bins: how many bars.
        tolerance: of the rank, as in `girih.geometry.log_volume`.

    Raises:
        EmptyDataError: all cells are of rank below S.

    Source:
        MAS, section 5.1, Figures 7 and 10.

    Example:
        >>> import girih
        >>> cells = girih.geometry.sample_cells(girih.mlp([6, 16, 16, 10], seed=0), 200)
        >>> girih.plots.plot_log_volumes(cells).get_ylabel()
        'share of the prior'
    """
    some = named(cells)
    values = {name: log_volume(of, tolerance).values for name, of in some.items()}
    weights = {name: cell_weights(of)[0] for name, of in some.items()}
    share = {cell_weights(of)[1] for of in some.values()}
    return plot_histograms(
        values,
        r"$\log\sqrt{\det A^\top\!A}$ (nats)",
        ax,
        weights,
        bins,
        share.pop() if len(share) == 1 else "share",
        means=True,
    )
