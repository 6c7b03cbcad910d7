"""The records of a run as a table or for TensorBoard, written by Lightning's loggers while it trains."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from girih.errors import ParameterError

LogFormat = Literal["csv", "tensorboard"]
FORMATS = ("csv", "tensorboard")


class RunLog:
    """Writes entries to a folder. Opening it writes those of before again, so that the log is always the history.

    A run that goes on from a checkpoint may have logged steps after it, which are taken anew: "csv" replaces
    `metrics.csv`; "tensorboard" adds a file of events that begins by calling off the steps of earlier files.

    Args:
        folder: made if it does not exist.
        log_format: "csv" or "tensorboard".

    Raises:
        ParameterError: an unknown format, or TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], log_format: LogFormat) -> None:
        if log_format not in FORMATS:
            raise ParameterError(f"log_format must be one of {', '.join(FORMATS)}; got {log_format!r}")
        self._csv = log_format == "csv"
        self._logger = _csv(Path(folder)) if self._csv else _tensorboard(Path(folder))

    def open(self, entries: Iterable[dict[str, float]]) -> None:
        """Begin with the entries that the run has."""
        for entry in entries:
            self.write(entry)

    def write(self, entry: dict[str, float]) -> None:
        """Add an entry; the file holds it when this returns."""
        # TensorBoard has no point for NaN, the loss before the first step
        numbers = {name: value for name, value in entry.items() if self._csv or not math.isnan(value)}
        step = int(numbers.pop("step"))
        self._logger.log_metrics(numbers, step)
        self._logger.save()

    def close(self) -> None:
        """Close the files."""
        self._logger.finalize("success")


def _csv(folder: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name=None, version="")


def _tensorboard(folder: Path) -> Any:
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        logger = TensorBoardLogger(folder, name=None, version="", purge_step=0)
        _ = logger.experiment  # imports TensorBoard
    except ImportError as error:
        raise ParameterError(
            f"log_format='tensorboard' needs TensorBoard, which cannot be imported ({error}); "
            "pip install tensorboard, or use log_format='csv'"
        ) from error
    return logger
