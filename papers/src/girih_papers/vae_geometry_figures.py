"""The pictures of `vae-geometry`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from girih.plots import BLACK, CYCLE, GREY, ORANGE, VERMILLION, latent_colours, new_figure, styled
from girih_papers.arrays import Array

# Differences below this are rounding.
_ZERO = 1e-9


class Geometry(NamedTuple):
    """What a panel shows, in the coordinates mean and deviation of z."""

    means: Array  # (k,) of posteriors
    deviations: Array  # (k,)
    points: Array  # (k,) the maximum-likelihood z of the same rows
    lengths: Array  # (k,) KL(q_k : centroid)
    centroid: tuple[float, ...]
    prior: tuple[float, ...]
    to_centroid: float  # means over all rows, nats
    to_points: float


@styled
def geometry_figure(pictures: Sequence[tuple[str, Geometry, Geometry]]) -> Figure:
    """A line of panels for each model, before and after training."""
    figure = new_figure(7.0, 2.05 * len(pictures) + 0.6)
    axes = figure.subplots(len(pictures), 2, squeeze=False)
    seen = np.concatenate([state.lengths for _, *states in pictures for state in states])
    norm = LogNorm(max(seen.min(), 1e-2), seen.max(), clip=True)
    for line, (model, *states) in zip(axes, pictures, strict=True):
        for ax, state, when in zip(line, states, ("before", "after"), strict=True):
            _panel(ax, state, norm)
            lengths = f"{state.to_centroid:.2f} nats to the centroid, {state.to_points:.2f} to maximum likelihood"
            ax.set_title(f"{model}, {when} training\n{lengths}", fontsize=7.0)
        line[0].set_ylabel("deviation of z (log scale)")
    for ax in axes[-1]:
        ax.set_xlabel("mean of z")
    colours = ScalarMappable(norm, latent_colours())
    bar = figure.colorbar(
        colours, ax=axes, shrink=0.6, aspect=30, pad=0.02, format=FuncFormatter(lambda v, _: f"{v:g}")
    )
    bar.set_label("KL(q : centroid) (nats)")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)
    marks = [
        Line2D([], [], ls="", marker="o", ms=4.0, color=GREY, label="posteriors"),
        Line2D([], [], ls="", marker="*", ms=9.0, color=VERMILLION, label="centroid"),
        Line2D([], [], ls="", marker="D", ms=5.5, mfc="none", mec=BLACK, label="prior"),
        Line2D([], [], ls="", marker="^", ms=4.0, color=ORANGE, label="maximum likelihood (deviation 0)"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    return figure


def _panel(ax: Axes, state: Geometry, norm: Normalize) -> None:
    """Strings to the centroid, which are straight in the moments, and down to the boundary."""
    colours = latent_colours()
    centre = np.array([state.centroid[0], state.centroid[0] ** 2 + state.centroid[1] ** 2])
    share, high = np.linspace(0.0, 1.0, 60)[:, None], max(state.prior[1], state.centroid[1])
    for mean, deviation, length in zip(state.means, state.deviations, state.lengths, strict=True):
        moments = (1.0 - share) * np.array([mean, mean**2 + deviation**2]) + share * centre
        across = np.sqrt(np.maximum(moments[:, 1] - moments[:, 0] ** 2, 0.0))
        high = max(high, across.max())
        ax.plot(moments[:, 0], across, color=colours(norm(length)), lw=0.8, zorder=1)
    low = min(state.deviations.min(), state.prior[1], state.centroid[1])
    floor = low / 2.5
    for mean, deviation, point in zip(state.means, state.deviations, state.points, strict=True):
        ax.plot([mean, point], [deviation, floor], color=ORANGE, lw=0.5, ls=(0, (1, 1.2)), zorder=0)
    ax.scatter(state.means, state.deviations, s=11.0, c=colours(norm(state.lengths)), lw=0, zorder=2)
    ax.plot(state.points, np.full_like(state.points, floor), "^", ms=4.0, color=ORANGE, mew=0, clip_on=False, zorder=3)
    ax.plot(*state.centroid, "*", ms=9.0, color=VERMILLION, mew=0, zorder=4)
    ax.plot(*state.prior, "D", ms=5.5, mfc="none", mec=BLACK, zorder=5)
    ax.set_yscale("log")
    ax.set_ylim(floor, 1.4 * high)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


@styled
def curves_figure(curves: Mapping[str, Mapping[str, Array]], rows: int) -> Figure:
    """Term 1 while the models train, and by how much other priors would lower it."""
    figure = new_figure(7.0, 2.5)
    axes = figure.subplots(1, 3)
    titles = (
        "term 1",
        "saved by the best prior of the\nfamily (term 1 less eq. 5; log scale)",
        "saved further by any prior\n(eq. 5 less eq. 6; log scale)",
    )
    for (model, curve), style in zip(curves.items(), CYCLE, strict=False):
        parts = (curve["term_1"], curve["term_1"] - curve["bound_5"], curve["bound_5"] - curve["bound_6"])
        for ax, part in zip(axes, parts, strict=True):
            shown = np.where(part > _ZERO, part, np.nan)  # 0 up to rounding where the prior is the best one
            ax.plot(curve["step"], shown, label=model, markevery=4, ms=3.0, **style)
    axes[0].axhline(np.log(rows), color=GREY, lw=0.7, zorder=0, label=f"log n, n = {rows}")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=8.0)
        ax.set_xlabel("step")
    for ax in axes[1:]:
        ax.set_yscale("log")
    axes[0].set_ylabel("nats per row")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
