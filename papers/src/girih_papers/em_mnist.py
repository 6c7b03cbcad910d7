"""EM-DGN, Figs. 10 and 11 of the appendix and Fig. 7 of the second version: the digit 4 from one latent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from girih.datasets import load
from girih.plots import new_figure, styled
from girih_papers.arrays import Array, generate, quantiles, to_array
from girih_papers.comparison import (
    Budget,
    by_label,
    curves,
    describe_runs,
    headline,
    methods,
    races,
    run_all,
    spread,
    summarise,
)
from girih_papers.figures import BEYOND, draw_images, kl_figure, nll_figure, pixel_key, save
from girih_papers.files import write_json
from girih_papers.jobs import workers_for
from girih_papers.methods import Outcome, Task

_HIDDEN = (8, 16)
# All methods start from this noise variance: EM and VAEs end lower from 1 than from 0.1.
_NOISE = 1.0
_TRAIN, _SEEDS, _BATCH = 400, 3, 100
# The best of rates 0.002 to 0.01, encoders of (32, 32) to (128, 64) units and 1 to 8 draws of z.
_TUNED_OPTIONS = {"lr": 0.01, "hidden": (128, 64)}
# The deviation of the prior on the weights: of 0.1, 0.3 and 1 the one with the lowest NLL.
_WEIGHT_SCALE = 1.0
_BESIDE: dict[str, Any] = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 7.0}
_BUDGET = Budget(em_iterations=300, em_tol=1e-4, vae_steps=(30_000, 15_000, 15_000, 24_000), record_every=200)


def run(out: Path, quick: bool, seed: int, progress: bool) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    budget = _BUDGET.quick() if quick else _BUDGET
    dataset = load("mnist-4")
    order = np.random.default_rng(seed).permutation(len(dataset))
    train, held_out = dataset.X[order[:_TRAIN]], dataset.X[order[_TRAIN:]]
    if quick:
        train, held_out = train[:60], held_out[:20]
    sizes, seeds = (1, *_HIDDEN, train.shape[1]), [seed + i for i in range(1 if quick else _SEEDS)]
    chosen = methods(budget, _TUNED_OPTIONS, _WEIGHT_SCALE, _BATCH)
    tasks = [Task(method, train, held_out, sizes, i, _NOISE) for method in chosen for i in seeds]
    outcomes = run_all(tasks, out, "em-mnist", quick, progress)

    best = [min(runs, key=lambda run: run.nll) for runs in by_label(outcomes).values()]
    shape = dataset.image_shape or (28, 28)
    figures = [
        save(nll_figure(outcomes, {}), out / "nll.png"),
        save(kl_figure(outcomes), out / "kl.png"),
        save(_strips(best, shape), out / "manifolds.png"),
        save(_samples(best, train, shape, seed), out / "samples.png"),
    ]
    write_json(out / "curves.json", curves(outcomes))
    result: dict[str, Any] = headline(outcomes)
    result["settings"] = {
        "data": dataset.description,
        "rows": len(train),
        "held_out_rows": len(held_out),
        "generator": list(sizes),
        "initial_noise_variance": _NOISE,
        "seeds": seeds,
        "methods": {method.label: dict(method.options) for method in chosen},
        "processes": workers_for(quick),
        "threads_per_process": 1,
    }
    result["methods"] = summarise(outcomes)
    for label, runs in by_label(outcomes).items():
        result["methods"][label]["share_far_out"] = spread([_share_far_out(run) for run in runs])
    result["races"] = races(outcomes)
    result["runs"] = describe_runs(outcomes)
    result["figures"] = figures
    return result


def _share_far_out(run: Outcome, count: int = 2000) -> float:
    """The share of the prior whose image has a pixel far outside [0, 1]: latents that no digit uses."""
    images = generate(run.dgn, quantiles(run.dgn, (np.arange(count) + 0.5) / count))
    return float(((images < -BEYOND) | (images > 1.0 + BEYOND)).any(1).mean())


@styled
def _strips(runs: Sequence[Outcome], shape: tuple[int, ...], count: int = 14) -> Figure:
    """g(z) at evenly spaced prior quantiles, a line for each run."""
    figure = new_figure(7.2, 0.62 * len(runs) + 0.25)
    axes = figure.subplots(len(runs), 1)
    for ax, run in zip(axes, runs, strict=True):
        z = quantiles(run.dgn, (np.arange(count) + 0.5) / count)
        draw_images(ax, generate(run.dgn, z), shape)
        ax.set_ylabel(_name(run), **_BESIDE)
    axes[0].set_title("g(z) at evenly spaced prior quantiles of z, left to right", fontsize=8.0)
    pixel_key(figure)
    return figure


@styled
def _samples(runs: Sequence[Outcome], rows: Array, shape: tuple[int, ...], seed: int, count: int = 8) -> Figure:
    """Samples without and with noise, the same latents for all runs, and rows of the data."""
    figure = new_figure(7.2, 0.55 * (len(runs) + 1) + 0.25)
    axes = figure.subplots(len(runs) + 1, 2)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, dtype=torch.float64, generator=generator).numpy()
    e = torch.randn(count, rows.shape[1], dtype=torch.float64, generator=generator).numpy()
    for line, run in zip(axes, runs, strict=False):
        clean = generate(run.dgn, z)
        draw_images(line[0], clean, shape)
        draw_images(line[1], clean + float(to_array(run.dgn.noise)) ** 0.5 * e, shape)
        line[0].set_ylabel(_name(run), **_BESIDE)
    for ax, part in zip(axes[-1], (rows[:count], rows[count : 2 * count]), strict=True):
        draw_images(ax, part, shape)
    axes[-1, 0].set_ylabel("data", **_BESIDE)
    for ax, title in zip(axes[0], ("g(z)", "g(z) + e"), strict=True):
        ax.set_title(title)
    pixel_key(figure)
    return figure


def _name(run: Outcome) -> str:
    text = f"{run.label.replace(', ', ',' + chr(10))}\nNLL {run.nll:.0f}"
    return text.replace("-", "\N{MINUS SIGN}")
