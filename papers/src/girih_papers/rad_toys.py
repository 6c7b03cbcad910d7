"""What the reproductions of RAD share: its six problems, and RAD and Real NVP trained on them, once for all figures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from girih.datasets import Dataset, load
from girih.errors import ParameterError
from girih.flows import RAD, Flow, RealNVP
from girih_papers.jobs import Result, completed, run_jobs, weights_of, with_weights

# The problems of section 3.1 by the names of our data sets, in the order of the paper's table.
PROBLEMS = {
    "grid-mixture": "grid Gaussian mixture",
    "ring-mixture": "ring Gaussian mixture",
    "moons": "two moons",
    "circles": "two circles",
    "spiral": "spiral",
    "many-moons": "many moons",
}
# Hidden units of each network: seven times more for Real NVP, as in the paper.
HIDDEN = {"RAD": 8, "Real NVP": 56}
COUPLINGS = 6
BATCH = 500
_VALIDATION, _TEST = 1_000_000, 2_000_000  # added to a seed: rows that training does not see


@dataclass(frozen=True)
class Settings:
    """What is run, for the figures of one trained flow of each kind.

    Attributes:
        problems: of section 3.1.
        rows: of training data, and as many of each kind that is not trained on.
        steps: of Adam, batches of 500.
        lr: its step size.
        draws: points that are drawn, and behind the numbers.
        models: a folder with trained flows of another figure; by default the output folder.
    """

    problems: tuple[str, ...] = tuple(PROBLEMS)
    rows: int = 10_000
    steps: int = 50_000
    lr: float = 1e-3
    draws: int = 5000
    models: str = ""


SETTINGS = Settings()
QUICK = Settings(problems=("ring-mixture", "moons"), rows=300, steps=20, lr=1e-2, draws=100)


def trained_pairs(
    settings: Settings, out: Path, seed: int, name: str, quick: bool, progress: bool
) -> tuple[dict[tuple[str, str], Flow], dict[tuple[str, str], Result]]:
    """One flow of each kind for each problem, and what is known of its training.

    Raises:
        ParameterError: there is no such problem.
    """
    check_problems(settings.problems)
    folder = Path(settings.models) if settings.models else out
    results = trained(
        settings.problems, 1, settings.rows, settings.steps, settings.lr, seed, folder, name, quick, progress
    )
    pairs = {(problem, model): result for (problem, model, _), result in results.items()}
    return {(problem, model): restored(model, result) for (problem, model), result in pairs.items()}, pairs


def described(settings: Settings, seed: int) -> dict[str, Any]:
    """The settings as `result.json` has them."""
    numbers = {name: value for name, value in asdict(settings).items() if name not in ("problems", "models")}
    return numbers | {"batch": BATCH, "couplings": COUPLINGS, "hidden": HIDDEN, "seeds": [seed]}


def check_problems(problems: Sequence[str]) -> None:
    """Refuse a problem that is not among the six.

    Raises:
        ParameterError: one is not.
    """
    for problem in problems:
        if problem not in PROBLEMS:
            raise ParameterError(f"there is no problem {problem!r}; known are {', '.join(PROBLEMS)}")


def short(problem: str) -> str:
    """The name of a problem as the title of a narrow panel."""
    return PROBLEMS[problem].replace(" Gaussian", "\nGaussian")


def make_flow(model: str, seed: int, hidden: int | None = None) -> Flow:
    """RAD or Real NVP with six couplings, as in section 3.2; `hidden` units instead of those of `HIDDEN`."""
    widths = (hidden or HIDDEN[model],)
    if model == "RAD":
        return RAD(2, transforms=COUPLINGS, hidden_features=widths, seed=seed)
    return RealNVP(2, transforms=COUPLINGS, hidden_features=widths, seed=seed, activation="relu")


def data_of(problem: str, rows: int, seed: int, use: str = "training", noise: float = 0.0) -> Dataset:
    """A problem: rows for "training", "validation" or "test", with its own noise where that asked for is 0."""
    options: dict[str, Any] = {"noise": noise} if noise else {}
    return load(problem, n=rows, seed=seed + {"training": 0, "validation": _VALIDATION, "test": _TEST}[use], **options)


def rows_of(problem: str, rows: int, seed: int, use: str = "training", noise: float = 0.0) -> np.ndarray:
    """The rows of `data_of`."""
    return data_of(problem, rows, seed, use, noise).X


def trained(
    problems: Sequence[str],
    runs: int,
    rows: int,
    steps: int,
    lr: float,
    seed: int,
    folder: Path,
    name: str,
    quick: bool,
    progress: bool,
    noise: float = 0.0,
    hidden: int = 0,
) -> dict[tuple[str, str, int], Result]:
    """Every model on every problem, `runs` times: results by problem, model and number of the run.

    They are kept under `folder`, where another figure finds them. `noise` is that of the problems and `hidden` the
    units of Real NVP where they are not 0.
    """
    keys = [(problem, model, i) for problem in problems for model in HIDDEN for i in range(runs)]
    # what is as usual has no name in a job, so that flows of other figures are found
    noisy = {"noise": noise} if noise else {}
    sized = {"RAD": {}, "Real NVP": {"hidden": hidden} if hidden else {}}
    jobs = [
        {"problem": problem, "model": model, "seed": seed + i, "rows": rows, "steps": steps, "lr": lr}
        | noisy
        | sized[model]
        for problem, model, i in keys
    ]
    return dict(zip(keys, run_jobs(trained_flow, jobs, folder, name, quick, progress), strict=True))


def trained_flow(
    problem: str,
    model: str,
    seed: int,
    rows: int,
    steps: int,
    lr: float,
    noise: float = 0.0,
    hidden: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: the weights of a flow, and its mean log-likelihood on rows that it has not seen, nats per row.

    The parameters are those that were best on a second set of unseen rows, looked at every 500 steps.
    """
    flow = make_flow(model, seed, hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `best_step`
        fitted = flow.fit(
            rows_of(problem, rows, seed, noise=noise),
            lr=lr,
            max_steps=steps,
            batch_size=BATCH,
            validation=rows_of(problem, rows, seed, "validation", noise),
            smoothing=0.0,
            average=0.0,
            patience=None,
            record_every=max(1, min(500, steps // 2)),
            seed=seed,
            progress=False,
            checkpoint=checkpoint,
        )
    run = completed(fitted)
    with torch.no_grad():
        log_p = flow().log_prob(rows_of(problem, rows, seed, "test", noise))
    return {
        **weights_of(flow),
        "log_likelihood": log_p.mean().item(),
        "standard_error": log_p.std().item() / len(log_p) ** 0.5,
        "parameters": sum(parameter.numel() for parameter in flow.parameters()),
        "best_step": run.best_step,
        "seconds": run.seconds,
        "curve_step": run.history["step"],
        "curve": -run.history["held_out"],
    }


def restored(model: str, result: Mapping[str, Any]) -> Flow:
    """The flow that `trained_flow` gave."""
    return with_weights(make_flow(model, 0), result)
