r"""The convex pieces of a two- or three-dimensional latent space.

Latents are whitened by the prior, `u = L^-1 (z - m)` with m its mean and `L L^T` its covariance, so that u is standard
normal, and vertices are kept relative to an origin in each piece.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from girih.gaussian import Polygons, Polyhedra, prepared
from girih.gaussian.prepared import Prepared
from girih.gaussian.tables import ragged
from girih.partition.cells import Corners
from girih.partition.measures import boundary, volumes
from girih.partition.polytope_cells import PolytopeCells

# Raw masses are right to this (absolute) error, times the distance of the farthest vertex where it is more than 1.
SIGNED_ERROR = 1e-13
# Vertices are right to this part of their distance from 0.
ROUNDING_OF_VERTICES = 1e-14

# Points so many deviations out are seen from themselves, not from the mean.
_FAR_OUT = 30.0


class Pieces:
    """They are polygons (S = 2) or polyhedra (S = 3) that cover the latent space, on the device of the prior.

    The complex of the partition is on the host: what is made of it there goes to the device once.

    Args:
        cells: the partition.
        factor: L `(S, S)`, the Cholesky factor of the prior.
        mean: m `(S,)`; 0 by default.

    Attributes:
        origin: u of each piece's origin, `(P, S)`.
        cell: the cell of each piece, `(P,)`.
        cells: the number of cells.
        corner, corner_owner: finite vertices relative to the origins, `(C, S)`, and their pieces.
        bounded: `(P,)`.
        extent: how far finite vertices are from the origin of each piece, `(P,)`.
        low, high: the box around each piece in u, `(P, S)`, infinite where it is unbounded.
        log_mass: an upper bound on the log prior mass of each piece, `(P,)`.
        log_volume: an upper bound on the log area or volume of each piece in u, `(P,)`, infinite where it is unbounded.
    """

    def __init__(self, cells: PolytopeCells, factor: Tensor, mean: Tensor | None = None) -> None:
        device, factor = factor.device, factor.cpu()
        mean = torch.zeros_like(factor[0]) if mean is None else mean.cpu()
        white = torch.linalg.inv(factor)
        self.dim, self.count, self.cells = len(factor), cells.complex.count, len(cells)
        self.cell = torch.as_tensor(cells.cell_of_piece)
        self.origin = (cells.piece_origins - mean) @ white.mT
        self._for_kernels: Prepared | None = None
        points = cells.complex.points
        about = points[:, :-1] - points[:, -1:] * mean.numpy()  # rays end in 0, and have no place
        moved = np.concatenate((about @ white.numpy().T, points[:, -1:]), 1)
        complex_, inside = cells.complex.moved(moved), (cells.inside - mean.numpy()) @ white.numpy().T
        sides = boundary(complex_, inside)
        owner = sides.face if self.dim == 2 else sides.owner[sides.face]
        self._ends = torch.cat([self._relative(ends, owner) for ends in (sides.tail, sides.head)], 1)
        self._edge_owner = torch.as_tensor(owner)
        self._edges = _segments(sides.face, len(sides.owner))  # of each face; for S = 2 of each piece
        if self.dim == 3:
            self._faces = _segments(sides.owner, self.count)
            self._face_owner = torch.as_tensor(sides.owner)
            self._normal = torch.as_tensor(sides.normal)
            shift = (self._normal * self.origin[sides.owner]).sum(1)
            self._offset = torch.as_tensor(sides.offset) - shift

        vertex, corner_owner = cells.corners
        finite = moved[vertex, -1] > 0
        self.bounded = torch.as_tensor(np.bincount(corner_owner[~finite], minlength=self.count) == 0)
        at = torch.as_tensor(moved[vertex[finite], :-1])
        self.corner_owner = torch.as_tensor(corner_owner[finite])
        self.corner = at - self.origin[self.corner_owner]
        rays = torch.as_tensor(moved[vertex[~finite], :-1]), torch.as_tensor(corner_owner[~finite])
        self.low, self.high = Corners(at, self.corner_owner, *rays).boxes(self.count)
        far = at.new_zeros(self.count).scatter_reduce(0, self.corner_owner, at.norm(dim=1), "amax")
        self.extent = at.new_zeros(self.count).scatter_reduce(0, self.corner_owner, self.corner.norm(dim=1), "amax")
        self.log_volume = self._volume_bound(
            torch.as_tensor(volumes(complex_, inside, sides)[0]), ROUNDING_OF_VERTICES * far
        )
        self.log_mass = self._mass_bound(far)
        self._move(device)

    def _move(self, device: torch.device) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
            elif isinstance(value, _Segments):
                setattr(self, name, _Segments(*(part.to(device) for part in value)))

    def _relative(self, ends: np.ndarray, owner: np.ndarray) -> Tensor:
        out = torch.as_tensor(ends).clone()
        out[:, :-1] -= self.origin[owner] * out[:, -1:]
        return out

    def _volume_bound(self, volume: Tensor, shift: Tensor) -> Tensor:
        """The log of a volume with room for vertices that are off by `shift`: next to slivers it is what counts."""
        sphere = 2.0 * math.pi * (self.dim - 1)  # the surface of a unit ball, which is above that of what is inside
        return (volume + sphere * (self.extent + shift) ** (self.dim - 1) * shift).log()

    def _mass_bound(self, far: Tensor) -> Tensor:
        every = self.polytopes(torch.arange(self.count), None, -self.origin)
        mass = every.mass()
        # a convex set at distance d from 0 lies in a half-space at that distance, of mass below exp(-d^2/2)
        distance = torch.zeros_like(self.low).clamp(self.low, self.high).norm(dim=1)
        away = -0.5 * (distance - ROUNDING_OF_VERTICES * far).clamp(min=0.0).square()
        flat = away + self.log_volume - 0.5 * self.dim * math.log(2.0 * math.pi)
        return torch.minimum((mass + SIGNED_ERROR * (1.0 + far)).log(), torch.minimum(away, flat))

    def polytopes(self, piece: Tensor, root: Tensor | None, centre: Tensor) -> Polygons | Polyhedra:
        """The pieces listed, in coordinates `root t - centre`, `t` relative to their origins.

        Args:
            piece: `(m,)`.
            root: `(m, S, S)` with a positive determinant, or `None` for the identity.
            centre: `(m, S)`.

        Returns:
            Polygons (S = 2) or polyhedra (S = 3).
        """
        if self.dim == 2:
            position, owner = self._edges.of(piece)
            return Polygons(*self._moved(position, owner, root, centre), owner, len(piece))
        faces, owner = self._faces.of(piece)
        position, face = self._edges.of(faces)
        tail, head = self._moved(position, owner[face], root, centre)
        normal, offset = self._normal[faces], self._offset[faces]
        if root is not None:  # n t <= d becomes (R^-T n) w <= d - (R^-T n) c
            normal, offset = _moved_planes(root, owner, normal, offset)
        offset = offset - (normal * centre[owner]).sum(1)
        return Polyhedra(tail, head, face, normal, offset, owner, len(piece))

    def _moved(self, position: Tensor, owner: Tensor, root: Tensor | None, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Tails and heads of edges in the coordinates of their owners."""
        ends, shift = self._ends[position], centre[owner]
        out = []
        for part in ends.split(self.dim + 1, 1):
            at, finite = part[:, :-1], part[:, -1:]
            if root is not None:
                at.copy_(torch.einsum("eij,ej->ei", root[owner], at))
            at.addcmul_(shift, finite, value=-1.0)
            out.append(part)
        return out[0], out[1]

    def stretched(self, root: Tensor) -> Self:
        """The pieces in coordinates `root t`, `root (P, S, S)`: for `polytopes` and all below, without a root."""
        other = copy.copy(self)
        other._for_kernels = None
        zero = torch.zeros_like(self.origin)
        every = torch.arange(len(self._ends), device=zero.device)
        other._ends = torch.cat(self._moved(every, self._edge_owner, root, zero), 1)
        if self.dim == 3:
            other._normal, other._offset = _moved_planes(root, self._face_owner, self._normal, self._offset)
        return other

    def edges(self) -> Edges:
        """All edges of the pieces, sorted by piece, and the planes of the faces (S = 3)."""
        owner, nothing = self._edge_owner, self._edge_owner[:0]
        if self.dim == 2:
            return Edges(self._ends, owner, nothing, self._ends.new_zeros(0, 2), self._ends.new_zeros(0), nothing)
        fan = self._edges.start.repeat_interleave(self._edges.length)
        return Edges(self._ends, owner, self._face_owner, self._normal, self._offset, fan)

    def near(self, point: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of points u `(n, S)` and the pieces whose boxes are within reach `(n, S)` of them, sorted by point."""
        near = ((point + reach)[:, None] >= self.low) & ((point - reach)[:, None] <= self.high)
        of_point, piece = near.all(2).nonzero(as_tuple=True)
        return of_point, piece

    def log_masses(self, piece: Tensor, root: Tensor | None, centre: Tensor) -> Tensor:
        """`log P(w in piece)`, `(m,)`, for a standard normal `w = root t - centre`."""
        return self.polytopes(piece, root, centre).log_mass()

    def moments(self, piece: Tensor, root: Tensor | None, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mass `(m,)`, mean `(m, S)` and covariance `(m, S, S)` of w on each piece."""
        return self.polytopes(piece, root, centre).moments()

    def raw_masses(self, piece: Tensor, root: Tensor | None, centre: Tensor) -> Tensor:
        """`P(w in piece)`, `(m,)`, to an absolute error of about 1e-15 or `SIGNED_ERROR` of the farthest vertex."""
        if root is not None or not prepared.serve(centre):
            return self.polytopes(piece, root, centre).mass()
        return self._prepared().masses(piece, centre).clamp_(min=0.0)

    def raw_moments(self, piece: Tensor, root: Tensor | None, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`E[1]`, `E[w]` and `E[w w^T]` over each piece, not divided by the mass, as exact as `raw_masses`."""
        if root is not None or not prepared.serve(centre):
            return self.polytopes(piece, root, centre).raw_moments()
        return self._prepared().moments(piece, centre)

    def _prepared(self) -> Prepared:
        if self._for_kernels is None:
            every = self.polytopes(torch.arange(self.count), None, torch.zeros_like(self.origin))
            self._for_kernels = every.prepared()
        return self._for_kernels

    def nearest(self, piece: Tensor, root: Tensor | None, centre: Tensor) -> Tensor:
        """The point w of each piece that is nearest to 0, `(m, S)`."""
        return self.polytopes(piece, root, centre).nearest()

    def beyond(self, piece: Tensor, point: Tensor) -> Tensor:
        """Points w are this far beyond the farthest face of a polyhedron, `(m,)`; negative inside (S = 3)."""
        faces, owner = self._faces.of(piece)
        out = point.new_full((len(piece),), -torch.inf)
        return out.scatter_reduce(0, owner, (self._normal[faces] * point[owner]).sum(1) - self._offset[faces], "amax")

    def local_moments(self, piece: Tensor, root: Tensor, place: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `moments`, of `w - tilt` about points `w = tilt` of the pieces, `root t = place`, without their heights.

        The log-mass is that of `exp(-tilt (w - tilt) - |w - tilt|^2 / 2)`, 1 at the point, which must be the nearest
        to 0 where it is far out: there w itself has too few digits.
        """
        far = torch.linalg.vector_norm(tilt, dim=1) > _FAR_OUT
        log_mass, mean, covariance = tilt.new_zeros(len(piece)), torch.zeros_like(tilt), torch.zeros_like(root)
        near = ~far
        log, about, spread = self.moments(piece[near], root[near], (place - tilt)[near])
        log_mass[near], mean[near] = log + 0.5 * tilt[near].square().sum(1), about - tilt[near]
        covariance[near] = spread
        shapes = self.polytopes(piece[far], root[far], place[far])
        log_mass[far], mean[far], covariance[far] = shapes.tilted_moments(tilt[far])
        return log_mass, mean, covariance

    def local_sample(
        self, pairs: tuple[Tensor, Tensor, Tensor, Tensor], which: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draws of `w - tilt`, `(len(which), S)`, for the piece, root, place and tilt (`local_moments`) of pairs."""
        far = torch.linalg.vector_norm(pairs[3], dim=1) > _FAR_OUT
        number, out = torch.empty_like(far, dtype=torch.long), pairs[3][which]
        for some in (far, ~far):
            drawn = some[which].nonzero()[:, 0]
            if not len(drawn):
                continue
            number[some] = torch.arange(int(some.sum()), device=some.device)
            piece, root, place, tilt = (part[some] for part in pairs)
            own = number[which[drawn]]
            if some is far:
                out[drawn] = self.polytopes(piece, root, place).sample(own, generator, tilt)
            else:
                out[drawn] = self.polytopes(piece, root, place - tilt).sample(own, generator) - tilt[own]
        return out


def _moved_planes(root: Tensor, owner: Tensor, normal: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The planes `n t = d` of owners as unit normals and offsets of `root t`."""
    normal = (_inverse_transpose(root)[owner] @ normal[:, :, None])[:, :, 0]
    size = normal.norm(dim=1)
    return normal / size[:, None], offset / size


def _inverse_transpose(root: Tensor) -> Tensor:
    """`R^-T` of `(m, 3, 3)` matrices: their cofactors over their determinants."""
    a, b, c = root.unbind(2)
    cofactor = torch.stack((torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)), 2)
    return cofactor / (a * cofactor[:, :, 0]).sum(1)[:, None, None]


class Edges(NamedTuple):
    """They are the boundaries of pieces."""

    ends: Tensor  # (E, 2 S + 2) tail and head
    owner: Tensor  # (E,)
    face_owner: Tensor  # (F,)
    normal: Tensor  # (F, S)
    offset: Tensor  # (F,)
    fan: Tensor  # (E,) the first edge of the face of each


class _Segments(NamedTuple):
    start: Tensor
    length: Tensor

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of what belongs to some owners, and its place among these."""
        return ragged(self.start[index], self.length[index])


def _segments(owner: np.ndarray, count: int) -> _Segments:
    length = torch.as_tensor(np.bincount(owner, minlength=count))
    return _Segments(length.cumsum(0) - length, length)
