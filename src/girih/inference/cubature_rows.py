"""Rows as the cubature sees them: `log p(x | z)` on simplices of the latent space, with its slopes and its bends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from girih._devices import room
from girih.inference.model import Jets, Rows
from girih.inference.outputs import Observations, Output

ENTRIES = 2**17  # of the largest temporary: 1 MB, which stays in cache


class Simplices(NamedTuple):
    """They are parts of pieces, each for one row and one part of the prior."""

    row: Tensor  # (m,)
    piece: Tensor  # (m,)
    part: Tensor  # (m,)
    node: Tensor  # (m,) a number that is the same for rows that share a simplex
    corner: Tensor  # (m, S + 1, S)

    def take(self, index: Tensor) -> Simplices:
        """Some of them."""
        return Simplices(*(field[index] for field in self))

    @property
    def log_volume(self) -> Tensor:
        """`(m,)`."""
        edges = self.corner[:, 1:] - self.corner[:, :1]
        result: Tensor = torch.linalg.det(edges).abs().log() - math.lgamma(self.corner.shape[1])
        return result

    def halves(self, first: Tensor, second: Tensor, number: int) -> Simplices:
        """Both halves of each, cut through the middle of the edge from vertex `first` to vertex `second`.

        Their nodes are counted from `number`, which no other has.
        """
        edges, edge = torch.unique(16 * self.node + 4 * first + second, return_inverse=True)
        node = number + torch.cat((edge, edge + len(edges)))
        row, piece, part = (torch.cat((field, field)) for field in (self.row, self.piece, self.part))
        return Simplices(row, piece, part, node, halved(self.corner, first, second))


def halved(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What is linear on simplices, with values `(m, S + 1, ...)` at the vertices, for both halves: see `halves`."""
    every = torch.arange(len(values), device=values.device)
    middle = 0.5 * (values[every, first] + values[every, second])
    lower, upper = values.clone(), values.clone()
    lower[every, second], upper[every, first] = middle, middle
    return torch.cat((lower, upper))


def joined(parts: list[Simplices]) -> Simplices:
    """Several lists as one."""
    return Simplices(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


class Space:
    """It holds the pieces of a latent space with the last hidden features on them.

    Args:
        cells: the pieces.
    """

    def __init__(self, cells: Jets) -> None:
        self.cells = cells

    def features(self, piece: Tensor, z: Tensor) -> Tensor:
        """The last hidden features `(m, k, H)` at latents `(m, k, S)` of pieces `(m,)`."""
        away = z - self.cells.origin[piece][:, None]
        return torch.baddbmm(self.cells.value[piece][:, None], away, self.cells.slope[piece].mT)

    @staticmethod
    def batch(nodes: int, width: int, device: torch.device) -> int:
        """How many simplices there is room for at once."""
        return max(1, room(ENTRIES, device) // (nodes * width))

    @staticmethod
    def chunks(some: Simplices, nodes: int, width: int) -> Iterator[Simplices]:
        """Some simplices at a time, by the room that so many nodes on each take, with so many numbers at each."""
        size = Space.batch(nodes, width, some.corner.device)
        return iter(Simplices(*fields) for fields in zip(*(field.split(size) for field in some), strict=True))


class Likelihood(ABC):
    """It is `log p(x | z)` of some rows, as a function of numbers eta that are affine in z on each piece.

    Attributes:
        highest: the largest value of each row over all eta, `(n,)`.
        outputs: K.
        width: how many numbers are held at once for each point of a simplex.
    """

    highest: Tensor
    outputs: int

    @property
    def width(self) -> int:
        """K, unless rows share what depends on K."""
        return self.outputs

    @abstractmethod
    def images(self, row: Tensor, features: Tensor) -> Tensor:
        """Eta `(m, k, K)` of last hidden features `(m, k, H)`."""

    @abstractmethod
    def value(self, row: Tensor, eta: Tensor) -> Tensor:
        """`(m, k)` for eta `(m, k, K)`."""

    @abstractmethod
    def centre(self, mesh: Space, some: Simplices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`log p(x | z)` at centroids, its slopes and bends along the ways to the vertices, and what lifts them."""

    def at(self, mesh: Space, some: Simplices, barycentric: Tensor) -> Tensor:
        """`log p(x | z)` at points of the simplices, `(m, k)`."""
        eta = self.images(some.row, mesh.features(some.piece, some.corner))
        return self.value(some.row, barycentric @ eta)


class GaussianRows(Likelihood):
    """The rows of a model with Gaussian noise, counted from `Rows.common`: `-|y - T h|^2 / 2`."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.highest, self.outputs = rows, torch.zeros_like(rows.far2), rows.y.shape[1]

    def images(self, row: Tensor, features: Tensor) -> Tensor:
        """`T h`."""
        reduced = self.rows.reduced
        return features @ (reduced.mT if self.rows.observed is None else reduced[row].mT)

    def value(self, row: Tensor, eta: Tensor) -> Tensor:
        """Half the squared distance, negative."""
        return -0.5 * (self.rows.y[row][:, None] - eta).square().sum(2)

    def centre(self, mesh: Space, some: Simplices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The residual along the ways, and their products."""
        eta = self.images(some.row, mesh.features(some.piece, some.corner))
        middle = eta.mean(1)
        step, residual = eta - middle[:, None], self.rows.y[some.row] - middle
        slope = (step @ residual[:, :, None])[:, :, 0]
        return -0.5 * residual.square().sum(1), slope, step @ step.mT, torch.zeros_like(slope)


class OutputRows(Likelihood):
    """Rows with other outputs: see `outputs`."""

    def __init__(
        self, output: Output, rows: Observations, weight: Tensor, bias: Tensor, scale: Tensor | None = None
    ) -> None:
        self.output, self.rows, self.weight, self.bias, self.scale = output, rows, weight, bias, scale
        self.highest, self.outputs = output.highest(rows, scale), len(bias)

    def images(self, row: Tensor, features: Tensor) -> Tensor:
        """`W h + v`."""
        return features @ self.weight.mT + self.bias

    def value(self, row: Tensor, eta: Tensor) -> Tensor:
        """The log-density."""
        return self.output.log_density(self.rows.take(row).between(), eta, self.scale)

    def centre(self, mesh: Space, some: Simplices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Derivatives of the log-density in z, along the ways: no eta but those at centroids are needed."""
        rows, centre = self.rows.take(some.row), some.corner.mean(1, keepdim=True)
        step, slopes = some.corner - centre, mesh.cells.slope[some.piece]
        eta = self.images(some.row, mesh.features(some.piece, centre))
        value = self.value(some.row, eta)[:, 0]
        pull = self.output.slope(rows, eta[:, 0], self.scale) @ self.weight
        slope = step @ (pull[:, None] @ slopes).mT
        maps = slopes.mT @ self.weight.mT  # (m, S, K)
        gram = step @ self.output.gram(rows, eta[:, 0], maps, self.scale) @ step.mT
        excess, lift = self.output.excess(self.scale), torch.zeros_like(slope[:, :, 0])
        if isinstance(excess, Tensor):
            each = excess if rows.seen is None else (excess * self.output.spread(rows.seen))[:, None]
            lift = 0.5 * (step @ ((maps * each) @ maps.mT) @ step.mT).diagonal(dim1=1, dim2=2)
        return value, slope[:, :, 0], gram, lift


class NaturalRows(OutputRows):
    """Complete rows whose log-density is linear in x, `t(x) eta - B(eta)`: rows that share a simplex share all of B.

    `t(x) eta` is a number and a slope for each row and piece, so with many rows little depends on D.
    """

    def __init__(self, output: Output, rows: Observations, weight: Tensor, bias: Tensor, cells: Jets) -> None:
        super().__init__(output, rows, weight, bias)
        self._dim = cells.origin.shape[1]
        pull = output.statistic(rows.x) @ weight
        self._start = pull @ cells.value.mT + (output.statistic(rows.x) @ bias)[:, None]  # (n, P)
        self._slope = torch.einsum("nh,phs->nps", pull, cells.slope)
        self._nothing = rows.take(torch.zeros_like(rows.constant[:1], dtype=torch.long))
        self._nothing = self._nothing._replace(x=torch.full_like(self._nothing.x, output.nothing))
        self._plain = OutputRows(output, self._nothing, weight, bias)

    @property
    def width(self) -> int:
        """Some more than S."""
        return self._dim + 2

    def _shared(
        self, mesh: Space, some: Simplices, nodes: int, make: Callable[[Simplices], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What `make` finds out about each simplex as a row with no x sees it, once for all rows that share it."""
        used, where = torch.unique(some.node, return_inverse=True)
        first = torch.empty_like(used).scatter_(0, where, torch.arange(len(where), device=where.device))
        alone = some.take(first)
        alone = alone._replace(row=torch.zeros_like(alone.row))
        found = [make(part) for part in mesh.chunks(alone, nodes, self.outputs)]
        return tuple(torch.cat(parts)[where] for parts in zip(*found, strict=True))

    def _linear(self, mesh: Space, some: Simplices) -> Tensor:
        """`t(x) eta` at the vertices, `(m, S + 1)`."""
        away = some.corner - mesh.cells.origin[some.piece][:, None]
        slope = self._slope[some.row, some.piece]
        return self._start[some.row, some.piece][:, None] + (away @ slope[:, :, None])[:, :, 0]

    def centre(self, mesh: Space, some: Simplices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As of any rows."""
        plain = self._plain
        value, slope, gram, lift = self._shared(mesh, some, some.corner.shape[1], lambda part: plain.centre(mesh, part))
        linear = self._linear(mesh, some)
        middle = linear.mean(1)
        return value + middle, slope + linear - middle[:, None], gram, lift

    def at(self, mesh: Space, some: Simplices, barycentric: Tensor) -> Tensor:
        """As of any rows; points of their own, which no other row has, are not shared."""
        if barycentric.ndim == 3:
            return super().at(mesh, some, barycentric)
        plain = self._plain
        (value,) = self._shared(mesh, some, barycentric.shape[-2], lambda part: (plain.at(mesh, part, barycentric),))
        linear: Tensor = (barycentric @ self._linear(mesh, some)[:, :, None])[:, :, 0]
        return value + linear


class Nothing(Likelihood):
    """Rows that say nothing of z."""

    outputs = 1

    def __init__(self, like: Tensor) -> None:
        self.highest = torch.zeros_like(like)

    def images(self, row: Tensor, features: Tensor) -> Tensor:
        """One number, 0."""
        return torch.zeros_like(features[:, :, :1])

    def value(self, row: Tensor, eta: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(eta[:, :, 0])

    def centre(self, mesh: Space, some: Simplices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """0."""
        none = torch.zeros_like(some.corner[:, :, 0])
        return none[:, 0], none, torch.zeros_like(none[:, :, None] * none[:, None]), none
