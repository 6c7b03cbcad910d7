"""Settings that can be changed, and runs that are kept."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from girih.errors import ModelFileError, ParameterError
from girih.training import FitResult
from girih_papers.files import keeping, whole_file, write_json
from girih_papers.jobs import completed, run_jobs
from girih_papers.settings import changed

CALLS = []


@dataclass(frozen=True)
class Settings:
    epochs: int = 300
    rate: float = 1e-4
    data: str = "mnist"
    widths: tuple[int, ...] = (8, 16)


def square(number, checkpoint):
    CALLS.append(number)
    checkpoint.write_text("half way")
    return {"square": number**2, "list": np.arange(number)}


def fails_at_two(number):
    if number == 2:
        raise ParameterError("two is refused")
    return {"number": number}


def test_texts_become_what_the_settings_hold():
    new = changed(Settings(), {"epochs": "30", "rate": "0.001", "data": "a,b.npy", "widths": "4, 6"})
    assert new == Settings(30, 0.001, "a,b.npy", (4, 6))
    assert changed(Settings(), {}) == Settings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "3"}, "no setting 'epoch'; known are epochs, rate, data, widths"),
        ({"epochs": "3.5"}, r"epochs is a whole number, as 300; got '3\.5'"),
        ({"rate": "fast"}, "rate is a number"),
        ({"widths": "4,x"}, "widths is a whole number"),
        ({"epochs": "-1"}, "must be 0 or more"),
        ({"rate": "nan"}, "must be 0 or more and finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ParameterError, match=message):
        changed(Settings(), change)


def test_a_job_is_done_once_and_its_checkpoint_removed(tmp_path):
    CALLS.clear()
    jobs = [{"number": n} for n in (3, 1)]
    for _ in range(2):
        results = run_jobs(square, jobs, tmp_path, "squares", quick=True, progress=False)
        assert [int(r["square"]) for r in results] == [9, 1] and results[0]["list"].tolist() == [0, 1, 2]
    run_jobs(square, [*jobs, {"number": 2}], tmp_path, "squares", quick=True, progress=False)
    assert CALLS == [3, 1, 2]
    assert {path.suffix for path in (tmp_path / "runs").iterdir()} == {".npz"}


def test_what_is_finished_survives_a_job_that_fails(tmp_path):
    with pytest.raises(ParameterError, match="two is refused"):
        run_jobs(fails_at_two, [{"number": n} for n in (1, 2, 3)], tmp_path, "x", quick=True, progress=False)
    assert len(list((tmp_path / "runs").glob("*.npz"))) == 1


def test_runs_outlive_the_folder_that_results_go_to(tmp_path):
    stage, home = tmp_path / "stage", tmp_path / "home"
    with keeping(stage, home):
        run_jobs(fails_at_two, [{"number": 1}], stage, "x", quick=True, progress=False)
        run_jobs(fails_at_two, [{"number": 1}], tmp_path / "other", "x", quick=True, progress=False)
    assert len(list((home / "runs").glob("*.npz"))) == len(list((tmp_path / "other" / "runs").glob("*.npz"))) == 1
    assert not stage.exists()


def test_files_are_whole_or_absent(tmp_path):
    write_json(tmp_path / "a.json", {"curve": (1.0, float("inf")), 2: np.nan})
    with pytest.raises(ParameterError), whole_file(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise ParameterError
    assert (tmp_path / "a.json").read_text() == '{\n  "curve": [\n    1.0,\n    null\n  ],\n  "2": null\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@dataclass(frozen=True, eq=False)
class Rows:
    rows: np.ndarray
    rate: float


def total(data):
    CALLS.append(data)
    return {"total": data.rows.sum() * data.rate}


def test_jobs_are_told_apart_by_their_arrays_and_dataclasses(tmp_path):
    CALLS.clear()
    for _ in range(2):
        jobs = [{"data": Rows(np.arange(4.0), 1.0)}, {"data": Rows(np.arange(4.0), 2.0)}]
        jobs += [{"data": Rows(np.array([0.0, 1.0, 2.0, 4.0]), 1.0)}, {"data": Rows(np.arange(4.0).reshape(2, 2), 1.0)}]
        results = run_jobs(total, jobs, tmp_path, "x", quick=True, progress=False)
        assert [float(one["total"]) for one in results] == [6.0, 12.0, 7.0, 6.0]
    assert len(CALLS) == 4


def test_a_damaged_result_is_named(tmp_path):
    run_jobs(fails_at_two, [{"number": 1}], tmp_path, "x", quick=True, progress=False)
    (path,) = (tmp_path / "runs").iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelFileError, match=r"is damaged .* delete it"):
        run_jobs(fails_at_two, [{"number": 1}], tmp_path, "x", quick=True, progress=False)


def test_processes_give_the_same(tmp_path):
    jobs = [{"number": n} for n in (1, 3, 4)]
    results = run_jobs(fails_at_two, jobs, tmp_path, "x", quick=False, progress=False)
    assert [int(r["number"]) for r in results] == [1, 3, 4]


def test_a_run_that_was_cut_short_is_no_result():
    run = FitResult({}, steps=3, seconds=0.1, ended="max_steps")
    assert completed(run) is run
    with pytest.raises(KeyboardInterrupt):
        completed(replace(run, ended="interrupted"))
