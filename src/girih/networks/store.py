"""A fully connected chain as tensors and plain values, and back: what `girih.save` writes and `girih.load` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from girih.networks.activations import Abs
from girih.networks.stages import Affine
from girih.networks.trace import Trace


def chain_parts(trace: Trace) -> tuple[list[str], dict[str, Tensor]]:
    """The stages of a fully connected chain, and their numbers."""
    stages, tensors = [], {}
    for index, stage in enumerate(trace.stages):
        if isinstance(stage, Affine):
            tensors[f"{index}.weight"] = stage.weight
            if stage.has_bias:
                tensors[f"{index}.bias"] = stage.bias
            stages.append("affine")
        else:
            tensors[f"{index}.slope"] = stage.slope
            stages.append("kink")
    return stages, tensors


def chain_from(stages: Sequence[str], tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The chain that `chain_parts` took apart.

    Raises:
        KeyError, ValueError: the parts do not fit together.
    """
    return nn.Sequential(*(_layer(kind, index, tensors) for index, kind in enumerate(stages)))


def _layer(kind: str, index: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    if kind == "affine":
        weight, bias = tensors[f"{index}.weight"], tensors.get(f"{index}.bias")
        if weight.ndim != 2 or not weight.numel() or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(f"layer {index} has a weight of shape {tuple(weight.shape)} and another bias")
        linear = nn.utils.skip_init(
            nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
        return linear
    if kind != "kink":
        raise ValueError(f"unknown stage {kind!r}")
    slope = tensors[f"{index}.slope"]
    if slope.ndim == 0:
        value = float(slope)
        return nn.ReLU() if value == 0.0 else Abs() if value == -1.0 else nn.LeakyReLU(value)
    if slope.ndim != 1 or not slope.numel():
        raise ValueError(f"layer {index} has slopes of shape {tuple(slope.shape)}")
    prelu = nn.PReLU(len(slope), dtype=torch.float64)
    with torch.no_grad():
        prelu.weight.copy_(slope)
    return prelu
