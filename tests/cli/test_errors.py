"""What cannot be done ends with one line on standard error, exit code 2, and never a traceback."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from girih.cli import folder
from tests.cli.conftest import QUICK, make_table

FILES = {
    "short.csv": "a,b\n1,2\n3\n",
    "header.csv": "a,b\n",
    "nothing.csv": "",
    "infinite.csv": "a,b\n1,inf\n2,3\n",
    "column.csv": "a,b\n1,\n2,\n",
    "text.csv": "a,b\n1,x\n2,y\n",
    "huge.csv": "a,b\n1,1e200\n2,3\n",
    "table.xls": "a",
}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("short.csv", "line 3 has 1 cells"),
        ("header.csv", "no rows"),
        ("nothing.csv", "is empty"),
        ("infinite.csv", "infinite values (first in row 0, column 'b')"),
        ("table.xls", "girih reads .csv, .tsv, .csv.gz"),
        ("absent.csv", "there is no file absent.csv"),
        ("cirle", "did you mean 'circle'?"),
        (".", "is a folder"),
    ],
)
def test_data(girih, data, message):
    for name, text in FILES.items():
        with open(name, "w") as file:
            file.write(text)
    done = girih("fit", data, "--json")
    assert done.code == 2 and message in done.error
    assert done.json == {"error": done.error}
    assert not os.path.exists("girih-out")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("column.csv", "no values in 'b'; leave out with --drop b"),
        ("text.csv", "'b' is not numeric (e.g. 'x'); leave it out with --drop NAME,NAME"),
        ("huge.csv", "values up to 1.0e+200 in 'b'"),
    ],
)
def test_data_of_a_generator(girih, data, message):
    with open(data, "w") as file:
        file.write(FILES[data])
    done = girih("fit", data, "--model", "dgn", "--json")
    assert done.code == 2 and message in done.error and done.json == {"error": done.error}


def test_npy_of_objects_is_not_unpickled(girih):
    np.save("objects.npy", np.array([{}, None], dtype=object))
    done = girih("fit", "objects.npy")
    assert done.code == 2 and "never unpickles" in done.error and done.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "alcohol,foo"], "no column 'foo'"),
        (["--columns", "ash", "--drop", "ash"], "exclude each other"),
        (["--rows", "999"], "999 rows were asked"),
        (["--latent-dim", "4"], "exact inference covers"),
        (["--noise-floor", "0"], "noise_floor must be"),
        (["--negative-slope", "nan"], "negative_slope must be"),
    ],
)
def test_fit_options(girih, options, message):
    done = girih("fit", "wine", *options)
    assert done.code == 2 and message in done.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "8,x"], "not a list of widths"),
        (["--hidden", "0"], "not a list of widths"),
        (["--weight-prior", "gaussian"], "not a weight prior"),
        (["--weight-prior", "gaussian:-1"], "not a weight prior"),
        (["--activation", "tanh"], "tanh"),
        (["--max-iter", "0"], "max-iter"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_usage(girih, options, message):
    done = girih("fit", "circle", *options)
    assert done.code == 2 and message in " ".join(done.err.split()) and "Traceback" not in done.err


def test_out_that_cannot_be_a_folder(girih, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        done = girih("fit", "circle", "--out", out)
        assert done.code == 2 and f"{out} cannot be a folder: there is a file in the way" in done.error


def test_out_without_permission(girih, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.tempfile, "TemporaryFile", refuse)
    done = girih("fit", "circle", "--out", "o")
    assert done.code == 2 and "cannot write to the folder o (Permission denied)" in done.error


def test_disk_that_fills_up_during_the_work(girih, fitted, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device", "o/scores.csv")

    monkeypatch.setattr("girih.cli.tables.atomic_path", refuse)  # other modules take write_csv when they are loaded
    done = girih("score", fitted / "fit", fitted / "people.csv", "--out", "o")
    assert done.code == 2 and done.error == "o/scores.csv: No space left on device"


@pytest.mark.parametrize("lack", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_lack_of_memory(girih, monkeypatch, lack):
    def refuse(*arguments, **options):
        raise lack

    monkeypatch.setattr("girih.em.DGNEstimator.fit", refuse)
    done = girih("fit", "circle", "--model", "dgn", "--out", "o")
    assert done.code == 2 and "out of memory; use fewer rows" in done.error


def test_errors_of_girih_itself_are_not_hidden(girih, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("girih.em.DGNEstimator.fit", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        girih("fit", "circle", "--model", "dgn", "--out", "o")


@pytest.mark.parametrize("name", ["report.html", "metrics.json", "model/notes.txt"])
def test_foreign_files_are_left_alone(girih, tmp_path, name):
    path = tmp_path / "o" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    done = girih("fit", "circle", "--out", "o", *QUICK)
    assert done.code == 2 and "move it away or choose another --out" in done.error
    assert path.read_text() == "mine" and len(list((tmp_path / "o").iterdir())) == 1 + (name[:5] == "model")


def test_width_of_the_data_is_not_that_of_the_model(girih, fitted):
    np.save("wide.npy", np.zeros((3, 5)))
    for command in ("score", "impute"):
        done = girih(command, fitted / "fit", "wide.npy")
        assert done.code == 2
        assert "wide.npy has 5 columns, and the model was fitted to 3 (height, income, ratio)" in done.error


def test_column_of_the_model_that_the_data_lack(girih, fitted):
    make_table().drop(columns="income").to_csv("t.csv", index=False)
    assert "t.csv has no column 'income'" in girih("score", fitted / "fit", "t.csv").error


def test_column_of_the_model_that_holds_text(girih, fitted):
    make_table().assign(income="much").to_csv("t.csv", index=False)
    assert "'income' is not numeric" in girih("score", fitted / "fit", "t.csv").error


@pytest.mark.parametrize("command", ["score", "sample", "impute", "info"])
def test_models_that_are_none(girih, fitted, tmp_path, command):
    data = [fitted / "people.csv"] if command in ("score", "impute") else []
    (tmp_path / "empty").mkdir()
    shutil.copytree(fitted / "fit", "damaged")
    os.truncate("damaged/model/model.safetensors", 100)
    shutil.copytree(fitted / "fit", "newer")
    with open("newer/model/config.json") as file:
        config = json.load(file)
    with open("newer/model/config.json", "w") as file:
        json.dump(config | {"version": 99}, file)
    for model, message in {
        "absent": "there is no model at absent",
        "empty": "empty is not a girih model",
        "damaged": "damaged",
        "newer": "upgrade girih",
    }.items():
        done = girih(command, model, *data, "--json")
        assert done.code == 2 and message in done.error and done.json == {"error": done.error}


def test_notes_of_another_model_are_not_used(girih, fitted):
    shutil.copytree(fitted / "fit", "mixed")
    with open("mixed/data.json", "w") as file:
        json.dump({"columns": ["a"], "image_shape": [1, 1]}, file)
    girih("sample", "mixed", "--out", "o")
    assert list(pd.read_csv("o/samples.csv").columns) == ["x0", "x1", "x2"]
