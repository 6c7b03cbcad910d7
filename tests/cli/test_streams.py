"""`girih fit` on a folder of Parquet files, read block by block."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import girih as library
from effort import FEWEST, try_few_settings

QUICK = ("--hidden", "3", "--max-iter", "4", "--n-init", "1")


@pytest.fixture
def folder():
    """A folder of two files."""
    X = library.datasets.load("circle", n=80, seed=0).X
    Path("rows").mkdir()
    for part, rows in enumerate(np.array_split(X, 2)):
        pq.write_table(pa.table({"east": rows[:, 0], "north": rows[:, 1]}), f"rows/{part}.parquet")
    return X


def test_a_generator(girih, folder):
    done = girih("fit", "rows", "--out", "out", "--json", *QUICK)
    assert done.code == 0 and done.json["processes"] == 1
    assert {path.name for path in Path("out").iterdir()} == {
        *("model", "metrics.json", "data.json", "nll_curve.csv", ".girih.json")
    }
    model = library.load("out/model")
    assert list(model.feature_names_in_) == ["east", "north"] and model.checkpoint is None
    assert -model.score_samples(pd.DataFrame(folder, columns=["east", "north"])).mean() == pytest.approx(
        done.json["penalised_nll_per_row"], abs=1e-10
    )
    info = girih("info", "out", "--json")
    assert info.code == 0


def test_a_table(girih, folder, monkeypatch):
    try_few_settings(monkeypatch, **FEWEST)
    done = girih("fit", "rows", "--out", "out")
    assert done.code == 0 and "held-out NLL" in done.out and "out/model" in done.out
    assert json.loads(Path("out/metrics.json").read_text())["data"] == {"source": "rows", "columns": 2}
    info = girih("info", "out", "--json")
    assert info.code == 0 and info.json["kind"] == "table"


def test_what_is_refused(girih, folder, monkeypatch):
    assert "--rows is an option of rows in memory" in girih("fit", "rows", "--rows", 5).error
    assert "--standardize is an option of rows in memory" in girih("fit", "rows", "--standardize").error
    Path("empty").mkdir()
    assert "no rows" in girih("fit", "empty", "--out", "out").error
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several processes share a folder of Parquet files" in girih("fit", "circle").error
