"""What the cells of a latent space have in common, whatever its dimension: `Cells`, behind every `Partition`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from girih._arrays import as_tensor, check_finite
from girih.errors import ParameterError, ShapeError
from girih.partition.memory import Array

# The ends of an interval (S = 1); the half-spaces `(H, h)`, or `None` for the whole latent space (S = 2, 3).
Domain: TypeAlias = tuple[float, float] | tuple[Array, Array] | None


class Corners(NamedTuple):
    """The finite vertices and the unit rays of all pieces, sorted by piece; each piece has a vertex.

    The whole line, which has none, has the point 0 in its place.
    """

    point: Tensor  # (C, S)
    owner: Tensor  # (C,)
    ray: Tensor  # (E, S)
    ray_owner: Tensor  # (E,)

    def about(self, origin: Tensor) -> Corners:
        """The same corners, counted from an origin `(P, S)` in each piece."""
        return self._replace(point=self.point - origin[self.owner])

    def boxes(self, count: int) -> tuple[Tensor, Tensor]:
        """The box around each of the pieces, `(P, S)` and `(P, S)`, infinite where a piece is unbounded."""
        dim, ray = self.point.shape[1], self.ray
        index = self.owner[:, None].expand(-1, dim)
        low = self.point.new_full((count, dim), torch.inf).scatter_reduce(0, index, self.point, "amin")
        high = self.point.new_full((count, dim), -torch.inf).scatter_reduce(0, index, self.point, "amax")
        if len(ray):
            index = self.ray_owner[:, None].expand(-1, dim)
            down = torch.full_like(ray, torch.inf).masked_fill(ray < 0, -torch.inf)
            up = torch.full_like(ray, -torch.inf).masked_fill(ray > 0, torch.inf)
            low, high = low.scatter_reduce(0, index, down, "amin"), high.scatter_reduce(0, index, up, "amax")
        return low, high


class Cells(ABC):
    """The geometry of a partition: intervals for S = 1, the polytopes of a complex for S = 2, 3.

    You meet it as `Partition.cells`; a `Partition` adds the network, its maps and the prior. A cell is one convex
    *piece*, or several where S = 2, 3 and planes were needed that no unit of the network made.
    """

    @property
    @abstractmethod
    def domain(self) -> Domain:
        """The part of the latent space that the cells cover."""

    @property
    @abstractmethod
    def extent(self) -> str:
        """The domain in a few letters."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def patterns(self) -> Tensor:
        """The code of every hidden unit on every cell, `(R, U)` int8."""

    def nested(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many cells at a time with patterns, next to those that share the codes of the first layers."""
        for some in torch.arange(len(self)).split(size):
            yield some, self.patterns[some]

    @property
    @abstractmethod
    def origins(self) -> Tensor:
        """A point of each cell about which maps are well conditioned, `(R, S)`."""

    @property
    @abstractmethod
    def piece_patterns(self) -> Tensor:
        """The codes on every piece, `(P, U)` int8."""

    @property
    @abstractmethod
    def piece_origins(self) -> Tensor:
        """A point of each piece about which maps are well conditioned, `(P, S)`."""

    @property
    @abstractmethod
    def piece_cells(self) -> Tensor:
        """The cell of each piece, `(P,)`."""

    @abstractmethod
    def piece_corners(self) -> Corners:
        """The vertices and rays of all pieces."""

    @abstractmethod
    def simplices(self) -> tuple[Tensor, Tensor]:
        """Simplices that bounded pieces are made of, `(M, S + 1, S)`, and the piece of each, `(M,)`."""

    @property
    @abstractmethod
    def interior(self) -> Tensor:
        """A point inside every cell, `(R, S)`."""

    @property
    @abstractmethod
    def volume(self) -> Tensor:
        """Length, area or volume of every cell, `(R,)`, infinite for unbounded ones."""

    @property
    @abstractmethod
    def centroid(self) -> Tensor:
        """The centroid of every cell, `(R, S)`, NaN for unbounded ones."""

    @abstractmethod
    def log_prior_mass(self, factor: Array) -> Tensor:
        """Log mass of every cell under `N(0, L L^T)`, `(R,)`."""

    @abstractmethod
    def prior_mass(self, factor: Array) -> Tensor:
        """Mass of every cell under `N(0, L L^T)`, `(R,)`."""

    @property
    @abstractmethod
    def neighbors(self) -> Tensor:
        """Index pairs of cells that share a facet, `(E, 2)`."""

    @property
    @abstractmethod
    def separating_units(self) -> Tensor:
        """The column of `patterns` that tells each pair of neighbours apart, `(E,)`."""

    @abstractmethod
    def locate(self, z: Tensor) -> Tensor:
        """The cell of each z `(N, S)`, `(N,)`; -1 outside the domain."""

    @abstractmethod
    def touching(self, point: Array) -> list[int]:
        """The cells whose closure holds a point `(S,)`."""

    @abstractmethod
    def neighbours_of(self, i: int) -> list[int]:
        """The cells that share a facet with cell i."""

    @abstractmethod
    def cell_points(self, i: int) -> tuple[Tensor, Tensor]:
        """The vertices `(V, S)` and extreme rays `(K, S)` of cell i."""

    @abstractmethod
    def cell_halfspaces(self, i: int) -> tuple[Tensor, Tensor]:
        """The irredundant half-spaces of cell i: unit normals `H (F, S)` and `h (F,)` with `H z <= h`."""

    @abstractmethod
    def tensors(self) -> tuple[dict[str, Tensor], dict[str, bool]]:
        """The cells taken apart into tensors and flags, for a file."""


def interval(domain: object) -> tuple[float, float]:
    """The ends of a domain for S = 1."""
    if domain is None:
        return (-math.inf, math.inf)
    ends = as_tensor(domain, "domain")
    if ends.numel() != 2:
        raise ShapeError(f"domain must be (low, high) for S = 1, got shape {tuple(ends.shape)}")
    check_finite(torch.where(torch.isinf(ends), 0.0, ends), "domain")
    low, high = ends.reshape(-1).tolist()
    if not low < high:
        raise ParameterError(f"domain must have low < high, got ({low}, {high})")
    return low, high


def halfspaces(domain: object, dim: int) -> tuple[Array, Array] | None:
    """The half-spaces `H z <= h` of a domain for S >= 2.

    Args:
        domain: `None`; `(low, high)`, numbers or `(S,)` each, some of them infinite; or `(H, h)` with
            shapes `(K, S)` and `(K,)`.
        dim: S.
    """
    if domain is None:
        return None
    try:
        given, other = cast("Iterable[object]", domain)
    except (TypeError, ValueError):
        raise ShapeError(
            f"domain must be None, (low, high) or (H, h) with H z <= h, for S = {dim}; got {type(domain).__name__}"
        ) from None
    first, second = as_tensor(given, "domain"), as_tensor(other, "domain")
    if first.ndim == 2:
        if first.shape[1] != dim or second.shape != (len(first),):
            raise ShapeError(
                f"domain=(H, h) must have shapes (K, {dim}) and (K,); got {tuple(first.shape)} and "
                f"{tuple(second.shape)}"
            )
        check_finite(first, "H of the domain")
        check_finite(second, "h of the domain")
        if not (first.abs().amax(1) > 0).all():
            raise ParameterError("a row of H in domain=(H, h) is 0; every half-space needs a normal")
        return first.cpu().numpy(), second.cpu().numpy()
    if first.ndim > 1 or second.ndim > 1 or first.numel() not in (1, dim) or second.numel() not in (1, dim):
        raise ShapeError(
            f"domain=(low, high) must hold numbers or {dim} values each; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    low, high = first.reshape(-1).expand(dim), second.reshape(-1).expand(dim)
    check_finite(torch.where(torch.isinf(low), 0.0, low), "domain")
    check_finite(torch.where(torch.isinf(high), 0.0, high), "domain")
    if not (low < high).all():
        raise ParameterError(f"domain must have low < high in each coordinate, got {low.tolist()} and {high.tolist()}")
    eye = torch.eye(dim, dtype=torch.float64)
    H, h = torch.cat((eye, -eye)), torch.cat((high, -low)).cpu()
    bounded = torch.isfinite(h)
    return (H[bounded].numpy(), h[bounded].numpy()) if bounded.any() else None
