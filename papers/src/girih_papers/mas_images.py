"""What the image reproductions of MAS share: the networks of its appendix E, trained as GANs and VAEs, and kept.

`mas-basis` and `mas-disentanglement` ask for the same jobs, so that whichever comes second finds the trained models of
the first where both name one folder of models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from girih.datasets import Dataset, load
from girih.errors import ParameterError
from girih.gan import GAN
from girih.geometry import disentanglement, sample_cells
from girih.networks import conv_generator, fc_discriminator, fc_encoder, fc_generator
from girih.vae import GaussVAE
from girih_papers.arrays import Array
from girih_papers.jobs import Result, completed, run_jobs, weights_of, with_weights
from girih_papers.settings import arguments

MODELS = ("FC GAN", "CONV GAN", "FC VAE", "CONV VAE")
NORMS = ("spectral", "frobenius", "sum")
# The variance that the VAEs' noise starts from; it is learned. The paper does not give it.
NOISE = 0.1
_TYPE = torch.float32


@dataclass(frozen=True)
class Settings:
    """What is trained: by default as in the paper, on the digits that are there without a network.

    Attributes:
        data: "mnist" (5,000 digits, offline), "mnist-full", or the path of images.
        rows: how many of them; 0 for all.
        latent_dim: S.
        epochs: passes over the rows.
        batch_size: of a step; the paper does not give it.
        lr: Adam's step size.
        runs: random starts of each model.
        regions: cells that are sampled.
        models: a folder of models trained before with the same settings; empty for one of its own.
    """

    data: str = "mnist"
    rows: int = 0
    latent_dim: int = 10
    epochs: int = 300
    batch_size: int = 100
    lr: float = 1e-4
    runs: int = 8
    regions: int = 10_000
    models: str = ""


PAPER = Settings()
SMALL = Settings(rows=64, epochs=2, batch_size=32, runs=1, regions=40)


def trained_models(settings: Settings, out: Path, quick: bool, seed: int, progress: bool) -> dict[str, list[Result]]:
    """The four models, `runs` of each, trained or found in the folder of models."""
    jobs = [
        arguments(train_model, settings, model=model, seed=seed + i) for i in range(settings.runs) for model in MODELS
    ]
    folder = Path(settings.models).expanduser() if settings.models else out
    if not folder.is_dir():
        raise ParameterError(f"there is no folder of models {folder}; name one, or leave models out to train them")
    results = run_jobs(train_model, jobs, folder, "models of MAS", quick, progress)
    return {model: results[i :: len(MODELS)] for i, model in enumerate(MODELS)}


def train_model(
    model: str,
    data: str,
    rows: int,
    latent_dim: int,
    epochs: int,
    batch_size: int,
    lr: float,
    regions: int,
    seed: int,
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """One job: a generator trained from its seed, and its disentanglement over sampled cells before and after."""
    dataset = image_rows(data, rows)
    generator = image_generator(model, latent_dim, dataset, seed)
    before = entanglement(generator, regions, seed)
    D = dataset.shape[1]
    whole: GAN | GaussVAE
    if model.endswith("GAN"):
        whole = GAN(generator, fc_discriminator(D, dtype=_TYPE, seed=seed + 1000))
    else:
        whole = GaussVAE(generator, fc_encoder(D, 2 * latent_dim, dtype=_TYPE, seed=seed + 1000), noise=NOISE)
    history, seconds = train_on_images(whole, dataset.X, epochs, batch_size, lr, seed, checkpoint)
    generator.eval()
    return {
        **weights_of(generator),
        "before": before,
        "after": entanglement(generator, regions, seed),
        "loss": history["loss"],
        "seconds": seconds,
    }


def train_on_images(
    model: GAN | GaussVAE,
    X: Array,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    checkpoint: str | os.PathLike[str] | None,
) -> tuple[dict[str, Array], float]:
    """Train in place; the losses, once an epoch, and the seconds that it took."""
    size = min(batch_size, len(X))
    start = time.perf_counter()
    run = model.fit(
        X,
        lr=lr,
        batch_size=size,
        max_epochs=epochs,
        seed=seed,
        record_every=-(-len(X) // size),
        progress=False,
        checkpoint=checkpoint,
    )
    return completed(run).history, time.perf_counter() - start


def image_rows(data: str, rows: int) -> Dataset:
    """The training images of a set as rows, colours plane by plane as convolutions give them.

    Args:
        data: a name or path, as for `girih.datasets.load`.
        rows: how many, by a draw that is always the same; 0 for all.

    Raises:
        ParameterError: the rows are no images.
        DataSourceError: there are no such data.
    """
    path = os.path.expanduser(data)
    try:
        dataset = load(path, n=rows or None, part="train")
    except ParameterError:  # the set has no parts
        dataset = load(path, n=rows or None)
    shape = dataset.image_shape
    if shape is None:
        raise ParameterError(f"the data must be images, and {data!r} has no image shape; try 'mnist'")
    if len(shape) == 3:
        planes = dataset.X.reshape(-1, *shape).transpose(0, 3, 1, 2)
        grey = shape[2] == 1
        dataset = replace(dataset, X=planes.reshape(len(planes), -1), image_shape=shape[:2] if grey else shape)
    return dataset


def as_pictures(rows: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of `image_rows` as images `(N, h, w)` or `(N, h, w, c)`."""
    rows = np.asarray(rows)
    if len(shape) == 2:
        grey: np.ndarray = rows.reshape(-1, *shape)
        return grey
    coloured: np.ndarray = rows.reshape(-1, shape[2], *shape[:2]).transpose(0, 2, 3, 1)
    return coloured


def image_generator(model: str, latent_dim: int, dataset: Dataset, seed: int) -> nn.Sequential:
    """The generator of appendix E for a model's name, in float32, with random weights."""
    if model.startswith("FC"):
        return fc_generator(latent_dim, dataset.shape[1], dtype=_TYPE, seed=seed)
    return conv_for(dataset.image_shape or (), latent_dim, seed)


def conv_for(shape: tuple[int, ...], latent_dim: int, seed: int) -> nn.Sequential:
    """The convolutional generator of appendix E; for 32 x 32 pixels its last layer has another padding.

    The paper describes the one for 28 x 28 pixels only: 11 x 11 to 28 x 28 by kernels of 4, stride 3, padding 3. With
    padding 1 the same layer gives 32 x 32, and one filter for each colour.

    Raises:
        ParameterError: images of another size.
    """
    net = conv_generator(latent_dim, dtype=_TYPE, seed=seed)
    if shape == (28, 28):
        return net
    if shape[:2] != (32, 32):
        raise ParameterError(f"the convolutional generator makes 28 x 28 or 32 x 32 pixels, and the data have {shape}")
    old = next(layer for layer in reversed(net) if isinstance(layer, nn.ConvTranspose2d))
    colours = shape[2] if len(shape) == 3 else 1
    new = nn.utils.skip_init(nn.ConvTranspose2d, 8, colours, 4, stride=3, padding=1, dtype=_TYPE)
    random = torch.Generator().manual_seed(seed + 2000)
    with torch.no_grad():
        new.weight.normal_(0.0, float(old.weight.std()), generator=random)  # as wide as those of the layer for digits
        new.bias.zero_()
    return nn.Sequential(*(new if layer is old else layer for layer in net))


def entanglement(generator: nn.Module, regions: int, seed: int) -> np.ndarray:
    """The largest value and the average over sampled cells of each norm of Q - I, `(3, 2)`."""
    cells = sample_cells(generator.eval(), regions, seed=seed)
    values = [disentanglement(cells, norm) for norm in NORMS]
    generator.train()
    return np.array([[value.max, value.mean] for value in values])


def restored(model: str, latent_dim: int, dataset: Dataset, result: Result) -> nn.Module:
    """A trained generator."""
    return with_weights(image_generator(model, latent_dim, dataset, 0), result)


def draws(generator: nn.Module, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents `(n, S)` of N(0, I) and the rows generated from them `(n, D)`, float32."""
    first = next(layer for layer in generator.modules() if isinstance(layer, nn.Linear))
    z = torch.randn(n, first.in_features, generator=torch.Generator().manual_seed(seed), dtype=_TYPE)
    with torch.no_grad():
        return z, generator(z)


def describe(settings: Settings, dataset: Dataset, seed: int, runs: Sequence[Result] = ()) -> dict[str, Any]:
    """The settings as they go into `result.json`."""
    steps = -(-len(dataset) // settings.batch_size) * settings.epochs
    return {
        "data": dataset.description,
        "rows": len(dataset),
        "latent_dim": settings.latent_dim,
        "networks": "MAS, appendix E, leaky ReLU of slope 0.1, float32",
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "steps": steps,
        "steps_of_the_paper": "300 epochs of 60,000 rows: 180,000, if its batches are of 100 rows as well",
        "lr": settings.lr,
        "regions": settings.regions,
        "vae_noise": f"learned, from a variance of {NOISE:g}",
        "seeds": [seed + i for i in range(settings.runs)],
        "seconds_of_training": float(sum(float(result["seconds"]) for result in runs)),
    }
