"""The maps of the cells: their columns and how alike these are, their spectrum, and the layers that bound it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.geometry import Cells, CellValues, mean_overlap
from girih.geometry.dimension import nonzero
from girih.plots.histograms import cell_weights, named, weighted_quantiles
from girih.plots.numbers import Array, label_columns, to_array
from girih.plots.style import (
    BLACK,
    BLUE,
    COLUMN,
    CYCLE,
    GREY,
    LIGHT,
    PALE,
    colour_bar,
    legend_below,
    log_scale,
    new_axes,
    new_figure,
    styled,
)

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
