"""What a run writes while it trains: the history, whatever happens on the way."""

import csv
import math
import sys

import pytest

import girih
from girih.errors import ParameterError

from .helpers import X, fit, line, noisy

OPTIONS = {"max_epochs": 60, "record_every": 10, "record": lambda model: {"weight": float(model.weight.detach())}}


class CrashError(Exception):
    pass


def table(folder):
    """The columns of the csv log."""
    with open(folder / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: [float(entry[name]) for entry in lines] for name in lines[0]}


def events(folder):
    """The scalars that TensorBoard shows: steps and values by name."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    shown = accumulator(str(folder))
    shown.Reload()
    names = shown.Tags()["scalars"]
    return {name: [(entry.step, entry.value) for entry in shown.Scalars(name)] for name in names}


def check(folder, history, log_format):
    if log_format == "csv":
        found = table(folder)
        assert found.keys() == history.keys()
        for name, column in history.items():
            assert found[name] == pytest.approx(list(column), nan_ok=True, rel=0, abs=0)
        return
    found = events(folder)
    assert found.keys() == history.keys() - {"step"}
    for name, points in found.items():
        expected = [(s, v) for s, v in zip(history["step"], history[name], strict=True) if not math.isnan(v)]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)


@pytest.mark.parametrize("log_format", ["csv", "tensorboard"])
def test_the_log_is_the_history(tmp_path, log_format):
    if log_format == "tensorboard":
        pytest.importorskip("tensorboard")
    run = fit(line(), log=tmp_path / "new" / "log", log_format=log_format, **OPTIONS)
    assert run.history["step"].tolist() == list(range(0, 61, 10))
    check(tmp_path / "new" / "log", run.history, log_format)
    again = fit(line(), log=tmp_path / "new" / "log", log_format=log_format, **{**OPTIONS, "max_epochs": 25})
    check(tmp_path / "new" / "log", again.history, log_format)  # the earlier one is replaced


@pytest.mark.parametrize("log_format", ["csv", "tensorboard"])
def test_a_run_that_goes_on_logs_no_step_twice(tmp_path, log_format):
    if log_format == "tensorboard":
        pytest.importorskip("tensorboard")
    options = {**OPTIONS, "log": tmp_path / "log", "log_format": log_format, "checkpoint": tmp_path / "log" / "ckpt"}
    calls = []

    def crashing(model, x):
        calls.append(1)
        if len(calls) == 30:
            raise CrashError
        return noisy(model, x)

    first = {**options, "max_epochs": 25}
    check(tmp_path / "log", fit(line(), **first).history, log_format)  # ends off the grid, at 25
    with pytest.raises(CrashError):  # logs 30, 40 and 50, saves none of them
        fit(line(), crashing, checkpoint_seconds=1e6, **options)
    expected = fit(line(), **OPTIONS)
    run = fit(line(), **options)
    assert run.history["weight"].tolist() == expected.history["weight"].tolist()
    check(tmp_path / "log", run.history, log_format)


def test_entries_are_on_disk_when_they_are_taken(tmp_path):
    seen = []

    def record(model):
        path = tmp_path / "metrics.csv"
        seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
        return {}

    fit(line(), log=tmp_path, max_epochs=30, record=record, record_every=10)
    assert seen == [0, 2, 3, 4]  # a header and the entries before


def test_other_trainers_log_too(tmp_path):
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.5)
    run = girih.train(dgn, [[0.0, 1.0], [1.0, 0.5], [0.3, 0.2]], max_epochs=20, log=tmp_path / "dgn")
    check(tmp_path / "dgn", run.history, "csv")
    gan = girih.gan.GAN(girih.mlp([1, 2], seed=0), hidden=(4,), seed=0)
    run = gan.fit([[0.0, 1.0], [1.0, 0.5]], max_epochs=6, record_every=3, log=tmp_path / "gan", progress=False)
    assert sorted(table(tmp_path / "gan")) == ["generator_loss", "loss", "seconds", "step"]
    check(tmp_path / "gan", run.history, "csv")


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="csv, tensorboard; got 'wandb'"):
        fit(line(), log=tmp_path, log_format="wandb")


def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ParameterError, match="pip install tensorboard"):
        fit(line(), log=tmp_path, log_format="tensorboard")


def test_rows_stay_as_they_are(tmp_path):
    before = X.clone()
    fit(line(), log=tmp_path)
    assert (before == X).all()
