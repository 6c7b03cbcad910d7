"""Finished fits in files, so that a comparison that was killed goes on from them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from girih._files import finite, read_json, write_json
from girih.selection.candidates import Candidate
from girih.selection.fitting import Options, Outcome
from girih.selection.splits import Split


class Store:
    """A folder with one JSON file for each finished fit; without a folder it remembers nothing.

    The name of a file holds a fingerprint of the rows, the split and the options: fits of other runs are never used.
    """

    def __init__(self, folder: Path | None, X: NDArray[np.float64], options: Options) -> None:
        self.folder = folder
        run = hashlib.sha256(repr(options).encode() + str(X.shape).encode())
        run.update(np.ascontiguousarray(X).data)
        self._run = run.digest()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def checkpoint(self, candidate: Candidate, split: Split) -> Path | None:
        """Where an unfinished fit saves its state."""
        path = self._path(candidate, split)
        return None if path is None or not candidate.is_dgn else path.with_suffix(".safetensors")

    def read(self, candidate: Candidate, split: Split) -> Outcome | None:
        """A finished fit, or `None`; a damaged file counts as none."""
        path = self._path(candidate, split)
        if path is None:
            return None
        try:
            written = read_json(path)
            value = written["outcome"]
            if written.get("sha256") not in (None, _digest(value)):
                return None
            value["unexplained"] = math.nan if value["unexplained"] is None else value["unexplained"]
            outcome = Outcome(**{field.name: value[field.name] for field in fields(Outcome)})
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return outcome if len(outcome.held_out) == len(split.test) else None

    def write(self, candidate: Candidate, split: Split, outcome: Outcome) -> None:
        """Keep a finished fit, in one piece."""
        path = self._path(candidate, split)
        if path is not None:
            value = json.loads(json.dumps(finite(asdict(outcome))))
            sums = {"outcome": value, "sha256": _digest(value)}
            write_json(path, {"format": "girih-selection-fit", "label": candidate.label, **sums})

    def _path(self, candidate: Candidate, split: Split) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(self._run)
        digest.update(repr(candidate).encode() + split.train.tobytes() + b"/" + split.test.tobytes())
        name = re.sub(r"[^a-z0-9]+", "-", candidate.label.lower()).strip("-")
        return self.folder / f"{name}-{digest.hexdigest()[:12]}.json"


def _digest(value: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
