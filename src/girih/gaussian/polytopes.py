r"""Lists of convex polygons or polyhedra, for what the standard normal does on each: mass, moments, draws.

Points are homogeneous: `(x, 1)` is a point, `(x, 0)` is infinity in the direction x.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from girih._devices import room
from girih.gaussian import masses, prepared
from girih.gaussian.masses import Form
from girih.gaussian.nearest import polygon_nearest, polyhedron_nearest
from girih.gaussian.prepared import Prepared, edges_in_space, first_of_each, lines
from girih.gaussian.sampling import sample
from girih.gaussian.signed import signed_mass, signed_moments, solid_angle_at_infinity
from girih.gaussian.slices import tilted_frame
from girih.gaussian.tables import (
    PolygonTable,
    PolyhedronTable,
    Table,
    angle_at_infinity,
    buckets,
    complete,
    flatten,
    gather,
    pad,
    polygon_table,
    polyhedron_table,
    slots,
)


class Polytopes:
    """This is what lists of `Polygons` (S = 2) and of `Polyhedra` (S = 3) have in common."""

    tail: Tensor
    head: Tensor
    owner: Tensor
    count: int

    def log_mass(self, form: Form = "best") -> Tensor:
        """`log P(x in set)` for `x ~ N(0, I)`, `(count,)`, nats; -inf for sets without area or volume.

        Args:
            form: "best" chooses for each set; "slices" is slow and right for all, "cones" for small sets only, with NaN
                for others: they check each other.

        Returns:
            Errors are below `1e-10 max(1, |log P|)` (S = 2) or `1e-9 max(1, |log P|)` (S = 3), however small the mass.

        Source:
            Owen (1956) for the signed form of polygons, design point 5 of girih for that of polyhedra (the divergence
            theorem with the radial distribution); the form by slices is girih's.
        """
        if (flat := self._flat(form)) is not None:
            return flat.log_mass(form)
        out = self.tail.new_zeros(self.count)
        for chosen, table in self._tables():
            out[chosen] = masses.log_mass(table, form)
        return out

    def _flat(self, form: Form = "best") -> masses.Flat | None:
        """The sets for compiled code, where it has this form of them."""
        return None

    def mass(self) -> Tensor:
        """`P(x in set)`, `(count,)`, to an absolute error of about 1e-15 per edge: faster than `log_mass` in tails."""
        if prepared.serve(self.tail):
            return self.prepared().masses(*self._as_they_are()).clamp_(min=0.0)
        out = self.tail.new_zeros(self.count)
        for chosen, table in self._tables():
            out[chosen] = signed_mass(table).clamp(min=0.0)
        return out

    def least_log_mass(self, point: Tensor, slack: Tensor) -> Tensor:
        """A lower bound on `log_mass` in a fraction of its time, `(count,)`, by Jensen's inequality.

        Args:
            point: a point of each set, `(count, S)`: the bound is good for the one nearest to the origin.
            slack: by how much points may be off, `(count,)`.
        """
        return masses.least_log_mass(self._cones(point), point, slack)

    def raw_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """`E[1]`, `E[x]` and `E[x x^T]` over each set, not divided by the mass, as exact as `mass`.

        Returns:
            `(count,)`, `(count, S)` and `(count, S, S)`.
        """
        if prepared.serve(self.tail):
            return self.prepared().moments(*self._as_they_are())
        out = self._rooms()
        for chosen, table in self._tables():
            for total, part in zip(out, signed_moments(table), strict=True):
                total[chosen] = part
        return out

    def moments(self, form: Form = "best") -> tuple[Tensor, Tensor, Tensor]:
        """Log-mass (nats), mean and covariance of `x ~ N(0, I)` truncated to each set.

        Args:
            form: as in `log_mass`.

        Returns:
            `(count,)`, `(count, S)` and `(count, S, S)`, the last two accurate relative to the spread on the set.
        """
        log_mass, mean, root = self.roots(form)
        return log_mass, mean, root @ root.mT

    def roots(self, form: Form = "best") -> tuple[Tensor, Tensor, Tensor]:
        """As `moments`, with roots R of the covariances, `C = R R^T`: they keep the deviation across a thin set."""
        if (flat := self._flat(form)) is not None:
            return flat.roots(form)
        out = self._rooms()
        for chosen, table in self._tables():
            for total, part in zip(out, masses.roots(table, form), strict=True):
                total[chosen] = part
        return out

    def tilted_moments(self, tilt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithm of the integral of `exp(-tilt y - |y|^2 / 2) / (2 pi)^(S/2)` over each set, moments of y.

        A standard normal seen from a point of the set far out, `tilt (count, S)`, nearest to its mean: 0 here.
        """
        if (flat := self._flat()) is not None:
            log_mass, mean, root = flat.local_moments(tilted_frame(tilt))
            return log_mass, mean, root @ root.mT
        out = self._rooms()
        for chosen, table in self._tables():
            for rows in masses.chunks(table, torch.arange(len(chosen), device=chosen.device)):
                at = chosen[rows]
                log_mass, mean, root = masses.local_moments(table.select(rows), tilted_frame(tilt[at]))
                out[0][at], out[1][at], out[2][at] = log_mass, mean, root @ root.mT
        return out

    def sample(self, which: Tensor, generator: torch.Generator | None = None, tilt: Tensor | None = None) -> Tensor:
        """Exact draws of `x ~ N(0, I)` given that x lies in a set.

        Args:
            which: the set of each draw, `(n,)` long, in any order and with repetitions.
            generator: source of randomness; the same seed gives the same draws.
            tilt: where sets are given relative to their points nearest to the origin, these points, `(count, S)`.

        Returns:
            `(n, S)`; a set without area or volume gives its point nearest to the origin.

        Source:
            Gilks (1992), derivative-free adaptive rejection, for the levels.
        """
        out = self.tail.new_empty(len(which), self.tail.shape[1] - 1)
        asked = which.unique()
        for chosen, table in self._tables(asked):
            places = max(1, int(np.prod([max(1, size) for size in table.tail.shape[1:-1]])))
            per = max(1, room(self._drawn, which.device) // places)
            for some in torch.arange(len(chosen), device=which.device).split(per):
                place = which.new_full((self.count,), -1)
                place[chosen[some]] = torch.arange(len(some), device=which.device)
                draws = (place[which] >= 0).nonzero()[:, 0]
                own = None if tilt is None else tilt[chosen[some]]
                out[draws] = sample(table.select(some), place[which[draws]], generator, own)
        return out

    @abstractmethod
    def prepared(self) -> Prepared:
        """The sets for compiled code, to be seen from many centres."""

    def _as_they_are(self) -> tuple[Tensor, Tensor]:
        """What `Prepared` takes for all sets, seen from the origin."""
        return torch.arange(self.count), self.tail.new_zeros(self.count, self.tail.shape[1] - 1)

    def _open(self, owner: Tensor) -> Tensor:
        """The sets that reach infinity, from the owners of edges: an index."""
        rays = self.tail[:, -1] + self.head[:, -1] == 1.0
        some = torch.ones(self.count, dtype=torch.bool, device=owner.device)
        some[owner] = False  # those without edges
        some[owner[rays]] = True
        return some.nonzero()[:, 0]

    @abstractmethod
    def nearest(self) -> Tensor:
        """The point of each set nearest to the origin, `(count, S)`: the origin itself where it is inside."""

    _drawn: int  # edges that are drawn from at a time

    @abstractmethod
    def _cones(self, apex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Owners `(k,)` of the cones from `apex (count, S)` over the boundary, and `_seen_from` there."""

    @abstractmethod
    def _tables(self, among: Tensor | None = None) -> Iterator[tuple[Tensor, Table]]:
        """Sets in padded tables, those of similar numbers of edges together."""

    def _rooms(self) -> tuple[Tensor, Tensor, Tensor]:
        n, S = self.count, self.tail.shape[1] - 1
        return self.tail.new_zeros(n), self.tail.new_zeros(n, S), self.tail.new_zeros(n, S, S)


@dataclass(frozen=True)
class Polygons(Polytopes):
    """You make a list of convex polygons, bounded or not, from edges or by `from_halfspaces`, to integrate over them.

    Args:
        tail: start of each edge, `(E, 3)` float64: `(x, y, 1)` is a point, `(x, y, 0)` is infinity in direction (x, y).
        head: end of each edge, `(E, 3)`. Edges run counter-clockwise, the polygon on their left; those of length 0
            or wholly at infinity change nothing.
        owner: the polygon of each edge, `(E,)` long, sorted, in `[0, count)`.
        count: the number of polygons; one without edges is the whole plane.

    Example:
        >>> import torch
        >>> from girih.gaussian import Polygons
        >>> tail = torch.tensor([[0.0, 1, 0], [30, 40, 1]], dtype=torch.float64)  # the quadrant x > 30, y > 40
        >>> head = torch.tensor([[30.0, 40, 1], [1, 0, 0]], dtype=torch.float64)
        >>> quadrant = Polygons(tail, head, torch.tensor([0, 0]), 1)
        >>> quadrant.nearest()
        tensor([[30., 40.]], dtype=torch.float64)
        >>> quadrant.log_mass(), quadrant.moments()[1]
        (tensor([-1258.9297], dtype=torch.float64), tensor([[30.0333, 40.0250]], dtype=torch.float64))
        >>> x = quadrant.sample(torch.zeros(1000, dtype=torch.long), torch.Generator().manual_seed(0))
        >>> bool((x > torch.tensor([30.0, 40.0])).all()), bool((x < torch.tensor([30.5, 40.5])).all())
        (True, True)
    """

    tail: Tensor
    head: Tensor
    owner: Tensor
    count: int
    _cells, _drawn = 1 << 18, 1 << 17  # edges at a time in the signed form and in draws

    def nearest(self) -> Tensor:
        """The point of each polygon nearest to the origin, `(count, 2)`: the origin itself where it is inside."""
        return polygon_nearest(self.tail, self.head, self.owner, self.count)

    def prepared(self) -> Prepared:
        """The polygons for compiled code."""
        edges, start = lines(self.tail, self.head, self.owner, self.count)
        none = np.empty((0, 5)), start, np.empty((0, 2), np.int64)
        return Prepared(edges, start, self.opening().div_(2.0 * torch.pi).numpy(), *none)

    def opening(self) -> Tensor:
        """The angle of the directions in which each polygon is unbounded, `(count,)`."""
        out = self.tail.new_zeros(self.count)
        for chosen, table in self._tables(self._open(self.owner)):
            out[chosen] = angle_at_infinity(table.edges)
        return out

    def _flat(self, form: Form = "best") -> masses.Flat | None:
        if form == "cones" or not prepared.serve(self.tail):
            return None
        return masses.Flat(first_of_each(self.owner, self.count), self.tail, self.head)

    def _cones(self, apex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.owner, *_seen_from((self.tail, self.head), apex[self.owner])

    def _tables(self, among: Tensor | None = None) -> Iterator[tuple[Tensor, PolygonTable]]:
        size, _ = slots(self.owner, self.count)
        for some, width in buckets(size if among is None else size[among], room(self._cells, size.device)):
            chosen = some if among is None else among[some]
            index, real = gather(chosen, width, size)
            yield chosen, polygon_table(pad(self.tail, index, real), pad(self.head, index, real))


@dataclass(frozen=True)
class Polyhedra(Polytopes):
    """You make a list of convex polyhedra `{x: normal x <= offset}` from edges or by `from_halfspaces`.

    Args:
        tail: start of each edge of each face, `(E, 4)` float64: `(x, y, z, 1)` is a point, `(x, y, z, 0)` infinity in
            direction (x, y, z).
        head: end of each edge, `(E, 4)`. Edges run counter-clockwise around their face, seen from outside; those of
            length 0 or wholly at infinity change nothing.
        face: the face of each edge, `(E,)` long, sorted, in `[0, F)`. A face without edges is a whole plane.
        normal: outward normals of length 1, `(F, 3)`.
        offset: `(F,)`.
        owner: the polyhedron of each face, `(F,)` long, sorted, in `[0, count)`.
        count: the number of polyhedra; one without faces is the whole space.

    Example:
        >>> import torch
        >>> from girih.gaussian import Polyhedra
        >>> edges, face = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
        >>> normal = torch.tensor([[0.0, -1.0, 0.0]], dtype=torch.float64)  # the half-space y > 40
        >>> offset, owner = torch.tensor([-40.0], dtype=torch.float64), torch.tensor([0])
        >>> half = Polyhedra(edges, edges, face, normal, offset, owner, 1)
        >>> half.nearest(), half.log_mass()
        (tensor([[-0., 40., -0.]], dtype=torch.float64), tensor([-804.6084], dtype=torch.float64))
        >>> x = half.sample(torch.zeros(100, dtype=torch.long), torch.Generator().manual_seed(0))
        >>> bool(((x[:, 1] > 40.0) & (x[:, 1] < 40.5)).all())
        True
    """

    tail: Tensor
    head: Tensor
    face: Tensor
    normal: Tensor
    offset: Tensor
    owner: Tensor
    count: int
    _cells, _drawn = 1 << 17, 1 << 13

    def nearest(self) -> Tensor:
        """The point of each polyhedron nearest to the origin, `(count, 3)`: the origin itself where it is inside."""
        return polyhedron_nearest(self.tail, self.head, self.face, self.normal, self.offset, self.owner, self.count)

    def prepared(self) -> Prepared:
        """The polyhedra for compiled code."""
        axes = complete(self.normal)
        tail, head = (flatten(end, axes[self.face]) for end in (self.tail, self.head))
        open_angle = Polygons(tail, head, self.face, len(self.owner)).opening()
        faces = torch.cat((self.normal, self.offset[:, None], open_angle[:, None]), 1)
        solid, some = self.tail.new_zeros(self.count), self._open(self.owner[self.face])
        for chosen, table in self._tables(some):
            solid[chosen] = solid_angle_at_infinity(table)
        start = first_of_each(self.owner, self.count)
        edge_start, edges, sides = edges_in_space(
            start, first_of_each(self.face, len(self.owner)), self.tail, self.head, self.normal
        )
        return Prepared(edges, edge_start, solid.div_(4.0 * torch.pi).numpy(), faces.numpy(), start, sides)

    def _cones(self, apex: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        corner = torch.searchsorted(self.face, self.face)  # the first edge of the face begins at its fan's corner
        owner = self.owner[self.face]
        ends = (self.tail[corner], self.tail, self.head)
        return owner, *_seen_from(ends, apex[owner])

    def _tables(self, among: Tensor | None = None) -> Iterator[tuple[Tensor, PolyhedronTable]]:
        edges, _ = slots(self.face, len(self.owner))
        size, _ = slots(self.owner, self.count)
        widest = edges.new_zeros(self.count)
        if len(self.owner):
            widest = widest.scatter_reduce(0, self.owner, edges, "amax", include_self=True)
        among = torch.arange(self.count, device=edges.device) if among is None else among
        cells = room(self._cells, edges.device)
        for outer, width in buckets(size[among], cells):
            for inner, depth in buckets(widest[among[outer]], max(1, cells // max(1, width))):
                some = among[outer[inner]]
                f, real = gather(some, width, size)
                if not len(self.owner):
                    yield some, self._whole_spaces(len(some))
                    continue
                e, used = gather(f.reshape(-1), depth, edges)
                used = used.view(*f.shape, depth) & real[..., None]
                tail, head = (pad(ends, e.view(*f.shape, depth), used) for ends in (self.tail, self.head))
                normal = torch.where(real[..., None], self.normal[f], _third_axis(self.normal))
                yield some, polyhedron_table(tail, head, normal, torch.where(real, self.offset[f], 0.0), real)

    def _whole_spaces(self, n: int) -> PolyhedronTable:
        ends, offset = self.tail.new_zeros(n, 1, 0, 4), self.tail.new_zeros(n, 1)
        normal = _third_axis(self.tail).expand(n, 1, 3)
        return polyhedron_table(ends, ends, normal, offset, torch.zeros_like(offset, dtype=torch.bool))


def _third_axis(like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device)[2]


def _seen_from(ends: Sequence[Tensor], apex: Tensor) -> tuple[Tensor, Tensor]:
    """From apices `(k, S)` to ends of edges, or their directions at infinity, `(k, S, S)`; which are directions."""
    step = [torch.addcmul(end[:, :-1], apex, end[:, -1:], value=-1.0) for end in ends]
    return torch.stack(step, 1), torch.stack([end[:, -1] == 0.0 for end in ends], 1)
