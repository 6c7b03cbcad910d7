"""MAS, Fig. 3: a generator with dropout, trained as a GAN on a circle, is an ensemble of generators."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from girih.datasets import load
from girih.geometry import dropout_dimensions, noisy_generator
from girih.networks import mlp
from girih.partition import Partition
from girih.plots import new_figure, styled
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.jobs import run_jobs, weights_of, with_weights
from girih_papers.mas_toys import curve, sliced_distance, spread, train_toy
from girih_papers.settings import arguments

# Without dropout in the discriminator, too, these generators cover only a part of the circle.
_DISCRIMINATOR_DROPOUT = 0.2


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        rates: shares of units that are dropped.
        width: of both hidden layers.
        realisations: of the dropout, drawn.
        measured: realisations behind the numbers.
        rows: points on the circle.
        noise: their standard deviation around it.
        epochs: of training, batches of 100.
        lr: Adam's step size.
    """

    rates: tuple[float, ...] = (0.0, 0.1, 0.3)
    width: int = 64
    realisations: int = 8
    measured: int = 100
    rows: int = 1000
    noise: float = 0.05
    epochs: int = 600
    lr: float = 1e-3


SETTINGS = Settings()
QUICK = Settings(rates=(0.0, 0.2), width=8, realisations=2, measured=3, rows=64, epochs=3)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    jobs = [arguments(trained_with_dropout, settings, rate=rate, seed=seed) for rate in settings.rates]
    results = run_jobs(trained_with_dropout, jobs, out, "mas-dropout-circle", quick, progress)
    rows = load("circle", n=settings.rows, seed=seed, noise=settings.noise).X
    panels, table = [], {}
    for rate, result in zip(settings.rates, results, strict=True):
        net = with_weights(_net(settings.width, rate, 0), result)
        assert isinstance(net, nn.Sequential)
        table[f"{rate:g}"] = _measure(net, rate, rows, settings, seed)
        table[f"{rate:g}"]["seconds"] = float(result["seconds"])
        count = settings.realisations if rate else 1
        panels.append([curve(Partition(realisation(net, rate, seed + i), progress=False))[0] for i in range(count)])
    return {
        "rates": table,
        "settings": {
            "data": f"{settings.rows} points on a circle of radius 1, noise of deviation {settings.noise:g}",
            "generator": [1, settings.width, settings.width, 2],
            "training": "non-saturating GAN, discriminator 2-64-64-1 with dropout 0.2, Adam, batches of 100",
            "realisations_measured": settings.measured,
            "epochs": settings.epochs,
            "lr": settings.lr,
            "seeds": [seed],
        },
        "figures": [save(_draw(panels, rows, settings), out / "realisations.png")],
    }


def trained_with_dropout(
    rate: float,
    width: int,
    seed: int,
    rows: int,
    noise: float,
    epochs: int,
    lr: float,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: the weights of a GAN whose generator has dropout."""
    import time

    net, X = _net(width, rate, seed), load("circle", n=rows, seed=seed, noise=noise).X
    start = time.perf_counter()
    train_toy(net, X, epochs, lr, seed, checkpoint, dropout=_DISCRIMINATOR_DROPOUT)
    return {**weights_of(net), "seconds": time.perf_counter() - start}


def realisation(net: nn.Sequential, rate: float, seed: int) -> nn.Sequential:
    """One generator of the ensemble that a chain with dropout layers is in training mode."""
    return noisy_generator(without_factor(net), rate, seed=seed)


def without_factor(net: nn.Sequential) -> nn.Sequential:
    """The chain without its dropout layers, whose factor `1 / (1 - p)` for kept units goes to the next weights."""
    layers: list[nn.Module] = []
    factor = 1.0
    for layer in net:
        if isinstance(layer, nn.Dropout):
            factor /= 1.0 - layer.p
            continue
        layer = copy.deepcopy(layer)
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.mul_(factor)
            factor = 1.0
        layers.append(layer)
    return nn.Sequential(*layers)


def _measure(net: nn.Sequential, rate: float, rows: Array, settings: Settings, seed: int) -> dict[str, Any]:
    """How far realisations are from each other, and the mixture, each of them and the mean network from the data."""
    n = len(rows)
    z = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        drawn = np.stack([to_array(realisation(net, rate, seed + i)(z)) for i in range(settings.measured)])
        mean_network = to_array(net(z))
    every = np.arange(n) % settings.measured
    other = load("circle", n=n, seed=seed + 1_000_000, noise=settings.noise).X
    dims = dropout_dimensions(without_factor(net), rate, settings.measured, seed=seed, progress=False)
    return {
        "spread_of_realisations": float(np.sqrt(drawn.var(0).sum(-1).mean())),
        "distance_to_data": {
            "the ensemble": sliced_distance(drawn[every, np.arange(n)], rows),
            "one realisation": spread([sliced_distance(one, rows) for one in drawn]),
            "without dropout (eval mode)": sliced_distance(mean_network, rows),
            "other rows of the same circle": sliced_distance(other, rows),
        },
        "prior_mass_by_dimension": to_array(dims.frequencies).tolist(),
    }


def _net(width: int, rate: float, seed: int) -> nn.Sequential:
    """A chain with dropout after each hidden activation, from the initial weights of `girih.mlp`."""
    layers: list[nn.Module] = []
    for layer in mlp([1, width, width, 2], seed=seed):
        layers += [layer] if isinstance(layer, nn.Linear) or not rate else [layer, nn.Dropout(rate)]
    return nn.Sequential(*layers)


@styled
def _draw(panels: list[list[Array]], rows: Array, settings: Settings) -> Figure:
    figure = new_figure(2.35 * len(panels) + 0.1, 2.85)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    most = max(len(curves) for curves in panels)
    colours = [matplotlib.colormaps["turbo"](0.04 + 0.9 * i / max(1, most - 1)) for i in range(most)]
    for ax, curves, rate in zip(axes, panels, settings.rates, strict=True):
        ax.scatter(rows[:, 0], rows[:, 1], s=2.0, color="#9CC3E0", lw=0, zorder=1)
        for points, colour in zip(curves, colours if len(curves) > 1 else ["black"], strict=False):
            ax.plot(points[:, 0], points[:, 1], color=colour, lw=1.0, zorder=2)
        few = f"dropout {rate:g}: {len(curves)} realisations" if rate else "without dropout"
        ax.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal", title=few, xlabel="$x_0$")
    axes[0].set_ylabel("$x_1$")
    return figure
