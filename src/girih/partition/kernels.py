"""What a cut does to every value of every new vertex, in compiled code; needs Numba. To the bit what NumPy gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.gaussian.kernels import exactly

Array = NDArray[Any]

_ONE, _NONE = np.uint64(1), np.uint64(0)


@exactly
def blend(data: Array, low: Array, high: Array, a: Array, b: Array, out: Array) -> None:
    """Write `a data[low] + b data[high]`, `(n, w)`."""
    for i in range(len(low)):
        for c in range(data.shape[1]):
            out[i, c] = a[i] * data[low[i], c] + b[i] * data[high[i], c]


@exactly
def widen(value: Array, error: Array, low: Array, high: Array, a: Array, b: Array, share: float) -> None:
    """Add the rounding of `blend` to the errors `(V, w)` of the last vertices, a share of the sizes of its terms."""
    start = len(value) - len(low)
    for i in range(len(low)):
        for c in range(value.shape[1]):
            size = a[i] * abs(value[low[i], c]) + b[i] * abs(value[high[i], c])
            error[start + i, c] += share * size


@exactly
def signs(value: Array, error: Array, positive: Array, negative: Array) -> None:
    """Write which of up to 64 values `(n, w)` are above their errors, and which below minus them, as bits of words."""
    for i in range(len(value)):
        up, down = _NONE, _NONE
        for c in range(value.shape[1]):
            if value[i, c] > error[i, c]:
                up |= _ONE << np.uint64(c)
            elif -value[i, c] > error[i, c]:
                down |= _ONE << np.uint64(c)
        positive[i], negative[i] = up, down


@exactly
def crossed(positive: Array, negative: Array, mask: np.uint64) -> Array:
    """The places of the words that have a bit in common with the mask, ascending."""
    count = 0
    for i in range(len(positive)):
        if positive[i] & negative[i] & mask:
            count += 1
    out = np.empty(count, np.int64)
    count = 0
    for i in range(len(positive)):
        if positive[i] & negative[i] & mask:
            out[count] = i
            count += 1
    return out


@exactly
def line(numbers: Array, stages: Array, eps: float, farthest: float) -> tuple[Array, Array, int]:
    """`intervals._by_tensors` cell by cell: knots `(R - 1,)`, patterns `(R, U)`, the first stage that overflows or -1.

    Args:
        numbers: of all stages, one after the other: weights `(out, in)` and shifts `(out,)`, or the slopes `(out,)`
            below the kinks.
        stages: in, out of each stage, and the units so far, or -1 for a linear one, `(L, 3)`.
        eps: of the numbers.
        farthest: of the roots.
    """
    units = 0
    for index in range(len(stages)):
        if stages[index, 2] >= 0:
            units += stages[index, 1]
    knots, origin = np.empty(0), np.zeros(1)
    value, slope, value_error, slope_error = np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 1))
    patterns = np.empty((1, units), np.int8)
    at = 0
    for index in range(len(stages)):
        into, out, before = stages[index]
        R = len(origin)
        if before < 0:
            shift, rounding = at + out * into, eps * (into + 1)
            old = value, slope, value_error, slope_error
            value, slope, value_error, slope_error = (
                np.zeros((R, out)),
                np.zeros((R, out)),
                np.zeros((R, out)),
                np.zeros((R, out)),
            )
            for r in range(R):
                for o in range(out):
                    moved, size, slope_size = 0.0, 0.0, 0.0
                    for k in range(into):
                        w = numbers[at + o * into + k]
                        moved += old[0][r, k] * w
                        slope[r, o] += old[1][r, k] * w
                        size += abs(old[0][r, k] * w)
                        slope_size += abs(old[1][r, k] * w)
                        value_error[r, o] += old[2][r, k] * abs(w)
                        slope_error[r, o] += old[3][r, k] * abs(w)
                    value[r, o] = moved + numbers[shift + o]
                    value_error[r, o] += rounding * (size + abs(numbers[shift + o]))
                    slope_error[r, o] += rounding * slope_size
                    if not (np.isfinite(value[r, o]) and np.isfinite(slope[r, o])):
                        return knots, patterns, index
            at = shift + out
            continue
        # sign changes strictly inside the cells
        roots, errors, count = np.empty(R * out), np.empty(R * out), 0
        for r in range(R):
            lower = knots[r - 1] if r > 0 else -np.inf
            upper = knots[r] if r < R - 1 else np.inf
            for k in range(out):
                steep = abs(slope[r, k])
                if steep > slope_error[r, k]:
                    step = -value[r, k] / slope[r, k]
                    root = origin[r] + step
                    error = (value_error[r, k] + abs(step) * slope_error[r, k]) / steep + 4 * eps * abs(root)
                    if abs(root) < farthest and root - error > lower and root + error < upper:
                        roots[count], errors[count] = root, error
                        count += 1
        order, merged = np.argsort(roots[:count]), 0
        found = np.empty(count)
        for i in range(count):
            j = order[i]
            if i == 0 or roots[j] - roots[order[i - 1]] > errors[j] + errors[order[i - 1]]:
                found[merged] = roots[j]
                merged += 1
        new = np.sort(np.concatenate((knots, found[:merged])))
        old, old_patterns, old_origin = (value, slope, value_error, slope_error), patterns, origin
        cells = len(new) + 1
        value, slope, value_error, slope_error = (
            np.empty((cells, out)),
            np.empty((cells, out)),
            np.empty((cells, out)),
            np.empty((cells, out)),
        )
        patterns, origin = np.empty((cells, units), np.int8), np.empty(cells)
        for r in range(cells):
            if cells == 1:
                low, high, inside = -np.inf, np.inf, 0.0
            elif r == 0:
                low, high, inside = -np.inf, new[0], new[0] - max(abs(new[0]), 1.0)
            elif r == cells - 1:
                low, high, inside = new[-1], np.inf, new[-1] + max(abs(new[-1]), 1.0)
            else:
                low, high, inside = new[r - 1], new[r], 0.5 * (new[r - 1] + new[r])
            origin[r] = min(max(0.0, low), high)
            parent = np.searchsorted(knots, inside)
            step = origin[r] - old_origin[parent]
            patterns[r, :before] = old_patterns[parent, :before]
            for k in range(out):
                v = old[0][parent, k] + old[1][parent, k] * step
                s, below = old[1][parent, k], numbers[at + k]
                positive = v + s * (inside - origin[r]) > 0.0
                patterns[r, before + k] = 1 if positive else -1
                factor = 1.0 if positive else below
                value_error[r, k] = (old[2][parent, k] + old[3][parent, k] * abs(step) + eps * abs(v)) * abs(factor)
                slope_error[r, k] = old[3][parent, k] * abs(factor)
                value[r, k], slope[r, k] = v * factor, s * factor
        knots = new
        at += out
    return knots, patterns, -1
