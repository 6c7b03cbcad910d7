"""MAS, Figs. 8 and 11: angles between the images of adjacent cells, against those of independent subspaces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from girih import geometry
from girih.errors import ParameterError
from girih.networks import mlp
from girih.plots import BLUE, CYCLE, GREEN, SKY, new_figure, styled
from girih_papers.figures import save
from girih_papers.jobs import Result, run_jobs

_NETWORK_SEEDS = 1000  # networks of one seed
_BLOCK = 4  # segments at a time
SMALL, RIGHT = 0.1, 0.5 * math.pi - 0.1  # radians: "near 0" and "near orthogonal"
_EDGES = np.linspace(0.0, 0.5 * np.pi, 46).tolist()
_TICKS = ([0.0, 0.25 * np.pi, 0.5 * np.pi], ["0", "π/4", "π/2"])
_FREE = "independent subspaces"
# Angles by S, D, number of hidden layers and width; and those of independent subspaces by S and D.
Sampled = Mapping[tuple[int, int, int, int], np.ndarray]
Free = Mapping[tuple[int, int], np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Of the paper; it does not say the widths, the activation and how cells are found.

    Attributes:
        latent_dims: S of each pair of dimensions.
        data_dims: D of each pair.
        depths: numbers of hidden layers.
        widths: of all hidden layers.
        activation: "leaky_relu" (slope 0.1), "relu" or "abs".
        networks: for each S, D, depth and width.
        pairs: of adjacent cells, over all networks.
        enumerated_width: where S = 2, all pairs are taken beside the sampled ones for widths up to this.
    """

    latent_dims: tuple[int, ...] = (2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16)
    data_dims: tuple[int, ...] = (3, 4, 8, 5, 8, 16, 9, 16, 32, 17, 32, 64)
    depths: tuple[int, ...] = (1, 2)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    activation: str = "leaky_relu"
    networks: int = 10
    pairs: int = 5000
    enumerated_width: int = 32


SETTINGS = Settings()
QUICK = Settings(latent_dims=(2, 4), data_dims=(3, 8), depths=(1, 2), widths=(8, 32), networks=2, pairs=100,
                 enumerated_width=8)  # fmt: skip


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    dims = list(zip(settings.latent_dims, settings.data_dims, strict=False))
    if len(settings.latent_dims) != len(settings.data_dims) or any(S > D for S, D in dims):
        raise ParameterError("the settings latent_dims and data_dims must be of one length, and no S larger than D")
    if not 1 <= settings.networks <= _NETWORK_SEEDS or not settings.pairs:
        raise ParameterError("the setting networks is from 1 to 1000, and pairs is 1 or more")
    cases = list(product(dims, settings.depths, settings.widths))
    shared = {
        "activation": settings.activation, "networks": settings.networks, "pairs": settings.pairs, "seed": seed,
        "enumerated_width": settings.enumerated_width,
    }  # fmt: skip
    jobs = [shared | {"sizes": [S, *[width] * depth, D]} for (S, D), depth, width in cases]
    found = run_jobs(adjacent, jobs, out, "mas-angles", quick, progress)
    free = {
        (S, D): independent_angles(S, D, settings.pairs, torch.Generator().manual_seed(seed)).numpy() for S, D in dims
    }
    sampled = {(S, D, depth, width): one["largest"] for ((S, D), depth, width), one in zip(cases, found, strict=True)}
    table = [
        {"latent_dim": S, "data_dim": D, "depth": depth, "width": width}
        | _summary(one)
        | {"independent": _numbers(free[S, D])}
        for ((S, D), depth, width), one in zip(cases, found, strict=True)
    ]
    below = [row["median"] < row["independent"]["median"] for row in table]
    figures = [
        save(_draw_grid(sampled, free, depth, settings.widths), out / f"angles-{depth}.png")
        for depth in settings.depths
    ]
    S, depth = max(settings.latent_dims), max(settings.depths)
    outputs = sorted(D for s, D in dims if s == S)[:2]
    figures.append(save(_draw_widths(sampled, free, S, outputs, depth, settings.widths), out / "angles-widths.png"))
    return {
        "median_below_independent": [sum(below), len(below)],
        "largest_median": max(row["median"] for row in table),
        "cases": table,
        "settings": asdict(settings) | {"negative_slope": 0.1, "prior_variance": 1.0, "seeds": [seed]},
        "figures": figures,
    }


def adjacent(
    sizes: list[int], activation: str, networks: int, pairs: int, enumerated_width: int, seed: int
) -> dict[str, Any]:
    """Largest principal angles of pairs of cells that share a facet, in radians: those that random segments cross.

    Segments join pairs of prior draws, so facets count by how much of them lies where the prior is. For S = 2 and
    narrow networks the result also has every pair, each once.
    """
    need = -(-pairs // networks)
    crossed, every = [], []
    for i in range(networks):
        net = mlp(sizes, activation=activation, seed=seed * _NETWORK_SEEDS + i)
        got: list[Tensor] = []
        block = 0
        while sum(map(len, got)) < need:
            cells = geometry.segment_cells(net, _BLOCK, seed=(seed * _NETWORK_SEEDS + i) * 100_000 + block)
            got.append(geometry.angles(cells).largest)
            block += 1
        crossed.append(torch.cat(got)[:need])
        if sizes[0] == 2 and max(sizes[1:-1]) <= enumerated_width:
            every.append(geometry.angles(net).largest)
    return {
        "largest": torch.cat(crossed)[:pairs].numpy(),
        "enumerated": torch.cat(every).numpy() if every else np.empty(0),
    }


def independent_angles(S: int, D: int, n: int, generator: torch.Generator) -> Tensor:
    r"""Largest principal angles of n pairs of independent random subspaces, `(n,)`: without shared weights.

    With a Gaussian last layer `W`, the image of a cell is spanned by `W M`, whose span is uniform for any `M` of full
    rank, so two networks with independent weights have the angles of two uniform subspaces, whatever their hidden
    layers.

    Example:
        >>> import torch
        >>> from girih_papers.mas_angles import independent_angles
        >>> independent_angles(2, 2, 3, torch.Generator().manual_seed(0)) < 1e-7
        tensor([True, True, True])
    """
    bases = torch.linalg.qr(torch.randn(2, n, D, S, dtype=torch.float64, generator=generator)).Q
    first, second = bases
    sine = torch.linalg.svdvals(second - first @ (first.mT @ second))[:, 0].clamp(max=1.0)
    result: Tensor = sine.asin()
    return result


def _numbers(angle: np.ndarray) -> dict[str, float]:
    return {
        "median": float(np.median(angle)),
        "mean": float(angle.mean()),
        "share_below_0.1": float((angle < SMALL).mean()),
        "share_within_0.1_of_right": float((angle > RIGHT).mean()),
    }


def _summary(one: Result) -> dict[str, Any]:
    body: dict[str, Any] = {"pairs": len(one["largest"])} | _numbers(one["largest"])
    if len(one["enumerated"]):
        body["enumerated"] = {"pairs": len(one["enumerated"])} | _numbers(one["enumerated"])
    return body


@styled
def _draw_grid(sampled: Sampled, free: Free, depth: int, widths: Sequence[int]) -> Figure:
    """A panel for each S and D, rows by S, with all widths in it."""
    dims = list(free)
    rows = sorted({S for S, _ in dims})
    columns = [[D for s, D in dims if s == S] for S in rows]
    count = max(map(len, columns))
    figure = new_figure(max(2.2 * count + 0.4, 5.0), 1.5 * len(rows) + 0.7)
    axes = figure.subplots(len(rows), count, sharex=True, squeeze=False)
    for i, S in enumerate(rows):
        for j in range(count):
            ax = axes[i, j]
            if j >= len(columns[i]):
                ax.set_axis_off()
                continue
            D = columns[i][j]
            _shade(ax, free[S, D], SKY)
            # colours after the blue of the independent ones
            for k, width in enumerate(widths):
                style = CYCLE[1 + k % (len(CYCLE) - 2)]
                ax.hist(
                    sampled[S, D, depth, width], _EDGES, density=True, histtype="step", color=style["color"],
                    linestyle=style["linestyle"], linewidth=1.1, label=f"width {width}",
                )  # fmt: skip
            ax.set_yscale("symlog", linthresh=1.0)
            ax.set_ylim(0.0, 1.2 / (_EDGES[1] - _EDGES[0]))  # a density of all angles in one bin
            ax.set_yticks([0, 0.5, 1, 3, 10, 30], ["0", "0.5", "1", "3", "10", "30"], fontsize=6.5)
            ax.set_yticks([], minor=True)
            ax.set_title(f"S = {S}, D = {D}")
            ax.set_xticks(*_TICKS)
            if i == len(rows) - 1:
                ax.set_xlabel("largest angle (rad)")
            if j == 0:
                ax.set_ylabel("density (1/rad),\nlog scale above 1", fontsize=8.0)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.suptitle(f"{depth} hidden layer{'s' if depth > 1 else ''}", fontsize=9.0)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))
    return figure


@styled
def _draw_widths(
    sampled: Sampled, free: Free, S: int, outputs: Sequence[int], depth: int, widths: Sequence[int]
) -> Figure:
    """A row for each width and a column for each D."""
    figure = new_figure(5.6, 0.95 * len(widths) + 1.1)
    axes = figure.subplots(len(widths), len(outputs), sharex=True, squeeze=False)
    for i, width in enumerate(widths):
        for j, D in enumerate(outputs):
            ax = axes[i, j]
            _shade(ax, free[S, D], BLUE)
            ax.hist(
                sampled[S, D, depth, width], _EDGES, density=True, color=GREEN, alpha=0.45, label="adjacent cells"
            )  # fmt: skip
            ax.hist(sampled[S, D, depth, width], _EDGES, density=True, histtype="step", color=GREEN, linewidth=1.0)
            ax.set_xticks(*_TICKS)
            if i == 0:
                ax.set_title(f"S = {S}, D = {D}")
            if i == len(widths) - 1:
                ax.set_xlabel("largest angle (rad)")
            if j == 0:
                ax.set_ylabel(f"width {width}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.suptitle(f"{depth} hidden layer{'s' if depth > 1 else ''}; densities (1/rad)", fontsize=9.0)
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _shade(ax: Axes, angle: np.ndarray, colour: str) -> None:
    ax.hist(angle, _EDGES, density=True, color=colour, alpha=0.35, label=_FREE)
