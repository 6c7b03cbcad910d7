"""`Partition`: the cells of a generator's latent space and what one asks of them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows, as_tensor, check_finite
from girih._deprecated import gathered
from girih._options import whole
from girih._shown import Shown
from girih.covariance import Covariance
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.networks import Jet, Snapshot, Trace, trace
from girih.partition.cells import Cells, Domain
from girih.partition.intervals import LineCells
from girih.partition.memory import Limits
from girih.partition.polytope_cells import PolytopeCells
from girih.partition.subdivision import expected_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from networkx import Graph

MAX_LATENT_DIM = 3
MAX_CELLS = 2_000_000
_CHUNK = 1024


def check_latent_dim(latent_dim: int) -> None:
    """Refuse latent spaces whose partition cannot be enumerated."""
    if latent_dim > MAX_LATENT_DIM:
        raise LatentDimensionError(
            f"the exact partition covers latent dimensions S = 1 to {MAX_LATENT_DIM}, and this generator has "
            f"S = {latent_dim}, where the number of cells explodes; use girih.Partition.slice(net, origin, u, v) for a "
            "plane through the latent space, girih.partition.walk(net, z) for a cell and its neighbours, or "
            "girih.trace(net).affine(z) for the affine map around single latents: all work for any S"
        )


class _OfCells:
    """A tensor that a partition reads from its cells."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type[Partition], name: str) -> None:
        self._name = name

    def __get__(self, part: Partition | None, owner: type[Partition]) -> Tensor:
        return self if part is None else getattr(part.cells, self._name)  # type: ignore[return-value]


class Partition(Shown):
    r"""The cells on which a generator is affine, `g(z) = A z + b`.

    Exact and complete for S = 1, 2, 3: cells over the whole latent space are unbounded, not cut by a box. For
    S = 1 they are numbered from left to right. The partition is that of the network at the time of the call: once
    its weights have changed, in whatever way, what is read from the network (`affine`, `trace`) raises.

    Args:
        net: any module that `girih.trace` supports.
        domain: `None` for the whole latent space; `(low, high)` for an interval or a box, numbers or `(S,)` each,
            which may be infinite; or, for S = 2, 3, half-spaces `(H, h)` with `H z <= h`.
        prior: covariance of the latent prior for `prior_mass`: a variance, or `(S, S)`; the identity by default.
        max_cells: the largest number of cells to enumerate.
        progress: whether to show a progress bar on a terminal for large partitions.
        memory: how many GB the enumeration may take; by default most of what is free on this machine.

    Attributes:
        affine: `(A, b)` of every cell, `(R, D, S)` and `(R, D)`.
        patterns: the code of every hidden unit, `(R, U)` int8, unpacked from bits when it is read: -1 or +1 for one
            kink, -1, 0, +1 for two kinks, the position of the largest input for a maximum.
        volume: length, area or volume of every cell, `(R,)`, infinite for unbounded cells.
        centroid: `(R, S)`, NaN for unbounded cells.
        interior: a point inside every cell, `(R, S)`.
        prior_mass: mass of every cell under the prior, `(R,)`.
        neighbors: index pairs of cells that share a facet, `(E, 2)`.
        separating_units: for each of those pairs the column of `patterns` that changes across the facet, `(E,)`.

    Raises:
        LatentDimensionError: S is larger than 3.
        ParameterError: on reading `affine` or `trace` after the weights of the network have changed.
        CellLimitError: there are more than `max_cells` cells, or more than fit into `memory`.
        ShapeError, ParameterError, EmptyDataError: a domain of the wrong shape, or an empty one.
        NoiseError: a prior that is not symmetric positive definite.
        NonFiniteError: weights that are not finite.

    Source:
        EM-DGN, section 3.2 and appendix A; MAS, section 2; edge subdivision follows Berzins (2023).

    Example:
        >>> import girih
        >>> part = girih.Partition(girih.mlp([2, 8, 2], activation="relu", seed=0))
        >>> len(part), part.affine[0].shape, round(part.prior_mass.sum().item(), 10)
        (37, torch.Size([37, 2, 2]), 1.0)
    """

    def __init__(
        self,
        net: nn.Module | Trace,
        domain: ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
        prior: ArrayLike | Tensor = 1.0,
        max_cells: int = MAX_CELLS,
        progress: bool = True,
        *,
        memory: float | None = None,
    ) -> None:
        traced = trace(net)
        check_latent_dim(traced.latent_dim)
        self._trace, self._weights, dim = traced, Snapshot(traced.tensors()), traced.latent_dim
        self._prior: Tensor | None = prior_covariance(prior, dim)
        limits = Limits(whole(max_cells, "max_cells"), memory)
        self.cells: Cells = (LineCells if dim == 1 else PolytopeCells).of(traced, domain, limits, progress)

    @classmethod
    def _of(cls, traced: Trace, prior: Tensor, cells: Cells) -> Partition:
        """A partition whose cells are known already."""
        part = cls.__new__(cls)
        part._trace, part._weights = traced, Snapshot(traced.tensors())
        part._prior, part.cells = prior, cells
        return part

    @property
    def trace(self) -> Trace:
        """The generator whose cells these are.

        Raises:
            ParameterError: its weights are no longer those that it had when the partition was made.
        """
        if not self._weights.holds(self._trace.tensors()):
            raise ParameterError(
                "the weights of the network have changed since this partition was made, and its cells are those of the "
                "old ones; make a new one: girih.Partition(net)"
            )
        return self._trace

    patterns = _OfCells("The code of every hidden unit on every cell, `(R, U)` int8.")
    origins = _OfCells("A point of each cell about which maps are well conditioned, `(R, S)`.")
    volume = _OfCells("Length, area or volume of every cell, `(R,)`; infinite for unbounded cells.")
    centroid = _OfCells("The centroid of every cell, `(R, S)`; NaN for unbounded cells.")
    interior = _OfCells("A point inside every cell, `(R, S)`.")
    neighbors = _OfCells("Index pairs of cells that share a facet, `(E, 2)`.")
    separating_units = _OfCells(
        "For each pair of `neighbors` the column of `patterns` that changes across their facet, `(E,)`."
    )
    # a piece is a cell, except where S = 2, 3 and the network has fewer independent hyperplanes than S or maxima over
    # more than two inputs: there a cell can be several
    piece_patterns = _OfCells("The patterns of the convex pieces that exact inference integrates over, `(P, U)`.")
    piece_origins = _OfCells("A point of each piece about which maps are well conditioned, `(P, S)`.")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy or a pickle; those of earlier versions name the covariance otherwise."""
        if "prior_covariance" in state:
            state["_prior"] = state.pop("prior_covariance")
        vars(self).update(state)

    def __len__(self) -> int:
        return len(self.cells)

    def _facts(self) -> dict[str, str]:
        """Cells, S and the domain."""
        return {"cells": str(len(self)), "latent_dim": str(self.latent_dim), "domain": self.cells.extent}

    @staticmethod
    def estimate(net: nn.Module | Trace) -> int:
        """A rough guess of the number of cells before enumerating them.

        That of as many hyperplanes in general position as there are kinks, `sum_k binom(U, k)`, k up to S; folds
        of trained networks make for more cells, and dead units for fewer.

        Example:
            >>> import girih
            >>> girih.Partition.estimate(girih.mlp([2, 64, 64, 2]))
            8257
        """
        traced = trace(net)
        check_latent_dim(traced.latent_dim)
        return expected_cells(traced)

    @classmethod
    def slice(
        cls,
        net: nn.Module | Trace,
        origin: ArrayLike | Tensor,
        u: ArrayLike | Tensor,
        v: ArrayLike | Tensor,
        domain: ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
        *,
        max_cells: int = MAX_CELLS,
        progress: bool = True,
        memory: float | None = None,
    ) -> Partition:
        """The cells of a latent space of any dimension that meet the plane `z = origin + a u + b v`.

        A partition in the coordinates (a, b), with the patterns and, composed with the plane, the maps of the cells.
        For the plane through three latents z1, z2, z3 take `origin=z1, u=z2 - z1, v=z3 - z1`; they then lie at
        (0, 0), (1, 0) and (0, 1). Masses are those of a standard normal (a, b).

        Args:
            net: any module that `girih.trace` supports.
            origin: a point of the plane, `(S,)`.
            u: the direction of the coordinate a, `(S,)`.
            v: the direction of b, `(S,)`, not parallel to u.
            domain: as in `Partition`, in the coordinates (a, b).
            max_cells: as in `Partition`.
            progress: as in `Partition`.
            memory: as in `Partition`.

        Raises:
            CellLimitError: as in `Partition`.
            ShapeError: a vector that does not have S entries.
            ParameterError: u and v are parallel, or zero.

        Example:
            >>> import girih, torch
            >>> net = girih.mlp([16, 32, 100], seed=0)
            >>> eye = torch.eye(16, dtype=torch.float64)
            >>> part = girih.Partition.slice(net, torch.zeros(16), eye[0], eye[1])
            >>> part.trace.latent_dim, len(part) > 100
            (2, True)
        """
        traced = trace(net)
        vectors = []
        for value, name in ((origin, "origin"), (u, "u"), (v, "v")):
            vector = as_tensor(value, name, traced.device).detach()
            if vector.shape != (traced.latent_dim,):
                raise ShapeError(
                    f"{name} must have the S = {traced.latent_dim} entries of a latent, got shape {tuple(vector.shape)}"
                )
            check_finite(vector[None], name)
            vectors.append(vector)
        basis = torch.stack(vectors[1:], 1)
        spread = torch.linalg.svdvals(basis / basis.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny))
        if spread[1] < 1e-10:
            raise ParameterError("u and v must span a plane, but they are parallel or zero; choose other directions")
        return cls(traced.restrict(vectors[0], basis), domain, max_cells=max_cells, progress=progress, memory=memory)

    @property
    def latent_dim(self) -> int:
        """The latent dimension S."""
        return self._trace.latent_dim

    @property
    def domain(self) -> Domain:
        """`(low, high)` for S = 1; else the half-spaces `(H, h)`, or `None` for the whole latent space."""
        return self.cells.domain

    @property
    def prior_covariance(self) -> Tensor:
        """The covariance of the Gaussian prior that masses are those of, `(S, S)`.

        Raises:
            ParameterError: the partition is that of a `girih.DGN` whose prior is not Gaussian.
        """
        if self._prior is None:
            raise ParameterError(
                "this partition is that of a DGN whose prior is not Gaussian, so its cells have no Gaussian mass: take "
                "dgn.posterior of a row of NaN, whose cell_probs() are the prior masses, or girih.Partition(dgn.net)"
            )
        return self._prior

    @prior_covariance.setter
    def prior_covariance(self, value: Tensor) -> None:
        self._prior = value

    def forget_prior(self) -> Partition:
        """Refuse masses from now on, since the prior is not Gaussian; returns self."""
        self._prior = None
        return self

    @property
    def prior(self) -> float:
        """The variance of the prior, where it is the same in all directions."""
        variance = self.prior_covariance[0, 0]
        if not torch.equal(self.prior_covariance, variance * torch.eye(self.latent_dim, dtype=torch.float64)):
            raise ParameterError("this prior has no single variance; read prior_covariance")
        return float(variance)

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """`A (R, D, S)` and `b (R, D)` of every cell; differentiable in the parameters of the network."""
        if len(self) <= _CHUNK:
            return self.trace.maps(self.patterns)
        traced, order, parts = self.trace, [], []
        for some, patterns in self.cells.nested(_CHUNK):  # all layers of a part stay in cache
            order.append(some)
            parts.append(traced.maps(patterns))
        back = torch.cat(order).argsort().to(traced.device)
        return torch.cat([A for A, _ in parts])[back], torch.cat([b for _, b in parts])[back]

    def hidden_jet(self) -> Jet:
        """The map from z to the last hidden features on each piece, about `piece_origins`."""
        return self.trace.hidden_jet(self.piece_patterns, self.piece_origins)

    @property
    def intervals(self) -> LineCells:
        """The cells as intervals (S = 1).

        Raises:
            LatentDimensionError: S is not 1.
        """
        if not isinstance(self.cells, LineCells):
            raise LatentDimensionError(
                f"only a partition with S = 1 has breakpoints and bounds, and this one has S = {self.latent_dim}; "
                "use vertices(i), rays(i) and halfspaces(i)"
            )
        return self.cells

    @property
    def polytopes(self) -> PolytopeCells:
        """The cells as polytopes of a complex (S = 2, 3).

        Raises:
            LatentDimensionError: S is 1.
        """
        if not isinstance(self.cells, PolytopeCells):
            raise LatentDimensionError(
                "only a partition with S = 2 or 3 is made of polytopes, and this one has S = 1; use bounds and "
                "breakpoints"
            )
        return self.cells

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end of each cell (S = 1), `(R,)` and `(R,)`."""
        return self.intervals.lower, self.intervals.upper

    @property
    def breakpoints(self) -> Tensor:
        """The R - 1 points at which cells meet (S = 1), increasing."""
        return self.intervals.knots

    @property
    def log_prior_mass(self) -> Tensor:
        """Natural log of `prior_mass`, `(R,)`, to a relative error of 1e-9 of the mass, however far in the tails."""
        return self.cells.log_prior_mass(torch.linalg.cholesky(self.prior_covariance).numpy())

    @property
    def prior_mass(self) -> Tensor:
        """Mass of every cell under the prior `N(0, prior)`, `(R,)`, as exact as `log_prior_mass`; 0 below 1e-323."""
        return self.cells.prior_mass(torch.linalg.cholesky(self.prior_covariance).numpy())

    def locate(self, z: ArrayLike | Tensor) -> Tensor:
        """The index of the cell that holds each z, `(N,)`; -1 outside the domain.

        A point on a face belongs to the cell where the unit of that face is negative.
        """
        rows = as_rows(z, "z", self.latent_dim, "the latent dimension S", allow_empty=True, device=self._trace.device)
        return self.cells.locate(rows.detach())

    def touching(self, z: ArrayLike | Tensor) -> list[int]:
        """The indices of all cells whose closure holds the point z `(S,)`: several on a face, none outside the domain.

        Example:
            >>> import girih
            >>> part = girih.Partition(girih.mlp([2, 8, 2], seed=0))
            >>> i = int(part.locate([[0.0, 0.0]])[0])
            >>> corner = part.vertices(i)[0]
            >>> i in part.touching(corner), len(part.touching(corner))
            (True, 4)
        """
        point = as_rows(z, "z", self.latent_dim, "the latent dimension S")
        if len(point) != 1:
            raise ShapeError(f"touching takes one point of shape ({self.latent_dim},), got {len(point)} rows")
        return self.cells.touching(point[0].detach().cpu().numpy())

    def neighbors_of(self, i: int) -> list[int]:
        """The indices of the cells that share a facet with cell i."""
        return self.cells.neighbours_of(self._index(i))

    def vertices(self, i: int) -> Tensor:
        """The vertices of cell i, `(V, S)`: counter-clockwise for S = 2; its finite ends for S = 1.

        Cell i is the convex hull of its vertices plus the cone of its `rays`.
        """
        return self.cells.cell_points(self._index(i))[0]

    def rays(self, i: int) -> Tensor:
        """The unit directions of the unbounded edges of cell i, `(K, S)`; none for a bounded cell."""
        return self.cells.cell_points(self._index(i))[1]

    def halfspaces(self, i: int) -> tuple[Tensor, Tensor]:
        """The irredundant half-spaces of cell i: unit normals `H (F, S)` and `h (F,)` with `H z <= h`."""
        return self.cells.cell_halfspaces(self._index(i))

    def _index(self, i: int) -> int:
        index = whole(i, "a cell index", None)
        if not -len(self) <= index < len(self):
            raise ParameterError(f"cell index {index} is out of range for {len(self)} cells")
        return index % len(self)

    @gathered(
        {"label": None, "cmap": None, "log": None, "edges": None},
        "values",
        lambda values, fields: replace(_above("girih.plots", "CellStyle").of(values), **fields),
        "values=girih.plots.CellStyle(...)",
    )
    def plot(
        self,
        ax: Axes | None = None,
        *,
        span: ArrayLike | None = None,
        coordinates: Sequence[int] | None = None,
        mass: ArrayLike | None = None,
        values: object = None,
        at: float | None = None,
    ) -> Axes:
        """Draw the partition: `girih.plots.plot_partition(part)`, which says what the options mean and their defaults.

        `coordinates` and `mass` are of S = 1, those after them of S = 2, 3.
        """
        given = {"span": span, "coordinates": coordinates, "mass": mass, "values": values, "at": at}
        options = {name: value for name, value in given.items() if value is not None}
        axes: Axes = _above("girih.plots", "plot_partition")(self, ax=ax, **options)
        return axes

    def graph(self) -> Graph:
        """The dual graph for NetworkX: `girih.partition.cell_graph(part)`."""
        graph: Graph = _above("girih.partition", "cell_graph")(self)
        return graph

    def save_mesh(self, path: str | os.PathLike[str], span: ArrayLike | None = None) -> None:
        """Write the image of the cells as a triangle mesh (S = 2, D = 3): `girih.partition.write_mesh(part, path)`."""
        _above("girih.partition", "write_mesh")(self, path, span)


def _above(module: str, name: str) -> Any:
    """What a module that stands above this one has by that name, looked up here: an import would close a circle.

    Raises:
        MissingExtraError: what the module needs is not installed.
    """
    return getattr(importlib.import_module(module), name)


def prior_covariance(prior: ArrayLike | Tensor, dim: int) -> Tensor:
    """The `(S, S)` covariance of a Gaussian latent prior, from a variance or a covariance."""
    covariance = as_tensor(prior, "prior").detach().cpu()
    if covariance.numel() == 1:
        variance = float(covariance)
        if not (0.0 < variance < float("inf")):
            raise ParameterError(f"prior must be a positive variance, got {variance}")
        return variance * torch.eye(dim, dtype=torch.float64)
    return Covariance.prior(covariance, dim)
