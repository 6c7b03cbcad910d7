"""Beyond the papers: RAD on real tables, beside Real NVP, spline flows, Gaussian mixtures and generators by exact EM.

Nobody may have more parameters than a small RAD flow, and flows have as many. All models see the same rows: the
training rows, and validation rows that choose among the settings of each and end gradient training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from girih.plots import CYCLE, LIGHT, new_figure, styled
from girih_papers.figures import save
from girih_papers.files import write_text
from girih_papers.jobs import Result, run_jobs
from girih_papers.mas_toys import spread
from girih_papers.rad_tables_data import TABLES, continuous, split
from girih_papers.rad_tables_fits import FLOWS, budget, fit_flow, fit_generator, fit_mixture
from girih_papers.rivals import Fitted, Rows
from girih_papers.settings import arguments

MIXTURE, GENERATOR = "Gaussian mixture", "DGN, exact EM"
METHODS = (*FLOWS, MIXTURE, GENERATOR)


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        tables: of `rad_tables_data`.
        runs: splits of the rows, with a seed each.
        transforms: the numbers of couplings to choose from; the budget is that of the first for RAD.
        hidden: RAD's hidden units for the budget.
        rates: Adam's step sizes to choose from.
        steps: gradient steps at most, for each choice.
        components: of the mixtures to choose from.
        floors: variances to choose from that are added to those of mixtures and to the noise of generators.
        latent_dims: of the generators to choose from.
        widths: of their hidden layer; 0 for a linear generator.
        noises: the shapes of their noise.
        iterations: of EM at most.
        starts: of EM, for each choice.
    """

    tables: tuple[str, ...] = tuple(TABLES)
    runs: int = 5
    transforms: tuple[int, ...] = (2, 4)
    hidden: int = 8
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    steps: int = 3000
    components: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20)
    floors: tuple[float, ...] = (1e-6, 1e-3, 1e-2, 1e-1)
    latent_dims: tuple[int, ...] = (1, 2)
    widths: tuple[int, ...] = (0, 4, 8, 16)
    noises: tuple[str, ...] = ("diagonal", "full")
    iterations: int = 100
    starts: int = 2


SETTINGS = Settings()
QUICK = Settings(
    tables=("iris",),
    runs=2,
    transforms=(2,),
    hidden=3,
    rates=(1e-2,),
    steps=20,
    components=(1, 2),
    floors=(1e-3,),
    latent_dims=(1,),
    widths=(4,),
    noises=("full",),
    iterations=5,
    starts=1,
)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    shapes = {table: continuous(table, seed).shape for table in settings.tables}  # refuses unknown tables
    results: dict[tuple[str, str, int], Result] = {}
    for job, methods in ((flow_job, tuple(FLOWS)), (mixture_job, (MIXTURE,)), (generator_job, (GENERATOR,))):
        keys = [(table, method, i) for table in settings.tables for method in methods for i in range(settings.runs)]
        jobs = []
        for table, method, i in keys:
            more = {"kind": method} if method in FLOWS else {}
            jobs.append(arguments(job, settings, table=table, seed=seed + i, **more))
        title = f"rad-tables, {'flows' if len(methods) > 1 else methods[0]}"
        results |= dict(zip(keys, run_jobs(job, jobs, out, title, quick, progress), strict=True))
    tables = {
        table: {"rows": rows, "columns": columns, "budget": budget(columns, settings.transforms[0], settings.hidden)}
        | _summary({method: [results[table, method, i] for i in range(settings.runs)] for method in METHODS})
        for table, (rows, columns) in shapes.items()
    }
    write_text(out / "table.md", _markdown(tables))
    return {
        "tables": tables,
        "settings": asdict(settings) | {"seeds": [seed + i for i in range(settings.runs)]},
        "figures": [save(_draw(tables), out / "tables.png")],
    }


def flow_job(
    table: str,
    kind: str,
    seed: int,
    transforms: Sequence[int],
    hidden: int,
    rates: Sequence[float],
    steps: int,
) -> dict[str, Any]:
    """One job: a flow on one split of a table."""
    rows = split(continuous(table, seed), seed)
    size = budget(rows.train.shape[1], transforms[0], hidden)
    return _measured(fit_flow(kind, rows, transforms, size, rates, steps, seed), rows)


def mixture_job(
    table: str, seed: int, transforms: Sequence[int], hidden: int, components: Sequence[int], floors: Sequence[float]
) -> dict[str, Any]:
    """One job: a Gaussian mixture on one split of a table."""
    rows = split(continuous(table, seed), seed)
    most = budget(rows.train.shape[1], transforms[0], hidden)
    return _measured(fit_mixture(rows, components, floors, most, seed), rows)


def generator_job(
    table: str,
    seed: int,
    transforms: Sequence[int],
    hidden: int,
    latent_dims: Sequence[int],
    widths: Sequence[int],
    noises: Sequence[str],
    floors: Sequence[float],
    iterations: int,
    starts: int,
) -> dict[str, Any]:
    """One job: a generator with noise by exact EM, on one split of a table."""
    rows = split(continuous(table, seed), seed)
    most = budget(rows.train.shape[1], transforms[0], hidden)
    return _measured(fit_generator(rows, latent_dims, widths, noises, floors, iterations, starts, most, seed), rows)


def _measured(fitted: Fitted, rows: Rows) -> dict[str, Any]:
    held_out = -fitted.log_prob(rows.held_out)
    return {
        "nll": held_out.mean(),
        "median_nll": np.median(held_out),
        "training_nll": fitted.nll(rows.train),
        "parameters": fitted.parameters,
        "seconds": fitted.seconds,
        "choice": json.dumps(fitted.choice),
    }


def _summary(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """What `result.json` has of a table."""
    methods: dict[str, dict[str, Any]] = {}
    for method, runs in results.items():
        numbers = {name: [float(one[name]) for one in runs] for name in runs[0] if name != "choice"}
        methods[method] = {
            "nll": spread(numbers["nll"]),
            "runs": numbers["nll"],
            "median_of_rows": spread(numbers["median_nll"]),
            "training_nll": spread(numbers["training_nll"]),
            "parameters": [int(number) for number in numbers["parameters"]],
            "cpu_seconds": spread(numbers["seconds"]),
            "choices": [json.loads(str(one["choice"])) for one in runs],
        }
    ours = np.array(methods["RAD"]["runs"])
    for one in methods.values():
        one["above_rad"] = spread(np.array(one["runs"]) - ours)
    lowest = [min(methods, key=lambda method: methods[method]["runs"][i]) for i in range(len(ours))]
    return {"methods": methods, "lowest": {method: lowest.count(method) for method in methods}}


def _markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Held-out NLL and parameters: a row for each method, a column for each table."""
    heads = [f"{TABLES[name]} ({one['rows']} x {one['columns']})" for name, one in tables.items()]
    lines = [["nats per row", *heads], ["---"] * (len(heads) + 1)]
    for method in METHODS:
        cells = [one["methods"][method] for one in tables.values()]
        lines.append([method, *(f"{_number(cell['nll'])}; {_range(cell['parameters'])} parameters" for cell in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(nll: Mapping[str, float]) -> str:
    spread = "" if np.isnan(nll["deviation"]) else f" ± {nll['deviation']:,.2f}"
    return f"{nll['mean']:,.2f}{spread}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@styled
def _draw(tables: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The held-out NLL of every split, and their median; a panel for each table."""
    figure = new_figure(max(3.5, 0.9 + 1.6 * len(tables)), 2.5)
    panels = np.atleast_1d(figure.subplots(1, len(tables), sharey=True))
    for ax, (name, one) in zip(panels, tables.items(), strict=True):
        _panel(ax, one["methods"])
        ax.set_title(f"{TABLES[name]}\n({one['rows']} × {one['columns']})")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    panels[0].set_yticks(range(len(METHODS)), METHODS)
    panels[0].set_ylim(len(METHODS) - 0.5, -0.5)
    label = "held-out NLL (nats per row), lower is better; a dot for each split of the rows, and their median"
    figure.supxlabel(label if len(tables) > 2 else label.replace("; ", ";\n"), fontsize=8.5)
    return figure


def _panel(ax: Axes, methods: Mapping[str, Mapping[str, Any]]) -> None:
    medians = [float(np.median(one["runs"])) for one in methods.values()]
    low = min(min(one["runs"]) for one in methods.values())
    # what lies beyond is named, not drawn to scale: one row far out can cost a flow hundreds of nats
    end = 2.0 * max(medians) - low
    for place, (one, median) in enumerate(zip(methods.values(), medians, strict=True)):
        runs, style = np.array(one["runs"]), CYCLE[place]
        inside = runs[runs <= end]
        ax.plot([runs.min(), min(runs.max(), end)], [place, place], color=LIGHT, lw=2.0, zorder=1)
        ax.plot(inside, np.full(len(inside), place), ls="", marker="o", ms=2.6, mew=0, color=style["color"], alpha=0.6)
        ax.plot(median, place, ls="", marker=style["marker"], ms=5.0, mec="white", mew=0.6, color=style["color"])
        if runs.max() > end:
            ax.plot(end, place, ls="", marker=">", ms=3.5, color=style["color"])
            text = f"to {runs.max():,.0f}" if runs.max() >= 100.0 else f"to {runs.max():.3g}"
            ax.annotate(text, (end, place), xytext=(0, 5), textcoords="offset points", ha="right", fontsize=6.0)


__all__ = ["GENERATOR", "METHODS", "MIXTURE", "QUICK", "SETTINGS", "Settings", "run"]
