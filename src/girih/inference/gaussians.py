r"""The un-truncated Gaussian of a (row, piece) pair, S = 2, 3.

With u the whitened latent (prior N(0, I)), `u = o + t` on a piece with origin o, and `T h = f + J t` there,

    log p(x, z) + S/2 log 2 pi + 1/2 log det prior = const - (far^2 + |y - f - J t|^2 + |o + t|^2) / 2
                                                   = base - |R t - c|^2 / 2

by the QR factors of `[J; I] = Q R`, `c = Q^T b`, `b = [y - f; -o]`, `base = const - (far^2 + |b - Q c|^2) / 2`. So
`w = R t - c` is standard normal before truncation: for complete rows all that a row changes on a piece is a shift.
Nothing is formed as a difference of squares, so steep maps and small noise lose no digits. Where the signal is more
than 1e6 times the noise, `b - Q c` is projected once more: what rounding left of it along Q goes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference.model import Model, Rows

_CHUNK = 2**19  # entries of the largest temporary
_LOUD = 1e6  # signals beyond which residuals are projected twice


class Maps(NamedTuple):
    """What all complete rows share on each piece."""

    start: Tensor  # (P, K + S): [f; o]
    basis: Tensor  # (P, K + S, S): Q
    root: Tensor  # (P, S, S): R, upper triangular with a positive diagonal


class Gaussians(NamedTuple):
    """One for each pair."""

    base: Tensor  # (m,)
    root: Tensor  # (m, S, S)
    centre: Tensor  # (m, S)
    shared: bool  # whether the roots are those of `Maps`

    def take(self, index: Tensor) -> Gaussians:
        """Those of some pairs."""
        return Gaussians(self.base[index], self.root[index], self.centre[index], self.shared)

    def log_volume(self) -> Tensor:
        """`-log det R`: what a volume in w is more than one in u."""
        return -self.root.diagonal(dim1=1, dim2=2).log().sum(1)


def whitened_slope(model: Model) -> Tensor:
    """`d h / d u` on each piece, `(P, H, S)`."""
    return model.cells.slope @ torch.linalg.cholesky(model.prior)


def make_maps(model: Model, slope: Tensor, origin: Tensor) -> Maps:
    """QR factors of every piece for complete rows."""
    reduced = model.head[1]
    start = torch.cat((model.cells.value @ reduced.mT, origin), 1)
    return Maps(start, *_factor(torch.einsum("kh,phs->pks", reduced, slope)))


def _factor(image: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R of `[J; I]`, `J (m, K, S)`."""
    S = image.shape[2]
    eye = torch.eye(S, dtype=image.dtype, device=image.device).expand(len(image), S, S)
    basis, root = torch.linalg.qr(torch.cat((image, eye), 1))
    sign = root.diagonal(dim1=1, dim2=2).sign()
    return basis * sign[:, None, :], root * sign[:, :, None]


def pair_gaussians(
    model: Model, rows: Rows, maps: Maps, slope: Tensor, origin: Tensor, row: Tensor, piece: Tensor
) -> Gaussians:
    """The Gaussians of the pairs (row, piece), `(m,)` each."""
    width = maps.start.shape[1] * (1 if rows.observed is None else rows.reduced.shape[2])
    parts = []
    for r, p in zip(*(index.split(max(1, _CHUNK // width)) for index in (row, piece)), strict=True):
        start, basis, root = maps_of_pairs(model, rows, maps, slope, origin, r, p)
        b = torch.nn.functional.pad(rows.y[r], (0, origin.shape[1])) - start
        centre = (basis * b[:, :, None]).sum(1)
        off = b - (basis @ centre[:, :, None])[:, :, 0]
        if len(r) and centre.abs().max() > _LOUD:
            off = off - (basis @ (basis * off[:, :, None]).sum(1)[:, :, None])[:, :, 0]
        constant = rows.constant if rows.observed is None else rows.constant[r]
        parts.append((constant - 0.5 * (rows.far2[r] + torch.linalg.vector_norm(off, dim=1).square()), root, centre))
    if not parts:
        S = origin.shape[1]
        parts = [(rows.y.new_empty(0), rows.y.new_empty(0, S, S), rows.y.new_empty(0, S))]
    base, root, centre = (torch.cat(part) for part in zip(*parts, strict=True))
    return Gaussians(base, root, centre, rows.observed is None)


def maps_of_pairs(
    model: Model, rows: Rows, maps: Maps, slope: Tensor, origin: Tensor, row: Tensor, piece: Tensor
) -> Maps:
    """`Maps` of the pairs (row, piece): those of the pieces, or the row's own where entries are missing."""
    if rows.observed is None:
        return Maps(maps.start[piece], maps.basis[piece], maps.root[piece])
    columns = rows.reduced[row] @ torch.cat((slope[piece], model.cells.value[piece, :, None]), 2)
    return Maps(torch.cat((columns[:, :, -1], origin[piece]), 1), *_factor(columns[:, :, :-1]))
