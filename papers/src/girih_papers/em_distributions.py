"""EM-DGN, Figs. 3 and 6: samples, exact marginal and exact posterior of random generators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from girih.inference import DGN
from girih.networks import mlp
from girih.plots import BLACK, BLUE, GREEN, VERMILLION, new_figure, styled
from girih.training import Progress
from girih_papers.arrays import Array, generate, to_array
from girih_papers.figures import save

_SIZES = (1, 8, 8, 2)
_NOISE = 0.1
_SAMPLES = 150
# Beyond so many prior deviations there is less than 1e-15 of the prior.
_REACH = 8.0
_SHOWN = 4.0


@dataclass(frozen=True, eq=False)
class _Case:
    """A random generator with its samples and two rows, g(z0) and g(z0) + e0."""

    seed: int
    dgn: DGN
    z0: float
    latents: Array  # (n, 1)
    noisy: Array  # (n, 2)
    rows: Array  # (2, 2)


def run(out: Path, quick: bool, seed: int, progress: bool) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    seeds = [seed + i for i in range(2 if quick else 4)]
    bar = Progress("em-distributions", len(seeds), 0, progress)
    cases, checks = [], []
    try:
        for i, one in enumerate(seeds):
            cases.append(_case(one))
            checks.append(_check(cases[-1], quick))
            bar.show(i + 1, f"integral of p(x): {checks[-1]['marginal_integral']:.10f}")
    finally:
        bar.close()
    return {
        "marginal_integral_error": max(abs(c["marginal_integral"] - 1.0) for c in checks),
        "posterior_integral_error": max(abs(i - 1.0) for c in checks for i in c["posterior_integrals"]),
        "posterior_mean_error": max(c["posterior_mean_error"] for c in checks),
        "settings": {
            "generator": list(_SIZES),
            "noise_variance": _NOISE,
            "prior_variance": 1.0,
            "seeds": seeds,
            "samples": _SAMPLES,
        },
        "networks": checks,
        "figures": [save(_draw(cases), out / "distributions.png")],
    }


def _case(seed: int) -> _Case:
    dgn = DGN(mlp(_SIZES, seed=seed), noise=_NOISE)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(_SAMPLES + 1, 3, dtype=torch.float64, generator=generator).numpy()
    z, e = draws[:, :1], np.sqrt(_NOISE) * draws[:, 1:]
    x = generate(dgn, z[:, 0])
    return _Case(seed, dgn, float(z[0, 0]), z[1:], (x + e)[1:], np.stack((x[0], x[0] + e[0])))


def _check(case: _Case, quick: bool) -> dict[str, Any]:
    """Integrals of the exact densities by plain quadrature, which shares nothing with how they were found."""
    dgn = case.dgn
    posterior = dgn.posterior(case.rows)
    z, weights = _line_rule(to_array(dgn.partition.breakpoints))
    density = np.exp(to_array(posterior.log_prob(torch.as_tensor(z)[:, None, None])))  # (nodes, rows)
    mean = to_array(posterior.mean)[:, 0]
    return {
        "seed": case.seed,
        "cells": len(dgn.partition),
        "marginal_integral": _marginal_integral(dgn, 0.6 if quick else 0.4),
        "posterior_integrals": (weights @ density).tolist(),
        "posterior_means": mean.tolist(),
        "posterior_mean_error": float(np.abs((weights * z) @ density - mean).max()),
        "z0": case.z0,
        "rows": case.rows.tolist(),
        "log_p": to_array(dgn().log_prob(case.rows)).tolist(),
    }


def _marginal_integral(dgn: DGN, step: float) -> float:
    """The integral of p(x) by the trapezoidal rule, with a step in noise deviations; it converges exponentially."""
    deviation = float(dgn.noise.detach()) ** 0.5
    limits = to_array(dgn.partition.breakpoints)
    curve = generate(dgn, np.concatenate(([-_REACH, _REACH], limits[np.abs(limits) < _REACH])))
    axes = [np.arange(low, high, step * deviation) for low, high in _box(curve, _REACH * deviation)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        p = dgn()
        total = sum(float(p.log_prob(part).exp().sum()) for part in np.array_split(grid, len(grid) // 20_000 + 1))
    result: float = total * (step * deviation) ** 2
    return result


def _box(points: Array, margin: float) -> list[tuple[float, float]]:
    return [(float(c.min() - margin), float(c.max() + margin)) for c in points.T]


def _line_rule(limits: Array) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights between cell limits, in pieces far narrower than any posterior here."""
    edges = np.unique(np.concatenate((np.linspace(-12.0, 12.0, 481), limits[np.abs(limits) < 12.0])))
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = 0.5 * np.diff(edges)[:, None]
    return (edges[:-1, None] + half * (nodes + 1.0)).ravel(), (half * weights).ravel()


@styled
def _draw(cases: list[_Case]) -> Any:
    figure = new_figure(7.2, 0.5 + 1.65 * len(cases))
    axes = figure.subplots(len(cases), 4, squeeze=False, width_ratios=(1.0, 1.0, 1.15, 1.15))
    for line, case in zip(axes, cases, strict=True):
        points = generate(case.dgn, case.latents[:, 0])
        box = _box(np.concatenate((points, case.noisy)), 0.3)
        _draw_samples(line[0], case, points)
        _draw_marginal(line[1], case, box)
        for ax in line[:2]:
            ax.set(xlim=box[0], ylim=box[1])
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        line[0].set_ylabel(f"network {case.seed}\n$x_1$")
        for ax, row, marker in zip(line[2:], case.rows, "oX", strict=True):
            _draw_posterior(ax, case.dgn, row, case.z0, marker)
    for ax, title in zip(axes[0], ("samples", "p(x)", "p(z | x), x = g(z₀)", "p(z | x), x = g(z₀) + e₀"), strict=True):
        ax.set_title(title)
    for ax, label in zip(axes[-1], ("$x_0$", "$x_0$", "latent z", "latent z"), strict=True):
        ax.set_xlabel(label)
    handles = [h for ax in (axes[0, 0], axes[0, 2]) for h in ax.get_legend_handles_labels()[0]]
    figure.legend(handles, [str(h.get_label()) for h in handles], loc="outside lower center", ncols=4)
    return figure


def _draw_samples(ax: Axes, case: _Case, points: Array) -> None:
    ax.scatter(case.noisy[:, 0], case.noisy[:, 1], s=8, marker="+", color=BLUE, lw=0.6, label="g(z) + e")
    ax.scatter(points[:, 0], points[:, 1], s=5, color=VERMILLION, lw=0, label="g(z)")
    for row, marker, label in zip(case.rows, "oX", ("g(z₀)", "g(z₀) + e₀"), strict=True):
        ax.plot(*row, marker, color=BLACK, mec="white", mew=0.6, ms=6.0, label=label)


def _draw_marginal(ax: Axes, case: _Case, box: list[tuple[float, float]]) -> None:
    count = 120
    edges = [np.linspace(low, high, count + 1) for low, high in box]
    centres = [0.5 * (e[1:] + e[:-1]) for e in edges]
    grid = np.stack(np.meshgrid(*centres, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        density = case.dgn().log_prob(grid).exp().reshape(count, count).numpy()
    paper_to_ink = LinearSegmentedColormap.from_list("girih_ink", ["#FFFFFF", "#9CC4DF", BLUE, "#00243A"])
    ax.pcolormesh(*edges, density, cmap=paper_to_ink, vmin=0.0, rasterized=True)
    ax.contour(*centres, density, levels=6, colors="white", linewidths=0.35)
    emptier = density[-count // 5 :, : count // 2].max() < density[-count // 5 :, count // 2 :].max()
    place: dict[str, Any] = {"x": 0.04, "ha": "left"} if emptier else {"x": 0.96, "ha": "right"}
    ax.text(y=0.96, s=f"peak {density.max():.2f}", transform=ax.transAxes, va="top", fontsize=6.5, **place)
    ax.set_yticklabels([])


def _draw_posterior(ax: Axes, dgn: DGN, row: Array, z0: float, marker: str) -> None:
    posterior = dgn.posterior(row[None])
    limits = to_array(dgn.partition.breakpoints)
    limits = limits[np.abs(limits) < _SHOWN]
    # both sides of each limit: the density bends there, and jumps in its slope
    z = np.unique(np.concatenate((np.linspace(-_SHOWN, _SHOWN, 801), limits - 1e-9, limits + 1e-9)))
    density = np.exp(to_array(posterior.log_prob(torch.as_tensor(z)[:, None, None]))[:, 0])
    top = 1.15 * float(density.max())
    ax.vlines(limits, 0.0, top, color=BLACK, lw=0.4, alpha=0.55, label="cell limits")
    ax.fill_between(z, density, color=BLUE, alpha=0.2, lw=0)
    ax.plot(z, density, color=BLUE, lw=1.2, label="p(z | x)")
    ax.axvline(float(posterior.mean[0, 0]), color=GREEN, ls=(0, (4, 2)), lw=1.4, label="E[z | x]")
    ax.plot([z0], [0.0], marker, color=BLACK, mec="white", mew=0.6, ms=6.0, clip_on=False, zorder=5)
    ax.set(xlim=(-_SHOWN, _SHOWN), ylim=(0.0, top))
    ax.yaxis.set_major_locator(MaxNLocator(3))
