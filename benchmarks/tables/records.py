"""Finished pieces of work, one JSON object a line, written as soon as they are there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

Record = dict[str, object]


@dataclass(frozen=True)
class Key:
    """One piece of work: a model on one split of a table; `case` says more, such as how many cells are hidden."""

    part: str
    table: str
    split: int
    model: str
    case: str = ""
    raw: bool = False
    quick: bool = False


class Store:
    """The records of a file; a line that was cut off when a run was killed counts as not written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.records: dict[Key, Record] = {}
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
                key = Key(*(record.pop(name) for name in Key.__dataclass_fields__))
            except (ValueError, KeyError):
                continue
            self.records[key] = record  # the last one counts
        if text and not text.endswith("\n"):
            self._write("\n")

    def add(self, key: Key, record: Record) -> None:
        """Keep a record, on disk too."""
        self.records[key] = record
        self._write(json.dumps(vars(key) | record) + "\n")

    def _write(self, text: str) -> None:
        # One write of a whole line to a file opened for appending: several runs may share the file.
        with open(self.path, "ab", buffering=0) as file:
            file.write(text.encode())
            os.fsync(file.fileno())
