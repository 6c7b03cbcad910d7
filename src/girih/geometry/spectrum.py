"""Singular values of the cells' maps, and the ranks and volumes that follow from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from girih._options import real
from girih.errors import ParameterError
from girih.geometry.cells import Cells, CellValues, as_cells
from girih.networks import Trace
from girih.partition import Partition

RANK_TOLERANCE = 1e-10

Source = Cells | Partition | nn.Module | Trace


def singular_values(cells: Source) -> Tensor:
    r"""The singular values of A on every cell, descending, `(R, S)`; zeros where D < S.

    `A = Q R`, and the values are those of the `S x S` factor R: errors are a few times 1e-16 of the largest value of
    the cell, for the smallest too (a Gram matrix `A^T A` would lose everything below 1e-8 of the largest).

    Args:
        cells: from `enumerate_cells` or `sample_cells`; a partition or a network with S <= 3 stands for all its
            cells.

    Raises:
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 5.1, Lemma 1.

    Example:
        >>> import girih
        >>> girih.geometry.singular_values(girih.mlp([2, 8, 3], seed=0)).shape
        torch.Size([37, 2])
    """
    return as_cells(cells).singular_values


def intrinsic_dimension(cells: Source, tolerance: float = RANK_TOLERANCE) -> CellValues:
    r"""The dimension of the image of every cell, `rank A`.

    Args:
        cells: as in `singular_values`.
        tolerance: singular values up to this multiple of the largest one of the cell count as 0.

    Returns:
        Whole numbers from 0 to S.

    Raises:
        ParameterError: the tolerance is not from [0, 1).
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 3.2, Proposition 1 (whose upper bound is `dimension_bound`).

    Example:
        >>> import girih
        >>> dims = girih.geometry.intrinsic_dimension(girih.mlp([2, 3, 3], activation="relu", seed=0))
        >>> dims.values.tolist()
        [0, 1, 1, 2, 1, 2, 2]
    """
    cells = as_cells(cells)
    return CellValues(cells, nonzero(cells, tolerance).sum(1))


def nonzero(cells: Cells, tolerance: float) -> Tensor:
    """Which singular values count, `(R, S)`."""
    tolerance = real(tolerance, "tolerance", positive=False)
    if tolerance >= 1.0:
        raise ParameterError(f"tolerance must be below 1, got {tolerance}")
    values = cells.singular_values
    return values > tolerance * values[:, :1]


def log_volume(cells: Source, tolerance: float = RANK_TOLERANCE, pseudo: bool = False) -> CellValues:
    r"""How much every cell is stretched, `log sqrt det(A^T A) = sum_i log sigma_i`, in nats.

    Args:
        cells: as in `singular_values`.
        tolerance: as in `intrinsic_dimension`. Cells of rank below S are degenerate: their value is minus infinity.
        pseudo: leave out the zero singular values of degenerate cells instead, as in Lemma 1 of the paper (the value
            of a cell that is mapped to a point is 0): how much its image is stretched in its own dimension.

    Raises:
        ParameterError: the tolerance is not from [0, 1).
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 5.1, Lemma 1 and Figure 7.

    Example:
        >>> import girih
        >>> volume = girih.geometry.log_volume(girih.mlp([2, 3, 3], activation="relu", seed=0))
        >>> volume.values.isinf().sum().item(), volume.mean
        (4, -inf)
    """
    cells = as_cells(cells)
    counts = nonzero(cells, tolerance)
    logs = torch.where(counts, cells.singular_values, 1.0).log().sum(1)
    return CellValues(cells, logs if pseudo else torch.where(counts.all(1), logs, -torch.inf))
