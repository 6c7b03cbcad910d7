"""The latent whose image is nearest to a point: the inverse of a generator on its manifold and around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import ParameterError
from girih.geometry.descent import descend, good_starts
from girih.geometry.preimages import as_partition
from girih.geometry.search import Search
from girih.geometry.shown import Shown
from girih.networks import Trace, trace
from girih.partition import MAX_LATENT_DIM, Partition

_FORWARD = 1 << 15
_STARTS = 1024


@dataclass(frozen=True, repr=False)
class Inverse(Shown):
    """The nearest points of the manifold.

    Attributes:
        z: latents, `(N, S)`.
        distance: `|x - g(z)|`, `(N,)`.
        exact: whether that is the least distance of the whole domain (S <= 3), or an upper bound from a local search.
        cell: the cell of z in `partition`, `(N,)`, one of them where z is on a face; `None` for a local search.
        partition: the cells; `None` for a local search.
    """

    z: Tensor
    distance: Tensor
    exact: bool
    cell: Tensor | None = None
    partition: Partition | None = None


def invert(net: nn.Module | Trace | Partition, x: Any, restarts: int = 8, seed: int = 0) -> Inverse:
    r"""`argmin_z |x - g(z)|` over all cells, exact for S <= 3; a local search with restarts for larger S.

    On a cell it is the point of a polytope nearest to x. A tree over the images of the cells finds those that can be
    nearer than a point that is known, so the answer is the global one and time hardly grows with the number of cells.
    For x on the manifold it is the inverse of the generator.

    For S > 3, damped Gauss-Newton steps lead down from several starting points, the nearest of 1024 standard normal
    latents: the result is an upper bound of the distance and may not be the global answer.

    Args:
        net: a partition, or any module that `girih.trace` supports.
        x: `(N, D)`.
        restarts: S > 3: how many starting points for each row, up to 1024.
        seed: S > 3: of the latents to choose them from.

    Returns:
        Latents, distances and cells. Of several latents at the same distance, one.

    Raises:
        ParameterError: `restarts` is not a whole number from 1 to 1024.
        ShapeError, NonFiniteError: x is not a table of finite numbers with D columns.

    Source:
        MAS, section 4.1, Proposition 4.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([2, 8, 5], seed=0)
        >>> found = girih.geometry.invert(net, net(torch.tensor([[0.3, -0.2]], dtype=torch.float64)).detach())
        >>> found.z, bool(found.distance < 1e-12)
        (tensor([[ 0.3000, -0.2000]], dtype=torch.float64), True)
    """
    traced = net.trace if isinstance(net, Partition) else trace(net)
    rows = as_rows(x, "x", traced.output_dim, "the output dimension D", device=traced.device).detach()
    restarts, seed = whole(restarts, "restarts"), whole(seed, "seed", None)
    if restarts > _STARTS:
        raise ParameterError(f"restarts may be {_STARTS} at most, got {restarts}")
    if traced.latent_dim > MAX_LATENT_DIM:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(_STARTS, traced.latent_dim, generator=generator, dtype=torch.float64).to(rows.device)
        return Inverse(*descend(traced, rows, good_starts(traced, rows, draws, restarts)), exact=False)
    part = net if isinstance(net, Partition) else as_partition(traced)
    search = Search(part)
    shapes, places, pieces = search.images, [], []
    for some in search.batches(len(rows)):
        found = search.nearest(shapes.rows(rows[some]))
        places.append(shapes.origin[found.piece] + found.t)
        pieces.append(found.piece)
    z, cell = torch.cat(places).to(rows.device), shapes.cell[torch.cat(pieces)].to(rows.device)
    return Inverse(z, (images(traced, z) - rows).norm(dim=1), True, cell, part)


def images(traced: Trace, z: Tensor) -> Tensor:
    """g(z) in chunks, without gradients."""
    with torch.no_grad():
        return torch.cat([traced(some) for some in z.split(_FORWARD)] or [traced(z)])
