"""Arrays of bytes out of pickles, without running what a pickle may ask for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.errors import DataSourceError


class _Type:
    """What stands in for `numpy.dtype`: its name only."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields, which bytes do not have."""


class _Array:
    """What stands in for `numpy.ndarray`: its shape, type and bytes."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.by_column, self.data = state


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes into old protocols as text in latin 1."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")


_KNOWN = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type, ("_codecs", "encode"): _encode}
_KNOWN |= {(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")}


class _Unpickler(pickle.Unpickler):
    """Knows numbers, texts, lists, dicts and stand-ins for arrays; calls nothing of any library."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not called")
        return _KNOWN[module, name]


def read_pickled_bytes(path: Path) -> dict[str, Any]:
    """A pickled dict of arrays of uint8, lists, numbers and texts, by text; other values are left out.

    Raises:
        DataSourceError: the file is no such pickle; nothing that it asks for is called.
    """
    try:
        with path.open("rb") as file:
            loaded = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataSourceError(f"{path.name} is not a pickle of plain arrays ({reason}); fetch the file again") from None
    if not isinstance(loaded, dict):
        raise DataSourceError(f"{path.name} holds a {type(loaded).__name__}, not a dict of arrays; fetch it again")
    named = {
        key.decode("ascii", "replace") if isinstance(key, bytes) else str(key): value for key, value in loaded.items()
    }
    return {key: _plain(value, path) if isinstance(value, _Array) else value for key, value in named.items()}


def _plain(array: _Array, path: Path) -> NDArray[np.uint8]:
    held = vars(array)
    kind, data = held.get("type"), held.get("data")
    if not isinstance(kind, _Type) or kind.name not in ("u1", "uint8", "|u1") or not isinstance(data, bytes):
        raise DataSourceError(f"{path.name} holds an array that is not of bytes (uint8); fetch the file again")
    try:
        return np.frombuffer(data, np.uint8).reshape(held["shape"], order="F" if held["by_column"] else "C")
    except (TypeError, ValueError):
        raise DataSourceError(f"{path.name} is damaged: an array has fewer bytes than its shape says") from None
