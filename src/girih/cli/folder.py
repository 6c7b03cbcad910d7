"""A command's output folder: made before the work starts, and never at the cost of somebody else's files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from girih.cli.terminal import CommandError

DEFAULT_ROOT = Path("girih-out")

# What girih wrote in a folder, by command: only these files are ever replaced or removed.
_MANIFEST = ".girih.json"


class OutputFolder:
    """The folder that `--out` names.

    Args:
        path: made if it is not there.
        command: the command that writes.
        names: every file that it may write.

    Raises:
        CommandError: the folder cannot be written to, or holds a file of one of these names that girih did not write.
    """

    def __init__(self, path: Path, command: str, names: Iterable[str]) -> None:
        self.path, self._command = path, command
        make_writable(path)
        self._written = _read_manifest(path)
        ours = {name for files in self._written.values() for name in files}
        names = list(names)
        for name in names:
            if name not in ours and (path / name).exists():
                raise CommandError(
                    f"{path / name} exists, and girih did not write it; move it away or choose another --out"
                )
        self._before = self._written.get(command, [])
        self._write(sorted({*self._before, *names}))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finish(self, written: Iterable[str]) -> None:
        """Record what this run wrote; what an earlier run of the command left besides is removed."""
        written = sorted(set(written))
        others = {name for command, files in self._written.items() if command != self._command for name in files}
        for name in self._before:
            if name not in written and name not in others and (self.path / name).is_file():
                (self.path / name).unlink()
        self._write(written)

    def _write(self, names: list[str]) -> None:
        from girih._files import write_json

        self._written[self._command] = names
        write_json(self.path / _MANIFEST, {"format": "girih-output", "written": self._written})


def make_writable(path: Path) -> None:
    """Make a folder if it is not there, and try to write to it: before the work, not after."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError):
        raise CommandError(f"{path} cannot be a folder: there is a file in the way; choose another --out") from None
    except OSError as error:
        raise CommandError(f"cannot write to the folder {path} ({error.strerror}); choose another --out") from None


def default_out(out: Path | None, *parts: str) -> Path:
    """The folder that was asked for, or one below `girih-out`."""
    return out if out is not None else DEFAULT_ROOT / "-".join(part for part in parts if part)


def _read_manifest(path: Path) -> dict[str, list[str]]:
    try:
        value = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        return {str(command): [str(name) for name in names] for command, names in value["written"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
