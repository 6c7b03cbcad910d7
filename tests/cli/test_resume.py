"""Fits that are interrupted, killed and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import girih.em.loop as em
from effort import FEWEST, try_few_settings
from girih.tables.fitter import Fitter

LONG = ("fit", "circle", "--rows", "60", "--hidden", "4", "--max-iter", "150", "--n-init", "2", "--tol", "0")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("girih.report.pictures.draw_fit", lambda *args, **options: [])


@pytest.fixture
def stop_after(monkeypatch):
    """Press Ctrl-C in iteration k."""
    step = em.Loop._step

    def set_up(k):
        left = [k]

        def stopping(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return step(*arguments)

        monkeypatch.setattr(em.Loop, "_step", stopping)

    yield set_up


def test_ctrl_c_keeps_the_best_model_and_the_same_command_goes_on(girih, stop_after, monkeypatch):
    straight = girih(*LONG, "--out", "straight", "--json").json
    step = em.Loop._step
    stop_after(70)
    done = girih(*LONG, "--out", "o", "--json")
    assert done.code == 130
    assert done.json["interrupted"] and done.json["n_iter"] >= 25
    assert "note: interrupted after" in done.err and "note: the same command goes on from here" in done.err
    out = Path("o")
    assert (out / "report.html").exists() and (out / "checkpoint.safetensors").exists()
    assert girih("score", "o", "circle", "--json").code == 0

    monkeypatch.setattr(em.Loop, "_step", step)
    done = girih(*LONG, "--out", "o", "--json")
    assert done.code == 0 and "o holds an unfinished fit (2 starts tried, " in done.err
    assert done.json["resumed"] and not done.json["interrupted"]
    assert done.json["nll_per_row"] == pytest.approx(straight["nll_per_row"], abs=1e-10)
    assert not (out / "checkpoint.safetensors").exists()


def test_ctrl_c_before_there_is_a_model(girih, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("girih.em.loop.be_curve", stop)
    done = girih(*LONG, "--json")
    assert done.code == 130 and done.json == {"error": "interrupted"} and done.err == "girih: interrupted\n"


def test_ctrl_c_while_drawing_leaves_model_and_numbers(girih, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("girih.report.pictures.draw_fit", stop)
    assert girih("fit", "circle", "--rows", 20, "--max-iter", 3, "--n-init", 1, "--out", "o").code == 130
    assert girih("info", "o").code == 0 and Path("o/metrics.json").exists() and Path("o/scores.csv").exists()


def test_a_killed_fit_goes_on_and_ends_with_the_same_numbers(girih):
    straight = girih(*LONG, "--out", "straight", "--json").json
    process = subprocess.Popen(
        [sys.executable, "-m", "girih", *LONG, "--out", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoint, deadline = Path("killed/checkpoint.safetensors"), time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Path("killed/model").exists() and not Path("killed/metrics.json").exists()
    done = girih(*LONG, "--out", "killed", "--json")
    assert done.code == 0 and "note: killed holds an unfinished fit (" in done.err
    assert done.json["resumed"]
    assert done.json["nll_per_row"] == pytest.approx(straight["nll_per_row"], abs=1e-10)
    assert done.json["n_iter"] == straight["n_iter"]


def test_the_fit_of_a_table_goes_on_too(girih, monkeypatch):
    try_few_settings(monkeypatch, **FEWEST)
    for name in ("draw_table", "rivals"):
        monkeypatch.setattr(f"girih.cli.table_fit.{name}", lambda *arguments: [])
    table = ("fit", "circle", "--rows", "60", "--model", "table")
    straight = girih(*table, "--out", "straight", "--json").json
    with monkeypatch.context() as patch:
        patch.setattr("girih.tables.choice.Choice", _press_ctrl_c)  # when all folds are fitted
        assert girih(*table, "--out", "o").code == 130
    assert Path("o/checkpoint.safetensors").exists() and not Path("o/model").exists()
    done = girih(*table, "--seed", 1, "--out", "o")
    assert done.code == 2 and "the unfinished fit cannot be continued" in done.error and "--restart" in done.error
    monkeypatch.setattr("girih.tables.fitter.Fitter.fit", _at_most(2, Fitter.fit))  # the best, and the longest curve
    done = girih(*table, "--out", "o", "--json")
    assert done.code == 0 and "note: o holds an unfinished fit; going on from there" in done.err
    assert done.json["held_out_nll"] == straight["held_out_nll"] and not Path("o/checkpoint.safetensors").exists()


def _press_ctrl_c(*arguments):
    raise KeyboardInterrupt


def _at_most(calls, function):
    def limited(*arguments):
        limited.left -= 1
        assert limited.left >= 0
        return function(*arguments)

    limited.left = calls
    return limited


def test_an_unfinished_fit_with_other_settings_is_not_taken_up(girih, stop_after, monkeypatch):
    step = em.Loop._step
    stop_after(20)
    assert girih(*LONG, "--out", "o").code == 130
    monkeypatch.setattr(em.Loop, "_step", step)
    other = ("fit", "circle", "--rows", "61", "--hidden", "3", "--max-iter", "3", "--n-init", "1", "--out", "o")
    done = girih(*other)
    assert done.code == 2
    assert "belongs to a run with max_iter=" in done.error and "--restart" in done.error
    done = girih(*other, "--restart", "--json")
    assert done.code == 0 and not done.json["resumed"]


def test_a_damaged_checkpoint_is_named(girih, stop_after):
    stop_after(20)
    girih(*LONG, "--out", "o")
    os.truncate("o/checkpoint.safetensors", 50)
    done = girih(*LONG, "--out", "o")
    assert done.code == 2 and "cannot be continued" in done.error and "--restart" in done.error


def test_metrics_of_an_interrupted_fit_are_those_of_the_saved_model(girih, stop_after):
    stop_after(40)
    girih(*LONG, "--out", "o")
    metrics = json.loads(Path("o/metrics.json").read_text())
    score = girih("score", "o", "circle", "--rows", "60", "--json").json
    assert -score["mean"] == pytest.approx(metrics["nll_per_row"], abs=1e-10)
