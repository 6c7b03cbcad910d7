"""MAS, Fig. 6: the surface of a generator whose activations are smoothed, and VAEs with smoothed decoders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from girih.geometry import smooth
from girih.networks import fc_encoder, mlp
from girih.plots import BLUE, LIGHT, VERMILLION, new_figure, styled
from girih.vae import GaussVAE
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.jobs import run_jobs
from girih_papers.mas_dropout_elbo import mean_free_energy
from girih_papers.mas_images import NOISE, conv_for, image_rows, train_on_images
from girih_papers.mas_toys import spread
from girih_papers.settings import arguments

_SIZES = (2, 8, 8, 3)
_REACH = 2.5
_NEAREST = 1e-6  # the least distance of two surfaces that is drawn
_LIGHT = np.array([0.3, -0.7, 0.65])  # from where light falls on them


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
    """The image of a square of latents for each beta, and below where and by how much it is off the one not smoothed.

    In the principal axes of the latter, lit from the side; distances of less than a millionth are drawn as that.
    """
    count, side = len(settings.surfaces), settings.grid
    own, surfaces = _on_square(net, settings.surfaces, side)
    exact, finer = _on_square(net, settings.surfaces, 4 * side)
    principal = np.linalg.svd(own - own.mean(0), full_matrices=False)[2]
    turned = [(x - own.mean(0)) @ principal.T for x in surfaces]
    limits = np.min([x.min(0) for x in turned], 0), np.max([x.max(0) for x in turned], 0)
    figure = new_figure(2.3 * count, 4.6)
    drawn: Any = None
    maps: list[Axes] = []
    for k, (beta, x, surface) in enumerate(zip(settings.surfaces, turned, finer, strict=True)):
        ax: Any = figure.add_subplot(2, count, k + 1, projection="3d")
        _draw_surface(ax, x.reshape(side, side, 3), *limits)
        ax.set_title(f"$\\beta$ = {beta:g}" if beta < 1.0 else r"$\beta$ = 1 (not smoothed)")
        distance = np.linalg.norm(surface - exact, axis=1).reshape(4 * side, 4 * side)
        if beta < 1.0:
            below = figure.add_subplot(2, count, count + k + 1)
            reach = (-_REACH, _REACH, -_REACH, _REACH)
            norm = LogNorm(_NEAREST, float(np.ptp(own, 0).max()))
            drawn = below.imshow(
                np.maximum(distance.T, _NEAREST), extent=reach, origin="lower", norm=norm, cmap="magma_r"
            )
            below.set(xlabel="$z_1$", ylabel="" if maps else "$z_2$")
            maps.append(below)
    if drawn is not None:
        figure.colorbar(drawn, ax=maps, shrink=0.9).set_label("distance from $\\beta$ = 1 (log scale)")
    return figure


def _on_square(net: nn.Module, betas: Sequence[float], side: int) -> tuple[Array, list[Array]]:
    """The images of a square grid of latents by the network and by its smoothed versions, `(side^2, 3)` each."""
    axis = torch.linspace(-_REACH, _REACH, side, dtype=torch.float64)
    z = torch.stack([part.ravel() for part in torch.meshgrid(axis, axis, indexing="ij")], 1)
    with torch.no_grad():
        return to_array(net(z)), [to_array(smooth(net, beta)(z)) for beta in betas]


def _draw_surface(ax: Any, x: Array, low: Array, high: Array) -> None:
    """A surface `(K, K, 3)`; colour is the height along the third axis, and light falls from the side."""
    along = np.cross(np.gradient(x, axis=0), np.gradient(x, axis=1))
    length = np.linalg.norm(along, axis=2, keepdims=True)
    light = np.abs(
        np.divide(along, length, out=np.zeros_like(along), where=length > 0.0) @ (_LIGHT / np.linalg.norm(_LIGHT))
    )
    height = (x[..., 2] - low[2]) / (high[2] - low[2])
    colours = matplotlib.colormaps["YlGnBu_r"](0.35 + 0.6 * height)
    colours[..., :3] *= (0.6 + 0.4 * light)[..., None]
    ax.plot_surface(
        *np.moveaxis(x, 2, 0), facecolors=colours, rcount=len(x), ccount=len(x), lw=0, antialiased=False, shade=False
    )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    ax.set_box_aspect((1.2, 1.2, 0.8), zoom=1.0)
    ax.view_init(elev=50.0, azim=-60.0)
    for axis, name in zip((ax.xaxis, ax.yaxis, ax.zaxis), ("principal axis 1", "2", "3"), strict=True):
        axis.set_major_locator(MaxNLocator(3))
        axis.set_label_text(name, fontsize=6.5)
        axis.labelpad = -8.0
        axis._axinfo["grid"].update(color=LIGHT, linewidth=0.4)
    ax.tick_params(pad=-3.0, labelsize=6.0)


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
