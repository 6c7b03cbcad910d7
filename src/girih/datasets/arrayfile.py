"""Arrays of .npy, .npz and MATLAB 5 files, and bytes of files, packed or not.

What a header claims is compared with the file, and with bounds, before anything is read.
"""

from __future__ import annotations

import gzip
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from girih._options import real
from girih.errors import DataSourceError, EmptyDataError, GirihError

# GB of rows that a packed file may unpack to, whatever its size.
MEMORY = 1.0
# What an honest packed file unpacks to at most, as a multiple of its size: bytes of pixels become 8 bytes each.
_RATIO = 32
# A row of more columns is no row of a table; a header may claim any number of them.
_MOST_COLUMNS = 10_000_000
_CHUNK = 1 << 20
# numpy itself reads no header beyond 10,000 characters
_HEAD = 1 << 16
_BROKEN = (EOFError, KeyError, MemoryError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
# How numbers are stored, and what they are in MATLAB: an array of doubles may be stored as bytes.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x08
# The tag, flags, dimensions and name of an array are at its beginning.
_TOP = 1 << 12


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
    """The number of bytes of rows that a packed file may unpack to."""
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


_MATRIX, _COMPRESSED = 14, 15


def read_array(path: Path, memory: float) -> NDArray[Any]:
    """The array of an .npy file, or the only one of an .npz file; nothing is unpickled.

    Raises:
        DataSourceError: it is damaged, holds something else than numbers, or claims more than there is or fits.
        EmptyDataError: no rows or no columns.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
            file.seek(0)
            if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
                return _read_archive(file, path, memory)
            if magic != b"\x93NUMPY":
                raise DataSourceError(_objects(path))
            return _read_stream(file, path.stat().st_size, path, memory, packed=False)
    except GirihError:
        raise
    except _BROKEN as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException | str) -> DataSourceError:
    """The error for a file that its own format does not explain."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return DataSourceError(
        f"{path.name} is damaged, or not a {path.suffix} file ({text}); write it again from its source"
    )


def _read_archive(file: IO[bytes], path: Path, memory: float) -> NDArray[Any]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) != 1:
            held = [member.filename.removesuffix(".npy") for member in members]
            some = ", ".join(held[:8]) + (", ..." if len(held) > 8 else "")
            raise DataSourceError(
                f"{path.name} holds {len(held)} arrays ({some}), and one is needed; save it alone with numpy.save"
            )
        member = members[0]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataSourceError(f"{path.name} is packed in a way that numpy does not use; write it with numpy.savez")
        with archive.open(member) as stream:
            return _read_stream(stream, member.file_size, path, memory, packed=True)


def _read_stream(stream: IO[bytes], size: int, path: Path, memory: float, packed: bool) -> NDArray[Any]:
    """An array from `size` bytes in .npy format."""
    head = bytes(read_exactly(stream, min(_HEAD, size)))
    shape, by_column, kind, start = _header(head, path)
    count = 1
    for side in shape:
        count *= side
    if kind.hasobject:
        raise DataSourceError(_objects(path))
    if kind.kind not in "biuf":
        what = "complex numbers" if kind.kind == "c" else f"dtype {kind}"
        raise DataSourceError(
            f"{path.name} holds {what}, not real numbers; save a numeric array, e.g. array.astype(float)"
        )
    if not 1 <= len(shape) <= 4:
        raise DataSourceError(
            f"{path.name} holds a single number; a data set is an array of shape (N, D)"
            if not shape
            else f"{path.name} has shape {shape}; rows (N, D) or images (N, h, w) or (N, h, w, c) are expected"
        )
    check_rows(path, shape, memory, packed)
    needed = count * kind.itemsize
    if needed != size - start:
        raise damaged(path, f"its header claims {needed:,} bytes of shape {shape}, and {size - start:,} are there")
    body = head[start:]
    data = np.empty(needed, np.uint8)  # not more than the file holds, or than may be unpacked
    data[: len(body)] = np.frombuffer(body, np.uint8)
    at = len(body)
    while at < needed:
        part = read_exactly(stream, min(1 << 24, needed - at))
        if not part:
            raise damaged(path, f"it ends after {at:,} of {needed:,} bytes")
        data[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    if packed and stream.read(1):  # the end of a packed array is where its checksum is compared
        raise damaged(path, "it goes on after its end")
    return data.view(kind).reshape(shape, order="F" if by_column else "C")


def _header(head: bytes, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, dtype and length of a header."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, kind = read(stream)
    except Exception as error:  # numpy evaluates the text: tokenize.TokenError, RecursionError, and what else there is
        raise damaged(path, error) from None
    if any(isinstance(side, bool) or not 0 <= side < 1 << 62 for side in shape):
        raise damaged(path, f"its header claims the shape {shape}")
    return tuple(shape), by_column, kind, stream.tell()


def _objects(path: Path) -> str:
    return (
        f"{path.name} holds Python objects or is no NumPy file, and girih never unpickles; save a numeric array with "
        "numpy.save, e.g. array.astype(float)"
    )


def read_mat(path: Path, wanted: Collection[str], memory: float) -> dict[str, NDArray[Any]]:
    """The arrays called `wanted` of a file of MATLAB 5 to 7, packed or not.

    Raises:
        ValueError, struct.error, zlib.error: the file is of another format, damaged, or unpacks to more than `memory`
            allows.
    """
    size = check_regular(path)
    most = allowed(path, memory) // 8
    found: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file:
        order = _byte_order(file.read(128))
        while len(found) < len(wanted) and size - file.tell() >= 8:
            kind, length = struct.unpack(f"{order}II", file.read(8))
            if length > size - file.tell():
                raise ValueError(f"an array of {length:,} bytes is cut off")
            if kind not in (_MATRIX, _COMPRESSED):
                raise ValueError(f"it has an element of kind {kind}")
            array = _array(file, kind == _COMPRESSED, length, order, wanted, most)
            if array is not None:
                found[array[0]] = array[1]
    return found


def _byte_order(head: bytes) -> str:
    if head.startswith(b"MATLAB 7.3"):
        raise ValueError("it is of version 7.3; save it as version 7")
    order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
    if order is None or struct.unpack(f"{order}H", head[124:126])[0] != 0x0100:
        raise ValueError("it has no header of MATLAB 5")
    return order


def _array(
    file: IO[bytes], packed: bool, length: int, order: str, wanted: Collection[str], most: int
) -> tuple[str, NDArray[Any]] | None:
    """Name and values of the next array; `None` where it is not wanted."""
    content = bytes(read_exactly(file, length))
    if not packed:
        return _values(content, order, wanted)
    stream = zlib.decompressobj()
    head = stream.decompress(content, _TOP)
    kind, size = struct.unpack(f"{order}II", head[:8])
    if kind != _MATRIX:
        raise ValueError(f"it has a packed element of kind {kind}")
    name, _, _, _ = _describe(head[8:], order)
    if name not in wanted:
        return None
    if size > most:
        raise ValueError(f"its array {name!r} unpacks to {size:,} bytes, and memory= allows {most:,}")
    body = head[8:] + (stream.decompress(stream.unconsumed_tail, size + 8 - len(head)) if size + 8 > len(head) else b"")
    if stream.decompress(stream.unconsumed_tail, 1) or not stream.eof or len(body) != size:
        raise ValueError(f"its array {name!r} has not the {size:,} bytes that it claims")
    return _values(body, order, wanted)


def _describe(content: bytes, order: str) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape and flags of an array, and where its numbers begin."""
    kind, flags, at = _element(content, 0, order)
    if kind != 6 or len(flags) != 8:
        raise ValueError("it has an array without flags")
    kind, sides, at = _element(content, at, order)
    if kind != 5 or len(sides) % 4 or not 8 <= len(sides) <= 128:
        raise ValueError("it has an array without dimensions")
    shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
    kind, name, at = _element(content, at, order)
    if kind != 1:
        raise ValueError("it has an array without a name")
    return name.decode("ascii", "replace"), shape, struct.unpack(f"{order}I", flags[:4])[0], at


def _values(content: bytes, order: str, wanted: Collection[str]) -> tuple[str, NDArray[Any]] | None:
    name, shape, flags, at = _describe(content, order)
    if name not in wanted:
        return None
    if flags & 0xFF not in _CLASSES or (flags >> 8) & _COMPLEX:
        raise ValueError(f"its {name!r} is no array of real numbers")
    kind, data, _ = _element(content, at, order)
    if kind not in _STORED:
        raise ValueError(f"its {name!r} holds numbers of the unknown kind {kind}")
    stored = np.dtype(order + _STORED[kind])
    if min(shape) < 0 or prod(shape) * stored.itemsize != len(data):
        raise ValueError(f"its {name!r} has {len(data):,} bytes for the shape {shape}")
    array = np.frombuffer(data, stored).reshape(shape, order="F")
    return name, array.astype(_CLASSES[flags & 0xFF], copy=False)


def _element(content: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Kind and bytes of the element at an offset, and the offset of the next one."""
    kind, size = struct.unpack_from(f"{order}II", content, at)
    if kind >> 16:  # up to four bytes are in the tag itself
        kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > 4:
            raise ValueError(f"it has a small element of {size} bytes")
    else:
        start = at + 8
        end = start + size + -size % 8
    if start + size > len(content):
        raise ValueError("an element is cut off")
    return kind, content[start : start + size], end
