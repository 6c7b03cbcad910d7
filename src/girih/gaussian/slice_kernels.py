"""The form by slices (`slices`, `quadrature`) of polygons in compiled code, one polygon at a time; needs Numba.

The same frames, panels and rules are used, so the two agree to rounding; operations on tables are the twins of this.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from girih.gaussian.interval_kernels import moments_between
from girih.gaussian.kernels import compiled, polygon_moments
from girih.gaussian.nearest import PARALLEL, TIE
from girih.gaussian.quadrature import BOTH, ENDS, LOG_TOLERANCE, NODES, PANELS, ROOM, ROUNDS
from girih.gaussian.slices import DROP, NO_RISE, THIN

Array = NDArray[Any]

_NODE, _RULES, _OUTER = (part.on(torch.device("cpu")).numpy() for part in (NODES, BOTH, ENDS))
_COUNT = len(_NODE)
_TINY = float(np.finfo(np.float64).tiny)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_LEFT, _RIGHT = 2, 5  # the first columns of the lines of a panel, after its ends


@compiled
def _local(point: Array, anchor: Array, basis: Array, out: Array) -> Any:
    """A homogeneous point, or a direction, about the anchor in the frame; returns whether it is a point."""
    finite = point[2] != 0.0
    x = point[0] - anchor[0] if finite else point[0]
    y = point[1] - anchor[1] if finite else point[1]
    out[0], out[1] = basis[0, 0] * x + basis[0, 1] * y, basis[1, 0] * x + basis[1, 1] * y
    return finite


@compiled
def _step(tail: Array, head: Array, from_point: bool, to_point: bool) -> tuple[float, float]:
    """The way along an edge, or its direction where an end is at infinity."""
    if from_point and to_point:
        return head[0] - tail[0], head[1] - tail[1]
    return (head[0], head[1]) if from_point else (-tail[0], -tail[1])


@compiled
def _edges_of(tail: Array, head: Array, anchor: Array, basis: Array, base: Array, step: Array, ends: Array) -> Any:
    """Points, steps, and first and last levels of the real edges; their number, and whether the set is bounded."""
    a, b = np.empty(2), np.empty(2)
    count, bounded, plane = 0, True, True
    for k in range(len(tail)):
        from_point, to_point = _local(tail[k], anchor, basis, a), _local(head[k], anchor, basis, b)
        if not (from_point or to_point):
            continue
        plane = False
        step[count, 0], step[count, 1] = _step(a, b, from_point, to_point)
        size = max(abs(step[count, 0]), abs(step[count, 1]))
        if not size > 0.0:
            continue
        if not (from_point and to_point):
            bounded = False
            for s in range(2):
                if abs(step[count, s]) < NO_RISE * size:
                    step[count, s] = 0.0
        rise = step[count, 0]
        base[count, 0], base[count, 1] = (a[0], a[1]) if from_point else (b[0], b[1])
        infinite = math.inf if rise > 0.0 else (-math.inf if rise < 0.0 else 0.0 * rise)
        ends[count, 0] = a[0] if from_point else -infinite
        ends[count, 1] = b[0] if to_point else infinite
        ends[count, 2] = 1.0 if from_point else 0.0
        count += 1
    return count, bounded and not plane


@compiled
def _panels(count: int, bounded: bool, base: Array, step: Array, ends: Array, height: float, out: Array) -> int:
    """Panels between the levels of the vertices, and the two lines that bound the slices on each; their number."""
    slope = 0.9 * height
    far = 2.0 * DROP / (slope + math.sqrt(slope * slope + 4.0 * 0.495 * DROP))
    low, high = -far, far
    if bounded:
        least, most = math.inf, -math.inf
        for k in range(count):
            if ends[k, 2] > 0.0:
                least, most = min(least, base[k, 0]), max(most, base[k, 0])
        low, high = max(least, -far), min(most, far)
    level = np.empty(count + 4)
    level[0], level[1], level[2], level[3] = (
        low,
        high,
        min(max(-0.25 * far, low), high),
        min(max(0.25 * far, low), high),
    )
    filled = 4
    for k in range(count):
        if ends[k, 2] > 0.0:
            level[filled] = max(min(base[k, 0], high), low)
            filled += 1
    level = np.sort(level[:filled])
    panels = 0
    for i in range(filled - 1):
        if not level[i + 1] - level[i] > THIN * (high - low):
            continue
        middle = 0.5 * (level[i] + level[i + 1])
        left, right, open_slice, beyond = -1, -1, True, False
        for k in range(count):
            rise = step[k, 0]
            outward = step[k, 1] * (middle - base[k, 0]) + rise * base[k, 1]
            if outward > 0.0:
                open_slice = False
                beyond |= rise == 0.0
            if rise > 0.0 and left < 0 and ends[k, 0] <= middle <= ends[k, 1]:
                left = k
            if rise < 0.0 and right < 0 and ends[k, 1] <= middle <= ends[k, 0]:
                right = k
        kept = left >= 0 and right >= 0 if bounded else (left >= 0 or right >= 0 or open_slice) and not beyond
        if kept:
            out[panels, 0], out[panels, 1] = level[i], level[i + 1]
            _line(left, base, step, -math.inf, out[panels, _LEFT:_RIGHT])
            _line(right, base, step, math.inf, out[panels, _RIGHT:])
            panels += 1
    return panels


@compiled
def _line(k: int, base: Array, step: Array, missing: float, out: Array) -> None:
    """Value, level and slope of the line of an edge; a constant infinity where there is none."""
    out[0], out[1], out[2] = missing, 0.0, 0.0
    if k >= 0:
        out[0], out[1], out[2] = base[k, 1], base[k, 0], step[k, 1] / step[k, 0]


@compiled
def _slices(panel: Array, middle: float, half: float, height: float, out: Array) -> None:
    """Log-density, mean and variance of the slices at the nodes, `(nodes, 3)`."""
    for j in range(_COUNT):
        t = middle + half * _NODE[j]
        lower = panel[2] + panel[4] * (t - panel[3])
        upper = max(panel[5] + panel[7] * (t - panel[6]), lower)
        log_mass, mean, variance = moments_between(lower, upper)
        value = log_mass - t * (height + 0.5 * t)
        inner = 0 < j < _COUNT - 1
        out[j, 0] = -math.inf if math.isnan(value) and not inner else value  # an empty slice at an end
        out[j, 1], out[j, 2] = mean, variance


@compiled
def _rules(values: Array) -> tuple[float, float, float]:
    """The highest value, Kronrod's sum relative to it, and the error."""
    peak = -1.7976931348623157e308
    for j in range(_COUNT):
        peak = max(peak, values[j, 0])
    kronrod, gauss, below, above = 0.0, 0.0, 0.0, 0.0
    first, last = math.exp(values[0, 0] - peak), math.exp(values[_COUNT - 1, 0] - peak)
    for j in range(_COUNT):
        f = math.exp(values[j, 0] - peak)
        kronrod += _RULES[j, 0] * f
        gauss += _RULES[j, 1] * f
        below += _OUTER[j, 0] * f
        above += _OUTER[j, 1] * f
    return peak, kronrod, max(abs(kronrod - gauss), ROOM * abs(below - first) + ROOM * abs(above - last))


@compiled
def _log_add(a: float, b: float) -> float:
    if a == -math.inf or math.isnan(b):
        return b
    return a + math.log1p(math.exp(b - a)) if a > b else b + math.log1p(math.exp(a - b))


@compiled
def _integrate(panels: Array, count: int, height: float, room: Array) -> Any:
    """`quadrature.integrate` of one polygon: log-integral, places `(panel, middle, half)` and slices of the panels."""
    most, total = count + PANELS, -math.inf
    places, slices, accepted = np.empty((most, 3)), np.empty((most, _COUNT, 3)), 0
    now, waiting = np.empty((2 * most, 3)), count
    log_panel, log_error, rough = np.empty(2 * most), np.empty(2 * most), np.empty(2 * most, np.bool_)
    for i in range(count):
        now[i, 0], now[i, 1] = i, 0.5 * (panels[i, 0] + panels[i, 1])
        now[i, 2] = 0.5 * (panels[i, 1] - panels[i, 0])
    for turn in range(ROUNDS):
        if 2 * waiting > len(room):
            room = np.empty((2 * waiting, _COUNT, 3))
        both = total
        for i in range(waiting):
            _slices(panels[int(now[i, 0])], now[i, 1], now[i, 2], height, room[i])
            peak, kronrod, error = _rules(room[i])
            scale = peak + math.log(now[i, 2])
            log_panel[i], log_error[i] = scale + math.log(kronrod), scale + math.log(error)
            both = _log_add(both, log_panel[i])
        coarse = 0
        for i in range(waiting):
            rough[i] = log_error[i] > LOG_TOLERANCE + both and now[i, 2] > 1e-15 * abs(now[i, 1])
            coarse += rough[i]
        # an analytic integrand never needs so many panels at once: what is left is rounding noise
        finished = coarse == 0 or coarse > most or turn == ROUNDS - 1
        if accepted + waiting > len(places):
            places, slices = _longer(places, accepted + waiting), _longer(slices, accepted + waiting)
        halves, split = np.empty((2 * most, 3)), 0  # no more than `most` panels are ever split
        for i in range(waiting):
            if finished or not rough[i]:
                places[accepted], slices[accepted] = now[i], room[i]
                accepted += 1
                total = _log_add(total, log_panel[i])
                continue
            half = 0.5 * now[i, 2]
            for side in (-1.0, 1.0):
                halves[split, 0], halves[split, 1], halves[split, 2] = now[i, 0], now[i, 1] + half * side, half
                split += 1
        if finished:
            break
        now, waiting = halves, split
    return total, accepted, places, slices


@compiled
def _longer(values: Array, room: int) -> Array:
    out = np.empty((2 * room, *values.shape[1:]))
    out[: len(values)] = values
    return out


@compiled
def _near(edge: Array, tail: Array, head: Array) -> tuple[float, bool]:
    """The point of an edge nearest to the origin into `edge[:2]`, its direction into `edge[2:4]`; as `nearest._points`.

    Returns the squared distance, infinite for edges wholly at infinity, and whether the point is no end of the edge.
    """
    from_point, to_point = tail[2] != 0.0, head[2] != 0.0
    edge[2], edge[3] = _step(tail, head, from_point, to_point)
    size = max(math.sqrt(edge[2] * edge[2] + edge[3] * edge[3]), _TINY)
    start, end = 0.0, 0.0
    for s in range(2):
        edge[2 + s] /= size
        start += edge[2 + s] * tail[s]
        end += edge[2 + s] * head[s]
    ends = 0
    if to_point and end <= 0.0:
        ends = 2
    if from_point and start >= 0.0:
        ends = 1
    near = tail if ends == 1 or (ends == 0 and from_point and (not to_point or abs(start) <= abs(end))) else head
    edge[0], edge[1] = near[0], near[1]
    if ends == 0:  # what is left along the edge after the first subtraction is rounding
        for _ in range(2):
            along = edge[2] * edge[0] + edge[3] * edge[1]
            edge[0], edge[1] = edge[0] - along * edge[2], edge[1] - along * edge[3]
    square = edge[0] * edge[0] + edge[1] * edge[1]
    return square if from_point or to_point else math.inf, ends == 0


@compiled
def _nearest(tail: Array, head: Array, edge: Array, anchor: Array) -> int:
    """`nearest.nearest_and_edge` of one polygon: the place of the nearest edge; its point, or 0, goes to `anchor`."""
    least, which = math.inf, -1
    for k in range(len(tail)):
        square, free = _near(edge, tail[k], head[k])
        if free and edge[2] * edge[1] - edge[3] * edge[0] > 0.0:  # facing edges win ties with corners
            square *= TIE
        if square < least:
            least, which = square, k
            anchor[0], anchor[1] = edge[0], edge[1]
    if which < 0:
        anchor[0], anchor[1] = 0.0, 0.0
        return which
    c0, c1 = anchor[0], anchor[1]
    square = c0 * c0 + c1 * c1
    level = -PARALLEL * math.sqrt(square)
    inside, rays, middle = False, False, 0.0
    for k in range(len(tail)):
        from_point, to_point = tail[k, 2] != 0.0, head[k, 2] != 0.0
        if from_point and tail[k, 0] * c0 + tail[k, 1] * c1 < 0.5 * square:
            inside = True
        if from_point != to_point:
            _near(edge, tail[k], head[k])
            out = edge[2] * c0 + edge[3] * c1
            inside |= (out if from_point else -out) < level
            rays = True
            middle += edge[2] * c1 - edge[3] * c0
    if inside or (rays and middle < level):
        anchor[0], anchor[1] = 0.0, 0.0
    return which


@compiled
def _frame(tail: Array, head: Array, edge: Array, anchor: Array, basis: Array) -> float:
    """`slices.find_frame` of one polygon: the height of the anchor; anchor and basis are written."""
    which = _nearest(tail, head, edge, anchor)
    height = math.hypot(anchor[0], anchor[1])
    up0, up1 = 1.0, 0.0
    if height > 0.0:
        up0, up1 = anchor[0] / height, anchor[1] / height
    elif which >= 0:
        _near(edge, tail[which], head[which])
        if edge[2] != 0.0 or edge[3] != 0.0:
            up0, up1 = -edge[3], edge[2]
    basis[0, 0], basis[0, 1], basis[1, 0], basis[1, 1] = up0, up1, -up1, up0
    return height


@compiled
def _signed(tail: Array, head: Array, order: int, edges: Array, out: Any) -> int:
    """`kernels.polygon_moments` of one polygon, seen from the origin; the number of its real edges."""
    count, turn, plane = 0, 0.0, True
    for k in range(len(tail)):
        from_point, to_point = tail[k, 2] != 0.0, head[k, 2] != 0.0
        if not (from_point or to_point):
            continue
        plane = False
        x, y = _step(tail[k], head[k], from_point, to_point)
        length = math.hypot(x, y)
        if not length > 0.0:
            continue
        x, y = x / length, y / length
        nearer = abs(tail[k, 0]) + abs(tail[k, 1]) <= abs(head[k, 0]) + abs(head[k, 1])
        near = tail[k] if from_point and (not to_point or nearer) else head[k]
        edges[count, 0], edges[count, 1], edges[count, 2] = x, y, y * near[0] - x * near[1]
        edges[count, 3] = x * tail[k, 0] + y * tail[k, 1] if from_point else -math.inf
        edges[count, 4] = x * head[k, 0] + y * head[k, 1] if to_point else math.inf
        turn += math.atan2(-y, -x) if not from_point else 0.0
        turn -= math.atan2(y, x) if not to_point else 0.0
        count += 1
    start, index, centre, opening, mass, first, second = out
    start[1] = count
    whole = 2.0 * math.pi
    opening[0] = 1.0 if plane else (np.mod(turn + 0.5 * math.pi, whole) - 0.5 * math.pi) / whole
    polygon_moments(start, edges, opening, index, centre, order, mass, first, second)
    return count


@compiled
def _scratch(edges: int) -> Any:
    """Room for one polygon in the signed form, and by slices."""
    out = np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros((1, 2)), np.empty(1), np.empty(1), np.empty((1, 2))
    sets = np.empty((edges, 2)), np.empty((edges, 2)), np.empty((edges, 3)), np.empty((edges + 3, 8))
    return np.empty((edges, 5)), (*out, np.empty((1, 2, 2))), (*sets, np.empty((2 * (edges + 3), _COUNT, 3)))


@compiled
def _most(start: Array) -> int:
    most = 0
    for i in range(len(start) - 1):
        most = max(most, start[i + 1] - start[i])
    return most


@compiled
def _by_slices(
    tail: Array, head: Array, anchor: Array, height: float, basis: Array, sets: Any, mean: Array, root: Array
) -> float:
    """`masses.local_moments` of one polygon; the moments are left alone where there is no room for them."""
    base, step, ends, panels, room = sets
    count, bounded = _edges_of(tail, head, anchor, basis, base, step, ends)
    some = _panels(count, bounded, base, step, ends, height, panels)
    total, accepted, places, slices = _integrate(panels, some, height, room)
    if len(mean):
        _moments(max(total, -1e300), accepted, places, slices, basis, mean, root)
    local: float = total - _HALF_LOG_2PI
    return local


@compiled
def local_moments(
    start: Array,
    tail: Array,
    head: Array,
    anchor: Array,
    height: Array,
    basis: Array,
    log_mass: Array,
    mean: Array,
    root: Array,
) -> None:
    """Write `masses.local_moments` of polygons in frames.

    Args:
        start: the first edge of each, `(n + 1,)`.
        tail: of edges, `(E, 3)` homogeneous.
        head: the same.
        anchor: of the frames, `(n, 2)`.
        height: `(n,)`.
        basis: `(n, 2, 2)`.
        log_mass: without the heights of the anchors, `(n,)`.
        mean: about the anchors, `(n, 2)`.
        root: of the covariances, `(n, 2, 2)`.
    """
    _, _, sets = _scratch(_most(start))
    for i in range(len(start) - 1):
        a, b = start[i], start[i + 1]
        log_mass[i] = _by_slices(tail[a:b], head[a:b], anchor[i], height[i], basis[i], sets, mean[i], root[i])


@compiled
def _mass_an_edge(tail: Array, head: Array, edges: Array, out: Any) -> float:
    """The signed mass for each edge; a whole plane counts as a mass without error."""
    count = _signed(tail, head, 0, edges, out)
    mass: float = out[4][0]
    return mass / count if count else (math.inf if mass > 0.0 else 0.0)


@compiled
def log_masses(start: Array, tail: Array, head: Array, large: float, log_mass: Array) -> None:
    """Write `masses.log_mass` of polygons: signed where the mass is above `large` for each edge, else by slices."""
    edges, out, sets = _scratch(_most(start))
    mass, nothing, no_root, edge = out[4], np.empty(0), np.empty((0, 0)), np.empty(4)
    anchor, basis = np.empty(2), np.empty((2, 2))
    for i in range(len(start) - 1):
        a, b = start[i], start[i + 1]
        if large < math.inf and _mass_an_edge(tail[a:b], head[a:b], edges, out) > large:
            log_mass[i] = math.log(mass[0])
        else:
            height = _frame(tail[a:b], head[a:b], edge, anchor, basis)
            local = _by_slices(tail[a:b], head[a:b], anchor, height, basis, sets, nothing, no_root)
            log_mass[i] = local - 0.5 * height * height


@compiled
def roots(start: Array, tail: Array, head: Array, wide: float, log_mass: Array, mean: Array, root: Array) -> None:
    """Write `masses.roots` of polygons: signed where mass times variance is `wide` for each edge, else by slices."""
    edges, out, sets = _scratch(_most(start))
    mass, first, second, edge = out[4], out[5], out[6], np.empty(4)
    anchor, basis = np.empty(2), np.empty((2, 2))
    for i in range(len(start) - 1):
        a, b = start[i], start[i + 1]
        if wide < math.inf:
            count = _signed(tail[a:b], head[a:b], 2, edges, out)
            m = mass[0]
            if m > 0.0:
                m0, m1 = first[0, 0] / m, first[0, 1] / m
                c00, c01 = second[0, 0, 0] / m - m0 * m0, second[0, 0, 1] / m - m0 * m1
                c11 = second[0, 1, 1] / m - m1 * m1
                least = 0.5 * (c00 + c11 - math.sqrt(max((c00 + c11) ** 2 - 4.0 * (c00 * c11 - c01 * c01), 0.0)))
                if m * min(max(least, 0.0), 1.0) / (1.0 + m0 * m0 + m1 * m1) > wide * count:
                    log_mass[i], mean[i, 0], mean[i, 1] = math.log(m), m0, m1
                    r00 = math.sqrt(c00)
                    root[i, 0, 0], root[i, 0, 1], root[i, 1, 0] = r00, 0.0, c01 / r00
                    root[i, 1, 1] = math.sqrt(max(c11 - root[i, 1, 0] * root[i, 1, 0], 0.0))
                    continue
        height = _frame(tail[a:b], head[a:b], edge, anchor, basis)
        local = _by_slices(tail[a:b], head[a:b], anchor, height, basis, sets, mean[i], root[i])
        log_mass[i] = local - 0.5 * height * height
        mean[i, 0] += anchor[0]
        mean[i, 1] += anchor[1]


@compiled
def _weight(total: float, half: float, value: float, j: int) -> float:
    weight: float = math.exp(value - total) * half * _RULES[j, 0]
    return weight


@compiled
def _spread(
    total: float, count: int, places: Array, slices: Array, m0: float, m1: float, c: float, s: float
) -> tuple[float, float, float]:
    """The covariance about a mean, in axes turned by an angle with this cosine and sine."""
    c00, c01, c11 = 0.0, 0.0, 0.0
    for i in range(count):
        for j in range(_COUNT):
            w = _weight(total, places[i, 2], slices[i, j, 0], j)
            if w > 0.0:
                x, y = places[i, 1] + places[i, 2] * _NODE[j] - m0, slices[i, j, 1] - m1
                along, across, own = c * x + s * y, c * y - s * x, slices[i, j, 2]
                c00 += w * (along * along + own * s * s)
                c01 += w * (along * across + own * s * c)
                c11 += w * (across * across + own * c * c)
    return c00, c01, c11


@compiled
def _moments(total: float, count: int, places: Array, slices: Array, basis: Array, mean: Array, root: Array) -> None:
    """Mean and a root of the covariance, which is formed in its own axes."""
    m0, m1 = 0.0, 0.0
    for i in range(count):
        for j in range(_COUNT):
            w = _weight(total, places[i, 2], slices[i, j, 0], j)
            if w > 0.0:
                m0 += w * (places[i, 1] + places[i, 2] * _NODE[j])
                m1 += w * slices[i, j, 1]
    c00, c01, c11 = _spread(total, count, places, slices, m0, m1, 1.0, 0.0)
    angle = 0.5 * math.atan2(2.0 * c01, c00 - c11)
    c, s = math.cos(angle), math.sin(angle)
    c00, c01, c11 = _spread(total, count, places, slices, m0, m1, c, s)
    r00 = math.sqrt(max(c00, 0.0))
    r10 = c01 / r00 if r00 > 0.0 else 0.0
    r11 = math.sqrt(max(c11 - r10 * r10, 0.0))
    for k in range(2):
        up, rest = basis[0, k], basis[1, k]
        mean[k] = up * m0 + rest * m1
        one, other = c * up + s * rest, c * rest - s * up
        root[k, 0], root[k, 1] = one * r00 + other * r10, other * r11
