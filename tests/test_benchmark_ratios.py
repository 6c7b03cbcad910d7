"""The history of ratios: what counts as worse, and what is written down."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import ratios


@pytest.fixture
def history(tmp_path, monkeypatch):
    file = tmp_path / "history.jsonl"
    records = [
        {"commit": f"c{k}", "date": "2026-01-01", "ratios": {"a": value}} for k, value in enumerate((9, 2, 3, 2, 9, 2))
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(ratios, "HISTORY", file)
    return file


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ratios.py", *arguments])
    return ratios.main()


def found(monkeypatch, *values):
    """Let the next measurements of the cases a and b have these values."""
    left = list(values)
    monkeypatch.setattr(ratios, "cases", lambda: {"a": None, "b": None})
    monkeypatch.setattr(ratios, "ratio", lambda case: left.pop(0))
    return left


def test_a_ratio_is_worse_if_three_measurements_say_so(history, monkeypatch, capsys):
    left = found(monkeypatch, 2.3, 2.5, 2.25, 7.0)
    assert run(monkeypatch) == 1
    assert not left and "slower by more than 10%: a\n" in capsys.readouterr().err
    left = found(monkeypatch, 2.3, 2.19, 7.0)  # the median of the last five is 2
    assert run(monkeypatch) == 0 and not left
    assert len(history.read_text().splitlines()) == 6


def test_a_record_is_added_and_shown(history, monkeypatch, capsys):
    found(monkeypatch, 1.5, 7.0)
    assert run(monkeypatch, "--record") == 0
    last = json.loads(history.read_text().splitlines()[-1])
    assert last["ratios"] == {"a": 1.5, "b": 7.0} and last["commit"] and last["date"] > "2026"
    capsys.readouterr()
    assert run(monkeypatch, "--table") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| commit | date | a | b |" and len(lines) == 9
    assert lines[2] == "| c0 | 2026-01-01 | 9.0 |  |" and lines[-1].endswith("| 1.5 | 7.0 |")


def test_cases_run_and_have_floors():
    with ratios.torch.no_grad():
        for name, case in {**ratios.lines(), **ratios.tables()}.items():
            assert case.run() is not None and case.floor() is not None, name
