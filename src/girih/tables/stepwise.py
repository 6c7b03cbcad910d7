r"""Stepwise EM of the density of a table, for rows that can be passed once only.

The first 13,000 rows are kept, and settings and scales are chosen on them. Every further batch is then seen once: its
expected sums at the current parameters are blended into those so far, and the M-step follows, as in
`girih.em.stepwise`. The kinks are fixed, so the mixture with its latents is an exponential family, for which this is
the algorithm of the source. The sums are about the curves (`Expected`) and move with them exactly.

Source:
    Cappé and Moulines (2009), On-line expectation-maximization algorithm, J. R. Statist. Soc. B 71.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from girih._progress import Counted
from girih.em.stepwise import rate, warn_of
from girih.errors import StreamError
from girih.streams import Blocks, count, joined
from girih.tables.choice import HELD_OUT
from girih.tables.columns import Columns
from girih.tables.finished import Finished
from girih.tables.fitting import Expected, Prior, maximised
from girih.tables.frames import Name
from girih.tables.member import Member
from girih.tables.mixture import Mixture, Rows, statistics
from girih.tables.setting import Table
from girih.tables.streamed import SAMPLE, Chosen, Whole, encoded, observed, start

_BATCH = 1000  # rows of a batch at least, but for the last


class Online:
    """A mixture that learns batch by batch.

    Args:
        member: fitted to the first rows.
        prior: what holds it.
        x, codes: the first rows, in the units of the data.
    """

    def __init__(self, member: Member, prior: Prior, x: Tensor, codes: Tensor) -> None:
        self.mixture, self.scales, self.prior = member.mixture, member.scales, prior
        self.rows, self.sums = len(x), self._expected(x, codes)
        self.left_out = 0  # batches whose step failed

    @property
    def member(self) -> Member:
        """As it is now."""
        return Member(self.mixture, self.scales)

    def take(self, x: Tensor, codes: Tensor) -> None:
        """Learn a batch; a step that would leave the numbers that there are is left out."""
        rows = self.rows + len(x)
        new, gamma = self._expected(x, codes), rate(len(x), rows)

        def blend(old: Tensor, fresh: Tensor) -> Tensor:
            return torch.lerp(old * (rows / self.rows), fresh * (rows / len(x)), gamma)

        old = self.sums
        sums = Expected(
            blend(old.counts, new.counts),
            blend(old.cross, new.cross),
            blend(old.scatter, new.scatter),
            blend(old.G, new.G),
            tuple(blend(mine, fresh) for mine, fresh in zip(old.tables, new.tables, strict=True)),
        )
        try:
            moved = maximised(self.mixture, sums, self.prior)
            torch.linalg.cholesky(moved.noise)
            good = _finite(moved)
        except LinAlgError:
            good = False
        if not good:
            self.left_out += 1
            return
        self.sums, self.rows = sums.about(moved.maps - self.mixture.maps), rows
        self.mixture = moved

    def _expected(self, x: Tensor, codes: Tensor) -> Expected:
        return Expected.of(self.mixture, statistics(self.mixture, Rows.of(self.scales.forward(x), codes)))


def _finite(mixture: Mixture) -> bool:
    return all(bool(part.isfinite().all()) for part in (mixture.weights, mixture.maps, mixture.noise))


def choose_once(
    blocks: Blocks, kinds: Mapping[Name, str] | None, seed: int, report: Counted, n_jobs: int | None
) -> tuple[Columns, Chosen] | Whole:
    """The schema and the density for a stream that is passed once; or all its rows, where they are few.

    Raises:
        StreamError: there are no rows, or a block cannot be read.
    """
    passed = blocks.read()
    first: list[object] = []
    rows = 0
    for _, block in passed:
        first.append(block)
        rows += count(block)
        if rows >= SAMPLE:
            break
    if not first:
        raise StreamError("X has no rows; pass a stream with at least one block of them")
    if rows < SAMPLE:
        return Whole(joined(first))
    columns = Columns.learn(joined(first), kinds)
    x, codes = columns.read(joined(first))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(rows))
    order = order[observed(x, codes)[order]]
    table = Table(x, codes, x.new_ones(len(x)), columns.width, columns.levels)
    held, kept = table.take(order[:HELD_OUT]), table.take(order[HELD_OUT:])
    begun = start(kept.take(slice(SAMPLE - HELD_OUT)), held, seed, report, Finished(None, held, {}, n_jobs=n_jobs))
    online = [
        Online(member, prior, kept.x, kept.codes) for member, prior in zip(begun.members, begun.priors, strict=True)
    ]
    place = -1
    for place, (x, codes) in enumerate(_batches(columns, passed)):
        for one in online:
            one.take(x, codes)
        report.step(f"batch {place + 1}, {online[0].rows:,} rows")
    warn_of(max(one.left_out for one in online), place + 1)
    return columns, begun.end([one.member for one in online])


def _batches(columns: Columns, passed: Iterator[tuple[int, object]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Encoded blocks joined to batches of a size that a step is worth."""
    waiting: list[tuple[Tensor, Tensor]] = []
    for number, block in passed:
        x, codes = encoded(columns, number, block)
        kept = observed(x, codes)
        waiting.append((x[kept], codes[kept]))
        if sum(len(x) for x, _ in waiting) >= _BATCH:
            yield _both(waiting)
            waiting = []
    if sum(len(x) for x, _ in waiting):
        yield _both(waiting)


def _both(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in parts]), torch.cat([codes for _, codes in parts])
