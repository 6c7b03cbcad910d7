r"""Motion through the cells of a generator that leaves the posterior of a row as it is, without an error of steps.

In white coordinates the potential at inverse temperature b is `U(u) = (b |y - g(u)|^2 + |u|^2) / 2`. On a cell g is
affine with slope B, and U quadratic with Hessian `P = 1 + b B^T B`. With P as the mass, the Hamiltonian

    H(u, p) = U(u) + log det P / 2 + p^T P^-1 p / 2

has the marginal exp(-U) of u, and p is N(0, P) given u. Within a cell P is constant, and every direction has the period
2 pi: with the velocity `v = P^-1 p` and `d = P^-1 grad U`, the way to the minimum of this cell,

    u(t) = u + d (cos t - 1) + v sin t,    v(t) = v cos t - d sin t.

So the units of the cell, `f + n (u(t) - u)`, are sinusoids, and the time at which each changes its sign is closed.

Crossing. U is continuous, log det P is not. At a facet with normal n Hamiltonian mechanics leaves u and the part of p
along the facet as they are: `p' = p + c n`, c such that H is conserved. Since g is continuous, slopes along the facet
are the same on both sides; so are the precision P_t along it and the kinetic energy `p_t^T P_t^-1 p_t / 2`.
What is left is that of the normal, `w = (n v)^2 / a` with `a = n^T P^-1 n`, and `det P = det P_t |n|^2 / a`. So H is
conserved where

    w' = w + log(a' / a).

Where that is not positive, motion is reflected: `v' = v - 2 (n v / a) P^-1 n`. Both maps are symplectic and reversible
(they are limits of smooth Hamiltonians), so volumes are kept, and a trajectory is accepted always.

Units that change their sign are flipped in the pattern of the cell; where the point is on their facet, rounding is not
asked. A unit that is on the wrong side by rounding and moves farther is crossed at once, as at vertices or where units
are equal.

Source: girih's own; Pakman & Paninski, Exact Hamiltonian Monte Carlo for truncated multivariate Gaussians (2014), and
Mohasel Afshar & Domke, Reflection, refraction and Hamiltonian Monte Carlo (2015), for one P and for steps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.errors import GirihError
from girih.gaussian.prepared import compiled_form, in_threads, serve
from girih.networks import KinkStep, MaxStep, Trace
from girih.sampling.row import Row, root_of, too_small

QUARTER = 0.5 * math.pi  # of a period: after it a Gaussian has forgotten where it was
_MOST = 100_000  # facets that one trajectory may meet
_NUMBERS = 2**23  # in the largest array
_SMALL = -2  # what the kernel returns where noise is too small
_SHARE = 32  # points of one thread at least


class Places(NamedTuple):
    """Points with the patterns of their cells."""

    u: Tensor  # (n, S)
    pattern: Tensor  # (n, U)


class State(NamedTuple):
    """Points with their cells and velocities."""

    u: Tensor  # (n, S)
    pattern: Tensor  # (n, U)
    v: Tensor  # (n, S)

    def take(self, index: Tensor) -> State:
        """Some of them."""
        return State(*(part[index] for part in self))


class Cell(NamedTuple):
    """Cells about points u of theirs, at inverse temperatures b."""

    residual: Tensor  # y - g(u) (n, K)
    slope: Tensor  # B (n, K, S)
    inside: Tensor  # (n, F): at least 0 in the cell, 0 on a facet
    normal: Tensor  # (n, F, S): its slope
    root: Tensor  # of P, lower (n, S, S)
    inverse_temperature: Tensor  # (n,)

    def take(self, index: Tensor) -> Cell:
        """Some of them."""
        return Cell(*(part[index] for part in self))

    def moved(self, step: Tensor) -> Cell:
        """The same cells about other points, `step (n, S)` away."""
        away = step[:, :, None]
        return self._replace(
            residual=self.residual - (self.slope @ away)[:, :, 0], inside=self.inside + (self.normal @ away)[:, :, 0]
        )

    def solve(self, vector: Tensor) -> Tensor:
        """`P^-1 vector`, `(n, S)`."""
        return torch.cholesky_solve(vector[:, :, None], self.root)[:, :, 0]

    def displacement(self, u: Tensor) -> Tensor:
        """`d = P^-1 grad U`, `(n, S)`: u less the minimum of the cell's potential."""
        pull = (self.slope.mT @ self.residual[:, :, None])[:, :, 0]
        return self.solve(u - self.inverse_temperature[:, None] * pull)

    def momentum(self, v: Tensor) -> Tensor:
        """`P v`, `(n, S)`."""
        return v + self.inverse_temperature[:, None] * (self.slope.mT @ (self.slope @ v[:, :, None]))[:, :, 0]


class Facets:
    """The facets that cells of a generator may have: one for each threshold of a unit, and each entry of a maximum."""

    def __init__(self, traced: Trace) -> None:
        steps = [(i, step) for i, step in enumerate(traced.steps[: traced.features + 1])]
        self._trace = traced
        self._steps = [(i, step) for i, step in steps if isinstance(step, KinkStep | MaxStep)]
        # the codes on both sides of facet k are lowest + jump k and lowest + jump (k + 1); that beyond a maximum is k
        columns = [torch.empty(5, 0, dtype=torch.long)]
        for index, step in self._steps:
            units = torch.arange(step.size) + traced.units(index).start
            many = step.windows.shape[1] if isinstance(step, MaxStep) else len(step.thresholds)
            for k in range(many):
                numbers = (k, 0, k) if isinstance(step, MaxStep) else (k, 2 if many == 1 else 1, -1 if many < 3 else 0)
                columns.append(torch.stack((units, *(torch.full_like(units, n) for n in (*numbers, step.size)))))
        self._unit, self._k, self._jump, self._lowest, self._apart = torch.cat(columns, 1)

    def __len__(self) -> int:
        return len(self._unit)

    def _above(self, pattern: Tensor) -> Tensor:
        """Whether cells are above each threshold, `(n, F)`; always for maxima."""
        piece = (pattern[:, self._unit].long() - self._lowest) // self._jump.clamp(min=1)
        above: Tensor = (piece > self._k) | (self._jump == 0)
        return above

    def cell(self, row: Row, pattern: Tensor, u: Tensor, inverse_temperature: Tensor) -> Cell:
        """The cells with these patterns, about u."""
        jets = self._trace.jets(pattern, u @ row.factor.mT, self._trace.features)
        slope = row.head @ jets[-1].slope @ row.factor
        root = root_of(slope, inverse_temperature[:, None, None])
        inside, normal = [u.new_empty(len(u), 0)], [u.new_empty(len(u), 0, u.shape[1])]
        for index, step in self._steps:
            taken = jets[step.inputs[0]]
            if isinstance(step, MaxStep):
                highest = jets[index]
                others = [taken.slope[:, other] for other in step.windows.unbind(1)]
                inside.extend(highest.value - taken.value[:, other] for other in step.windows.unbind(1))
                normal.extend(highest.slope - other for other in others)
            else:
                inside.extend(taken.value - threshold for threshold in step.thresholds)
                normal.extend(taken.slope for _ in step.thresholds)
        side = torch.where(self._above(pattern), 1.0, -1.0).to(u.dtype)
        normals = side[:, :, None] * (torch.cat(normal, 1) @ row.factor)
        residual = row.y - row.images(jets[-1].value)
        return Cell(residual, slope, side * torch.cat(inside, 1), normals, root, inverse_temperature)

    def beyond(self, pattern: Tensor, facet: Tensor) -> tuple[Tensor, Tensor]:
        """The patterns beyond one facet each, `(n,)`, and what the facet is called from there."""
        each, unit, k = torch.arange(len(pattern)), self._unit[facet], self._k[facet]
        above, old = self._above(pattern)[each, facet], pattern[each, unit].long()
        new = self._lowest[facet] + self._jump[facet] * torch.where(above, k, k + 1)
        found = pattern.clone()
        found[each, unit] = new.to(pattern.dtype)
        # seen from the new maximum, the other entry is the old one
        return found, torch.where(self._jump[facet] == 0, facet + (old - k) * self._apart[facet], facet)


def exits(inside: Tensor, along: Tensor, speed: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The first time `(n,)` at which a unit leaves its side, infinite for never, and which one.

    Args:
        inside: units now, `(n, F)`.
        along: `n d`, what they lose at the minimum of the potential, `(n, F)`.
        speed: `n v`, `(n, F)`.
        at: the facet that each point is on, `(n,)`; -1 for none.
    """
    # inside + along (cos t - 1) + speed sin t = rest + size cos(t - phase) falls through 0 at this time, in [0, 2 pi]:
    # where it falls now, phase is in (-pi, 0), and it falls for less than pi
    rest, size, phase = inside - along, torch.hypot(along, speed), torch.atan2(speed, along)
    time = (phase + torch.acos((-rest / size).clamp(-1.0, 1.0))).clamp(min=0.0)
    time = torch.where(rest.abs() < size, time, torch.inf)
    time = torch.where((inside < 0.0) & (speed < 0.0), 0.0, time)  # beyond by rounding, and farther every moment
    on = at >= 0
    each, facet = on.nonzero()[:, 0], at[on]
    # on the facet, the other time at which it is met
    time[each, facet] = 2.0 * torch.atan2(speed[each, facet], along[each, facet])
    if not time.shape[1]:
        return torch.full_like(at, torch.inf, dtype=inside.dtype), at
    first = time.min(1)
    return first.values, first.indices


class Flow:
    """The motion for rows, one for each point, at inverse temperatures `(n,)`."""

    def __init__(self, row: Row, inverse_temperature: Tensor) -> None:
        self._facets, self._row, self.b = Facets(row.trace), row, inverse_temperature.contiguous()
        self.met = 0  # facets so far
        compiled = compiled_form("girih.sampling.kernels") if serve(row.y) else None
        self._packed = None if compiled is None else _packed(row)
        self._compiled = None if self._packed is None else compiled

    def move(self, places: Places, generator: torch.Generator) -> tuple[Places, Tensor]:
        """The points a quarter of a period later, with fresh velocities, and their `|y - g|^2 / 2`."""
        places, distance, _ = self.moves(places, 1, generator)
        return places, distance

    def moves(self, places: Places, count: int, generator: torch.Generator) -> tuple[Places, Tensor, Tensor]:
        """The points after so many moves, their `|y - g|^2 / 2`, and where they were after each, `(n, count, S)`.

        Raises:
            GirihError: a trajectory meets more than 100,000 facets.
        """
        n, S = places.u.shape
        noise = torch.randn(n, count, S, dtype=torch.float64, generator=generator)
        if self._compiled is not None:
            return self._move_compiled(places, noise)
        each, trail = (
            max(1, _NUMBERS // (S * (len(self._facets) + self._row.head.shape[-2:].numel() + 1))),
            torch.empty_like(noise),
        )
        for k in range(count):
            parts = [self._move(part, places, noise[:, k]) for part in torch.arange(n).split(each)]
            places = Places(*(torch.cat(part) for part in zip(*parts, strict=True)))
            trail[:, k] = places.u
        return places, self._row.distance(places.u), trail

    def _move_compiled(self, places: Places, noise: Tensor) -> tuple[Places, Tensor, Tensor]:
        assert self._packed is not None and self._compiled is not None
        net, y = self._packed
        u, code, distance = places.u.numpy().copy(), places.pattern.numpy().copy(), np.empty(len(noise))
        head = np.arange(len(y)) if len(net[-1]) > 1 else np.zeros(len(y), dtype=np.int64)
        trail, move = np.empty(noise.shape), self._compiled.move

        def part(*columns: NDArray[Any]) -> int:
            return int(move(*columns, QUARTER, net, _MOST))

        met = in_threads(part, len(u), _SHARE, u, code, noise.numpy(), y, head, self.b.numpy(), trail, distance)
        if min(met) < 0:
            raise too_small() if min(met) == _SMALL else too_many()
        self.met += sum(met)
        return Places(*map(torch.as_tensor, (u, code))), torch.as_tensor(distance), torch.as_tensor(trail)

    def _move(self, index: Tensor, places: Places, noise: Tensor) -> Places:
        u, pattern = places.u[index], places.pattern[index]
        cell = self._cell(index, pattern, u)
        v = torch.linalg.solve_triangular(cell.root.mT, noise[index, :, None], upper=True)[:, :, 0]
        end = self.run(State(u, pattern, v), index)
        return Places(end.u, end.pattern)

    def _cell(self, index: Tensor, pattern: Tensor, u: Tensor) -> Cell:
        return self._facets.cell(self._row.take(index), pattern, u, self.b[index])

    def energy(self, state: State) -> Tensor:
        """H of each point, `(n,)`, less what all have in common."""
        cell = self._cell(torch.arange(len(state.u)), state.pattern, state.u)
        potential = 0.5 * (self.b * cell.residual.square().sum(1) + state.u.square().sum(1))
        kinetic = 0.5 * (state.v * cell.momentum(state.v)).sum(1)
        return potential + kinetic + cell.root.diagonal(dim1=1, dim2=2).log().sum(1)

    def run(self, state: State, index: Tensor, time: float = QUARTER) -> State:
        """Where some points, of the rows `index`, are after some time.

        Raises:
            GirihError: a trajectory meets more than 100,000 facets.
        """
        end, open_ = State(*(part.clone() for part in state)), torch.arange(len(index))
        left, at = torch.full_like(self.b[index], time), torch.full_like(index, -1)
        cell = self._cell(index, state.pattern, state.u)
        for _ in range(_MOST):
            d = cell.displacement(state.u)
            units = cell.normal @ torch.stack((d, state.v), 2)
            t, facet = exits(cell.inside, units[:, :, 0], units[:, :, 1], at)
            ends = t >= left
            t = torch.minimum(t, left)
            cos, sin = t.cos()[:, None], t.sin()[:, None]
            step = state.v * sin - d * (2.0 * (0.5 * t).sin().square())[:, None]
            state = State(state.u + step, state.pattern, state.v * cos - d * sin)
            for whole, part in zip(end, state, strict=True):
                whole[open_[ends]] = part[ends]
            on = (~ends).nonzero()[:, 0]
            if not len(on):
                return end
            self.met += len(on)
            open_, left, at = open_[on], (left - t)[on], facet[on]
            state, cell, at = self._cross(index[open_], state.take(on), cell.take(on).moved(step[on]), at)
        raise too_many()

    def _cross(self, index: Tensor, state: State, cell: Cell, facet: Tensor) -> tuple[State, Cell, Tensor]:
        """Refraction or reflection at facets that the points are on; and these as they are called from there."""
        pattern, other = self._facets.beyond(state.pattern, facet)
        there = self._cell(index, pattern, state.u)
        normal = cell.normal[torch.arange(len(facet)), facet]
        toward, toward_there = cell.solve(normal), there.solve(normal)
        a, a_there = (normal * toward).sum(1), (normal * toward_there).sum(1)
        speed = (normal * state.v).sum(1)
        left = speed.square() / a + (a_there / a).log()
        goes = left > 0.0
        momentum = cell.momentum(state.v)
        through = there.solve(momentum)
        change = (-(a_there * left.clamp(min=0.0)).sqrt() - (normal * through).sum(1)) / a_there
        through = through + change[:, None] * toward_there
        back = state.v - (2.0 * speed / a)[:, None] * toward
        velocity = torch.where(goes[:, None], through, back)
        joined = Cell(
            *(
                torch.where(goes.reshape(-1, *[1] * (one.ndim - 1)), two, one)
                for one, two in zip(cell, there, strict=True)
            )
        )
        state = State(state.u, torch.where(goes[:, None], pattern, state.pattern), velocity)
        return state, joined, torch.where(goes, other, facet)


def too_many() -> GirihError:
    """The error that a trajectory does not end."""
    return GirihError(
        f"a trajectory met more than {_MOST:,} facets: the posterior has more cells than can be followed; make the "
        "noise larger, or the generator smaller"
    )


def _packed(row: Row) -> tuple[Any, NDArray[np.float64]] | None:
    """A chain of layers as the kernels take it, with the y that belong to it; `None` for other generators."""
    traced = row.trace
    if traced.chain is None:
        return None
    layers: list[tuple[Tensor, Tensor, Tensor]] = []
    weight, bias = row.factor, row.factor.new_zeros(len(row.factor))
    for step in traced.chain[: traced.features]:
        if isinstance(step, KinkStep):
            layers.append((weight, bias, step.slope.expand(step.size)))
            weight, bias = torch.eye(step.size, dtype=weight.dtype), weight.new_zeros(step.size)
        else:
            weight, bias = step.weight @ weight, step.weight @ bias + step.bias
    columns = [torch.cat([part[i].flatten() for part in layers] or [bias[:0]]).contiguous().numpy() for i in range(3)]
    widths = np.array([len(part[1]) for part in layers], dtype=np.int64)
    y = row.y - row.head @ bias
    head = row.head @ weight
    heads = head if head.ndim == 3 else head[None]
    return (widths, *columns, heads.contiguous().numpy()), y.contiguous().numpy()
