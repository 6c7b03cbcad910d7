"""MAS, Fig. 12: curves that GANs of several widths make of a circle, with the angle at each of their kinks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from girih.datasets import load
from girih.geometry import angles, enumerate_cells
from girih.networks import mlp
from girih.partition import Partition
from girih.plots import GREY, new_figure, styled
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.jobs import run_jobs, weights_of, with_weights
from girih_papers.mas_toys import covered, curve, sliced_distance, spread, train_toy
from girih_papers.settings import arguments


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        widths: of both hidden layers; those of the figure.
        runs: random starts for each width.
        rows: points on the circle.
        noise: their standard deviation around it.
        epochs: of training, batches of 100.
        lr: Adam's step size.
    """

    widths: tuple[int, ...] = (6, 8, 16, 32)
    runs: int = 4
    rows: int = 1000
    noise: float = 0.05
    epochs: int = 600
    lr: float = 1e-3


SETTINGS = Settings()
QUICK = Settings(widths=(6, 8), runs=1, rows=64, epochs=3)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    jobs = [
        arguments(trained_curve, settings, width=width, seed=seed + i)
        for width in settings.widths
        for i in range(settings.runs)
    ]
    results = run_jobs(trained_curve, jobs, out, "mas-angles-circle", quick, progress)
    curves = [
        generated(with_weights(_net(int(job["width"]), 0), result)) for job, result in zip(jobs, results, strict=True)
    ]
    runs = [
        {
            "width": job["width"],
            "seed": job["seed"],
            "kinks": len(found["degrees"]),
            "kinks_sharper_than_10_degrees": int((found["degrees"] > 10.0).sum()),
            "sharpest_degrees": float(found["degrees"].max(initial=0.0)),
            "half_of_the_turning_is_in": _half(found["degrees"]),
            "distance_to_data": float(result["distance"]),
            "distance_of_other_data": float(result["floor"]),
            "covered": float(result["covered"]),
            "seconds": float(result["seconds"]),
        }
        for job, result, found in zip(jobs, results, curves, strict=True)
    ]
    numbers = ("kinks", "kinks_sharper_than_10_degrees", "half_of_the_turning_is_in", "distance_to_data", "covered")
    table = {
        str(width): {name: spread([float(r[name]) for r in runs if r["width"] == width]) for name in numbers}
        for width in settings.widths
    }
    rows = load("circle", n=settings.rows, seed=seed, noise=settings.noise).X
    return {
        "widths": table,
        "settings": {
            "data": f"{settings.rows} points on a circle of radius 1, noise of deviation {settings.noise:g}",
            "generator": "S = 1, two hidden layers of each width, leaky ReLU of slope 0.1, D = 2",
            "training": "non-saturating GAN, discriminator 2-64-64-1, Adam, batches of 100",
            "epochs": settings.epochs,
            "lr": settings.lr,
            "seeds": [seed + i for i in range(settings.runs)],
        },
        "runs": runs,
        "figures": [save(_draw(curves, rows, settings), out / "curves.png")],
    }


def trained_curve(
    width: int,
    seed: int,
    rows: int,
    noise: float,
    epochs: int,
    lr: float,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: a GAN on the circle, its weights and how close to the data its draws are."""
    import time

    net, X = _net(width, seed), load("circle", n=rows, seed=seed, noise=noise).X
    start = time.perf_counter()
    train_toy(net, X, epochs, lr, seed, checkpoint)
    seconds = time.perf_counter() - start
    z = torch.randn(rows, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        drawn = to_array(net(z))
    other = load("circle", n=rows, seed=seed + 1_000_000, noise=noise).X
    numbers = {"distance": sliced_distance(drawn, X), "floor": sliced_distance(other, X), "covered": covered(drawn)}
    return {**weights_of(net), **numbers, "seconds": seconds}


def generated(net: torch.nn.Module) -> dict[str, Array]:
    """The curve of a generator with S = 1: its corners, and the angle at each kink in degrees."""
    part = Partition(net, progress=False)
    points, knots = curve(part)
    found = to_array(angles(enumerate_cells(part)).largest)
    left = np.searchsorted(to_array(part.breakpoints), knots)  # the kink between cell i and cell i + 1
    return {"points": points, "degrees": np.degrees(found[_pair_order(part)])[left]}


def _pair_order(part: Partition) -> NDArray[np.intp]:
    """The index of the pair (i, i + 1) among the neighbours, for each i."""
    pairs = part.neighbors.sort(1).values
    assert bool((pairs[:, 1] - pairs[:, 0] == 1).all())
    return np.asarray(np.argsort(pairs[:, 0].numpy()))


def _half(degrees: Array) -> int:
    """How few kinks make half of all turning."""
    if degrees.sum() == 0.0:
        return 0
    falling = np.sort(degrees)[::-1]
    return int(np.searchsorted(falling.cumsum(), 0.5 * falling.sum())) + 1


def _net(width: int, seed: int) -> torch.nn.Sequential:
    return mlp([1, width, width, 2], seed=seed)


@styled
def _draw(curves: list[dict[str, Array]], rows: Array, settings: Settings) -> Figure:
    """A column for each width, a line for each start: the curve, and its kinks coloured by their angles."""
    columns = len(settings.widths)
    figure = new_figure(1.5 * columns + 0.7, 1.5 * settings.runs + 0.25)
    axes = figure.subplots(settings.runs, columns, squeeze=False)
    colours = matplotlib.colormaps["plasma_r"]
    scale = ScalarMappable(Normalize(0.0, 90.0), colours)
    for k, found in enumerate(curves):
        ax = axes[k % settings.runs, k // settings.runs]
        ax.scatter(rows[:, 0], rows[:, 1], s=1.0, color="#BBD6EA", lw=0, zorder=1)
        ax.plot(found["points"][:, 0], found["points"][:, 1], color=GREY, lw=0.9, zorder=2)
        order = np.argsort(found["degrees"])
        corners, degrees = found["points"][1:-1][order], found["degrees"][order]
        ax.scatter(
            corners[:, 0], corners[:, 1], s=14.0, c=degrees, cmap=colours, norm=scale.norm, zorder=3, ec="black", lw=0.3
        )
        ax.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
    for ax, width in zip(axes[0], settings.widths, strict=True):
        ax.set_title(f"width {width}")
    bar = figure.colorbar(
        scale, ax=axes, shrink=0.6, pad=0.01, label="angle at a kink (degrees)", ticks=[0, 30, 60, 90]
    )
    bar.outline.set_visible(False)
    return figure
