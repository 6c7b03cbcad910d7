"""The upper bound on the dimension of a cell's image, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from girih.geometry.cells import CellValues, as_cells, chunks, triangle
from girih.geometry.spectrum import RANK_TOLERANCE, Source
from girih.networks import Trace
from girih.networks.steps import AffineStep, KinkStep, LatentStep, MaxStep


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
        cells: from `enumerate_cells` or `sample_cells`; a partition or a network with S <= 3 stands for all its
            cells.
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
        return _rank(image[None], tolerance).expand(count)
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
        out[rows] = _rank(part, tolerance)
    return out


def _rank(A: Tensor, tolerance: float) -> Tensor:
    values = torch.linalg.svdvals(triangle(A))
    return (values > tolerance * values[:, :1]).sum(1)


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
    """Whether a path leads from the latent to a step when one step is taken out."""
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
