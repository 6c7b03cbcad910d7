"""The cells of a one-dimensional latent space: intervals between exact breakpoints of every layer, over all of R."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.errors import NonFiniteError
from girih.gaussian import interval_log_mass
from girih.gaussian.prepared import compiled_form
from girih.networks import LinearStep, Trace
from girih.partition.cells import Cells, Corners, interval
from girih.partition.codes import Packing
from girih.partition.memory import Array, Limits
from girih.partition.subdivision import subdivide

_EPS = torch.finfo(torch.float64).eps

# Roots of nearly dead units can lie anywhere; beyond this, squares overflow, and no Gaussian has any mass.
_FARTHEST = 1e100


class Line(NamedTuple):
    """The cells of R, from left to right."""

    knots: Tensor  # (R - 1,) increasing
    patterns: Tensor  # (R, U) int8


def line_partition(trace: Trace) -> Line:
    """Cut R at every point where a hidden unit of any layer changes sign.

    Layer by layer: on each interval a pre-activation is affine, `p + d t`, so it has at most one root. A
    running bound on the rounding errors of p and d decides whether a root is real: a unit that is constant
    up to rounding has none, and roots that agree within their errors (duplicate units) are one breakpoint.
    """
    with torch.no_grad():
        fast = compiled_form("girih.partition.kernels") if trace.device.type == "cpu" else None
        return _by_tensors(trace) if fast is None else _compiled(fast, trace)


def _compiled(fast: ModuleType, trace: Trace) -> Line:
    numbers, stages, units = [], [], 0
    chain = trace.chain or ()
    for stage in chain:
        if isinstance(stage, LinearStep):
            numbers += [stage.weight.flatten(), stage.bias]
            stages.append((stage.in_features, stage.out_features, -1))
        else:
            numbers.append(stage.slope.expand(stage.size))
            stages.append((stage.size, stage.size, units))
            units += stage.size
    flat = torch.cat(numbers).numpy() if numbers else np.empty(0)
    knots, patterns, bad = fast.line(flat, np.array(stages, np.int64).reshape(-1, 3), _EPS, _FARTHEST)
    if bad >= 0:
        raise _overflow(chain[bad].path)
    return Line(torch.from_numpy(knots), torch.from_numpy(patterns))


def _overflow(path: str) -> NonFiniteError:
    return NonFiniteError(
        f"layer '{path}' has weights that are not finite, or so large that its output overflows; reload the network, "
        "or train it with smaller steps"
    )


def _by_tensors(trace: Trace) -> Line:
    """The same by operations on tensors."""
    device = trace.device
    knots = torch.empty(0, dtype=torch.float64, device=device)
    origin = cell_origins(knots)
    value, slope = origin[:, None], torch.ones(1, 1, dtype=torch.float64, device=device)
    value_error, slope_error = torch.zeros_like(value), torch.zeros_like(slope)
    signs: list[Tensor] = []
    for stage in trace.chain or ():
        if isinstance(stage, LinearStep):
            weight, bias = stage.weight, stage.bias
            size = weight.abs()
            rounding = _EPS * (stage.in_features + 1)
            value_error = value_error @ size.T + rounding * (value.abs() @ size.T + bias.abs())
            slope_error = slope_error @ size.T + rounding * (slope.abs() @ size.T)
            value, slope = value @ weight.T + bias, slope @ weight.T
            if not (torch.isfinite(value).all() and torch.isfinite(slope).all()):
                raise _overflow(stage.path)
            continue
        roots, errors = _roots(knots, origin, value, slope, value_error, slope_error)
        new_knots = torch.cat((knots, _merge(roots, errors))).sort().values
        inside = interior_points(new_knots)
        parent = torch.searchsorted(knots, inside)
        new_origin = cell_origins(new_knots)
        step = (new_origin - origin[parent])[:, None]
        value, slope = value[parent] + slope[parent] * step, slope[parent]
        value_error = value_error[parent] + slope_error[parent] * step.abs() + _EPS * value.abs()
        slope_error = slope_error[parent]
        sign = torch.where(value + slope * (inside - new_origin)[:, None] > 0, 1, -1).to(torch.int8)
        signs = [earlier[parent] for earlier in signs] + [sign]
        knots, origin = new_knots, new_origin
        factor = stage.slopes(sign)
        value, slope = value * factor, slope * factor
        value_error, slope_error = value_error * factor.abs(), slope_error * factor.abs()
    patterns = torch.cat(signs, 1) if signs else torch.empty(1, 0, dtype=torch.int8, device=device)
    return Line(knots, patterns)


def cell_bounds(knots: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper end of each cell, infinite at the two outer ones."""
    infinity = knots.new_full((1,), torch.inf)
    return torch.cat((-infinity, knots)), torch.cat((knots, infinity))


def cell_origins(knots: Tensor) -> Tensor:
    """The point of each cell that is nearest to 0: the latent is then measured from it without losing digits."""
    return knots.new_zeros(len(knots) + 1).clamp(*cell_bounds(knots))


def interior_points(knots: Tensor) -> Tensor:
    """A point well inside each cell."""
    if not len(knots):
        return knots.new_zeros(1)
    first, last = knots[:1], knots[-1:]
    middle = 0.5 * (knots[:-1] + knots[1:])
    return torch.cat((first - first.abs().clamp(min=1.0), middle, last + last.abs().clamp(min=1.0)))


def _roots(
    knots: Tensor, origin: Tensor, value: Tensor, slope: Tensor, value_error: Tensor, slope_error: Tensor
) -> tuple[Tensor, Tensor]:
    """The sign changes strictly inside the cells, with bounds on their errors."""
    lower, upper = cell_bounds(knots)
    moves = slope.abs() > slope_error
    step = torch.where(moves, -value / torch.where(moves, slope, 1.0), torch.inf)
    root = origin[:, None] + step
    error = torch.where(
        moves, (value_error + step.abs() * slope_error) / slope.abs() + 4 * _EPS * root.abs(), torch.inf
    )
    keep = (root.abs() < _FARTHEST) & (root - error > lower[:, None]) & (root + error < upper[:, None])
    return root[keep], error[keep]


def _merge(roots: Tensor, errors: Tensor) -> Tensor:
    """One breakpoint for each group of roots that agree within their errors."""
    if not len(roots):
        return roots
    roots, order = roots.sort()
    errors = errors[order]
    apart = roots.diff() > errors[1:] + errors[:-1]
    return roots[torch.cat((apart.new_ones(1), apart))]


class LineCells(Cells):
    """Intervals between breakpoints, inside `(low, high)`.

    Args:
        line: the cells of R.
        low: the lower end of the domain, which may be infinite.
        high: its upper end.
    """

    def __init__(self, line: Line, low: float, high: float) -> None:
        self._domain = (low, high)
        inside = (line.knots > low) & (line.knots < high)
        self.knots = line.knots[inside]
        first = int((line.knots <= low).sum())
        self._patterns = line.patterns[first : first + len(self.knots) + 1]
        self.lower, self.upper = cell_bounds(self.knots)
        self.lower[0], self.upper[-1] = low, high

    @classmethod
    def of(cls, trace: Trace, domain: object, limits: Limits, progress: bool = True) -> LineCells:
        """The intervals of a network with S = 1; `domain` as in `Partition`."""
        line = line_partition(trace) if trace.chain is not None else _from_complex(trace, limits, progress)
        return cls(line, *interval(domain))

    @property
    def domain(self) -> tuple[float, float]:
        """The ends of the domain."""
        return self._domain

    @property
    def extent(self) -> str:
        """The domain as text."""
        return "({:g}, {:g})".format(*self._domain)

    @property
    def patterns(self) -> Tensor:
        """The code of every hidden unit on every cell."""
        return self._patterns

    def __len__(self) -> int:
        return len(self._patterns)

    @cached_property
    def origins(self) -> Tensor:
        """The point of each cell that is nearest to 0."""
        return cell_origins(self.knots)[:, None]

    @property
    def piece_patterns(self) -> Tensor:
        """The patterns of the cells, each of which is one piece."""
        return self.patterns

    @property
    def piece_origins(self) -> Tensor:
        """The origins of the cells, each of which is one piece."""
        return self.origins

    @property
    def piece_cells(self) -> Tensor:
        """Every cell is one piece."""
        return torch.arange(len(self))

    def piece_corners(self) -> Corners:
        """The finite ends of the cells, and the directions in which they are unbounded."""
        ends = torch.stack((self.lower, self.upper), 1).cpu().flatten()
        index, finite = torch.arange(len(self)).repeat_interleave(2), torch.isfinite(ends)
        nowhere = (~finite).view(-1, 2).all(1).nonzero()[:, 0]
        point, owner = torch.cat((ends[finite], ends.new_zeros(len(nowhere)))), torch.cat((index[finite], nowhere))
        order = owner.argsort(stable=True)
        return Corners(point[order, None], owner[order], ends[~finite].sign()[:, None], index[~finite])

    def simplices(self) -> tuple[Tensor, Tensor]:
        """The cells themselves."""
        return torch.stack((self.lower, self.upper), 1)[:, :, None], self.piece_cells

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

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, bool]]:
        """The domain, the breakpoints and the patterns."""
        ends = torch.tensor(self.domain, dtype=torch.float64)
        return {"domain": ends, "knots": self.knots, "patterns": self.patterns}, {}


def _from_complex(trace: Trace, limits: Limits, progress: bool) -> Line:
    """Breakpoints and patterns from the general subdivision, for networks that are not chains."""
    result = subdivide(trace, None, limits, progress)
    points = result.complex.points[result.complex.ends.data]
    ends = torch.as_tensor(points[:, :, 0]) / torch.as_tensor(points[:, :, 1])  # +-1 / 0: infinite
    order = ends.amin(1).argsort()
    codes, ends = torch.as_tensor(Packing(trace.steps).unpack(result.codes))[order], ends[order]
    new = torch.cat((torch.tensor([True]), (codes[1:] != codes[:-1]).any(1)))
    knots = ends.amin(1)[new][1:]
    return Line(knots.to(trace.device), codes[new].to(trace.device))
