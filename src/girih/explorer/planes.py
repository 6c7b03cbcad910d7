"""The planes of a latent space that a page shows, with their cells as polygons; the line for S = 1."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.errors import CellLimitError
from girih.explorer.generator import map_spec
from girih.explorer.packed import packed
from girih.geometry.cells import chunks, triangle
from girih.networks import Trace
from girih.partition import Partition
from girih.partition.codes import Lookup
from girih.partition.polygons import axis_names, cell_polygons, window

Array = NDArray[np.float64]

_REACH = 4.0  # windows to each side, in prior deviations
_BEYOND = 3.0  # how much further polygons go than the first view, in widths of it
_DRAWS = 512  # that say which latents change the outputs most
_CELLS = 30_000  # of the whole latent space for S = 3, beyond which planes do without its masses
_OF_PLANE = 10_000  # cells of a plane, which is made smaller until it has no more
_HALVINGS = 12


class Plane(NamedTuple):
    """A `Plane` is `z = origin + a u + b v`, with the cells that it meets.

    Attributes:
        name: for the page.
        axes: names of a and b.
        origin: `(S,)`.
        basis: u and v, `(S, 2)`.
        part: the partition in the coordinates (a, b).
        mass: prior mass of the cells in the whole latent space, `(R,)`, where it is known.
        volume: of the cells in the whole latent space, `(R,)`, where it is known.
        home: how far the first view goes to each side, where that is known, `(2,)`.
        cut: whether the plane was made smaller, since it has too many cells for a page.
    """

    name: str
    axes: tuple[str, str]
    origin: Tensor
    basis: Tensor
    part: Partition
    mass: Tensor | None
    volume: Tensor | None
    home: Tensor | None = None
    cut: bool = False


def planes_of(traced: Trace, prior: Tensor, part: Partition | None) -> list[Plane]:
    """The planes to show: the latent plane itself for S = 2, else those of the three liveliest latents.

    Args:
        traced: the generator, S >= 2.
        prior: `(S, S)`.
        part: the partition of the whole latent space, where it is known.
    """
    S = traced.latent_dim
    eye = torch.eye(S, dtype=torch.float64)
    if S == 2:
        part = Partition(traced, prior=prior) if part is None else part
        return [
            Plane("the latent plane", _plain(axis_names(part)), eye[0] * 0.0, eye, part, part.prior_mass, part.volume)
        ]
    live = sorted(liveliest(traced, prior)[:3].tolist())
    pairs = [(i, j) for place, i in enumerate(live) for j in live[place + 1 :]]
    whole = part
    if whole is None and S == 3:
        try:
            whole = Partition(traced, prior=prior, max_cells=_CELLS)
        except CellLimitError:
            whole = None  # the planes do without masses and volumes then
    out: list[Plane] = []
    for i, j in pairs:
        origin, basis = eye[0] * 0.0, eye[:, [i, j]]
        home = _REACH * torch.linalg.lstsq(basis, torch.linalg.cholesky(prior)).solution.norm(dim=1)
        sliced, reach = _sliced(traced, basis, (1.0 + 2.0 * _BEYOND) * home)
        mass, volume = _found(whole, sliced)
        axes = (f"z{i + 1}", f"z{j + 1}")
        name, cut = f"the plane of {axes[0]} and {axes[1]}", bool((reach < home).any())
        out.append(Plane(name, axes, origin, basis, sliced, mass, volume, torch.minimum(home, reach), cut))
    return out


def _sliced(traced: Trace, basis: Tensor, reach: Tensor) -> tuple[Partition, Tensor]:
    """The cells that a plane through 0 meets up to `reach` to each side, or nearer where there are too many.

    Raises:
        CellLimitError: there are too many however small the plane.
    """
    origin = torch.zeros(len(basis), dtype=torch.float64)

    def cells(near: Tensor) -> Partition:
        u, v = basis.mT.unbind()
        return Partition.slice(traced, origin, u, v, domain=(-near, near), max_cells=_OF_PLANE)

    for _ in range(_HALVINGS):
        try:
            return cells(reach), reach
        except CellLimitError:
            reach = 0.5 * reach
    return cells(reach), reach


def _found(whole: Partition | None, sliced: Partition) -> tuple[Tensor | None, Tensor | None]:
    """Masses and volumes of the cells of a plane in the whole latent space."""
    if whole is None or whole.latent_dim < 2:
        return None, None
    index = torch.as_tensor(Lookup(whole.polytopes.packed).find(sliced.polytopes.packed))
    unknown = index < 0  # of a bounded domain, or a cell that rounding made
    at = index.clamp(min=0)
    return whole.prior_mass[at].masked_fill(unknown, torch.nan), whole.volume[at].masked_fill(unknown, torch.nan)


def liveliest(traced: Trace, prior: Tensor) -> Tensor:
    """The latents by how much the outputs change along them over the prior, the most first, `(S,)`.

    That is the mean of `|A e_j|^2 prior_jj` over prior draws.

    Example:
        >>> import girih, torch
        >>> from girih.explorer.planes import liveliest
        >>> net = girih.mlp([4, 8, 3], seed=0)
        >>> with torch.no_grad():
        ...     _ = net[0].weight[:, 2].mul_(10.0)
        >>> int(liveliest(girih.trace(net), torch.eye(4, dtype=torch.float64))[0])
        2
    """
    draws = torch.randn(_DRAWS, traced.latent_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = draws @ torch.linalg.cholesky(prior).mT
    total = torch.zeros(traced.latent_dim, dtype=torch.float64)
    for rows in chunks(traced, len(z)):
        with torch.no_grad():
            total += traced.affine(z[rows])[0].square().sum((0, 1)).cpu()
    return (total * prior.diagonal()).argsort(descending=True)


def log_volumes(traced: Trace, patterns: Tensor) -> Tensor | None:
    """`log sqrt det(A^T A)` of the cells with these patterns, nats, `(R,)`; `None` where D < S."""
    if traced.output_dim < traced.latent_dim:
        return None
    out = torch.empty(len(patterns), dtype=torch.float64)
    for rows in chunks(traced, len(patterns)):
        with torch.no_grad():
            A, _ = traced.maps(patterns[rows])
            spectrum = torch.linalg.svdvals(triangle(A)).cpu()
        flat = spectrum[:, -1] <= 1e-10 * spectrum[:, 0]
        out[rows] = torch.where(flat, -torch.inf, spectrum.log().sum(1))
    return out


def plane_spec(plane: Plane, traced: Trace, rows: Array | None, with_maps: bool) -> dict[str, Any]:
    """A plane for the page.

    Args:
        plane: from `planes_of`.
        traced: the generator on the whole latent space.
        rows: places of rows on the plane, `(N, 2)`, which the first view holds.
        with_maps: whether maps go along, where the network is too heavy.
    """
    part = plane.part
    x, y = _home(plane, rows)
    widths = np.array([x[1] - x[0], y[1] - y[0]])
    middle = np.array([x[0] + x[1], y[0] + y[1]]) / 2.0
    far = (0.5 + _BEYOND) * widths
    polygons = cell_polygons(part, np.stack((middle - far, middle + far), 1))
    volumes = log_volumes(traced, part.patterns)
    spec: dict[str, Any] = {
        "name": plane.name,
        "axes": list(plane.axes),
        "origin": plane.origin.tolist(),
        "basis": plane.basis.mT.tolist(),
        "home": [*x, *y],
        "cut": plane.cut,
        "cells": len(part),
        "points": packed(polygons.points, "f4"),
        "start": packed(polygons.start, "i4"),
        "cell": packed(polygons.cell, "i4"),
        "logVolume": None if volumes is None else packed(volumes, "f8"),
        "mass": None if plane.mass is None else packed(plane.mass, "f8"),
        "volume": None if plane.volume is None else packed(plane.volume, "f8"),
    }
    if with_maps:
        spec["maps"] = map_spec(part.trace, part.patterns, part.prior_mass.argsort(descending=True))
    return spec


def _home(plane: Plane, rows: Array | None) -> tuple[tuple[float, float], tuple[float, float]]:
    """The first view: the window of pictures, and the rows within it, but for few far ones."""
    if plane.home is None:
        (x0, x1), (y0, y1) = window(plane.part)
    else:
        x1, y1 = plane.home.tolist()
        x0, y0 = -x1, -y1
    if rows is not None and len(rows):
        low, high = np.quantile(rows, (0.002, 0.998), axis=0)
        margin = 0.05 * (high - low)
        low, high = low - margin, high + margin
        x0, y0 = min(x0, float(low[0])), min(y0, float(low[1]))
        x1, y1 = max(x1, float(high[0])), max(y1, float(high[1]))
    return (x0, x1), (y0, y1)


def line_spec(traced: Trace, prior: Tensor, part: Partition | None, rows: Array | None, with_maps: bool) -> Any:
    """The line of S = 1 for the page: its cells as intervals."""
    part = Partition(traced, prior=prior) if part is None else part
    deviation = float(prior[0, 0]) ** 0.5
    low, high = -3.5 * deviation, 3.5 * deviation
    if rows is not None and len(rows):
        low, high = min(low, float(rows.min()) - 0.1 * deviation), max(high, float(rows.max()) + 0.1 * deviation)
    ends = part.intervals
    volumes = log_volumes(traced, part.patterns)
    spec: dict[str, Any] = {
        "name": "the latent line",
        "home": [max(low, ends.domain[0]), min(high, ends.domain[1])],
        "cells": len(part),
        "lower": packed(ends.lower, "f8"),
        "upper": packed(ends.upper, "f8"),
        "mass": packed(part.prior_mass, "f8"),
        "volume": packed(part.volume, "f8"),
        "logVolume": None if volumes is None else packed(volumes, "f8"),
    }
    if with_maps:
        spec["maps"] = map_spec(traced, part.patterns, part.prior_mass.argsort(descending=True))
    return spec


def _plain(names: tuple[str, str]) -> tuple[str, str]:
    """Names without the signs of a formula."""
    first, second = (name.replace("$", "").replace("_", "") for name in names)
    return first, second
