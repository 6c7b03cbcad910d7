"""The density of a table without end: chosen on a sample, fitted to all rows block by block.

A first pass draws a uniform sample of 13,000 rows, of which 5,000 are held out. Settings and scales are chosen on it as
they are for tables of more than 4,000 rows in memory (`girih.tables.choice`), and the few that are kept go on over all
blocks together: one pass gives the statistics of all of them. Several processes share the blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih._progress import Counted
from girih.errors import GirihError
from girih.streams import Blocks, Processes, Total
from girih.tables.choice import HELD_OUT, SAMPLED, Choice, judged, narrowed
from girih.tables.columns import Columns
from girih.tables.finished import Finished, member_of, parts_of
from girih.tables.fitter import RESUMED
from girih.tables.fitting import TOL, Ascent, Prior
from girih.tables.frames import Name
from girih.tables.member import Member
from girih.tables.mixture import Mixture, Rows, Statistics, statistics
from girih.tables.scales import Scales
from girih.tables.setting import Setting, Table
from girih.tables.survey import Survey

SAMPLE = HELD_OUT + SAMPLED
_PASSES = "passes"  # in what a killed run goes on from


@dataclass(frozen=True)
class Chosen:
    """What comes of a stream.

    Attributes:
        choice: the average.
        members: the fits to all rows, those of the average and that of the best single curve.
        held: the rows that were held out.
        finished: what a run that is killed goes on from.
    """

    choice: Choice
    members: dict[Setting, Member]
    held: Table
    finished: Finished


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
        end: from the final fits, in order, to what was chosen.
    """

    settings: list[Setting]
    members: list[Member]
    priors: list[Prior]
    end: Callable[[Sequence[Member]], Chosen]


def start(rows: Table, held: Table, seed: int, report: Counted, finished: Finished) -> Start:
    """Choose settings by rows in memory, both parts in random order."""
    search, kept, screened = narrowed(rows, held, seed, report, finished)
    curves = [setting for setting, _ in screened if setting.kinks and setting.components == 1][:1]
    settings = list(dict.fromkeys((*kept, *curves)))
    members = [search.member(setting, 0)[0] for setting in settings]
    priors = [setting.prior(search.fitters[0].scaled(setting.bend).least) for setting in settings]

    def end(final: Sequence[Member]) -> Chosen:
        found = {setting: member.settled() for setting, member in zip(settings, final, strict=True)}
        for setting, member in found.items():
            search.members[setting, 0] = member, member.log_prob(held.x, held.codes)
        return Chosen(judged(search, kept, held.weight, screened), found, held, finished)

    return Start(settings, members, priors, end)


def choose_streamed(
    blocks: Blocks,
    kinds: Mapping[Name, str] | None,
    seed: int,
    report: Counted,
    checkpoint: str | os.PathLike[str] | None,
    n_jobs: int | None,
) -> tuple[Columns, Chosen] | Whole:
    """The schema and the density for a stream; or all its rows, where the sample holds them."""
    processes = Processes.now()
    found = Survey.of(blocks, kinds, SAMPLE, seed, processes)
    columns, drawn = found.columns, found.drawn
    if found.rows == len(drawn):
        return Whole(drawn.rows)
    chosen = drawn.least(min(HELD_OUT, len(drawn) // 5))
    x, codes = columns.read(drawn.rows)
    table = Table(x, codes, x.new_ones(len(x)), columns.width, columns.levels)
    finished = Finished(checkpoint, table, {"seed": seed, "rows": found.rows}, processes, n_jobs)
    order = torch.from_numpy(np.argsort(drawn.key))
    order = order[observed(x, codes)[order]]
    out = torch.from_numpy(chosen)[order]
    try:
        begun = start(table.take(order[~out][:SAMPLED]), table.take(order[out]), seed, report, finished)
        passes = Passes(blocks, columns, drawn.of_block(chosen), processes)
        report.left(RESUMED)
        final = ascend(begun, passes, finished, lambda number: report.step(f"pass {number} of all rows"))
    finally:
        finished.save()
    return columns, begun.end(final)


def ascend(begun: Start, passes: Passes, finished: Finished, shown: Callable[[int], None]) -> list[Member]:
    """EM of several mixtures over all rows, one pass for an iteration of all that have not ended."""
    runs = [Ascent(one.mixture, prior, TOL) for one, prior in zip(begun.members, begun.priors, strict=True)]
    scales = [one.scales for one in begun.members]
    done = _go_on(runs, begun, finished)
    for number in range(done, RESUMED):
        going = passes.processes.agreed(lambda: {k: run.mixture for k, run in enumerate(runs) if not run.done})
        if not going:
            break
        rows, *sums = _sums(going, scales, passes)
        size = len(sums) // len(going)
        for place, (k, mixture) in enumerate(going.items()):
            runs[k].mixture = mixture
            runs[k].take(_unflat(sums[place * size : (place + 1) * size]), float(rows))
        finished.put(_PASSES, _state(runs, scales, number + 1))
        shown(number + 1)
    return [Member(run.best, scale) for run, scale in zip(runs, scales, strict=True)]


def _sums(mixtures: Mapping[int, Mixture], scales: Sequence[Scales], passes: Passes) -> list[Tensor]:
    """The number of rows and the statistics of the mixtures, one after the other, of all processes."""

    def work() -> Total:
        total = Total()
        for x, codes in passes.blocks():
            sums = [x.new_tensor(float(len(x)))]
            for k, mixture in mixtures.items():
                sums += _flat(statistics(mixture, Rows.of(scales[k].forward(x), codes)))
            total.add(sums)
        return total

    return passes.processes.total(work).values


def _state(runs: Sequence[Ascent], scales: Sequence[Scales], number: int) -> dict[str, object]:
    """Where the runs stand after so many passes, as tensors and plain values."""
    parts = [
        {"now": parts_of(Member(run.mixture, scale)), "best": parts_of(Member(run.best, scale)), "curve": run.curve[:]}
        for run, scale in zip(runs, scales, strict=True)
    ]
    return {"number": number, "done": [run.done for run in runs], "runs": parts}


def _go_on(runs: Sequence[Ascent], begun: Start, finished: Finished) -> int:
    """Put the runs where a killed run stood; returns the passes that it has made."""
    found: Any = finished.get(_PASSES)
    if found is None:
        return 0
    for run, setting, done, parts in zip(runs, begun.settings, found["done"], found["runs"], strict=True):
        run.mixture, run.best = (member_of(parts[name], setting).mixture for name in ("now", "best"))
        run.curve, run.done = list(parts["curve"]), done
    return int(found["number"])


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
