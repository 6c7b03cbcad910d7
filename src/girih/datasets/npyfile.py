"""Arrays of .npy and .npz files: what the header claims is compared with the file before anything is read."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from girih.datasets.bounded import check_rows, read_exactly
from girih.errors import DataSourceError, GirihError

# numpy itself reads no header beyond 10,000 characters
_HEAD = 1 << 16
_BROKEN = (EOFError, KeyError, MemoryError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)


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
    """What is said of a file that its own format does not explain."""
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
