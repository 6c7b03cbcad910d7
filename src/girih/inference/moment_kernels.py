"""What `polytopes` makes of raw masses and moments, in compiled code, pair by pair; needs Numba.

The formulas are said there, and its operations on tensors are the twins. Pairs are sorted by row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.gaussian.kernels import compiled

Array = NDArray[Any]


@compiled
def _log_total(values: Array, first: int, last: int, out: Array) -> float:
    """`log sum exp` of the values of a row, whose shares go to `out`; NaN and infinity count as nothing."""
    peak, total = -math.inf, 0.0
    for k in range(first, last):
        if values[k] < math.inf:
            peak = max(peak, values[k])
    for k in range(first, last):
        out[k] = math.exp(values[k] - peak) if peak > -math.inf and values[k] < math.inf else 0.0
        total += out[k]
    for k in range(first, last):
        out[k] = out[k] / total
    return peak + math.log(total)


@compiled
def careful(
    start: Array, log_scale: Array, mass: Array, error: Array, known: Array, large: float, log_floor: float
) -> Array:
    """The places of the pairs whose raw masses are not right enough, ascending; as `polytopes.needs_care`.

    Args:
        start: the first pair of each row, `(n + 1,)`.
        log_scale: of the pairs, `(m,)`.
        mass: raw, `(m,)`.
        error: of the masses, `(m,)`.
        known: log of a lower bound on each p(x), `(n,)`.
        large: a mass that is right enough in any case.
        log_floor: log of the share of a pair's scale above which p(x) makes its mass right enough.
    """
    out, count = np.empty(len(mass), np.int64), 0
    value, share = np.empty(len(mass)), np.empty(len(mass))
    for n in range(len(known)):
        some = False
        for k in range(start[n], start[n + 1]):
            some |= mass[k] < large
            safe = mass[k] - error[k]
            value[k] = log_scale[k] + math.log(safe) if safe > 0.0 else -math.inf
        if not some:
            continue
        floor = max(_log_total(value, start[n], start[n + 1], share), known[n])
        for k in range(start[n], start[n + 1]):
            if mass[k] < large and not floor - log_scale[k] > log_floor:
                out[count] = k
                count += 1
    return out[:count]


@compiled
def moments(
    start: Array,
    log_joint: Array,
    log_unit: Array,
    centre: Array,
    inverse: Array,
    which: Array,
    first: Array,
    second: Array,
) -> tuple[Array, Array]:
    """`log p(x)` of the rows `(n,)` and E[1] of the pairs `(m,)`; turns moments of w into those of t, in place.

    Args:
        start: the first pair of each row, `(n + 1,)`.
        log_joint: `log p(x, piece)`, `(m,)`.
        log_unit: what the moments are to be multiplied by, in logarithms, `(m,)`.
        centre: c `(m, S)`, with `w = R t - c`.
        inverse: of R, of each map, `(P, S, S)`.
        which: the map of each pair, `(m,)`.
        first: moments `(m, S)`.
        second: moments `(m, S, S)`.
    """
    count, S = len(start) - 1, centre.shape[1]
    log_total, share = np.empty(count), np.empty(len(log_joint))
    about, half = np.empty(S), np.empty((S, S))
    for n in range(count):
        log_total[n] = _log_total(log_joint, start[n], start[n + 1], share)
        for k in range(start[n], start[n + 1]):
            e0 = share[k]
            if not e0 > 0.0:  # a piece without mass has no moments
                for i in range(S):
                    first[k, i] = 0.0
                    for j in range(S):
                        second[k, i, j] = 0.0
                continue
            unit, of = math.exp(log_unit[k] - log_total[n]), which[k]
            for i in range(S):
                about[i] = unit * first[k, i]
            for i in range(S):  # inverse times the moments about -c
                for j in range(S):
                    half[i, j] = 0.0
                    for s in range(S):
                        moved = unit * second[k, s, j] + centre[k, s] * about[j] + about[s] * centre[k, j]
                        half[i, j] += inverse[of, i, s] * (moved + e0 * centre[k, s] * centre[k, j])
            for i in range(S):
                first[k, i] = 0.0
                for s in range(S):
                    first[k, i] += inverse[of, i, s] * (about[s] + e0 * centre[k, s])
                for j in range(S):
                    second[k, i, j] = 0.0
                    for s in range(S):
                        second[k, i, j] += half[i, s] * inverse[of, j, s]
    return log_total, share


@compiled
def by_piece(row: Array, piece: Array, weight: Array, e0: Array, e1: Array, e2: Array, out: Array) -> None:
    """Add `sum_n g_n E[1_piece (t, 1)(t, 1)^T]` to `out (P, S + 1, S + 1)`, for row weights `(n,)`."""
    S = e1.shape[1]
    for k in range(len(row)):
        g, p = weight[row[k]], piece[k]
        for i in range(S):
            out[p, i, S] += g * e1[k, i]
            out[p, S, i] += g * e1[k, i]
            for j in range(S):
                out[p, i, j] += g * e2[k, i, j]
        out[p, S, S] += g * e0[k]
