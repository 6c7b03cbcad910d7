"""EM-DGN, Figs. 4 and 5: a noisy circle, EM against VAEs with the same initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from girih.datasets import load
from girih_papers.comparison import (
    EMS,
    TUNED,
    Budget,
    describe_runs,
    methods,
    run_all,
    summarise,
    workers_for,
)
from girih_papers.methods import Task
from girih_papers.toys import TUNED_OPTIONS, WEIGHT_SCALE, compare_on_toy

# The initial noise variance of all methods. At 1 half of the VAEs never leave the solution that ignores z.
_NOISE = 0.1
_WIDE = 32
_WIDE_SEEDS = 2


def run(out: Path, quick: bool, seed: int, progress: bool) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    _, result, rows = compare_on_toy("circle", 256, _NOISE, 8, 5, out, quick, seed, progress)
    # the wider generator: EM, and of the VAEs the best kind
    budget = Budget().quick() if quick else Budget()
    fresh = load("circle", n=result["settings"]["held_out_rows"], seed=seed + 1_000_000).X
    chosen = [m for m in methods(budget, TUNED_OPTIONS, WEIGHT_SCALE) if m.label in (*EMS, TUNED)]
    seeds = [seed + i for i in range(1 if quick else _WIDE_SEEDS)]
    tasks = [Task(method, rows, fresh, (1, _WIDE, 2), i, _NOISE) for method in chosen for i in seeds]
    outcomes = run_all(tasks, f"em-circle, width {_WIDE}", workers_for(quick), progress)
    result[f"width_{_WIDE}"] = {"methods": summarise(outcomes), "runs": describe_runs(outcomes)}
    return result
