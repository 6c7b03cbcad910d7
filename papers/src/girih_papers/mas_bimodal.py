"""MAS, Figs. 7 and 15: how much a GAN must stretch and squeeze to make two Gaussians of one."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from girih.geometry import entropy, enumerate_cells, folded_entropy, log_volume
from girih.networks import mlp, trace
from girih.plots import BLUE, GREY, VERMILLION, log_scale, new_figure, styled
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.jobs import Result, run_jobs, weights_of, with_weights
from girih_papers.mas_toys import sliced_distance, spread, train_toy
from girih_papers.settings import arguments

# Half the distance between the modes, which lie at (-1, 0) and (1, 0).
_CENTRE = 1.0


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        deviations: of both Gaussians; those of Fig. 15.
        runs: random starts for each.
        width: of both hidden layers of the generator.
        rows: of data.
        draws: behind the entropy that takes folds into account.
        epochs: of training, batches of 100.
        lr: Adam's step size.
    """

    deviations: tuple[float, ...] = (0.002, 0.01, 0.05, 0.1, 0.3, 1.0, 2.0)
    runs: int = 4
    width: int = 32
    rows: int = 2000
    draws: int = 2000
    epochs: int = 250
    lr: float = 1e-3


SETTINGS = Settings()
QUICK = Settings(deviations=(0.05, 1.0), runs=1, width=6, rows=64, draws=20, epochs=3)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    jobs = [
        arguments(trained_on_two_modes, settings, deviation=deviation, seed=seed + i)
        for deviation in settings.deviations
        for i in range(settings.runs)
    ]
    results = run_jobs(trained_on_two_modes, jobs, out, "mas-bimodal", quick, progress)
    numbers = (
        "entropy",
        "folded_entropy",
        "mean_log_volume",
        "spread_of_log_volumes",
        "largest_singular_value",
        "between_the_modes",
        "distance_to_data",
        "distance_of_other_data",
        "cells",
        "degenerate_mass",
    )
    runs = [
        {"deviation": job["deviation"], "seed": job["seed"]}
        | {name: float(result[name]) for name in numbers}
        | {"product_of_layer_norms": layer_norms(result)}
        | stretches(
            with_weights(mlp([2, settings.width, settings.width, 2], seed=0), result), float(job["deviation"]), seed
        )
        for job, result in zip(jobs, results, strict=True)
    ]
    columns = (*numbers, "product_of_layer_norms", "stretch_far_from_the_modes", "stretch_at_the_modes")
    table = {}
    for deviation in settings.deviations:
        mine = [one for one in runs if one["deviation"] == deviation]
        table[f"{deviation:g}"] = {"entropy_of_the_truth": mixture_entropy(deviation)} | {
            name: spread([float(one[name]) for one in mine if np.isfinite(one[name])]) for name in columns
        }
    initial = [mlp([2, settings.width, settings.width, 2], seed=seed + i) for i in range(settings.runs)]
    return {
        "deviations": table,
        "product_of_layer_norms_before_training": spread([layer_norms(weights_of(net)) for net in initial]),
        "settings": {
            "data": f"{settings.rows} points of two Gaussians at (-1, 0) and (1, 0), equally likely",
            "generator": [2, settings.width, settings.width, 2],
            "prior": "N(0, I), entropy 2.838 nats",
            "training": "non-saturating GAN, discriminator 2-64-64-1, Adam, batches of 100",
            "epochs": settings.epochs,
            "lr": settings.lr,
            "draws_of_the_folded_entropy": settings.draws,
            "seeds": [seed + i for i in range(settings.runs)],
        },
        "runs": runs,
        "figures": [
            save(_draw_volumes(results, settings), out / "log-volumes.png"),
            save(_draw_entropies(runs, settings), out / "entropies.png"),
        ],
    }


def trained_on_two_modes(
    deviation: float,
    seed: int,
    width: int,
    rows: int,
    draws: int,
    epochs: int,
    lr: float,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: a GAN on two Gaussians, and the volumes, singular values and entropy of all of its cells."""
    X, net = two_modes(deviation, rows, seed), mlp([2, width, width, 2], seed=seed)
    start = time.perf_counter()
    train_toy(net, X, epochs, lr, seed, checkpoint)
    seconds = time.perf_counter() - start
    cells = enumerate_cells(net)
    volume, exact = log_volume(cells), entropy(cells)
    assert cells.partition is not None
    folded, error = folded_entropy(cells.partition, draws, seed=seed)
    z = torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        drawn = to_array(net(z))
    values, mass = to_array(volume.values), to_array(cells.mass)
    solid = np.isfinite(values)
    mean = float(np.average(values[solid], weights=mass[solid]))
    return {
        **weights_of(net),
        "log_volumes": values,
        "mass": mass,
        "data": X,
        "drawn": drawn,
        "entropy": exact.value,
        "degenerate_mass": exact.degenerate_mass,
        "folded_entropy": folded,
        "folded_entropy_error": error,
        "mean_log_volume": mean,
        "spread_of_log_volumes": math.sqrt(float(np.average((values[solid] - mean) ** 2, weights=mass[solid]))),
        "largest_singular_value": float(cells.singular_values[:, 0].max()),
        "between_the_modes": float(between(drawn, deviation).mean()),
        "distance_to_data": sliced_distance(drawn, X),
        "distance_of_other_data": sliced_distance(two_modes(deviation, rows, seed + 1_000_000), X),
        "cells": len(cells),
        "seconds": seconds,
    }


def layer_norms(result: Mapping[str, Any]) -> float:
    """The product of the spectral norms of all weight matrices, which bounds the singular values of every cell."""
    matrices = [np.asarray(value) for name, value in result.items() if name.startswith("weights.")]
    return float(np.prod([np.linalg.norm(matrix, 2) for matrix in matrices if matrix.ndim == 2]))


def two_modes(deviation: float, n: int, seed: int) -> Array:
    """Rows of two Gaussians at (-1, 0) and (1, 0), `(n, 2)`."""
    rng = np.random.default_rng(seed)
    centre = np.where(rng.random((n, 1)) < 0.5, -_CENTRE, _CENTRE) * np.array([[1.0, 0.0]])
    return np.asarray(centre + deviation * rng.standard_normal((n, 2)))


def mixture_entropy(deviation: float) -> float:
    r"""The differential entropy of the two Gaussians, nats: `h(x_0) + log(2 pi e deviation^2) / 2`.

    The second coordinate is independent of the first, whose entropy is an integral over one variable, by the
    trapezoidal rule, which converges faster than any power of the step here.

    Example:
        >>> import math
        >>> from girih_papers.mas_bimodal import mixture_entropy
        >>> apart = math.log(2) + math.log(2 * math.pi * math.e * 0.01**2)  # the modes do not overlap
        >>> abs(mixture_entropy(0.01) - apart) < 1e-12
        True
    """
    # the density is even, and this far below a mode there is nothing
    x = np.linspace(max(0.0, _CENTRE - 40.0 * deviation), _CENTRE + 40.0 * deviation, 40_001)
    modes = [np.exp(-0.5 * ((x - c) / deviation) ** 2) for c in (-_CENTRE, _CENTRE)]
    p = (modes[0] + modes[1]) / (2.0 * deviation * math.sqrt(2.0 * math.pi))
    first = -2.0 * float(np.trapezoid(p * np.log(np.where(p > 0.0, p, 1.0)), x))
    return first + 0.5 * math.log(2.0 * math.pi * math.e * deviation**2)


def between(points: Array, deviation: float) -> NDArray[np.bool_]:
    """Which points are further than five deviations from both modes, `(N,)`."""
    gap = np.minimum(*(np.hypot(points[:, 0] - c, points[:, 1]) for c in (-_CENTRE, _CENTRE)))
    return np.asarray(gap > 5.0 * deviation)


def stretches(net: nn.Module, deviation: float, seed: int, n: int = 10_000) -> dict[str, float]:
    """The mean largest singular value of the cells of prior draws far from both modes, and of those at a mode.

    NaN where there are none. Where modes are narrow and training has found them, what is far from them is the bridge.
    """
    z = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 2))
    traced = trace(net)
    with torch.no_grad():
        size = to_array(torch.linalg.matrix_norm(traced.affine(z)[0], ord=2))
        far = between(to_array(traced(z)), deviation)
    means = [float(size[part].mean()) if part.any() else math.nan for part in (far, ~far)]
    return dict(zip(("stretch_far_from_the_modes", "stretch_at_the_modes"), means, strict=True))


@styled
def _draw_volumes(results: list[Result], settings: Settings) -> Figure:
    """A column for each deviation: draws of the first run, then the log volumes of every run and the truth's mean."""
    columns, runs = len(settings.deviations), settings.runs
    figure = new_figure(max(3.4, 1.03 * columns + 0.35), 1.15 + 0.62 * runs + 0.35)
    axes = figure.subplots(runs + 1, columns, squeeze=False, height_ratios=[1.8, *[1.0] * runs])
    finite = [values[np.isfinite(values)] for values in (result["log_volumes"] for result in results)]
    prior = 1.0 + math.log(2.0 * math.pi)
    truths = [mixture_entropy(deviation) - prior for deviation in settings.deviations]
    low = min(truths + [float(np.quantile(v, 0.02)) for v in finite]) - 1.0
    high = max(truths + [float(v.max()) for v in finite]) + 1.0
    bins = np.linspace(low, high, 46)
    for j, deviation in enumerate(settings.deviations):
        mine = results[j * runs : (j + 1) * runs]
        ax, reach = axes[0, j], 1.3 + 3.0 * deviation
        ax.scatter(mine[0]["data"][:, 0], mine[0]["data"][:, 1], s=1.5, color=BLUE, lw=0, zorder=2)
        ax.scatter(mine[0]["drawn"][:, 0], mine[0]["drawn"][:, 1], s=1.0, color=VERMILLION, lw=0, alpha=0.6, zorder=1)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        ax.set_title(f"$\\sigma$ = {deviation:g}", fontsize=8.0)
        for i, result in enumerate(mine):
            ax = axes[i + 1, j]
            ax.hist(result["log_volumes"].clip(low, high), bins, weights=result["mass"], color=GREY)
            ax.axvline(float(result["mean_log_volume"]), color="black", lw=0.9)
            ax.plot([truths[j]], [0.0], marker="o", ms=4.5, color=BLUE, clip_on=False, zorder=4)
            ax.set(xlim=(low, high), yticks=[])
            if i < runs - 1:
                ax.set_xticklabels([])
    axes[0, 0].set_ylabel("draws\n(orange)", fontsize=7.5)
    for i in range(runs):
        axes[i + 1, 0].set_ylabel(f"run {i + 1}", fontsize=7.5)
    figure.supxlabel(
        r"$\log\sqrt{\det A^\top\!A}$ over the prior (nats)"
        + "\nline: mean, blue: entropy of the data minus that of z",
        fontsize=8.0,
    )
    return figure


@styled
def _draw_entropies(runs: list[dict[str, Any]], settings: Settings) -> Figure:
    """Entropy of the generator against that of the data, and the largest singular values."""
    figure = new_figure(7.0, 2.9)
    left, right = figure.subplots(1, 2)
    truth = np.array([mixture_entropy(one["deviation"]) for one in runs])
    corollary, folded = (np.array([one[name] for one in runs]) for name in ("entropy", "folded_entropy"))
    ends = np.array([truth.min() - 0.5, truth.max() + 0.5])
    left.plot(ends, ends, color=BLUE, lw=0.9, label="equal")
    left.plot(truth, corollary, "o", ms=3.5, color=VERMILLION, label="Corollary 1 (all cells)")
    left.plot(truth, folded, "^", ms=3.5, color="black", mfc="none", label="with folds")
    left.set(xlabel="entropy of the data (nats)", ylabel="entropy of the generator (nats)")
    left.legend()
    deviations = [one["deviation"] for one in runs]
    right.plot(
        deviations, [one["largest_singular_value"] for one in runs], "o", ms=3.5, color=VERMILLION, label="of a cell"
    )
    layers = [one["product_of_layer_norms"] for one in runs]
    right.plot(deviations, layers, "^", ms=3.5, color="black", mfc="none", label="bound by the layers' weights")
    right.set_xscale("log")
    log_scale(right, "y")
    right.set(xlabel=r"deviation $\sigma$ of each mode (log scale)", ylabel="largest singular value (log scale)")
    right.legend()
    return figure
