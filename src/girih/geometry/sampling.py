"""Cells of generators whose partition is too large to enumerate: by prior draws, along segments, by walks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows
from girih._options import whole
from girih.geometry.cells import Cells
from girih.geometry.priors import PriorLike, as_prior
from girih.networks import Trace, trace
from girih.partition import Partition, walk

_CHUNK = 4096


def sample_cells(net: nn.Module | Trace, n: int, prior: PriorLike = 1.0, seed: int = 0) -> Cells:
    r"""The cells that n prior draws fall into, any S, with estimated masses.

    A cell that c draws meet has the mass `c / n` with the standard error `sqrt(c / n (1 - c / n) / n)`. Cells are
    in the order in which they were met first.

    Args:
        net: any module that `girih.trace` supports.
        n: the number of draws.
        prior: a variance, a covariance `(S, S)`, or `Uniform(low, high)`.
        seed: of the draws.

    Raises:
        ParameterError: n is not a positive whole number.
        ShapeError, NoiseError, NonFiniteError: a prior that is not one.

    Source:
        MAS, appendix H, samples cells in this way.

    Example:
        >>> import girih
        >>> cells = girih.geometry.sample_cells(girih.mlp([10, 32, 32, 50], seed=0), 100)
        >>> round(cells.mass.sum().item(), 10), cells.patterns.shape
        (1.0, torch.Size([100, 64]))
    """
    traced = trace(net)
    n, seed = whole(n, "n"), whole(seed, "seed", None)
    latent = as_prior(prior, traced.latent_dim)
    z = latent.sample(n, torch.Generator().manual_seed(seed))
    patterns, points, count = distinct_cells(traced, z)[:3]
    mass = count / n
    return Cells(
        traced,
        patterns,
        points,
        mass,
        (mass * (1.0 - mass) / n).sqrt(),
        prior=latent,
        draws=n,
        unseen_mass=float((count == 1).sum()) / n,
    )


def distinct_cells(traced: Trace, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cells of latents `(N, S)` in the order in which they appear.

    Returns:
        Patterns `(R, U)`, the first latent in each `(R, S)`, the number in each `(R,)` float64, and the cell of each
        latent `(N,)`.
    """
    known: dict[bytes, int] = {}
    kept: list[Tensor] = []
    first: list[int] = []
    owner: list[int] = []
    for start in range(0, len(z), _CHUNK):
        patterns = traced.pattern(z[start : start + _CHUNK])
        new = []
        for row, code in enumerate(patterns.cpu().numpy()):
            index = known.setdefault(code.tobytes(), len(known))
            if index == len(first):
                first.append(start + row)
                new.append(row)
            owner.append(index)
        kept.append(patterns[new])
    owners = torch.tensor(owner)
    count = torch.bincount(owners, minlength=len(first)).to(torch.float64)
    return torch.cat(kept), z[first], count, owners


def segment_cells(net: nn.Module | Trace, n: int, prior: PriorLike = 1.0, seed: int = 0) -> Cells:
    r"""The cells along n segments between pairs of prior draws, any S, with their neighbours.

    On a segment `z = z0 + t (z1 - z0)` the generator has one latent, t, whose partition is exact: it has every
    cell that the segment crosses, and consecutive ones share the facet between them. A facet is crossed with a
    probability that grows with its area. The cells have no prior masses.

    Args:
        net: any module that `girih.trace` supports.
        n: the number of segments.
        prior: of their ends: a variance, a covariance `(S, S)`, or `Uniform(low, high)`.
        seed: of the draws.

    Raises:
        ParameterError: n is not a positive whole number.
        ShapeError, NoiseError, NonFiniteError: a prior that is not one.

    Example:
        >>> import girih
        >>> cells = girih.geometry.segment_cells(girih.mlp([10, 32, 32, 50], seed=0), 3)
        >>> bool((cells.patterns[cells.neighbors[:, 0]] != cells.patterns[cells.neighbors[:, 1]]).any(1).all())
        True
    """
    traced = trace(net)
    n, seed = whole(n, "n"), whole(seed, "seed", None)
    ends = as_prior(prior, traced.latent_dim).sample(2 * n, torch.Generator().manual_seed(seed)).reshape(n, 2, -1)
    known: dict[bytes, int] = {}
    patterns, points, pairs = [], [], set()
    for start, stop in ends:
        basis = (stop - start)[:, None]
        part = Partition(traced.restrict(start, basis), domain=(0.0, 1.0), progress=False)
        codes = part.patterns.cpu().numpy()
        indices = []
        for row in range(len(part)):
            key = codes[row].tobytes()
            if key not in known:
                known[key] = len(known)
                patterns.append(part.patterns[row])
                points.append(start + basis @ part.interior[row].cpu())
            indices.append(known[key])
        pairs |= {(min(i, j), max(i, j)) for i, j in pairwise(indices) if i != j}
    return _without_masses(traced, torch.stack(patterns), torch.stack(points), pairs)


def walk_cells(net: nn.Module | Trace, z: ArrayLike, max_cells: int = 100) -> Cells:
    r"""The cells around a latent, any S: those of `girih.partition.walk`, with the facets that it crossed.

    Args:
        net: any module that `girih.trace` supports.
        z: where to start, `(S,)`.
        max_cells: how many cells to visit at most; each costs linear programs, one for each unit or so.

    Raises:
        ShapeError, NonFiniteError: z is not one finite latent.
        ParameterError: `max_cells` is not a positive whole number.

    Source:
        EM-DGN, appendix A, Algorithm 1.

    Example:
        >>> import girih, torch
        >>> cells = girih.geometry.walk_cells(girih.mlp([10, 16, 16, 5], seed=0), torch.zeros(10), max_cells=5)
        >>> cells.neighbors.tolist()
        [[0, 1], [0, 2], [0, 3], [0, 4]]
    """
    traced = trace(net)
    start = as_rows(z, "z", traced.latent_dim, "the latent dimension S")
    found = list(walk(traced, start, max_cells))
    pairs = {(cell.parent, cell.index) for cell in found if cell.parent >= 0}
    patterns = torch.stack([cell.pattern for cell in found]).to(traced.device)
    return _without_masses(traced, patterns, torch.stack([cell.interior for cell in found]), pairs)


def _without_masses(traced: Trace, patterns: Tensor, points: Tensor, pairs: set[tuple[int, int]]) -> Cells:
    unknown = torch.full((len(patterns),), torch.nan, dtype=torch.float64)
    neighbors = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)
    return Cells(traced, patterns, points, unknown, unknown.clone(), neighbors)
