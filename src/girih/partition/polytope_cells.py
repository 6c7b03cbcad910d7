"""The cells of a two- or three-dimensional latent space: everything that follows from the complex."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from girih.networks import Jet, MaxStep, Trace
from girih.partition.cells import Cells, Corners, halfspaces
from girih.partition.codes import Lookup, Packing
from girih.partition.complex import DOMAIN, FAKE, IDEAL
from girih.partition.measures import boundary, interior_points, log_masses, piece_vertices, simplices, volumes
from girih.partition.memory import Array, Limits
from girih.partition.subdivision import Subdivision, subdivide

_TOUCHES = 1e-9
_NOTHING = -800.0  # the smallest double is exp(-744.4)
_KEPT = 2**26  # bytes of patterns


class PolytopeCells(Cells):
    """Cells as one or several pieces of a complex.

    Args:
        trace: the generator.
        subdivision: from `subdivide`.
        halfspaces: of the domain, `H z <= h`, or `None` for the whole latent space.
    """

    def __init__(self, trace: Trace, subdivision: Subdivision, halfspaces: tuple[Array, Array] | None) -> None:
        self.trace, self.cuts = trace, subdivision.cuts
        self.complex, self.halfspaces = subdivision.complex, halfspaces
        codes = subdivision.codes
        self.several = subdivision.several
        if self.several:
            codes, self.cell_of_piece = np.unique(codes, axis=0, return_inverse=True)
            self.cell_of_piece = self.cell_of_piece.reshape(-1)
        else:
            self.cell_of_piece = np.arange(len(codes))
        self.packing, self.packed = Packing(trace.steps), codes

    @classmethod
    def of(cls, trace: Trace, domain: object, limits: Limits, progress: bool = True) -> PolytopeCells:
        """The polytopes of a network with S = 2 or 3; `domain` as in `Partition`."""
        faces = halfspaces(domain, trace.latent_dim)
        return cls(trace.frozen(), subdivide(trace, faces, limits, progress), faces)

    @property
    def domain(self) -> tuple[Array, Array] | None:
        """The half-spaces of the domain, or `None` for the whole latent space."""
        return self.halfspaces

    @property
    def extent(self) -> str:
        """The domain as text."""
        return "whole space" if self.halfspaces is None else f"{len(self.halfspaces[1])} half-spaces"

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def codes(self) -> Array:
        """The code of every hidden unit on every cell, `(R, U)` int8."""
        return self.packing.unpack(self.packed)

    @property
    def patterns(self) -> Tensor:
        """The codes on the device of the network; they are kept where that takes little."""
        return self._kept if len(self) * self.trace.hidden_units <= _KEPT else self._made(self.packed)

    def nested(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """So many cells at a time with patterns, next to those that share the codes of the first layers."""
        for some in torch.from_numpy(self.packing.nested_order(self.packed)).split(size):
            yield some, self._made(self.packed[some.numpy()])

    @cached_property
    def _kept(self) -> Tensor:
        return self._made(self.packed)

    def _made(self, packed: Array) -> Tensor:
        return torch.as_tensor(self.packing.unpack(packed)).to(self.trace.device)

    # Pieces

    @cached_property
    def corners(self) -> tuple[Array, Array]:
        """Every (vertex, piece) pair once, sorted by piece."""
        return piece_vertices(self.complex)

    @cached_property
    def inside(self) -> Array:
        """A point inside every piece, `(P, S)`."""
        return interior_points(self.complex, *self.corners)

    @cached_property
    def sides(self) -> Array:
        """The one or two pieces of every facet, `(F, 2)`; -1 for none."""
        facets, owner = self.complex.levels[self.complex.dim].lists(np.arange(self.complex.count))
        order = np.argsort(facets, kind="stable")
        facets, owner = facets[order], owner[order]
        first = np.concatenate(([True], facets[1:] != facets[:-1]))
        out = np.full((len(self.complex.label), 2), -1)
        out[facets[first], 0] = owner[first]
        out[facets[~first], 1] = owner[~first]
        return out

    @cached_property
    def _pieces(self) -> tuple[Array, Array]:
        """Pieces sorted by cell, and where each cell's begin."""
        return np.argsort(self.cell_of_piece, kind="stable"), np.searchsorted(
            np.sort(self.cell_of_piece), np.arange(len(self) + 1)
        )

    def pieces(self, i: int) -> Array:
        """The pieces of cell i."""
        order, start = self._pieces
        return order[start[i] : start[i + 1]]

    def _sum(self, values: Array) -> Array:
        return np.bincount(self.cell_of_piece, values, minlength=len(self))

    @property
    def piece_cells(self) -> Tensor:
        """The cell of each piece, `(P,)`."""
        return torch.as_tensor(self.cell_of_piece)

    def piece_corners(self) -> Corners:
        """The finite vertices and unit rays of all pieces."""
        vertex, owner = self.corners
        at = self.complex.points[vertex]
        finite = at[:, -1] > 0
        ray = torch.as_tensor(at[~finite, :-1])
        ray = ray / torch.linalg.vector_norm(ray, dim=1, keepdim=True)
        owners = torch.as_tensor(owner[finite]), torch.as_tensor(owner[~finite])
        return Corners(torch.as_tensor(at[finite, :-1]), owners[0], ray, owners[1])

    def simplices(self) -> tuple[Tensor, Tensor]:
        """What bounded pieces are made of, and of which piece each is a part."""
        corner, piece = simplices(self.complex, self.inside)
        return torch.as_tensor(corner), torch.as_tensor(piece)

    # Cells

    @cached_property
    def _volumes(self) -> tuple[Array, Array]:
        volume, centroid = volumes(self.complex, self.inside, boundary(self.complex, self.inside))
        if not self.several:
            return volume, centroid
        total, out = self._sum(volume), np.full((len(self), self.complex.dim), np.nan)
        share = np.where(np.isfinite(volume), volume, 0.0)
        finite = np.isfinite(total) & (total > 0)
        for axis in range(out.shape[1]):
            out[finite, axis] = self._sum(share * np.nan_to_num(centroid[:, axis]))[finite] / total[finite]
        return total, out

    @property
    def volume(self) -> Tensor:
        """Area or volume of every cell, infinite for unbounded ones."""
        return torch.as_tensor(self._volumes[0])

    @property
    def centroid(self) -> Tensor:
        """Centroid of every cell, NaN for unbounded ones."""
        return torch.as_tensor(self._volumes[1])

    def prior_mass(self, factor: Array) -> Tensor:
        """Mass of every cell under `N(0, L L^T)`; of those that round to 0 the logarithm, costly then, is not taken."""
        return self.log_prior_mass(factor, _NOTHING).exp()

    def log_prior_mass(self, factor: Array, least: float = -np.inf) -> Tensor:
        """Log mass of every cell under `N(0, L L^T)`; -inf allowed where it is below `least`."""
        pieces = log_masses(self.complex, self.inside, factor, least)
        if not self.several:
            return torch.as_tensor(pieces)
        out = np.full(len(self), -np.inf)
        np.logaddexp.at(out, self.cell_of_piece, pieces)
        return torch.as_tensor(out)

    @cached_property
    def interior(self) -> Tensor:
        """A point inside every cell, `(R, S)`."""
        return torch.as_tensor(self.inside[self._pieces[0][self._pieces[1][:-1]]])

    @cached_property
    def piece_origins(self) -> Tensor:
        """The vertex of every piece that is nearest to 0, or 0 where its cell is one piece that holds 0, `(P, S)`."""
        vertices, owner = self.corners
        points = self.complex.points[vertices]
        distance = np.where(points[:, -1] > 0, np.linalg.norm(points[:, :-1], axis=1), np.inf)
        order = np.lexsort((distance, owner))
        first = np.searchsorted(owner, np.arange(self.complex.count))
        out = points[order[first], :-1].copy()
        home = int(self.locate(torch.zeros(1, out.shape[1], dtype=torch.float64))[0])
        if home >= 0 and len(self.pieces(home)) == 1:
            out[self.pieces(home)] = 0.0
        return torch.as_tensor(out)

    @property
    def piece_patterns(self) -> Tensor:
        """The code of every hidden unit on every piece, `(P, U)` int8."""
        return self._made(self.packed[self.cell_of_piece]) if self.several else self.patterns

    @cached_property
    def origins(self) -> Tensor:
        """A vertex of every cell that is near 0, or 0 where the cell holds it, `(R, S)`."""
        distance = self.piece_origins.norm(dim=1).numpy()
        order = np.lexsort((distance, self.cell_of_piece))
        return self.piece_origins[order[self._pieces[1][:-1]]]

    @cached_property
    def _adjacency(self) -> tuple[Array, Array]:
        """Neighbouring cells, lower number first, and the facet label between them; sorted, each pair once."""
        inner = (self.sides[:, 1] >= 0) & (self.complex.label.data != IDEAL)
        pairs = np.sort(self.cell_of_piece[self.sides[inner]], 1)
        label = self.complex.label.data[inner]
        apart = pairs[:, 0] != pairs[:, 1]
        pairs, label = pairs[apart], label[apart]
        if not len(pairs):
            return np.empty((0, 2), np.int64), label
        _, first = np.unique(pairs[:, 0] * len(self) + pairs[:, 1], return_index=True)
        return pairs[first], label[first]

    @property
    def neighbors(self) -> Tensor:
        """Index pairs of cells that share a facet, `(E, 2)`."""
        return torch.as_tensor(self._adjacency[0])

    @property
    def separating_units(self) -> Tensor:
        """The column of `patterns` that tells each pair of neighbours apart, `(E,)`."""
        column = np.array([cut.column for cut in self.cuts], np.int64)
        return torch.as_tensor(column[self._adjacency[1]])

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.packed)

    def _find(self, z: Tensor) -> Array:
        """The cell with the pattern of each z, -1 for none."""
        rows = max(_KEPT // max(self.trace.hidden_units, 1), 1)
        return np.concatenate(
            [
                self._lookup.find(self.packing.pack(self.trace.pattern(part.to(self.trace.device)).cpu().numpy()))
                for part in z.split(rows)
            ]
        )

    def _room(self, points: Array) -> Array:
        """The distance of points from the end of the domain, `(N,)`; negative outside."""
        if self.halfspaces is None:
            return np.full(len(points), np.inf)
        H, h = self.halfspaces
        result: Array = ((h - points @ H.T) / np.linalg.norm(H, axis=1)).min(1)
        return result

    def locate(self, z: Tensor) -> Tensor:
        """The cell of each z, -1 outside the domain."""
        rows = z.cpu()
        index = self._find(rows)
        known = self._room(rows.numpy()) >= 0.0
        for row in np.flatnonzero(known & (index < 0)):  # on a face, where the pattern is that of no cell
            index[row] = self._nearest(rows[row].numpy())
        return torch.as_tensor(np.where(known, index, -1)).to(z.device)

    def _nearest(self, point: Array) -> int:
        """The cell of a point on a face: that of the nearest point that is inside one."""
        directions = np.random.default_rng(0).normal(size=(64, len(point)))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        for size in np.logspace(-14, -6, 17):
            around = point + size * (1.0 + np.abs(point).max()) * directions
            around = around[self._room(around) >= 0.0]
            found = self._find(torch.as_tensor(around))
            if (found >= 0).any():
                return int(found[found >= 0][0])
        return -1

    def touching(self, point: Array) -> list[int]:
        """All cells whose closure holds a point, by walking over the faces that do."""
        room = _TOUCHES * (1.0 + np.abs(point).max())
        if self._room(point[None])[0] < -room:
            return []
        first = int(self.locate(torch.as_tensor(point)[None])[0])
        first = self._nearest(point) if first < 0 else first
        found, queue = {first}, [first]
        while queue:
            for j in self.neighbours_of(queue.pop()):
                if j not in found:
                    H, h = (part.numpy() for part in self.cell_halfspaces(j))
                    if (H @ point <= h + room).all():
                        found.add(j)
                        queue.append(j)
        return sorted(found)

    @cached_property
    def _graph(self) -> tuple[Array, Array]:
        pairs = self._adjacency[0]
        both = np.concatenate((pairs, pairs[:, ::-1]))
        both = both[np.argsort(both[:, 0], kind="stable")]
        return both[:, 1], np.searchsorted(both[:, 0], np.arange(len(self) + 1))

    def neighbours_of(self, i: int) -> list[int]:
        """The cells that share a facet with cell i."""
        other, start = self._graph
        return [int(j) for j in other[start[i] : start[i + 1]]]

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, bool]]:
        """The complex, the patterns, and what made each facet."""
        complex_ = self.complex
        arrays = {
            "points": complex_.points,
            "ends": complex_.ends.data,
            "label": complex_.label.data,
            "codes": self.codes,
            "cell_of_piece": self.cell_of_piece,
            "cuts": np.array([cut[:3] for cut in self.cuts], np.int64).reshape(-1, 3),
            "thresholds": np.array([cut.threshold for cut in self.cuts], np.float64),
        }
        for k, level in complex_.levels.items():
            members, _ = level.lists(np.arange(len(level)))
            arrays |= {f"faces.{k}": members, f"sizes.{k}": level.length.data}
        if self.halfspaces is not None:
            arrays["domain.H"], arrays["domain.h"] = self.halfspaces
        found = {name: torch.as_tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return found, {"several": self.several}

    # One cell

    def cell_halfspaces(self, i: int) -> tuple[Tensor, Tensor]:
        """The irredundant half-spaces of cell i, unit normals: `H z <= h`."""
        pieces = self.pieces(i)
        facets, owner = self.complex.levels[self.complex.dim].lists(pieces)
        label = self.complex.label.data[facets]
        other = self.sides[facets]
        beyond = np.where(other[:, 0] == pieces[owner], other[:, 1], other[:, 0])
        across = np.where(beyond >= 0, self.cell_of_piece[beyond], -1)
        outer = (label != IDEAL) & (across != i)
        # one half-space for each neighbour, or for each face of the domain: cells are convex
        keys, first = np.unique(np.where(across >= 0, across, label)[outer], return_index=True)
        label = label[outer][first]
        jets = self._jets(i)
        rows = [self._halfspace(i, int(j), int(k), jets) for j, k in zip(keys, label, strict=True)]
        dim = self.complex.dim
        H = np.array([row[:dim] for row in rows]).reshape(-1, dim)
        h = np.array([row[dim] for row in rows])
        size = np.linalg.norm(H, axis=1)
        return torch.as_tensor(H / size[:, None]), torch.as_tensor(h / size)

    def _halfspace(self, i: int, neighbour: int, label: int, jets: list[Jet]) -> Array:
        """The half-space of cell i that ends at a neighbour, as (normal, offset), from the weights of the network."""
        if label <= DOMAIN:
            assert self.halfspaces is not None
            H, h = self.halfspaces
            return np.append(H[DOMAIN - label], h[DOMAIN - label])
        assert label != FAKE
        cut = self.cuts[label]
        step, column = self.trace.steps[cut.step], cut.column
        value, slope = (part[0].cpu().numpy() for part in jets[step.inputs[0]])  # what the unit of the cut reads
        mine, theirs = self.packing.unpack(self.packed[[i, neighbour]])[:, column].tolist()
        if isinstance(step, MaxStep):
            window = step.windows[cut.unit]
            a, b = window[mine], window[theirs]  # mine >= theirs inside
            return np.append(slope[b] - slope[a], value[a] - value[b])
        sign = 1.0 if mine < theirs else -1.0
        return np.append(sign * slope[cut.unit], sign * (cut.threshold - value[cut.unit]))

    def _jets(self, i: int) -> list[Jet]:
        """The affine map of every step on cell i, about 0."""
        with torch.no_grad():
            return self.trace.jets(
                self._made(self.packed[i : i + 1]), torch.zeros(1, self.complex.dim, dtype=torch.float64)
            )

    def cell_points(self, i: int) -> tuple[Tensor, Tensor]:
        """The vertices `(V, S)` and extreme rays `(K, S)` of cell i; of a line in the cell, both directions."""
        vertices, owner = self.corners
        pieces = self.pieces(i)
        start = np.searchsorted(owner, pieces)
        stop = np.searchsorted(owner, pieces, side="right")
        ids = np.unique(np.concatenate([vertices[a:b] for a, b in zip(start, stop, strict=True)]))
        points = self.complex.points[ids]
        finite = points[:, -1] > 0
        spots, rays = points[finite, :-1], points[~finite, :-1]
        if self.several:
            spots, rays = self._extreme(i, spots, rays)
        elif self.complex.dim == 2 and len(spots) > 2:
            around = spots - spots.mean(0)
            spots = spots[np.argsort(np.arctan2(around[:, 1], around[:, 0]), kind="stable")]
        return torch.as_tensor(spots), torch.as_tensor(rays)

    def _extreme(self, i: int, spots: Array, rays: Array) -> tuple[Array, Array]:
        """The vertices and rays of a cell among those of its pieces."""
        H, h = (part.numpy() for part in self.cell_halfspaces(i))
        dim = self.complex.dim
        rank = int(np.linalg.matrix_rank(H, tol=1e-9)) if len(H) else 0
        lines = np.linalg.svd(H)[2][rank:] if len(H) else np.eye(dim)
        room = _TOUCHES * (1.0 + np.abs(h))
        span = np.eye(dim) - lines.T @ lines
        keep: list[Array] = []
        for spot in spots @ span:
            active = np.abs(H @ spot - h) <= room + _TOUCHES * np.abs(spot).max(initial=0.0)
            full = (np.linalg.matrix_rank(H[active], tol=1e-9) if active.any() else 0) == rank
            if full and not any(np.allclose(spot, other, rtol=1e-9, atol=1e-12) for other in keep):
                keep.append(spot)
        out = [*lines, *-lines]
        for ray in rays @ span:
            size = np.linalg.norm(ray)
            if size < 1e-9 or (H @ ray > _TOUCHES * size).any():
                continue
            active = np.abs(H @ ray) <= _TOUCHES * size
            extreme = (np.linalg.matrix_rank(H[active], tol=1e-9) if active.any() else 0) >= rank - 1
            if extreme and not any(np.allclose(ray / size, other, atol=1e-9) for other in out):
                out.append(ray / size)
        return np.array(keep).reshape(-1, dim), np.array(out).reshape(-1, dim)
