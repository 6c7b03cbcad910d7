"""The parts of the trainer that work on their own."""

import math

import torch

from girih.training import Batches, Patience, digest


def test_batches_do_not_depend_on_the_order_of_asking():
    forward, backward = Batches(10, 4, seed=3), Batches(10, 4, seed=3)
    expected = [forward.index(step).tolist() for step in range(9)]
    assert [backward.index(step).tolist() for step in reversed(range(9))] == expected[::-1]


def test_batches_of_other_seeds_and_passes_differ():
    orders = {tuple(Batches(50, 50, seed).index(step).tolist()) for seed in (-1, 0, 1, 2**62) for step in range(4)}
    assert len(orders) == 16
    assert Batches(5, 100, seed=0).full


def test_patience_watches_the_nll_where_there_is_one():
    stopping = Patience(2)
    entries = [{"nll": 1.0, "loss": value} for value in (5.0, 4.0, 3.0)]
    assert [stopping.update(entry) for entry in entries] == [False, False, True]
    stopping = Patience(2, monitor="loss")
    assert not any(stopping.update(entry) for entry in entries)


def test_patience_waits_in_a_row_and_ignores_the_loss_before_the_first_step():
    stopping = Patience(2, min_improvement=0.1)
    losses = [math.nan, 1.0, 0.95, 0.5, 0.45, 0.42]
    assert [stopping.update({"loss": value}) for value in losses] == [False, False, False, False, False, True]


def test_patience_measures_small_values_in_nats():
    stopping = Patience(1, min_improvement=0.01)
    assert not stopping.update({"nll": 0.001})
    assert stopping.update({"nll": -0.005})  # a fall of 0.006 nats, though six times the value
    far = Patience(1, min_improvement=0.01)
    far.update({"nll": -1000.0})
    assert far.update({"nll": -1005.0})
    assert not Patience(None).update({"nll": 1.0})


def test_digest_sees_values_shapes_and_types():
    zeros = torch.zeros(4)
    others = [torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64), torch.tensor([0.0, 0, 0, 1]), torch.zeros(())]
    assert len({digest(zeros), *map(digest, others)}) == 5
    assert digest(zeros) == digest(torch.zeros(8)[::2])
