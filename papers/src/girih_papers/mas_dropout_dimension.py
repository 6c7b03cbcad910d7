"""MAS, Fig. 2: the dimension of the cells of a generator under dropout and dropconnect, against its width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from girih import geometry
from girih.errors import ParameterError
from girih.networks import mlp
from girih.plots import BLUE, GREY, PALE, VERMILLION, new_figure, styled
from girih_papers.figures import save
from girih_papers.jobs import run_jobs

_KINDS = ("dropout", "dropconnect")
_NAMES = {"relu": "ReLU", "leaky_relu": "leaky ReLU", "abs": "absolute value"}
_NETWORK_SEEDS = 1000  # networks of one seed


@dataclass(frozen=True)
class Settings:
    """Of the paper, which does not say the activation and, it seems, has one network for each width.

    Attributes:
        latent_dim: S.
        data_dim: D.
        widths: D1 = D2, the widths of the two hidden layers.
        probabilities: of dropping an entry.
        activations: "relu", "leaky_relu" (slope 0.1) or "abs".
        networks: that share the realisations.
        realisations: of the noise, over all networks.
        regions: prior draws in each realisation.
        output_noise: 1 for noise on the last layer, too.
    """

    latent_dim: int = 6
    data_dim: int = 10
    widths: tuple[int, ...] = (6, 8, 10, 12, 24, 48)
    probabilities: tuple[float, ...] = (0.1, 0.3)
    activations: tuple[str, ...] = ("leaky_relu", "relu")
    networks: int = 4
    realisations: int = 2000
    regions: int = 2000
    output_noise: int = 0


SETTINGS = Settings()
QUICK = Settings(widths=(6, 12), networks=2, realisations=40, regions=100)

Box = dict[str, Any]


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    _check(settings)
    panels = list(product(settings.activations, _KINDS, settings.probabilities))
    cases: list[dict[str, Any]] = [
        {"activation": activation, "kind": kind, "probability": p, "width": width}
        for (activation, kind, p), width in product(panels, settings.widths)
    ]
    shared = {
        "latent_dim": settings.latent_dim, "data_dim": settings.data_dim, "regions": settings.regions,
        "draws": -(-settings.realisations // settings.networks), "output_noise": bool(settings.output_noise),
    }  # fmt: skip
    jobs = [
        shared | case | {"seed": seed * _NETWORK_SEEDS + i, "noise": seed * _NETWORK_SEEDS + i}
        for case in cases
        for i in range(settings.networks)
    ]
    found = run_jobs(measured, jobs, out, "mas-dropout-dimension", quick, progress)
    boxes = []
    for k, case in enumerate(cases):
        some = found[k * settings.networks : (k + 1) * settings.networks]
        boxes.append(case | _box(np.stack([one["frequencies"] for one in some]), some))
    for box in boxes:
        if box["activation"] != "relu" and box["kind"] == "dropout" and not settings.output_noise:
            box["law"] = law(settings.latent_dim, settings.data_dim, box["width"], box["probability"]).tolist()
    return {
        "boxes": boxes,
        "largest_difference_from_law": max(
            (float(np.abs(np.subtract(box["frequencies"], box["law"])).max()) for box in boxes if "law" in box),
            default=None,
        ),
        "settings": asdict(settings) | {"negative_slope": 0.1, "prior_variance": 1.0, "seeds": [seed]},
        "figures": [save(_draw(boxes, settings), out / "dimensions.png")],
    }


def _check(settings: Settings) -> None:
    unknown = set(settings.activations) - set(_NAMES)
    if unknown:
        raise ParameterError(f"the setting activations takes {', '.join(_NAMES)}; got {', '.join(unknown)}")
    if settings.output_noise not in (0, 1) or not 1 <= settings.networks <= _NETWORK_SEEDS:
        raise ParameterError("the setting output_noise is 0 or 1, and networks is from 1 to 1000")


def measured(
    activation: str, kind: str, probability: float, width: int, latent_dim: int, data_dim: int, draws: int,
    regions: int, output_noise: bool, seed: int, noise: int,
) -> dict[str, Any]:  # fmt: skip
    """The share of draws in cells of each dimension, its standard error, and the mean dimension without noise."""
    net = mlp([latent_dim, width, width, data_dim], activation=activation, seed=seed)
    found = geometry.dropout_dimensions(
        net, probability, draws, regions, kind, seed=noise, progress=False, output_noise=output_noise
    )
    plain = geometry.intrinsic_dimension(geometry.sample_cells(net, 10 * regions, seed=noise)).mean
    return {"frequencies": found.frequencies.numpy(), "errors": found.errors.numpy(), "plain": plain}


def law(latent_dim: int, data_dim: int, width: int, probability: float) -> np.ndarray:
    """The law of the dimension under dropout in two layers where no slope is 0: of the smallest number of directions.

    `min(S, D, K1, K2)` with binomial numbers of kept units, since products of random matrices lose no other rank.

    Returns:
        The probabilities of 0 to S, `(S + 1,)`.

    Example:
        >>> from girih_papers.mas_dropout_dimension import law
        >>> law(1, 3, width=1, probability=0.5).tolist()
        [0.75, 0.25]
    """
    at_least = binom.sf(np.arange(-1, latent_dim + 1), width, 1.0 - probability) ** 2
    at_least[min(latent_dim, data_dim) + 1 :] = 0.0
    result: np.ndarray = at_least[:-1] - at_least[1:]
    return result


def _box(frequencies: np.ndarray, found: list[Any]) -> Box:
    """What a box plot of all regions of all realisations shows, and means."""
    share = frequencies.mean(0)
    values = np.arange(len(share))
    below = share.cumsum()
    low, middle, high = (int(values[np.searchsorted(below, q - 1e-12)]) for q in (0.25, 0.5, 0.75))
    inside = values[(share > 0) & (values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))]
    means = frequencies @ values
    return {
        "mean": float(means.mean()),
        "mean_of_each_network": means.tolist(),
        "mean_without_noise": float(np.mean([one["plain"] for one in found])),
        "frequencies": share.tolist(),
        "quartiles": [low, middle, high],
        "whiskers": [int(inside.min()), int(inside.max())],
        "standard_errors": (np.sqrt(np.mean([one["errors"] ** 2 for one in found], 0) / len(found))).tolist(),
    }


@styled
def _draw(boxes: list[Box], settings: Settings) -> Figure:
    activations, columns = settings.activations, list(product(_KINDS, settings.probabilities))
    figure = new_figure(7.0, 0.5 + 1.9 * len(activations))
    axes = figure.subplots(len(activations), len(columns), sharex=True, sharey=True, squeeze=False)
    for (i, activation), (j, (kind, p)) in product(enumerate(activations), enumerate(columns)):
        ax = axes[i, j]
        key = {"activation": activation, "kind": kind, "probability": p}
        _draw_boxes(ax, [box for box in boxes if key.items() <= box.items()])
        if i == 0:
            ax.set_title(f"{kind.capitalize()} {p:g}")
        if i == len(activations) - 1:
            ax.set_xlabel("width of both layers")
        if j == 0:
            ax.set_ylabel(f"{_NAMES[activation]}\ndimension of a cell")
            ax.set_ylim(-0.3, settings.latent_dim + 0.4)
            ax.set_yticks(range(0, settings.latent_dim + 1, 2 if settings.latent_dim > 3 else 1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_boxes(ax: Axes, boxes: list[Mapping[str, Any]]) -> None:
    stats = [
        {"q1": b["quartiles"][0], "med": b["quartiles"][1], "q3": b["quartiles"][2],
         "whislo": b["whiskers"][0], "whishi": b["whiskers"][1]}
        for b in boxes
    ]  # fmt: skip
    place = np.arange(1, len(boxes) + 1)
    ax.bxp(
        stats, positions=place, widths=0.6, showfliers=False, patch_artist=True,
        boxprops={"facecolor": PALE, "edgecolor": BLUE, "linewidth": 0.8},
        medianprops={"color": BLUE, "linewidth": 1.6},
        whiskerprops={"color": BLUE, "linewidth": 0.8}, capprops={"color": BLUE, "linewidth": 0.8},
    )  # fmt: skip
    ax.plot(place, [b["mean"] for b in boxes], "D", color=VERMILLION, markersize=3.4, label="mean", zorder=4)
    ax.plot(
        place, [b["mean_without_noise"] for b in boxes], "_", color=GREY, markersize=13, markeredgewidth=1.4,
        label="mean without noise", zorder=3,
    )  # fmt: skip
    ax.set_xticks(place, [str(b["width"]) for b in boxes])
