"""Angles between the images of neighbouring cells, and between the columns of one cell's map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from girih._arrays import ArrayLike, as_indices
from girih._options import wholes
from girih.errors import ParameterError, ShapeError
from girih.geometry.cells import Cells, CellValues, Shown, as_cells, chunks
from girih.geometry.dimension import RANK_TOLERANCE, Source

_NORMS = ("spectral", "frobenius", "sum")


@dataclass(frozen=True, repr=False)
class Angles(Shown):
    """Angles between the images of pairs of cells, in radians, from 0 to pi/2.

    Attributes:
        cells: the cells.
        pairs: their indices, `(E, 2)`.
        angles: all principal angles, ascending, `(E, min(D, S))`; NaN past the smaller dimension of the two images.
        largest: the angle of Theorem 4, `(E,)`: pi/2 where the two images differ in dimension.
    """

    cells: Cells
    pairs: Tensor
    angles: Tensor
    largest: Tensor


def angles(cells: Source, pairs: ArrayLike | None = None, tolerance: float = RANK_TOLERANCE) -> Angles:
    r"""Principal angles between the tangent spaces of pairs of cells; the largest has `sin(angle) = ||P - P'||_2`.

    P and P' project onto the column spaces of A and A'. Angles below pi/4 are taken from their sines and the others
    from their cosines, so that small ones are right to rounding as well.

    Args:
        cells: cells with known neighbours: from `enumerate_cells` (all pairs that share a facet), from
            `segment_cells` or `walk_cells` for any S; a partition or a network with S <= 3 stands for all its cells.
        pairs: indices of other pairs of cells, `(E, 2)`.
        tolerance: as in `intrinsic_dimension`; degenerate cells are taken with the directions that they do have.

    Raises:
        ParameterError: the neighbours of the cells are not known, or there is no cell with such an index.
        ShapeError: pairs of the wrong shape.
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, appendix A, Definition 1 and Theorem 4 (pairs that share a facet).

    Example:
        >>> import girih
        >>> found = girih.geometry.angles(girih.mlp([2, 8, 3], seed=0))
        >>> found.angles.shape, bool(found.angles[:, 0].max() < 1e-7)  # the facet itself lies in both images
        (torch.Size([64, 2]), True)
    """
    cells = as_cells(cells)
    chosen = _pairs(cells, pairs)
    width = min(cells.trace.output_dim, cells.latent_dim)
    out = torch.full((len(chosen), width), math.nan, dtype=torch.float64, device=cells.patterns.device)
    largest = torch.zeros(len(chosen), dtype=torch.float64, device=cells.patterns.device)
    for rows in chunks(cells.trace, len(chosen)):
        used, where = chosen[rows].unique(return_inverse=True)
        bases, ranks = _tangents(cells, used, tolerance)
        first, second = bases[where[:, 0]], bases[where[:, 1]]
        rank = ranks[where]
        full = (rank == width).all(1)
        out[rows][full] = _principal(first[full], second[full])
        for k in (~full).nonzero()[:, 0].tolist():
            i, j = rank[k].tolist()
            if min(i, j):
                larger, smaller = (first[k, :, :i], second[k, :, :j])[:: 1 if i >= j else -1]
                out[rows.start + k, : min(i, j)] = _principal(larger[None], smaller[None])[0]
        top = out[rows].nan_to_num(nan=0.0).amax(1)
        largest[rows] = torch.where(rank[:, 0] == rank[:, 1], top, 0.5 * math.pi)
    return Angles(cells, chosen, out, largest)


def _pairs(cells: Cells, pairs: ArrayLike | None) -> Tensor:
    if pairs is None:
        if cells.neighbors is None:
            raise ParameterError(
                "sampled cells do not know their neighbours; use segment_cells or walk_cells, or name the pairs="
            )
        return cells.neighbors
    chosen = as_indices(pairs, "pairs")
    if chosen.ndim != 2 or chosen.shape[1] != 2:
        raise ShapeError(f"pairs must be of shape (E, 2), got {tuple(chosen.shape)}")
    if len(chosen) and not (int(chosen.min()) >= 0 and int(chosen.max()) < len(cells)):
        raise ParameterError(f"pairs must hold indices from 0 to {len(cells) - 1}")
    return chosen


def _tangents(cells: Cells, index: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the images, largest stretch first, `(r, D, min(D, S))`, and their dimensions `(r,)`."""
    bases, ranks = [], []
    for _, A, _ in cells.maps(cells.patterns[index]):
        Q, R = torch.linalg.qr(A)
        U, values, _ = torch.linalg.svd(R, full_matrices=False)
        bases.append(Q @ U)
        ranks.append((values > tolerance * values[:, :1]).sum(1))
    return torch.cat(bases), torch.cat(ranks)


def _principal(first: Tensor, second: Tensor) -> Tensor:
    """All principal angles between spans, ascending; the second is not larger. After Bjorck and Golub."""
    overlap = first.mT @ second
    cosine = torch.linalg.svdvals(overlap).clamp(max=1.0)  # descending
    sine = torch.linalg.svdvals(second - first @ overlap).clamp(max=1.0).flip(1)
    return torch.where(cosine.square() > 0.5, sine.asin(), cosine.acos())


def disentanglement(cells: Source, norm: str = "spectral") -> CellValues:
    r"""`||Q - I||` on every cell, with `Q_ij = |a_i . a_j| / (|a_i| |a_j|)` for the columns `a_i` of A.

    0 for orthogonal columns; larger is more entangled, up to S - 1 for the spectral norm. A column of zeros (a latent
    that does nothing on the cell) counts as orthogonal to the others.

    Args:
        cells: as in `singular_values`.
        norm: "spectral" is the largest singular value (the text of the paper), "frobenius" the root of the sum of
            squares, "sum" the sum over the pairs i < j (the caption of Table 1).

    Raises:
        ParameterError: an unknown norm.
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 4.2, Proposition 5, and Table 1.

    Example:
        >>> import girih
        >>> value = girih.geometry.disentanglement(girih.mlp([2, 8, 3], seed=0))
        >>> 0.0 < value.mean < value.max < 1.0
        True
    """
    if norm not in _NORMS:
        raise ParameterError(f"norm must be one of {', '.join(_NORMS)}; got {norm!r}")
    cells = as_cells(cells)
    out = torch.empty(len(cells), dtype=torch.float64, device=cells.patterns.device)
    for rows, A, _ in cells.maps():
        out[rows] = _norm(overlaps(A), norm)
    return CellValues(cells, out)


def overlaps(A: Tensor) -> Tensor:
    """`Q - I`, `(R, S, S)`: absolute cosines between different columns of `A (R, D, S)`, 0 on the diagonal."""
    size = A.norm(dim=1, keepdim=True)
    unit = A / torch.where(size > 0.0, size, 1.0)
    Q = (unit.mT @ unit).abs()
    return Q - torch.diag_embed(Q.diagonal(dim1=1, dim2=2))


def mean_overlap(cells: Source) -> Tensor:
    r"""The average of `Q - I` over the prior, `(S, S)`: how alike any two columns of A are, 0 on the diagonal.

    Args:
        cells: as in `singular_values`. Cells without prior masses count once each.

    Raises:
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 4.2, Proposition 5.

    Example:
        >>> import girih
        >>> girih.geometry.mean_overlap(girih.mlp([2, 8, 3], seed=0)).shape
        torch.Size([2, 2])
    """
    cells = as_cells(cells)
    weight = cells.mass.clamp(min=0.0)
    weight = torch.ones_like(weight) if bool(weight.isnan().any()) else weight
    weight = (weight / weight.sum()).to(cells.patterns.device)
    total = torch.zeros(cells.latent_dim, cells.latent_dim, dtype=torch.float64, device=weight.device)
    for rows, A, _ in cells.maps():
        total += (weight[rows, None, None] * overlaps(A)).sum(0)
    return total


def _norm(Q: Tensor, norm: str) -> Tensor:
    if norm == "spectral":
        result: Tensor = torch.linalg.matrix_norm(Q, ord=2)
        return result
    return torch.linalg.matrix_norm(Q) if norm == "frobenius" else 0.5 * Q.sum((1, 2))


def basis(cells: Source, shape: Sequence[int] | None = None, index: ArrayLike | None = None) -> Tensor:
    r"""The columns of A as images: what x changes by when one latent moves within the cell.

    Args:
        cells: as in `singular_values`.
        shape: of an image, for instance `(28, 28)`, with D entries; `(D,)` by default.
        index: which cells, `(r,)`; all by default.

    Returns:
        `(r, S, *shape)`: entry `[r, k]` is the column k of the map of cell r.

    Raises:
        ShapeError: the shape does not have D entries.
        ParameterError: there is no cell with such an index.
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 4.2 and Figure 5.

    Example:
        >>> import girih
        >>> girih.geometry.basis(girih.mlp([2, 8, 12], seed=0), shape=(3, 4), index=[0, 5]).shape
        torch.Size([2, 2, 3, 4])
    """
    cells = as_cells(cells)
    D = cells.trace.output_dim
    size = (D,) if shape is None else wholes(shape, "shape", None)
    if math.prod(size) != D or min(size, default=1) < 1:
        raise ShapeError(f"shape {size} does not have the D = {D} entries of an output")
    rows = torch.arange(len(cells)) if index is None else as_indices(index, "index").reshape(-1)
    if len(rows) and not (-len(cells) <= int(rows.min()) and int(rows.max()) < len(cells)):
        raise ParameterError(f"index must hold numbers of the {len(cells)} cells, got {rows.tolist()}")
    parts = [A.mT.reshape(len(A), -1, *size) for _, A, _ in cells.maps(cells.patterns[rows])]
    return torch.cat(parts) if parts else torch.empty(0, cells.latent_dim, *size, dtype=torch.float64)
