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
