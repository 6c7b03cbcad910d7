"""The density of a table without end: chosen on a sample, fitted to all rows block by block.

A first pass draws a uniform sample of 13,000 rows, of which 5,000 are held out. Settings and scales are chosen on it as
they are for tables of more than 4,000 rows in memory (`girih.tables.choice`), and the few that are kept go on over all
blocks together: one pass gives the statistics of all of them. Several processes share the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from girih.errors import GirihError
from girih.streams import Blocks, Processes, Total
from girih.tables.choice import HELD_OUT, RESUMED, SAMPLED, Choice, Report, Setting, Table, judged, narrowed
from girih.tables.columns import Columns
from girih.tables.fitting import TOL, Ascent, Prior
from girih.tables.frames import Name
from girih.tables.member import Member
from girih.tables.mixture import Mixture, Rows, Statistics, statistics
from girih.tables.survey import Survey

SAMPLE = HELD_OUT + SAMPLED


@dataclass(frozen=True)
class Chosen:
    """What comes of a stream.

    Attributes:
        choice: the average.
        members: the fits to all rows, those of the average and that of the best single curve.
        held: the rows that were held out.
    """

    choice: Choice
    members: dict[Setting, Member]
    held: Table


@dataclass(frozen=True)
class Whole:
    """All rows of a stream, where they are so few that they are a table like any other."""

    rows: object


@dataclass(frozen=True)
class Start:
    """Fits to a sample, from which a stream goes on.

    Attributes:
        settings: those that are kept, and the best single curve.
        members: their fits.
        priors: what holds them.
        held: the rows that judge.
        end: from the final fits, in order, to what was chosen.
    """

    settings: list[Setting]
    members: list[Member]
    priors: list[Prior]
    held: Table
    end: Callable[[Sequence[Member]], Chosen]


def start(rows: Table, held: Table, seed: int, report: Report) -> Start:
    """Choose settings by rows in memory, both parts in random order."""
    search, kept, screened = narrowed(rows, held, seed, report)
    curves = [setting for setting, _ in screened if setting.kinks and setting.components == 1][:1]
    settings = list(dict.fromkeys((*kept, *curves)))
    members = [search.member(setting, 0)[0] for setting in settings]
    priors = [setting.prior(search.fitters[0].scaled(setting.bend).least) for setting in settings]

    def end(final: Sequence[Member]) -> Chosen:
        for setting, member in zip(settings, final, strict=True):
            search.add(setting, 0, member)
        choice = judged(search, kept, held.weight, screened)
        return Chosen(choice, dict(zip(settings, final, strict=True)), held)

    return Start(settings, members, priors, held, end)


def choose_streamed(
    blocks: Blocks, kinds: Mapping[Name, str] | None, seed: int, report: Report, processes: Processes
) -> tuple[Columns, Chosen] | Whole:
    """The schema and the density for a stream; or all its rows, where the sample holds them."""
    found = Survey.of(blocks, kinds, SAMPLE, seed, processes)
    columns, drawn = found.columns, found.drawn
    if found.rows == len(drawn):
        return Whole(drawn.rows)
    chosen = drawn.least(min(HELD_OUT, len(drawn) // 5))
    x, codes = columns.read(drawn.rows)
    table = Table(x, codes, x.new_ones(len(x)), columns.width, columns.levels)
    order = torch.from_numpy(np.argsort(drawn.key))
    order = order[observed(x, codes)[order]]
    out = torch.from_numpy(chosen)[order]
    begun = start(table.take(order[~out][:SAMPLED]), table.take(order[out]), seed, report)
    passes = Passes(blocks, columns, drawn.of_block(chosen), processes)
    made = len(begun.settings)
    final = ascend(
        begun.members, begun.priors, passes, lambda number: report(made + number, f"pass {number} of all rows")
    )
    return columns, begun.end(final)


def ascend(
    members: Sequence[Member], priors: Sequence[Prior], passes: Passes, shown: Callable[[int], None]
) -> list[Member]:
    """EM of several mixtures over all rows, one pass for an iteration of all that have not ended."""
    runs = [Ascent(one.mixture, prior, TOL) for one, prior in zip(members, priors, strict=True)]
    scales = [one.scales for one in members]
    processes = passes.processes
    for number in range(RESUMED):
        going = [k for k, run in enumerate(runs) if not run.done]
        if not going:
            break
        mixtures = processes.agreed(lambda: [runs[k].mixture for k in going])  # noqa: B023

        def work(going: list[int] = going, mixtures: list[Mixture] = mixtures) -> Total:
            total = Total()
            for x, codes in passes.blocks():
                sums = [x.new_tensor(float(len(x)))]
                for k, mixture in zip(going, mixtures, strict=True):
                    sums += _flat(statistics(mixture, Rows.of(scales[k].forward(x), codes)))
                total.add(sums)
            return total

        rows, *sums = processes.total(work).values
        size = len(sums) // len(going)
        for place, k in enumerate(going):
            runs[k].mixture = mixtures[place]
            runs[k].take(_unflat(sums[place * size : (place + 1) * size]), float(rows))
        shown(number + 1)
    return [Member(run.best, scale) for run, scale in zip(runs, scales, strict=True)]


@dataclass(frozen=True)
class Passes:
    """They give the encoded blocks of this process, without rows that are held out or of which nothing is observed."""

    stream: Blocks
    columns: Columns
    left_out: Mapping[int, np.ndarray]
    processes: Processes

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass."""
        for number, block in self.stream.read(self.processes.rank, self.processes.size):
            x, codes = encoded(self.columns, number, block)
            kept = observed(x, codes)
            if number in self.left_out:
                kept[torch.from_numpy(self.left_out[number])] = False
            if bool(kept.any()):
                yield x[kept], codes[kept]


def encoded(columns: Columns, number: int, block: object) -> tuple[Tensor, Tensor]:
    """The numbers and codes of a block.

    Raises:
        GirihError: as `Columns.read`; the message names the block.
    """
    try:
        return columns.read(block)
    except GirihError as error:
        raise type(error)(f"block {number} of X: {error}") from None


def observed(x: Tensor, codes: Tensor) -> Tensor:
    """Which rows have an entry, `(N,)`."""
    return ~x.isnan().all(1) | (codes >= 0).any(1)


def _flat(found: Statistics) -> list[Tensor]:
    return [found.log_likelihood, found.counts, found.U, found.V, found.G, *found.tables]


def _unflat(sums: Sequence[Tensor]) -> Statistics:
    log_likelihood, counts, U, V, G, *tables = sums
    return Statistics(log_likelihood, counts, U, V, G, tuple(tables))
