"""The parts of a `.pt2` file, read without running anything that it holds.

Weights are raw bytes, or pickles of tensors alone, read by torch's restricted reader (`weights_only`). The sample
inputs, pickled objects and compiled code that the archive may hold as well are never opened.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from girih.errors import ModelFileError, UnsupportedLayerError

_MOST_NUMBERS = 2**31
_MOST_DEPTH = 200  # of JSON: torch itself writes less than twenty
_TYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


class Archive:
    """The members of a `.pt2` file.

    Args:
        file: where it is.

    Raises:
        ModelFileError: no such archive, or a damaged one.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise ModelFileError(f"there is no file {file}, or it is not a regular file")
        self.bytes = io.BytesIO(file.read_bytes())
        self.zip = zipfile.ZipFile(self.bytes)
        names = [info.filename for info in self.zip.infolist()]
        if len(set(names)) < len(names):
            raise ModelFileError("it holds two members of the same name")
        root = "" if "serialized_exported_program.json" in names else names[0].split("/")[0] + "/"
        self.members = {name.removeprefix(root): name for name in names if name.startswith(root)}

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str) -> bytes:
        """The bytes of a member; torch stores them as they are, so none is larger than the file."""
        if name not in self.members:
            raise ModelFileError(f"it has no member {name}")
        info = self.zip.getinfo(self.members[name])
        if info.compress_type != zipfile.ZIP_STORED:
            raise ModelFileError(f"its member {name} is compressed, which torch.export.save does not do")
        return self.zip.read(info)

    def json(self, name: str) -> Any:
        """A member as JSON."""
        text = self.read(name).decode("utf-8")
        depth = deepest = 0
        for sign in text:
            depth += (sign in "[{") - (sign in "]}")
            deepest = max(deepest, depth)
        if deepest > _MOST_DEPTH:
            raise ModelFileError(f"its member {name} is nested too deeply")
        return json.loads(text)

    def program(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The exported program as JSON, and its weights and constants by name."""
        if "serialized_exported_program.json" in self:  # up to torch 2.7
            model = self.json("serialized_exported_program.json")
            parts = ("serialized_state_dict.pt", "serialized_constants.pt")
            return model, {k: v for part in parts if part in self for k, v in self._tensors(part).items()}
        models = [name[7:-5] for name in self.members if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            raise ModelFileError(f"it holds {len(models)} exported programs, and one is expected")
        if "byteorder" in self and self.read("byteorder") != b"little":
            raise ModelFileError("its numbers are stored in another byte order")
        tensors: dict[str, Tensor] = {}
        for kind in ("weights", "constants"):
            whole, config = f"data/{kind}/{models[0]}.pt", f"data/{kind}/{models[0]}_{kind}_config.json"
            if whole in self:  # torch 2.8
                tensors |= self._tensors(whole)
            elif config in self:
                for name, entry in self.json(config)["config"].items():
                    if entry["tensor_meta"] is not None:  # else an object, which is not opened
                        tensors[name] = self._payload(f"data/{kind}/{entry['path_name']}", entry)
        return self.json(f"models/{models[0]}.json"), tensors

    def _payload(self, member: str, entry: dict[str, Any]) -> Tensor:
        if entry["use_pickle"]:
            return _tensor(self._unpickled(member), member)
        meta = entry["tensor_meta"]
        kind = _TYPES.get(meta["dtype"])
        if kind is None:
            raise UnsupportedLayerError(f"its weight {member} has a type of numbers that girih does not read")
        sizes, strides = (tuple(int(n["as_int"]) for n in meta[key]) for key in ("sizes", "strides"))
        offset = int(meta["storage_offset"]["as_int"])
        raw = bytearray(self.read(member))
        if len(sizes) != len(strides) or min((*sizes, *strides, offset), default=0) < 0 or len(raw) % kind.itemsize:
            raise ModelFileError(f"its weight {member} has a size that does not fit")
        count = math.prod(sizes)
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if count else -1
        if last >= len(raw) // kind.itemsize or count > _MOST_NUMBERS:
            raise ModelFileError(f"its weight {member} has a size that does not fit")
        if not count:
            return torch.zeros(sizes, dtype=kind)
        return torch.frombuffer(raw, dtype=kind).as_strided(sizes, strides, offset).clone()

    def _unpickled(self, member: str) -> Any:
        try:
            return torch.load(io.BytesIO(self.read(member)), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelFileError(
                f"its member {member} is damaged, or holds more than tensors, which could run code and is not opened"
            ) from error

    def _tensors(self, member: str) -> dict[str, Tensor]:
        found = self._unpickled(member)
        if not isinstance(found, dict):
            raise ModelFileError(f"its member {member} holds no table of tensors")
        return {str(name): _tensor(value, member) for name, value in found.items()}


def _tensor(value: Any, member: str) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise ModelFileError(f"its member {member} holds something else than plain tensors")
    return value.detach()
