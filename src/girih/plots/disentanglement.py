"""How alike the columns of the cells' maps are."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator
from torch import Tensor

from girih.errors import ParameterError, ShapeError
from girih.geometry import Cells, mean_overlap
from girih.plots.data import to_array
from girih.plots.style import LIGHT, colour_bar, new_axes, styled

_WRITTEN = 8  # numbers fit into a table of this size


@styled
def plot_disentanglement(overlap: Cells | Tensor, ax: Axes | None = None) -> Axes:
    """Draw the average absolute cosine between the columns of A as a table of colours: 0 is disentangled.

    Args:
        overlap: cells, or what `girih.geometry.mean_overlap` gives for them, `(S, S)`.
        ax: axes to draw into; those of a new figure by default.

    Raises:
        ShapeError: not a square table.
        ParameterError: S = 1, where there is nothing to compare.

    Source:
        MAS, section 4.2, Proposition 5, Table 1.

    Example:
        >>> import girih
        >>> cells = girih.geometry.sample_cells(girih.mlp([6, 16, 16, 10], seed=0), 200)
        >>> girih.plots.plot_disentanglement(cells).get_xlabel()
        'latent'
    """
    table = to_array(mean_overlap(overlap) if isinstance(overlap, Cells) else overlap)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ShapeError(f"overlap must be cells or a table (S, S), got shape {table.shape}")
    S = len(table)
    if S < 2:
        raise ParameterError("a single latent has no other to be entangled with; this picture is for S of 2 or more")
    ax = new_axes(ax, width=3.5, height=2.8)
    shown = np.ma.masked_array(table, np.eye(S, dtype=bool))
    drawn = ax.imshow(shown, cmap="cividis_r", vmin=0.0, vmax=1.0)
    ax.set_facecolor(LIGHT)
    if S <= _WRITTEN:
        for i in range(S):
            for j in range(S):
                if i != j:
                    ink = "white" if table[i, j] > 0.55 else "black"
                    ax.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", fontsize=7, color=ink)
    ticks = np.arange(0, S, max(1, -(-S // 10)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator(ticks.tolist()))
        axis.set_major_formatter(lambda value, _: f"{value + 1:g}")
        axis.set_tick_params(length=0)
    ax.set(xlabel="latent", ylabel="latent")
    ax.spines[:].set_visible(False)
    colour_bar(ax, drawn, "mean |cosine| between columns of A")
    return ax
