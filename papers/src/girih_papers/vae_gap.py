"""Beyond the papers: the exact gaps of three families of posteriors while they are trained.

The same decoder with a Gaussian, a mixture and a CG-BPEF posterior; at each record the exact NLL of rows that are not
trained on, the exact bound, and how much of the gap the family costs and how much the encoder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import girih
from girih.datasets import load
from girih.errors import ParameterError
from girih.training import Recorder
from girih.vae import CGBPEFVAE, VAE, GaussVAE, MixtureVAE, gap
from girih_papers.figures import save
from girih_papers.jobs import Result, completed, run_jobs, weights_of, with_weights
from girih_papers.mas_toys import spread
from girih_papers.vae_gap_figures import bars_figure, curves_figure, posteriors_figure

FAMILIES = ("Gaussian", "mixture of 3", "CG-BPEF")
NUMBERS = ("nll", "bound", "approximation", "amortisation")
# The latent dimension of the decoder, its hidden units, and the noise variance that training starts from.
DATA = {"circle": (1, 16, 0.1), "wave": (1, 16, 0.1), "mnist-4": (2, 16, 0.05)}
COMPONENTS, ORDER, LEVELS = 3, 5, 101
_BATCH = 100
_FRESH = 1_000_000  # added to a seed: rows that training does not see


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        data: of circle, wave and mnist-4.
        runs: with a seed each, of the networks and of the training.
        rows: of training data, of a toy; of the digit 4 all 500 but those that are measured.
        measured: rows, not trained on, of which the gaps are taken.
        steps: of Adam, batches of 100.
        lr: its step size.
        samples: draws of z for each row and step, of each component of a mixture.
        records: how often the gaps are taken, after the start.
        temperature: the final one of CG-BPEF.
        starts: of the search for the best posterior of each row, beside those that are always taken.
    """

    data: tuple[str, ...] = tuple(DATA)
    runs: int = 3
    rows: int = 500
    measured: int = 30
    steps: int = 4000
    lr: float = 2e-3
    samples: int = 4
    records: int = 6
    temperature: float = 0.5
    starts: int = 3


SETTINGS = Settings()
QUICK = Settings(data=("circle",), runs=1, rows=100, measured=6, steps=60, records=2, samples=2, starts=1)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`.

    Raises:
        ParameterError: there are no such data.
    """
    for data in settings.data:
        if data not in DATA:
            raise ParameterError(f"there are no data {data!r} here; known are {', '.join(DATA)}")
    keys, jobs = jobs_of(settings, seed)
    results = dict(zip(keys, run_jobs(trained, jobs, out, "vae-gap", quick, progress), strict=True))
    grouped = {
        data: {family: [results[data, family, i] for i in range(settings.runs)] for family in FAMILIES}
        for data in settings.data
    }
    first = settings.data[0]
    figures = [
        save(curves_figure(grouped), out / "curves.png"),
        save(bars_figure(grouped), out / "bars.png"),
    ]
    if DATA[first][0] == 1:
        figures.append(save(posteriors_figure(*_shown(first, grouped[first], settings, seed)), out / "posteriors.png"))
    return {
        "data": {data: {family: summary(runs) for family, runs in by.items()} for data, by in grouped.items()},
        "settings": {
            **_numbers(settings),
            "decoders": {data: [S, hidden, _rows(data, 1, 1, 0)[0].shape[1]] for data, (S, hidden, _) in DATA.items()},
            "components": COMPONENTS,
            "order": ORDER,
            "levels": LEVELS,
            "batch": _BATCH,
            "seeds": [seed + i for i in range(settings.runs)],
        },
        "figures": figures,
    }


def jobs_of(settings: Settings, seed: int) -> tuple[list[tuple[str, str, int]], list[dict[str, Any]]]:
    """Data, family and number of each run, and the arguments of `trained`."""
    keys = [(data, family, i) for data in settings.data for family in FAMILIES for i in range(settings.runs)]
    numbers = _numbers(settings)
    return keys, [{"data": data, "family": family, "seed": seed + i, **numbers} for data, family, i in keys]


def _numbers(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in ("data", "runs")}


def trained(
    data: str,
    family: str,
    seed: int,
    rows: int,
    measured: int,
    steps: int,
    lr: float,
    samples: int,
    records: int,
    temperature: float,
    starts: int,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: the gaps at each record, means over rows, those of every row at the end, and the weights."""
    vae = make_vae(data, family, seed, temperature)
    training, fresh = _rows(data, rows, measured, seed)

    def measure(model: VAE) -> Mapping[str, float]:
        return gap(model, fresh, starts=starts).mean() | {"noise": model.noise.item()}

    fitted = vae.fit(
        training,
        samples=samples,
        max_steps=steps,
        batch_size=_BATCH,
        lr=lr,
        seed=seed,
        record=Recorder(measure, every=max(1, steps // records)),
        progress=False,
        checkpoint=checkpoint,
        accelerator="cpu",
    )
    completed(fitted)
    last = gap(vae, fresh, starts=starts)
    result: dict[str, Any] = {name: fitted.history[name] for name in ("step", *NUMBERS, "error", "noise")}
    result |= {f"rows.{name}": getattr(last, name).numpy() for name in NUMBERS}
    if family == "CG-BPEF":
        limit = gap(vae, fresh, starts=starts, continuous=True)
        result |= {f"continuous.{name}": value for name, value in limit.mean().items()}
    return {**weights_of(vae), **result, "seconds": fitted.seconds}


def make_vae(data: str, family: str, seed: int, temperature: float) -> VAE:
    """The VAE of a data set with one of the families: the same decoder for all of them."""
    S, hidden, noise = DATA[data]
    decoder = girih.mlp([S, hidden, _rows(data, 1, 1, 0)[0].shape[1]], activation="leaky_relu", seed=seed)
    options: dict[str, Any] = {"hidden": (64, 64), "noise": noise, "seed": seed}
    if family == "Gaussian":
        return GaussVAE(decoder, **options)
    if family == "CG-BPEF":
        return CGBPEFVAE(decoder, order=ORDER, levels=LEVELS, basis="legendre", temperature=temperature, **options)
    return MixtureVAE(decoder, components=COMPONENTS, **options)


def summary(runs: list[Result]) -> dict[str, Any]:
    """The end of some runs: means and deviations over them, in nats per row."""
    numbers: dict[str, Any] = {name: spread([float(run[name][-1]) for run in runs]) for name in (*NUMBERS, "noise")}
    numbers["largest_error"] = max(float(run["error"].max()) for run in runs)
    if "continuous.nll" in runs[0]:
        numbers |= {
            f"continuous_{name}": spread([float(run[f"continuous.{name}"]) for run in runs]) for name in NUMBERS
        }
    return numbers | {"seconds": spread([float(run["seconds"]) for run in runs])}


def _rows(data: str, rows: int, measured: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training, and fresh ones."""
    if data in ("circle", "wave"):
        return load(data, n=rows, seed=seed).X, load(data, n=measured, seed=seed + _FRESH).X
    X = load(data).X
    order = np.random.default_rng(0).permutation(len(X))
    return X[order[measured:]], X[order[:measured]]


def _shown(
    data: str, families: Mapping[str, list[Result]], settings: Settings, seed: int
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """For the first run of each family and one row: the exact posterior, the best q and the encoder's on a line."""
    worst = families["Gaussian"][0]["rows.approximation"]
    row = int(worst.argmax())
    _, fresh = _rows(data, settings.rows, settings.measured, seed)
    panels = {}
    for family in families:
        vae = with_weights(make_vae(data, family, seed, settings.temperature), families[family][0])
        panels[family] = posterior_lines(vae, fresh[row : row + 1], settings.starts)
    return panels, row


def posterior_lines(vae: VAE, x: np.ndarray, starts: int) -> dict[str, np.ndarray]:
    """Densities of one row on a line of latents (S = 1): `z`, `exact`, `best` and `encoder`."""
    found = gap(vae, x, starts=starts)
    with torch.no_grad():
        q, prior = vae.encode(x), vae.prior()
        coarse = isinstance(vae, CGBPEFVAE)
        z = (
            torch.linspace(-1.0, 1.0, LEVELS, dtype=torch.float64)
            if coarse
            else torch.linspace(-4.0, 4.0, 4001, dtype=torch.float64)
        )[:, None]
        scale = (LEVELS - 1) / 2.0 if coarse else 1.0  # a mass on levels as a density
        joint = vae.log_likelihood(x, z[:, None])[:, 0] + prior.log_prob(z)
        lines = {"exact": joint + found.nll, "best": found.best.log_prob(z), "encoder": q.log_prob(z)}
    return {"z": z[:, 0].numpy()} | {name: (scale * value.exp()).numpy() for name, value in lines.items()}
