r"""The un-truncated Gaussian of each row on each piece of a two- or three-dimensional latent space.

With u the whitened latent (prior N(0, I)), `u = o + t` on a piece with origin o, and `T h = f + J t` there,

    log p(x, z) + S/2 log 2 pi + 1/2 log det prior = const - (far^2 + |y - f - J t|^2 + |o + t|^2) / 2
                                                   = base - |R t - c|^2 / 2

by the QR factors of `[J; I] = Q R`, `c = Q^T b`, `b = [y - f; -o]`, `base = const - (far^2 + |b - Q c|^2) / 2`. So
`w = R t - c` is standard normal before truncation: for complete rows all that a row changes on a piece is a shift.
Nothing is formed as a difference of squares, so steep maps and small noise lose no digits. Where the signal is more
than 1e6 times the noise, `b - Q c` is projected once more: what rounding left of it along Q goes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from girih._devices import room
from girih.inference.model import Model, Rows
from girih.inference.pieces import ROUNDING_OF_VERTICES, SIGNED_ERROR, Pieces
from girih.inference.tree import Leaves, Tree

T = TypeVar("T")

_CHUNK = 2**19  # entries of the largest temporary
_RAW_ERROR = 1e-10  # a raw mass below this may be nothing, or below its error where vertices are far away
LOUD = 1e6  # signals beyond which residuals are projected twice


class Maps(NamedTuple):
    """All complete rows share these maps on each piece."""

    start: Tensor  # (P, K + S): [f; o]
    basis: Tensor  # (P, K + S, S): Q
    root: Tensor  # (P, S, S): R, upper triangular with a positive diagonal


class Gaussians(NamedTuple):
    """Each pair of a row and a piece has one of these Gaussians."""

    base: Tensor  # (m,)
    root: Tensor  # (m, S, S)
    centre: Tensor  # (m, S)
    log_volume: Tensor  # (m,) -log det R: what a volume in w is more than one in u
    shared: bool  # whether the roots are those of `Maps`

    def take(self, index: Tensor) -> Gaussians:
        """Those of some pairs."""
        base, root, centre, log_volume = (part[index] for part in self[:4])
        return Gaussians(base, root, centre, log_volume, self.shared)


class Geometry:
    """It holds the pieces with the maps of a model on them: what does not depend on the rows.

    Args:
        model: the parameters.
        pieces: of its latent space.

    Attributes:
        origin: u of each piece's origin, `(P, S)`.
        on_host: False on a GPU, where pieces are searched all at once.
        factor: L `(S, S)`, the Cholesky factor of the prior.
        slope: `d h / d u` on each piece, `(P, H, S)`.
        maps: for complete rows.
        unbounded: the other pieces, `(U,)`.
        stretched: the pieces in the coordinates `R t` of `maps`.
        far: how far vertices are from the origin of each of these, `(P,)`.
        affine_range: orthonormal columns that span the range of the whole map of each of these, `(U, K, S)`.
    """

    def __init__(self, model: Model, pieces: Pieces) -> None:
        self.model, self.pieces, self.origin = model, pieces, pieces.origin
        self.on_host = pieces.origin.device.type == "cpu"
        self._found: dict[object, object] = {}
        self.factor = torch.linalg.cholesky(model.prior)
        self.slope = model.cells.slope @ self.factor
        reduced = model.head[1]
        start = torch.cat((model.cells.value @ reduced.mT, self.origin), 1)
        self.maps = Maps(start, *_factor(torch.einsum("kh,phs->pks", reduced, self.slope)))
        self.stretched = pieces.stretched(self.maps.root)
        self.unbounded = (~pieces.bounded).nonzero()[:, 0]
        self.affine_range = range_of(model.head[1] @ self.slope[self.unbounded])
        corner = (self.maps.root[pieces.corner_owner] @ pieces.corner[:, :, None])[:, :, 0]
        far = self.origin.new_zeros(pieces.count)
        self.far = far.scatter_reduce(0, pieces.corner_owner, torch.linalg.vector_norm(corner, dim=1), "amax")

    def recall(self, make: Callable[[Geometry], T]) -> T:
        """What `make` finds out about this geometry, at the first call only."""
        if make not in self._found:
            self._found[make] = make(self)
        return cast("T", self._found[make])

    def shape(self, gaussian: Gaussians) -> tuple[Pieces, Tensor | None]:
        """The pieces, and the roots that take them to w."""
        return (self.stretched, None) if gaussian.shared else (self.pieces, gaussian.root)

    def nearest(self, piece: Tensor, gaussian: Gaussians) -> Tensor:
        """The w of each piece that is nearest to 0, `(m, S)`."""
        shape, root = self.shape(gaussian)
        return shape.nearest(piece, root, gaussian.centre)

    def least_log_mass(self, piece: Tensor, gaussian: Gaussians, anchor: Tensor) -> Tensor:
        """A lower bound on the log-mass of each piece in w, `(m,)`, from the `nearest` points."""
        shape, root = self.shape(gaussian)
        slack = ROUNDING_OF_VERTICES * (self.far[piece] + torch.linalg.vector_norm(gaussian.centre, dim=1))
        return shape.polytopes(piece, root, gaussian.centre).least_log_mass(anchor, slack)

    def raw_error(self, piece: Tensor, gaussian: Gaussians) -> Tensor:
        """At least the error of raw masses, `(m,)`; roots of incomplete rows take no vertex farther than those here."""
        far = self.far[piece] + torch.linalg.vector_norm(gaussian.centre, dim=1)
        result: Tensor = (SIGNED_ERROR * far).clamp(min=_RAW_ERROR)
        return result

    def maps_of(self, rows: Rows, row: Tensor, piece: Tensor) -> Maps:
        """`Maps` of the pairs (row, piece): those of the pieces, or the row's own where entries are missing."""
        maps = self.maps
        if rows.observed is None:
            return Maps(maps.start[piece], maps.basis[piece], maps.root[piece])
        columns = rows.reduced[row] @ torch.cat((self.slope[piece], self.model.cells.value[piece, :, None]), 2)
        return Maps(torch.cat((columns[:, :, -1], self.origin[piece]), 1), *_factor(columns[:, :, :-1]))

    def gaussians(self, rows: Rows, row: Tensor, piece: Tensor) -> Gaussians:
        """The Gaussians of the pairs (row, piece), `(m,)` each."""
        S = self.pieces.dim
        width = self.maps.start.shape[1] * (1 if rows.observed is None else rows.reduced.shape[2])
        parts = []
        per = max(1, room(_CHUNK, row.device) // width)
        for r, p in zip(row.split(per), piece.split(per), strict=True):
            start, basis, root = self.maps_of(rows, r, p)
            b = torch.nn.functional.pad(rows.y[r], (0, S)) - start
            centre = (basis * b[:, :, None]).sum(1)
            off = b - (basis @ centre[:, :, None])[:, :, 0]
            if len(r) and centre.abs().max() > LOUD:
                off = off - (basis @ (basis * off[:, :, None]).sum(1)[:, :, None])[:, :, 0]
            constant = rows.constant if rows.observed is None else rows.constant[r]
            square = torch.linalg.vector_norm(off, dim=1).square()
            parts.append((constant - 0.5 * (rows.far2[r] + square), root, centre))
        if not parts:
            parts = [(rows.y.new_empty(0), rows.y.new_empty(0, S, S), rows.y.new_empty(0, S))]
        base, root, centre = (torch.cat(part) for part in zip(*parts, strict=True))
        complete = rows.observed is None
        return Gaussians(base, root, centre, self.log_volume[piece] if complete else log_volume_of(root), complete)

    @cached_property
    def log_volume(self) -> Tensor:
        """`-log det R` of the maps of complete rows, `(P,)`."""
        return log_volume_of(self.maps.root)

    @cached_property
    def inverse(self) -> Tensor:
        """From w back to z in these maps, `L R^-1`, `(P, S, S)`."""
        result: Tensor = self.factor @ torch.linalg.inv(self.maps.root)
        return result

    @cached_property
    def tree(self) -> Tree:
        """The tree over the bounded pieces."""
        return Tree(self.pieces, self.leaves(), self.model.head[1])

    def leaves(self) -> Leaves:
        """The bounded pieces, for a search."""
        pieces, model = self.pieces, self.model
        owner, index = pieces.corner_owner, pieces.bounded.nonzero()[:, 0]
        size = torch.bincount(owner, minlength=pieces.count)
        middle = self.origin.new_zeros(pieces.count, pieces.dim).index_add(0, owner, pieces.corner) / size[:, None]
        feature = model.cells.value + (self.slope @ middle[:, :, None])[:, :, 0]
        place = torch.full_like(size, -1)
        place[index] = torch.arange(len(index), device=index.device)
        inner = pieces.bounded[owner]
        around = (pieces.corner - middle[owner])[inner]
        # |R t| is at least |J t|, and no K-dimensional vectors are needed
        length = torch.linalg.vector_norm((self.maps.root[owner[inner]] @ around[:, :, None])[:, :, 0], dim=1)
        return Leaves(index, feature[index], self.slope[index], around, length, place[owner[inner]])


def log_volume_of(root: Tensor) -> Tensor:
    """`-log det R` of upper triangular roots `(m, S, S)`."""
    result: Tensor = -root.diagonal(dim1=1, dim2=2).log().sum(1)
    return result


def _factor(image: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R of `[J; I]`, `J (m, K, S)`."""
    S = image.shape[2]
    eye = torch.eye(S, dtype=image.dtype, device=image.device).expand(len(image), S, S)
    basis, root = torch.linalg.qr(torch.cat((image, eye), 1))
    sign = root.diagonal(dim1=1, dim2=2).sign()
    return basis * sign[:, None, :], root * sign[:, :, None]


def range_of(image: Tensor) -> Tensor:
    """Orthonormal columns `(m, K, s)` whose span holds the range of `image (m, K, S)`; zeros where that is 0.

    Where the rank is below S but not 0 the span is larger than the range, and distances from it are only shorter.
    """
    result: Tensor = torch.linalg.qr(image).Q * (image != 0).any(2).any(1)[:, None, None]
    return result
