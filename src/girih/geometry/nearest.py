"""The point of a polytope whose affine image is nearest to a given point, for many points at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from girih.partition.memory import Array

_ROOM = 1e-10  # of 1 + |h|: how far outside a half-space still counts as inside
_DEPENDENT = 1e-9
_FLAT = 1e-10  # singular values up to this multiple of the largest count as 0
_NUMBERS = 1 << 21


def nearest_in_cell(R: Array, target: Array, H: Array, h: Array) -> Array:
    r"""`argmin |R z - y|` over `H z <= h`, for each row y of `target`.

    Some face of the polytope holds the answer in its relative interior, where it is the least-squares point of the
    face's plane; all planes of at most S half-spaces are tried.

    Args:
        R: `(k, S)`, of any rank.
        target: `(m, k)`.
        H: unit normals, `(F, S)`.
        h: `(F,)`.

    Returns:
        `(m, S)`; NaN where rounding leaves no candidate inside.

    Example:
        >>> import girih, numpy as np
        >>> H, h = np.array([[1.0, 0.0], [0.0, 1.0]]), np.ones(2)  # below 1 in both coordinates
        >>> girih.geometry.nearest_in_cell(np.eye(2), np.array([[3.0, 0.5]]), H, h)
        array([[1. , 0.5]])
    """
    S = R.shape[1]
    best = np.full((len(target), S), np.nan)
    least = np.full(len(target), np.inf)
    room = _ROOM * (1.0 + np.abs(h))
    for base, solve in _planes(R, H, h):  # z = base + solve (y - R base)
        step = max(1, _NUMBERS // (len(target) * (len(h) + 1)))
        for start in range(0, len(base), step):
            some, maps = base[start : start + step], solve[start : start + step]
            z = some[:, None] + np.einsum("psk,pmk->pms", maps, target[None] - (some @ R.T)[:, None])
            size = ((z @ R.T - target) ** 2).sum(2)
            scale = room + _ROOM * np.abs(z).max(2, keepdims=True)
            size[((z @ H.T - h) > scale).any(2)] = np.inf
            k = size.argmin(0)
            value = np.take_along_axis(size, k[None], 0)[0]
            better = value < least
            least[better] = value[better]
            best[better] = z[k[better], better.nonzero()[0]]
    return best


def _planes(R: Array, H: Array, h: Array) -> Iterator[tuple[Array, Array]]:
    """For all sets of independent faces of one size: a point of their common plane and the least-squares map in it."""
    S = R.shape[1]
    least = _FLAT * float(np.linalg.norm(R, 2))
    yield np.zeros((1, S)), _inverse(R[None], least)
    for size in range(1, min(S, len(h)) + 1):
        sets = np.array(list(combinations(range(len(h)), size)), np.int64)
        normals, offsets = H[sets], h[sets]
        U, values, Vt = np.linalg.svd(normals)
        free = values[:, -1] > _DEPENDENT
        U, values, Vt, offsets = U[free], values[free], Vt[free], offsets[free]
        if not len(values):
            continue
        base = np.einsum("prs,pr->ps", Vt[:, :size], np.einsum("pqr,pq->pr", U, offsets) / values)
        rest = Vt[:, size:].transpose(0, 2, 1)
        solve = rest @ _inverse(R @ rest, least) if size < S else np.zeros((len(base), S, len(R)))
        yield base, solve


def _inverse(A: Array, least: float) -> Array:
    """Pseudo-inverses `(K, n, k)` of `A (K, k, n)`: singular values up to `least` count as 0."""
    U, values, Vt = np.linalg.svd(A, full_matrices=False)
    counts = values > least
    inverse = np.where(counts, 1.0 / np.where(counts, values, 1.0), 0.0)
    result: Array = np.einsum("krn,kr,kmr->knm", Vt, inverse, U)
    return result
