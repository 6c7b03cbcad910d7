"""EM-DGN's claim of a greater likelihood than by VAE training, with equal starts, processor time and test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from girih.datasets import load
from girih.errors import ParameterError
from girih.plots import BLUE, GREY, LIGHT, VERMILLION, new_figure, styled
from girih_papers.arrays import Array
from girih_papers.comparison import TUNED, spread
from girih_papers.em_fair_arms import (
    ACCELERATED,
    ADAM,
    AFTER,
    ARMS,
    IWAE,
    LAYERWISE,
    LBFGS,
    MPPCA,
    PLAIN,
    VAES,
    fit_arm,
    starting_point,
)
from girih_papers.figures import save
from girih_papers.jobs import Result, run_jobs
from girih_papers.rad_tables_data import TABLES, continuous, split

# Hidden units, and the noise variance of the plain start; that of the toys is em-circle's and em-wave's.
DATA: dict[str, tuple[int, float]] = {
    "circle": (8, 0.1),
    "wave": (8, 1.0),
    "digits": (16, 1.0),
    "wine": (8, 1.0),
    "breast_cancer": (8, 1.0),
}
_ROWS = {"circle": 256, "wave": 500}
_FRESH = 1_000_000  # added to a seed: rows of a toy that nothing is fitted to
_HELD_OUT = 2000
PLAIN_START, RESTARTS = "one plain start", "restarts"
# Who is compared with whom: the first is said to reach the lower NLL.
CLAIMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "EM, as printed, against the VAEs": (LAYERWISE, VAES),
    "girih's EM against the VAEs": (ACCELERATED, (*VAES, IWAE)),
    "exact gradients against the same bound's": (ADAM, (TUNED, IWAE)),
    "exact gradients against EM": (LBFGS, (LAYERWISE, PLAIN, ACCELERATED, ADAM)),
    "EM after Adam against EM": (AFTER, (ACCELERATED, ADAM, LBFGS)),
    "girih's EM against mixtures of PPCA": (ACCELERATED, (MPPCA,)),
}


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        data: of circle, wave, digits, wine and breast_cancer.
        arms: the numbers of those of `em_fair_arms.ARMS` that run.
        runs: seeds, of the rows, the starts and the training.
        random: random starts, beside the plain one and the curve.
        seconds: of processor time for each start of each arm.
        rows: of training data at most; 0 for all.
    """

    data: tuple[str, ...] = tuple(DATA)
    arms: tuple[int, ...] = tuple(range(len(ARMS)))
    runs: int = 10
    random: int = 2
    seconds: float = 6.0
    rows: int = 0


SETTINGS = Settings()
QUICK = Settings(data=("circle",), runs=1, random=1, seconds=0.1, rows=40)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`.

    Raises:
        ParameterError: there are no such data or arms.
    """
    if not set(settings.data) <= set(DATA):
        raise ParameterError(f"there are no data {', '.join(settings.data)!r} here; known are {', '.join(DATA)}")
    if not set(settings.arms) <= set(range(len(ARMS))):
        raise ParameterError(f"arms are numbers from 0 to {len(ARMS) - 1}: {', '.join(ARMS)}")
    keys, jobs = jobs_of(settings, seed)
    results = dict(zip(keys, run_jobs(fitted, jobs, out, "em-fair", quick, progress), strict=True))
    tables = {}
    for data in settings.data:
        runs = [
            {arm: [results[data, i, start, arm] for start in starts_of(settings)] for arm in _arms(settings)}
            for i in range(settings.runs)
        ]
        tables[data] = {"arms": summary(runs), "claims": claims(runs)}
    return {
        "data": tables,
        "settings": {
            **asdict(settings),
            "arms": list(_arms(settings)),
            "seeds": [seed + i for i in range(settings.runs)],
        }
        | {"generators": {data: [1, DATA[data][0], rows_of(data, seed, 0)[0].shape[1]] for data in settings.data}},
        "figures": [save(_draw(tables), out / "fair.png")],
    }


def starts_of(settings: Settings) -> tuple[str, ...]:
    """The starts that every arm has: the plain one, and those that are the restarts."""
    return ("plain", "curve", *(f"random {i}" for i in range(settings.random)))


def _arms(settings: Settings) -> tuple[str, ...]:
    return tuple(ARMS[i] for i in settings.arms)


def jobs_of(settings: Settings, seed: int) -> tuple[list[tuple[str, int, str, str]], list[dict[str, Any]]]:
    """Data, number of the run, start and arm of each job, and the arguments of `fitted`; whole seeds come first."""
    keys = [
        (data, i, start, arm)
        for i in range(settings.runs)
        for data in settings.data
        for start in starts_of(settings)
        for arm in _arms(settings)
    ]
    jobs = [
        {"data": data, "seed": seed + i, "start": start, "arm": arm, "seconds": settings.seconds, "rows": settings.rows}
        for data, i, start, arm in keys
    ]
    return keys, jobs


def fitted(data: str, seed: int, start: str, arm: str, seconds: float, rows: int) -> dict[str, Any]:
    """One job: exact NLL of training and held-out rows, the arm's own objective, and the NLL against the time."""
    train, held_out = rows_of(data, seed, rows)
    hidden, noise = DATA[data]
    kind, _, number = start.partition(" ")
    own_seed = 1000 * seed + (int(number) + 1 if number else 0)
    begin = starting_point(kind, train, hidden, noise, own_seed)
    fit_arm(arm, begin, train, 0.0, own_seed)  # what is loaded and compiled at first use is not counted
    log_prob, clock = fit_arm(arm, begin, train, seconds, own_seed)
    return {
        "nll": -log_prob(train).mean(),
        "held_out": -log_prob(held_out).mean(),
        "objective": clock.value,
        "seconds": clock.curve[-1][0],
        "curve": np.array(clock.curve),
    }


def rows_of(data: str, seed: int, most: int) -> tuple[Array, Array]:
    """Rows to fit, at most so many unless that is 0, and others that no arm sees, in deviations of the first."""
    if data in _ROWS:
        train, fresh = load(data, n=_ROWS[data], seed=seed).X, load(data, n=_HELD_OUT, seed=seed + _FRESH).X
    elif data in TABLES:
        rows = split(continuous(data, seed), seed)
        train, fresh = np.concatenate((rows.train, rows.validation)), rows.held_out
    else:
        rng = np.random.default_rng(seed)
        X = load(data).X
        grey = X.max() / 16.0
        X = rng.permutation((X + grey * rng.random(X.shape)) / (17.0 * grey))
        train, fresh = (X[:1400] - 0.5) / X[:1400].std(), (X[1400:] - 0.5) / X[:1400].std()
    return (train[:most] if most else train), fresh


def chosen(starts: Sequence[Result], restarts: bool) -> Result:
    """Of an arm's results the one that counts: that of the plain start, or the restart with the least own objective."""
    return min(starts[1:], key=lambda found: float(found["objective"])) if restarts else starts[0]


def summary(runs: Sequence[Mapping[str, Sequence[Result]]]) -> dict[str, dict[str, Any]]:
    """Median and range over runs of the NLL of each arm, from the plain start and with restarts."""
    table: dict[str, dict[str, Any]] = {}
    for arm in runs[0]:
        table[arm] = {}
        for name, restarts in ((PLAIN_START, False), (RESTARTS, True)):
            ends = [chosen(run[arm], restarts) for run in runs]
            table[arm][name] = {
                "nll": spread([float(end["nll"]) for end in ends]),
                "held_out": spread([float(end["held_out"]) for end in ends]),
                "held_out_runs": [float(end["held_out"]) for end in ends],
            }
        table[arm]["seconds"] = spread([sum(float(s["seconds"]) for s in run[arm]) / len(run[arm]) for run in runs])
    return table


def claims(runs: Sequence[Mapping[str, Sequence[Result]]]) -> dict[str, dict[str, Any]]:
    """In how many runs each claim's first arm ended lower than each of the others, and by how much in the median."""
    found: dict[str, dict[str, Any]] = {}
    for claim, (first, others) in CLAIMS.items():
        known = [arm for arm in others if arm in runs[0] and first in runs[0]]
        found[claim] = {
            f"{first} against {other}": {
                name: {
                    rows: _versus([(chosen(r[first], restarts), chosen(r[other], restarts)) for r in runs], rows)
                    for rows in ("nll", "held_out")
                }
                for name, restarts in ((PLAIN_START, False), (RESTARTS, True))
            }
            for other in known
        }
    return found


def _versus(pairs: Sequence[tuple[Result, Result]], rows: str) -> dict[str, Any]:
    gain = [float(other[rows]) - float(first[rows]) for first, other in pairs]
    return {"lower": sum(value > 0.0 for value in gain), "of": len(gain), "median_gain": float(np.median(gain))}


@styled
def _draw(tables: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Exact NLL of held-out rows of each arm: every run a dot, from the plain start and with restarts."""
    names = list(next(iter(tables.values()))["arms"])
    figure = new_figure(7.2, len(tables) * (0.24 * len(names) + 0.5) + 0.5)
    axes = figure.subplots(len(tables), 2, squeeze=False, sharey=True)
    for line, (data, table) in zip(axes, tables.items(), strict=True):
        every = [
            v for arm in table["arms"].values() for name in (PLAIN_START, RESTARTS) for v in arm[name]["held_out_runs"]
        ]
        low, end = min(every), float(np.quantile(every, 0.9) + 0.3 * (np.quantile(every, 0.9) - min(every)) + 1e-3)
        for ax, name, colour in zip(line, (PLAIN_START, RESTARTS), (GREY, BLUE), strict=True):
            for i, arm in enumerate(reversed(names)):
                values = np.array(table["arms"][arm][name]["held_out_runs"])
                ax.axhline(i, color=LIGHT, lw=0.5, zorder=0)
                inside = values <= end
                ax.plot(values[inside], np.full(inside.sum(), i), "o", color=colour, ms=3.2, mew=0, alpha=0.6)
                ax.plot(np.full((~inside).sum(), end), np.full((~inside).sum(), i), ">", color=colour, ms=3.2)
                if np.median(values) <= end:
                    ax.plot(np.median(values), i, "|", color=VERMILLION, ms=9.0, mew=1.8)
            ax.set(xlim=(low - 0.04 * (end - low), end + 0.04 * (end - low)), ylim=(-0.6, len(names) - 0.4))
            ax.set(yticks=range(len(names)), title=f"{data}, {name}")
            ax.set_yticklabels(list(reversed(names)))
            ax.xaxis.set_major_locator(MaxNLocator(5))
    for ax in axes[-1]:
        ax.set_xlabel("exact NLL of held-out rows (nats per row)\nbar: median; arrow: beyond the axis")
    return figure
