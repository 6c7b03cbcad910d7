"""Saving a run so that it goes on, after a kill, to the same numbers."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from girih._files import atomic_path, read_regular
from girih._options import whole
from girih.errors import ModelFileError, ParameterError
from girih.networks import drawn_seed

_FORMAT = "girih-training-2"
_ADVICE = "pass another path, or delete the file to start anew"
_SUM = b"\nsha256:"  # after what torch wrote, which it does not mind; earlier versions wrote none


def digest(*tensors: Tensor) -> str:
    """A fingerprint of the contents of tensors."""
    hasher = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        hasher.update(f"{tuple(array.shape)} {array.dtype}".encode())
        hasher.update(array.flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def model_digest(model: nn.Module) -> str:
    """A fingerprint of the parameters and buffers of a model."""
    return digest(*model.state_dict().values())


def save(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint in one piece: a reader finds the old one or the new one, never half of one."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **contents}, buffer)
    written = buffer.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_bytes(written + _SUM + hashlib.sha256(written).hexdigest().encode())


def seed_of_run(seed: int | None, path: str | os.PathLike[str] | None) -> int:
    """The seed of a run: the one asked for; without one, that of the checkpoint it goes on from, or a drawn one.

    Torch's global generator moves on by one draw in both of the latter cases, so that whatever follows in a script is
    the same.
    """
    if seed is not None:
        return whole(seed, "seed", None)
    drawn = drawn_seed()
    if path is None or not os.path.exists(path):
        return drawn
    return int(_read(Path(path))["settings"]["seed"])


def _read(path: Path) -> dict[str, Any]:
    raw = read_regular(path)
    written, mark, digest = raw.rpartition(_SUM)
    if mark and hashlib.sha256(written).hexdigest().encode() != digest:
        raise ModelFileError(f"{path} is not a readable checkpoint (its checksum does not match); {_ADVICE}")
    try:
        # every tensor on the CPU: the random states live there, and the parameters are copied to the model's device
        contents = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        raise ModelFileError(f"{path} is not a readable checkpoint ({type(error).__name__}); {_ADVICE}") from error
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        found = contents.get("format") if isinstance(contents, dict) else type(contents).__name__
        raise ModelFileError(f"{path} is not a checkpoint of this version ({found!r}, not {_FORMAT!r}); {_ADVICE}")
    return contents


def load(path: Path, settings: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Read a checkpoint and check that it belongs to this run; loading runs no code.

    Args:
        path: an existing file.
        settings: what must agree between the run that wrote it and the run that goes on.
        model: as the user passed it: with the parameters the run began with, those of its last step, or its best.

    Raises:
        ModelFileError: the file is damaged, or not a checkpoint of this version of girih.
        ParameterError: it belongs to a run with other settings, data or initial parameters.
    """
    contents = _read(path)
    for name, value in settings.items():
        if contents["settings"].get(name) != value:
            if name == "data":
                raise ParameterError(f"{path} belongs to a run on other data; {_ADVICE}")
            was = contents["settings"].get(name)
            raise ParameterError(f"{path} belongs to a run with {name}={was!r}, but now {name}={value!r}; {_ADVICE}")
    now = model_digest(model)
    if now not in (contents["initial"], contents["current"], contents["best"]):
        raise ParameterError(f"{path} belongs to a run of another model, or of other initial parameters; {_ADVICE}")
    return contents
