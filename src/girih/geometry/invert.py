"""The latent whose image is nearest to a point: the inverse of a generator on its manifold and around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import ParameterError
from girih.geometry.cells import jets
from girih.geometry.descent import descend, good_starts
from girih.geometry.nearest import nearest_in_cell
from girih.geometry.preimages import as_partition
from girih.networks import Trace, trace
from girih.partition import MAX_LATENT_DIM, Partition
from girih.partition.growing import Array

_ROWS = 256
_FORWARD = 1 << 15
_STARTS = 1024


@dataclass(frozen=True)
class Inverse:
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


class _Maps:
    """The maps of all cells, reduced: `|x - g(o + t)|^2 = gap^2 + |Q^T (x - v) - R t|^2`."""

    def __init__(self, part: Partition) -> None:
        self.part = part
        values, bases, factors = [], [], []
        for _, jet in jets(part.trace, part.patterns, part.origins):
            Q, R = torch.linalg.qr(jet.slope)
            values.append(jet.value)
            bases.append(Q)
            factors.append(R)
        self.value, self.Q, self.R = torch.cat(values), torch.cat(bases), torch.cat(factors)
        self.origin = part.origins.to(self.value.device)
        self.centre, self.radius = self._balls()

    def _balls(self) -> tuple[Tensor, Tensor]:
        """A ball around the image of every cell, of infinite radius for unbounded cells."""
        middle, radius = self.origin.clone(), torch.full_like(self.value[:, 0], torch.inf)
        for i in self.part.volume.isfinite().nonzero()[:, 0].tolist():
            corners = self.part.vertices(i).to(middle.device)
            middle[i] = corners.mean(0)
            radius[i] = ((corners - middle[i]) @ self.R[i].mT).norm(dim=1).max()
        return self.value + (self.Q @ (self.R @ (middle - self.origin)[:, :, None]))[:, :, 0], radius

    def reduce(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`Q^T (x - v)` and a lower bound on the distance to the image, for each row and cell."""
        flat = self.Q.permute(1, 0, 2).reshape(x.shape[1], -1)
        along = (x @ flat).reshape(len(x), *self.Q.shape[::2]) - (self.value[:, None] @ self.Q)[:, 0]
        gap2 = _distances(x, self.value).square()
        hull = (gap2 - along.square().sum(2) - 1e-12 * gap2).clamp(min=0.0).sqrt()  # rounding of the difference
        away = _distances(x, self.centre) - self.radius
        return along, torch.maximum(hull, away * (1.0 - 1e-12))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def invert(net: nn.Module | Trace | Partition, x: Any, restarts: int = 8, seed: int = 0) -> Inverse:
    r"""`argmin_z |x - g(z)|` over all cells, exact for S <= 3; a local search with restarts for larger S.

    On a cell it is a least-squares problem over a polytope, solved face by face. Cells whose plane, or whose ball
    around the image, is farther from x than a point that is known are left out, so the answer is the global one.
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
    maps = _Maps(part)
    faces: dict[int, tuple[Array, Array]] = {}
    found = [_of_rows(maps, rows[start : start + _ROWS], faces) for start in range(0, len(rows), _ROWS)]
    z, cell = (torch.cat(column) for column in zip(*found, strict=True))
    return Inverse(z, (images(traced, z) - rows).norm(dim=1), True, cell, part)


def images(traced: Trace, z: Tensor) -> Tensor:
    """g(z) in chunks, without gradients."""
    with torch.no_grad():
        return torch.cat([traced(some) for some in z.split(_FORWARD)] or [traced(z)])


def _of_rows(maps: _Maps, x: Tensor, faces: dict[int, tuple[Array, Array]]) -> tuple[Tensor, Tensor]:
    part = maps.part
    along, bound = maps.reduce(x)
    # known points: those inside all cells
    inner = part.interior.to(x.device)
    distance, cell = _distances(x, images(part.trace, inner)).min(1)
    z = inner[cell].clone()
    near = bound.argmin(1)

    def improve(rows: Tensor, i: int) -> None:
        if i not in faces:
            H, h = part.halfspaces(i)
            faces[i] = (H.numpy(), (h - H @ part.origins[i].cpu()).numpy())
        step = nearest_in_cell(maps.R[i].cpu().numpy(), along[rows, i].cpu().numpy(), *faces[i])
        kept = ~np.isnan(step[:, 0])
        rows, step = rows[torch.as_tensor(kept)], step[kept]
        t = torch.as_tensor(step, device=x.device)
        gap = (maps.value[i] + (maps.Q[i] @ (maps.R[i] @ t.mT)).mT - x[rows]).norm(dim=1)
        better = gap < distance[rows]
        rows = rows[better]
        distance[rows], z[rows], cell[rows] = gap[better], maps.origin[i] + t[better], i

    for i in near.unique().tolist():  # first the most promising cell of each row
        improve((near == i).nonzero()[:, 0], i)
    order = bound.amin(0).argsort().tolist()
    for i in order:
        rows = ((bound[:, i] < distance) & (near != i)).nonzero()[:, 0]
        if len(rows):
            improve(rows, i)
    return z, cell
