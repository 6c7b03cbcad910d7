"""Partitions for other programs: the dual graph, and the image of a plane as a triangle mesh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from girih._arrays import as_tensor, check_finite
from girih._extras import require
from girih._files import atomic_path
from girih.errors import LatentDimensionError, ParameterError, ShapeError
from girih.partition.codes import Lookup
from girih.partition.memory import Array
from girih.partition.partition import Partition
from girih.partition.polytope_cells import PolytopeCells

if TYPE_CHECKING:
    from networkx import Graph

_ROWS = 2**16
_DEVIATIONS = 4.0


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
        rows = [part.trace(torch.as_tensor(latent[i : i + _ROWS])) for i in range(0, len(latent), _ROWS)]
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
