r"""Log-mass and moments of the standard normal over polygons by slices: nothing cancels, however small the mass.

Let `c` be the polygon's point nearest to the origin (its *anchor*), `d = c/|c|`, and write `x = c + t d + u e` with
`e` normal to `d`. Then `|x|^2 = |c|^2 + 2 |c| t + t^2 + u^2`, and

    log P = -|c|^2 / 2 - log(2 pi) / 2 + log int exp(-|c| t - t^2 / 2) P(l(t) < u < r(t)) dt

with `l`, `r` affine between the levels of vertices. All is positive, and the integrand is log-concave (Prekopa), so
adaptive panels find its peak, and `levels` says where the range may end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.edges import Edges, is_plane
from girih.gaussian.interval import interval_log_mass, interval_moments
from girih.gaussian.kronrod import NODES, WEIGHTS, integrate
from girih.gaussian.levels import level_panels
from girih.gaussian.nearest import nearest_and_edge
from girih.gaussian.roots import own_axes, square_root

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Frame(NamedTuple):
    """Where slices are taken: anchor, distance of the anchor and directions of levels and of slices."""

    anchor: Tensor  # (n, 2)
    height: Tensor  # (n,)
    up: Tensor  # (n, 2)
    side: Tensor  # (n, 2)


class Slices(NamedTuple):
    """Panels of levels and the two lines that bound the slices of each."""

    owner: Tensor  # (m,)
    lower: Tensor  # (m,)
    upper: Tensor  # (m,)
    left: Tensor  # (m, 3): u = left[0] + left[2] (t - left[1])
    right: Tensor  # (m, 3)


def find_frame(tail: Tensor, head: Tensor, edges: Edges) -> Frame:
    """Anchors of polygons whose edges run between `tail` and `head` `(n, K, 3)`."""
    n, K = edges.real.shape
    owner = torch.arange(n, device=tail.device).repeat_interleave(K)
    anchor, k = nearest_and_edge(tail.reshape(-1, 3), head.reshape(-1, 3), owner, n)
    height = torch.hypot(anchor[:, 0], anchor[:, 1])
    up = anchor / torch.where(height > 0, height, 1.0)[:, None]
    if K:
        up = torch.where((height > 0)[:, None], up, -edges.outward.reshape(-1, 2)[k])
    up = torch.where(edges.real.any(-1)[:, None], up, up.new_tensor([1.0, 0.0]))
    side = torch.stack((-up[:, 1], up[:, 0]), -1)
    return Frame(anchor, height, up, side)


def tilted_frame(tilt: Tensor) -> Frame:
    """The frame of polygons that are given relative to their anchors, tilts `(n, 2)`, already."""
    height = torch.hypot(tilt[:, 0], tilt[:, 1])
    up = tilt / height[:, None]
    return Frame(torch.zeros_like(tilt), height, up, torch.stack((-up[:, 1], up[:, 0]), -1))


def cut(tail: Tensor, head: Tensor, edges: Edges, frame: Frame) -> Slices:
    """Panels between the levels of the vertices of each polygon, and the lines that bound them."""
    a, b = _coordinates(tail, edges.tail_finite, frame), _coordinates(head, edges.head_finite, frame)
    step = torch.where(
        edges.tail_finite[..., None], torch.where(edges.head_finite[..., None], b - a, b), -a
    )  # (n, K, 2): level, then side
    ray = ~(edges.tail_finite & edges.head_finite)
    step = torch.where(ray[..., None] & (step.abs() < 1e-12 * step.abs().amax(-1, keepdim=True)), 0.0, step)

    vertex = edges.real & edges.tail_finite
    bounded = ~(edges.real & ray).any(-1) & ~is_plane(edges)
    owner, lower, upper = level_panels(a[..., 0], vertex, bounded, frame.height)

    # the edges that span a panel: at most one runs up and one runs down
    middle = 0.5 * (lower + upper)[:, None]
    a, b, step, real = a[owner], b[owner], step[owner], edges.real[owner]
    tail_finite, head_finite = edges.tail_finite[owner], edges.head_finite[owner]
    rise = step[..., 0]
    first = torch.where(tail_finite, a[..., 0], -torch.inf * rise.sign())
    last = torch.where(head_finite, b[..., 0], torch.inf * rise.sign())
    base = torch.where(tail_finite[..., None], a, b)
    leftmost = real & (rise > 0) & (first <= middle) & (middle <= last)
    rightmost = real & (rise < 0) & (last <= middle) & (middle <= first)
    # u >= line for edges that run up: the polygon is on their left, where side increases
    left, has_left = _line(leftmost, base, step, -torch.inf)
    right, has_right = _line(rightmost, base, step, torch.inf)
    outward = step[..., 1] * (middle - base[..., 0]) + rise * base[..., 1]
    open_slice = ((outward <= 0) | ~real).all(-1)  # asked only of levels that no edge crosses
    kept = torch.where(bounded[owner], has_left & has_right, has_left | has_right | open_slice)
    # other edges that are level only up to rounding may cross a level far out: it is outside all the same
    kept &= bounded[owner] | ~(real & (rise == 0) & (outward > 0)).any(-1)
    return Slices(*(part[kept] for part in (owner, lower, upper, left, right)))


def _coordinates(point: Tensor, finite: Tensor, frame: Frame) -> Tensor:
    """Level and side of points relative to the anchor; of directions, their components."""
    y = torch.where(finite[..., None], point[..., :2] - frame.anchor[:, None], point[..., :2])
    return torch.stack(((y * frame.up[:, None]).sum(-1), (y * frame.side[:, None]).sum(-1)), -1)


def _line(spans: Tensor, base: Tensor, step: Tensor, missing: float) -> tuple[Tensor, Tensor]:
    """The line `(value, level, slope)` of the one edge that spans, a constant infinity where there is none."""
    rows = torch.arange(len(spans), device=spans.device)
    k = spans.to(torch.uint8).argmax(-1) if spans.shape[1] else rows
    found = spans[rows, k]
    base, step = base[rows, k], step[rows, k]
    slope = step[:, 1] / torch.where(found, step[:, 0], 1.0)
    line = torch.stack((base[:, 1], base[:, 0], slope), -1)
    return torch.where(found[:, None], line, line.new_tensor([missing, 0.0, 0.0])), found


def bounds(slices: Slices, panel: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the slices of panels `(k,)` at levels `(k, m)`."""
    left, right = slices.left[panel, :, None], slices.right[panel, :, None]
    lower = torch.addcmul(left[:, 0], left[:, 2], t - left[:, 1])
    upper = torch.addcmul(right[:, 0], right[:, 2], t - right[:, 1])
    return lower, torch.maximum(lower, upper)


def sliced_log_mass(tail: Tensor, head: Tensor, edges: Edges) -> Tensor:
    """Log-mass `(n,)` of polygons; -inf for those without area."""
    frame = find_frame(tail, head, edges)
    slices = cut(tail, head, edges, frame)
    height = frame.height[slices.owner]

    def log_f(panel: Tensor, t: Tensor) -> Tensor:
        return interval_log_mass(*bounds(slices, panel, t)) - t * (height[panel, None] + 0.5 * t)

    total, _ = integrate(slices.lower, slices.upper, slices.owner, len(frame.height), log_f)
    return total - 0.5 * frame.height.square() - _HALF_LOG_2PI


def sliced_moments(tail: Tensor, head: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mass `(n,)`, mean `(n, 2)` and a root of the covariance `(n, 2, 2)` of the truncated normal on polygons."""
    frame = find_frame(tail, head, edges)
    log_mass, mean, root = local_moments(tail, head, edges, frame)
    return log_mass - 0.5 * frame.height.square(), frame.anchor + mean, root


def local_moments(tail: Tensor, head: Tensor, edges: Edges, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """`sliced_moments` about the anchors: the log-mass without the height `-|c|^2 / 2` of the anchor."""
    slices = cut(tail, head, edges, frame)
    count = len(frame.height)
    height = frame.height[slices.owner]

    lines: list[tuple[Tensor, Tensor, Tensor]] = []

    def log_f(panel: Tensor, t: Tensor) -> Tensor:
        line = interval_moments(*bounds(slices, panel, t))
        value = line.log_mass - t * (height[panel, None] + 0.5 * t)
        lines.append((value, line.anchor + line.mean, line.variance))
        return value

    total, accepted = integrate(slices.lower, slices.upper, slices.owner, count, log_f)
    owner = slices.owner[accepted.panel]
    t = torch.addcmul(accepted.middle[:, None], accepted.half[:, None], NODES)
    value, u, variance = (torch.cat(part)[accepted.call] for part in zip(*lines, strict=True))
    log_w = value - total.clamp(min=-1e300)[owner, None]
    w = log_w.exp() * accepted.half[:, None] * WEIGHTS
    at = torch.where((w > 0)[..., None], torch.stack((t, u), -1), 0.0)  # (m, 33, 2)
    variance = torch.where(w > 0, variance, 0.0)
    mean = at.new_zeros(count, 2).index_add_(0, owner, (w[..., None] * at).sum(1))
    off = at - mean[owner, None]
    spread = torch.einsum("mk,mki,mkj->mij", w, off, off)
    spread[:, 1, 1] += (w * variance).sum(1)
    axes = own_axes(at.new_zeros(count, 2, 2).index_add_(0, owner, spread))
    off, across = off @ axes[owner], axes[owner, 1]
    spread = torch.einsum("mk,mki,mkj->mij", w, off, off)
    spread += (w * variance).sum(1)[:, None, None] * across[:, :, None] * across[:, None, :]
    local = at.new_zeros(count, 2, 2).index_add_(0, owner, spread)
    turn = torch.stack((frame.up, frame.side), -1)  # columns: level, side
    return total - _HALF_LOG_2PI, (turn @ mean[..., None])[..., 0], turn @ axes @ square_root(local)
