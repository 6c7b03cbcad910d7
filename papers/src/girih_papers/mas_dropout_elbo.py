"""MAS, Figs. 4 (left) and 9: the negative ELBO that VAEs end with, against width and dropout of their decoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from girih.networks import fc_encoder, fc_generator
from girih.plots import colour_bar, new_figure, styled
from girih.vae import GaussVAE
from girih_papers.arrays import Array
from girih_papers.figures import save
from girih_papers.jobs import run_jobs
from girih_papers.mas_images import NOISE, image_rows, train_on_images
from girih_papers.mas_toys import spread
from girih_papers.settings import arguments

_TYPE = torch.float32


@dataclass(frozen=True)
class Settings:
    """What is trained. Widths, rates and the number of layers are not in the text of the paper.

    Attributes:
        data: "mnist" (5,000 digits, offline), "mnist-full", or the path of images (CIFAR-10 for Fig. 9).
        rows: how many of them; 0 for all.
        latent_dim: S.
        widths: of both hidden layers of the decoder; around S.
        rates: of its dropout.
        epochs: passes over the rows.
        batch_size: of a step.
        lr: Adam's step size.
        runs: random starts.
    """

    data: str = "mnist"
    rows: int = 0
    latent_dim: int = 100
    widths: tuple[int, ...] = (25, 50, 100, 200, 400, 800)
    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    epochs: int = 300
    batch_size: int = 100
    lr: float = 1e-4
    runs: int = 1


SETTINGS = Settings()
QUICK = Settings(rows=64, latent_dim=8, widths=(4, 16), rates=(0.0, 0.5), epochs=2, batch_size=32)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    jobs = [
        arguments(trained_elbo, settings, width=width, rate=rate, seed=seed + i)
        for width in settings.widths
        for rate in settings.rates
        for i in range(settings.runs)
    ]
    results = run_jobs(trained_elbo, jobs, out, "mas-dropout-elbo", quick, progress)
    dataset = image_rows(settings.data, settings.rows)
    table: list[dict[str, Any]] = []
    grids = {name: np.empty((len(settings.widths), len(settings.rates))) for name in _MEASURES}
    for k, (i, j) in enumerate(np.ndindex(len(settings.widths), len(settings.rates))):
        mine = results[k * settings.runs : (k + 1) * settings.runs]
        entry = {name: spread([float(one[name]) for one in mine]) for name in (*_MEASURES, "noise", "seconds")}
        for name, grid in grids.items():
            grid[i, j] = entry[name]["mean"]
        table.append({"width": settings.widths[i], "dropout": settings.rates[j], **entry})
    return {
        "models": table,
        "cost_of_most_dropout": {
            str(width): float(row[np.argmax(settings.rates)] - row[np.argmin(settings.rates)])
            for width, row in zip(settings.widths, grids["with_dropout"], strict=True)
        },
        "best_dropout_by_width": {
            str(width): settings.rates[int(np.argmin(grids["with_dropout"][i]))]
            for i, width in enumerate(settings.widths)
        },
        "settings": {
            "data": dataset.description,
            "rows": len(dataset),
            "latent_dim": settings.latent_dim,
            "decoder": "two hidden layers of each width, leaky ReLU of slope 0.1, dropout after both",
            "encoder": "MAS, appendix E",
            "noise": f"learned, from a variance of {NOISE:g}",
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
            "seeds": [seed + i for i in range(settings.runs)],
        },
        "figures": [save(_draw(grids, settings), out / "negative-elbo.png")],
    }


_MEASURES = {"with_dropout": "dropout on, as in training", "without_dropout": "dropout off, as in use"}


def trained_elbo(
    width: int,
    rate: float,
    data: str,
    rows: int,
    latent_dim: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: a VAE, and its negative ELBO on the training rows in nats per row.

    `with_dropout` is the mean training loss of the last epoch, `without_dropout` is of the
    networks in evaluation mode.
    """
    X = image_rows(data, rows).X
    decoder = fc_generator(latent_dim, X.shape[1], hidden=(width, width), dropout=rate, dtype=_TYPE, seed=seed)
    encoder = fc_encoder(X.shape[1], 2 * latent_dim, dtype=_TYPE, seed=seed + 1000)
    vae = GaussVAE(decoder, encoder, noise=NOISE)
    history, seconds = train_on_images(vae, X, epochs, batch_size, lr, seed, checkpoint)
    return {
        "with_dropout": history["loss"][-1],
        "without_dropout": mean_free_energy(vae.eval(), X, seed),
        "noise": float(vae.noise.detach()),
        "loss": history["loss"],
        "seconds": seconds,
    }


def mean_free_energy(vae: GaussVAE, X: Array, seed: int, part: int = 5000) -> float:
    """The mean free energy over rows, one draw of z each, in the mode that the networks are in."""
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(X), part):
            total += float(vae.free_energy(X[i : i + part], seed=seed + i).total.sum())
    return total / len(X)


@styled
def _draw(grids: dict[str, Array], settings: Settings) -> Figure:
    """Heat maps: dropout to the right, width upwards."""
    figure = new_figure(7.4, 3.0)
    for ax, (name, title) in zip(figure.subplots(1, 2), _MEASURES.items(), strict=True):
        grid = grids[name]
        drawn = ax.imshow(grid, cmap="viridis_r", origin="lower", aspect="auto")
        middle = 0.5 * (grid.min() + grid.max())
        for (i, j), value in np.ndenumerate(grid):
            text = f"{value:.0f}".replace("-", "\N{MINUS SIGN}")
            ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if value > middle else "black")
        ax.set_xticks(range(len(settings.rates)), [f"{rate:g}" for rate in settings.rates])
        ax.set_yticks(range(len(settings.widths)), [str(width) for width in settings.widths])
        ax.set(xlabel="dropout rate of the decoder", ylabel=f"width (S = {settings.latent_dim})", title=title)
        for label, width in zip(ax.get_yticklabels(), settings.widths, strict=True):
            label.set_color("#C00000" if width == settings.latent_dim else "black")
        colour_bar(ax, drawn, "negative ELBO (nats)")
    return figure
