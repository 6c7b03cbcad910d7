"""What pictures need of models and rows: arrays, names of coordinates, latents to draw at."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats.qmc import Sobol
from torch import Tensor

from girih._options import wholes
from girih.errors import ParameterError
from girih.inference import DGN
from girih.partition import Partition

Array = NDArray[np.float64]

# Prior quantiles between which a generated manifold is drawn.
TAIL = 1e-3

# Letters of the longest name that fits beside an axis.
_LONGEST = 30


def to_array(tensor: Tensor) -> Array:
    """A detached float64 copy as NumPy."""
    return np.asarray(tensor.detach().cpu().to(torch.float64).numpy().copy())


def label_columns(X: Any, given: list[str] | None, count: int) -> list[str]:
    """The names that were given, or those that the data carry, or x0, x1, ..., as matplotlib should write them.

    Raises:
        ParameterError: not one name for each column.
    """
    found = given
    if found is None:
        found = getattr(X, "feature_names", None)
    if found is None and hasattr(X, "columns"):
        found = list(X.columns)
    if found is None:
        found = [f"x{i}" for i in range(count)]
    if len(found) != count:
        raise ParameterError(f"feature_names holds {len(found)} names for {count} columns; pass one for each")
    return [plain_text(name) for name in found]


def plain_text(name: Any) -> str:
    """A name from data as matplotlib text: x0 as a symbol, dollars as dollars, cut where it is long."""
    text = str(name)
    if re.fullmatch(r"x\d+", text):
        return f"$x_{{{text[1:]}}}$"
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return text.replace("$", r"\$")


def folded(label: str) -> str:
    """A label for the y-axis of a low picture: in two lines where one would not fit."""
    return label if label.startswith("$") else "\n".join(textwrap.wrap(label, 22)) or label


def complete_rows(dgn: DGN, X: Any, limit: int | None = None) -> tuple[Array, NDArray[np.bool_], NDArray[np.intp]]:
    """Rows with missing entries filled in by `DGN.impute`, which rows those are, and the rows' indices.

    Rows in which nothing was observed are left out. More than `limit` rows are thinned evenly.
    """
    rows = dgn.rows(X).detach()
    index = thin(torch.isnan(rows).all(1).logical_not().nonzero()[:, 0].cpu().numpy(), limit)
    rows = rows[torch.as_tensor(index, device=rows.device)]
    incomplete = torch.isnan(rows).any(1)
    if bool(incomplete.any()):
        rows = dgn.impute(rows)
    return to_array(rows), incomplete.cpu().numpy(), index


def thin(index: NDArray[np.intp], limit: int | None) -> NDArray[np.intp]:
    """At most `limit` of the indices, evenly spaced."""
    if limit is None or len(index) <= limit:
        return index
    return index[np.linspace(0, len(index) - 1, limit).round().astype(np.intp)]


def prior_deviation(dgn: DGN) -> float:
    """Standard deviation of the latent prior, S = 1."""
    return float(dgn.prior.detach()[0, 0]) ** 0.5


def noise_covariance(dgn: DGN, axes: Array) -> Array:
    """Covariance of the noise along the rows of `axes (k, D)`, `(k, k)`."""
    columns = torch.as_tensor(np.asarray(axes.T), dtype=torch.float64, device=dgn.noise.device)
    return np.asarray(axes @ to_array(dgn.noise_covariance.times(columns)))


def quantiles(dgn: DGN, probabilities: Array) -> Array:
    """Prior quantiles of z, `(n,)`."""
    return np.asarray(prior_deviation(dgn) * ndtri(probabilities))


def curve_latents(dgn: DGN, partition: Partition, count: int = 200) -> tuple[Array, Array]:
    """Latents between the outer prior quantiles, at equal steps and at each cell limit, and the cell limits alone."""
    low, high = quantiles(dgn, np.array([TAIL, 1.0 - TAIL]))
    limits = to_array(partition.breakpoints)
    limits = limits[(limits > low) & (limits < high)]
    return np.unique(np.concatenate((np.linspace(low, high, count), limits))), limits


def generate(dgn: DGN, z: Array) -> Array:
    """g(z) at latents `(n, S)`, or `(n,)` for S = 1, `(n, D)`."""
    with torch.no_grad():
        return to_array(dgn.trace(torch.as_tensor(z if z.ndim == 2 else z[:, None])))


def spread_latents(dgn: DGN, count: int = 1024) -> Array:
    """Latents spread evenly over the prior, within its outer quantiles, `(count, S)`; the same at every call."""
    shares = Sobol(dgn.latent_dim, scramble=True, rng=0).random(count)
    return np.asarray(ndtri(np.clip(shares, TAIL, 1.0 - TAIL)) @ prior_factor(dgn).T)


def lattice(dgn: DGN, lines: int, columns: int) -> Array:
    """A grid of latents at even prior quantiles for S = 2, `(lines, columns, 2)`: z1 along columns, z2 up lines."""
    across, up = (ndtri((np.arange(count) + 0.5) / count) for count in (columns, lines))
    grid = np.stack(np.meshgrid(across, up[::-1]), -1)
    return np.asarray(grid @ prior_factor(dgn).T)


def prior_factor(dgn: DGN) -> Array:
    """The lower triangular root of the covariance of the latent prior, `(S, S)`."""
    return np.asarray(np.linalg.cholesky(to_array(dgn.prior)), np.float64)


def check_axes(dgn: DGN, coordinates: Sequence[int]) -> list[int]:
    """Two different coordinates of z, for models with S of 2 or more."""
    chosen = list(wholes(coordinates, "coordinates", None))
    if len(chosen) != 2 or chosen[0] == chosen[1] or not all(0 <= i < dgn.latent_dim for i in chosen):
        raise ParameterError(
            f"coordinates must be two different coordinates of z, 0 to {dgn.latent_dim - 1}; got {list(coordinates)}"
        )
    return chosen
