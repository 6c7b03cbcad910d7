"""Singular values of the cells' maps, the dimensions and volumes that follow, and the bound on dimensions by layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from girih._options import real
from girih.errors import ParameterError
from girih.geometry.cells import Cells, CellValues, as_cells, chunks, triangle
from girih.networks import AffineStep, KinkStep, LatentStep, MaxStep, Trace
from girih.partition import Partition

RANK_TOLERANCE = 1e-10
_CLEAR = 1e-11  # a squared ratio of singular values far above what rounding makes of 0

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
    """Tells which singular values count, `(R, S)`."""
    tolerance = real(tolerance, "tolerance", positive=False)
    if tolerance >= 1.0:
        raise ParameterError(f"tolerance must be below 1, got {tolerance}")
    values = cells.singular_values
    return values > tolerance * values[:, :1]


def ranks(A: Tensor, tolerance: float = RANK_TOLERANCE) -> Tensor:
    r"""The rank of each map `(R, D, S)`, `(R,)`.

    A map has rank S without singular values being taken if the determinant says so: with `G = A^T A`,
    `sigma_S^2 >= det(G) / (tr(G) / (S - 1))^(S - 1)`, since the other squares have at most this product.

    Args:
        A: the maps, float64.
        tolerance: singular values up to this multiple of the largest one of the map count as 0.

    Example:
        >>> import girih, torch
        >>> girih.geometry.ranks(torch.tensor([[[1.0, 0], [0, 2], [3, 4]], [[1, 2], [2, 4], [0, 0]]]).double())
        tensor([2, 1])
    """
    outputs, S = A.shape[1:]
    rank = torch.full((len(A),), S, dtype=torch.int64, device=A.device)
    doubtful = torch.ones(len(A), dtype=torch.bool, device=A.device)
    if outputs >= S > 1 and tolerance**2 < 1e-2 * _CLEAR:
        gram = A.mT @ A
        factor, failed = torch.linalg.cholesky_ex(gram)
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)
        scaled = factor.diagonal(dim1=1, dim2=2).square() / trace[:, None]
        least = scaled.prod(1) * (S - 1.0) ** (S - 1)  # sigma_S^2 / tr(G), or less
        doubtful = (failed != 0) | ~(least > _CLEAR)
    values = torch.linalg.svdvals(triangle(A[doubtful]))
    rank[doubtful] = (values > tolerance * values[:, :1]).sum(1)
    return rank


def log_volume(cells: Source, tolerance: float = RANK_TOLERANCE, pseudo: bool = False) -> CellValues:
    r"""The log of how much every cell is stretched, `log sqrt det(A^T A) = sum_i log sigma_i`, in nats.

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


def dimension_bound(
    cells: Source, tolerance: float = RANK_TOLERANCE, gates: Mapping[int, Tensor] | None = None
) -> CellValues:
    r"""The bound `dim g(cell) <= min(S, min_l rank(diag(slopes_l) W_l))` on every cell.

    See `layer_ranks` for the arguments and the terms.

    Source:
        MAS, section 3.2, Proposition 1.

    Example:
        >>> import girih
        >>> girih.geometry.dimension_bound(girih.mlp([2, 3, 3], activation="relu", seed=0)).values.tolist()
        [0, 1, 1, 2, 1, 2, 2]
    """
    cells = as_cells(cells)
    return CellValues(cells, layer_ranks(cells, tolerance, gates)[0].amin(1))


def layer_ranks(
    cells: Source, tolerance: float = RANK_TOLERANCE, gates: Mapping[int, Tensor] | None = None
) -> tuple[Tensor, list[str]]:
    r"""`min(S, rank(diag(slopes) W))` of every layer that all paths through the network pass, on every cell.

    A layer with weights W is taken together with the activation that follows it. Layers inside residual branches
    are no bottlenecks and have no term. Ranks are found from the product of W with S random columns, which leaves
    `min(S, rank)` as it is with probability 1 and makes wide and convolutional layers cheap.

    Args:
        cells: as in `singular_values`.
        tolerance: singular values up to this multiple of the largest one count as 0.
        gates: factors `(size,)` or `(R, size)` for the outputs of activations, by the index of their step in
            `trace.steps`: a realisation of dropout.

    Returns:
        Ranks `(R, L)`, and the path of each layer in the module.

    Raises:
        LatentDimensionError: a network with S > 3.

    Source:
        MAS, section 3.2, Propositions 1 and 2.

    Example:
        >>> import girih
        >>> ranks, names = girih.geometry.layer_ranks(girih.mlp([2, 3, 3], activation="relu", seed=0))
        >>> ranks[0].tolist(), names
        ([0, 2], ['1', '2'])
    """
    cells = as_cells(cells)
    traced, S = cells.trace, cells.latent_dim
    generator = torch.Generator().manual_seed(0)

    def mixed(size: int) -> Tensor:
        return torch.randn(S, size, generator=generator, dtype=torch.float64).to(traced.device)

    columns, names = [], []
    for index in _bottlenecks(traced):
        step = traced.steps[index]
        source = index if isinstance(step, AffineStep) else step.inputs[0]
        before = traced.steps[source]
        with torch.no_grad():
            if isinstance(before, AffineStep):
                image = before.linear(*(mixed(traced.steps[i].size) for i in before.inputs)).mT
            else:
                image = mixed(before.size).mT
        factor = None if gates is None or index not in gates else gates[index]
        columns.append(_ranks(traced, index, cells.patterns, image, factor, tolerance))
        names.append(step.path)
    if not columns:
        return torch.full((len(cells), 1), S), ["the latent"]
    return torch.stack(columns, 1), names


def _ranks(
    traced: Trace, index: int, patterns: Tensor, image: Tensor, factor: Tensor | None, tolerance: float
) -> Tensor:
    """The rank of a layer on every cell; `image (size, S)` is that of random columns before the activation."""
    step, count = traced.steps[index], len(patterns)
    if isinstance(step, AffineStep):
        return ranks(image[None], tolerance).expand(count)
    out = torch.empty(count, dtype=torch.int64, device=patterns.device)
    for rows in chunks(traced, count):
        codes = patterns[rows, traced.units(index)]
        with torch.no_grad():
            if isinstance(step, KinkStep):
                part = image * step.slopes(codes)[:, :, None]
            else:
                assert isinstance(step, MaxStep)
                part = image[step.chosen(codes)]
        if factor is not None:
            part = part * (factor if factor.ndim == 1 else factor[rows])[..., None]
        out[rows] = ranks(part, tolerance)
    return out


def _bottlenecks(traced: Trace) -> list[int]:
    """The steps that all paths from the latent to the output pass, each affine one merged with its activation."""
    found = [
        index
        for index, step in enumerate(traced.steps)
        if not isinstance(step, LatentStep) and not _reaches(traced, traced.output, index)
    ]
    merged = {traced.steps[i].inputs[0] for i in found if not isinstance(traced.steps[i], AffineStep)}
    return [index for index in found if index not in merged]


def _reaches(traced: Trace, end: int, without: int) -> bool:
    """Tells whether a path leads from the latent to a step when one step is taken out."""
    seen, queue = set(), [end]
    while queue:
        index = queue.pop()
        if index == without or index in seen:
            continue
        if isinstance(traced.steps[index], LatentStep):
            return True
        seen.add(index)
        queue.extend(traced.steps[index].inputs)
    return False
