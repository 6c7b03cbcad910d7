"""The file that a run saves itself to, so that it goes on, after a kill, to the same numbers: for gradients and EM."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from girih._files import read_regular, read_tensors, write_tensors
from girih._options import whole
from girih.errors import CheckpointError, ModelFileError, ParameterError
from girih.networks import drawn_seed

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

_KIND = "checkpoint-3"
_SHARE = 20.0  # a run trains this many times as long as it saves itself
_ADVICE = "pass another path, or delete the file to start anew"


class Checkpoint:
    """You save the state of a run with it, nested dicts, lists and tuples of tensors and plain values, as safetensors.

    Args:
        path: the file.
        settings: what must agree between the run that wrote it and the run that goes on, by name.
        seconds: time between writes, which are further apart where a write takes more than a 20th of that; 0 writes
            whenever it can.

    Example:
        >>> import tempfile, torch
        >>> from girih.training import Checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saved = Checkpoint(f"{folder}/run.ckpt", {"lr": 0.1})
        ...     saved.write({"steps": 3, "weights": [torch.ones(2), None]})
        ...     saved.read()
        {'steps': 3, 'weights': [tensor([1., 1.]), None]}
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None, seconds: float = 2.0
    ) -> None:
        self.path, self.settings, self._seconds = Path(path), dict(settings or {}), seconds
        self._written, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """True when it is time to write."""
        least = max(self._seconds, _SHARE * self._took) if self._seconds else 0.0
        return time.monotonic() - self._written >= least

    def write(self, contents: Mapping[str, Any]) -> None:
        """Write the file in one piece: a reader finds the old one or the new one, never half of one.

        Raises:
            ParameterError: the contents or the settings hold something else than tensors and plain values.
        """
        began, tensors = time.monotonic(), dict[str, Tensor]()
        tree = {"settings": _apart(self.settings, tensors), "contents": _apart(dict(contents), tensors)}
        write_tensors(self.path, tensors, {"kind": _KIND, **tree})
        self._written = time.monotonic()
        self._took = self._written - began

    def read(self) -> dict[str, Any] | None:
        """The contents, every tensor on the CPU, or `None` where there is no file yet; reading runs no code.

        Raises:
            ModelFileError: the file is damaged, or not a checkpoint of this version of girih.
            CheckpointError: it belongs to a run with other settings or data.
        """
        if not self.path.exists():
            return None
        settings, contents = _read(self.path)
        for name, value in self.settings.items():
            was = settings.get(name)
            if was != value:
                if name == "data":
                    raise CheckpointError(f"{self.path} belongs to a run on other data; {_ADVICE}")
                raise CheckpointError(
                    f"{self.path} belongs to a run with {name}={was!r}, but now {name}={value!r}; {_ADVICE}"
                )
        return contents

    def check_model(self, contents: Mapping[str, Any], model: nn.Module) -> None:
        """Refuse a model that has neither the parameters the run began with, nor those of its last step, nor its best.

        Raises:
            CheckpointError: it has others.
        """
        if model_digest(model) not in (contents["initial"], contents["current"], contents["best"]):
            raise CheckpointError(
                f"{self.path} belongs to a run of another model, or of other initial parameters; {_ADVICE}"
            )


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
    return int(_read(Path(path))[0]["seed"])


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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the contents of a file."""
    try:
        tensors, metadata = read_tensors(path)
    except ModelFileError as error:
        if read_regular(path, 2) == b"PK":
            raise _of_another_version(path, "a zip file") from None
        reason = str(error).partition(";")[0]
        raise ModelFileError(f"{path} is not a readable checkpoint: {reason}; {_ADVICE}") from error
    kind = metadata.get("kind")
    if kind != _KIND:
        raise _of_another_version(path, repr(kind))
    # a copy lies in memory as a tensor that was computed does; one in a file buffer may be rounded otherwise
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        settings, contents = (_together(metadata[name], tensors) for name in ("settings", "contents"))
        return cast(dict[str, Any], settings), cast(dict[str, Any], contents)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is not a readable checkpoint ({error!r}); {_ADVICE}") from error


def _of_another_version(path: Path, found: str) -> ModelFileError:
    return ModelFileError(
        f"{path} is not a checkpoint of this version of girih ({found}, not {_KIND!r}; those of 0.1.0 cannot be "
        f"continued); {_ADVICE}"
    )


def _apart(value: object, tensors: dict[str, Tensor]) -> JSON:
    """A value as JSON, its tensors in `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[_apart(key, tensors), _apart(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list):
        return [_apart(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_apart(item, tensors) for item in value]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else {"whole": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    raise ParameterError(f"a checkpoint holds tensors and plain values, no {type(value).__name__}; leave it out")


def _together(tree: JSON, tensors: Mapping[str, Tensor]) -> object:
    """The value that `_apart` took apart."""
    if isinstance(tree, list):
        return [_together(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind in ("whole", "float"):
        return (int if kind == "whole" else float)(str(value))
    if kind == "tensor":
        return tensors[str(value)]
    if not isinstance(value, list):
        raise TypeError(f"{kind} without a list")
    if kind == "pairs":
        return {_together(key, tensors): _together(item, tensors) for key, item in cast(list[list[JSON]], value)}
    if kind == "tuple":
        return tuple(_together(item, tensors) for item in value)
    raise KeyError(kind)
