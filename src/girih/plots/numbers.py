"""Pictures need this of models and rows: arrays, names, latents to draw at, and a plane to see wide rows in."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh
from scipy.special import ndtri
from scipy.stats.qmc import Sobol
from torch import Tensor

from girih._options import wholes
from girih.errors import ParameterError
from girih.inference import DGN
from girih.partition import Partition
from girih.plots.style import COLUMN, DPI

Array = NDArray[np.float64]

# Prior quantiles between which a generated manifold is drawn.
TAIL = 1e-3

# Letters of the longest name that fits beside an axis.
_LONGEST = 30


def to_array(tensor: Tensor) -> Array:
    """A detached float64 copy as NumPy."""
    return np.asarray(tensor.detach().cpu().to(torch.float64).numpy().copy())


def label_columns(X: ArrayLike | None, given: list[str] | None, count: int) -> list[str]:
    """The names that were given, or those that the data carry, or x0, x1, ..., as matplotlib should write them.

    Raises:
        ParameterError: not one name for each column.
    """
    found = given
    if found is None:
        found = getattr(X, "feature_names", None)
    columns = getattr(X, "columns", None)
    if found is None and columns is not None:
        found = list(columns)
    if found is None:
        found = [f"x{i}" for i in range(count)]
    if len(found) != count:
        raise ParameterError(f"feature_names holds {len(found)} names for {count} columns; pass one for each")
    return [plain_text(name) for name in found]


def plain_text(name: object) -> str:
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


def complete_rows(
    dgn: DGN, X: ArrayLike, limit: int | None = None
) -> tuple[Array, NDArray[np.bool_], NDArray[np.intp]]:
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
    """Keep at most `limit` of the indices, evenly spaced."""
    if limit is None or len(index) <= limit:
        return index
    return index[np.linspace(0, len(index) - 1, limit).round().astype(np.intp)]


def prior_deviation(dgn: DGN) -> float:
    """Standard deviation of the latent prior, S = 1."""
    result: float = float(dgn.prior.detach()[0, 0]) ** 0.5
    return result


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
        return to_array(dgn.trace(torch.as_tensor(z if z.ndim == 2 else z[:, None], device=dgn.trace.device)))


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


@dataclass(frozen=True)
class Plane:
    """An affine map of rows `(n, D)` to `(n, 2)`, with a label for each axis."""

    centre: Array  # (D,)
    axes: Array  # (2, D), orthonormal
    labels: tuple[str, str]

    def project(self, X: Array) -> Array:
        """Coordinates in the plane, `(n, 2)`."""
        return np.asarray((X - self.centre) @ self.axes.T)


def plane_of(X: Array, names: list[str], of: str = "") -> Plane:
    """The plane of two columns, or the first two principal axes of more, labelled with the variance they explain.

    Args:
        X: complete rows, `(n, D)` with D at least 2.
        names: a label for each column, used for D = 2.
        of: whose principal axes they are, where it is not the data.
    """
    if X.shape[1] == 2:
        return Plane(np.zeros(2), np.eye(2), (names[0], names[1]))
    centre = X.mean(0)
    centred = X - centre
    wide = len(X) < X.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    total = float(np.square(centred).sum())
    values, columns = _largest_two(gram)
    if wide:
        columns, _ = np.linalg.qr(np.pad(centred.T @ columns, ((0, 0), (0, 2 - len(values)))))
    vectors = columns.T * np.where(columns.sum(0) < 0, -1.0, 1.0)[:, None]  # a sign that does not depend on LAPACK
    share = [100.0 * value / total if total > 0 else 0.0 for value in (*values, 0.0)]
    whose = f" of {of}" if of else ""
    first = f"principal axis 1{whose} ({share[0]:.0f}% of variance)"
    second = f"principal axis 2{whose} ({share[1]:.0f}%)"
    return Plane(centre, vectors, (first, second))


def _largest_two(gram: Array) -> tuple[Array, Array]:
    """The two largest eigenvalues, decreasing, with their vectors in columns (one of each for a single entry)."""
    if len(gram) > 64 and gram.any():
        start = np.random.default_rng(0).standard_normal(len(gram))
        values, columns = eigsh(gram, k=2, v0=start)
    else:
        values, columns = eigh(gram)
    order = np.argsort(-values)[:2]
    return values[order], columns[:, order]


def limits_around(rows: Array | None, curve: Array, margin: float = 0.06) -> Array:
    """The lower left and upper right corner of a picture of rows `(n, 2)` and a curve, `(2, 2)`.

    The rows decide, if there are any: the curve may widen their range by a quarter, and then leaves the picture.
    """
    low, high = curve.min(0), curve.max(0)
    if rows is not None and len(rows) > 1:
        least, most = rows.min(0), rows.max(0)
        room = 0.25 * (most - least)
        if (room > 0).all():
            low, high = np.clip(low, least - room, least), np.clip(high, most, most + room)
    size = high - low
    size = np.where(size > 0, size, max(float(size.max()), 1e-3 * float(np.abs(high).max()), 1e-9))
    middle = 0.5 * (low + high)
    return np.stack((middle - (0.5 + margin) * size, middle + (0.5 + margin) * size))


def plane_axes(ax: Axes | None, corners: Array) -> Axes:
    """Axes around these corners; one unit is as long both ways unless the ranges differ much."""
    size = corners[1] - corners[0]
    alike = float(size.max()) <= 4.0 * float(size.min())
    if alike:  # neither flat nor tall pictures: the shorter side gets room to spare
        size = np.maximum(size, size[::-1] * np.array([0.9, 0.65]))
    ax = Figure(figsize=(COLUMN, COLUMN), dpi=DPI).add_subplot() if ax is None else ax
    if alike:
        ax.set_aspect("equal")
    middle = 0.5 * (corners[0] + corners[1])
    ax.set_xlim(middle[0] - 0.5 * size[0], middle[0] + 0.5 * size[0])
    ax.set_ylim(middle[1] - 0.5 * size[1], middle[1] + 0.5 * size[1])
    return ax


def fit_figure(ax: Axes) -> None:
    """Fill the width of the figure of `plane_axes`, and make it as high as that takes.

    Constrained layout cannot: it keeps the height, and takes the room around axes of a fixed aspect for room to grow.
    """
    figure = ax.get_figure(root=True)
    if figure is None:
        return
    across, up = np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())
    ratio = 0.8 if ax.get_aspect() == "auto" else float(up / across)
    pad = 0.03 * figure.dpi
    for _ in range(3):  # ticks and margins depend on the size
        tight, box = ax.get_tightbbox(), ax.get_window_extent()
        if tight is None:
            return
        left, right = box.x0 - tight.x0 + pad, tight.x1 - box.x1 + pad
        below, above = box.y0 - tight.y0 + pad, tight.y1 - box.y1 + pad
        below += sum(legend.get_window_extent().height + 2.0 * pad for legend in figure.legends)
        full = figure.bbox.width
        width = max(full - left - right, 0.2 * full)
        height = below + ratio * width + above
        figure.set_figheight(height / figure.dpi)
        ax.set_position((left / full, below / height, width / full, ratio * width / height))
