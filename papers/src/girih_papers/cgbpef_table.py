"""The free energies of three VAEs on MNIST or SVHN, the best of each by validation (CG-BPEF, Table 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from girih.errors import ParameterError
from girih_papers.cgbpef_data import images, split
from girih_papers.cgbpef_figures import Cell, Chosen, draw_curves, draw_free_energies, draw_images
from girih_papers.cgbpef_fits import CAT, CGBPEF, GAUSS, MODELS, fit_job, measure_job
from girih_papers.figures import save
from girih_papers.files import kept_in, write_text
from girih_papers.jobs import Result, run_jobs
from girih_papers.mas_toys import spread
from girih_papers.printed import paper_number
from girih_papers.settings import arguments


@dataclass(frozen=True)
class Settings:
    """What is run: by default the whole grid of the paper, 6,272 runs with 4 MB of weights each; less by shorter lists.

    Attributes:
        data: "mnist" or "svhn".
        path: of its files; without one, the 5,000 digits that come along.
        models: of `MODELS`.
        depths: hidden layers of encoder and of decoder, for MNIST.
        width: of these.
        latent_dims: S.
        orders: M of CG-BPEF-VAE.
        levels: R.
        categories: C of Cat-VAE.
        rates: of Adam.
        temperatures: T at the end.
        initial: T at the start; 0 for the same as at the end.
        samples: L.
        runs: splits of the rows, each with its own weights and order.
        steps: of 100 rows each.
        basis: of CG-BPEF-VAE's polynomials, "legendre" or "monomial".
        rows: that are used at most; 0 for all.
        more: draws for a better estimate of term 2.
        draws: of importance sampling.
        law_rows: test rows for which term 1 is worked out at the temperature of training.
    """

    data: str = "mnist"
    path: str = ""
    models: tuple[str, ...] = MODELS
    depths: tuple[int, ...] = (1, 2)
    width: int = 400
    latent_dims: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80)
    orders: tuple[int, ...] = (5, 10, 15, 20)
    levels: tuple[int, ...] = (51, 101)
    categories: tuple[int, ...] = (5, 10, 15, 20)
    rates: tuple[float, ...] = (1e-4, 5e-4, 1e-3, 5e-3)
    temperatures: tuple[float, ...] = (0.5, 0.8)
    initial: tuple[float, ...] = (1.0, 0.0)
    samples: tuple[int, ...] = (1, 10)
    runs: int = 1
    steps: int = 10_000
    basis: str = "legendre"
    rows: int = 0
    more: int = 100
    draws: int = 1000
    law_rows: int = 20


SETTINGS = Settings()
QUICK = Settings(
    depths=(1,),
    width=16,
    latent_dims=(2, 3),
    orders=(3,),
    levels=(11,),
    categories=(3,),
    rates=(1e-2,),
    temperatures=(0.5,),
    initial=(1.0,),
    samples=(1,),
    runs=2,
    steps=20,
    rows=210,
    more=3,
    draws=5,
    law_rows=2,
)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    for model in settings.models:
        if model not in MODELS:
            raise ParameterError(f"there is no model {model!r}; known are {', '.join(MODELS)}")
    X = images(settings.data, settings.path)  # refuses data that are not there before anything is trained
    grid = list(choices(settings))
    keys = [(number, i) for i in range(settings.runs) for number in range(len(grid))]
    jobs = {(number, i): arguments(fit_job, settings, seed=seed + i, **grid[number]) for number, i in keys}
    title = f"cgbpef-table, {settings.data}"
    trained = dict(zip(keys, run_jobs(fit_job, list(jobs.values()), out, title, quick, progress), strict=True))
    validated = [np.mean([trained[n, i]["validation"] for i in range(settings.runs)]) for n in range(len(grid))]
    best: dict[Cell, int] = {}
    for number in np.argsort(validated, kind="stable").tolist():
        best.setdefault(cell_of(grid[number]), number)
    best = {cell: best[cell] for cell in dict.fromkeys(map(cell_of, grid))}
    chosen_keys = [(number, i) for number in best.values() for i in range(settings.runs)]
    home = str(kept_in(out).resolve())
    measures = [arguments(measure_job, settings, training=jobs[key], folder=home) for key in chosen_keys]
    measured = dict(
        zip(chosen_keys, run_jobs(measure_job, measures, out, f"{title}, test", quick, progress), strict=True)
    )
    chosen: Chosen = {
        cell: [trained[number, i] | measured[number, i] for i in range(settings.runs)] for cell, number in best.items()
    }
    tried = Counter(map(cell_of, grid))
    paper = {cell: _printed(settings.data, cell) for cell in chosen}
    table = [_row(cell, grid[best[cell]], results, tried[cell], paper[cell]) for cell, results in chosen.items()]
    write_text(out / "table.md", _markdown(table))
    parts = split(X[: settings.rows or len(X)], settings.data, seed)
    return {
        "table": table,
        "rows": {"training": len(parts.train), "validation": len(parts.validation), "test": len(parts.held_out)},
        "differences": _differences(chosen),
        "settings": asdict(settings) | {"batch": 100, "seeds": [seed + i for i in range(settings.runs)]},
        "figures": [
            save(
                draw_free_energies(chosen, {cell: one for cell, one in paper.items() if one}), out / "free-energies.png"
            ),
            save(draw_curves(chosen), out / "curves.png"),
            save(draw_images(chosen), out / "images.png"),
        ],
    }


def choices(settings: Settings) -> Iterator[dict[str, Any]]:
    """The configurations of the grid, without those that a model would not notice.

    Example:
        >>> from girih_papers.cgbpef_table import QUICK, choices
        >>> [choice["model"] for choice in choices(QUICK)]
        ['Gauss-VAE', 'Gauss-VAE', 'Cat-VAE', 'Cat-VAE', 'CG-BPEF-VAE', 'CG-BPEF-VAE']
    """
    dense = settings.data == "mnist"
    for samples in settings.samples:
        for model in settings.models:
            own = settings
            if model != CGBPEF:
                own = replace(own, orders=(0,), levels=(0,))
            if model != CAT:
                own = replace(own, categories=(0,))
            if model == GAUSS:
                own = replace(own, temperatures=(0.0,), initial=(0.0,))
            yield from (
                {
                    "model": model,
                    "samples": samples,
                    "depth": depth,
                    "latent_dim": latent_dim,
                    "order": order,
                    "levels": levels,
                    "categories": categories,
                    "rate": rate,
                    "temperature": temperature,
                    "initial": initial,
                }
                for temperature in own.temperatures
                for depth in (own.depths if dense else (0,))
                for latent_dim in own.latent_dims
                for order in own.orders
                for levels in own.levels
                for categories in own.categories
                for rate in own.rates
                for initial in own.initial
            )


def cell_of(choice: Mapping[str, Any]) -> Cell:
    """The row of the paper's table that a configuration competes for: L, model and T."""
    return choice["samples"], choice["model"], choice["temperature"]


def _printed(data: str, cell: Cell) -> tuple[float, float] | None:
    """Term 2 and free energy of a row of Table 1, where the paper has it."""
    samples, model, temperature = cell
    row = f"{data}, L = {samples}, {model}" + (f", T = {temperature:g}" if temperature else "")
    if samples not in (1, 10) or temperature not in (0.0, 0.5, 0.8):
        return None
    term_2, free_energy = (paper_number("cgbpef-table", f"{row}: {name}") for name in ("term 2", "free energy"))
    return term_2, free_energy


_NUMBERS = (
    "term_1",
    "term_2",
    "free_energy",
    "free_energy_more",
    "free_energy_hard",
    "nll",
    "nll_effective_draws",
    "nll_relaxed",
    "nll_relaxed_effective_draws",
    "term_1_relaxed",
    "term_1_same_rows",
    "free_energy_relaxed",
)


def _row(
    cell: Cell,
    choice: Mapping[str, Any],
    results: Sequence[Result],
    tried: int,
    paper: tuple[float, float] | None,
) -> dict[str, Any]:
    """One row of the table: the best configuration, its numbers over the runs, and the paper's."""
    samples, model, temperature = cell
    return {
        "L": samples,
        "model": model,
        "T": temperature or None,
        "choice": {
            name: choice[name] for name in ("depth", "latent_dim", "order", "levels", "categories", "rate", "initial")
        },
        "configurations": tried,
        "validation": spread([float(result["validation"]) for result in results]),
        **{
            name: spread([float(result[name]) for result in results]) | {"runs": [float(one[name]) for one in results]}
            for name in _NUMBERS
            if name in results[0]
        },
        "standard_error_of_rows": [float(result["free_energy_error"]) for result in results],
        "standard_error_of_nll": [float(result["nll_error"]) for result in results],
        "best_steps": [int(result["best_step"]) for result in results],
        "seconds": spread([float(result["seconds"]) for result in results]),
        "parameters": int(results[0]["parameters"]),
        "paper": None if paper is None else {"term_2": paper[0], "free_energy": paper[1]},
    }


def _differences(chosen: Chosen) -> list[dict[str, Any]]:
    """How far each model is below Gauss-VAE with the same L and the same split of the rows."""
    found = []
    for (samples, model, temperature), results in chosen.items():
        rival = chosen.get((samples, GAUSS, 0.0))
        if model == GAUSS or rival is None:
            continue
        entry: dict[str, Any] = {"L": samples, "model": model, "T": temperature}
        for name in ("free_energy", "free_energy_more", "nll"):
            gains = [float(b[name]) - float(a[name]) for a, b in zip(results, rival, strict=True)]
            entry[f"{name}_below_gauss"] = spread(gains) | {"runs": gains}
        found.append(entry)
    return found


def _markdown(table: Sequence[Mapping[str, Any]]) -> str:
    heads = ["L", "model", "T", "S", "term 2", "free energy", "with hard codes", "with term 1 at T"]
    heads += ["importance-sampled NLL", "paper: term 2", "free energy"]
    lines = [heads, ["---"] * len(heads)]
    for row in table:
        paper = ["", ""] if row["paper"] is None else [f"{row['paper'][name]}" for name in ("term_2", "free_energy")]
        temperature = "" if row["T"] is None else f"{row['T']:g}"
        names = ("term_2", "free_energy", "free_energy_hard", "free_energy_relaxed", "nll")
        numbers = [_number(row[name]) if name in row else "" for name in names]
        lines.append([str(row["L"]), row["model"], temperature, str(row["choice"]["latent_dim"]), *numbers, *paper])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: Mapping[str, Any]) -> str:
    deviation = "" if np.isnan(value["deviation"]) else f" ± {value['deviation']:.1f}"
    return f"{value['mean']:.1f}{deviation}"


__all__ = ["QUICK", "SETTINGS", "Settings", "run"]
