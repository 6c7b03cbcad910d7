r"""Upper bounds by branches: sets of latents are halved by the signs of units, each with its Gaussian envelope.

The sets are disjoint, so `p(x)` is at most the sum of the masses of their envelopes. The set whose envelope holds most
is split first, by the unit that promises most. Where units bend inside of the posterior a split gains nothing, since
envelopes of halves reach into each other, and the set stays whole.

What is left can be told by draws. With q the mixture of the envelopes and Z its mass, a draw of q is kept with
probability

    exp(-E) / envelope  where it lies in the set of its envelope, 0 elsewhere,

which is at most 1. The share that is kept has the mean `p(x) / Z`: from its number, binomial, follows an interval that
holds log p(x) with a stated confidence, whatever the posterior looks like, and what is kept are exact draws of it.

Source:
    Clopper & Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial (1934).
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from girih.bounds.envelopes import Envelopes, envelopes, whole_space
from girih.bounds.units import units_of, values_of
from girih.gaussian import sample_truncated
from girih.sampling.row import Row

_BATCH = 16  # sets that are split at once, of networks with few units
_ENTRIES = 2**20  # of the rows of a batch
_GAIN = 1e-3  # nats that a split has to gain
_TRIES = 4  # splits in a row that may be in vain
_WORTH = 7.0  # nats: sets whose masses are this far below the sum stay whole
_DRAWS = 8192  # at once
_FEW = 30
_ENOUGH = 40_000  # kept draws: the interval is 0.03 nats wide


class _Tree:
    """Sets in the order in which they were made: the mass of each, and the least sum of sets that make it up."""

    def __init__(self, log_mass: float) -> None:
        self.own, self.best = [log_mass], [log_mass]
        self._parent, self._halves = [-1], dict[int, tuple[int, int]]()
        self._open = {0}

    def close(self, sets: list[int]) -> None:
        """These are not to be split."""
        self._open.difference_update(sets)

    def grow(self, split: list[int], log_mass: list[list[float]]) -> None:
        """The sets `split` have halves, those that are on first, as `joined` puts them."""
        first = len(self.own)
        for part in range(2):
            for i, masses in zip(split, log_mass, strict=True):
                self.own.append(masses[part])
                self.best.append(masses[part])
                self._parent.append(i)
        for k, i in enumerate(split):
            self._halves[i] = first + k, first + len(split) + k
            self._open.remove(i)
            self._open.update(self._halves[i])
            while i >= 0:
                on, off = self._halves[i]
                self.best[i] = min(self.own[i], float(np.logaddexp(self.best[on], self.best[off])))
                i = self._parent[i]

    def worth_splitting(self, most: int, enough: float) -> list[int]:
        """Sets without halves, the largest masses first, but for small ones for which splits above were in vain."""
        floor = self.best[0] - _WORTH
        able = [i for i in self._open if self.own[i] > floor and (self.own[i] > enough or not self._in_vain(i))]
        return sorted(able, key=lambda i: -self.own[i])[:most]

    def _in_vain(self, i: int) -> bool:
        """Whether no split among the last ones above has lowered the sum."""
        for _ in range(_TRIES):
            i = self._parent[i]
            if i < 0 or self.best[i] < self.own[i] - _GAIN:
                return False
        return True

    def cut(self) -> list[int]:
        """Sets that make up all, with the least sum."""
        found, stack = [], [0]
        while stack:
            i = stack.pop()
            if self.best[i] < self.own[i]:
                stack.extend(self._halves[i])
            else:
                found.append(i)
        return sorted(found)


class Kept(NamedTuple):
    """How many draws of envelopes with this mass were kept."""

    log_mass: float
    drawn: int
    kept: int

    def interval(self, confidence: float) -> tuple[float, float]:
        """Bounds on log p(x), each missed with half of what confidence leaves, nats."""
        half, n, k = 0.5 * (1.0 - confidence), self.drawn, self.kept
        low = math.log(beta.ppf(half, k, n - k + 1)) if k else -math.inf
        high = math.log(beta.ppf(1.0 - half, k + 1, n - k)) if k < n else 0.0
        return self.log_mass + low, self.log_mass + high

    @property
    def value(self) -> float:
        """An estimate of log p(x), nats."""
        return self.log_mass + (math.log(self.kept / self.drawn) if self.kept else -math.inf)

    @property
    def error(self) -> float:
        """Its standard error, infinite where fewer than thirty were kept."""
        return math.sqrt((self.drawn / self.kept - 1.0) / self.drawn) if self.kept >= _FEW else math.inf


class Branches:
    """The tree of the sets of a row, whose envelopes hold p(x), less what the row has in common.

    Attributes:
        units: of the generator, with the head of the row.
        y: the row `(K,)` as they see it.
    """

    def __init__(self, row: Row, end: float) -> None:
        units = units_of(row.trace, row.factor)
        self.units = units._replace(head=row.head @ units.head, shift=row.head @ units.shift)
        self.y = row.y - self.units.shift
        self._sets = whole_space(self.units, self.y, end)
        self._tree = _Tree(float(self._sets.log_mass))
        self._tree.close(self._whole(self._sets))
        self._batch = max(1, min(_BATCH, _ENTRIES // (1 + self.units.weight.numel())))

    @property
    def upper(self) -> float:
        """What log p(x) is at most."""
        return min(self._tree.best[0] + 1e-12, 0.0)

    def split(self, end: float, guess: float = math.inf) -> bool:
        """Split some sets, before the time `end`; false where none is left that is worth it.

        A set that holds more than e times what p(x) is thought to be, `guess`, is split even if splits were in vain.
        """
        chosen = self._tree.worth_splitting(self._batch, guess + 1.0)
        if not chosen:
            return False
        some, first = self._sets.take(torch.tensor(chosen)), len(self._sets.sign)
        halves = envelopes(self.units, self.y, *some.split(some.worth.argmax(1)), end)
        self._sets = self._sets.joined(halves)
        self._tree.grow(chosen, halves.log_mass.reshape(2, -1).T.tolist())
        self._tree.close(self._whole(halves, first))
        return True

    @staticmethod
    def _whole(sets: Envelopes, first: int = 0) -> list[int]:
        """The numbers of those that no unit can split, counted from `first`."""
        numbers: list[int] = (first + (~torch.isfinite(sets.worth).any(1)).nonzero()[:, 0]).tolist()
        return numbers

    @property
    def count(self) -> int:
        """How many sets make up the sum."""
        return len(self._tree.cut())

    def draws(self, seconds: float, generator: torch.Generator) -> Kept:
        """Draw for so many seconds, or until the share that is kept is known to about a hundredth.

        How many there are to be is set beforehand, from other draws: where the end depends on what was kept, the number
        that is kept is not binomial.
        """
        begun, leaves = time.perf_counter(), self.leaves()
        first = int(self.sample(leaves, _DRAWS, generator)[1].sum())
        each = time.perf_counter() - begun
        rounds = max(1, min(int(seconds / each) - 1, math.ceil(_ENOUGH / (first + 1))))
        kept = sum(int(self.sample(leaves, _DRAWS, generator)[1].sum()) for _ in range(rounds))
        return Kept(float(torch.logsumexp(leaves.log_mass, 0)) + 1e-12, rounds * _DRAWS, kept)

    def leaves(self) -> Envelopes:
        """The sets that make up the sum."""
        return self._sets.take(torch.tensor(self._tree.cut()))

    def sample(self, leaves: Envelopes, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws `(count, S)` of white latents, and which are kept: those are the posterior's."""
        units = self.units
        which = torch.multinomial(torch.softmax(leaves.log_mass, 0), count, replacement=True, generator=generator)
        which = which.sort().values
        of = leaves.take(which)
        s = torch.randn(count, units.dim, dtype=torch.float64, generator=generator)
        along = sample_truncated(of.least, torch.full_like(of.least, torch.inf), generator)
        s = s + (along - (s * of.wall).sum(1))[:, None] * of.wall
        u = of.mean + (of.root @ s[:, :, None])[:, :, 0]
        v, a = values_of(units, u)
        inside = ((of.sign == 0) | ((of.sign > 0) == (a > 0.0))).all(1)
        energy = 0.5 * ((self.y - v @ units.head.mT).square().sum(1) + u.square().sum(1))
        chance = (0.5 * s.square().sum(1) - energy - of.height).exp()
        return u, inside & (torch.rand(count, dtype=torch.float64, generator=generator) < chance)
