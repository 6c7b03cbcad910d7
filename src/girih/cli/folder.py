"""A command's output folder: made before the work starts, and never at the cost of somebody else's files.

What a run writes there appears together at its end, see `girih._staging`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from girih._staging import complete, current, remove_with, replacing, sweep
from girih.cli.terminal import CommandError
from girih.errors import ModelFileError

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
        self._kept: set[str] = set()
        self._interrupt: KeyboardInterrupt | None = None
        make_writable(path)
        sweep(path)
        complete(path)
        self._written = _read_manifest(path)
        ours = {name for files in self._written.values() for name in files}
        names = list(names)
        for name in names:
            if name not in ours and (path / name).exists():
                raise CommandError(
                    f"{path / name} exists, and girih did not write it; move it away or choose another --out"
                )
        self._mine = sorted({*self._written.get(command, []), *names})
        self._write_manifest(path, self._mine)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def results(self) -> Iterator[Path]:
        """A hidden folder for what a run writes: when the block ends well, all of it takes its place at once.

        What an earlier run of the command left besides is removed. If the block fails, everything is as it was.

        Raises:
            OSError: the files cannot be written.
        """
        try:
            with replacing(self.path) as stage:
                yield stage
                written = sorted(path.name for path in stage.iterdir() if path.is_file())
                remove_with(stage, set(self._mine) - {*written, *self._kept} - self._of_others())
                self._write_manifest(stage, [*written, *self._kept])
            if self._interrupt is not None:
                raise self._interrupt
        except OSError as error:
            if isinstance(error.filename, str) and "-girih-" in error.filename:
                error.filename = str(self.path)  # a hidden name tells nobody anything
            raise

    @contextmanager
    def outliving_interrupt(self) -> Iterator[None]:
        """Keep on Ctrl-C what was written before this block, within `results`, and interrupt after that."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            self._interrupt = interrupt

    def keep(self, name: str) -> None:
        """Leave a file where it is though `results` does not write it."""
        if (self.path / name).exists():
            self._kept.add(name)

    def _of_others(self) -> set[str]:
        self._written = _read_manifest(self.path)  # another command may have written meanwhile
        return {name for command, names in self._written.items() if command != self._command for name in names}

    def _write_manifest(self, folder: Path, names: Iterable[str]) -> None:
        from girih._files import write_json

        written = {**self._written, self._command: sorted(names)}
        write_json(folder / _MANIFEST, {"format": "girih-output", "written": written})


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
    from girih._files import read_json

    try:
        value = read_json(current(path / _MANIFEST))
        return {str(command): [str(name) for name in names] for command, names in value["written"].items()}
    except (ModelFileError, KeyError, TypeError, AttributeError):
        return {}
