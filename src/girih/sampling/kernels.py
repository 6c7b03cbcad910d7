"""`motion` of one point after the other in compiled code, for chains of layers; needs Numba. The formulas are there.

A unit that changes its sign adds a product of two vectors to the slopes of the layers above it, and these products are
added up; after 64 of them the slopes are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.gaussian.kernels import compiled

Array = NDArray[Any]
_REFRESHED = 64
_LEAST = 0.8  # of a pivot: exactly, none is below 1


def _summed(function: Callable[..., Any]) -> Any:
    """Compiled with sums in any order."""
    return compiled(function, "reassoc", "nsz")


@_summed
def _look(u: Array, code: Array, y: Array, net: Any, f: Array, G: Array, r: Array, B: Array) -> None:
    """Units f and their slopes G, residuals r and slopes B of the outputs, of the cell with this code about u."""
    widths, weights, biases, leaks, head = net
    S, base, used, below = len(u), 0, 0, 0
    for layer in range(len(widths)):
        width = widths[layer]
        for j in range(width):
            here = base + j
            total = biases[here]
            G[here] = 0.0
            if layer == 0:
                for i in range(S):
                    total += weights[used + i] * u[i]
                    G[here, i] = weights[used + i]
                used += S
            else:
                for k in range(widths[layer - 1]):
                    one = below + k
                    factor = weights[used + k] * (1.0 if code[one] > 0 else leaks[one])
                    if factor != 0.0:
                        total += factor * f[one]
                        for i in range(S):
                            G[here, i] += factor * G[one, i]
                used += widths[layer - 1]
            f[here] = total
        below, base = base, base + width
    for k in range(len(y)):
        r[k] = y[k]
        B[k] = 0.0
        if len(widths) == 0:
            for i in range(S):
                r[k] -= head[k, i] * u[i]
                B[k, i] = head[k, i]
            continue
        for j in range(widths[-1]):
            one = below + j
            factor = head[k, j] * (1.0 if code[one] > 0 else leaks[one])
            if factor != 0.0:
                r[k] -= factor * f[one]
                for i in range(S):
                    B[k, i] += factor * G[one, i]


@_summed
def _spread(unit: int, change: float, code: Array, net: Any, S: int, delta: Array, out: Array) -> int:
    """What the units of later layers and the outputs see of a unit; the first of these units."""
    widths, weights, _, leaks, head = net
    layer, base, used, below = 0, 0, 0, S
    while unit >= base + widths[layer]:
        used += widths[layer] * below
        below = widths[layer]
        base += widths[layer]
        layer += 1
    used += widths[layer] * below
    first = int(base + widths[layer])
    place, start = unit - base, first
    for later in range(layer + 1, len(widths)):
        below = widths[later - 1]
        for j in range(widths[later]):
            total = 0.0
            if later == layer + 1:
                total = weights[used + place] * change
            else:
                for k in range(below):
                    one = start - below + k
                    total += weights[used + k] * delta[one] * (1.0 if code[one] > 0 else leaks[one])
            delta[start + j] = total
            used += below
        start += widths[later]
    last = start - widths[-1]
    for k in range(len(out)):
        if layer == len(widths) - 1:
            out[k] = head[k, place] * change
            continue
        total = 0.0
        for j in range(widths[-1]):
            total += head[k, j] * delta[last + j] * (1.0 if code[last + j] > 0 else leaks[last + j])
        out[k] = total
    return first


@_summed
def _factor(B: Array, b: float, root: Array) -> bool:
    """Write the lower root of `1 + b B^T B`; false where rounding is larger than the 1."""
    K, S = B.shape
    root[:] = 0.0
    for k in range(K):
        for i in range(S):
            scaled = b * B[k, i]
            for j in range(i + 1):
                root[i, j] += scaled * B[k, j]
    for i in range(S):
        root[i, i] += 1.0
    for j in range(S):
        for k in range(j):
            root[j, j] -= root[j, k] * root[j, k]
        if not root[j, j] > _LEAST:
            return False
        root[j, j] = math.sqrt(root[j, j])
        for i in range(j + 1, S):
            for k in range(j):
                root[i, j] -= root[i, k] * root[j, k]
            root[i, j] /= root[j, j]
    return True


@_summed
def _solve(root: Array, vector: Array) -> None:
    """Solve `root root^T x = vector` in place."""
    S = len(vector)
    for i in range(S):
        for k in range(i):
            vector[i] -= root[i, k] * vector[k]
        vector[i] /= root[i, i]
    _solve_above(root, vector)


@_summed
def _solve_above(root: Array, vector: Array) -> None:
    """Solve `root^T x = vector` in place."""
    S = len(vector)
    for i in range(S - 1, -1, -1):
        for k in range(i + 1, S):
            vector[i] -= root[k, i] * vector[k]
        vector[i] /= root[i, i]


@_summed
def _exit(f: Array, G: Array, code: Array, d: Array, v: Array, at: int, left: float) -> tuple[float, int]:
    """The first time below `left` at which a unit changes its sign, and which one; -1 for none."""
    best, which = left, -1
    for j in range(len(f)):
        along, speed = 0.0, 0.0
        for i in range(len(d)):
            along += G[j, i] * d[i]
            speed += G[j, i] * v[i]
        side = 1.0 if code[j] > 0 else -1.0
        along, speed, inside = side * along, side * speed, side * f[j]
        if j == at:
            time = 2.0 * math.atan2(speed, along)
        elif inside < 0.0 and speed < 0.0:
            time = 0.0
        else:
            rest, size2 = inside - along, along * along + speed * speed
            if rest * rest >= size2:
                continue
            time = math.atan2(speed, along) + math.acos(min(max(-rest / math.sqrt(size2), -1.0), 1.0))
            time = max(time, 0.0)
        if time < best:
            best, which = time, j
    return best, which


@_summed
def move(
    u: Array,
    code: Array,
    noise: Array,
    y: Array,
    head: Array,
    b: Array,
    trail: Array,
    distance: Array,
    time: float,
    nets: Any,
    most: int,
) -> int:
    """Move points in place several times, and write where they were after each, and `|y - g|^2 / 2` at the end.

    Args:
        u: the points `(n, S)`.
        code: those of their cells `(n, U)`.
        noise: standard normal, `(n, m, S)`: the velocities of m moves.
        y: `(n, K)`.
        head: which of the heads each point has, `(n,)`.
        b: inverse temperatures `(n,)`.
        trail: `(n, m, S)`, written to.
        distance: `(n,)`, written to.
        time: of the motion.
        nets: widths, weights, biases, slopes below 0, and the heads `(m, K, H)`.
        most: facets that a trajectory may meet.

    Returns:
        How many facets were met; -1 where one trajectory met more than `most`, -2 where noise is too small.
    """
    n, S = u.shape
    U, K = code.shape[1], y.shape[1]
    f, G, r, B = np.empty(U), np.empty((U, S)), np.empty(K), np.empty((K, S))
    root, other, there, delta, out = np.empty((S, S)), np.empty((S, S)), np.empty((K, S)), np.empty(U), np.empty(K)
    v, d, step, normal, toward, beyond = (
        np.empty(S), np.empty(S), np.empty(S), np.empty(S), np.empty(S), np.empty(S)
    )  # fmt: skip
    leaks, total = nets[3], 0
    for point in range(n):
        place, own = u[point], code[point]
        net = (nets[0], nets[1], nets[2], leaks, nets[4][head[point]])
        _look(place, own, y[point], net, f, G, r, B)
        if not _factor(B, b[point], root):
            return -2
        left, at, met, since, turn = 0.0, -1, 0, 0, -1
        while True:
            if left == 0.0:  # the next move
                turn, total = turn + 1, total + met
                if turn > 0:
                    trail[point, turn - 1] = place
                if turn == noise.shape[1]:
                    break
                v[:] = noise[point, turn]
                _solve_above(root, v)
                left, at, met = time, -1, 0
            d[:] = place
            for k in range(K):
                pull = b[point] * r[k]
                for i in range(S):
                    d[i] -= pull * B[k, i]
            _solve(root, d)
            moment, which = _exit(f, G, own, d, v, at, left)
            cos, sin, fall = math.cos(moment), math.sin(moment), 2.0 * math.sin(0.5 * moment) ** 2
            for i in range(S):
                step[i] = v[i] * sin - d[i] * fall
                place[i] += step[i]
                v[i] = v[i] * cos - d[i] * sin
            for k in range(K):
                for i in range(S):
                    r[k] -= B[k, i] * step[i]
            for j in range(U):
                for i in range(S):
                    f[j] += G[j, i] * step[i]
            if which < 0:
                left = 0.0
                continue
            left -= moment
            met += 1
            if met > most:
                return -1
            f[which], at = 0.0, which
            side = 1.0 if own[which] > 0 else -1.0
            change = side * (leaks[which] - 1.0)
            first = _spread(which, change, own, net, S, delta, out)
            normal[:] = G[which]
            for k in range(K):
                for i in range(S):
                    there[k, i] = B[k, i] + out[k] * normal[i]
            if not _factor(there, b[point], other):
                return -2
            toward[:], beyond[:] = normal, normal
            _solve(root, toward)
            _solve(other, beyond)
            a, a_there, speed = 0.0, 0.0, 0.0
            for i in range(S):
                a += normal[i] * toward[i]
                a_there += normal[i] * beyond[i]
                speed += normal[i] * v[i]
            energy = speed * speed / a + math.log(a_there / a)
            if not energy > 0.0:
                for i in range(S):
                    v[i] -= 2.0 * speed / a * toward[i]
                continue
            d[:] = v
            for k in range(K):
                along = 0.0
                for i in range(S):
                    along += B[k, i] * v[i]
                for i in range(S):
                    d[i] += b[point] * along * B[k, i]
            _solve(other, d)
            through = 0.0
            for i in range(S):
                through += normal[i] * d[i]
            gain = (-side * math.sqrt(a_there * energy) - through) / a_there
            for i in range(S):
                v[i] = d[i] + gain * beyond[i]
            own[which] = -own[which]
            since += 1
            if since < _REFRESHED:
                B[:], root[:] = there, other
                for j in range(first, U):
                    for i in range(S):
                        G[j, i] += delta[j] * normal[i]
            else:
                since = 0
                _look(place, own, y[point], net, f, G, r, B)
                _factor(B, b[point], root)
        half = 0.0
        for k in range(K):
            half += r[k] * r[k]
        distance[point] = 0.5 * half
    return total
