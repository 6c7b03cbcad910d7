"""The columns of the cells' maps: what changes in x when one latent moves, and how alike they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from girih._arrays import as_tensor
from girih.errors import ParameterError, ShapeError
from girih.geometry import Cells, mean_overlap
from girih.plots.numbers import Array, label_columns, to_array
from girih.plots.style import BLACK, COLUMN, CYCLE, LIGHT, colour_bar, new_axes, new_figure, styled

_GAP = 0.08
_BARS = 12  # columns of x up to which vectors are bars
_WRITTEN = 8  # numbers fit into a table of this size


@styled
def plot_basis(
    images: ArrayLike,
    ax: Axes | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    limit: float | None = None,
    share_limit: bool = True,
) -> Axes:
    """Draw columns of A as images: a line for each cell, an image for each latent; red adds, blue takes away.

    All images have the same colours for the same numbers, from -limit to limit. Images in colour are drawn as
    deviations from grey.

    Args:
        images: `(r, S, h, w)` or `(r, S, h, w, 3)`, as from `girih.geometry.basis(cells, shape)`.
        ax: axes to draw into; those of a new figure by default.
        rows: a name for the cell of each line; 1, 2 and so on by default.
        columns: a name for each latent; z1 and so on by default.
        limit: the number at the ends of the colour scale; by default the 99.5% quantile of the absolute values.
        share_limit: with False each image has its own limits, of the largest absolute value: shapes can be compared
            where sizes differ much, and there is no scale.

    Raises:
        ShapeError: images of another shape, or names that are not one for each.
        ParameterError: a limit that is not positive.

    Source:
        MAS, section 4.2 and Figure 5.

    Example:
        >>> import girih
        >>> images = girih.geometry.basis(girih.mlp([2, 8, 12], seed=0), shape=(3, 4), index=[0, 5])
        >>> girih.plots.plot_basis(images).get_xlabel()
        'columns of A: change of x for one unit of a latent'
    """
    table = to_array(as_tensor(images, "images"))
    colour = table.ndim == 5 and table.shape[4] == 3
    if not (table.ndim == 4 or colour) or not table.size:
        raise ShapeError(f"images must be (r, S, h, w) or (r, S, h, w, 3), got shape {table.shape}")
    r, S, h, w = table.shape[:4]
    left = _names(rows, r, "rows", [f"{i + 1}" for i in range(r)])
    above = _names(columns, S, "columns", [f"$z_{{{k + 1}}}$" for k in range(S)])
    if limit is None:
        limit = float(np.quantile(np.abs(table), 0.995)) or float(np.abs(table).max()) or 1.0
    if not 0.0 < limit < np.inf:
        raise ParameterError(f"limit must be a positive number, got {limit}")
    tall = h / w
    wide, high = S * (1 + _GAP) - _GAP, r * (tall + _GAP) - _GAP
    width = min(max(COLUMN, 0.62 * S + 1.0), 2.2 * COLUMN)
    ax = new_axes(ax, width=width, height=0.6 + (width - 1.1) * high / wide)
    scale = ScalarMappable(Normalize(-limit, limit), matplotlib.colormaps["RdBu_r"])
    for i in range(r):
        for k in range(S):
            own = limit if share_limit else float(np.abs(table[i, k]).max()) or 1.0
            x, y = k * (1 + _GAP), -i * (tall + _GAP)
            extent = (x, x + 1.0, y - tall, y)
            if colour:
                ax.imshow(np.clip(0.5 + 0.5 * table[i, k] / own, 0.0, 1.0), extent=extent)
            else:
                ax.imshow(table[i, k], cmap=scale.cmap, vmin=-own, vmax=own, extent=extent)
    box: dict[str, Any] = {"facecolor": "none", "edgecolor": LIGHT, "lw": 0.5}
    for i in range(r):
        for k in range(S):
            corner = (k * (1 + _GAP), -i * (tall + _GAP) - tall)
            ax.add_patch(matplotlib.patches.Rectangle(corner, 1.0, tall, **box))
    ax.set(xlim=(-0.02, wide + 0.02), ylim=(-high - 0.02, 0.02), aspect="equal")
    ax.set_xticks([k * (1 + _GAP) + 0.5 for k in range(S)], above)
    ax.set_yticks([-i * (tall + _GAP) - 0.5 * tall for i in range(r)], left)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="columns of A: change of x for one unit of a latent", ylabel="cell")
    if share_limit and not colour:
        colour_bar(ax, scale, "change of x")
    return ax


@styled
def plot_basis_vectors(
    vectors: ArrayLike,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    feature_names: list[str] | None = None,
) -> Figure:
    """Draw columns of A for a table: a panel for each cell, bars (or lines, for many columns of x) for each latent.

    Args:
        vectors: `(r, S, D)`, as from `girih.geometry.basis(cells)`; S up to 7.
        rows: a name for each panel; "cell 1" and so on by default.
        columns: a name for each latent; z1 and so on by default.
        feature_names: D names; x0 and so on by default.

    Raises:
        ShapeError: vectors of another shape, or names that are not one for each.
        ParameterError: more than 7 latents, which cannot be told apart.

    Source:
        MAS, section 4.2.

    Example:
        >>> import girih
        >>> vectors = girih.geometry.basis(girih.mlp([2, 8, 5], seed=0), index=[0, 5])
        >>> len(girih.plots.plot_basis_vectors(vectors).axes)
        2
    """
    table = to_array(as_tensor(vectors, "vectors"))
    if table.ndim != 3 or not table.size:
        raise ShapeError(f"vectors must be (r, S, D), got shape {table.shape}")
    r, S, D = table.shape
    if len(CYCLE) < S:
        raise ParameterError(f"at most {len(CYCLE)} latents can be told apart, got {S}; pass some of them")
    titles = _names(rows, r, "rows", [f"cell {i + 1}" for i in range(r)])
    names = _names(columns, S, "columns", [f"$z_{{{k + 1}}}$" for k in range(S)])
    features = label_columns(None, feature_names, D)
    figure = new_figure(COLUMN if D <= 8 else 1.6 * COLUMN, 0.7 + 1.15 * r)
    axes = figure.subplots(r, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, title, some in zip(axes, titles, table, strict=True):
        _draw_vectors(ax, some, names)
        ax.axhline(0.0, color=BLACK, lw=0.5)
        ax.set_title(title, loc="left", fontsize=7.5, pad=2.0)
    step = -(-D // _BARS)
    if D <= _BARS or feature_names is not None:
        long = max(len(name) for name in features[::step]) > 8
        axes[-1].set_xticks(np.arange(0, D, step), features[::step], rotation=45 if long else 0)
    else:
        axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes[-1].set_xlabel("coordinate of x")
    figure.supylabel("change of x per unit of a latent", fontsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(S, 7))
    return figure


def _draw_vectors(ax: Axes, some: Array, names: list[str]) -> None:
    S, D = some.shape
    at = np.arange(D)
    for k, (vector, name) in enumerate(zip(some, names, strict=True)):
        look = CYCLE[k]
        if D <= _BARS:
            width = 0.8 / S
            face = look["color"]
            ax.bar(at + (k - 0.5 * (S - 1)) * width, vector, width, color=face, label=name)
        else:
            ax.plot(at, vector, color=look["color"], ls=look["linestyle"], lw=1.0, label=name)
    ax.margins(x=0.02)
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _names(given: Sequence[str] | None, count: int, what: str, default: list[str]) -> list[str]:
    if given is None:
        return default
    if len(given) != count:
        raise ShapeError(f"{what} must hold one name for each of {count}, got {len(given)}")
    return [str(name) for name in given]


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
