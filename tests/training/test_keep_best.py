"""`keep_best`: a run that is left where the watched number was lowest."""

import pytest
import torch

from girih.errors import NonFiniteError, ParameterError

from .helpers import check_same_history, fit, line, noisy, same, weights

GAPS = [5.0, 3.0, 1.0, 2.0, 4.0, 6.0, 7.0]
OPTIONS = {"max_epochs": 60, "record_every": 10, "monitor": "gap", "keep_best": True}


class Gaps:
    """Gives the gaps one by one, and remembers the weights at each."""

    def __init__(self, start=0):
        self.states, self.at = {}, start

    def __call__(self, model):
        self.states[self.at] = weights(model)
        self.at += 1
        return {"gap": GAPS[self.at - 1]}


def test_the_best_recorded_parameters_are_kept():
    model, record = line(), Gaps()
    run = fit(model, record=record, **OPTIONS)
    assert run.steps == 60 and run.history["gap"].tolist() == GAPS
    assert same(weights(model), record.states[2]) and not same(record.states[2], record.states[6])
    last, record = line(), Gaps()
    fit(last, record=record, **{**OPTIONS, "keep_best": False})
    assert same(weights(last), record.states[6])


def test_they_are_kept_by_a_run_that_fails():
    calls, model, record = [], line(), Gaps()

    def loss(model, x):
        calls.append(1)
        return noisy(model, x) * (torch.nan if len(calls) == 45 else 1.0)

    with pytest.raises(NonFiniteError, match="step 45"):
        fit(model, loss, record=record, **OPTIONS)
    assert same(weights(model), record.states[2])


def test_a_run_that_goes_on_remembers_them(tmp_path):
    path, model, record = tmp_path / "ckpt", line(), Gaps()
    first = fit(model, record=record, checkpoint=path, **{**OPTIONS, "max_epochs": 40})
    best = record.states[2]
    assert same(weights(model), best)
    for again in (line(), model):  # from the initial parameters, or from those that were kept
        record = Gaps(start=5)
        check_same_history(
            fit(again, record=record, checkpoint=path, **{**OPTIONS, "max_epochs": 40}).history, first.history
        )
        assert same(weights(again), best)
    run = fit(model, record=record, checkpoint=path, **OPTIONS)
    expected = fit(line(), record=Gaps(), **OPTIONS)
    check_same_history(run.history, expected.history)
    assert same(weights(model), best)
    with pytest.raises(ParameterError, match="keep_best=True, but now keep_best=False"):
        fit(line(), record=Gaps(), checkpoint=path, **{**OPTIONS, "keep_best": False})


def test_the_training_loss_can_be_watched():
    model, states = line(), []
    run = fit(
        model,
        record=lambda model: (states.append(weights(model)), {})[1],
        lr=1.5,
        record_every=3,
        keep_best=True,
    )
    best = run.history["loss"][1:].argmin() + 1
    assert same(weights(model), states[best])


def test_a_number_that_is_not_recorded_cannot_be_watched():
    with pytest.raises(ParameterError, match="'gap' is not recorded; choose one of loss"):
        fit(line(), **OPTIONS)
