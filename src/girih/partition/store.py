"""A partition as tensors and JSON, so that a file brings it back without computing it again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih.networks import Trace
from girih.partition.codes import Packing
from girih.partition.complex import DOMAIN, Complex, Level
from girih.partition.intervals import Line, LineCells
from girih.partition.memory import Array
from girih.partition.partition import Partition, check_latent_dim
from girih.partition.polytope_cells import PolytopeCells
from girih.partition.subdivision import Cut, Subdivision


def partition_tensors(part: Partition) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of a partition, without its network, and the numbers that go with them."""
    tensors, flags = part.cells.tensors()
    return {"prior": part.prior_covariance, **tensors}, {"latent_dim": part.latent_dim, **flags}


def partition_from(tensors: dict[str, Tensor], config: dict[str, Any], trace: Trace) -> Partition:
    """The partition that `partition_tensors` took apart, of the network `trace`.

    Raises:
        ValueError, KeyError, TypeError: parts that do not fit together.
    """
    dim = trace.latent_dim
    check_latent_dim(dim)
    _require(config["latent_dim"] == dim, "the latent dimension")
    _require(not int(torch.linalg.cholesky_ex(tensors["prior"]).info), "the prior")
    _require(tensors["prior"].shape == (dim, dim) and tensors["prior"].dtype == torch.float64, "the prior")
    cells = _line(tensors, trace) if dim == 1 else _polytopes(tensors, config, trace)
    return Partition._of(trace, tensors["prior"], cells)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} does not fit")


def _line(tensors: dict[str, Tensor], trace: Trace) -> LineCells:
    knots, patterns = tensors["knots"], tensors["patterns"]
    _require(knots.ndim == 1 and knots.dtype == torch.float64 and bool((knots.diff() > 0).all()), "knots")
    _require(patterns.dtype == torch.int8 and patterns.shape == (len(knots) + 1, trace.hidden_units), "patterns")
    low, high = (float(end) for end in tensors["domain"])
    _require(not math.isnan(low) and low < high and bool(((knots > low) & (knots < high)).all()), "the domain")
    return LineCells(Line(knots, patterns), low, high)


def _polytopes(tensors: dict[str, Tensor], config: dict[str, Any], trace: Trace) -> PolytopeCells:
    dim = trace.latent_dim
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if not name[0].isdigit()}
    points, ends = arrays["points"], arrays["ends"]
    _require(points.ndim == 2 and points.shape[1] == dim + 1 and points.dtype == np.float64, "points")
    _require(bool(np.isfinite(points).all()) and bool(np.isin(points[:, -1], (0.0, 1.0)).all()), "points")
    _require(ends.ndim == 2 and ends.shape[1] == 2 and _indices(ends, len(points)), "ends")
    levels, below = {}, len(ends)
    for k in range(2, dim + 1):
        members, length = arrays[f"faces.{k}"], arrays[f"sizes.{k}"]
        _require(_indices(members, below) and _indices(length, len(members) + 1), f"faces of dimension {k}")
        _require(members.ndim == length.ndim == 1 and length.sum() == len(members), f"faces of dimension {k}")
        _require(bool((length > 1).all()), f"faces of dimension {k}")
        levels[k] = Level(length, members)
        facets, below = below, len(length)
    label, codes, rows = arrays["label"], arrays["codes"], arrays["cuts"]
    _require(codes.dtype == np.int8 and codes.ndim == 2 and codes.shape[1] == trace.hidden_units, "codes")
    cuts = [
        Cut(int(step), int(unit), int(column), float(at))
        for (step, unit, column), at in zip(rows, arrays["thresholds"], strict=True)
    ]
    _require(all(0 <= cut.step < len(trace.steps) and 0 <= cut.column < codes.shape[1] for cut in cuts), "cuts")
    _require(all(0 <= cut.unit < trace.steps[cut.step].size for cut in cuts), "cuts")
    halfspaces = None
    if "domain.H" in arrays:
        halfspaces = (arrays["domain.H"], arrays["domain.h"])
        _require(halfspaces[0].shape == (len(halfspaces[1]), dim), "the domain")
    faces = 0 if halfspaces is None else len(halfspaces[1])
    _require(
        label.shape == (facets,) and _indices(label - (DOMAIN - faces + 1), len(cuts) - DOMAIN + faces - 1), "label"
    )
    several, cell_of_piece = bool(config["several"]), arrays["cell_of_piece"]
    _require(cell_of_piece.shape == (below,) and _indices(cell_of_piece, len(codes)), "cell_of_piece")
    _require(len(np.unique(cell_of_piece)) == len(codes), "cell_of_piece")
    complex_ = Complex(dim, points, ends, levels, label)
    return PolytopeCells(
        trace, Subdivision(complex_, Packing(trace.steps).pack(codes)[cell_of_piece], cuts, several), halfspaces
    )


def _indices(values: Array, count: int) -> bool:
    return values.dtype == np.int64 and (not values.size or (int(values.min()) >= 0 and int(values.max()) < count))
