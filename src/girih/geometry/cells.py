"""`Cells`: the cells that a question about a generator is asked of, with their prior masses.

They are all cells, or, where a partition is too large to enumerate, those met by prior draws, segments or walks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows
from girih._options import whole
from girih.errors import LatentDimensionError, ParameterError
from girih.geometry.priors import GaussianPrior, Prior, PriorLike, UniformPrior, as_prior
from girih.networks import Jet, Trace, trace
from girih.partition import MAX_LATENT_DIM, Partition, walk

_BUDGET = 1 << 23  # numbers in the jets of a chunk of cells: 64 MB
_CHUNK = 4096
_SHORT = 6  # numbers of a tensor that is printed


class Shown:
    """A dataclass, made with `repr=False`, whose long tensors print as their shape.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from girih.geometry.cells import Shown
        >>> @dataclass(frozen=True, repr=False)
        ... class Found(Shown):
        ...     latent: torch.Tensor
        ...     pairs: int
        >>> Found(torch.zeros(200, 2), 3)
        Found(latent=<200 x 2>, pairs=3)
    """

    def __repr__(self) -> str:
        parts = (f"{field.name}={_text(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"


def _text(value: object) -> str:
    if not isinstance(value, Tensor) or value.numel() <= _SHORT:
        return str(value.tolist()) if isinstance(value, Tensor) else repr(value)
    return f"<{' x '.join(map(str, value.shape))}>"


@dataclass(frozen=True)
class Cells:
    """Cells of a generator: all of them, or those that were met by draws or walks.

    Made by `enumerate_cells`, `sample_cells`, `segment_cells` and `walk_cells`.

    Attributes:
        trace: the generator.
        patterns: the code of every hidden unit, `(R, U)` int8.
        points: a latent inside each cell, `(R, S)`.
        mass: prior mass of each cell, `(R,)`: exact for enumerated cells, estimated for sampled ones, NaN where the
            cells were not drawn from the prior.
        mass_error: standard error of `mass`, `(R,)`; 0 where it is exact.
        neighbors: index pairs of cells that share a facet, `(E, 2)`; `None` where it is not known.
        prior: the latent prior; `None` where the cells were not drawn from one.
        partition: the partition, for enumerated cells.
        draws: the number of prior draws behind `mass`; 0 where it is exact or not known.
        unseen_mass: estimated mass of the cells that no draw met, by Good and Turing: the share of draws that are
            alone in their cell; 0 for enumerated cells.
    """

    trace: Trace
    patterns: Tensor
    points: Tensor
    mass: Tensor
    mass_error: Tensor
    neighbors: Tensor | None = None
    prior: GaussianPrior | UniformPrior | None = None
    partition: Partition | None = None
    draws: int = 0
    unseen_mass: float = 0.0

    def __len__(self) -> int:
        return len(self.patterns)

    def __repr__(self) -> str:
        how = "enumerated" if self.exact else f"from {self.draws} draws" if self.draws else "without masses"
        return f"Cells({len(self)} {how}, latent_dim={self.latent_dim}, output_dim={self.trace.output_dim})"

    @property
    def latent_dim(self) -> int:
        """The latent dimension S."""
        return self.trace.latent_dim

    @property
    def exact(self) -> bool:
        """Tells whether these are all cells, with exact masses."""
        return self.partition is not None

    def maps(self, patterns: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The affine maps `g(z) = A z + b`, chunk by chunk and without gradients.

        Args:
            patterns: of other cells of the same generator, `(R, U)`; those of these cells by default.

        Returns:
            An iterator over the rows of a chunk, its `A (r, D, S)` and its `b (r, D)`.
        """
        patterns = self.patterns if patterns is None else patterns
        for rows in chunks(self.trace, len(patterns)):
            with torch.no_grad():
                A, b = self.trace.maps(patterns[rows])
            yield rows, A, b

    @cached_property
    def singular_values(self) -> Tensor:
        """The singular values of every A, descending, `(R, S)`; see `girih.geometry.singular_values`."""
        out = torch.zeros(len(self), self.latent_dim, dtype=torch.float64, device=self.patterns.device)
        for rows, A, _ in self.maps():
            values = torch.linalg.svdvals(triangle(A))
            out[rows, : values.shape[1]] = values
        return out


@dataclass(frozen=True, repr=False)
class CellValues(Shown):
    """A quantity on every cell.

    Attributes:
        cells: the cells.
        values: one number for each, `(R,)`.
    """

    cells: Cells
    values: Tensor

    @property
    def mean(self) -> float:
        """The average over the prior, `sum_r mass_r value_r`, with the masses made to sum to 1.

        NaN for cells without masses; use `values.mean()` for the plain average over cells.
        """
        share = self.cells.mass.to(self.values.device)
        values = self.values.to(torch.float64)
        return float(torch.where(share <= 0.0, 0.0, share * values).sum() / share.sum())

    @property
    def mean_error(self) -> float:
        """The standard error of `mean`: 0 for enumerated cells, that of independent draws for sampled ones."""
        if self.cells.exact:
            return 0.0
        if self.cells.draws < 2:
            return math.nan
        spread = (self.values.to(torch.float64) - self.mean).square()
        return math.sqrt(float((self.cells.mass.to(spread.device) * spread).sum()) / (self.cells.draws - 1))

    @property
    def max(self) -> float:
        """The largest value."""
        return float(self.values.max())

    @property
    def argmax(self) -> int:
        """The cell of the largest value."""
        return int(self.values.argmax())


def triangle(A: Tensor) -> Tensor:
    """The factor R of `A = Q R`, `(R, min(D, S), S)`."""
    result: Tensor = torch.linalg.qr(A, mode="r").R
    return result


def chunks(traced: Trace, count: int) -> Iterator[slice]:
    """Slices of cells whose jets fit into the cache or nearly so."""
    numbers = sum(step.size for step in traced.steps) * (traced.latent_dim + 1)
    size = max(1, min(4096, _BUDGET // numbers))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def jets(traced: Trace, patterns: Tensor, origins: Tensor) -> Iterator[tuple[slice, Jet]]:
    """Maps about points of the cells, chunk by chunk and without gradients."""
    for rows in chunks(traced, len(patterns)):
        with torch.no_grad():
            yield rows, traced.output_jet(patterns[rows], origins[rows])


def enumerate_cells(net: nn.Module | Trace | Partition, prior: PriorLike | None = None) -> Cells:
    """All cells of a generator with S <= 3, with exact prior masses and all pairs of neighbours.

    Args:
        net: a partition, or any module that `girih.trace` supports.
        prior: a variance, a covariance `(S, S)`, or `Uniform(low, high)`; by default that of the partition, or 1.
            A uniform prior cuts the cells at its box.

    Raises:
        LatentDimensionError: S is larger than 3; `sample_cells` works for any S.
        ParameterError: the partition does not cover the prior: its domain is too small, or, for a uniform prior,
            is not its box.
        ShapeError, NoiseError, NonFiniteError: a prior that is not one.

    Source:
        EM-DGN, section 3.2; MAS, section 2.

    Example:
        >>> import girih
        >>> cells = girih.geometry.enumerate_cells(girih.mlp([2, 8, 3], activation="relu", seed=0))
        >>> cells, round(cells.mass.sum().item(), 10)
        (Cells(37 enumerated, latent_dim=2, output_dim=3), 1.0)
    """
    given = net if isinstance(net, Partition) else None
    traced = given.trace if given is not None else trace(net)  # type: ignore[arg-type]
    if traced.latent_dim > MAX_LATENT_DIM:
        raise LatentDimensionError(
            f"all cells can be enumerated for S <= {MAX_LATENT_DIM}, and this generator has S = {traced.latent_dim}; "
            "pass the cells met by prior draws instead: girih.geometry.sample_cells(net, n)"
        )
    if prior is None:
        prior = given.prior_covariance if given is not None else 1.0
    prior = as_prior(prior, traced.latent_dim)
    if isinstance(prior, UniformPrior):
        part = given if given is not None else Partition(traced, domain=box(prior.low, prior.high), progress=False)
        mass = part.volume / (prior.high - prior.low).prod()
        inside = part.cells.locate(torch.stack((prior.low, prior.high))) >= 0
        covered = bool(inside.all()) and abs(float(mass.sum()) - 1.0) < 1e-9
    else:
        part = given if given is not None else Partition(traced, progress=False)
        mass = part.cells.prior_mass(prior.factor.numpy())
        covered = abs(float(mass.sum()) - 1.0) < 1e-9
    if not covered:
        raise ParameterError(
            f"the cells of the partition hold {float(mass.sum()):.6g} of the prior, so its domain does not fit; pass "
            "the network itself, a partition of the whole space, or for a uniform prior one whose domain is its box"
        )
    return Cells(traced, part.patterns, part.interior, mass, torch.zeros_like(mass), part.neighbors, prior, part)


def box(low: Tensor, high: Tensor) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """The domain of a `Partition` for the box between two corners."""
    return (float(low[0]), float(high[0])) if len(low) == 1 else (low, high)


def as_cells(value: Cells | Partition | nn.Module | Trace, prior: PriorLike | None = None) -> Cells:
    """Cells as they are, or all cells of a partition or generator with S <= 3."""
    if not isinstance(value, Cells):
        return enumerate_cells(value, prior)
    if prior is not None:
        raise ParameterError("these cells have the prior they were made with; pass prior= where the cells are made")
    return value


def prior_of(cells: Cells) -> Prior:
    """The prior of the cells.

    Raises:
        ParameterError: they were not drawn from one.
    """
    if cells.prior is None:
        raise ParameterError(
            "these cells come from a walk or from segments and have no prior masses; make them with enumerate_cells "
            "or sample_cells"
        )
    return cells.prior


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
        patterns = traced.pattern(z[start : start + _CHUNK].to(traced.device))
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
