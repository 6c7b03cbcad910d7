"""MAS, Fig. 6: the surface of a generator whose activations are smoothed, and VAEs with smoothed decoders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from girih.geometry import smooth
from girih.networks import fc_encoder, mlp
from girih.plots import BLUE, VERMILLION, new_figure, styled
from girih.vae import GaussVAE
from girih_papers.arrays import to_array
from girih_papers.figures import save
from girih_papers.jobs import run_jobs
from girih_papers.mas_dropout_elbo import mean_free_energy
from girih_papers.mas_images import NOISE, conv_for, image_rows, train_on_images
from girih_papers.mas_toys import spread
from girih_papers.settings import arguments

_SIZES = (2, 8, 8, 3)
_REACH = 2.5


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        surfaces: values of beta for the surface; those of the figure, and 1.
        betas: values of beta for the VAEs; the paper's are in its picture only.
        data: "mnist" (5,000 digits, offline), "mnist-full", or the path of images (CIFAR-10 for the other panel).
        rows: how many of them; 0 for all.
        latent_dim: S of the VAEs.
        epochs: passes over the rows.
        batch_size: of a step.
        lr: Adam's step size.
        runs: random starts.
        grid: points along each latent of the surface.
    """

    surfaces: tuple[float, ...] = (0.5, 0.9, 0.999, 1.0)
    betas: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
    data: str = "mnist"
    rows: int = 0
    latent_dim: int = 10
    epochs: int = 300
    batch_size: int = 100
    lr: float = 1e-4
    runs: int = 10
    grid: int = 81


SETTINGS = Settings()
QUICK = Settings(betas=(0.5, 1.0), rows=64, epochs=2, batch_size=32, runs=1, grid=15)


class SoftLeakyReLU(nn.Module):
    r"""A smoothed leaky ReLU, `u (s + (1 - s) sigmoid(beta / (1 - beta) (1 - s) u))`; the same as in `smooth`.

    Where `smooth` computes in float64 whatever network it is given, this keeps the type of its input, for training.

    Args:
        slope: s, below 1.
        beta: from 0 (affine) to 1 (the leaky ReLU).
    """

    def __init__(self, slope: float, beta: float) -> None:
        super().__init__()
        self.slope, self.beta = slope, beta

    def forward(self, u: Tensor) -> Tensor:
        """Numbers of any shape."""
        if self.beta == 1.0:
            return nn.functional.leaky_relu(u, self.slope)
        sharpness = self.beta / (1.0 - self.beta) * (1.0 - self.slope)
        return u * (self.slope + (1.0 - self.slope) * torch.sigmoid(sharpness * u))


def softened(net: nn.Sequential, beta: float) -> nn.Sequential:
    """A chain with its leaky ReLUs smoothed; the other layers are shared."""
    return nn.Sequential(
        *(SoftLeakyReLU(layer.negative_slope, beta) if isinstance(layer, nn.LeakyReLU) else layer for layer in net)
    )


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    jobs = [
        arguments(trained_smooth_vae, settings, beta=beta, seed=seed + i)
        for beta in settings.betas
        for i in range(settings.runs)
    ]
    results = run_jobs(trained_smooth_vae, jobs, out, "mas-smoothing", quick, progress)
    dataset = image_rows(settings.data, settings.rows)
    table = {}
    for i, beta in enumerate(settings.betas):
        mine = results[i * settings.runs : (i + 1) * settings.runs]
        table[f"{beta:g}"] = {
            name: spread([float(one[name]) for one in mine])
            for name in ("negative_elbo", "last_training_loss", "noise", "seconds")
        }
    net = mlp(_SIZES, seed=seed)
    return {
        "betas": table,
        "lowest": min(table, key=lambda beta: float(table[beta]["negative_elbo"]["mean"])),
        "distance_of_surfaces": {f"{beta:g}": _distance(net, beta, seed) for beta in settings.surfaces},
        "settings": {
            "surface": list(_SIZES),
            "data": dataset.description,
            "rows": len(dataset),
            "latent_dim": settings.latent_dim,
            "networks": "MAS, appendix E: convolutional decoder, leaky ReLU of slope 0.1 smoothed; dense encoder",
            "noise": f"learned, from a variance of {NOISE:g}",
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
            "seeds": [seed + i for i in range(settings.runs)],
        },
        "figures": [
            save(_draw_surfaces(net, settings), out / "surfaces.png"),
            save(_draw_elbo(table, settings), out / "negative-elbo.png"),
        ],
    }


def trained_smooth_vae(
    beta: float,
    data: str,
    rows: int,
    latent_dim: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: a VAE with a smoothed convolutional decoder; its negative ELBO on the training rows, nats per row."""
    dataset = image_rows(data, rows)
    decoder = softened(conv_for(dataset.image_shape or (), latent_dim, seed), beta)
    encoder = fc_encoder(dataset.shape[1], 2 * latent_dim, dtype=torch.float32, seed=seed + 1000)
    vae = GaussVAE(decoder, encoder, noise=NOISE, latent_dim=latent_dim)
    history, seconds = train_on_images(vae, dataset.X, epochs, batch_size, lr, seed, checkpoint)
    return {
        "negative_elbo": mean_free_energy(vae.eval(), dataset.X, seed),
        "last_training_loss": history["loss"][-1],
        "noise": float(vae.noise.detach()),
        "loss": history["loss"],
        "seconds": seconds,
    }


def _distance(net: nn.Module, beta: float, seed: int, n: int = 10_000) -> float:
    """The root mean squared distance over the prior between the smoothed surface and the surface itself."""
    z = torch.randn(n, _SIZES[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return float((smooth(net, beta)(z) - net(z)).square().sum(1).mean().sqrt())


@styled
def _draw_surfaces(net: nn.Module, settings: Settings) -> Figure:
    """The image of a square of latents for each beta, in the principal axes of the surface that is not smoothed."""
    count = len(settings.surfaces)
    figure = new_figure(2.0 * count, 2.25)
    axis = torch.linspace(-_REACH, _REACH, settings.grid, dtype=torch.float64)
    z = torch.stack([part.ravel() for part in torch.meshgrid(axis, axis, indexing="ij")], 1)
    with torch.no_grad():
        own = to_array(net(z))
        surfaces = [to_array(smooth(net, beta)(z)) for beta in settings.surfaces]
    principal = np.linalg.svd(own - own.mean(0), full_matrices=False)[2]
    turned = [(x - own.mean(0)) @ principal.T for x in surfaces]
    low, high = np.min([x.min(0) for x in turned], 0), np.max([x.max(0) for x in turned], 0)
    for k, (beta, x) in enumerate(zip(settings.surfaces, turned, strict=True)):
        ax: Any = figure.add_subplot(1, count, k + 1, projection="3d")
        ax.plot_surface(
            *(part.reshape(settings.grid, settings.grid) for part in x.T),
            facecolors=matplotlib.colormaps["viridis"](
                ((x[:, 2] - low[2]) / (high[2] - low[2])).reshape(settings.grid, -1)
            ),
            rcount=settings.grid,
            ccount=settings.grid,
            lw=0,
            antialiased=False,
        )
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        ax.set_box_aspect((1.2, 1.2, 0.8), zoom=1.08)
        ax.view_init(elev=50.0, azim=-60.0)
        ax.set_title(f"$\\beta$ = {beta:g}" if beta < 1.0 else r"$\beta$ = 1 (not smoothed)")
        ax.set(xticklabels=[], yticklabels=[], zticklabels=[])
    figure.supxlabel("principal axes of the surface that is not smoothed; colour: height along the third", fontsize=8.0)
    return figure


@styled
def _draw_elbo(table: dict[str, Any], settings: Settings) -> Figure:
    """Mean and deviation over runs against beta, at equal steps."""
    figure = new_figure(3.8, 2.7)
    ax = figure.add_subplot()
    places = np.arange(len(settings.betas), dtype=float)
    measures = {
        "negative_elbo": ("dropout of the encoder off", BLUE, "o"),
        "last_training_loss": ("in training", VERMILLION, "s"),
    }
    for name, (label, colour, marker) in measures.items():
        found = [table[f"{beta:g}"][name] for beta in settings.betas]
        error = np.nan_to_num([one["deviation"] for one in found])
        means = [one["mean"] for one in found]
        style: dict[str, Any] = {"ms": 4.0, "lw": 1.0, "capsize": 2.0, "color": colour}
        ax.errorbar(places, means, error, fmt=f"{marker}-", label=label, **style)
    ax.set_xticks(places, [f"{beta:g}" for beta in settings.betas])
    ax.set(xlabel=r"$\beta$ (0: affine, 1: not smoothed)", ylabel="negative ELBO (nats per row)")
    ax.legend()
    return figure
