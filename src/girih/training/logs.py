"""The records of a run as a table or for TensorBoard, written while it trains."""

from __future__ import annotations

import csv
import importlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from girih.errors import ParameterError
from girih.training.options import LogFormat


class RunLog(Protocol):
    """Writes entries to a folder. Opening it writes those of before again, so that the log is always the history."""

    def write(self, entry: Mapping[str, float]) -> None:
        """Add an entry; the file holds it when this returns."""

    def close(self) -> None:
        """Close the files."""


def open_log(
    folder: str | os.PathLike[str], log_format: LogFormat, entries: Iterable[Mapping[str, float]] = ()
) -> RunLog:
    """A log that begins with the entries that the run has.

    A run that goes on from a checkpoint may have logged steps after it, which are taken anew: "csv" replaces
    `metrics.csv`; "tensorboard" adds a file of events that begins by calling off the steps of earlier files.

    Args:
        folder: made if it does not exist.
        log_format: "csv" or "tensorboard".
        entries: numbers by name, with the `step` of each.

    Raises:
        ParameterError: TensorBoard is asked for and not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from girih.training.logs import open_log
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = open_log(folder, "csv", [{"step": 0, "loss": 2.5}])
        ...     log.close()
        ...     Path(folder, "metrics.csv").read_text().split()
        ['step,loss', '0,2.5']
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    log: RunLog = _Table(Path(folder)) if log_format == "csv" else _Events(Path(folder))
    for entry in entries:
        log.write(entry)
    return log


class _Table:
    """`metrics.csv`, its columns named by the first entry."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "metrics.csv").open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None

    def write(self, entry: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(entry), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(entry)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Events:
    """A file of events for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            writers = importlib.import_module("torch.utils.tensorboard")  # which takes seconds
        except ImportError as error:
            raise ParameterError(
                f"log_format='tensorboard' needs TensorBoard, which cannot be imported ({error}); "
                "pip install tensorboard (or girih[tensorboard]), or use log_format='csv'"
            ) from error
        self._writer = writers.SummaryWriter(str(folder), purge_step=0)

    def write(self, entry: Mapping[str, float]) -> None:
        for name, value in entry.items():
            if name != "step" and not math.isnan(value):  # it has no point for NaN, the loss before the first step
                self._writer.add_scalar(name, value, int(entry["step"]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
