"""Pictures of the VAEs of the CG-BPEF paper: their free energies, how they were trained, and their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from girih.plots import BLACK, CYCLE, GREY, LIGHT, new_figure, styled
from girih_papers.cgbpef_fits import MODELS
from girih_papers.figures import draw_images as draw_sheet
from girih_papers.jobs import Result

Cell = tuple[int, str, float]  # L, model, T
Chosen = Mapping[Cell, Sequence[Result]]


def label(cell: Cell) -> str:
    """A cell of the table in words, without L."""
    _, model, temperature = cell
    return f"{model}, T = {temperature:g}" if temperature else model


@styled
def draw_free_energies(chosen: Chosen, paper: Mapping[Cell, tuple[float, float]]) -> Figure:
    """Free energies and importance-sampled NLL of every run on its test rows, and the paper's free energy."""
    draws = sorted({cell[0] for cell in chosen})
    most = max(sum(cell[0] == count for cell in chosen) for count in draws)
    figure = new_figure(2.2 + 2.6 * len(draws), 1.7 + 0.32 * most)
    for ax, count in zip(np.atleast_1d(figure.subplots(1, len(draws))), draws, strict=True):
        cells = [cell for cell in chosen if cell[0] == count]
        shown = [float(one.get("free_energy_hard", one["free_energy"])) for cell in cells for one in chosen[cell]]
        end = max(shown) + 5.0
        for place, cell in enumerate(cells):
            _draw_runs(ax, place, CYCLE[MODELS.index(cell[1])]["color"], chosen[cell], end)
            if cell in paper:
                ax.plot(paper[cell][1], place, ls="", marker="|", ms=11.0, mew=1.3, color=GREY)
        ax.set_yticks(range(len(cells)), [label(cell) for cell in cells])
        ax.set_ylim(len(cells) - 0.5, -0.5)
        ax.set_xlim(right=end)
        ax.set(title=f"L = {count}", xlabel="nats per image, lower is better")
        ax.grid(axis="x", lw=0.3, color=LIGHT)
    handles = [ax.plot([], [], ls="", color=BLACK, label=text, **mark)[0] for text, mark, _ in _MARKS.values()] + [
        ax.plot([], [], ls="", marker="|", ms=11.0, mew=1.3, color=GREY, label="free energy in the paper")[0]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=1)
    return figure


# Of each number its text, its mark and its place above or below the middle of the line.
_MARKS: dict[str, tuple[str, dict[str, Any], float]] = {
    "free_energy": ("free energy of the test rows, one mark for each run", {"marker": "o", "ms": 4.5}, -0.18),
    "free_energy_hard": ("bound for hard codes: both terms of categories", {"marker": "x", "ms": 4.5}, -0.18),
    "free_energy_relaxed": ("bound at the temperature of training: both terms at T", {"marker": "+", "ms": 5.5}, 0.0),
    "nll": ("importance-sampled NLL", {"marker": "o", "ms": 4.5, "mfc": "none"}, 0.18),
}


def _draw_runs(ax: Axes, place: int, colour: str, results: Sequence[Result], end: float) -> None:
    """The marks of one model; of those beyond the end, which a bound at T can be by far, the mean is written there."""
    for name, (_, mark, offset) in _MARKS.items():
        if name not in results[0]:
            continue
        values = np.array([float(result[name]) for result in results])
        inside = values[values <= end]
        ax.plot(inside, np.full(len(inside), place + offset), ls="", color=colour, alpha=0.85, **mark)
        if len(inside) < len(values):
            text = f"{mark['marker']} at {values[values > end].mean():.0f} →"
            ax.annotate(text, (end, place + 0.22), ha="right", va="center", fontsize=6.5, color=colour)


@styled
def draw_curves(chosen: Chosen) -> Figure:
    """The free energy of the validation rows in training, one line for each run; marks where it was lowest."""
    draws = sorted({cell[0] for cell in chosen})
    figure = new_figure(1.0 + 3.0 * len(draws), 3.0)
    panels = np.atleast_1d(figure.subplots(1, len(draws), sharey=True))
    for ax, count in zip(panels, draws, strict=True):
        cells = [cell for cell in chosen if cell[0] == count]
        lows = []
        for cell, style in zip(cells, CYCLE, strict=False):
            for i, result in enumerate(chosen[cell]):
                step, curve = result["curve_step"], result["curve"]
                name = label(cell) if i == 0 else None
                ax.plot(step, curve, color=style["color"], ls=style["linestyle"], lw=0.9, label=name)
                at = int(np.argmin(curve))
                ax.plot(step[at], curve[at], ls="", marker=style["marker"], ms=4.0, mec="white", color=style["color"])
                lows.append(float(curve[at]))
        low, high = min(lows), max(lows)
        ax.set_ylim(low - 0.1 * (high - low) - 1.0, high + max(40.0, high - low))
        ax.set(title=f"L = {count}", xlabel="gradient step")
    panels[0].set_ylabel("free energy of the validation rows\n(nats per image)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def draw_images(chosen: Chosen) -> Figure:
    """Test rows, their reconstructions, and draws from the prior: the first run of each model, with the largest L."""
    most = max(cell[0] for cell in chosen)
    cells = [cell for cell in chosen if cell[0] == most]
    first = chosen[cells[0]][0]
    side = round(first["rows"].shape[1] ** 0.5)
    figure = new_figure(6.6, 0.46 * (1 + len(cells)) + 0.35)
    axes = figure.subplots(1 + len(cells), 2, squeeze=False)
    _sheet(axes[0, 0], first["rows"], side, "test rows")
    axes[0, 0].set_title("test rows and reconstructions")
    axes[0, 1].set_axis_off()
    axes[1, 1].set_title("samples: E[x | z], z from the prior")
    for pair, cell in zip(axes[1:], cells, strict=True):
        result = chosen[cell][0]
        _sheet(pair[0], result["reconstructions"], side, label(cell).replace(", ", "\n"))
        _sheet(pair[1], result["samples"], side, "")
    return figure


def _sheet(ax: Axes, images: np.ndarray, side: int, name: str) -> None:
    draw_sheet(ax, images, (side, side))
    ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7.0)
