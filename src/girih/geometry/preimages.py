"""All latents that a generator with S <= 3 maps to a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import real
from girih.geometry.cells import jets
from girih.geometry.nearest import nearest_in_cell
from girih.geometry.spectrum import RANK_TOLERANCE
from girih.networks import Jet, Trace
from girih.partition import Partition

TOLERANCE = 1e-8
_ROWS = 256
_FORWARD = 1 << 15
_SCREEN = 1e-6  # of the distance to the cell: squares lose half of the digits


@dataclass(frozen=True)
class Preimages:
    """Pairs of a row of x and a latent that is mapped to it, sorted by row.

    Attributes:
        row: the row of x, `(K,)`.
        cell: the cell of the latent, `(K,)`.
        latent: `(K, S)`.
        degenerate: whether the cell is mapped to a set of smaller dimension, `(K,)`; then the latents that it has
            for the row are a line, a plane or a whole cell, and one of them is given.
    """

    row: Tensor
    cell: Tensor
    latent: Tensor
    degenerate: Tensor


def preimages(net: nn.Module | Trace | Partition, x: Any, tolerance: float = TOLERANCE) -> Preimages:
    r"""All z with `g(z) = x`, one for each cell at most.

    Each cell's least-squares latent `A^+ (x - b)` is a candidate; it counts where the network maps it to x and the
    partition's domain holds it. Latents that agree to `tolerance (1 + |z|)` on neighbouring cells are one.

    Args:
        net: a partition, or any module with S <= 3 that `girih.trace` supports.
        x: `(N, D)`.
        tolerance: `|g(z) - x|` may be up to this multiple of `1 + |x|`.

    Raises:
        LatentDimensionError: S is larger than 3.
        ShapeError, NonFiniteError: x is not a table of finite numbers with D columns.
        ParameterError: the tolerance is not positive.

    Source:
        MAS, section 4.1, Propositions 3 and 4.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([2, 8, 2], activation="relu", seed=0)
        >>> x = net(torch.tensor([[0.3, -0.2]], dtype=torch.float64)).detach()
        >>> girih.geometry.preimages(net, x).latent  # the generator folds
        tensor([[ 0.3000, -0.2000],
                [ 0.4432, -0.1232]], dtype=torch.float64)
    """
    part = as_partition(net)
    x = as_rows(x, "x", part.trace.output_dim, "the output dimension D", device=part.trace.device).detach()
    tolerance = real(tolerance, "tolerance")
    parts = [_of_rows(part, x[start : start + _ROWS], start, tolerance) for start in range(0, len(x), _ROWS)]
    return Preimages(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def as_partition(net: nn.Module | Trace | Partition) -> Partition:
    """A partition as it is, or that of a network over the whole latent space."""
    return net if isinstance(net, Partition) else Partition(net, progress=False)


def _of_rows(part: Partition, x: Tensor, first: int, tolerance: float) -> tuple[Tensor, ...]:
    room = tolerance * (1.0 + x.norm(dim=1))
    found: list[tuple[Tensor, ...]] = []
    for rows, jet in jets(part.trace, part.patterns, part.origins):
        found += _of_cells(part, x, room, rows.start, jet)
    row, cell, latent, degenerate = (torch.cat(columns) for columns in zip(*found, strict=True))
    keep = _distinct(part, row, cell, latent, degenerate, tolerance)
    return row[keep] + first, cell[keep], latent[keep], degenerate[keep]


def _of_cells(part: Partition, x: Tensor, room: Tensor, first: int, jet: Jet) -> list[tuple[Tensor, ...]]:
    """Candidates of a chunk of cells whose g(z) is x."""
    origins = part.origins.to(x.device)[first : first + len(jet.value)]
    Q, R = torch.linalg.qr(jet.slope)
    U, values, Vt = torch.linalg.svd(R)
    rank = (values > RANK_TOLERANCE * values[:, :1]).sum(1)
    counts = torch.arange(values.shape[1], device=x.device) < rank[:, None]
    tangent = (Q @ U[:, :, : values.shape[1]]) * counts[:, None]  # zero where there is no direction
    gap2 = torch.cdist(x, jet.value, compute_mode="donot_use_mm_for_euclid_dist").square()
    along = (x @ tangent.permute(1, 0, 2).reshape(x.shape[1], -1)).reshape(len(x), *tangent.shape[::2])
    along = along - (jet.value[:, None] @ tangent)[:, 0]
    apart2 = gap2 - along.square().sum(2)
    row, cell = (apart2 <= (2.0 * room[:, None] + _SCREEN * gap2.sqrt()).square()).nonzero(as_tuple=True)
    inverse = torch.where(counts, 1.0 / torch.where(counts, values, 1.0), 0.0)
    step = (Vt[:, : values.shape[1]].mT[cell] @ (inverse[cell] * along[row, cell])[:, :, None])[:, :, 0]
    whole = rank[cell] == part.latent_dim
    latent = origins[cell] + step
    out: list[tuple[Tensor, ...]] = []
    hit = whole & (_misses(part.trace, latent, x, row) <= room[row])
    hit[hit.clone()] = part.locate(latent[hit]).to(x.device) >= 0
    out.append((row[hit], cell[hit] + first, latent[hit], torch.zeros(int(hit.sum()), dtype=torch.bool)))
    for j in cell[~whole].unique().tolist():
        rows = row[(cell == j) & ~whole]
        target = ((x[rows] - jet.value[j]) @ Q[j]).cpu().numpy()
        H, h = (side.cpu().numpy() for side in part.halfspaces(first + j))
        t = nearest_in_cell(R[j].cpu().numpy(), target, H, h - H @ origins[j].cpu().numpy())
        place = torch.as_tensor(t, device=x.device)
        gap = (jet.value[j] + place @ jet.slope[j].mT - x[rows]).norm(dim=1)
        inside = gap <= room[rows]  # NaN where no point was found
        rows = rows[inside]
        out.append((rows, torch.full_like(rows, first + j), origins[j] + place[inside], torch.ones_like(rows) > 0))
    return out


def _misses(traced: Trace, latent: Tensor, x: Tensor, row: Tensor) -> Tensor:
    """`|g(z) - x|` of pairs, in chunks."""
    out = torch.empty(len(latent), dtype=torch.float64, device=latent.device)
    for start in range(0, len(latent), _FORWARD):
        some = slice(start, start + _FORWARD)
        with torch.no_grad():
            out[some] = (traced(latent[some]) - x[row[some]]).norm(dim=1)
    return out


def _distinct(
    part: Partition, row: Tensor, cell: Tensor, latent: Tensor, degenerate: Tensor, tolerance: float
) -> Tensor:
    """One of each group of equal latents, that of the cell which holds it if there is one; sorted by row."""
    astray = (part.locate(latent).to(cell.device) != cell) & ~degenerate
    order = np.lexsort((cell.cpu().numpy(), astray.cpu().numpy(), row.cpu().numpy()))
    points, rows, lines = latent.cpu().numpy(), row.cpu().numpy(), degenerate.cpu().numpy()
    keep: list[int] = []
    first = 0
    for k in order:
        if keep and rows[keep[-1]] != rows[k]:
            first = len(keep)
        others = [j for j in keep[first:] if not lines[j]]
        room = tolerance * (1.0 + np.abs(points[k]).max())
        if lines[k] or not any(np.abs(points[j] - points[k]).max() <= room for j in others):
            keep.append(int(k))
    return torch.as_tensor(keep, dtype=torch.int64, device=row.device)
