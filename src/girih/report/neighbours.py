"""A neighbour of each sampled cell: the one behind the first facet on the way to another prior draw."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from girih.geometry import Cells
from girih.geometry.cells import prior_of

_HALVINGS = 36  # facets are found to 1e-11 of the segment, well above rounding
_ROWS = 4096


def first_neighbours(cells: Cells, most: int, seed: int) -> Cells:
    """The cells with a neighbour added for up to `most` of them, and the pairs of both as `neighbors`.

    From the point at which a cell was met a segment leads to another draw. Cells are convex, so the first facet on it
    is found by halving intervals; the cell behind it shares that facet. Cells that hold their whole segment have none.

    Args:
        cells: sampled from a prior.
        most: for how many cells, those that were met first.
        seed: of the ends of the segments.

    Example:
        >>> import girih
        >>> from girih.report.neighbours import first_neighbours
        >>> cells = girih.geometry.sample_cells(girih.mlp([10, 16, 16, 5], seed=0), 50)
        >>> found = first_neighbours(cells, 20, seed=1)
        >>> len(found) - len(cells), found.neighbors[0].tolist()
        (20, [0, 50])
    """
    start = cells.points[:most].cpu()
    ends = prior_of(cells).sample(len(start), torch.Generator().manual_seed(seed)).cpu()
    own = cells.patterns[:most]
    near, far = torch.zeros(len(start), dtype=torch.float64), torch.ones(len(start), dtype=torch.float64)

    def codes(share: Tensor) -> Tensor:
        z = start + share[:, None] * (ends - start)
        return torch.cat([cells.trace.pattern(some) for some in z.split(_ROWS)])

    left = (codes(far) != own).any(1).cpu()
    for _ in range(_HALVINGS):
        middle = 0.5 * (near + far)
        inside = (codes(middle) == own).all(1).cpu()
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    beyond = codes(far)[left.to(own.device)]
    index = left.nonzero()[:, 0]
    points = (start + far[:, None] * (ends - start))[left]
    unknown = torch.full((len(index),), torch.nan, dtype=torch.float64)
    pairs = torch.stack((index, len(cells) + torch.arange(len(index))), 1)
    return replace(
        cells,
        patterns=torch.cat((cells.patterns, beyond)),
        points=torch.cat((cells.points, points.to(cells.points.device))),
        mass=torch.cat((cells.mass, unknown)),
        mass_error=torch.cat((cells.mass_error, unknown)),
        neighbors=pairs,
    )
