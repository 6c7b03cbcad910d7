"""The pictures of `vae-gap`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from girih.plots import BLACK, CYCLE, GREY, log_scale, new_figure, styled
from girih_papers.jobs import Result

_LEAST = 1e-4  # nats; what is below is drawn there, on logarithmic axes
Grouped = Mapping[str, Mapping[str, list[Result]]]


@styled
def curves_figure(grouped: Grouped) -> Figure:
    """NLL and bound, and the two gaps, of each family against training steps; a row of panels for each data set."""
    figure = new_figure(7.2, 0.7 + 2.0 * len(grouped))
    axes = figure.subplots(len(grouped), 3, squeeze=False, sharex=True)
    for line, (data, families) in zip(axes, grouped.items(), strict=True):
        for style, (family, runs) in zip(CYCLE, families.items(), strict=False):
            step = runs[0]["step"]
            colour = style["color"]
            start = 1 if len(step) > 2 else 0  # the networks before training would hide all else
            for ax, names in zip(line, (("nll", "bound"), ("approximation",), ("amortisation",)), strict=True):
                for name in names:
                    values = np.stack([run[name] for run in runs])
                    if ax is not line[0]:
                        values = values.clip(min=_LEAST)
                    dashed = name == "bound"
                    ax.plot(
                        step[start:],
                        np.median(values, 0)[start:],
                        color=colour,
                        ls="--" if dashed else "-",
                        marker=style["marker"],
                        ms=2.6,
                        lw=1.0,
                        label=f"{family}, {'bound' if dashed else 'NLL'}" if ax is axes[0, 0] else None,
                    )
                    ax.fill_between(
                        step[start:], values.min(0)[start:], values.max(0)[start:], color=colour, alpha=0.12, lw=0
                    )
        log_scale(line[1], "y")
        log_scale(line[2], "y")
        line[0].set_ylabel(f"{data}\nnats per row")
    for ax, title in zip(
        axes[0], ("exact NLL and bound", "approximation gap (log scale)", "amortisation gap (log scale)"), strict=True
    ):
        ax.set_title(title)
    for ax in axes[-1]:
        ax.set_xlabel("training steps")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def bars_figure(grouped: Grouped) -> Figure:
    """At the end: the approximation and the amortisation gap of each run on each data set."""
    figure = new_figure(7.2, 2.6)
    axes = figure.subplots(1, len(grouped), squeeze=False, sharey=True)[0]
    highest = _LEAST
    for ax, (data, families) in zip(axes, grouped.items(), strict=True):
        for place, (style, (_, runs)) in enumerate(zip(CYCLE, families.items(), strict=False)):
            for side, name in ((-0.2, "approximation"), (0.2, "amortisation")):
                values = np.array([float(run[name][-1]) for run in runs]).clip(min=_LEAST)
                highest = max(highest, float(values.max()))
                filled = name == "approximation"
                ax.bar(
                    place + side,
                    np.median(values),
                    0.36,
                    color=style["color"] if filled else "white",
                    edgecolor=style["color"],
                    hatch=None if filled else "////",
                    lw=0.8,
                )
                ax.plot(
                    [place + side] * len(values), values, ls="", marker="o", ms=2.6, mfc="white", mec=BLACK, mew=0.6
                )
        ax.set_xticks(range(len(families)), [family.replace(" of", "\nof") for family in families])
        ax.set(title=data, yscale="log")
    axes[0].set(ylabel="gap (nats per row, log scale)", ylim=(0.5 * _LEAST, 2.0 * highest))
    figure.legend(
        handles=[
            figure.axes[0].bar([0], [np.nan], color=GREY, label="approximation gap: the family"),
            figure.axes[0].bar(
                [0], [np.nan], color="white", edgecolor=GREY, hatch="////", label="amortisation gap: the encoder"
            ),
        ],
        loc="outside lower center",
        ncols=2,
    )
    return figure


@styled
def posteriors_figure(panels: Mapping[str, Mapping[str, np.ndarray]], row: int) -> Figure:
    """For one row: the exact posterior of each trained VAE, the best q of its family and the encoder's."""
    figure = new_figure(7.2, 2.3)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (style, (family, lines)) in zip(axes, zip(CYCLE, panels.items(), strict=False), strict=True):
        z, first = lines["z"], ax is axes[0]
        ax.fill_between(z, lines["exact"], color=GREY, alpha=0.4, lw=0, label="exact posterior" if first else None)
        ax.plot(z, lines["best"], color=BLACK, lw=1.0, label="best of the family" if first else None)
        ax.plot(z, lines["encoder"], color=style["color"], ls="--", lw=1.2)
        top = max(float(lines["exact"].max()), float(lines["best"].max()))
        seen = (lines["exact"] > 1e-3 * top) | (lines["best"] > 1e-3 * top) | (lines["encoder"] > 1e-2 * top)
        low, high = z[seen].min(), z[seen].max()
        room = 0.08 * (high - low) + 1e-3
        ax.set(title=family, xlabel="z", xlim=(low - room, high + room), ylim=(0.0, 1.25 * top))
    axes[0].set_ylabel(f"density, row {row}")
    axes[0].plot([], [], color=GREY, ls="--", lw=1.2, label="encoder's q (in colour)")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
