"""MAS, Fig. 4 (right) and appendix I: the least error on a plane of rows, against latent dimension and sample size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from girih import geometry
from girih.errors import ParameterError
from girih.plots import BLACK, CYCLE, VERMILLION, new_figure, styled
from girih_papers.figures import save
from girih_papers.jobs import run_jobs
from girih_papers.mas_autoencoders import autoencoder, training_errors


@dataclass(frozen=True)
class Settings:
    """Of the paper; it does not say D, the generator's widths, the rate of Adam or its batches.

    Attributes:
        true_dim: S*, the dimension of the plane.
        data_dim: D.
        dims: the latent dimensions S.
        sizes: the numbers of rows N, each a sample of the same plane.
        trials: autoencoders for each S and N.
        epochs: of each.
        encoder: widths of the encoder's hidden layers.
        decoder: widths of the generator's hidden layers.
        rate: of Adam.
        batch: rows for one step.
        free_epochs: steps of `girih.geometry.elbow`, which has free latents and no encoder.
        free_restarts: its restarts.
    """

    true_dim: int = 5
    data_dim: int = 10
    dims: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    sizes: tuple[int, ...] = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    trials: int = 30
    epochs: int = 2000
    encoder: tuple[int, ...] = (256, 256)
    decoder: tuple[int, ...] = (64, 64)
    rate: float = 1e-3
    batch: int = 100
    free_epochs: int = 2000
    free_restarts: int = 3


SETTINGS = Settings()
QUICK = Settings(
    true_dim=2, data_dim=4, dims=(1, 2, 3), sizes=(50, 200), trials=2, epochs=150, encoder=(32,), decoder=(16,),
    rate=3e-3, batch=50, free_epochs=60, free_restarts=1,
)  # fmt: skip


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    _check(settings)
    dims, sizes = sorted(set(settings.dims)), sorted(set(settings.sizes))
    other = ("dims", "sizes", "free_epochs", "free_restarts")
    shared = {name: value for name, value in asdict(settings).items() if name not in other}
    jobs = [shared | {"latent_dim": S, "rows": N, "seed": seed} for N in reversed(sizes) for S in dims]
    found = run_jobs(encoded, jobs, out, "mas-elbow", quick, progress)
    trials = np.array([one["least"] for one in found]).reshape(len(sizes), len(dims), -1)[::-1].swapaxes(0, 1)
    shared = {
        "true_dim": settings.true_dim, "data_dim": settings.data_dim, "dims": dims, "hidden": list(settings.decoder),
        "epochs": settings.free_epochs, "restarts": settings.free_restarts, "seed": seed,
    }  # fmt: skip
    found = run_jobs(without_encoder, [shared | {"rows": N} for N in sizes], out, "mas-elbow, free", quick, progress)
    free = np.stack([one["error"] for one in found], 1)
    samples = [plane(settings.true_dim, settings.data_dim, N, seed) for N in sizes]
    baseline = np.array([float((x - x.mean(0)).norm(dim=1).sum()) for x in samples])
    least = trials.min(2)
    return {
        "dims": dims,
        "sizes": sizes,
        "baseline": baseline.tolist(),
        "encoder": _summary(least, baseline, dims, sizes, settings.true_dim) | {"trials": trials.tolist()},
        "free_latents": _summary(free, baseline, dims, sizes, settings.true_dim),
        "settings": asdict(settings) | {"activation": "leaky ReLU, 0.1", "seeds": [seed]},
        "figures": [save(_draw(least, free, dims, sizes, settings), out / "elbow.png")],
    }


def _check(settings: Settings) -> None:
    widest = max(*settings.dims, settings.true_dim)
    if min(settings.dims) < 1 or settings.true_dim < 1 or settings.data_dim <= settings.true_dim:
        raise ParameterError("the settings dims and true_dim must be 1 or more, and data_dim larger than true_dim")
    if min(settings.sizes) < 2 or min(settings.trials, settings.epochs, settings.batch, settings.free_restarts) < 1:
        raise ParameterError("the settings sizes must be 2 or more, trials, epochs, batch and free_restarts 1 or more")
    if min(settings.decoder) < widest:
        raise ParameterError(f"the setting decoder must have widths of {widest} or more, or it is what limits S")


def plane(true_dim: int, data_dim: int, rows: int, seed: int) -> Tensor:
    """Normal rows of deviation 1 on a random plane through 0, `(N, D)`; the plane depends on the seed alone.

    Example:
        >>> import torch
        >>> from girih_papers.mas_elbow import plane
        >>> x = torch.cat((plane(2, 5, rows=30, seed=0), plane(2, 5, rows=10, seed=0)))
        >>> x.shape, int(torch.linalg.matrix_rank(x))
        (torch.Size([40, 5]), 2)
    """
    noise = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(data_dim, true_dim, dtype=torch.float64, generator=noise)).Q
    result: Tensor = torch.randn(rows, true_dim, dtype=torch.float64, generator=noise) @ axes.T
    return result


def encoded(
    true_dim: int, data_dim: int, latent_dim: int, rows: int, trials: int, epochs: int, encoder: Sequence[int],
    decoder: Sequence[int], rate: float, batch: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The least error over the epochs of every trial, `(T,)`, in single precision."""
    x = plane(true_dim, data_dim, rows, seed)
    networks = [autoencoder(data_dim, latent_dim, encoder, decoder, seed * 10_000 + i) for i in range(trials)]
    return {"least": training_errors(x.float(), networks, epochs, rate, batch, seed).amin(0).double().numpy()}


def without_encoder(
    true_dim: int, data_dim: int, dims: list[int], rows: int, hidden: list[int], epochs: int, restarts: int, seed: int
) -> dict[str, Any]:
    """The errors that girih's own tool finds on the same rows, with a free latent for each, `(K,)`."""
    x = plane(true_dim, data_dim, rows, seed)
    return {"error": geometry.elbow(x, dims, [rows], hidden, epochs, restarts, seed=seed, progress=False).error[:, 0]}


def _summary(error: np.ndarray, baseline: np.ndarray, dims: list[int], sizes: list[int], true: int) -> dict[str, Any]:
    enough = np.array(dims) >= true
    share = error / baseline
    return {
        "error": error.tolist(),
        "error_per_row": (error / sizes).tolist(),
        "largest_share_left_from_true_dim_on": float(share[enough].max()) if enough.any() else None,
        "least_share_left_below": float(share[~enough].min()) if not enough.all() else None,
        "rises_with_rows": {str(dims[k]): bool((np.diff(error[k]) > 0).all()) for k in np.flatnonzero(~enough)},
        "rises_per_row": {str(dims[k]): bool((np.diff(error[k] / sizes) > 0).all()) for k in np.flatnonzero(~enough)},
    }


@styled
def _draw(encoder: np.ndarray, free: np.ndarray, dims: list[int], sizes: list[int], settings: Settings) -> Figure:
    figure = new_figure(6.6, 4.6)
    rows = figure.subplots(2, 2, sharex=True, sharey="row")
    colours = matplotlib.colormaps["winter"](np.linspace(0.0, 0.9, len(sizes)))
    titles = ("encoder, as in the paper", "free latents, girih.geometry.elbow")
    labels = (r"$E_N$", r"$E_N / N$")
    for ax, (row, column) in zip(rows.flat, np.ndindex(2, 2), strict=True):
        error = (encoder, free)[column] / (1.0, np.array(sizes))[row]
        ax.axhline(0.0, color=BLACK, linewidth=0.8, zorder=1)
        ax.axvline(settings.true_dim, color=VERMILLION, linewidth=1.0, linestyle="--", zorder=1)
        for k, size in enumerate(sizes):
            marker = CYCLE[k % len(CYCLE)]["marker"]
            ax.plot(dims, error[:, k], color=colours[k], marker=marker, markersize=3.2, label=f"{size}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if row == 0:
            ax.set_title(titles[column])
            ax.annotate(
                f"$S^* = {settings.true_dim}$", (settings.true_dim, 0.97), (3, 0), ("data", "axes fraction"),
                "offset points", color=VERMILLION, va="top", fontsize=7.5,
            )  # fmt: skip
        else:
            ax.set_xlabel("latent dimension S")
        if column == 0:
            ax.set_ylabel(f"least error {labels[row]}")
    handles, names = rows.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", title="rows N")
    return figure
