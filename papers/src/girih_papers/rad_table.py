"""RAD, section 3.3: the log-likelihood of RAD and Real NVP on six problems, beside the entropy and the paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from girih.plots import CYCLE, new_figure, styled
from girih_papers.figures import save
from girih_papers.mas_toys import spread
from girih_papers.rad_toys import HIDDEN, PROBLEMS, check_problems, data_of, trained


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        problems: of section 3.1.
        runs: with a seed each, of data and of weights.
        rows: of training data, and as many of each kind that is not trained on.
        steps: of Adam, batches of 500.
        lr: its step size.
        noise: the standard deviation of the noise of the problems, instead of their own where it is not 0.
        hidden: units of Real NVP, instead of the paper's 56 where it is not 0; 32 make as many parameters as RAD has.
        models: a folder with trained flows of another figure; by default the output folder.
    """

    problems: tuple[str, ...] = tuple(PROBLEMS)
    runs: int = 5
    rows: int = 10_000
    steps: int = 50_000
    lr: float = 1e-3
    noise: float = 0.0
    hidden: int = 0
    models: str = ""


SETTINGS = Settings()
QUICK = Settings(problems=("ring-mixture", "moons"), runs=2, rows=300, steps=20, lr=1e-2)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    check_problems(settings.problems)
    folder = Path(settings.models) if settings.models else out
    results = trained(
        settings.problems,
        settings.runs,
        settings.rows,
        settings.steps,
        settings.lr,
        seed,
        folder,
        "rad-table",
        quick,
        progress,
        settings.noise,
        settings.hidden,
    )
    table: dict[str, Any] = {}
    for problem in settings.problems:
        entropy = data_of(problem, 1, seed, noise=settings.noise).entropy
        assert entropy is not None
        ours: dict[str, Any] = {}
        for model in HIDDEN:
            mine = [results[problem, model, i] for i in range(settings.runs)]
            values = [float(result["log_likelihood"]) for result in mine]
            ours[model] = {
                "log_likelihood": spread(values),
                "gap": spread([-entropy - value for value in values]),
                "runs": values,
                "best_steps": [int(result["best_step"]) for result in mine],
                "parameters": int(mine[0]["parameters"]),
                "seconds": spread([float(result["seconds"]) for result in mine]),
            }
        better = [a > b for a, b in zip(ours["RAD"]["runs"], ours["Real NVP"]["runs"], strict=True)]
        table[problem] = {
            "best_possible": -entropy,
            "ours": ours,
            "rad_is_better_in": int(sum(better)),
        }
    return {
        "problems": table,
        "settings": {
            "rows": settings.rows,
            "steps": settings.steps,
            "lr": settings.lr,
            "batch": 500,
            "couplings": 6,
            "hidden": HIDDEN | ({"Real NVP": settings.hidden} if settings.hidden else {}),
            "noise": settings.noise or "of each problem",
            "seeds": [seed + i for i in range(settings.runs)],
        },
        "figures": [save(_draw(table), out / "gaps.png")],
    }


@styled
def _draw(table: dict[str, Any]) -> Figure:
    """How far each run stays below the entropy, on a logarithmic scale."""
    figure = new_figure(4.6, 3.0)
    ax = figure.add_subplot()
    for (i, model), style in zip(enumerate(HIDDEN), CYCLE, strict=False):
        for place, problem in enumerate(table):
            gaps = np.array(
                [table[problem]["best_possible"] - value for value in table[problem]["ours"][model]["runs"]]
            )
            at = place + (i - 0.5) * 0.3 + np.linspace(-0.06, 0.06, len(gaps))
            label = f"{model}, {table[problem]['ours'][model]['parameters']:,} parameters" if place == 0 else None
            ax.plot(at, gaps, ls="", marker=style["marker"], ms=3.5, color=style["color"], alpha=0.8, label=label)
    names = [PROBLEMS[problem].replace(" ", "\n") for problem in table]
    ax.set_xticks(range(len(table)), names)
    ax.set(yscale="log", ylabel="gap to the entropy of the data\n(nats per row, log scale)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
