"""Polygons and polyhedra as compiled code takes them: what does not change when they are seen from another centre."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.gaussian.tables import describe

Array = NDArray[Any]
T = TypeVar("T")
_SHARE = 512  # sets that are worth a thread


@cache
def kernels() -> ModuleType | None:
    """The module of compiled code; `None` where Numba, the extra `fast`, is not installed, or does not run."""
    try:
        return importlib.import_module("girih.gaussian.kernels")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "girih":
            raise
        if not isinstance(error, ModuleNotFoundError):  # as with a NumPy that is too new for it
            warnings.warn(f"girih runs without compiled code, since Numba cannot be loaded: {error}", stacklevel=2)
        return None


def compiled_form(module: str) -> ModuleType | None:
    """Another module of compiled code by its name; `None` where there are no `kernels`."""
    return None if kernels() is None else importlib.import_module(module)


def serve(values: Tensor) -> bool:
    """True where compiled code takes sets with these vertices: in double precision, on the CPU, without gradients."""
    plain = values.dtype == torch.float64 and values.device.type == "cpu" and not values.requires_grad
    return plain and kernels() is not None


def in_threads(function: Callable[..., T], count: int, share: int, *columns: Array) -> list[T]:
    """Results of a compiled function for rows of arrays, in as many threads as torch has, `share` rows each or more."""
    threads = min(torch.get_num_threads(), count // share)
    if threads <= 1:
        return [function(*columns)]
    ends = [count * k // threads for k in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        runs = [pool.submit(function, *(column[a:b] for column in columns)) for a, b in pairwise(ends)]
        return [run.result() for run in runs]


class Prepared(NamedTuple):
    """These are sets with the lines of their edges, about the origin (S = 2) or its feet in the faces (S = 3)."""

    edges: Array  # (E, 5) direction along the edge, distance of its line, where it starts and ends; or (E, 19)
    edge_start: Array  # (P + 1,) first edge of each set
    opening: Array  # (P,) mass of the directions in which each set is unbounded
    faces: Array  # (F, 5) normal, offset, angle in which the face is unbounded; S = 3
    start: Array  # (P + 1,) first face of each polyhedron
    sides: Array  # (E, 2) the faces of each edge: see `space_edges`

    def masses(self, index: Tensor, centre: Tensor) -> Tensor:
        """The mass `(m,)` of a standard normal on sets `index (m,)` less their `centre (m, S)`."""
        return self._run(index, centre, 0)[0]

    def moments(self, index: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the first `(m, S)` and second `(m, S, S)` moment, not divided by the mass."""
        return self._run(index, centre, 2)

    def _run(self, index: Tensor, centre: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
        compiled = kernels()
        if compiled is None:
            raise AssertionError("prepared sets are for compiled code")
        count, S = centre.shape
        some = count if order else 0
        out = centre.new_empty(count), centre.new_empty(some, S), centre.new_empty(some, S, S)
        rows = index.numpy(), centre.contiguous().numpy(), *(part.numpy() for part in out)

        def run(index: Array, centre: Array, mass: Array, first: Array, second: Array) -> None:
            if S == 2:
                compiled.polygon_moments(
                    self.edge_start, self.edges, self.opening, index, centre, order, mass, first, second
                )
            else:
                compiled.polyhedron_moments(
                    self.start,
                    self.faces,
                    self.edge_start,
                    self.edges,
                    self.sides,
                    self.opening,
                    index,
                    centre,
                    order,
                    mass,
                    first,
                    second,
                )

        in_threads(run, count, _SHARE, *rows)
        return out


def lines(tail: Tensor, head: Tensor, owner: Tensor, count: int) -> tuple[Array, Array]:
    """The edges of `Prepared`, those that are real, and the first of each owner."""
    edge = describe(tail, head)
    real = edge.real.nonzero()[:, 0]
    columns = torch.cat((edge.along, torch.stack((edge.distance, edge.start, edge.end), 1)), 1)[real]
    return columns.numpy(), first_of_each(owner[real], count)


def edges_in_space(start: Array, edge_start: Array, *parts: Tensor) -> tuple[Array, Array, Array]:
    """The edges of `Prepared` for polyhedra, the first of each and their sides: see `space_edges`."""
    compiled = kernels()
    if compiled is None:
        raise AssertionError("prepared sets are for compiled code")
    first, edges, sides = compiled.space_edges(start, edge_start, *(part.contiguous().numpy() for part in parts))
    return first, edges, sides


def first_of_each(owner: Tensor, count: int) -> Array:
    """Where the items of each owner begin, and where the last ones end, `(count + 1,)`."""
    return np.concatenate(([0], np.cumsum(np.bincount(owner.numpy(), minlength=count)))).astype(np.int64)
