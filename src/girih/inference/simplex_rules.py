"""On simplices: rules of nodes, polynomials through values at a lattice, means of exponentials of planes."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from itertools import product

import numpy as np
import torch
from scipy.special import eval_jacobi, roots_jacobi
from torch import Tensor

DEGREE = 8  # of the polynomials
_TINY = 1e-14
_TERMS = 16  # of series of exponentials


@lru_cache(maxsize=32)
def rule(dim: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Barycentric points `(n^S, S + 1)` and weights of a sum of 1: Gauss-Jacobi in collapsed coordinates.

        z = v_0 + u_1 (v_1 - v_0 + u_2 (v_2 - v_1 + u_3 (v_3 - v_2))),    dz = S! volume u_1^(S-1) u_2^(S-2) du

    Exact for polynomials of degree `2 n - 1`.
    """
    points, weights = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    last = torch.ones(1, dtype=torch.float64)
    columns: list[Tensor] = []
    for k in range(dim):
        x, w = (torch.as_tensor(part) for part in roots_jacobi(nodes, 0.0, dim - 1.0 - k))
        u, w = 0.5 * (x + 1.0), w / w.sum()
        old = len(last)
        columns = [column.repeat_interleave(nodes) for column in columns]
        last = last.repeat_interleave(nodes)
        step = last * u.repeat(old)
        columns.append(last - step)
        weights = (weights[:, None] * w).flatten()
        last = step
    points = torch.stack([*columns, last], 1)
    return points, weights


@lru_cache(maxsize=32)
def both(dim: int, nodes: int) -> Tensor:
    """The points of the rules of n and of n - 1 nodes, one after the other."""
    return torch.cat([rule(dim, nodes - k)[0] for k in (0, 1)])


@cache
def lattice(dim: int) -> Tensor:
    """Points, vertices included, through whose values there is one polynomial of degree 8, `(k, S + 1)`.

    They are those of Blyth, Luo and Pozrikidis (2006): near to Chebyshev's on edges and faces, so that the polynomial
    is at most 6 (S = 2) or 52 times (S = 3) larger than the values are at the points of the rules.
    """
    v = 0.5 * (1.0 - np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE))
    places = [(DEGREE - sum(i), *i) for i in product(range(DEGREE + 1), repeat=dim) if sum(i) <= DEGREE]
    value = v[np.array(places)]
    points = (1.0 + (dim + 1) * value - value.sum(1, keepdims=True)) / (dim + 1)
    return torch.as_tensor(points)


def polynomials(points: Tensor) -> Tensor:
    """Orthogonal polynomials of degree 8 or less at barycentric points `(k, S + 1)`, `(k, M)`.

    Products of Jacobi polynomials in collapsed coordinates (Proriol, Koornwinder, Dubiner): with t_k the sum of the
    coordinates from k on and `u = t_(k+1) / t_k`, those of degree e at k are `u^n P_e^(0, 2n + S - 1 - k)(2 u - 1)`, n
    being the degree in what comes after.
    """
    dim, tails = points.shape[1] - 1, points.numpy()[:, ::-1].cumsum(1)[:, ::-1]
    out = [(0, np.ones(len(points)))]
    for k in reversed(range(dim)):
        u = np.divide(tails[:, k + 1], tails[:, k], out=np.zeros(len(points)), where=tails[:, k] > _TINY)
        out = [
            (n + e, column * u**n * eval_jacobi(e, 0.0, 2.0 * n + dim - 1.0 - k, 2.0 * u - 1.0))
            for n, column in out
            for e in range(DEGREE - n + 1)
        ]
    return torch.as_tensor(np.stack([column for _, column in out], 1))


@lru_cache(maxsize=32)
def interpolation(dim: int, nodes: int) -> Tensor:
    """The matrix from values at the lattice to those at `both(dim, nodes)` of the polynomial through them."""
    result: Tensor = torch.linalg.solve(polynomials(lattice(dim)).mT, polynomials(both(dim, nodes)).mT).mT
    return result


def log_mean_exp(heights: Tensor) -> Tensor:
    r"""The log of the mean over a simplex of `exp(l)`, l linear with heights `(m, S + 1)` at the vertices, `(m,)`.

    It is `S!` times a divided difference (Hermite and Genocchi),

        S! exp[h_0 ... h_S],    exp[h_0 ... h_k] = (exp[h_1 ... h_k] - exp[h_0 ... h_(k-1)]) / (h_k - h_0)

    for sorted heights. Where h_k - h_0 is below 1 the difference cancels, and the series of complete symmetric
    polynomials of heights counted from the middle is summed in its place.
    """
    sorted_ = heights.sort(1).values
    top, S = sorted_[:, -1], heights.shape[1] - 1
    t = sorted_ - top[:, None]
    table = [t[:, k].exp() for k in range(S + 1)]
    for k in range(1, S + 1):
        gap = [t[:, j + k] - t[:, j] for j in range(S + 1 - k)]
        table = [
            torch.where(gap[j] > 1.0, (table[j + 1] - table[j]) / gap[j].clamp(min=1.0), _series(t[:, j : j + k + 1]))
            for j in range(S + 1 - k)
        ]
    return top + table[0].log() + math.lgamma(S + 1.0)


def _series(t: Tensor) -> Tensor:
    """`exp[t_0 ... t_k]` of numbers `(m, k + 1)` within 1 of each other: `e^c sum_i h_i(t - c) / (i + k)!`."""
    k, centre = t.shape[1] - 1, 0.5 * (t[:, :1] + t[:, -1:])
    symmetric = [torch.ones_like(t[:, 0]), *[torch.zeros_like(t[:, 0]) for _ in range(_TERMS)]]
    for u in (t - centre).clamp(-0.5, 0.5).unbind(1):
        for i in range(1, _TERMS + 1):
            symmetric[i] = symmetric[i] + u * symmetric[i - 1]
    total = torch.stack([h / math.factorial(i + k) for i, h in enumerate(symmetric)]).sum(0)
    return centre[:, 0].exp() * total


def log_mean_bound(heights: Tensor) -> Tensor:
    r"""A bound on the log of the mean of `exp(f)` over simplices, `(m,)`, for heights at their vertices `(m, S + 1)`.

    With f below a convex function that has these heights, it is below their linear interpolation, so the mean is at
    most that of `exp(heights)` and, with d_j how far each is below the highest, j = 1 ... S from the lowest one,

        S! int exp(h_0 - sum_j l_j d_j) dl <= S! / (S - k)! exp(h_0) / (d_1 ... d_k)                 for any k,

    since the barycentric coordinates l_j of k vertices are between 0 and infinity.
    """
    top, S = heights.amax(1), heights.shape[1] - 1
    best = heights.logsumexp(1) - math.log(S + 1.0)
    below = (top[:, None] - heights).sort(1, descending=True).values[:, :S].log()
    for k in range(1, S + 1):
        bound = top + math.lgamma(S + 1.0) - math.lgamma(S - k + 1.0) - below[:, :k].sum(1)
        best = torch.minimum(best, bound)
    return best
