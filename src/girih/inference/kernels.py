r"""The search of `certificate` in compiled code: a row at a time, from the tree to the pairs that matter; needs Numba.

Bounds are those of `certificate`, but for the last: the distance of a convex set from 0 is at least `min v e` over its
vertices v for any direction e that none of its rays runs against. Two directions are tried, the point of its edges that
is nearest to 0 and, for S = 3, the normal of the plane that is farthest beyond 0; one of them is that of the nearest
point, for which this is the distance itself. No normal of a short edge or face is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.gaussian.kernels import compiled
from girih.inference.gaussians import LOUD
from girih.inference.pieces import ROUNDING_OF_VERTICES

Array = NDArray[Any]

_NOTHING, _LEAST = -60.0, 1e-26  # a share in logarithms, and what it is at most
_RAY = 1e-12  # sine of the angle by which a ray may run against a direction by rounding
# corners and rays of pieces, edges that are nearest points' and all of them, faces, cones: see `Search`
Shape = tuple[Array, Array, Array, Array, Array, Array, Array, Array, Array, Array, Array, Array]


def _device(function: Callable[..., Any]) -> Any:
    return compiled(function, "reassoc", "nsz")


@_device
def _lowered(value: float, rounding: float) -> float:
    return min(value * (1.0 - rounding), value * (1.0 + rounding)) - rounding


@_device
def _share(value: float, reference: float, rounding: float) -> float:
    """At least what a bound is as a part of a reference, both in logarithms."""
    above = -_lowered(-value, rounding) - reference
    return math.exp(above) if above > _NOTHING else _LEAST


@_device
def _gap2(
    main: Array,
    n: int,
    beyond: float,
    node: int,
    centre: Array,
    basis: Array,
    sizes: Array,
    rounding: float,
    enough: float,
) -> float:
    """The square of a lower bound on the distance of a row from a node: of its ball if that is enough, or its slab."""
    total = 0.0
    for j in range(main.shape[1]):
        off = main[n, j] - centre[node, j]
        total += off * off
    rest = beyond - sizes[node, 0]
    square = total + rest * rest
    outside = max(math.sqrt(square) - sizes[node, 3], 0.0)
    ball: float = outside * outside - rounding * square
    if ball > enough:
        return ball
    along = 0.0
    for s in range(basis.shape[1]):
        part = 0.0
        for j in range(main.shape[1]):
            part += (main[n, j] - centre[node, j]) * basis[node, s, j]
        along += part * part
    across = max(math.sqrt(max(total - along, 0.0)) - sizes[node, 2], 0.0)
    inner = max(math.sqrt(along) - sizes[node, 1], 0.0)
    apart = max(abs(rest) - sizes[node, 3], 0.0)
    slab: float = inner * inner + across * across + apart * apart - rounding * square
    return max(slab, 0.0)


@_device
def _height(main: Array, n: int, beyond: float, node: int, centre: Array, sizes: Array) -> float:
    """What a node would hold of a row if all of it were at its centre, in logarithms."""
    square = (beyond - sizes[node, 0]) ** 2
    for j in range(main.shape[1]):
        square += (main[n, j] - centre[node, j]) ** 2
    value: float = sizes[node, 4] - 0.5 * square
    return value


@_device
def _gaussian(y: Array, n: int, piece: int, start: Array, basis: Array, off: Array, out: Array, i: int) -> float:
    """Centre of the Gaussian of a pair, into `out`; `|b - Q c|^2` is returned."""
    S, M = basis.shape[1], basis.shape[2]
    K = y.shape[1]
    for j in range(M):
        off[j] = -start[piece, j]
    for j in range(K):
        off[j] += y[n, j]
    largest = 0.0
    for s in range(S):
        total = 0.0
        for j in range(M):
            total += basis[piece, s, j] * off[j]
        out[i, s] = total
        largest = max(largest, abs(total))
    for s in range(S):
        total = out[i, s]
        for j in range(M):
            off[j] -= basis[piece, s, j] * total
    if largest > LOUD:
        for s in range(S):
            again = 0.0
            for j in range(M):
                again += basis[piece, s, j] * off[j]
            for j in range(M):
                off[j] -= basis[piece, s, j] * again
    square = 0.0
    for j in range(M):
        square += off[j] * off[j]
    return square


@_device
def _beyond(
    piece: int, centre: Array, i: int, way: Array, w: int, first: Array, corner: Array, ray_first: Array, ray: Array
) -> float:
    """At least the distance of a piece from 0: how far all of it is in a direction, negative where it is not."""
    S = centre.shape[1]
    length = 0.0
    for s in range(S):
        length += way[w, s] * way[w, s]
    length = math.sqrt(length)
    if not length > 0.0:
        return -1.0
    for k in range(ray_first[piece], ray_first[piece + 1]):
        lean = 0.0
        for s in range(S):
            lean += ray[k, s] * way[w, s]
        if lean < -_RAY * length:  # rays have length 1
            return -1.0
    least = math.inf
    for k in range(first[piece], first[piece + 1]):
        at = 0.0
        for s in range(S):
            at += (corner[k, s] - centre[i, s]) * way[w, s]
        least = min(least, at)
    return least / length if least < math.inf else -1.0


@_device
def _slack(centre: Array, i: int, far: float) -> float:
    """By how much points of a piece may be off, seen from its Gaussian's centre."""
    square = 0.0
    for s in range(centre.shape[1]):
        square += centre[i, s] * centre[i, s]
    return ROUNDING_OF_VERTICES * (far + math.sqrt(square))


@_device
def supports(owner: Array, normal: Array, first: Array, corner: Array, ray_first: Array, ray: Array) -> Array:
    """How far pieces reach in directions `normal (F, S)` of unit length; infinite where one of their rays rises."""
    out = np.full(len(owner), -math.inf)
    for f in range(len(owner)):
        piece = owner[f]
        for k in range(first[piece], first[piece + 1]):
            at = 0.0
            for s in range(normal.shape[1]):
                at += normal[f, s] * corner[k, s]
            out[f] = max(out[f], at)
        for k in range(ray_first[piece], ray_first[piece + 1]):
            rise = 0.0
            for s in range(normal.shape[1]):
                rise += normal[f, s] * ray[k, s]
            if rise > _RAY:
                out[f] = math.inf
        if not out[f] > -math.inf:  # of no corner, or of a side without a direction
            out[f] = math.inf
    return out


@_device
def _outside(piece: int, centre: Array, i: int, planes: tuple[Array, Array, Array]) -> float:
    """At least the distance of a piece from 0: how far 0 is beyond one of its sides; negative where it is inside."""
    first, normal, support = planes
    most = -math.inf
    for f in range(first[piece], first[piece + 1]):
        beyond = -support[f]
        for s in range(centre.shape[1]):
            beyond += normal[f, s] * centre[i, s]
        most = max(most, beyond)
    return most


@_device
def _nearest(piece: int, centre: Array, i: int, slack: float, shape: Shape, out: Array, way: Array) -> float:
    """At least the distance of a piece from 0, and about its nearest point, into place i of `out`."""
    first, corner, ray_first, ray, edge_first, edge, ends, face_first, normal, offset, _, _ = shape
    S = centre.shape[1]
    best = -1.0
    if S == 3:
        lowest, which = 0.0, -1
        for f in range(face_first[piece], face_first[piece + 1]):
            h = offset[f]
            for s in range(S):
                h -= normal[f, s] * centre[i, s]
            if h < lowest:
                lowest, which = h, f
        if which >= 0:
            for s in range(S):
                out[i, s] = lowest * normal[which, s]
            best = _beyond(piece, centre, i, out, i, first, corner, ray_first, ray)
        inside = True
        for f in range(face_first[piece], face_first[piece + 1]):
            h = offset[f] + slack
            for s in range(S):
                h -= normal[f, s] * (centre[i, s] + (out[i, s] if which >= 0 else 0.0))
            inside &= h >= 0.0
        if inside:  # 0, or the foot of 0 in a face
            if which < 0:
                for s in range(S):
                    out[i, s] = 0.0
            return max(best - slack, 0.0)
    nearest = math.inf
    for k in range(edge_first[piece], edge_first[piece + 1]):
        e = edge[k]
        # a point of the edge, a step, and how many steps there are: 1, or any number
        a, b = (0, S + 1) if ends[e, S] > 0.0 else (S + 1, 0)
        finite = ends[e, b + S]
        top, square = 0.0, 0.0
        for s in range(S):
            step = ends[e, b + s] - finite * ends[e, a + s]
            top -= (ends[e, a + s] - centre[i, s]) * step
            square += step * step
        place = 0.0
        if square > 0.0:
            place = max(top / square, 0.0)
            if finite > 0.0:
                place = min(place, 1.0)
        distance = 0.0
        for s in range(S):
            way[0, s] = ends[e, a + s] - centre[i, s] + place * (ends[e, b + s] - finite * ends[e, a + s])
            distance += way[0, s] * way[0, s]
        if distance < nearest:
            nearest = distance
            for s in range(S):
                way[1, s] = way[0, s]
    if nearest < math.inf:
        other = _beyond(piece, centre, i, way, 1, first, corner, ray_first, ray)
        if other > best:
            best = other
            for s in range(S):
                out[i, s] = way[1, s]
    if not best > 0.0:
        for s in range(S):
            out[i, s] = 0.0
        return 0.0
    return max(best - slack, 0.0)


@_device
def _least_log_mass(
    piece: int, centre: Array, apex: Array, at: int, slack: float, shape: Shape, edges: Array, length: Array
) -> float:
    """`girih.gaussian.masses.least_log_mass` of a piece: Jensen's inequality in the cones over its boundary."""
    _, _, _, _, _, _, ends, _, _, _, cone_first, fan = shape
    S = centre.shape[1]
    off = 2.0 * slack
    v2 = 0.0
    for s in range(S):
        v2 += apex[at, s] * apex[at, s]
    peak, total = -math.inf, 0.0
    for k in range(cone_first[piece], cone_first[piece + 1]):
        directions = 0
        for i in range(S):
            # the corner of the fan of a face, tail and head; for S = 2 the latter
            e, a = (fan[k], 0) if i == S - 3 else (k, (i - S + 2) * (S + 1))
            finite = ends[e, a + S]
            square, slope = 0.0, 0.0
            for s in range(S):
                edges[i, s] = ends[e, a + s] - finite * (centre[at, s] + apex[at, s])
                square += edges[i, s] * edges[i, s]
                slope += edges[i, s] * apex[at, s]
            slope /= S + 1
            scale = 2.0 / (slope + math.sqrt(slope * slope + 8.0 / ((S + 1) * (S + 2)) * square))
            if finite > 0.0:
                scale = min(scale, 1.0)
            elif i >= S - 2:
                directions += 1
            for s in range(S):
                edges[i, s] *= scale
            length[i] = scale * math.sqrt(square)
        if S == 2:
            size = edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0]
            room = off * (length[0] + length[1])
        else:
            size = (
                edges[0, 0] * (edges[1, 1] * edges[2, 2] - edges[1, 2] * edges[2, 1])
                - edges[0, 1] * (edges[1, 0] * edges[2, 2] - edges[1, 2] * edges[2, 0])
                + edges[0, 2] * (edges[1, 0] * edges[2, 1] - edges[1, 1] * edges[2, 0])
            )
            room = off * (length[0] * length[1] + length[1] * length[2] + length[2] * length[0])
        if directions == 2:
            size = abs(size)
        if not size >= -room:
            return -math.inf
        if size > room:
            second, whole2, cross = 0.0, 0.0, 0.0
            for i in range(S):
                second += length[i] * length[i]
            for s in range(S):
                whole = 0.0
                for i in range(S):
                    whole += edges[i, s]
                whole2 += whole * whole
                cross += apex[at, s] * whole
            square = v2 + 2.0 / (S + 1) * cross + (second + whole2) / ((S + 1) * (S + 2))
            root = math.sqrt(max(square, 0.0)) + off
            value = -0.5 * root * root
            if value > peak:
                total = total * math.exp(peak - value) + (size - room)
                peak = value
            else:
                total += (size - room) * math.exp(value - peak)
    if not total > 0.0:
        return -math.inf
    log_mass: float = peak + math.log(total / (2.0 if S == 2 else 6.0)) - 0.5 * S * math.log(2.0 * math.pi)
    return log_mass


@_device
def select(
    rows: tuple[Array, Array, Array, Array, Array, Array],
    tree: tuple[Array, Array, Array, Array, Array, Array],
    levels: tuple[int, int, int, int],
    maps: tuple[Array, Array, Array, Array],
    shape: Shape,
    planes: tuple[Array, Array, Array],
    unbounded: Array,
    known: Array,
    lost: Array,
    unsure: Array,
    numbers: tuple[float, float, float, int],
) -> tuple[Array, Array, Array, Array]:
    """Pairs `(m,)`, sorted by row and by bound: row, piece, base and centre, as in `certificate.Pairs`."""
    y, main, beyond, constant, outer, number = rows
    node_centre, node_basis, sizes, child, children, piece_of = tree
    wide_first, wide_last, top_first, top_last = levels
    start, basis, log_volume, flat = maps
    log_tol, rounding, worth, beam = numbers
    S, P = basis.shape[1], len(basis)
    far = flat[:, 1]
    room = max(64, 4 * len(y))
    out_row, out_piece = np.empty(room, np.int64), np.empty(room, np.int64)
    out_base, out_centre = np.empty(room), np.empty((room, S))
    filled = 0
    stack = np.empty(len(piece_of) + 1, np.int64)
    order = np.empty(P, np.int64)
    found, value, base, centres = np.empty(P, np.int64), np.empty(P), np.empty(P), np.empty((P, S))
    anchor = np.empty((P, S))
    off, way, edges, length = np.empty(basis.shape[2]), np.empty((2, S)), np.empty((S, S)), np.empty(S)
    some, leaf, leaf_score = np.empty(beam, np.int64), np.empty(beam, np.int64), np.empty(beam)
    for n in range(len(y)):
        common = constant[n]
        size = 0.0
        for j in range(y.shape[1]):
            size += y[n, j] * y[n, j]
        unsure[n], known[n], lost[n] = not size + abs(common) < math.inf, -math.inf, -math.inf
        if unsure[n]:
            continue
        # promising pieces: from the best nodes of a level to the best of their children, as centres explain the row
        for k in range(beam):
            leaf[k], leaf_score[k] = -1, -math.inf
        for node in range(wide_first, wide_last):
            _insert(leaf, leaf_score, node, _height(main, n, beyond[n], node, node_centre, sizes), beam)
        deeper = leaf[0] >= 0 and children[leaf[0]] > 0
        while deeper:
            for k in range(beam):
                some[k], leaf[k], leaf_score[k] = leaf[k], -1, -math.inf
            for k in range(beam):
                if some[k] >= 0:
                    for node in range(child[some[k]], child[some[k]] + children[some[k]]):
                        _insert(leaf, leaf_score, node, _height(main, n, beyond[n], node, node_centre, sizes), beam)
            deeper = children[leaf[0]] > 0
        best_outer = -1
        for k in range(len(unbounded)):
            if best_outer < 0 or outer[n, k] > outer[n, best_outer]:
                best_outer = k
        low = -math.inf
        hidden = -math.inf  # the best of what may be held by pieces of which Jensen says nothing
        for k in range(beam + 1):
            if k < beam:
                if leaf[k] < 0:
                    continue
                piece = piece_of[leaf[k]]
            elif best_outer >= 0:
                piece = unbounded[best_outer]
            else:
                continue
            height = common - 0.5 * _gaussian(y, n, piece, start, basis, off, centres, 0)
            slack = _slack(centres, 0, far[piece])
            away = _nearest(piece, centres, 0, slack, shape, anchor, way)
            least = _least_log_mass(piece, centres, anchor, 0, slack, shape, edges, length)
            if least > -math.inf:
                low = max(low, _lowered(height + log_volume[piece] + least, rounding))
            else:
                hidden = max(hidden, height + min(log_volume[piece], flat[piece, 0]) - 0.5 * away * away)
        unsure[n] = hidden > low + worth or not low > -math.inf
        if unsure[n]:
            continue
        # whole branches that are below the limit are left out; what is lost is counted from a reference
        reference = low + log_tol - math.log(P)
        limit = _lowered(reference, rounding)
        gone, count, filled_stack = 0.0, 0, 0
        for node in range(top_first, top_last):
            stack[filled_stack] = node
            filled_stack += 1
        while filled_stack > 0:
            filled_stack -= 1
            node = stack[filled_stack]
            height = common + sizes[node, 4]
            enough = 2.0 * (height - limit)
            bound = height - 0.5 * _gap2(main, n, beyond[n], node, node_centre, node_basis, sizes, rounding, enough)
            if bound < limit:
                gone += _share(bound, reference, rounding)
            elif children[node] == 0:
                found[count] = piece_of[node]
                count += 1
            else:
                for k in range(children[node]):
                    stack[filled_stack] = child[node] + k
                    filled_stack += 1
        for k in range(len(unbounded)):
            if outer[n, k] < limit:
                gone += _share(outer[n, k], reference, rounding)
            else:
                found[count] = unbounded[k]
                count += 1
        kept, best = 0, -1
        for i in range(count):
            piece = found[i]
            height = common - 0.5 * _gaussian(y, n, piece, start, basis, off, centres, kept)
            bound = height + min(log_volume[piece], flat[piece, 0])
            if bound < limit:
                gone += _share(bound, reference, rounding)
                continue
            slack = _slack(centres, kept, far[piece])
            away = max(_outside(piece, centres, kept, planes) - slack, 0.0)
            # corners are farther than lines and planes: worth a look where masses cost much, or not much is missing
            if away > 0.0 and bound - 0.5 * away * away >= limit and (S == 3 or 2.0 * away * away > bound - limit):
                away = max(away, _nearest(piece, centres, kept, slack, shape, anchor, way))
            if bound - 0.5 * away * away < limit:
                gone += _share(bound - 0.5 * away * away, reference, rounding)
                continue
            found[kept], base[kept], value[kept] = piece, height, bound - 0.5 * away * away
            if best < 0 or value[kept] > value[best]:
                best = kept
            kept += 1
        if best >= 0:
            piece = found[best]
            slack = _slack(centres, best, far[piece])
            _nearest(piece, centres, best, slack, shape, anchor, way)
            least = _least_log_mass(piece, centres, anchor, best, slack, shape, edges, length)
            if least > -math.inf:
                low = max(low, _lowered(base[best] + log_volume[piece] + least, rounding))
            elif value[best] > low + worth:
                unsure[n] = True
                continue
        gone *= math.exp(reference - low - log_tol)
        reference = low + log_tol
        allowed = _lowered(reference, rounding)
        # the smallest bounds that together are small enough are left out, too
        for k in range(kept):
            order[k] = k
        _sort(order, kept, value)
        share, begin = 0.0, 0
        while begin < kept and value[order[begin]] < allowed:
            share += math.exp(value[order[begin]] - allowed)
            if not share <= 1.0:
                break
            gone += _share(value[order[begin]], reference, rounding)
            begin += 1
        known[n] = low
        lost[n] = reference + math.log(gone) if gone > 0.0 else -math.inf
        if filled + kept > room:
            room = 2 * (filled + kept)
            out_row, out_piece = _longer(out_row, room), _longer(out_piece, room)
            out_base = _longer(out_base, room)
            longer = np.empty((room, S))
            for k in range(filled):
                for s in range(S):
                    longer[k, s] = out_centre[k, s]
            out_centre = longer
        for i in range(begin, kept):
            k = order[i]
            out_row[filled], out_piece[filled], out_base[filled] = number[n], found[k], base[k]
            for s in range(S):
                out_centre[filled, s] = centres[k, s]
            filled += 1
    return out_row[:filled], out_piece[:filled], out_base[:filled], out_centre[:filled]


@_device
def _longer(values: Array, room: int) -> Array:
    out = np.empty(room, values.dtype)
    for k in range(len(values)):
        out[k] = values[k]
    return out


@_device
def _sort(order: Array, count: int, value: Array) -> None:
    """Sort the first places by their values, by Shell's method."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            new, k = order[i], i
            while k >= gap and value[order[k - gap]] > value[new]:
                order[k] = order[k - gap]
                k -= gap
            order[k] = new
        gap //= 3


@_device
def _insert(some: Array, score: Array, new: int, value: float, beam: int) -> None:
    """Keep the best ones, the best first."""
    if not value > score[beam - 1]:
        return
    k = beam - 1
    while k > 0 and value > score[k - 1]:
        some[k], score[k] = some[k - 1], score[k - 1]
        k -= 1
    some[k], score[k] = new, value
