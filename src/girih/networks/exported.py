"""Networks in files of `torch.export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import fx

from girih.errors import UnsupportedLayerError


def load_exported(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """Read a `.pt2` file.

    Raises:
        UnsupportedLayerError: another kind of file; ONNX is not supported.
    """
    file = Path(path)
    if file.suffix == ".onnx":
        raise UnsupportedLayerError(
            f"{file.name} is an ONNX file, which girih does not read: the converter onnx2torch pulls in torchvision. "
            "Export the network with torch.export.export and torch.export.save to a .pt2 file instead"
        )
    if file.suffix != ".pt2":
        raise UnsupportedLayerError(f"{file.name} is not a .pt2 file; write one with torch.export.save")
    return torch.export.load(file)


def program_input(module: fx.GraphModule) -> tuple[int, int | None]:
    """The latent dimension S of an exported program, and its batch size where that is fixed."""
    node = next(node for node in module.graph.nodes if node.op == "placeholder")
    shape: Any = node.meta["val"].shape
    if len(shape) != 2:
        raise UnsupportedLayerError(f"the exported network takes an input of shape {tuple(shape)}; it must be (N, S)")
    return int(shape[1]), shape[0] if isinstance(shape[0], int) else None
