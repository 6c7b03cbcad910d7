"""Evidence and posterior moments of cells (`mixture.cells_of`) in compiled code, row by row; needs Numba.

Nothing of the size of rows times cells times columns is written down, and the integral of a cell that its bound rules
out is not begun.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from girih.gaussian.interval_kernels import moments_between
from girih.gaussian.kernels import compiled

Array = NDArray[Any]


@compiled
def cells(
    white: Array,
    lines: tuple[Array, Array, Array, Array],
    pattern: Array,
    edges: Array,
    margins: tuple[float, float],
    out: tuple[Array, Array, Array],
) -> None:
    """Write `log p(x, cell | component)`, and the mean and variance of z given both.

    Args:
        white: `(K, B, D)`, the rows by the inverse root of each noise.
        lines: of each component, pattern and cell: V A and V b, both `(K, P, D, R)`, the precision `(K, P, R)`, and
            what the logarithm of the density is less for all rows, `(K, P)`.
        pattern: `(B,)`.
        edges: `(R + 1,)`.
        margins: nats below the highest bound of a row where cells are left out, and by which that bound may be too
            high before none is.
        out: `(K, B, R)` each.
    """
    along, shift, precision, size = lines
    log_p, mean, variance = out
    K, B, D = white.shape
    R = len(edges) - 1
    constant, centre, bound = np.empty((K, R)), np.empty((K, R)), np.empty((K, R))
    root = np.empty((K, R))
    for n in range(B):
        p = pattern[n]
        top = -math.inf
        for k in range(K):
            a, b, t, c, m, rest = along[k, p], shift[k, p], precision[k, p], constant[k], centre[k], root[k]
            for r in range(R):
                m[r] = 0.0
            for i in range(D):
                w = white[k, n, i]
                for r in range(R):
                    m[r] += (w - b[i, r]) * a[i, r]
            for r in range(R):
                m[r] /= t[r]
                rest[r] = m[r] * m[r]
            for i in range(D):
                w = white[k, n, i]
                for r in range(R):
                    e = w - b[i, r] - a[i, r] * m[r]
                    rest[r] += e * e
            for r in range(R):
                c[r] = -0.5 * (size[k, p] + math.log(t[r]) + rest[r])
                root[k, r] = math.sqrt(t[r])
                off = max((edges[r] - m[r]) * root[k, r], 0.0) + max((m[r] - edges[r + 1]) * root[k, r], 0.0)
                bound[k, r] = c[r] - 0.5 * off * off
                top = max(top, bound[k, r])
        least = top - margins[0]
        while True:
            best = -math.inf
            for k in range(K):
                for r in range(R):
                    log_p[k, n, r], mean[k, n, r], variance[k, n, r] = -math.inf, 0.0, 0.0
                    if bound[k, r] > least:
                        s = root[k, r]
                        mass, first, second = moments_between(
                            (edges[r] - centre[k, r]) * s, (edges[r + 1] - centre[k, r]) * s
                        )
                        log_p[k, n, r] = constant[k, r] + mass
                        mean[k, n, r] = centre[k, r] + first / s
                        variance[k, n, r] = second / (s * s)
                        best = max(best, log_p[k, n, r])
            if best >= top - margins[1] or least == -math.inf:
                break
            least = -math.inf


@compiled
def products(matrices: Array, pattern: Array, x: Array, out: Array) -> None:
    """Write rows `x (B, D)` by the matrices `(K, P, D, D)` of their patterns to `out (K, B, D)`."""
    K, B, D = out.shape
    for k in range(K):
        for n in range(B):
            matrix = matrices[k, pattern[n]]
            for i in range(D):
                total = 0.0
                for j in range(D):
                    total += matrix[i, j] * x[n, j]
                out[k, n, i] = total


@compiled
def outer_sums(y: Array, phi: Array, pattern: Array, out: Array) -> None:
    """Add the products of `y (K, B, D)` and `phi (K, B, F)` to the place `(K, P, D, F)` of the pattern of each row."""
    K, B, D = y.shape
    F = phi.shape[2]
    for k in range(K):
        for n in range(B):
            for i in range(D):
                for f in range(F):
                    out[k, pattern[n], i, f] += y[k, n, i] * phi[k, n, f]
