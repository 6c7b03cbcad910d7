"""Bytes of files, packed or not, with bounds that are checked before anything is read."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from girih._options import real
from girih.errors import DataSourceError, EmptyDataError

# GB of rows that a packed file may unpack to, whatever its size.
MEMORY = 1.0
# What an honest packed file unpacks to at most, as a multiple of its size: bytes of pixels become 8 bytes each.
_RATIO = 32
# A row of more columns is no row of a table; a header may claim any number of them.
_MOST_COLUMNS = 10_000_000
_CHUNK = 1 << 20


def check_regular(path: Path) -> int:
    """The size of a regular file in bytes; a pipe would hang, and a device has no end.

    Raises:
        DataSourceError: it is something else.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataSourceError(
            f"{path} is no regular file (a pipe, a socket or a device); save the data to a file first"
        )
    return found.st_size


def check_rows(path: Path, shape: tuple[int, ...], memory: float, packed: bool = True) -> None:
    """Refuse the shape that a header claims where it has no rows or columns, or too many of them.

    Args:
        path: the file.
        shape: N, then the sides of a row.
        memory: GB of float64 that a packed file may unpack to; 32 times its own size is always allowed.
        packed: whether the file is packed; what is not holds as much as it claims.

    Raises:
        EmptyDataError, DataSourceError.
    """
    if 0 in shape:
        raise EmptyDataError(f"{path.name} has no {'columns' if shape[0] else 'rows'}: its shape is {shape}")
    entries = columns = 1
    for axis, side in enumerate(shape):
        entries, columns = entries * side, columns * side if axis else 1
    if columns > _MOST_COLUMNS:
        raise DataSourceError(
            f"{path.name} claims {columns:,} columns, and {_MOST_COLUMNS:,} are the most that are read; it is damaged, "
            "or not a table of rows"
        )
    if packed and 8 * entries > allowed(path, memory):
        raise DataSourceError(
            f"{path.name} claims to unpack {path.stat().st_size:,} bytes to {entries:,} entries "
            f"({8e-9 * entries:.1f} GB of rows); if you trust it, load it in Python with "
            f"girih.datasets.load(path, memory={-(-entries // 125_000_000)})"
        )


def allowed(path: Path, memory: float) -> int:
    """How many bytes of rows a packed file may unpack to."""
    return max(int(real(memory, "memory") * 1e9), _RATIO * path.stat().st_size)


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """The bytes of a file, unpacked while they are read where it is gzip, and whether it is.

    Raises:
        DataSourceError: it cannot be read, or is damaged.
    """
    try:
        check_regular(path)
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            yield stream, packed
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataSourceError(f"{path.name} could not be read ({reason}); fetch it again") from None


def read_exactly(stream: IO[bytes], count: int) -> bytearray:
    """`count` bytes, or fewer where the stream ends; grows with what is there, not with what was claimed."""
    out = bytearray()
    while len(out) < count:
        chunk = stream.read(min(_CHUNK, count - len(out)))
        if not chunk:
            break
        out += chunk
    return out
