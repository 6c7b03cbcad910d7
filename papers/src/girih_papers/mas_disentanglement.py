"""MAS, Table 1: how far from orthogonal the columns of A are in four generators, before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from girih.plots import BLUE, GREY, VERMILLION, new_figure, styled
from girih_papers.figures import save
from girih_papers.jobs import Result
from girih_papers.mas_images import MODELS, NORMS, PAPER, SMALL, Settings, describe, image_rows, trained_models
from girih_papers.mas_toys import spread
from girih_papers.printed import paper_number

SETTINGS, QUICK = PAPER, SMALL

# The caption of the table calls the first line of a pair the maximum over cells and the second the average, and does
# not say which pair is before training. Generators of one architecture have the same distribution before training,
# whatever they are trained as, and in the lower pair, only there, GAN and VAE agree: so that one is before training.


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    models = trained_models(settings, out, quick, seed, progress)
    dataset = image_rows(settings.data, settings.rows)
    table = {model: _summary(results) for model, results in models.items()}
    return {
        "norm_of_the_table": "spectral",
        "models": table,
        "settings": describe(settings, dataset, seed, [one for results in models.values() for one in results]),
        "figures": [save(_draw(table), out / "disentanglement.png")],
    }


def _summary(results: list[Result]) -> dict[str, Any]:
    """For each norm, before and after training, the mean and deviation over runs of the maximum and the average."""
    return {
        norm: {
            f"{when} {which}": spread([float(result[when][i, j]) for result in results])
            for when in ("before", "after")
            for j, which in enumerate(("max", "mean"))
        }
        for i, norm in enumerate(NORMS)
    }


@styled
def _draw(table: dict[str, Any]) -> Figure:
    """Maximum and average of the spectral norm, ours and the printed ones as we read them."""
    figure = new_figure(7.0, 2.8)
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(MODELS), dtype=float)
    for ax, which, title in zip(axes, ("max", "mean"), ("largest over cells", "average over cells"), strict=True):
        for when, colour, shift in (("before", GREY, -0.2), ("after", VERMILLION, 0.12)):
            found = [table[model]["spectral"][f"{when} {which}"] for model in MODELS]
            height = [one["mean"] for one in found]
            error = np.nan_to_num([one["deviation"] for one in found])
            ax.errorbar(places + shift, height, error, fmt="o", ms=4.0, lw=1.0, color=colour, label=f"{when} training")
            printed = [paper_number("mas-disentanglement", f"{model}, {when} {which}") for model in MODELS]
            ax.plot(
                places + shift + 0.12,
                printed,
                "_",
                ms=9.0,
                mew=1.4,
                color=BLUE,
                label="printed" if when == "after" else None,
            )
        ax.set_xticks(places, [model.replace(" ", "\n") for model in MODELS])
        ax.set(title=title, xlim=(-0.5, len(MODELS) - 0.5), ylim=(0.0, None))
    axes[0].set_ylabel(r"$\|Q - I\|_2$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
