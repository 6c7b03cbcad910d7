"""`girih fit` on rows without end: a folder of Parquet files, shared by the processes of a run if there are several."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import typer

import girih
from girih._files import write_json
from girih.cli import fitting, results
from girih.cli.folder import OutputFolder, default_out
from girih.cli.options import Output, Reading
from girih.cli.tables import DATA_FILE, METRICS, MODEL, write_csv
from girih.cli.terminal import INTERRUPTED, CommandError, Terminal
from girih.report import versions
from girih.report.table_numbers import setting_text
from girih.streams import Blocks, Processes

if TYPE_CHECKING:
    from girih.cli.fitting import Settings

_MANY = ".parquet", ".npy", ".pq"
FILES = (METRICS, DATA_FILE, results.CURVE, fitting.CHECKPOINT)


def processes_asked() -> int:
    """How many processes torchrun, or another launcher, has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_stream(data: str) -> bool:
    """Tell whether DATA is read in blocks: a folder, or a file that several processes share.

    Raises:
        CommandError: several processes cannot share it.
    """
    path = Path(data).expanduser()
    if path.is_dir() and data not in girih.datasets.names():
        return True
    if processes_asked() == 1:
        return False
    if path.suffix.lower() not in _MANY:
        raise CommandError(
            f"several processes share a folder of Parquet files, a Parquet or a npy file; {data!r} is none of these"
        )
    return True


@contextmanager
def together() -> Iterator[Processes]:
    """Begin and end the group of the processes that a launcher has started; alone there is none."""
    if processes_asked() == 1:
        yield Processes.now()
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes.now()
    finally:
        dist.destroy_process_group()


def check(reading: Reading, rows: int | None, standardize: bool | None) -> None:
    """Refuse options that need all rows in memory.

    Raises:
        CommandError: one of them was given.
    """
    given = {
        "--columns": reading.columns,
        "--drop": reading.drop,
        "--header": reading.header,
        "--separator": reading.separator,
        "--decimal": reading.decimal,
        "--missing": reading.missing,
        "--rows": rows,
        "--standardize": standardize or None,
    }
    for name, value in given.items():
        if value is not None:
            raise CommandError(f"{name} is an option of rows in memory, and DATA is read in blocks; leave it out")


def parse_kinds(texts: list[str] | None) -> dict[str | int, str] | None:
    """`NAME=KIND`, of columns that are not known yet."""
    return None if not texts else {text.rpartition("=")[0]: text.rpartition("=")[2] for text in texts}


def fit(data: str, model: Settings | dict[str | int, str] | None, seed: int, restart: bool, output: Output) -> None:
    """Fit a generator with these settings, or a table with columns of these kinds; the first process writes."""
    with together() as processes:
        terminal = Terminal(output.as_json)
        started, blocks = time.perf_counter(), Blocks(data)  # what cannot be read leaves no folder behind
        out = default_out(output.out, Path(data).resolve().stem)
        folder = _folder(out, restart) if processes.leads else None
        shown = int(terminal.shows_progress and processes.leads)
        if isinstance(model, fitting.Settings):
            est = fitting.estimator(model, out / fitting.CHECKPOINT, shown)
            est.fit(blocks)
            fitted: girih.TableModel | girih.DGNEstimator = est
        else:
            table = girih.TableModel(kinds=model, random_state=seed, verbose=shown, checkpoint=out / fitting.CHECKPOINT)
            fitted = table.fit(blocks)
        fitted.set_params(checkpoint=None, verbose=0)
        interrupted = getattr(fitted, "interrupted_", False)
        if folder is not None:
            if interrupted:
                folder.keep(fitting.CHECKPOINT)
            _write(folder, fitted, data, processes, time.perf_counter() - started, terminal)
        if interrupted:
            raise typer.Exit(INTERRUPTED)


def _folder(out: Path, restart: bool) -> OutputFolder:
    folder = OutputFolder(out, "fit", FILES)
    fitting.check_model_folder(out)
    if restart:
        (out / fitting.CHECKPOINT).unlink(missing_ok=True)
    return folder


def _write(
    folder: OutputFolder,
    fitted: girih.TableModel | girih.DGNEstimator,
    data: str,
    processes: Processes,
    seconds: float,
    terminal: Terminal,
) -> None:
    """Write model and numbers, and tell where they are."""
    names = getattr(fitted, "feature_names_in_", None)
    columns = [f"x{i}" for i in range(fitted.n_features_in_)] if names is None else [str(name) for name in names]
    metrics: dict[str, Any] = {
        "data": {"source": data, "columns": len(columns)},
        "processes": processes.size,
        "seconds": {"fit": round(seconds, 3)},
        "versions": versions(),
    }
    if isinstance(fitted, girih.TableModel):
        metrics |= {"kind": "table", "held_out_nll": -fitted.held_out_score_}
        metrics |= {"best": {"setting": setting_text(fitted.best_.setting_)}, "seed": fitted.random_state}
        told = {"held-out NLL": f"{-fitted.held_out_score_:.4f} nats a row", "best": metrics["best"]["setting"]}
    else:
        nll = float(fitted.nll_curve_[-1])
        metrics |= {"penalised_nll_per_row": nll, "n_iter": fitted.n_iter_, "converged": fitted.converged_}
        told = {"exact NLL": f"{nll:.4f} nats a row", "EM": f"{fitted.n_iter_} iterations over all rows"}
    with folder.results() as written:
        girih.save(fitted, written / MODEL)
        name = Path(data).resolve().name
        write_json(written / DATA_FILE, {"source": data, "name": name, "columns": columns, "image_shape": None})
        write_json(written / METRICS, metrics)
        if isinstance(fitted, girih.DGNEstimator):
            curve = fitted.nll_curve_
            write_csv(written / results.CURVE, {"iteration": np.arange(len(curve)), "nll": curve})
    terminal.table({**told, "time": f"{seconds:.1f} s", "model": str(folder / MODEL)})
    terminal.result({"out": str(folder.path), "model": str(folder / MODEL), **metrics})
