"""Numeric arrays of MATLAB 5 files, by a parser of its own: a damaged file can crash the one of SciPy."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from girih.datasets.bounded import allowed, check_regular, read_exactly

_MATRIX, _COMPRESSED = 14, 15
# How numbers are stored, and what they are in MATLAB: an array of doubles may be stored as bytes.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x08
# The tag, flags, dimensions and name of an array are at its beginning.
_HEAD = 1 << 12


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
    head = stream.decompress(content, _HEAD)
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
