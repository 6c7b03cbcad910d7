"""`Partition`: the cells of a generator's latent space and what one asks of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from girih._arrays import as_rows, as_tensor, check_finite
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.gaussian import interval_log_mass
from girih.networks import Jet, Trace, trace
from girih.partition.line import Line, cell_bounds, cell_origins, interior_points, line_partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LATENT_DIM = 1


def check_latent_dim(latent_dim: int) -> None:
    """Refuse latent spaces whose partition cannot be enumerated exactly yet."""
    if latent_dim > MAX_LATENT_DIM:
        raise LatentDimensionError(
            f"the exact partition covers latent dimension S = {MAX_LATENT_DIM} today, and this generator has "
            f"S = {latent_dim}; use a generator with S = {MAX_LATENT_DIM}, or girih.trace(net).affine(z) for the "
            "affine map around single latents, which works for any S"
        )


class Partition:
    r"""The cells on which a generator is affine, `g(z) = A z + b`.

    Exact over the whole latent space: outer cells are unbounded, not cut by a box. Cells are numbered from
    left to right. S = 1 today.

    Args:
        net: any module that `girih.trace` supports.
        domain: `None` for the whole line, or `(low, high)`, either of which may be infinite.
        prior: the variance of the latent prior for `prior_mass`; 1 by default.

    Attributes:
        affine: `(A, b)` of every cell, `(R, D, S)` and `(R, D)`.
        patterns: the sign of every hidden unit, `(R, U)` int8.
        volume: length of every cell, `(R,)`, infinite for unbounded cells.
        prior_mass: mass of every cell under the prior, `(R,)`.
        neighbors: index pairs of cells that share a facet, `(E, 2)`.

    Raises:
        LatentDimensionError: S is larger than the exact method covers.

    Source:
        EM-DGN, section 3.2 and appendix A; edge subdivision follows Berzins (2023).

    Example:
        >>> import girih
        >>> part = girih.Partition(girih.mlp([1, 8, 2], seed=0))
        >>> len(part), part.affine[0].shape, round(part.prior_mass.sum().item(), 12)
        (9, torch.Size([9, 2, 1]), 1.0)
    """

    def __init__(self, net: nn.Module | Trace, domain: Any = None, prior: float = 1.0) -> None:
        self.trace = trace(net)
        check_latent_dim(self.trace.latent_dim)
        if not (math.isfinite(prior) and prior > 0):
            raise ParameterError(f"prior must be a positive variance, got {prior}")
        self.domain = _check_domain(domain)
        self.prior = float(prior)
        line = line_partition(self.trace)
        self._knots, self.patterns = _restrict(line, *self.domain)
        self._lower, self._upper = cell_bounds(self._knots)
        self._lower[0], self._upper[-1] = self.domain

    def __len__(self) -> int:
        return len(self.patterns)

    def __repr__(self) -> str:
        low, high = self.domain
        return f"Partition(cells={len(self)}, latent_dim={self.trace.latent_dim}, domain=({low:g}, {high:g}))"

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """`A (R, D, S)` and `b (R, D)` of every cell; differentiable in the parameters of the network."""
        return self.trace.maps(self.patterns)

    @property
    def origins(self) -> Tensor:
        """A point of each cell about which maps are well conditioned, `(R, S)`."""
        return cell_origins(self._knots)[:, None]

    def hidden_jet(self) -> Jet:
        """The map from z to the last hidden features on each cell, about `origins`."""
        return self.trace.hidden_jet(self.patterns, self.origins)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end of each cell (S = 1), `(R,)` and `(R,)`."""
        return self._lower, self._upper

    @property
    def breakpoints(self) -> Tensor:
        """The R - 1 points at which cells meet (S = 1), increasing."""
        return self._knots

    @property
    def volume(self) -> Tensor:
        """Length of every cell, `(R,)`; infinite for unbounded cells."""
        return self._upper - self._lower

    @property
    def log_prior_mass(self) -> Tensor:
        """Natural log of `prior_mass`, `(R,)`, accurate for cells far in the tails."""
        deviation = math.sqrt(self.prior)
        return interval_log_mass(self._lower / deviation, self._upper / deviation)

    @property
    def prior_mass(self) -> Tensor:
        """Mass of every cell under the prior `N(0, prior)`, `(R,)`."""
        return self.log_prior_mass.exp()

    @property
    def neighbors(self) -> Tensor:
        """Index pairs of cells that share a facet, `(E, 2)`."""
        index = torch.arange(len(self))
        return torch.stack((index[:-1], index[1:]), 1)

    def locate(self, z: Any) -> Tensor:
        """The index of the cell that holds each z, `(N,)`; -1 outside the domain. Breakpoints go to the left cell."""
        rows = as_rows(
            z, "z", self.trace.latent_dim, "the latent dimension S", allow_empty=True, device=self._knots.device
        )[:, 0].contiguous()
        index = torch.searchsorted(self._knots, rows)
        low, high = self.domain
        return torch.where((rows >= low) & (rows <= high), index, -1)

    def vertices(self, i: int) -> Tensor:
        """The vertices of cell i, `(V, S)`: its finite ends."""
        i = self._index(i)
        ends = torch.stack((self._lower[i], self._upper[i]))
        return ends[torch.isfinite(ends)][:, None]

    def halfspaces(self, i: int) -> tuple[Tensor, Tensor]:
        """The irredundant half-spaces of cell i: `H (F, S)` and `h (F,)` with `H z <= h`."""
        i = self._index(i)
        ends = torch.stack((-self._lower[i], self._upper[i]))
        finite = torch.isfinite(ends)
        normals = ends.new_tensor([[-1.0], [1.0]])
        return normals[finite], ends[finite]

    def _index(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise ParameterError(f"cell index {i} is out of range for {len(self)} cells")
        return i % len(self)

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the generator's output against z with the cell limits; returns the matplotlib axes."""
        from girih.plots.partition import plot_line_partition

        return plot_line_partition(self, ax=ax, **options)


def _check_domain(domain: Any) -> tuple[float, float]:
    if domain is None:
        return (-math.inf, math.inf)
    ends = as_tensor(domain, "domain")
    if ends.numel() != 2:
        raise ShapeError(f"domain must be (low, high) for S = 1, got shape {tuple(ends.shape)}")
    check_finite(torch.where(torch.isinf(ends), 0.0, ends), "domain")
    low, high = ends.reshape(-1).tolist()
    if not low < high:
        raise ParameterError(f"domain must have low < high, got ({low}, {high})")
    return low, high


def _restrict(line: Line, low: float, high: float) -> tuple[Tensor, Tensor]:
    inside = (line.knots > low) & (line.knots < high)
    knots = line.knots[inside]
    first = int((line.knots <= low).sum())
    return knots, line.patterns[first : first + len(knots) + 1]


__all__ = ["MAX_LATENT_DIM", "Partition", "check_latent_dim", "interior_points"]
