r"""Log-mass and moments of the standard normal over polyhedra by slices: nothing cancels, however small the mass.

As `polygon_slices`, one dimension up: with `c` the point nearest to the origin and `d = c/|c|`,

    log P = -|c|^2 / 2 - log(2 pi) / 2 + log int exp(-|c| t - t^2 / 2) P(slice at level t) dt,

where the slices are polygons of the plane normal to `d`, about the axis through `c`; their masses are `polygon`'s.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.edges import Edges, is_plane
from girih.gaussian.faces import Faces, complete, is_unbounded, plane_edges
from girih.gaussian.kronrod import NODES, WEIGHTS, integrate
from girih.gaussian.levels import level_panels
from girih.gaussian.nearest import polyhedron_nearest
from girih.gaussian.polygon import padded_log_mass, padded_moments
from girih.gaussian.roots import own_axes, square_root

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Frame(NamedTuple):
    """Where slices are taken: anchor, its distance, and a right-handed basis whose first vector is the way up."""

    anchor: Tensor  # (n, 3)
    height: Tensor  # (n,)
    basis: Tensor  # (n, 3, 3), rows


class Slices(NamedTuple):
    """Panels of levels, and the ends of the slices' edges as lines `x = at + slope (t - level)`, or directions."""

    owner: Tensor  # (m,)
    lower: Tensor  # (m,)
    upper: Tensor  # (m,)
    tail: Tensor  # (m, E, 6): x, y, slope of x, slope of y, level, and 1 for points, 0 for directions
    head: Tensor  # (m, E, 6)


def find_frame(faces: Faces) -> Frame:
    """Anchors of polyhedra; the way up goes away from the origin, or from the nearest face."""
    n, F, K, _ = faces.tail.shape
    f, owner = faces.real.flatten().nonzero()[:, 0], faces.real.nonzero()[:, 0]
    tail, head = (ends.reshape(n * F, K, 4)[f].reshape(-1, 4) for ends in (faces.tail, faces.head))
    face = torch.arange(len(f), device=f.device).repeat_interleave(K)
    anchor = polyhedron_nearest(tail, head, face, faces.normal.reshape(-1, 3)[f], faces.offset.flatten()[f], owner, n)
    height = anchor.norm(dim=-1)
    up = anchor / torch.where(height > 0, height, 1.0)[:, None]
    lowest = torch.where(faces.real, faces.offset, torch.inf).argmin(-1)
    up = torch.where((height > 0)[:, None], up, -faces.normal[torch.arange(n, device=f.device), lowest])
    up = torch.where(faces.real.any(-1)[:, None], up, up.new_tensor([0.0, 0.0, 1.0]))
    basis = torch.cat((up[:, None], complete(up)), 1)
    return Frame(anchor, height, basis)


def tilted_frame(tilt: Tensor) -> Frame:
    """The frame of polyhedra that are given relative to their anchors, tilts `(n, 3)`, already."""
    height = tilt.norm(dim=-1)
    up = tilt / height[:, None]
    return Frame(torch.zeros_like(tilt), height, torch.cat((up[:, None], complete(up)), 1))


def cut(faces: Faces, edges: Edges, frame: Frame) -> Slices:
    """Panels between levels of vertices; on each, the edge that every face draws in the slices."""
    a, b = _coordinates(faces.tail, frame), _coordinates(faces.head, frame)  # (n, F, K, 3)
    tail_finite, head_finite = edges.tail_finite, edges.head_finite
    step = torch.where(tail_finite[..., None], torch.where(head_finite[..., None], b - a, b), -a)
    ray = ~(tail_finite & head_finite)
    real = edges.real & faces.real[..., None]
    normal = (frame.basis[:, None] * faces.normal[:, :, None]).sum(-1)  # (n, F, 3): level, then the plane
    # a ray that lies in the slices up to rounding must not cross them: how far rays leave their faces says how much
    length = step.abs().amax(-1, keepdim=True)
    lean = torch.where(ray & real, (step * normal[:, :, None]).sum(-1).abs() / length[..., 0], 0.0).flatten(1)
    lean = torch.nn.functional.pad(lean, (0, 1)).amax(1)
    nothing = (4.0 * lean).clamp(1e-12, 1e-6)[:, None, None, None] * length
    step = torch.where(ray[..., None] & (step.abs() < nothing), 0.0, step)
    open_face = is_unbounded(faces, edges)
    bounded = ~open_face.any(-1) & faces.real.any(-1)
    # whole planes have no vertices; parallel to the slices, as they then are, they are met at one level
    offset = faces.offset - (faces.normal * frame.anchor[:, None]).sum(-1)
    rising_normal = (faces.normal * frame.basis[:, None, 0]).sum(-1)
    level = torch.cat((a[..., 0].flatten(1), offset * rising_normal.sign()), 1)
    vertex = torch.cat(((real & tail_finite).flatten(1), faces.real & is_plane(edges)), 1)
    owner, lower, upper = level_panels(level, vertex, bounded, frame.height)
    middle = 0.5 * (lower + upper)

    rise = step[..., 0]
    first = torch.where(tail_finite, a[..., 0], -torch.inf * rise.sign())
    last = torch.where(head_finite, b[..., 0], torch.inf * rise.sign())
    # the lower end, if finite: both faces at an edge then compute the very same point
    use_tail = tail_finite & (~head_finite | (first <= last))
    base = torch.where(use_tail[..., None], a, b)
    level = middle[:, None, None]
    rising = real[owner] & (rise[owner] > 0) & (first[owner] <= level) & (level <= last[owner])
    falling = real[owner] & (rise[owner] < 0) & (last[owner] <= level) & (level <= first[owner])

    # direction of a face's edge in the slice: up x normal
    normal = normal[owner]
    width = torch.hypot(normal[..., 1], normal[..., 2])
    across = torch.stack((-normal[..., 2], normal[..., 1]), -1) / torch.where(width > 0, width, 1.0)[..., None]
    head, has_head = _ends(rising, base[owner], step[owner], across)
    tail, has_tail = _ends(falling, base[owner], step[owner], -across)
    drawn = torch.where(open_face[owner], has_head | has_tail, has_head & has_tail)

    # a face that no edge bounds at this level draws a whole line, or nothing
    gap = offset[owner] - normal[..., 0] * middle[:, None]
    foot = normal[..., 1:] * (gap / torch.where(width > 0, width, 1.0).square())[..., None]
    at = torch.cat((middle[:, None, None].expand(*gap.shape, 1), foot), -1)
    off = torch.linalg.cross(step[owner], normal[..., None, :].expand_as(step[owner]))
    beyond = (off * (at[..., None, :] - base[owner])).sum(-1) > 0
    line = open_face[owner] & ~(has_head | has_tail) & (width > 1e-15) & ~(beyond & real[owner]).any(-1)
    drawn, tail, head = _split_lines(drawn, line, tail, head, foot, normal, width, middle)

    hollow = ~((gap < 0) & faces.real[owner]).any(-1)  # asked only of levels at which nothing is drawn
    kept = torch.where(bounded[owner], drawn.any(-1), drawn.any(-1) | hollow)
    tail, head = (torch.where(drawn[..., None], ends, 0.0) for ends in (tail, head))
    return Slices(*(part[kept] for part in (owner, lower, upper, tail, head)))


def _coordinates(point: Tensor, frame: Frame) -> Tensor:
    y = torch.where(point[..., 3:] != 0, point[..., :3] - frame.anchor[:, None, None], point[..., :3])
    return (y[..., None, :] * frame.basis[:, None, None]).sum(-1)


def _ends(spans: Tensor, base: Tensor, step: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Where the one edge of each face that spans the panel crosses it, as in `Slices`; `missing` if there is none."""
    out = torch.cat((missing, torch.zeros_like(missing), torch.zeros_like(missing)), -1)
    if not spans.shape[-1]:
        return out, spans.any(-1)
    k = spans.to(torch.uint8).argmax(-1, keepdim=True)
    found = spans.gather(-1, k)[..., 0]
    base, step = (part.gather(2, k[..., None].expand(*k.shape, 3))[:, :, 0] for part in (base, step))
    slope = step[..., 1:] / torch.where(found, step[..., 0], 1.0)[..., None]
    crossing = torch.cat((base[..., 1:], slope, base[..., :1], torch.ones_like(base[..., :1])), -1)
    return torch.where(found[..., None], crossing, out), found


def _split_lines(
    drawn: Tensor, line: Tensor, tail: Tensor, head: Tensor, foot: Tensor, normal: Tensor, width: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole lines as two edges that meet at the foot of the axis."""
    if not line.any():
        return drawn, tail, head
    slope = -normal[..., 1:] * (normal[..., 0] / torch.where(width > 0, width, 1.0).square())[..., None]
    at = level[:, None, None].expand(*line.shape, 1)
    point = torch.cat((foot, slope, at, torch.ones_like(at)), -1)
    return (
        torch.cat((drawn | line, line), -1),
        torch.cat((tail, point), 1),
        torch.cat((torch.where(line[..., None], point, head), head), 1),
    )


def polygons(slices: Slices, panel: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Tails and heads `(k m, E, 3)` of the slices of panels `(k,)` at levels `(k, m)`."""
    out = []
    for ends in (slices.tail, slices.head):
        e = ends[panel][:, None]
        finite = e[..., 5:]
        at = e[..., :2] + finite * e[..., 2:4] * (t[..., None, None] - e[..., 4:5])
        out.append(torch.cat((at, finite.expand(*at.shape[:-1], 1)), -1).flatten(0, 1))
    return out[0], out[1]


def sliced_log_mass(faces: Faces) -> Tensor:
    """Log-mass `(n,)` of polyhedra; -inf for those without volume."""
    frame = find_frame(faces)
    slices = cut(faces, plane_edges(faces)[1], frame)
    height = frame.height[slices.owner]

    def log_f(panel: Tensor, t: Tensor) -> Tensor:
        return padded_log_mass(*polygons(slices, panel, t)).view_as(t) - t * (height[panel, None] + 0.5 * t)

    total, _ = integrate(slices.lower, slices.upper, slices.owner, len(frame.height), log_f)
    return total - 0.5 * frame.height.square() - _HALF_LOG_2PI


def sliced_moments(faces: Faces) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mass `(n,)`, mean `(n, 3)` and a root of the covariance `(n, 3, 3)` of the truncated normal on polyhedra."""
    frame = find_frame(faces)
    log_mass, mean, root = local_moments(faces, frame)
    return log_mass - 0.5 * frame.height.square(), frame.anchor + mean, root


def local_moments(faces: Faces, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """`sliced_moments` about the anchors: the log-mass without the height `-|c|^2 / 2` of the anchor."""
    slices = cut(faces, plane_edges(faces)[1], frame)
    count = len(frame.height)
    height = frame.height[slices.owner]
    planes: list[tuple[Tensor, Tensor, Tensor]] = []

    def log_f(panel: Tensor, t: Tensor) -> Tensor:
        log_mass, mean, root = padded_moments(*polygons(slices, panel, t))
        value = log_mass.view_as(t) - t * (height[panel, None] + 0.5 * t)
        planes.append((value, mean.view(*t.shape, 2), root.view(*t.shape, 2, 2)))
        return value

    total, accepted = integrate(slices.lower, slices.upper, slices.owner, count, log_f)
    owner = slices.owner[accepted.panel]
    t = torch.addcmul(accepted.middle[:, None], accepted.half[:, None], NODES)
    value, plane, root = (torch.cat(part)[accepted.call] for part in zip(*planes, strict=True))
    w = (value - total.clamp(min=-1e300)[owner, None]).exp() * accepted.half[:, None] * WEIGHTS
    at = torch.where((w > 0)[..., None], torch.cat((t[..., None], plane), -1), 0.0)  # (m, 33, 3)
    root = torch.where((w > 0)[..., None, None], root, 0.0)
    mean = at.new_zeros(count, 3).index_add_(0, owner, (w[..., None] * at).sum(1))
    off = at - mean[owner, None]
    spread = torch.einsum("mk,mki,mkj->mij", w, off, off)
    spread[:, 1:, 1:] += torch.einsum("mk,mkia,mkja->mij", w, root, root)
    axes = own_axes(at.new_zeros(count, 3, 3).index_add_(0, owner, spread))
    off = torch.cat(((off @ axes[owner])[:, :, None], root.mT @ axes[owner, None, 1:]), 2)  # (m, 33, 3, 3)
    local = at.new_zeros(count, 3, 3).index_add_(0, owner, torch.einsum("mk,mkai,mkaj->mij", w, off, off))
    turn = frame.basis.mT
    return total - _HALF_LOG_2PI, (turn @ mean[..., None])[..., 0], turn @ axes @ square_root(local)
