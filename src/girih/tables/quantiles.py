r"""Distribution functions and quantiles of single columns, many at once.

A *slot* is a row and a missing column of it; its distribution is `F(x) = sum_entry weight F_entry(y(x)) + atoms`. Roots
are found by Newton's steps held to a bracket, which an even cut replaces where they leave it or linger. They start from
the root of the mixture of plain normals that has the entries' means and variances, which costs a fiftieth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from girih.tables.lines import Lines
from girih.tables.moments import Atom, Entries
from girih.tables.pieces import Pieces, Units
from girih.tables.scales import Scales

_TOLERANCE = 1e-11  # of the width of a bracket of all that is likely
_LARGEST = 600.0  # asinh of the largest number, in units, that a bracket may hold
_ROUNDS = 120

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # F and dF/dw at points w of slots


@dataclass(frozen=True)
class Marginals:
    """The distributions of S slots.

    Attributes:
        slots: the row and the column of each, `(S,)`.
        slot: `(E,)`, to which slot an entry belongs, ascending.
        weight: `(E,)`, of sum P(number) in a slot.
        lines: the entries in the units of their members.
        likeness: mean and deviation of each entry there.
        scales: the scales of each entry.
        coordinate: for each slot, scales in whose y roots are looked for.
        atoms: `(S, L)`, values, infinite where there are none.
        chance: `(S, L)`, their probabilities.
    """

    slots: tuple[Tensor, Tensor]
    slot: Tensor
    weight: Tensor
    lines: Lines
    likeness: tuple[Tensor, Tensor]
    scales: Scales
    coordinate: Scales
    atoms: Tensor
    chance: Tensor

    @staticmethod
    def of(
        pieces: Pieces, missing: Tensor, units: Units, atoms: tuple[Atom, ...], chances: tuple[Tensor, list[Tensor]]
    ) -> Marginals:
        """Those of the missing columns `(B, D)` of some rows."""
        piece, column, lines = Entries.of(pieces, missing)
        row_of, column_of = missing.nonzero(as_tuple=True)
        place = torch.full(missing.shape, -1, dtype=torch.long)
        place[row_of, column_of] = torch.arange(len(row_of))
        slot = place[pieces.row[piece], column]
        number, levels = chances
        weight = pieces.share[piece] * number[piece, column]
        mean = lines.base + lines.slope * pieces.mean[piece]
        deviation = (lines.slope.square() * pieces.variance[piece] + lines.deviation.square()).sqrt()
        best = units.bent.to(units.unit.dtype).argmax(0)  # a member that bends the column, if any does
        values = mean.new_full((len(row_of), max((len(a.values) for a in atoms), default=0)), torch.inf)
        chance = torch.zeros_like(values)
        for atom, level in zip(atoms, levels, strict=True):
            here = column_of == atom.x
            by_row = level.new_zeros(len(missing), level.shape[1])
            by_row.index_add_(0, pieces.row, pieces.share[:, None] * level)
            values[here, : level.shape[1]] = values.new_tensor(atom.values)
            chance[here, : level.shape[1]] = by_row[row_of[here]]
        return Marginals(
            (row_of, column_of),
            slot,
            weight,
            lines,
            (mean, deviation),
            units.at(pieces.member[piece], column),
            units.at(best[column_of], column_of),
            values,
            chance,
        )

    def cdf(self, x: Tensor) -> Tensor:
        """`P(X <= x)` of each slot, `(S,)`."""
        known = torch.where(self.atoms <= x[:, None], self.chance, 0.0).sum(1)
        total = known + self._numbers(x, torch.ones(len(x), dtype=torch.bool), exact=True)[0]
        return torch.where(x.isnan(), x, total.clamp(0.0, 1.0))

    def quantile(self, q: float) -> Tensor:
        """The least x with `P(X <= x) >= q` of each slot, `(S,)`."""
        slots = len(self.slots[0])
        target = self.weight.new_full((slots,), q)
        answer = torch.full_like(target, torch.nan)
        if q > 0.0:
            for values, chance in zip(self.atoms.mT, self.chance.mT, strict=True):
                up_to = self.cdf(values)
                here = (up_to >= q) & (up_to - chance < q) & (chance > 0.0)
                answer = torch.where(here, values, answer)
                target = target - torch.where(up_to < q, chance, 0.0)
        mass = torch.zeros_like(target).index_add_(0, self.slot, self.weight)
        numbers = answer.isnan() & (mass > 0.0)
        end = numbers & ((target <= 0.0) | (target >= mass) | (q >= 1.0))
        answer[end & (target <= 0.0)] = -torch.inf
        answer[end & (target > 0.0)] = torch.inf
        numbers &= ~end
        if bool(numbers.any()):
            lower, upper = self._bracket()
            start = self._solve(target, lower, upper, 0.5 * (lower + upper), numbers, exact=False)
            root = self._solve(target, lower, upper, start, numbers, exact=True)
            answer = torch.where(numbers, self.coordinate.inverse(root), answer)
        return answer

    def _bracket(self) -> tuple[Tensor, Tensor]:
        """Where all but 1e-12 of each slot lies, in its coordinate."""
        low, high = self.lines.ends()
        own = Scales(
            *(getattr(self.coordinate, name)[self.slot] for name in ("bent", "origin", "unit", "centre", "spread"))
        )

        def moved(y: Tensor) -> Tensor:
            t = self.scales.centre + self.scales.spread * y
            t = torch.where(self.scales.bent, t.clamp(-_LARGEST, _LARGEST), t)
            return own.forward(self.scales.inverse((t - self.scales.centre) / self.scales.spread))

        S = len(self.slots[0])
        lower = low.new_full((S,), torch.inf).scatter_reduce_(0, self.slot, moved(low), "amin")
        return lower, low.new_full((S,), -torch.inf).scatter_reduce_(0, self.slot, moved(high), "amax")

    def _numbers(self, x: Tensor, active: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
        """The share of numbers up to x, and its derivative by x, of the active slots; 0 for others."""
        entry = slice(None) if bool(active.all()) else active[self.slot].nonzero()[:, 0]
        slot, weight = self.slot[entry], self.weight[entry]
        s = self.scales
        scales = Scales(s.bent[entry], s.origin[entry], s.unit[entry], s.centre[entry], s.spread[entry])
        at = x[slot]
        y = scales.forward(at)
        if exact:
            part, density = (self.lines if isinstance(entry, slice) else self.lines.some(entry)).cdf(y)
        else:
            mean, deviation = self.likeness[0][entry], self.likeness[1][entry]
            k = (y - mean) / deviation
            part = torch.special.ndtr(k)
            density = (-0.5 * k.square()).exp() / (math.sqrt(2.0 * math.pi) * deviation)
        density = density * scales.log_slope(at).exp()
        total = torch.zeros_like(x)
        return total.index_add(0, slot, weight * part), total.index_add(0, slot, weight * density)

    def _solve(
        self, target: Tensor, lower: Tensor, upper: Tensor, start: Tensor, wanted: Tensor, exact: bool
    ) -> Tensor:
        """The w with F(w) = target of the slots wanted, between the given ends."""
        low, high, w = lower.clone(), upper.clone(), start.clone()
        least = (_TOLERANCE if exact else 1e-3) * (upper - lower) + 4e-16 * torch.maximum(lower.abs(), upper.abs())
        active = wanted.clone()
        for turn in range(_ROUNDS):
            x = self.coordinate.inverse(w)
            value, density = self._numbers(x, active, exact)
            short = value < target
            low = torch.where(active & short, w, low)
            high = torch.where(active & ~short, w, high)
            step = (target - value) / (density * (-self.coordinate.log_slope(x)).exp())
            new = w + step
            middle = 0.5 * (low + high)
            held = (new > low) & (new < high) & (turn % 5 != 4)
            new = torch.where(held, new, middle)
            close = (held & (step.abs() <= least)) | (high - low <= least) | (value == target)
            new = torch.where(value == target, w, new)
            w = torch.where(active, new, w)
            active = active & ~close
            if not bool(active.any()):
                break
        return w
