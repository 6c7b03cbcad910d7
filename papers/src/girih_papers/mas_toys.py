"""What the toy reproductions of MAS share: GANs in the plane, curves drawn piece by piece."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import norm
from torch import nn

from girih.gan import GAN
from girih.networks import fc_discriminator
from girih.partition import Partition
from girih_papers.arrays import Array, to_array
from girih_papers.jobs import completed

# Prior deviations between which curves are drawn: all but 0.2% of the prior.
REACH = float(norm.ppf(0.999))
_DISCRIMINATOR = (64, 64)
_BATCH = 100


def train_toy(
    generator: nn.Module,
    rows: Array,
    epochs: int,
    lr: float,
    seed: int,
    checkpoint: str | os.PathLike[str] | None,
    dropout: float = 0.0,
) -> None:
    """Train a generator in place as a non-saturating GAN against a discriminator of two layers of 64 units.

    The paper gives no settings for its toys. These reach the circle; the Wasserstein loss takes four times as long for
    a curve as good.

    Args:
        generator: of points of the plane, float64.
        rows: `(N, 2)`.
        epochs: passes over the rows, in batches of 100.
        lr: Adam's step size.
        seed: of the discriminator, the batches and the latents.
        checkpoint: a file to go on from.
        dropout: of the discriminator.
    """
    gan = GAN(generator, fc_discriminator(rows.shape[1], _DISCRIMINATOR, dropout=dropout, seed=seed + 1000))
    gan.train()
    run = gan.fit(
        rows,
        lr=lr,
        batch_size=min(_BATCH, len(rows)),
        max_epochs=epochs,
        seed=seed,
        record_every=1000,
        progress=False,
        checkpoint=checkpoint,
        accelerator="cpu",
    )
    completed(run)
    generator.eval()


def curve(part: Partition) -> tuple[Array, Array]:
    """The image of a line of latents, exactly: its ends and kinks `(K + 2, D)`, and the kinks' latents `(K,)`."""
    knots = to_array(part.breakpoints)
    knots = knots[np.abs(knots) < REACH]
    z = np.concatenate(([-REACH], knots, [REACH]))
    with torch.no_grad():
        return to_array(part.trace(torch.as_tensor(z[:, None]))), knots


def sliced_distance(first: Array, second: Array, directions: int = 50) -> float:
    """The mean over directions of the Wasserstein-1 distance between the projections of two equally large samples.

    Example:
        >>> import numpy as np
        >>> from girih_papers.mas_toys import sliced_distance
        >>> x = np.random.default_rng(0).standard_normal((100, 2))
        >>> round(sliced_distance(x, x + [1.0, 0.0]), 2)  # the mean of |cos| is 2 / pi
        0.64
    """
    angle = np.pi * (np.arange(directions) + 0.5) / directions
    axes = np.stack([np.cos(angle), np.sin(angle)])
    return float(np.abs(np.sort(first @ axes, 0) - np.sort(second @ axes, 0)).mean())


def covered(points: Array, sectors: int = 36) -> float:
    """The share of equal sectors around 0 that have a point."""
    angle = np.arctan2(points[:, 1], points[:, 0])
    sector = np.floor((angle / (2.0 * np.pi) + 0.5) * sectors).astype(int).clip(0, sectors - 1)
    return len(np.unique(sector)) / sectors


def spread(values: Sequence[float] | Array) -> dict[str, float]:
    """Mean and standard deviation over runs; NaN where there are too few."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    return {"mean": float(array.mean()) if n else np.nan, "deviation": float(array.std(ddof=1)) if n > 1 else np.nan}
