"""Figures of `girih_papers.density_race`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from girih.plots import BLUE, GREY, LIGHT, VERMILLION, new_figure, styled
from girih_papers.arrays import Array
from girih_papers.figures import draw_images, pixel_key
from girih_papers.rivals import Fitted


@styled
def nll_dots(table: Mapping[str, Mapping[str, Any]], entropy: float | None = None) -> Figure:
    """Exact NLL of every method, in training and held out, the lowest held out on top."""
    names = sorted(table, key=lambda label: -table[label]["held_out_nll"])
    figure = new_figure(5.4, 0.26 * len(names) + 0.9)
    ax = figure.add_subplot()
    known = np.array([row["nll"] for row in table.values()])
    end = float(known.max() + 0.5 * np.ptp(known))  # what lies beyond is named, not drawn to scale
    for i, name in enumerate(names):
        train, fresh = table[name]["nll"], table[name]["held_out_nll"]
        ax.plot([train, min(fresh, end)], [i, i], color=LIGHT, lw=2.0, zorder=1)
        ax.plot(train, i, "o", color=BLUE, ms=4.5, label="training" if not i else None)
        ax.plot(min(fresh, end), i, "D" if fresh <= end else ">", color=VERMILLION, ms=4.5)
        if fresh > end:
            ax.annotate(f"{fresh:,.3g}", (end, i), xytext=(6, -3), textcoords="offset points", fontsize=7.0)
    ax.plot([], [], "D", color=VERMILLION, ms=4.5, label="held out")
    if entropy is not None:
        ax.axvline(entropy, color=GREY, ls=(0, (4, 2)), lw=1.0, label="entropy of the truth")
    ax.set(yticks=range(len(names)), ylim=(-0.6, len(names) - 0.4), xlabel="exact NLL (nats per row), lower is better")
    ax.set_yticklabels([f"{name} ({table[name]['parameters']:,} parameters)" for name in names])
    ax.xaxis.set_major_locator(MaxNLocator(6))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def density_maps(results: Sequence[Fitted], rows: Array, steps: int = 121) -> Figure:
    """The densities of all models of two columns, with the same colours, and the training rows."""
    columns = 4
    lines = -(-len(results) // columns)
    figure = new_figure(7.2, 1.95 * lines)
    low, high = rows.min(0) - 0.3, rows.max(0) + 0.3
    axes = [np.linspace(low[i], high[i], steps) for i in (0, 1)]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], 1)
    maps = [np.exp(one.log_prob(grid)).reshape(steps, steps) for one in results]
    top = float(np.median([values.max() for values in maps]))
    drawn: Any = None
    for i, (one, values) in enumerate(zip(results, maps, strict=True)):
        ax = figure.add_subplot(lines, columns, i + 1)
        extent = (low[0], high[0], low[1], high[1])
        drawn = ax.imshow(values, extent=extent, origin="lower", cmap="Blues", vmin=0.0, vmax=top)
        ax.scatter(rows[:, 0], rows[:, 1], s=1.2, lw=0, color=VERMILLION)
        ax.set_title(f"{one.label.replace(', ', ',' + chr(10))}", fontsize=7.5)
        ax.set(xlabel="$x_0$" if i >= len(results) - columns else "", ylabel="$x_1$" if i % columns == 0 else "")
    bar = figure.colorbar(drawn, ax=figure.axes, shrink=0.7, extend="max")
    bar.set_label("density p(x)")
    bar.outline.set_visible(False)
    return figure


@styled
def sample_sheet(results: Sequence[Fitted], rows: Array, shape: tuple[int, ...], count: int = 12) -> Figure:
    """Draws of every model, a line each, and rows of the data below."""
    figure = new_figure(6.4, 0.47 * (len(results) + 1))
    sheets = [(one.label, one.sample(count)) for one in results] + [("data", rows[:count])]
    for ax, (label, images) in zip(figure.subplots(len(sheets), 1), sheets, strict=True):
        draw_images(ax, images, shape)
        ax.set_ylabel(label.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=6.5)
    pixel_key(figure)
    return figure
