"""Sums and samples of a stream are the same however its blocks are divided."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from girih.errors import ProcessError, ShapeError
from girih.streams import Processes, Sample, Total
from girih.streams import processes as module


def test_sums_have_the_digits_of_exact_ones_in_every_order():
    rng = np.random.default_rng(0)
    values = rng.normal(size=3000) * 10.0 ** rng.integers(-12, 12, 3000)
    exact = float(sum(map(Fraction, values.tolist())))

    def added(order, parts):
        totals = [Total() for _ in range(parts)]
        for place, k in enumerate(order):
            totals[place % parts].add([torch.tensor([values[k], 1.0], dtype=torch.float64)])
        whole = Total()
        for one in totals:
            whole.join(one)
        return whole.values[0].tolist()

    assert added(range(3000), 1) == [exact, 3000.0]
    for parts in (1, 2, 7):
        assert added(rng.permutation(3000), parts) == [exact, 3000.0]
    assert abs(sum(values) - exact) > 0.0  # plain sums do not
    nothing = Total()
    nothing.join(Total())
    assert nothing.values == []


def test_sums_that_are_infinite_stay_so():
    total = Total()
    for value in (1.0, np.inf, 2.0):
        total.add([torch.tensor(value, dtype=torch.float64)])
    assert total.values[0] == np.inf


BLOCKS = [np.stack((np.full(n, i), np.arange(n)), 1) for i, n in enumerate((40, 1, 0, 300, 17))]


@pytest.mark.parametrize("as_block", [np.asarray, pd.DataFrame, torch.from_numpy, lambda a: pa.table({"i": a[:, 0]})])
def test_a_sample_is_the_same_for_any_number_of_processes(as_block):
    def drawn(size, ranks):
        samples = [Sample(size, -5) for _ in range(ranks)]
        for number, block in enumerate(BLOCKS):
            samples[number % ranks].add(number, as_block(block))
        return samples[0].drawn(samples[1:])

    for size in (1, 20, 400):
        one = drawn(size, 1)
        assert len(one) == min(size, 358) == len(one.rows)
        for ranks in (2, 3):
            other = drawn(size, ranks)
            assert np.array_equal(one.block, other.block) and np.array_equal(one.place, other.place)
        first = [BLOCKS[b][p, 0] for b, p in zip(one.block, one.place, strict=True)]
        rows = one.rows["i"].to_numpy() if hasattr(one.rows, "column_names") else np.asarray(one.rows)[:, 0]
        assert np.array_equal(rows, first)


def test_samples_are_uniform_and_so_are_their_parts():
    counts = np.zeros(358)
    held = np.zeros(358)
    for seed in range(400):
        sample = Sample(60, seed)
        for number, block in enumerate(BLOCKS):
            sample.add(number, block)
        one = sample.drawn()
        at = np.array([0, 40, 41, 41, 341])[one.block] + one.place
        counts[at] += 1
        held[at[one.least(20)]] += 1
    for found, share in ((counts, 60 / 358), (held, 20 / 358)):
        z = (found - 400 * share) / np.sqrt(400 * share * (1 - share))
        assert abs(z).max() < 4.5 and abs(z[:40].mean()) < 4.5 / np.sqrt(40)


def test_alone_and_in_company(monkeypatch):
    def work():
        raise ShapeError("no table")

    alone = Processes.now()
    assert alone.alone and alone.leads and alone.gathered(lambda: 3) == [3] and alone.agreed(lambda: 4) == 4

    def gather(out, mine, other):
        out[:] = [mine, other]

    pair = Processes(0, 2)
    monkeypatch.setattr(module.dist, "all_gather_object", lambda out, mine: gather(out, mine, 8))
    assert pair.gathered(lambda: 7) == [7, 8] and pair.agreed(lambda: 7) == 7
    with pytest.raises(ShapeError, match=r"^no table$"):
        pair.gathered(work)
    failure = module._Failure(1, ShapeError, "no table")
    monkeypatch.setattr(module.dist, "all_gather_object", lambda out, mine: gather(out, mine, failure))
    with pytest.raises(ShapeError, match="process 1 of 2 stopped: no table"):
        pair.gathered(lambda: 7)

    def gone(out, mine):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(module.dist, "all_gather_object", gone)
    with pytest.raises(ProcessError, match=r"process 0 of 2 waited for another one .*Connection closed by peer"):
        pair.gathered(lambda: 7)
