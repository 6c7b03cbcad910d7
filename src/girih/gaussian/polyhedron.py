r"""Log-mass and moments of the standard normal over convex polyhedra, bounded or not.

Three forms, chosen for each polyhedron: the signed one (`polyhedron_signed`), with an absolute error of about 1e-16 per
edge (more where vertices are far), where the mass is above 1e-6 per edge; elsewhere forms where nothing cancels,
`polyhedron_compact` for small ones and slices (`polyhedron_slices`) for others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from girih.gaussian.compact import log_mass_of, moments_of
from girih.gaussian.faces import Faces, make_faces, select
from girih.gaussian.polyhedron_compact import compact_polyhedra
from girih.gaussian.polyhedron_signed import signed_mass, signed_moments
from girih.gaussian.polyhedron_slices import local_moments, sliced_log_mass, sliced_moments, tilted_frame
from girih.gaussian.ragged import buckets, gather, slots
from girih.gaussian.roots import square_root, squared

_LARGE = 1e-6  # mass per edge above which the signed form is used
_FAR = 1e-3  # by how much an edge counts for more with each unit of distance of the farthest vertex
_WIDE = 1e-7  # for moments: mass times smallest variance, per edge
_CELLS = 1 << 17  # edges at a time in the signed form
_CHUNK = 1024  # edges at a time in slices


def polyhedron_log_mass(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int
) -> Tensor:
    r"""`log P(x in polyhedron)` for `x ~ N(0, I)` in space, for a list of convex polyhedra `{x: normal x <= offset}`.

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

    Returns:
        `(count,)` nats; error below `1e-9 max(1, |log P|)`, for masses however small. -inf for those without volume.

    Source:
        Design point 5 of girih (divergence theorem with the radial distribution); slices in the tails.
    """
    log_mass = tail.new_zeros(count)
    for chosen, faces in tables(tail, head, face, normal, offset, owner, count):
        mass = signed_mass(faces)
        small = ~(mass > _LARGE * _terms(faces))
        part = mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
        some = small.nonzero()[:, 0]
        done, cones = compact_polyhedra(select(faces, some))
        part[some[done]] = log_mass_of(cones)
        for rows in _split(some, done, faces):
            part[rows] = sliced_log_mass(select(faces, rows))
        log_mass[chosen] = part
    return log_mass


def polyhedron_mass(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int
) -> Tensor:
    """`P(x in polyhedron)` as in `polyhedron_log_mass`, to an absolute error of about 1e-15 per edge: much faster.

    Returns:
        `(count,)`, 0 or more.
    """
    mass = tail.new_zeros(count)
    for chosen, faces in tables(tail, head, face, normal, offset, owner, count):
        mass[chosen] = signed_mass(faces).clamp(min=0.0)
    return mass


def polyhedron_raw_moments(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`E[1]`, `E[x]` and `E[x x^T]` over each polyhedron, not divided by the mass, to an absolute error of about 1e-15.

    Returns:
        `(count,)`, `(count, 3)` and `(count, 3, 3)`.
    """
    mass, first, second = tail.new_zeros(count), tail.new_zeros(count, 3), tail.new_zeros(count, 3, 3)
    for chosen, faces in tables(tail, head, face, normal, offset, owner, count):
        mass[chosen], first[chosen], second[chosen] = signed_moments(faces)
    return mass, first, second


def polyhedron_moments(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Log-mass, mean and covariance of `x ~ N(0, I)` truncated to each of a list of convex polyhedra.

    Args:
        tail: see `polyhedron_log_mass`.
        head: see `polyhedron_log_mass`.
        face: see `polyhedron_log_mass`.
        normal: see `polyhedron_log_mass`.
        offset: see `polyhedron_log_mass`.
        owner: see `polyhedron_log_mass`.
        count: see `polyhedron_log_mass`.

    Returns:
        Log-mass `(count,)`, mean `(count, 3)` and covariance `(count, 3, 3)`, the last two accurate relative to the
        spread of the truncated variable.
    """
    log_mass, mean, root = polyhedron_roots(tail, head, face, normal, offset, owner, count)
    return log_mass, mean, squared(root)


def polyhedron_roots(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`polyhedron_moments` with roots R of the covariances, `C = R R^T`: see `roots`."""
    log_mass, mean, root = tail.new_zeros(count), tail.new_zeros(count, 3), tail.new_zeros(count, 3, 3)
    for chosen, faces in tables(tail, head, face, normal, offset, owner, count):
        mass, first, second = signed_moments(faces)
        safe = mass.clamp(min=torch.finfo(mass.dtype).tiny)
        m = first / safe[:, None]
        cov = second / safe[:, None, None] - m[:, :, None] * m[:, None, :]
        least = torch.linalg.eigvalsh(torch.where(torch.isfinite(cov), cov, 0.0))[:, 0]
        weight = mass * least.clamp(0.0, 1.0) / (1.0 + m.square().sum(-1))
        small = ~((weight > _WIDE * _terms(faces)) & (mass > 0))  # both factors may be negative by rounding
        part = safe.log()
        some = small.nonzero()[:, 0]
        done, cones = compact_polyhedra(select(faces, some))
        at, r = some[done], square_root(cov)
        part[at], m[at], r[at] = moments_of(cones)
        for rows in _split(some, done, faces):
            part[rows], m[rows], r[rows] = sliced_moments(select(faces, rows))
        log_mass[chosen], mean[chosen], root[chosen] = part, m, r
    return log_mass, mean, root


def tilted_polyhedron_moments(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int, tilt: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the integral of `exp(-tilt y - |y|^2 / 2) / (2 pi)^(3/2)` over each polyhedron, moments of y.

    A standard normal seen from a point of the polyhedron far out, `tilt (count, 3)`, nearest to its mean: 0 here.
    """
    log_mass, mean, covariance = tilt.new_zeros(count), torch.zeros_like(tilt), tilt.new_zeros(count, 3, 3)
    for chosen, faces in tables(tail, head, face, normal, offset, owner, count):
        every = torch.arange(len(chosen), device=chosen.device)
        for rows in _split(every, every[:0], faces):
            at = chosen[rows]
            log_mass[at], mean[at], root = local_moments(select(faces, rows), tilted_frame(tilt[at]))
            covariance[at] = squared(root)
    return log_mass, mean, covariance


def _terms(faces: Faces) -> Tensor:
    """How many edges each polyhedron has, `(n,)`; they count for more where vertices are far.

    Planes and edges near the origin agree less well then: by some 1e-18 of the distance, as found on partitions.
    """
    edges = (faces.tail[..., 3] + faces.head[..., 3] != 0).sum((1, 2)) + faces.real.sum(1)
    if not faces.tail.shape[2]:
        return edges
    return edges * (1.0 + _FAR * (faces.tail[..., :3].abs().amax(-1) * faces.tail[..., 3]).amax((1, 2)))


def _split(rows: Tensor, done: Tensor, faces: Faces) -> tuple[Tensor, ...]:
    """Those of the rows that are not done, some at a time."""
    edges = max(1, faces.tail.shape[1] * max(1, faces.tail.shape[2]))
    left = torch.ones_like(rows, dtype=torch.bool)
    left[done] = False
    rows = rows[left]
    return rows.split(max(1, _CHUNK // edges)) if len(rows) else ()


def tables(
    tail: Tensor, head: Tensor, face: Tensor, normal: Tensor, offset: Tensor, owner: Tensor, count: int
) -> Iterator[tuple[Tensor, Faces]]:
    """Polyhedra in padded tables, those of similar numbers of faces together."""
    edges, _ = slots(face, len(owner))
    size, _ = slots(owner, count)
    widest = edges.new_zeros(count)
    if len(owner):
        widest = widest.scatter_reduce(0, owner, edges, "amax", include_self=True)
    for chosen, width in buckets(size, _CELLS):
        for inner, depth in buckets(widest[chosen], max(1, _CELLS // max(1, width))):
            some = chosen[inner]
            f, real = gather(some, width, size)
            if not len(owner):
                yield some, _empty(tail, len(some))
                continue
            e, used = gather(f.reshape(-1), depth, edges)
            used = used.view(*f.shape, depth) & real[..., None]
            e = e.view(*f.shape, depth)
            if len(tail):
                ends = [torch.where(used[..., None], x[e], 0.0) for x in (tail, head)]
            else:
                ends = [tail.new_zeros(*e.shape, 4)] * 2
            n = torch.where(real[..., None], normal[f], normal.new_tensor([0.0, 0.0, 1.0]))
            yield some, make_faces(ends[0], ends[1], n, torch.where(real, offset[f], 0.0), real)


def _empty(like: Tensor, n: int) -> Faces:
    """Whole spaces."""
    ends = like.new_zeros(n, 1, 0, 4)
    normal = like.new_tensor([0.0, 0.0, 1.0]).expand(n, 1, 3)
    return make_faces(ends, ends, normal, like.new_zeros(n, 1), torch.zeros(n, 1, dtype=torch.bool, device=like.device))
