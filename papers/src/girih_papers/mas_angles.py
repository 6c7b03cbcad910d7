"""MAS, Figs. 8 and 11: angles between the images of adjacent cells, against those of independent subspaces."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih import geometry
from girih.errors import ParameterError
from girih.networks import mlp
from girih_papers.figures import save
from girih_papers.jobs import Result, run_jobs
from girih_papers.mas_angle_figures import draw_grid, draw_widths

_NETWORK_SEEDS = 1000  # networks of one seed
_BLOCK = 4  # segments at a time
SMALL, RIGHT = 0.1, 0.5 * math.pi - 0.1  # radians: "near 0" and "near orthogonal"


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
        save(draw_grid(sampled, free, depth, settings.widths), out / f"angles-{depth}.png") for depth in settings.depths
    ]
    S, depth = max(settings.latent_dims), max(settings.depths)
    outputs = sorted(D for s, D in dims if s == S)[:2]
    figures.append(save(draw_widths(sampled, free, S, outputs, depth, settings.widths), out / "angles-widths.png"))
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
    return sine.asin()


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
