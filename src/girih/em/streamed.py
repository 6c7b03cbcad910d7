"""Exact EM on rows without end: a sample chooses where to start, and statistics of all rows add up block by block.

One pass draws a uniform sample, counts, and checks. The starts, and the fit from the best of them, see the sample
alone, in memory; the model that they end with goes on over all rows, one pass for each exact evaluation. What holds for
rows in memory holds for these: the exact penalised NLL of all rows never increases. Several processes share the blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from girih._arrays import check_largest, check_observed
from girih._options import real
from girih.em.in_memory import Around, HeldOutRows, fit_rows, noise_bounds, saved_by, watching
from girih.em.iteration import Evaluation, Problem
from girih.em.loop import Loop
from girih.em.options import EMOptions
from girih.em.parameters import OverfitWarning, Trained, count_parameters, overfit_reason
from girih.em.runs import HeldOut
from girih.em.scaling import Scaling
from girih.errors import EmptyDataError, GirihError
from girih.inference import DGN, Model, Statistics, sufficient_statistics
from girih.streams import Blocks, Drawn, Processes, Sample, Total
from girih.training import Checkpoint, FitResult
from girih.training.options import held_out_count

SAMPLE = 10_000  # rows that choose the start


@dataclass(frozen=True)
class Survey:
    """A survey is what the first pass finds.

    Attributes:
        drawn: a uniform sample, its rows a tensor.
        rows: N.
        observed: `(D,)`, the observed entries of each column.
        fingerprint: a number that other rows do not have, whatever their order and the number of processes.
    """

    drawn: Drawn
    rows: int
    observed: Tensor
    fingerprint: int

    @staticmethod
    def of(dgn: DGN, blocks: Blocks, size: int, seed: int, processes: Processes) -> Survey:
        """Pass all rows.

        Raises:
            ShapeError, NonFiniteError: a block does not suit; the message names it.
            EmptyDataError: there are no rows, or none has an entry in some column.
        """

        def work() -> tuple[Sample, int, Tensor, int]:
            sample, rows, observed, mark = Sample(size, seed), 0, torch.zeros(dgn.output_dim, dtype=torch.long), 0
            for number, x in numbers(dgn, blocks, processes):
                sample.add(number, x)
                rows += len(x)
                observed += (~torch.isnan(x)).sum(0).cpu()
                mark = (mark + fingerprint(x)) % 2**64
            return sample, rows, observed, mark

        samples, rows, seen, marks = zip(*processes.gathered(work), strict=True)
        if not sum(rows):
            raise EmptyDataError("X has no rows; pass a stream with at least one block of them")
        observed = torch.stack(seen).sum(0)
        check_observed(torch.where(observed > 0, 0.0, torch.nan)[None], "X")
        return Survey(samples[0].drawn(samples[1:]), sum(rows), observed, sum(marks) % 2**64)


def numbers(dgn: DGN, blocks: Blocks, processes: Processes) -> Iterator[tuple[int, Tensor]]:
    """The checked blocks `(B, D)` of this process."""
    for number, block in blocks.read(processes.rank, processes.size):
        try:
            x = dgn.rows(block).detach()  # type: ignore[arg-type]
            check_largest(x, "X")
        except GirihError as error:
            raise type(error)(f"block {number} of X: {error}") from None
        yield number, x


def fingerprint(x: Tensor) -> int:
    """A sum over rows `(B, D)` of numbers that rows with other entries do not share, modulo 2^64."""
    values = x.cpu().numpy()
    bits = np.ascontiguousarray(np.where(np.isnan(values), np.nan, values)).view(np.uint64)
    odd = np.random.default_rng(0).integers(0, 2**63, bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = _mixed(bits * odd).sum(1, dtype=np.uint64)
    return int(_mixed(mixed).sum(dtype=np.uint64))


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(29))
    return mixed


class StreamedProblem(Problem):
    """Its E-step passes the blocks; its rows in memory are the sample.

    Args:
        dgn: the model, in the units of the scaling.
        x: the sample in these units, `(n, D)`.
        passes: that give the rows.
        options: of EM.
        floor: the least variances of the noise.
    """

    def __init__(self, dgn: DGN, x: Tensor, passes: Passes, options: EMOptions, floor: Tensor) -> None:
        super().__init__(dgn, x, x.new_ones(len(x)), options.prior, floor)
        self.passes, self.shared = passes, not passes.processes.alone

    def evaluate(self, index: Tensor | None = None) -> Evaluation:
        """The E-step; see `Problem`. Every process takes the parameters of the first."""
        if self.shared:
            self.restore(self.passes.processes.agreed(self.parameters))
        return super().evaluate(index)

    def expect(self, model: Model) -> Statistics:
        """The statistics of all rows."""

        def work() -> Total:
            total = Total()
            for x in self.passes.blocks(self.dgn):
                s = sufficient_statistics(model, x, x.new_ones(len(x)))
                total.add([getattr(s, field.name) for field in fields(s)])
            return total

        return Statistics(*self.passes.processes.total(work).values)


@dataclass(frozen=True)
class Passes:
    """They give the blocks in the units of EM, without the rows that are held out.

    Attributes:
        stream: the blocks.
        scaling: to the units of EM.
        left_out: the places of the rows that are held out, by block.
        processes: that share the blocks.
    """

    stream: Blocks
    scaling: Scaling
    left_out: Mapping[int, np.ndarray]
    processes: Processes

    def blocks(self, dgn: DGN) -> Iterator[Tensor]:
        """One pass over what is this process's."""
        for number, x in numbers(dgn, self.stream, self.processes):
            places = self.left_out.get(number)
            if places is not None:
                kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
                kept[torch.from_numpy(places)] = False
                x = x[kept]
            if len(x):
                yield self.scaling.apply(x)


class _Shared(Checkpoint):
    """A checkpoint of several processes: the first writes it, and all go on from what it reads."""

    def __init__(self, checkpoint: Checkpoint, processes: Processes) -> None:
        self.__dict__.update(vars(checkpoint))
        self._processes = processes

    def read(self) -> dict[str, Any] | None:
        return self._processes.agreed(super().read)

    def write(self, contents: Mapping[str, Any]) -> None:
        if self._processes.leads:
            super().write(contents)


def fit_stream(dgn: DGN, blocks: Blocks, validation: object, options: EMOptions, around: Around) -> FitResult:
    """Fit to blocks that are read again in every pass; see `girih.em.fit_em`."""
    Trained.of(dgn.net, dgn.trace)
    processes = Processes.now()
    around = replace(around, progress=around.progress and processes.leads)
    options = replace(options, seed=processes.agreed(lambda: options.seed))
    found = Survey.of(dgn, blocks, SAMPLE, options.seed, processes)
    held, chosen = _held_out(dgn, found.drawn, validation)
    x = found.drawn.rows[torch.from_numpy(~chosen)]
    weight = x.new_ones(len(x))
    checkpoint = None
    if around.checkpoint is not None:
        seconds = real(around.seconds, "checkpoint_seconds", positive=False)
        checkpoint = _Shared(Checkpoint(around.checkpoint, seconds=seconds), processes)
    under_way = checkpoint is not None and processes.agreed(lambda: checkpoint.path.exists())
    if options.n_init and not under_way:
        first = _start(dgn, x, weight, held, options, around)
        if first.ended == "interrupted":
            if not processes.alone:
                raise KeyboardInterrupt
            return first
    scaling = Scaling.for_fit(dgn, x, weight, rescale=options.prior is None)
    bounds = noise_bounds(dgn, x, weight, options, scaling)
    out = found.drawn.rows[torch.from_numpy(chosen)]
    observed = (found.observed - (~torch.isnan(out)).sum(0).cpu()).double() / (found.rows - len(out))
    shift = float(observed @ scaling.scale.log().cpu())
    going_on = replace(options, n_init=0, batch_size=None)
    with scaling.inside(dgn):
        passes = Passes(blocks, scaling, found.drawn.of_block(chosen), processes)
        problem = StreamedProblem(dgn, scaling.apply(x), passes, options, bounds.floor)
        bounds.hold(problem, options)
        watched = None if held is None else HeldOut.of(*held, scaling)
        if checkpoint is not None:
            data = f"{found.rows} rows, {found.fingerprint:016x}"
            checkpoint.settings = saved_by(problem, data, options, watched)
        watch = watching(dgn, scaling, shift, around.callback if processes.leads else None)
        result = Loop(problem, going_on, watch, checkpoint, watched).run(around.progress, shift)
    reason = overfit_reason(count_parameters(dgn, options.learn_prior), x, weight) if found.rows <= SAMPLE else None
    if reason is not None:
        warnings.warn(reason, OverfitWarning, stacklevel=3)
    return replace(result, overfit=reason)


def _start(
    dgn: DGN, x: Tensor, weight: Tensor, held: HeldOutRows | None, options: EMOptions, around: Around
) -> FitResult:
    """The fit to the sample; whether it has converged says nothing yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit_rows(dgn, x, weight, held, options, replace(around, checkpoint=None, callback=None))


def _held_out(dgn: DGN, drawn: Drawn, validation: object) -> tuple[HeldOutRows | None, np.ndarray]:
    """The rows that are held out with their weights, and which rows of the sample they are, `(n,)`."""
    nothing = np.zeros(len(drawn), dtype=bool)
    if validation is None:
        return None, nothing
    if not isinstance(validation, float | int):
        rows = dgn.rows(validation).detach()  # type: ignore[arg-type]
        check_largest(rows, "validation")
        return (rows, rows.new_ones(len(rows))), nothing
    number = held_out_count(validation, len(drawn), f"the {len(drawn)} rows of the sample")
    chosen = drawn.least(number)
    rows = drawn.rows[torch.from_numpy(chosen)]
    return (rows, rows.new_ones(number)), chosen
