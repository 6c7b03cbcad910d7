"""Partitions as other things: tensors of a file, and back; the dual graph; the image of a plane as a triangle mesh."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from girih._arrays import as_tensor, check_finite
from girih._extras import require
from girih._files import atomic_path
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.networks import Trace
from girih.partition.codes import Lookup, Packing
from girih.partition.complex import DOMAIN, Complex, Level
from girih.partition.intervals import Line, LineCells
from girih.partition.memory import Array
from girih.partition.partition import Partition, check_latent_dim
from girih.partition.polytope_cells import PolytopeCells
from girih.partition.subdivision import Cut, Subdivision

if TYPE_CHECKING:
    from networkx import Graph

_ROWS = 2**16
_DEVIATIONS = 4.0


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


def cell_graph(part: Partition) -> Graph:
    """The dual graph of a partition, for NetworkX.

    Args:
        part: a `girih.Partition`.

    Returns:
        Nodes 0 to R - 1, the cells, with `volume` and `prior_mass`; an edge for each shared facet, with the
        column of `patterns` that changes across it as `unit`.

    Example:
        >>> import girih, networkx
        >>> graph = girih.Partition(girih.mlp([2, 8, 2], seed=0)).graph()
        >>> graph.number_of_nodes(), networkx.is_connected(graph), sorted(graph.nodes[0])
        (37, True, ['prior_mass', 'volume'])
    """
    graph: Graph = require("networkx", "graphs").Graph()
    volumes, masses = part.volume.tolist(), part.prior_mass.tolist()
    graph.add_nodes_from(
        (i, {"volume": volume, "prior_mass": mass})
        for i, (volume, mass) in enumerate(zip(volumes, masses, strict=True))
    )
    units = part.separating_units.tolist()
    graph.add_edges_from((i, j, {"unit": unit}) for (i, j), unit in zip(part.neighbors.tolist(), units, strict=True))
    return graph


def write_mesh(part: Partition, path: str | os.PathLike[str], span: ArrayLike | None = None) -> None:
    """Write the image of the cells of a partition with S = 2 and D = 3 as a triangle mesh, atomically.

    The generator maps each cell to a flat polygon in space; neighbouring polygons share their vertices, so the
    surface has no cracks.

    Args:
        part: a `girih.Partition`, or a slice.
        path: a file that ends in .ply (binary, with the index in `part` of each triangle's cell as `cell`) or
            in .obj (text).
        span: the box that the cells are cut to: a number for `(-span, span)` in both latent coordinates, or
            `(low, high)`, numbers or `(2,)` each. By default 4 prior deviations, or nothing for a partition on a
            bounded domain.

    Raises:
        LatentDimensionError, ShapeError: S is not 2, or D is not 3.
        ParameterError: another file type, or a span that is empty or infinite.

    Example:
        >>> import girih, pathlib, tempfile
        >>> part = girih.Partition(girih.mlp([2, 8, 3], seed=0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     part.save_mesh(folder + "/surface.ply", span=3.0)
        ...     pathlib.Path(folder, "surface.ply").read_bytes()[:3]
        b'ply'
    """
    kind = Path(path).suffix.lower()
    if kind not in (".ply", ".obj"):
        raise ParameterError(f"a mesh is written as .ply or .obj, got {os.fspath(path)!r}; change the file's ending")
    if part.latent_dim != 2:
        raise LatentDimensionError(
            f"a mesh is the image of a plane, and this partition has S = {part.latent_dim}; use a generator with "
            "S = 2, or girih.Partition.slice"
        )
    if part.trace.output_dim != 3:
        raise ShapeError(
            f"a mesh lies in three dimensions, and this generator has D = {part.trace.output_dim} outputs; restrict "
            "its output to three of them, as in nn.Sequential(net, projection)"
        )
    latent, triangles, cells = _triangles(part, span)
    with torch.no_grad():
        rows = [
            part.trace(torch.as_tensor(latent[i : i + _ROWS], device=part.trace.device))
            for i in range(0, len(latent), _ROWS)
        ]
    vertices = torch.cat(rows).cpu().numpy()
    with atomic_path(path) as temporary:
        (_write_ply if kind == ".ply" else _write_obj)(temporary, vertices, triangles, cells)


def _triangles(part: Partition, span: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Latent vertices `(V, 2)`, triangles `(T, 3)` counter-clockwise in the latent plane, and their cells."""
    cells = part.polytopes
    if span is not None or (cells.complex.points[:, 2] == 0).any():
        bounded = _clipped(part, cells, span).polytopes
        origin = Lookup(cells.packed).find(bounded.packed)
    else:
        bounded, origin = cells, np.arange(len(cells))
    complex_ = bounded.complex
    edges, owner = complex_.levels[2].lists(np.arange(complex_.count))
    points = complex_.points[:, :2] / complex_.points[:, 2:]
    ends = complex_.ends.data[edges]
    around = points[ends] - bounded.inside[owner][:, None]
    flip = (around[:, 0, 0] * around[:, 1, 1] < around[:, 0, 1] * around[:, 1, 0])[:, None]
    ends = np.where(flip, ends[:, ::-1], ends)
    # a fan from one corner of each polygon over the edges that do not touch it
    _, first = np.unique(owner, return_index=True)
    corner = ends[first, 0][owner]
    apart = (ends != corner[:, None]).all(1)
    triangles = np.concatenate((corner[:, None], ends), 1)[apart]
    used, triangles = np.unique(triangles, return_inverse=True)
    return points[used], triangles.reshape(-1, 3), origin[bounded.cell_of_piece[owner[apart]]]


def _clipped(part: Partition, cells: PolytopeCells, span: ArrayLike | None) -> Partition:
    """The same partition on a box."""
    if span is None:
        high = _DEVIATIONS * part.prior_covariance.diagonal().sqrt()
        low = -high
    else:
        ends = list(span) if isinstance(span, tuple | list) else [span]
        if len(ends) not in (1, 2):
            raise ShapeError(f"span must be a number or (low, high), got {len(ends)} values")
        bounds = [as_tensor(end, "span").detach().cpu().reshape(-1) for end in ends]
        if any(len(bound) not in (1, 2) for bound in bounds):
            raise ShapeError("span must be a number or (low, high), with one or two values each")
        for bound in bounds:
            check_finite(bound, "span")
        high = bounds[-1].expand(2)
        low = bounds[0].expand(2) if len(bounds) == 2 else -high
        if not (low < high).all():
            raise ParameterError(f"span must have low < high, got {low.tolist()} and {high.tolist()}")
    eye = torch.eye(2, dtype=torch.float64)
    H, h = torch.cat((eye, -eye)), torch.cat((high, -low))
    if cells.halfspaces is not None:
        H = torch.cat((H, torch.as_tensor(cells.halfspaces[0])))
        h = torch.cat((h, torch.as_tensor(cells.halfspaces[1])))
    return Partition(part.trace, domain=(H, h), max_cells=max(len(part), 1), progress=False)


def _write_ply(path: Path, vertices: Array, triangles: Array, cells: Array) -> None:
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment girih: image of the cells of a latent partition\n"
        f"element vertex {len(vertices)}\nproperty double x\nproperty double y\nproperty double z\n"
        f"element face {len(triangles)}\nproperty list uchar int vertex_indices\nproperty int cell\nend_header\n"
    )
    faces = np.empty(len(triangles), [("count", "u1"), ("vertices", "<i4", (3,)), ("cell", "<i4")])
    faces["count"], faces["vertices"], faces["cell"] = 3, triangles, cells
    path.write_bytes(header.encode("ascii") + vertices.astype("<f8").tobytes() + faces.tobytes())


def _write_obj(path: Path, vertices: Array, triangles: Array, cells: Array) -> None:
    lines = ["# girih: image of the cells of a latent partition"]
    lines += [f"v {x!r} {y!r} {z!r}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (triangles + 1).tolist()]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
