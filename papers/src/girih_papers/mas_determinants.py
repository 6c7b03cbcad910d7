"""MAS, Fig. 10: how the variance of the weights moves and spreads the volumes of the cells."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from girih import geometry
from girih.errors import ParameterError
from girih.networks import mlp
from girih.plots import CYCLE, new_figure, styled
from girih_papers.figures import save
from girih_papers.jobs import run_jobs

_NETWORK_SEEDS = 1000  # networks of one seed


@dataclass(frozen=True)
class Settings:
    """Of the paper; it does not say the widths and the activation, and its values of sigma1 are not all legible.

    Attributes:
        latent_dim: S.
        data_dim: D.
        hidden: widths of the hidden layers (L = 3).
        activation: "leaky_relu" (slope 0.1), "relu" or "abs".
        first: sigma1, which multiplies a random half of the weights.
        second: sigma2, which multiplies the other half.
        regions: cells for each network.
        networks: for each pair; the paper shows one.
    """

    latent_dim: int = 6
    data_dim: int = 10
    hidden: tuple[int, ...] = (32, 32)
    activation: str = "leaky_relu"
    first: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    second: tuple[float, ...] = (1.0, 2.0, 3.0)
    regions: int = 2000
    networks: int = 20


SETTINGS = Settings()
QUICK = Settings(hidden=(12, 12), first=(0.0, 1.0), second=(1.0, 3.0), regions=100, networks=3)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    if not 1 <= settings.networks <= _NETWORK_SEEDS or not settings.regions:
        raise ParameterError("the setting networks is from 1 to 1000, and regions is 1 or more")
    pairs = list(product(settings.first, settings.second))
    shared = {
        "sizes": [settings.latent_dim, *settings.hidden, settings.data_dim],
        "activation": settings.activation, "regions": settings.regions,
    }  # fmt: skip
    jobs = [
        shared | {"first": a, "second": b, "seed": seed * _NETWORK_SEEDS + i}
        for (a, b), i in product(pairs, range(settings.networks))
    ]
    found = run_jobs(volumes, jobs, out, "mas-determinants", quick, progress)
    count = settings.networks
    values = [[one["log_volume"] for one in found[k * count : (k + 1) * count]] for k in range(len(pairs))]
    table = [_row(*pair, some) for pair, some in zip(pairs, values, strict=True)]
    return {
        "pairs": table,
        "rises_with_second": [_rise(first, settings.second, table) for first in settings.first],
        "settings": asdict(settings) | {"biases": 0.0, "negative_slope": 0.1, "prior_variance": 1.0, "seeds": [seed]},
        "figures": [save(_draw(table, [some[0] for some in values], settings), out / "determinants.png")],
    }


def rescaled(sizes: list[int], activation: str, first: float, second: float, seed: int) -> nn.Sequential:
    """A generator with Xavier weights, half of them (at random) times one number, the others times another.

    Weights are `U(-a, a)` with `a^2 = 6 / (fan_in + fan_out)`, biases 0. The same seed has the same weights and
    halves for all numbers.

    Example:
        >>> from girih_papers.mas_determinants import rescaled
        >>> one, two = (rescaled([2, 4, 3], "relu", a, a, seed=0) for a in (1.0, 2.0))
        >>> bool((two[0].weight == 2.0 * one[0].weight).all())
        True
    """
    net = mlp(sizes, activation=activation, seed=seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=noise)
                half = torch.randperm(layer.weight.numel(), generator=noise).reshape(layer.weight.shape) % 2 == 0
                layer.weight.mul_(torch.where(half, first, second))
                layer.bias.zero_()
    return net


def volumes(sizes: list[int], activation: str, first: float, second: float, regions: int, seed: int) -> dict[str, Any]:
    """`log sqrt det(A^T A)` of the first cells that prior draws meet, nats; minus infinity where A loses rank."""
    net = rescaled(sizes, activation, first, second, seed)
    n = 2 * regions
    cells = geometry.sample_cells(net, n, seed=seed)
    return {"log_volume": geometry.log_volume(cells).values[:regions].numpy()}


def _row(first: float, second: float, values: list[np.ndarray]) -> dict[str, Any]:
    full = [value[np.isfinite(value)] for value in values]
    means = np.array([value.mean() if len(value) else math.nan for value in full])
    deviations = np.array([value.std() if len(value) else math.nan for value in full])
    return {
        "first": first,
        "second": second,
        "variance_factor": 0.5 * (first**2 + second**2),
        "cells": [len(value) for value in values],
        "degenerate_cells": sum(len(a) - len(b) for a, b in zip(values, full, strict=True)),
        "mean": float(means.mean()),
        "mean_error": _error(means),
        "deviation": float(deviations.mean()),
        "deviation_error": _error(deviations),
        "means": means.tolist(),
        "deviations": deviations.tolist(),
    }


def _rise(first: float, second: tuple[float, ...], table: list[dict[str, Any]]) -> dict[str, Any]:
    """From the smallest sigma2 to the largest, network by network: they share weights, so the errors are small."""
    low, high = (
        next(row for row in table if (row["first"], row["second"]) == (first, end))
        for end in (min(second), max(second))
    )
    body: dict[str, Any] = {"first": first}
    for name in ("mean", "deviation"):
        rise = np.subtract(high[f"{name}s"], low[f"{name}s"])
        body |= {name: float(rise.mean()), f"{name}_error": _error(rise)}
    return body


def _error(values: np.ndarray) -> float | None:
    """The standard error over networks."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


@styled
def _draw(table: list[dict[str, Any]], shown: list[np.ndarray], settings: Settings) -> Figure:
    figure = new_figure(7.0, 4.4)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.0, 1.15))[:, 0]
    top = np.atleast_1d(upper.subplots(1, len(settings.first), sharex=True, sharey=True))
    finite = [value[np.isfinite(value)] for value in shown]
    edges = np.linspace(min(v.min() for v in finite), max(v.max() for v in finite), 70)
    for k, (row, value) in enumerate(zip(table, finite, strict=True)):
        i, j = divmod(k, len(settings.second))
        style = CYCLE[j % len(CYCLE)]
        top[i].hist(value, edges, density=True, color=style["color"], alpha=0.25)
        top[i].hist(
            value, edges, density=True, histtype="step", color=style["color"], linestyle=style["linestyle"],
            label=rf"$\sigma_2 = {row['second']:g}$",
        )  # fmt: skip
        top[i].set_title(rf"$\sigma_1 = {row['first']:g}$")
    for ax in top:
        ax.set_xlabel(r"$\log\sqrt{\det A^T\!A}$ (nats)")
    top[0].set_ylabel("density, first network")
    upper.legend(*top[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(settings.second))
    names = {"mean": "mean over cells (nats)", "deviation": "deviation over cells (nats)"}
    for ax, (name, label) in zip(lower.subplots(1, 2), names.items(), strict=True):
        for i, first in enumerate(settings.first):
            rows = [row for row in table if row["first"] == first]
            error = [row[f"{name}_error"] or 0.0 for row in rows]
            ax.errorbar(settings.second, [row[name] for row in rows], error, label=rf"$\sigma_1 = {first:g}$",
                        capsize=2.0, **CYCLE[i % len(CYCLE)])  # fmt: skip
        ax.set_xticks(settings.second)
        ax.set_xlabel(r"$\sigma_2$")
        ax.set_ylabel(label)
    lower.legend(*lower.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(settings.first))
    return figure
