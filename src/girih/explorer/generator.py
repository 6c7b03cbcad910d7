"""What a page needs to compute g(z) and the map of a cell itself: the steps of the network, in float64.

A map of each of 10,000 cells would weigh 10,000 D (S + 1) numbers; the network weighs as much as its weights, and gives
every map exactly. Where even that is too heavy, the maps of the heaviest cells go along instead, and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih.explorer.packed import Packed, exactly, packed
from girih.networks import AffineStep, KinkStep, LinearStep, MaxStep, Step, Trace
from girih.networks.affine_maps import Convolution, LinearMap

_BYTES = 3_000_000  # of a network within a page, before base64
_AT_ONCE = 256
_PLAIN = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "groups": 1}


def network_spec(traced: Trace, most: int = _BYTES) -> dict[str, Any] | None:
    """The steps of a network for the page, or `None` where they weigh more than `most` bytes.

    Example:
        >>> import girih
        >>> from girih.explorer.generator import network_spec
        >>> spec = network_spec(girih.trace(girih.mlp([2, 8, 3], seed=0)))
        >>> [step["kind"] for step in spec["steps"]]
        ['latent', 'dense', 'kink', 'dense']
    """
    steps: list[dict[str, Any]] = []
    left = most
    for step in traced.steps[: traced.output + 1]:
        with torch.no_grad():
            spec = _step(step, left)
        if spec is None:
            return None
        left -= _weight(spec)
        if left < 0:
            return None
        steps.append(spec | {"inputs": list(step.inputs), "size": step.size})
    return {"steps": steps}


def _weight(spec: Mapping[str, Any]) -> int:
    """The bytes of its arrays."""
    values = [*spec.values(), *(value for part in spec.get("parts", ()) for value in part.values())]
    return sum(3 * len(value["base64"]) // 4 for value in values if isinstance(value, dict))


def _step(step: Step, left: int) -> dict[str, Any] | None:
    if isinstance(step, KinkStep):
        return _kink(step)
    if isinstance(step, MaxStep):
        return {"kind": "max", "windows": packed(step.windows.cpu(), "i4"), "width": step.windows.shape[1]}
    if not isinstance(step, AffineStep):
        return {"kind": "latent"}
    shift: dict[str, Any] = {}
    bias = step.bias.detach().cpu()
    if bool((bias != 0.0).any()):
        shift = {"bias": exactly(bias)}
    if isinstance(step, LinearStep) or (isinstance(step.operator, LinearMap) and len(step.shapes[0]) == 1):
        assert isinstance(step.operator, LinearMap)
        return {"kind": "dense", "weight": exactly(step.operator.weight.value.detach().cpu()), **shift}
    if isinstance(step.operator, Convolution):
        spec = _convolution(step, step.operator)
        if spec is not None:
            return spec | shift
    parts = _parts(step, left)
    return None if parts is None else {"kind": "sparse", "parts": parts, **shift}


def _kink(step: KinkStep) -> dict[str, Any]:
    """Slopes and offsets of the pieces, one for all units or one each."""
    code = torch.arange(len(step.thresholds) + 1)
    code = 2 * code - 1 if len(code) == 2 else code - 1 if len(code) == 3 else code
    slopes = step.slopes(code[:, None].expand(-1, step.size)).expand(len(code), step.size).detach().cpu()
    same = bool((slopes == slopes[:, :1]).all())
    return {
        "kind": "kink",
        "thresholds": list(step.thresholds),
        "slopes": exactly(slopes[:, :1] if same else slopes),
        "offsets": list(step.constants),
    }


def _convolution(step: AffineStep, operator: Convolution) -> dict[str, Any] | None:
    """A convolution with numbers as its options; one dimension is a picture of height 1."""
    options = dict(_PLAIN) | dict(operator.options)
    pairs: dict[str, list[int]] = {}
    for name in ("stride", "padding", "dilation"):
        pair = options[name]
        pair = pair if isinstance(pair, tuple) else (pair,) * operator.dimensions
        if not all(isinstance(value, int) for value in pair):
            return None  # padding by name
        neutral = 0 if name == "padding" else 1
        pairs[name] = [neutral] * (2 - len(pair)) + [int(value) for value in pair if isinstance(value, int)]
    kernel = operator.weight.value.detach().cpu()
    shapes = [list(shape) for shape in (step.shapes[0], step.shape)]
    if any(len(shape) != operator.dimensions + 1 for shape in shapes):
        return None
    if operator.dimensions == 1:
        kernel = kernel[:, :, None]
        shapes = [[shape[0], 1, shape[1]] for shape in shapes]
    return {
        "kind": "convolution",
        "transposed": "transpose" in operator.function,
        "kernel": exactly(kernel),
        "window": list(kernel.shape[2:]),
        "from": shapes[0],
        "to": shapes[1],
        "groups": options["groups"],
        **pairs,
    }


def _parts(step: AffineStep, left: int) -> list[dict[str, Packed]] | None:
    """Any other affine map as a sparse matrix for each input: row, column and value of what is not 0."""
    out: list[dict[str, Packed]] = []
    sizes = [int(np.prod(shape)) for shape in step.shapes]
    for place, size in enumerate(sizes):
        rows, columns, values = [], [], []
        for start in range(0, size, _AT_ONCE):
            units = torch.arange(start, min(start + _AT_ONCE, size))
            probes = [torch.zeros(len(units), one, dtype=torch.float64, device=step.device) for one in sizes]
            probes[place][torch.arange(len(units)), units] = 1.0
            image: Tensor = step.linear(*probes).cpu()
            at, row = image.nonzero(as_tuple=True)
            rows.append(row)
            columns.append(units[at])
            values.append(image[at, row])
            left -= 16 * len(at)
            if left < 0:
                return None
        out.append(
            {
                "row": packed(torch.cat(rows), "i4"),
                "column": packed(torch.cat(columns), "i4"),
                "value": exactly(torch.cat(values)),
            }
        )
    return out


def map_spec(traced: Trace, patterns: Tensor, order: Tensor, most: int = _BYTES) -> dict[str, Any]:
    """The maps of as many cells as `most` bytes hold, in an order of worth, where the network is too heavy.

    Args:
        traced: the generator.
        patterns: of all cells, `(R, U)`.
        order: the cells, the most important first, `(R,)`.
        most: bytes.
    """
    D, S = traced.output_dim, traced.latent_dim
    kept = order[: max(1, most // (8 * D * (S + 1)))]
    with torch.no_grad():
        A, b = traced.maps(patterns[kept])
    return {
        "count": len(kept),
        "cells": packed(kept, "i4"),
        "slope": packed(A.cpu(), "f8"),
        "shift": packed(b.cpu(), "f8"),
    }
