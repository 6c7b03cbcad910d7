"""Files that are either whole or absent, and reading what anybody may have written: nothing in it is believed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from girih._staging import sweep, temporary_name
from girih.errors import ModelFileError

_KEY, _DIGEST = "girih", "sha256"

# JSON beyond this is none that girih wrote: a fit of 100,000 iterations has 2 MB.
_LARGEST_JSON = 1 << 28
_WHOLE = 1 << 64  # whole numbers beyond it fit into no field


@contextmanager
def atomic_path(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well and removed when it does not.

    A kill in the block leaves a temporary file, which the next call for that folder removes.

    Args:
        path: the file.
        durable: wait until the file is on the disk, so that it outlives a loss of power.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    temporary = target.parent / temporary_name(target.name)
    temporary.touch(exist_ok=False)
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors makes private files
        if durable:
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write JSON atomically; numbers that are not finite become null, so that any reader takes it."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: object) -> object:
    """The same structure with NaN and infinities replaced by None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> str:
    """Write tensors and JSON metadata as one safetensors file, atomically; returns their digest, which is in the file.

    It is not waited for until the file is on the disk: checkpoints are written often, and a damaged one is noticed.
    """
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(metadata)
    digest = digest_of(contiguous, text)
    with atomic_path(path, durable=False) as temporary:
        save_file(contiguous, temporary, metadata={_KEY: text, _DIGEST: digest})
    return digest


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, and check it against its digest where it has one.

    Raises:
        ModelFileError: the file is not there, damaged, not a regular file, or not by girih.
    """
    tensors, metadata, _ = read_digested(path)
    return tensors, metadata


def read_digested(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read what `write_tensors` wrote, with the digest of what was read."""
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            written = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {path}") from None
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise _damaged(path, error) from None
    if _KEY not in written:
        raise ModelFileError(f"{path} is a safetensors file, but girih did not write it; pass another")
    digest = digest_of(tensors, written[_KEY])
    if written.get(_DIGEST, digest) != digest:
        raise _damaged(path, "its contents do not match their checksum")
    try:
        metadata = strict_json(written[_KEY])
    except ValueError as error:
        raise _damaged(path, f"its metadata is not JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not a JSON object")
    return tensors, metadata, digest


def digest_of(tensors: Mapping[str, Tensor], text: str) -> str:
    """The SHA-256 of named tensors on the CPU, and of a text."""
    hasher = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"\n{name!r} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        hasher.update(tensor.flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON in a file, see `strict_json`.

    Raises:
        ModelFileError: there is no regular file, or it holds anything else.
    """
    try:
        return strict_json(read_text(path))
    except ValueError as error:
        raise error if isinstance(error, ModelFileError) else _damaged(path, f"it is not JSON: {error}") from None


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file of a size that JSON of girih has.

    Raises:
        ModelFileError: there is no such file.
    """
    raw = read_regular(path, _LARGEST_JSON + 1)
    if len(raw) > _LARGEST_JSON:
        raise _damaged(path, f"it is larger than {_LARGEST_JSON >> 20} MiB, and no JSON of girih is")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"it is not text: {error}") from None


def read_regular(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """The first bytes of a regular file, by default all.

    Raises:
        ModelFileError: there is no such file.
    """
    with _opened(path) as stream:
        return bytes(stream.read(most))


def strict_json(text: str) -> object:
    """The value of a JSON text: no key twice, no NaN, no numbers beyond 64 bits, no deep nesting.

    Raises:
        ValueError: it is anything else.
    """
    try:
        found: object = json.loads(
            text, object_pairs_hook=_once, parse_int=_whole, parse_float=_real, parse_constant=_no_constant
        )
        return found
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > _WHOLE:
        raise ValueError(f"the number {text[:20]}... is too large")
    return int(text)


def _real(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return float(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A regular file, open for reading; anything that would block or never end is refused."""
    handle = -1
    try:
        try:
            # without O_NONBLOCK, opening a pipe waits for somebody to write
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            regular = stat.S_ISREG(os.fstat(handle).st_mode)
        except FileNotFoundError:
            link = os.path.islink(path)
            raise ModelFileError(
                f"{path} is a link to nothing; restore the file" if link else f"there is no file {path}"
            ) from None
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read ({error}); pass a file that girih wrote") from None
        if not regular:
            raise ModelFileError(f"{path} is a folder, pipe or device; pass a regular file that girih wrote")
        with os.fdopen(handle, "rb") as stream:
            handle = -1
            yield stream
    finally:
        if handle >= 0:
            with suppress(OSError):
                os.close(handle)


def _check_header(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, and a header that is not strict JSON or tells of more than the file holds."""
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_JSON):
            raise _damaged(path, "its header is longer than the file")
        try:
            header = strict_json(stream.read(length).decode("utf-8"))
        except ValueError as error:
            raise _damaged(path, f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= size for n in shape):
            raise _damaged(path, f"the shape of {name!r} is {str(shape)[:60]}, more than the file holds")


def _damaged(path: str | os.PathLike[str], reason: object) -> ModelFileError:
    text = " ".join(str(reason).split())
    return ModelFileError(f"{path} is damaged or foreign ({text[:300]}); restore it or fit again")
