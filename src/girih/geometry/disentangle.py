"""How far the columns of a cell's map are from orthogonal, and the columns themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from girih._arrays import as_indices
from girih._options import wholes
from girih.errors import ParameterError, ShapeError
from girih.geometry.cells import CellValues, as_cells
from girih.geometry.spectrum import Source

_NORMS = ("spectral", "frobenius", "sum")


def disentanglement(cells: Source, norm: str = "spectral") -> CellValues:
    r"""`||Q - I||` on every cell, with `Q_ij = |a_i . a_j| / (|a_i| |a_j|)` for the columns `a_i` of A.

    0 for orthogonal columns; larger is more entangled, up to S - 1 for the spectral norm. A column of zeros (a latent
    that does nothing on the cell) counts as orthogonal to the others.

    Args:
        cells: from `enumerate_cells` or `sample_cells`; a partition or a network with S <= 3 stands for all its
            cells.
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
        cells: as in `disentanglement`. Cells without prior masses count once each.

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
        return torch.linalg.matrix_norm(Q, ord=2)
    return torch.linalg.matrix_norm(Q) if norm == "frobenius" else 0.5 * Q.sum((1, 2))


def basis(cells: Source, shape: Sequence[int] | None = None, index: Any = None) -> Tensor:
    r"""The columns of A as images: what x changes by when one latent moves within the cell.

    Args:
        cells: as in `disentanglement`.
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
