"""Two real processes give the numbers of one, and one that dies ends the other with a word and a file to go on from."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import girih

from . import worker

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path):
    """A folder of Parquet files of a noisy circle with holes."""
    X = girih.datasets.load("circle", n=500, seed=0).X.copy()
    X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    (tmp_path / "data").mkdir()
    for part, rows in enumerate(np.array_split(X, 3)):
        pq.write_table(
            pa.table({"a": rows[:, 0], "b": rows[:, 1]}), tmp_path / f"data/{part}.parquet", row_group_size=60
        )
    return tmp_path


def start(arguments, **variables):
    paths = os.pathsep.join([str(Path(girih.__file__).parents[1]), str(HERE.parent)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=env, stdout=-1, stderr=-1, text=True)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_two_processes_give_the_numbers_of_one_and_where_one_dies_the_other_says_so(folder, monkeypatch):
    running = [start([HERE / "worker.py", folder, rank, 2]) for rank in range(2)]
    worker.few_rows(monkeypatch)
    alone = {"generator": worker.fit_generator(folder), "table": worker.fit_table(folder)}
    ends = [one.communicate(timeout=240) for one in running]
    assert [one.returncode for one in running] == [0, 3], ends
    pair = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert pair[0]["error"].startswith("ProcessError: process 0 of 2 waited for another one that has ended")
    assert "goes on from its checkpoint" in pair[0]["error"]
    kept = (folder / "run.ckpt").stat().st_size
    resumed = {"generator": worker.fit_generator(folder, folder / "run.ckpt")}
    assert kept > 0
    for found in (*pair, resumed):
        for kind in {"generator", "table"} & set(found):
            for name in ("curve", "parameters"):
                assert np.allclose(found[kind][name], alone[kind][name], rtol=1e-12, atol=1e-12), (kind, name)


@pytest.mark.slow
def test_the_command_shares_a_folder_and_one_process_writes(folder):
    options = ["--model", "dgn", "--hidden", "3", "--n-init", "1", "--max-iter", "20", "--json"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = ["-m", "girih", "fit", folder / "data", *options, "--out"]
    pair = [start([*command, folder / "two"], RANK=str(rank), LOCAL_RANK=str(rank), **where) for rank in range(2)]
    alone = start([*command, folder / "one"])
    out = [one.communicate(timeout=240) for one in (*pair, alone)]
    assert [one.returncode for one in (*pair, alone)] == [0, 0, 0], out
    assert json.loads(out[0][0])["processes"] == 2 and not out[1][0].strip()
    first, second = (girih.load(folder / name / "model") for name in ("one", "two"))
    for p, q in zip(first.dgn_.parameters(), second.dgn_.parameters(), strict=True):
        assert np.allclose(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)
