"""Two present claims of the field on estimates of log p(x), against the exact value.

- `field-quadrature`: "quasi-Monte Carlo is exact in practice for continuous mixtures". A mixture over z is replaced by
  one over K nodes, scrambled Sobol points under the prior (Correia and others 2023, as in SPFlow and their cm-tpm).
- `field-iwae`: "the bound of an IWAE with 5,000 draws is close to log p" (Burda and others 2016, and most VAEs since).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import logsumexp, ndtri
from scipy.stats import qmc

import girih
from girih.datasets import load
from girih.inference import DGN
from girih.plots import CYCLE, GREY, log_scale, new_figure, styled
from girih.vae import GaussVAE
from girih.vae.evidence import estimate
from girih_papers.arrays import Array, generate
from girih_papers.figures import save
from girih_papers.jobs import completed, run_jobs

_LEAST = 1e-6  # nats; smaller errors are drawn there
_CLOSE = 0.01  # nats: what is called exact in practice
_BLOCK = 2**22  # entries of the largest temporary


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        runs: seeds, of generators, rows, nodes and training.
        rows: that the error is taken of.
        columns: D of the generators of `field-quadrature`.
        latent_dims: S of these.
        noises: deviations of their noise, beside columns of variance 1.
        nodes: K, powers of two.
        steps: gradient steps of the VAEs of `field-iwae`.
        draws: of their importance sampling.
    """

    runs: int = 3
    rows: int = 500
    columns: int = 10
    latent_dims: tuple[int, ...] = (1, 2)
    noises: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    nodes: tuple[int, ...] = (2**6, 2**8, 2**10, 2**12, 2**14)
    steps: int = 4000
    draws: tuple[int, ...] = (2, 50, 500, 5000)


SETTINGS = Settings()
QUICK = Settings(runs=1, rows=20, latent_dims=(1, 2), noises=(1.0, 0.1), nodes=(64, 256), steps=40, draws=(2, 20))


def quadrature(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run `field-quadrature`; returns the body of `result.json`."""
    keys = [(S, noise, i) for i in range(settings.runs) for S in settings.latent_dims for noise in settings.noises]
    jobs = [
        {"S": S, "noise": noise, "seed": seed + i}
        | {"rows": settings.rows, "columns": settings.columns, "nodes": settings.nodes}
        for S, noise, i in keys
    ]
    results = dict(zip(keys, run_jobs(quadrature_errors, jobs, out, "field-quadrature", quick, progress), strict=True))
    table = {
        f"S = {S}, {kind}": {
            f"{noise:g}": [
                _sizes(np.concatenate([results[S, noise, i][kind][k] for i in range(settings.runs)]))
                for k in range(len(settings.nodes))
            ]
            for noise in settings.noises
        }
        for S in settings.latent_dims
        for kind in ("sobol", "random")
    }
    needed = {
        name: {noise: _needed(settings.nodes, sizes) for noise, sizes in by.items()} for name, by in table.items()
    }
    return {
        "errors": table,
        f"nodes_for_{_CLOSE:g}_nats_in_the_mean": needed,
        "settings": asdict(settings) | {"seeds": [seed + i for i in range(settings.runs)]},
        "figures": [save(_draw_quadrature(table, settings), out / "quadrature.png")],
    }


def quadrature_errors(S: int, noise: float, seed: int, rows: int, columns: int, nodes: Sequence[int]) -> dict[str, Any]:
    """One job: estimate minus exact `log p`, `(len(nodes), rows)`, of rows drawn from a random generator."""
    dgn = random_generator(S, columns, noise, seed)
    x = dgn().sample((rows,), seed=seed).numpy()
    with torch.no_grad():
        exact = np.asarray(dgn().log_prob(x))
    found: dict[str, list[Array]] = {"sobol": [], "random": []}
    for count in nodes:
        for kind, u in (("sobol", sobol(count, S, seed)), ("random", np.random.default_rng(seed).random((count, S)))):
            found[kind].append(discrete(dgn, ndtri(u), x) - exact)
    return {kind: np.array(values) for kind, values in found.items()}


def random_generator(S: int, columns: int, noise: float, seed: int) -> DGN:
    """A random generator of 16 units, whose columns have variance 1 under the prior; the noise is a deviation."""
    net = girih.mlp([S, 16, columns], negative_slope=0.1, seed=seed)
    z = np.random.default_rng(seed).normal(size=(4096, S))
    spread = torch.as_tensor(generate(DGN(net, noise=1.0), z).std(0))
    head = net[-1]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.div_(spread[:, None])
        head.bias.div_(spread)
    return DGN(net, noise=noise**2)


def sobol(count: int, S: int, seed: int) -> Array:
    """Scrambled Sobol points in the open unit cube, `(count, S)`."""
    points = qmc.Sobol(S, scramble=True, seed=seed).random(count)
    return np.asarray(np.clip(points, 2.0**-33, 1.0 - 2.0**-33))


def discrete(dgn: DGN, z: Array, x: Array) -> Array:
    """`log (1/K) sum_k N(x; g(z_k), noise)`, `(N,)`: the mixture over nodes `(K, S)` that stands for the integral."""
    centres, variance = generate(dgn, z), float(dgn.noise.detach())
    own, size = (centres**2).sum(1), max(1, _BLOCK // len(z))
    parts = []
    for block in (x[i : i + size] for i in range(0, len(x), size)):
        distance = (block**2).sum(1)[:, None] - 2.0 * block @ centres.T + own
        parts.append(logsumexp(-0.5 * distance / variance, axis=1))
    return np.asarray(np.concatenate(parts) - np.log(len(z)) - 0.5 * x.shape[1] * np.log(2.0 * np.pi * variance))


def iwae(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run `field-iwae`; returns the body of `result.json`."""
    data = ("circle",) if quick else ("circle", "wave", "digits")
    keys = [(name, i) for i in range(settings.runs) for name in data]
    jobs = [
        {"data": name, "seed": seed + i, "rows": settings.rows, "steps": settings.steps, "draws": settings.draws}
        for name, i in keys
    ]
    results = dict(zip(keys, run_jobs(iwae_errors, jobs, out, "field-iwae", quick, progress), strict=True))

    def all_runs(name: str, kind: str, k: int) -> Array:
        return np.concatenate([results[name, i][kind][k] for i in range(settings.runs)])

    table = {
        f"{name}, {rows} rows": {
            str(draws): _sizes(all_runs(name, rows, k))
            | {"least_effective_draws": float(all_runs(name, f"{rows}.effective", k).min())}
            for k, draws in enumerate(settings.draws)
        }
        for name in data
        for rows in ("held-out", "strange")
    }
    return {
        "errors": table,
        "settings": asdict(settings) | {"seeds": [seed + i for i in range(settings.runs)]},
        "figures": [save(_draw_iwae(table, settings.draws), out / "iwae.png")],
    }


def iwae_errors(data: str, seed: int, rows: int, steps: int, draws: Sequence[int]) -> dict[str, Any]:
    """One job: a trained VAE; estimate minus exact `log p` of held-out and of strange rows, `(len(draws), rows)`."""
    train, held_out, strange = rows_of(data, seed, rows)
    S = 1 if train.shape[1] == 2 else 2
    decoder = girih.mlp([S, 16, train.shape[1]], negative_slope=0.1, seed=seed)
    vae = GaussVAE(decoder, hidden=(64, 64), noise=float(0.2 * train.var(0).mean()), seed=seed)
    completed(vae.fit(train, samples=4, lr=2e-3, max_steps=steps, seed=seed, record_every=steps, progress=False))
    found: dict[str, Any] = {}
    for name, x in (("held-out", held_out), ("strange", strange)):
        with torch.no_grad():
            exact = vae.dgn()().log_prob(x)
        found[name], found[f"{name}.effective"] = [], []
        for count in draws:
            generator = torch.Generator().manual_seed(seed)
            evidence = estimate(vae, x, count, generator)
            found[name].append((evidence.log_prob - exact).numpy())
            found[f"{name}.effective"].append(evidence.effective_samples.numpy())
    return found


def rows_of(data: str, seed: int, rows: int) -> tuple[Array, Array, Array]:
    """Training rows, held-out rows of the same kind, and strange ones: twice as far from the mean, or other digits."""
    if data != "digits":
        train, held_out = load(data, n=500, seed=seed).X, load(data, n=rows, seed=seed + 1_000_000).X
        return train, held_out, train.mean(0) + 2.0 * (held_out - train.mean(0))
    found = load("digits")
    rng = np.random.default_rng(seed)
    X = (found.X + found.X.max() / 16.0 * rng.random(found.X.shape)) / found.X.max()
    known = np.isin(np.asarray(found.labels).astype(int), range(5))
    order = rng.permutation(np.flatnonzero(known))
    cut = len(order) - min(rows, 200)
    return X[order[:cut]], X[order[cut:]], rng.permutation(X[~known])[: len(order) - cut]


def _sizes(error: Array) -> dict[str, float]:
    """The mean error and the sizes of those of rows, in nats."""
    size = np.abs(error)
    return {
        "mean": float(error.mean()),
        "median_size": float(np.median(size)),
        "size_of_95_percent": float(np.quantile(size, 0.95)),
        "largest_size": float(size.max()),
    }


def _needed(nodes: Sequence[int], sizes: Sequence[Mapping[str, float]]) -> int | None:
    """The least number of nodes from which on the mean error is small."""
    good = [abs(one["mean"]) <= _CLOSE for one in sizes]
    place = next((k for k in range(len(nodes)) if all(good[k:])), None)
    return None if place is None else nodes[place]


@styled
def _draw_quadrature(table: Mapping[str, Mapping[str, Any]], settings: Settings) -> Figure:
    """Sizes of the errors against the number of nodes: a panel for each S, a colour for each noise."""
    title = "solid: Sobol points; dotted: random ones; columns have deviation 1"
    figure = new_figure(7.2, 3.0)
    panels = figure.subplots(1, len(settings.latent_dims), squeeze=False, sharey=True)[0]
    for ax, S in zip(panels, settings.latent_dims, strict=True):
        for style, noise in zip(CYCLE, settings.noises, strict=False):
            for kind, dashes in (("sobol", "-"), ("random", ":")):
                sizes = table[f"S = {S}, {kind}"][f"{noise:g}"]
                middle = [max(one["median_size"], _LEAST) for one in sizes]
                label = f"noise {noise:g}" if kind == "sobol" and ax is panels[0] else None
                looks: Any = {"color": style["color"], "marker": style["marker"], "ms": 3.0, "lw": 1.1}
                ax.plot(settings.nodes, middle, dashes, label=label, **looks)
                if kind == "sobol":
                    largest = [max(one["size_of_95_percent"], _LEAST) for one in sizes]
                    ax.fill_between(settings.nodes, middle, largest, color=style["color"], alpha=0.12, lw=0)
        ax.axhline(_CLOSE, color=GREY, lw=0.8, ls=(0, (4, 2)))
        ax.set_xscale("log", base=2)
        log_scale(ax, "y")
        ax.set(xlabel="nodes", title=f"S = {S}")
    panels[0].set_ylabel("error of log p(x), nats:\nmedian of rows, and 95 %")
    figure.legend(loc="outside lower center", ncols=5, title=title)
    return figure


@styled
def _draw_iwae(table: Mapping[str, Mapping[str, Any]], draws: Sequence[int]) -> Figure:
    """Sizes of the errors against the number of draws, of rows of the data and of strange ones."""
    figure = new_figure(7.2, 3.0)
    panels = figure.subplots(1, 2, sharey=True)
    for ax, rows in zip(panels, ("held-out", "strange"), strict=True):
        names = [name for name in table if name.endswith(f"{rows} rows")]
        for style, name in zip(CYCLE, names, strict=False):
            middle = [max(one["median_size"], _LEAST) for one in table[name].values()]
            largest = [max(one["largest_size"], _LEAST) for one in table[name].values()]
            label = name.split(",")[0] if rows == "held-out" else None
            ax.plot(draws, middle, color=style["color"], marker=style["marker"], ms=3.0, lw=1.1, label=label)
            ax.plot(draws, largest, ":", color=style["color"], marker=style["marker"], ms=3.0, lw=1.1)
        ax.set_xscale("log")
        log_scale(ax, "y")
        ax.set(xlabel="draws of each row", title=f"{rows} rows")
    panels[0].set_ylabel("error of log p(x), nats:\nmedian of rows; dotted: the largest")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
