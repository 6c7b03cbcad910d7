"""EM against VAEs: the same data and initial weights for all, the exact NLL of each, and how fast it falls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from girih_papers.arrays import Array
from girih_papers.jobs import Result, run_jobs
from girih_papers.methods import Method, Outcome, Task, execute

# The learning rates of the paper.
RATES = (0.005, 0.001, 0.0001)
SAME_START, RESTARTS, WEIGHT_PRIOR, TUNED = "EM, same start", "EM, restarts", "EM, weight prior", "VAE, tuned"
EMS = (SAME_START, RESTARTS, WEIGHT_PRIOR)
PAPER_VAES = tuple(f"VAE, rate {rate:g}" for rate in RATES)
_EM_NAMES = ("same_start", "restarts", "weight_prior")
_HISTORY, _PARAMETER = "history.", "parameter."


@dataclass(frozen=True)
class Budget:
    """How long a comparison may take: caps, and when a run has stopped improving.

    Attributes:
        em_iterations: cap for EM.
        em_tol: EM has converged when three iterations in a row each gain less, in nats per row.
        vae_steps: caps in gradient steps, for each of `RATES` and for the tuned VAE.
        record_every: gradient steps between records.
        patience: a VAE has stopped when so many records in a row bring no improvement
        min_improvement: by this much, relative to max(1, |NLL|).
    """

    em_iterations: int = 2000
    em_tol: float = 1e-6
    vae_steps: tuple[int, int, int, int] = (30_000, 40_000, 60_000, 25_000)
    record_every: int = 250
    patience: int = 40
    min_improvement: float = 1e-3

    def quick(self) -> Budget:
        """The same in seconds."""
        return replace(self, em_iterations=12, vae_steps=(40, 40, 40, 40), record_every=10)


def methods(
    budget: Budget, tuned: Mapping[str, Any], weight_scale: float, batch_size: int | None = None
) -> list[Method]:
    """EM from the given weights, with its default restarts, and with a prior on the weights; VAEs; a tuned VAE.

    Args:
        budget: caps and stopping.
        tuned: options of the tuned VAE that differ from those of the others.
        weight_scale: the deviation of the Gaussian weight prior (EM-DGN, appendix H).
        batch_size: rows of a gradient step; all by default.
    """
    em = {"max_iter": budget.em_iterations, "tol": budget.em_tol}
    vae = {
        "hidden": (32, 32),
        "batch_size": batch_size,
        "record_every": budget.record_every,
        "patience": budget.patience,
        "min_improvement": budget.min_improvement,
    }
    out = [
        Method(SAME_START, "em", em | {"n_init": 0}),
        Method(RESTARTS, "em", em | {"n_init": 5}),
        Method(WEIGHT_PRIOR, "em", em | {"n_init": 0, "weight_prior": ("gaussian", weight_scale)}),
    ]
    for label, rate, steps in zip(PAPER_VAES, RATES, budget.vae_steps, strict=False):
        out.append(Method(label, "vae", {**vae, "lr": rate, "max_steps": steps}))
    out.append(Method(TUNED, "vae", {**vae, **tuned, "max_steps": budget.vae_steps[-1]}))
    return out


def run_all(tasks: Sequence[Task], out: Path, description: str, quick: bool, progress: bool) -> list[Outcome]:
    """Carry out runs, those in the folder but once, and give their outcomes in the order of the tasks."""
    costly = sorted(range(len(tasks)), key=lambda i: -_cost(tasks[i]))  # so that no long run starts last
    results = run_jobs(carried_out, [{"task": tasks[i]} for i in costly], out, description, quick, progress)
    outcomes = {i: outcome_of(tasks[i], result) for i, result in zip(costly, results, strict=True)}
    return [outcomes[i] for i in range(len(tasks))]


def carried_out(task: Task) -> dict[str, Any]:
    """One job: what a run gave, as numbers and arrays."""
    outcome = execute(task)
    history = {f"{_HISTORY}{name}": values for name, values in outcome.history.items()}
    parameters = {f"{_PARAMETER}{i:03d}": value for i, value in enumerate(outcome.parameters)}
    return {"converged": outcome.converged, "held_out_nll": outcome.held_out_nll} | history | parameters


def outcome_of(task: Task, result: Result) -> Outcome:
    """The outcome of a run whose job gave this."""
    history = {name.removeprefix(_HISTORY): result[name] for name in result if name.startswith(_HISTORY)}
    parameters = [result[name] for name in sorted(result) if name.startswith(_PARAMETER)]
    told = (task.method.label, task.method.kind, task.seed, history, bool(result["converged"]))
    return Outcome(*told, float(result["held_out_nll"]), parameters, tuple(task.sizes))


def summarise(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """For each method the median and range over its runs of what a table needs."""
    table: dict[str, dict[str, Any]] = {}
    for label, runs in by_label(outcomes).items():
        last = [run.history for run in runs]
        table[label] = {
            "runs": len(runs),
            "nll": spread([run.nll for run in runs]),
            "best_nll": spread([run.best_nll for run in runs]),
            "held_out_nll": spread([run.held_out_nll for run in runs]),
            "seconds": spread([h["seconds"][-1] for h in last]),
            "steps": spread([h["step"][-1] for h in last]),
            "stopped_improving": sum(run.converged for run in runs),
            "largest_rise": max(largest_rise(run.objective) for run in runs),
        }
        if "kl" in last[0]:
            table[label]["kl"] = spread([h["kl"][-1] for h in last])
            table[label]["negative_elbo"] = spread([-h["elbo"][-1] for h in last])
    return table


def race(outcomes: Iterable[Outcome], em: str, vaes: Sequence[str]) -> dict[str, Any]:
    """When EM reaches the lowest exact NLL of any of the VAEs from the same weights, against that VAE's time.

    `fraction` is EM's seconds over the VAE's, one for each seed, `None` where EM does not get there. For `most` the
    level is the one at which the VAE had 95% of its fall from the initial NLL, so that its last slow steps do not
    count.
    """
    grouped = by_label(outcomes)
    rows = []
    for run in grouped[em]:
        rivals = [r for label in vaes for r in grouped.get(label, []) if r.seed == run.seed and r.sizes == run.sizes]
        best = min(rivals, key=lambda r: r.best_nll)
        first = float(best.history["nll"][0])
        row: dict[str, Any] = {"seed": run.seed, "rival": best.label}
        for name, level in (("", best.best_nll), ("most_", first - 0.95 * (first - best.best_nll))):
            mine, theirs = run.seconds_to(level), best.seconds_to(level)
            fraction = None if mine is None or theirs is None else mine / max(theirs, 1e-9)
            row |= {f"{name}nll": level, f"{name}em_seconds": mine, f"{name}vae_seconds": theirs}
            row[f"{name}fraction"] = fraction
        row["vae_total_seconds"] = float(best.history["seconds"][-1])
        rows.append(row)
    return {
        "em": em,
        "against": list(vaes),
        "reached": sum(row["fraction"] is not None for row in rows),
        "fraction": spread([row["fraction"] for row in rows]),
        "most_fraction": spread([row["most_fraction"] for row in rows]),
        "lower_nll": sum(run.nll < row["nll"] for run, row in zip(grouped[em], rows, strict=True)),
        "runs": rows,
    }


def headline(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The few numbers that say how the comparison went."""
    table = summarise(outcomes)
    vaes = [label for label in (*PAPER_VAES, TUNED) if label in table]
    paper = min((label for label in PAPER_VAES), key=lambda label: table[label]["nll"]["median"])
    return {
        "nll_em_same_start": table[SAME_START]["nll"]["median"],
        "nll_em_restarts": table[RESTARTS]["nll"]["median"],
        "nll_em_weight_prior": table[WEIGHT_PRIOR]["nll"]["median"],
        "nll_best_vae_of_the_paper": table[paper]["nll"]["median"],
        "nll_best_vae": min(table[label]["nll"]["median"] for label in vaes),
        "em_largest_rise": max(table[label]["largest_rise"] for label in EMS),
    } | {f"largest_time_fraction_{name}": _at_most(outcomes, label) for name, label in zip(_EM_NAMES, EMS, strict=True)}


def _at_most(outcomes: Sequence[Outcome], em: str) -> float | str:
    """The largest fraction of time that EM took to the level of the best of the paper's VAEs."""
    fraction = race(outcomes, em, PAPER_VAES)["fraction"]["max"]
    return "not reached in every run" if fraction is None else float(fraction)


def races(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Every kind of EM against the paper's VAEs, and against the tuned one."""
    return [race(outcomes, em, vaes) for em in EMS for vaes in (PAPER_VAES, (TUNED,))]


def describe_runs(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One entry a run, without its curves."""
    return [
        {
            "method": run.label,
            "sizes": list(run.sizes),
            "seed": run.seed,
            "nll": run.nll,
            "best_nll": run.best_nll,
            "held_out_nll": run.held_out_nll,
            "noise": float(run.parameters[-1]),
            "steps": int(run.history["step"][-1]),
            "seconds": float(run.history["seconds"][-1]),
            "ended": "stopped improving" if run.converged else "at its cap",
        }
        for run in outcomes
    ]


def curves(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The recorded curves, for a file of their own; curves longer than a thousand points are thinned evenly."""
    out = []
    for run in outcomes:
        length = len(run.history["step"])
        keep = np.unique(np.linspace(0, length - 1, min(length, 1000)).round().astype(int))
        history = {name: values[keep].tolist() for name, values in run.history.items()}
        out.append({"method": run.label, "sizes": list(run.sizes), "seed": run.seed, **history})
    return out


def by_label(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """The runs of each method."""
    groups: dict[str, list[Outcome]] = {}
    for run in outcomes:
        groups.setdefault(run.label, []).append(run)
    return groups


def largest_rise(nll: Array) -> float:
    """The largest step up of a curve; 0 if it never rises."""
    return max(0.0, float(np.diff(nll).max())) if len(nll) > 1 else 0.0


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Median and range; a missing value counts as larger than any, and is `None`."""
    numbers = sorted(float("inf") if value is None else float(value) for value in values)
    found = {"median": _median(numbers), "min": numbers[0], "max": numbers[-1]}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def _median(numbers: list[float]) -> float:
    middle = len(numbers) // 2
    return numbers[middle] if len(numbers) % 2 else 0.5 * (numbers[middle - 1] + numbers[middle])


def _cost(task: Task) -> float:
    result: float = float(task.method.options.get("max_steps", 0)) * task.method.options.get("samples", 1) ** 0.3
    return result
