"""The cells of a one-dimensional latent space: intervals, from left to right."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian import interval_log_mass
from girih.networks import Trace
from girih.partition.codes import Packing
from girih.partition.growing import Array
from girih.partition.limits import Limits
from girih.partition.line import Line, cell_bounds, cell_origins, line_partition
from girih.partition.subdivision import subdivide


class LineCells:
    """Intervals between breakpoints, inside `(low, high)`.

    Args:
        line: the cells of R.
        low: the lower end of the domain, which may be infinite.
        high: its upper end.
    """

    def __init__(self, line: Line, low: float, high: float) -> None:
        self.domain = (low, high)
        inside = (line.knots > low) & (line.knots < high)
        self.knots = line.knots[inside]
        first = int((line.knots <= low).sum())
        self.patterns = line.patterns[first : first + len(self.knots) + 1]
        self.lower, self.upper = cell_bounds(self.knots)
        self.lower[0], self.upper[-1] = low, high

    def __len__(self) -> int:
        return len(self.patterns)

    @property
    def origins(self) -> Tensor:
        """The point of each cell that is nearest to 0."""
        return cell_origins(self.knots)[:, None]

    @property
    def piece_patterns(self) -> Tensor:
        """The patterns: every cell is one piece."""
        return self.patterns

    @property
    def piece_origins(self) -> Tensor:
        """The origins: every cell is one piece."""
        return self.origins

    @property
    def interior(self) -> Tensor:
        """A point inside each cell."""
        low = torch.where(self.lower.isinf(), self.upper - 2.0 * self.upper.abs().clamp(min=1.0), self.lower)
        high = torch.where(self.upper.isinf(), self.lower + 2.0 * self.lower.abs().clamp(min=1.0), self.upper)
        return torch.where(low.isnan() | high.isnan(), 0.0, 0.5 * (low + high))[:, None]

    @property
    def volume(self) -> Tensor:
        """Length of each cell."""
        return self.upper - self.lower

    @property
    def centroid(self) -> Tensor:
        """Middle of each cell, NaN for unbounded ones."""
        middle = 0.5 * (self.lower + self.upper)
        return torch.where(self.volume.isinf(), torch.nan, middle)[:, None]

    def prior_mass(self, factor: Array) -> Tensor:
        """Mass of each cell under `N(0, L^2)`."""
        return self.log_prior_mass(factor).exp()

    def log_prior_mass(self, factor: Array) -> Tensor:
        """Log mass of each cell under `N(0, L^2)`."""
        deviation = float(factor[0, 0])
        return interval_log_mass(self.lower / deviation, self.upper / deviation)

    @property
    def neighbors(self) -> Tensor:
        """Cells next to each other."""
        index = torch.arange(len(self))
        return torch.stack((index[:-1], index[1:]), 1)

    @property
    def separating_units(self) -> Tensor:
        """The first column of the patterns in which neighbours differ."""
        return (self.patterns[1:] != self.patterns[:-1]).to(torch.int8).argmax(1)

    def locate(self, z: Tensor) -> Tensor:
        """The cell of each z; breakpoints go to the left cell, and -1 stands for outside the domain."""
        rows = z[:, 0].contiguous()
        index = torch.searchsorted(self.knots, rows)
        low, high = self.domain
        return torch.where((rows >= low) & (rows <= high), index, -1)

    def touching(self, point: Array) -> list[int]:
        """The one or two cells whose closure holds a point."""
        z = float(point[0])
        room = 1e-9 * (1.0 + abs(z))
        return ((self.lower <= z + room) & (self.upper >= z - room)).nonzero()[:, 0].tolist()

    def neighbours_of(self, i: int) -> list[int]:
        """The cells next to cell i."""
        return [j for j in (i - 1, i + 1) if 0 <= j < len(self)]

    def cell_points(self, i: int) -> tuple[Tensor, Tensor]:
        """The finite ends of cell i, and the directions in which it is unbounded."""
        ends = torch.stack((self.lower[i], self.upper[i]))
        return ends[torch.isfinite(ends)][:, None], torch.sign(ends[torch.isinf(ends)])[:, None]

    def cell_halfspaces(self, i: int) -> tuple[Tensor, Tensor]:
        """The half-lines that meet in cell i."""
        ends = torch.stack((-self.lower[i], self.upper[i]))
        finite = torch.isfinite(ends)
        return ends.new_tensor([[-1.0], [1.0]])[finite], ends[finite]


def cut_line(trace: Trace, limits: Limits) -> Line:
    """All cells of R; `limits` as in `subdivide`."""
    return line_partition(trace) if trace.chain is not None else _from_complex(trace, limits)


def _from_complex(trace: Trace, limits: Limits) -> Line:
    """Breakpoints and patterns from the general subdivision, for networks that are not chains."""
    result = subdivide(trace, None, limits)
    points = result.complex.points[result.complex.ends.data]
    ends = torch.as_tensor(points[:, :, 0]) / torch.as_tensor(points[:, :, 1])  # +-1 / 0: infinite
    order = ends.amin(1).argsort()
    codes, ends = torch.as_tensor(Packing(trace.steps).unpack(result.codes))[order], ends[order]
    new = torch.cat((torch.tensor([True]), (codes[1:] != codes[:-1]).any(1)))
    knots = ends.amin(1)[new][1:]
    return Line(knots.to(trace.device), codes[new].to(trace.device))
