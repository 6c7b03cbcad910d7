"""Where results are written: files that are either whole or absent, and the folder that keeps finished runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_KEPT: ContextVar[tuple[Path, Path] | None] = ContextVar("kept", default=None)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well and removed when it does not.

    Its suffix is that of `path`, from which NumPy takes the format.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from girih_papers.files import whole_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("1")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{os.urandom(6).hex()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON at once; numbers that are not finite become null, so that any reader takes it."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def keeping(out: Path, home: Path) -> Iterator[None]:
    """For the duration, keep the runs of what is written to `out` in `home`, where they outlive a run that fails."""
    token = _KEPT.set((out, home))
    try:
        yield
    finally:
        _KEPT.reset(token)


def kept_in(out: Path) -> Path:
    """The folder that keeps the runs of what is written to `out`: `out` itself but within `keeping`."""
    kept = _KEPT.get()
    return kept[1] if kept is not None and kept[0] == out else out
