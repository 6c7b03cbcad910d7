r"""The un-truncated Gaussian of a (row, piece) pair, S = 2, 3.

With u the whitened latent (prior N(0, I)), `u = o + t` on a piece with origin o, and `T h = f + J t` there,

    log p(x, z) + S/2 log 2 pi + 1/2 log det prior = const - (far^2 + |y - f - J t|^2 + |o + t|^2) / 2
                                                   = base - |R t - c|^2 / 2

by the QR factors of `[J; I] = Q R`, `c = Q^T b`, `b = [y - f; -o]`, `base = const - (far^2 + |b - Q c|^2) / 2`. So
`w = R t - c` is standard normal before truncation: for complete rows all that a row changes on a piece is a shift.
Nothing is formed as a difference of squares, so steep maps and small noise lose no digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference.model import Model, Rows

_CHUNK = 2**19  # entries of the largest temporary


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
        if rows.observed is None:
            start, basis, root = maps.start[p], maps.basis[p], maps.root[p]
        else:
            reduced = rows.reduced[r]
            columns = reduced @ torch.cat((slope[p], model.cells.value[p, :, None]), 2)
            start = torch.cat((columns[:, :, -1], origin[p]), 1)
            basis, root = _factor(columns[:, :, :-1])
        b = torch.nn.functional.pad(rows.y[r], (0, origin.shape[1])) - start
        centre = (basis * b[:, :, None]).sum(1)
        off = torch.linalg.vector_norm(b - (basis @ centre[:, :, None])[:, :, 0], dim=1)
        constant = rows.constant if rows.observed is None else rows.constant[r]
        parts.append((constant - 0.5 * (rows.far2[r] + off.square()), root, centre))
    if not parts:
        S = origin.shape[1]
        parts = [(rows.y.new_empty(0), rows.y.new_empty(0, S, S), rows.y.new_empty(0, S))]
    base, root, centre = (torch.cat(part) for part in zip(*parts, strict=True))
    return Gaussians(base, root, centre, rows.observed is None)
