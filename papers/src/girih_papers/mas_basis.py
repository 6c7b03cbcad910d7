"""MAS, Figs. 5, 13 and 14: a column of A before and after training in four generators of digits, and their digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from girih.datasets import Dataset
from girih.errors import ParameterError
from girih.networks import trace
from girih.plots import new_figure, plot_basis, styled
from girih_papers.arrays import Array, to_array
from girih_papers.figures import save
from girih_papers.jobs import Result
from girih_papers.mas_images import (
    MODELS,
    PAPER,
    SMALL,
    Settings,
    as_pictures,
    describe,
    draws,
    image_generator,
    image_rows,
    restored,
    trained_models,
)

SETTINGS, QUICK = PAPER, SMALL

# The digit that the region of each model holds, as in Fig. 5.
_DIGITS = dict(zip(MODELS, (7, 5, 9, 0), strict=True))
_NEIGHBOURS, _LABELLED, _COLUMNS = 10, 5000, 20


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    dataset = image_rows(settings.data, settings.rows)
    _labels(dataset)  # before hours of training
    models = trained_models(settings, out, quick, seed, progress)
    found = {model: _basis_vector(model, results[0], dataset, settings, seed) for model, results in models.items()}
    shape = dataset.image_shape or ()
    figures = [
        save(_draw_vectors(found, shape), out / "basis.png"),
        save(_draw_all(found, shape), out / "columns.png"),
    ]
    for kind in ("FC", "CONV"):
        sheets = {
            model: [_digits(restored(model, settings.latent_dim, dataset, one), seed) for one in results]
            for model, results in models.items()
            if model.startswith(kind)
        }
        figures.append(save(_draw_digits(sheets, shape), out / f"digits-{kind.lower()}.png"))
    return {
        "regions": {
            model: {name: one[name] for name in ("digit", "votes", "latent", "norm_before", "norm_after")}
            for model, one in found.items()
        },
        "neighbours_that_vote": _NEIGHBOURS,
        "settings": describe(settings, dataset, seed, [one for results in models.values() for one in results]),
        "figures": figures,
    }


def _basis_vector(model: str, result: Result, dataset: Dataset, settings: Settings, seed: int) -> dict[str, Any]:
    """A region that holds the model's digit, and its largest column before and after training."""
    trained = restored(model, settings.latent_dim, dataset, result)
    initial = image_generator(model, settings.latent_dim, dataset, seed)
    z, rows = draws(trained, settings.regions, seed)
    best, votes = digit_region(rows, dataset, _DIGITS[model])
    point = z[best : best + 1].double()
    (after, image), (before, _) = _map(trained, point), _map(initial, point)
    sizes = np.linalg.norm(after, axis=0)
    latent = int(sizes.argmax())
    return {
        "digit": _DIGITS[model],
        "votes": votes,
        "latent": latent,
        "norm_before": float(np.linalg.norm(before[:, latent])),
        "norm_after": float(sizes[latent]),
        "before": before[:, latent],
        "after": after,
        "image": image,
    }


def digit_region(rows: torch.Tensor, dataset: Dataset, digit: int) -> tuple[int, int]:
    """The generated row that is most surely a digit: most votes of its nearest labelled rows, then the nearest.

    Returns:
        Its index, and how many of its ten nearest rows of the data show the digit.

    Raises:
        ParameterError: the data have no labels.
    """
    labels = _labels(dataset)
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), _LABELLED)).round().astype(int)
    known = torch.as_tensor(dataset.X[chosen], dtype=rows.dtype)
    is_digit = torch.as_tensor(labels[chosen] == digit)
    votes, gaps = [], []
    for part in rows.split(1000):
        gap, index = torch.cdist(part, known).topk(min(_NEIGHBOURS, len(known)), largest=False)
        votes.append(is_digit[index].sum(1))
        gaps.append(gap.mean(1))
    count, gap = torch.cat(votes), torch.cat(gaps)
    best = int(torch.where(count == count.max(), gap, torch.inf).argmin())
    return best, int(count[best])


def _labels(dataset: Dataset) -> NDArray[Any]:
    if dataset.labels is None:
        raise ParameterError(f"regions are found by labels, and {dataset.name!r} has none; try 'mnist'")
    return np.asarray(dataset.labels)


def _map(net: nn.Module, z: torch.Tensor) -> tuple[Array, Array]:
    """A `(D, S)` and g(z) `(D,)` of the cell of one latent."""
    traced = trace(net.eval())
    with torch.no_grad():
        A, _ = traced.affine(z)
        return to_array(A[0]), to_array(traced(z)[0])


def _digits(net: nn.Module, seed: int) -> Array:
    return to_array(draws(net, _COLUMNS, seed + 1)[1])


@styled
def _draw_vectors(found: dict[str, Any], shape: tuple[int, ...]) -> Figure:
    """A column for each model: the vector before and after training, and the image of the region's point."""
    figure = new_figure(1.35 * len(found) + 0.5, 4.4)
    axes = figure.subplots(3, len(found), squeeze=False)
    for line, (model, one) in zip(axes.T, found.items(), strict=True):
        latent = one["latent"]
        for ax, vector in zip(line, (one["before"], one["after"][:, latent]), strict=False):
            _signed(ax, as_pictures(vector, shape)[0])
        image = as_pictures(one["image"], shape)[0].clip(0.0, 1.0)
        line[2].imshow(image, cmap="gray_r", vmin=0.0, vmax=1.0)
        line[0].set_title(f"{model}, $z_{{{latent + 1}}}$")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, label in zip(axes[:, 0], ("column of A,\nbefore", "column of A,\nafter", "g(z)"), strict=True):
        ax.set_ylabel(label)
    figure.supxlabel("red adds ink, blue takes it away; each column has a scale of its own", fontsize=8.0)
    return figure


def _signed(ax: Axes, vector: Array) -> None:
    limit = float(np.abs(vector).max()) or 1.0
    if vector.ndim == 3:
        ax.imshow(np.clip(0.5 + 0.5 * vector / limit, 0.0, 1.0))
    else:
        ax.imshow(vector, cmap="RdBu_r", vmin=-limit, vmax=limit)


@styled
def _draw_all(found: dict[str, Any], shape: tuple[int, ...]) -> Figure:
    """All columns of the four regions."""
    images = np.stack([as_pictures(one["after"].T, shape) for one in found.values()])
    figure = new_figure(7.2, 0.4 + 0.7 * len(found))
    plot_basis(images, figure.add_subplot(), list(found), share_limit=False)
    return figure


@styled
def _draw_digits(sheets: dict[str, list[Array]], shape: tuple[int, ...]) -> Figure:
    """A block for each model, a line for each run, from the same latents."""
    lines = sum(len(runs) for runs in sheets.values())
    figure = new_figure(7.2, 0.36 * lines + 0.5)
    parts = figure.subplots(len(sheets), 1, squeeze=False, height_ratios=[len(runs) for runs in sheets.values()])[:, 0]
    for ax, (model, runs) in zip(parts, sheets.items(), strict=True):
        pictures = np.stack([as_pictures(rows, shape) for rows in runs]).clip(0.0, 1.0)
        padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1), *[(0, 0)] * (pictures.ndim - 4)))
        sheet = np.concatenate([np.concatenate(list(line), 1) for line in padded], 0)
        ax.imshow(sheet, cmap="gray_r", vmin=0.0, vmax=1.0)
        ax.set(xticks=[], yticks=[], ylabel=model)
        ax.spines[:].set_visible(False)
    figure.supxlabel("a line for each run, from its own random start; the same latents in all lines", fontsize=8.0)
    return figure
