"""Files that replace others together, so that a kill at any moment leaves the old ones or the new ones.

    1. everything is written to a hidden folder inside the target, and reaches the disk
    2. that folder is renamed to `.girih-new`: from this moment on its files count
    3. they are moved into their places, and the empty folder is removed

A kill before 2 leaves the old files, and a hidden folder that the next writer removes. A kill after 2 leaves files in
`.girih-new`: readers look there first (`current`), and the next writer ends step 3 before its own (`complete`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from girih.errors import ModelFileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NEW = ".girih-new"
_REMOVE = ".girih-remove.json"  # in NEW: the names of files that go when the others come

# The end of a temporary name: the machine, the process that writes, and something random.
_TEMPORARY = re.compile(r"^\..*-girih-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{12}(\.[^.]*)?$")
_WEEK = 7 * 86_400.0


def temporary_name(name: str) -> str:
    """A hidden name beside `name`, with its suffix, that says which process writes there."""
    stem, suffix = os.path.splitext(name)
    return f".{stem[:60]}-girih-{_machine()}-{os.getpid()}-{os.urandom(6).hex()}{suffix[:40]}"


def sweep(folder: Path) -> None:
    """Remove the temporary files of dead processes; never those of living ones."""
    with os.scandir(folder) as entries:
        found = [(entry, match) for entry in entries if (match := _TEMPORARY.match(entry.name))]
    for entry, match in found:
        with suppress(OSError):  # another process was quicker, or may do what this one may not
            if not _is_dead(match["machine"], int(match["process"]), entry.stat(follow_symlinks=False).st_mtime):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def is_hidden_work(name: str) -> bool:
    """Tell whether a name is that of unfinished work of this module."""
    return name == NEW or _TEMPORARY.match(name) is not None


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A hidden folder; when the block ends well, its files replace those of `folder` with the same names, together.

    A folder in it replaces the files of a folder with its name in the same way. If the block fails, `folder` is as it
    was.
    """
    made = not folder.exists()
    stage = _begin(folder)
    try:
        yield stage
        _reach_disk(stage)
        try:
            _commit(stage, folder)
        except KeyboardInterrupt:
            complete(folder)
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made:
            with suppress(OSError):  # it was made for nothing if it is empty
                folder.rmdir()


def remove_with(stage: Path, names: Iterable[str]) -> None:
    """Let files of the folder go when those in `stage` come."""
    (stage / _REMOVE).write_text(json.dumps(sorted(names)), encoding="utf-8")


def complete(folder: Path) -> None:
    """End what a killed process had decided: move the files in `.girih-new` into their places."""
    if not any((place / NEW).is_dir() for place in (folder, *_folders(folder))):
        return
    with _alone(folder):
        _move(folder)
    for inner in _folders(folder):
        if (inner / NEW).is_dir():
            complete(inner)


def current(path: Path) -> Path:
    """Find where the file or folder that counts lies: at `path`, or where a killed process left it."""
    waiting = path.parent / NEW / path.name
    return waiting if os.path.lexists(waiting) else path


def _begin(folder: Path) -> Path:
    for _ in range(100):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            sweep(folder)
            stage = folder / temporary_name(folder.name)
            stage.mkdir()
        except FileNotFoundError:  # another process made the folder, failed, and has just removed it
            continue
        return stage
    raise OSError(errno.ENOENT, "the folder is removed again and again", str(folder))


def _commit(stage: Path, folder: Path) -> None:
    with _alone(folder):
        for _ in range(1000):
            _move(folder)
            try:
                stage.rename(folder / NEW)
                break
            except OSError as error:  # without a lock another process may be here too
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES):
                    raise
        else:
            raise OSError(errno.EBUSY, "another process does not end its writing", str(folder))
        _reach_disk_folder(folder)
        _move(folder)


def _move(folder: Path) -> None:
    new = folder / NEW
    try:
        names = sorted(os.listdir(new))
    except FileNotFoundError:
        return
    for name in names:
        with suppress(FileNotFoundError):  # another process has moved it
            if (new / name).is_dir():
                _move_folder(new / name, folder / name)
            elif name != _REMOVE:
                os.replace(new / name, folder / name)
    with suppress(FileNotFoundError):
        _remove(new / _REMOVE, folder)
    with suppress(FileNotFoundError):
        new.rmdir()
    _reach_disk_folder(folder)


def _move_folder(stage: Path, folder: Path) -> None:
    if folder.is_symlink():
        raise ModelFileError(f"{folder} is a link; put a folder in its place, and girih will write there")
    folder.mkdir(exist_ok=True)
    sweep(folder)
    _commit(stage, folder)


def _remove(file: Path, folder: Path) -> None:
    for name in json.loads(file.read_text(encoding="utf-8")):
        if name == os.path.basename(name):  # never outside of the folder, whoever wrote this
            (folder / name).unlink(missing_ok=True)
    file.unlink()


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != NEW]
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that move files into the folder, where the system can tell."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _reach_disk(folder: Path) -> None:
    """Wait until the files of a folder, and of those in it, are on the disk."""
    for place, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(place, file), "r+b") as stream:
                os.fsync(stream.fileno())
        _reach_disk_folder(Path(place))


def _reach_disk_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems take no fsync of a folder
            os.fsync(handle)
    finally:
        os.close(handle)


def _is_dead(machine: str, process: int, written: float) -> bool:
    if machine != _machine():  # nothing can be known of its processes, but none writes for a week
        return time.time() - written > _WEEK
    if os.name == "nt":  # no signal asks there whether a process lives
        return process != os.getpid() and time.time() - written > _WEEK
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _machine() -> str:
    """Tells apart the places where the number of a process means something: machines, and containers on one."""
    namespace = "/proc/self/ns/pid"
    where = os.readlink(namespace) if os.path.islink(namespace) else ""
    return hashlib.sha256(f"{platform.node()} {where}".encode()).hexdigest()[:8]
