"""A plane to draw rows of any width in: themselves for D = 2, two principal axes for more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from girih.plots.data import Array
from girih.plots.style import COLUMN, DPI


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
