"""The category KL that stands for term 1 against the KL of z = y^T zeta, over the temperature (CG-BPEF, Figs. 3, 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from girih.errors import ParameterError
from girih.plots import CYCLE, log_scale, new_figure, styled
from girih.vae import bpef
from girih_papers.arrays import Array
from girih_papers.concrete_law import z_law
from girih_papers.figures import save
from girih_papers.jobs import Result, run_jobs
from girih_papers.settings import arguments

# The three divergences by the names of `result.json`.
CATEGORY, PRINTED, TERM = "category", "z_to_uniform_density", "z_to_relaxed_uniform"
_LABELS = {
    CATEGORY: "categories to uniform (eq. 4)",
    PRINTED: "z to the uniform density, as printed",
    TERM: "z to the law of z under the relaxed uniform prior",
}
_LEAST = 1e-12  # a mass that rounding left at or below 0
_BLOCK = 20_000  # draws at a time


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        levels: R of zeta; as many intervals of (-1, 1) are told apart.
        repeats: categories drawn from each generator.
        shapes: of the Dirichlet generators; 1 is uniform on the simplex.
        order: of the polynomial generator `alpha_r = exp(sum_m c_m P_m(zeta_r))`, in Legendre polynomials.
        deviation: of its coefficients, which are Gaussian.
        temperatures: of the relaxation.
        finer: repeats for which four times as many intervals are told apart too.
        draws: sample sizes for which the bias of the sampled divergence is measured,
        draws_at: at this temperature.
    """

    levels: int = 100
    repeats: int = 100
    shapes: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0)
    order: int = 5
    deviation: float = 3.0
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6)
    finer: int = 5
    draws: tuple[int, ...] = (1_000, 10_000, 100_000)
    draws_at: float = 0.5


SETTINGS = Settings()
QUICK = Settings(levels=10, repeats=3, shapes=(0.5, 1.0), temperatures=(0.1, 0.5, 1.0), finer=1, draws=(100, 1_000))


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    if any(shape <= 0.0 for shape in settings.shapes):
        raise ParameterError(f"the shapes of Dirichlet distributions are above 0; got {settings.shapes}")
    # shape 0 stands for the polynomials
    shapes = (*settings.shapes, 0.0)
    keys = [(shape, temperature) for shape in shapes for temperature in settings.temperatures]
    jobs = [arguments(divergences, settings, shape=s, temperature=t, seed=seed) for s, t in keys]
    results = dict(zip(keys, run_jobs(divergences, jobs, out, "concrete-kl", quick, progress), strict=True))
    biases = [
        arguments(sampling_bias, settings, shape=s, temperature=settings.draws_at, seed=seed) for s in settings.shapes
    ]
    sampled = run_jobs(sampling_bias, biases, out, "concrete-kl, sampling", quick, progress)
    table = {}
    for shape in shapes:
        one = [results[shape, temperature] for temperature in settings.temperatures]
        table[_name(shape, settings.order)] = _summary(one, settings.temperatures)
    return {
        "generators": table,
        "sampling": {
            _name(shape, settings.order): {name: np.asarray(value).tolist() for name, value in one.items()}
            for shape, one in zip(settings.shapes, sampled, strict=True)
        },
        "settings": asdict(settings),
        "figures": [save(_draw(table), out / "kl.png")],
    }


def drawn(shape: float, levels: int, repeats: int, order: int, deviation: float, seed: int) -> Array:
    """The categories `(repeats, R)`, the same at every temperature: Dirichlet, or polynomials where the shape is 0."""
    rng = np.random.default_rng([seed, round(1000 * shape)])
    if shape > 0.0:
        return np.asarray(rng.dirichlet(np.full(levels, shape), repeats))
    basis = bpef.polynomials(bpef.levels(levels), order, "legendre").numpy()
    logits = deviation * rng.standard_normal((repeats, order)) @ basis.T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def divergences(
    shape: float,
    temperature: float,
    levels: int,
    repeats: int,
    order: int,
    deviation: float,
    finer: int,
    seed: int,
) -> dict[str, Array]:
    """One job: the three divergences of every repeat in nats, and the last two with four times the intervals."""
    alphas = drawn(shape, levels, repeats, order, deviation, seed)
    uniform = np.full(levels, 1.0 / levels)
    found: dict[str, Array] = {CATEGORY: np.array([kl(alpha, uniform) for alpha in alphas])}
    for name, bins, rows in (("", levels, alphas), ("_finer", 4 * levels, alphas[:finer])):
        flat, prior = np.full(bins, 1.0 / bins), z_law(uniform, temperature, bins)
        laws = [z_law(alpha, temperature, bins) for alpha in rows]
        found[PRINTED + name] = np.array([kl(law, flat) for law in laws])
        found[TERM + name] = np.array([kl(law, prior) for law in laws])
    return found


def sampling_bias(
    shape: float,
    temperature: float,
    levels: int,
    repeats: int,
    order: int,
    deviation: float,
    draws: Sequence[int],
    seed: int,
) -> dict[str, Array]:
    """One job: how far KL(z : uniform) from a histogram of draws, the paper's way, is above the exact one.

    A histogram of N draws over B intervals is too high by about (B - 1) / 2N; twice the value at N less that at N / 2
    has no such term.
    """
    alphas = drawn(shape, levels, min(repeats, 10), order, deviation, seed)
    rng = np.random.default_rng([seed, 1])
    flat = np.full(levels, 1.0 / levels)
    exact = np.array([kl(z_law(alpha, temperature, levels), flat) for alpha in alphas])
    excess, corrected = [], []
    for count in draws:
        halves = np.array([[_histogram(rng, alpha, temperature, count // 2) for _ in range(2)] for alpha in alphas])
        whole = np.array([kl(both.sum(0) / both.sum(), flat) for both in halves])
        half = np.array([np.mean([kl(one / one.sum(), flat) for one in both]) for both in halves])
        excess.append((whole - exact).mean())
        corrected.append((2.0 * whole - half - exact).mean())
    predicted = [(levels - 1) / (2.0 * count) for count in draws]
    return {
        "draws": np.array(draws),
        "excess": np.array(excess),
        "predicted": np.array(predicted),
        "excess_extrapolated": np.array(corrected),
    }


def kl(p: Array, q: Array) -> float:
    """`KL(p : q)` of masses, in nats.

    Example:
        >>> import numpy as np
        >>> from girih_papers.concrete_kl import kl
        >>> round(kl(np.array([1.0, 0.0]), np.array([0.5, 0.5])), 6)
        0.693147
    """
    p = np.maximum(p, 0.0)
    return float(np.sum(np.where(p > 0.0, p * np.log(np.maximum(p, _LEAST) / np.maximum(q, _LEAST)), 0.0)))


def _histogram(rng: np.random.Generator, alpha: Array, temperature: float, count: int) -> Array:
    """How many of `count` draws of z fall into each interval."""
    bins = len(alpha)
    zeta, edges = np.linspace(-1.0, 1.0, bins), np.linspace(-1.0, 1.0, bins + 1)
    total = np.zeros(bins)
    for start in range(0, count, _BLOCK):
        gumbels = rng.gumbel(size=(min(_BLOCK, count - start), bins))
        logits = (gumbels + np.log(np.maximum(alpha, 1e-300))) / temperature
        y = np.exp(logits - logits.max(1, keepdims=True))
        total += np.histogram(y @ zeta / y.sum(1), edges)[0]
    return total


def _name(shape: float, order: int) -> str:
    return f"Dirichlet, shape {shape:g}" if shape else f"polynomial of order {order}"


def _summary(results: Sequence[Result], temperatures: Sequence[float]) -> dict[str, Any]:
    """Means and deviations over the repeats at each temperature, and how often the category KL is above the others."""
    category = results[0][CATEGORY]
    body: dict[str, Any] = {
        "temperatures": list(temperatures),
        CATEGORY: {"mean": float(category.mean()), "deviation": float(category.std())},
    }
    for name in (PRINTED, TERM):
        above = [float((one[CATEGORY] >= one[name]).mean()) for one in results]
        body[name] = {
            "mean": [float(one[name].mean()) for one in results],
            "deviation": [float(one[name].std()) for one in results],
            "category_is_above_in": above,
            "category_is_above_in_all_up_to": _up_to(above, temperatures),
            "rise_with_finer_intervals": [
                float((one[f"{name}_finer"] - one[name][: len(one[f"{name}_finer"])]).mean()) for one in results
            ],
        }
    return body


def _up_to(shares: Sequence[float], temperatures: Sequence[float]) -> float | None:
    """The last of the temperatures before the first at which a share is below 1."""
    last = None
    for share, temperature in zip(shares, temperatures, strict=True):
        if share < 1.0:
            break
        last = float(temperature)
    return last


@styled
def _draw(table: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Mean and deviation of the three divergences against the temperature; a panel for each generator."""
    columns = min(3, len(table))
    rows = -(-len(table) // columns)
    figure = new_figure(2.4 * columns, 2.1 * rows + 0.4)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for ax, (generator, one) in zip(panels, table.items(), strict=False):
        temperatures = one["temperatures"]
        means = {name: np.broadcast_to(one[name]["mean"], len(temperatures)) for name in _LABELS}
        least = 0.5 * float(np.min(list(means.values())))
        for (name, mean), style in zip(means.items(), CYCLE, strict=False):
            deviation = np.broadcast_to(one[name]["deviation"], len(temperatures))
            low, high = np.maximum(mean - deviation, least), mean + deviation
            ax.fill_between(temperatures, low, high, color=style["color"], alpha=0.15, lw=0)
            ax.plot(temperatures, mean, ms=2.5, label=_LABELS[name], **style)
        log_scale(ax, "y")
        ax.set_ylim(least, None)
        ax.set_title(generator)
    for ax in panels[len(table) :]:
        ax.set_visible(False)
    for ax in panels[max(0, len(table) - columns) : len(table)]:
        ax.xaxis.set_tick_params(labelbottom=True)
        ax.set_xlabel("temperature T")
    for ax in panels[::columns]:
        ax.set_ylabel("KL divergence\n(nats, log scale)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


__all__ = ["QUICK", "SETTINGS", "Settings", "run"]
