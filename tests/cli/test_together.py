"""Results of a run appear together or not at all, whatever ends it; and a command that is asked to end ends cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer

import girih as library
from effort import cases
from girih._staging import current, temporary_name
from girih.cli import folder, results, terminal
from girih.errors import ModelFileError
from girih.report import pictures
from girih.training import Checkpoint, fit_gradient
from kills import at_event, child, kill, names

SMALL = ("fit", "circle", "--rows", 20, "--max-iter", 4, "--n-init", 1, "--hidden", "3", "--out", "o")
LONG = ("fit", "circle", "--rows", "40", "--hidden", "4", "--max-iter", "1000000", "--n-init", "1", "--tol", "0")

unix = pytest.mark.skipif(os.name == "nt", reason="signals and forks")


@pytest.fixture(autouse=True)
def _one_quick_picture(monkeypatch):
    def draw(out, est, dataset, log_p, standard_units=False):
        (out / "nll_curve.png").write_bytes(log_p.tobytes())
        return [pictures.Picture(out / "nll_curve.png", "a picture", "of the scores")]

    monkeypatch.setattr(pictures, "draw_fit", draw)


def write_set(number):
    """What a run leaves: files, a model, and a picture that only the first run has."""
    out = folder.OutputFolder(Path("o"), "fit", ("a.json", "b.csv", "picture.png"))
    with out.results() as stage:
        (stage / "a.json").write_text(str(number))
        library.save(library.DGN(library.mlp([1, 3, 2], seed=number), noise=1.0 + number), stage / "model")
        if number == 0:
            (stage / "picture.png").write_text(str(number))
        (stage / "b.csv").write_text(str(number))


def read_set():
    """The number of the set that counts; what is mixed fails."""
    number = int(current(Path("o/a.json")).read_text())
    model = library.load("o/model")
    assert int(current(Path("o/b.csv")).read_text()) == number and model.noise.item() == 1.0 + number
    return number


@unix
@pytest.mark.fuzz
def test_a_kill_at_any_step_leaves_the_old_set_or_the_new_one():
    found, visible = [], ["a.json", "b.csv", "model", "picture.png"]
    for step in range(0, 200, cases(5, 1)):
        write_set(0)
        assert [name for name in names("o") if not name.startswith(".")] == visible

        def work(step=step):
            at_event(step, "o/", kill)
            write_set(1)

        status = child(work)
        assert status in (0, -signal.SIGKILL)
        found.append(read_set())
        if status == 0:
            break
        folder.OutputFolder(Path("o"), "score", ("summary.json",))  # any later run ends what was begun
        assert read_set() == found[-1] == int(Path("o/a.json").read_text())
        assert Path("o/picture.png").exists() == (found[-1] == 0)
        assert names("o/model") == ["config.json", "model.safetensors"]
        hidden = [name for name in names("o") if name.startswith(".")]
        assert hidden == [".girih.json"]
    assert status == 0 and found == sorted(found) and found[0] == 0 and found[-2] == 1


FAILURES = {
    "model": (library, "save", 1),
    "numbers": (results, "write_json", 2),
    "scores": (results, "write_csv", 1),
    "pictures": (pictures, "draw_fit", 1),
    "report": (results, "write_text", 1),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_disk_that_fills_up_leaves_the_results_of_the_run_before(girih, case, monkeypatch):
    assert girih(*SMALL).code == 0
    before = {path: path.read_bytes() for path in sorted(Path("o").rglob("*")) if path.is_file()}
    module, name, at = FAILURES[case]
    original, calls = getattr(module, name), []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) == at:
            raise OSError(28, "No space left on device", str(arguments[0]))
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        failed = girih(*SMALL, "--seed", 1)
    assert failed.code == 2 and "No space left on device" in failed.error and "-girih-" not in failed.error
    after = {path: path.read_bytes() for path in sorted(Path("o").rglob("*")) if path.is_file()}
    checkpoint = Path("o/checkpoint.safetensors")
    assert after.pop(checkpoint) and {**after, Path("o/.girih.json"): b""} == {**before, Path("o/.girih.json"): b""}
    done = girih(*SMALL, "--seed", 1, "--json")
    assert done.code == 0 and done.json["resumed"] and not checkpoint.exists()
    assert done.json["nll_per_row"] != json.loads(before[Path("o/metrics.json")])["nll_per_row"]


def test_ctrl_c_while_drawing_leaves_no_report_of_the_run_before(girih, monkeypatch):
    assert girih(*SMALL).code == 0
    assert Path("o/report.html").exists() and Path("o/nll_curve.png").exists()

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("girih.report.pictures.draw_fit", stop)
    assert girih(*SMALL, "--seed", 1).code == 130
    metrics, scores = json.loads(Path("o/metrics.json").read_text()), pd.read_csv("o/scores.csv")
    assert metrics["settings"]["seed"] == 1 and -scores["log_p"].mean() == pytest.approx(metrics["nll_per_row"])
    assert not Path("o/report.html").exists() and not Path("o/nll_curve.png").exists()


@unix
def test_a_fit_that_is_asked_to_end_keeps_its_best_model_and_checkpoint(girih):
    code = "import girih.report.pictures as p; p.draw_fit = lambda *_, **__: []; from girih.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *LONG, "--out", "o"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    checkpoint, deadline = Path("o/checkpoint.safetensors"), time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "note: interrupted after" in said and "Traceback" not in said
    assert checkpoint.exists() and Path("o/report.html").exists()
    assert girih("score", "o", "circle", "--rows", 5, "--json").code == 0
    assert [name for name in names("o") if name.startswith(".")] == [".girih.json"]


@unix
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_asked_to_end_before_there_is_a_model(girih, name, status, monkeypatch):
    def stop(*arguments):
        signal.raise_signal(getattr(signal, name))

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("girih.em.loop.be_curve", stop)
    done = girih(*SMALL, "--json")
    assert done.code == status and done.json == {"error": "terminated"} and done.err == "girih: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


@unix
def test_training_within_a_command_saves_its_checkpoint_and_ends(capsys):
    loss_of = lambda net, rows: net(rows).square()  # noqa: E731

    def loss(net, rows):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return loss_of(net, rows)

    calls, x = [], torch.ones(8, 1, dtype=torch.float64)

    @terminal.command
    def train():
        fit_gradient(library.mlp([1, 1], seed=0), x, loss=loss, max_epochs=500, checkpoint="run.ckpt", progress=False)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended:
        train()
    assert ended.value.exit_code == 143 and capsys.readouterr().err == "girih: terminated\n"
    assert Checkpoint("run.ckpt").read()["steps"] == 5
    assert signal.getsignal(signal.SIGTERM) is before


@unix
def test_a_handler_of_the_program_around_stays(girih):
    def handler(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert girih(*SMALL).code == 0
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@unix
def test_temporary_files_of_a_killed_run_go_with_the_next_and_those_of_living_ones_stay(girih):
    assert girih(*SMALL).code == 0

    def killed():
        with folder.OutputFolder(Path("o"), "fit", ()).results() as stage:
            (stage / "marginal.png").write_text("half of it")
            kill()

    def killed_in_a_checkpoint():
        Path("o", temporary_name("checkpoint.safetensors")).touch()
        kill()

    before = len(names("o"))
    assert child(killed) == child(killed_in_a_checkpoint) == -signal.SIGKILL and len(names("o")) == before + 2
    living = Path("o", temporary_name("picture.png"))
    living.touch()
    assert girih(*SMALL).code == 0
    assert [name for name in names("o") if name.startswith(".")] == sorted([".girih.json", living.name])


def test_a_model_behind_a_link_is_not_written_through(girih):
    assert girih(*SMALL).code == 0
    Path("elsewhere").mkdir()
    os.rename("o/model", "elsewhere/model")
    Path("o/model").symlink_to(Path("elsewhere/model").resolve())
    done = girih(*SMALL)
    assert done.code == 2 and "is a link; move it away" in done.error


def test_notes_that_are_no_files_are_left_alone(girih):
    """A pipe in place of the notes on the data would never end."""
    assert girih(*SMALL).code == 0
    for name in ("data.json", "metrics.json"):
        os.unlink(f"o/{name}")
        os.mkfifo(f"o/{name}")
    assert girih("info", "o").code == 0
    Path("o/model/config.json").unlink()
    with pytest.raises(ModelFileError):
        library.load("o/model")
