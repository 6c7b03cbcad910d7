"""Two present claims of the field on the posteriors of VAEs, against exact posteriors and exact optima.

- `field-amortisation`: "amortisation is the larger part of the gap" (Cremer, Li and Duvenaud 2018).
- `field-collapse`: "posterior collapse is a property of the optimum" (Lucas and others 2019, who prove it for linear
  decoders; Wang and others 2021). At each noise, which is held fixed: the exact maximum of the likelihood, the best
  bound that its decoder can have, the trained VAE, and the model that ignores z, `N(mean, noise I)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import girih
from girih.datasets import load
from girih.inference import DGN
from girih.plots import BLACK, CYCLE, GREY, VERMILLION, log_scale, new_figure, styled
from girih.vae import GaussVAE, gap
from girih_papers.arrays import Array
from girih_papers.comparison import spread
from girih_papers.em_fair_arms import starting_point
from girih_papers.figures import save
from girih_papers.jobs import Result, completed, run_jobs

_COLLAPSED = 0.01  # nats of mean divergence from the prior, below which z says nothing of x
_UNITS = 8
_GAPS = ("nll", "gap", "approximation", "amortisation")


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        runs: seeds, of rows, networks and training.
        rows: to train on.
        measured: held-out rows, of which the gaps of `field-amortisation` are taken.
        encoders: units of each of the two layers of its encoders.
        steps: gradient steps of `field-amortisation` at which the gaps are taken.
        trained: gradient steps of the VAEs of `field-collapse`.
        noises: variances of `field-collapse`; a column has about 0.5 (circle), or 1 and 0.5 (wave).
        starts: of its exact optimum and of its VAEs.
        descent: steps of Adam to that optimum, and ten times those of L-BFGS after them.
    """

    runs: int = 3
    rows: int = 256
    measured: int = 40
    encoders: tuple[int, ...] = (4, 16, 64, 256)
    steps: tuple[int, ...] = (500, 2000, 6000)
    trained: int = 3000
    noises: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 1.0)
    starts: int = 3
    descent: int = 400


SETTINGS = Settings()
QUICK = Settings(
    runs=1, rows=40, measured=5, encoders=(4, 8), steps=(10, 30), trained=30, noises=(0.1, 1.0), starts=1, descent=20
)
DATA = ("circle", "wave")


def amortisation(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run `field-amortisation`; returns the body of `result.json`."""
    keys = [(data, width, i) for i in range(settings.runs) for data in DATA for width in settings.encoders]
    jobs = [
        {"data": data, "width": width, "seed": seed + i}
        | {"rows": settings.rows, "measured": settings.measured, "steps": settings.steps}
        for data, width, i in keys
    ]
    results = dict(zip(keys, run_jobs(gaps_of, jobs, out, "field-amortisation", quick, progress), strict=True))
    table: dict[str, Any] = {data: {} for data in DATA}
    for data in DATA:
        for width in settings.encoders:
            runs = [results[data, width, i] for i in range(settings.runs)]
            table[data][str(width)] = {
                str(step): {name: spread([float(run[name][k]) for run in runs]) for name in _GAPS[:3]}
                | {"share": spread([share(run, k) for run in runs])}
                for k, step in enumerate(settings.steps)
            }
    return {
        "gaps": table,
        "settings": asdict(settings) | {"seeds": [seed + i for i in range(settings.runs)]},
        "figures": [save(_draw_amortisation(table, settings), out / "amortisation.png")],
    }


def share(run: Result, k: int) -> float:
    """The share of amortisation in the mean gap of a record."""
    return float(run["amortisation"][k] / run["gap"][k])


def gaps_of(data: str, width: int, seed: int, rows: int, measured: int, steps: Sequence[int]) -> dict[str, Any]:
    """One job: the mean gaps of held-out rows, exact, after so many steps of training each."""
    X, fresh = load(data, n=rows, seed=seed).X, load(data, n=measured, seed=seed + 1_000_000).X
    decoder = girih.mlp([1, 2 * _UNITS, 2], negative_slope=0.1, seed=seed)
    vae = GaussVAE(decoder, hidden=(width, width), noise=0.1, seed=seed)
    found: dict[str, list[float]] = {name: [] for name in _GAPS}
    for before, step in zip((0, *steps), steps, strict=False):
        options: dict[str, Any] = {"samples": 4, "lr": 2e-3, "batch_size": 100, "progress": False}
        completed(vae.fit(X, max_steps=step - before, seed=seed + step, record_every=step, **options))
        means = gap(vae, fresh, starts=3).mean()
        for name, values in found.items():
            values.append(means[name])
    return found


def collapse(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run `field-collapse`; returns the body of `result.json`."""
    keys = [(data, noise, i) for i in range(settings.runs) for data in DATA for noise in settings.noises]
    jobs = [
        {"data": data, "noise": noise, "seed": seed + i}
        | {"rows": settings.rows, "steps": settings.trained, "starts": settings.starts, "descent": settings.descent}
        for data, noise, i in keys
    ]
    results = dict(zip(keys, run_jobs(optima, jobs, out, "field-collapse", quick, progress), strict=True))
    table: dict[str, dict[str, dict[str, Any]]] = {data: {} for data in DATA}
    for data in DATA:
        for noise in settings.noises:
            runs = [results[data, noise, i] for i in range(settings.runs)]
            numbers = {name: spread([float(run[name]) for run in runs]) for name in runs[0]}
            table[data][f"{noise:g}"] = {**numbers, "runs": settings.runs, **verdict(runs)}
    return {
        "optima": table,
        "settings": asdict(settings) | {"seeds": [seed + i for i in range(settings.runs)]},
        "figures": [save(_draw_collapse(table, settings), out / "collapse.png")],
    }


def verdict(runs: Sequence[Result]) -> dict[str, int]:
    """In how many runs the exact optimum collapses, the bound's does, as far as is known, and the trained VAE does.

    The bound's optimum has not collapsed where a bound is known that is lower than the NLL without z.
    """
    return {
        "likelihood_collapsed": sum(float(run["exact_information"]) < _COLLAPSED for run in runs),
        "bound_collapsed": sum(
            float(min(run["best_bound"], run["vae_bound"])) > float(run["without"]) - 1e-4 for run in runs
        ),
        "vae_collapsed": sum(float(run["vae_information"]) < _COLLAPSED for run in runs),
    }


def optima(data: str, noise: float, seed: int, rows: int, steps: int, starts: int, descent: int) -> dict[str, Any]:
    """One job, in nats per row of the training rows.

    `without` is the NLL of `N(mean, noise I)`, `exact` the lowest NLL found; `best_bound` the negative ELBO of that
    decoder with the best Gaussian for each row; `vae_bound` and `vae_exact` the negative ELBO and the exact NLL of the
    VAE with the lowest bound; the `information`s are mean divergences of the posterior, exact or the encoder's, from
    the prior.
    """
    X = load(data, n=rows, seed=seed).X
    decoders = [
        fixed(starting_point(kind, X, _UNITS, noise, seed + 1000 * k), noise) for k, kind in enumerate(_kinds(starts))
    ]
    best = min((exact_optimum(dgn, X, descent) for dgn in decoders), key=lambda pair: pair[0])
    vaes = [trained(copy.deepcopy(dgn), X, noise, seed, steps) for dgn in decoders]
    vae = min(vaes, key=lambda model: _bound(model, X))
    with torch.no_grad():
        q = vae.encode(X)
        told = torch.distributions.kl_divergence(q, vae.prior()).mean()
    exact, dgn = best
    return {
        "without": without(X, noise),
        "exact": exact,
        "exact_information": information(dgn, X),
        "best_bound": exact + float(gap(with_decoder(dgn, noise), X, starts=3).approximation.mean()),
        "vae_bound": _bound(vae, X),
        "vae_exact": -float(vae.dgn()().log_prob(X).mean().detach()),
        "vae_information": float(told),
    }


def _kinds(starts: int) -> list[str]:
    return ["curve", *["plain"] * (starts - 1)]


def fixed(dgn: DGN, noise: float) -> DGN:
    """The same generator with this noise."""
    return DGN(dgn.net, noise=noise)


def with_decoder(dgn: DGN, noise: float) -> GaussVAE:
    """A VAE with a decoder and any encoder."""
    return GaussVAE(copy.deepcopy(dgn.net), hidden=(4,), noise=noise, learn_noise=False, seed=0)


def exact_optimum(dgn: DGN, X: Array, descent: int) -> tuple[float, DGN]:
    """The NLL of the exact optimum at the noise of a generator, from its weights, and the generator there."""
    dgn = copy.deepcopy(dgn)
    for optimizer, steps in (("adam", descent), ("lbfgs", descent // 10)):
        girih.train(dgn, X, optimizer=optimizer, learn_noise=False, max_steps=steps, progress=False)  # type: ignore[arg-type]
    return -float(dgn().log_prob(X).mean().detach()), dgn


def trained(dgn: DGN, X: Array, noise: float, seed: int, steps: int) -> GaussVAE:
    """A VAE with this decoder, whose noise is held."""
    vae = GaussVAE(dgn.net, hidden=(64, 64), noise=noise, learn_noise=False, seed=seed)
    completed(vae.fit(X, samples=4, lr=2e-3, max_steps=steps, seed=seed, record_every=steps, progress=False))
    return vae


def without(X: Array, noise: float) -> float:
    """The NLL of `N(mean, noise I)`, nats per row."""
    D = X.shape[1]
    return float(0.5 * (X.var(0).sum() / noise + D * np.log(2.0 * np.pi * noise)))


def information(dgn: DGN, X: Array) -> float:
    """The mean of `KL(p(z | x) || p(z))` over rows, exact, for the prior `N(0, I)`."""
    posterior = dgn.posterior(X)
    square = posterior.mean.square().sum(1) + torch.diagonal(posterior.covariance, dim1=1, dim2=2).sum(1)
    cross = 0.5 * square + 0.5 * dgn.latent_dim * float(np.log(2.0 * np.pi))
    return float((cross - posterior.entropy()).mean().detach())


def _bound(vae: GaussVAE, X: Array) -> float:
    """The exact negative ELBO of the encoder's q, nats per row."""
    with torch.no_grad():
        q = vae.encode(X)
        assert isinstance(q, torch.distributions.Independent)
        return -float(vae.dgn().elbo(X, q.base_dist).mean())


@styled
def _draw_amortisation(table: Mapping[str, Any], settings: Settings) -> Figure:
    """The share of amortisation in the gap against the encoder's size, a line for each length of training."""
    figure = new_figure(7.2, 2.8)
    panels = figure.subplots(1, len(table), squeeze=False, sharey=True)[0]
    for ax, (data, by) in zip(panels, table.items(), strict=True):
        for style, step in zip(CYCLE, settings.steps, strict=False):
            shares = [by[str(width)][str(step)]["share"] for width in settings.encoders]
            label = f"{step:,} steps" if ax is panels[0] else None
            looks: Any = {"color": style["color"], "marker": style["marker"], "ms": 3.5, "lw": 1.1}
            ax.plot(settings.encoders, [one["median"] for one in shares], label=label, **looks)
            low, high = ([one[end] for one in shares] for end in ("min", "max"))
            ax.fill_between(settings.encoders, low, high, color=style["color"], alpha=0.12, lw=0)
        ax.axhline(0.5, color=GREY, lw=0.8, ls=(0, (4, 2)))
        ax.set_xscale("log", base=2)
        ax.set(xlabel="units of each layer of the encoder", title=data, ylim=(0.0, 1.02))
    panels[0].set_ylabel("share of amortisation in the gap")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def _draw_collapse(table: Mapping[str, Any], settings: Settings) -> Figure:
    """What z tells of x at the exact optimum and in the VAE, and how much the bound loses at the exact optimum."""
    figure = new_figure(7.2, 3.0)
    panels = figure.subplots(1, len(table), squeeze=False, sharey=True)[0]
    lines: tuple[tuple[str, str, str, Callable[[Mapping[str, Any]], float]], ...] = (
        ("exact optimum: KL(p(z | x) ‖ p(z))", BLACK, "o", lambda one: one["exact_information"]["median"]),
        ("trained VAE: KL(q(z | x) ‖ p(z))", VERMILLION, "s", lambda one: one["vae_information"]["median"]),
        (
            "gain of the best known bound over no z",
            GREY,
            "^",
            lambda one: one["without"]["median"] - min(one["best_bound"]["median"], one["vae_bound"]["median"]),
        ),
    )
    for ax, (data, by) in zip(panels, table.items(), strict=True):
        for label, colour, marker, value in lines:
            values = [max(value(by[f"{noise:g}"]), 1e-4) for noise in settings.noises]
            ax.plot(
                settings.noises,
                values,
                color=colour,
                marker=marker,
                ms=3.5,
                lw=1.1,
                label=label if ax is panels[0] else None,
            )
        ax.axhline(_COLLAPSED, color=GREY, lw=0.8, ls=(0, (4, 2)))
        ax.set_xscale("log")
        log_scale(ax, "y")
        ax.set(xlabel="noise variance, held fixed", title=data)
    panels[0].set_ylabel("nats per row")
    figure.legend(loc="outside lower center", ncols=1)
    return figure
