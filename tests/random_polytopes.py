"""Random polytopes of every shape, and their moments by brute force."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection
from scipy.special import logsumexp
from scipy.stats import special_ortho_group

KINDS = ("bulk", "tail", "slab", "needle", "cone", "far cone", "wedge")


def random_polytope(kind: str, S: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Half-spaces `(H, h)` with a point inside, bounded or not as chance has it."""
    turn = special_ortho_group.rvs(S, random_state=rng)
    m = int(rng.integers(1, 4 * S))
    H = rng.normal(size=(m, S))
    H /= np.linalg.norm(H, axis=1, keepdims=True)
    centre, room = rng.normal(size=S), np.abs(rng.normal(size=m)) * rng.choice([0.1, 1.0, 3.0])
    if kind == "tail":
        centre *= rng.choice([3.0, 8.0, 30.0])
    elif kind == "slab":
        H, room = np.r_[H, turn[:1], -turn[:1]], np.r_[room, 10.0 ** rng.uniform(-3, 0), 0.0]
    elif kind == "needle":
        sides = turn[: S - 1]
        H, room = np.r_[H, sides, -sides], np.r_[room, 10.0 ** rng.uniform(-3, 0, 2 * (S - 1))]
    elif kind in ("cone", "far cone"):
        H = np.r_[np.eye(S), rng.normal(size=(int(rng.integers(0, 3)), S))] @ turn
        H = np.where((H @ turn[0] > 0)[:, None], -H, H)
        H /= np.linalg.norm(H, axis=1, keepdims=True)
        room, centre = np.zeros(len(H)), centre * (1.0 if kind == "cone" else 8.0)
    elif kind == "wedge":
        H, room = turn[:2] * rng.choice([-1.0, 1.0], (2, 1)), np.abs(rng.normal(size=2)) * rng.choice([0.0, 1.0])
    return H, H @ centre + room


def by_simplices(
    H: np.ndarray, h: np.ndarray, nearest: np.ndarray, nodes: int
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Log-mass, mean, covariance and own axes, by Gauss-Legendre nodes in simplices; all terms are positive.

    What lies 9 deviations to the side of the point nearest to the origin, or where the density has fallen by exp(-40)
    from there, is left out: less than 1e-14 of shapes as above.
    """
    S, away = H.shape[1], float(np.linalg.norm(nearest))
    up = nearest / away if away > 0 else np.eye(S)[0]
    H = np.r_[H, np.eye(S), -np.eye(S), up[None]]
    h = np.r_[h, nearest + 9.0, 9.0 - nearest, away + (min(9.0, 40.0 / away) if away > 0 else 9.0)]
    inner = linprog(np.r_[np.zeros(S), -1.0], np.c_[H, np.linalg.norm(H, axis=1)], h, bounds=[(None, None)] * (S + 1)).x
    corners = HalfspaceIntersection(np.c_[H, -h], inner[:S]).intersections
    base = corners[ConvexHull(corners, qhull_options="QJ").simplices] - inner[:S]
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = 0.5 + 0.5 * x, 0.5 * w
    if S == 2:
        s, a = (part.ravel() for part in np.meshgrid(x, x, indexing="ij"))
        place, weight = np.stack((1 - a, a), 1), np.outer(w * x, w).ravel()
    else:
        s, a, b = (part.ravel() for part in np.meshgrid(x, x, x, indexing="ij"))
        place = np.stack((1 - a, a * (1 - b), a * b), 1)
        weight = (w[:, None, None] * w[:, None] * w).ravel() * s**2 * a
    y = (s[:, None] * place) @ base  # (simplices, nodes, S) relative to the inner point
    volume = np.abs(np.linalg.det(base))
    with np.errstate(divide="ignore"):
        log_w = np.log(volume)[:, None] + np.log(weight) - 0.5 * ((y + inner[:S]) ** 2).sum(2)
    total = logsumexp(log_w)
    share = np.exp(log_w - total).ravel()
    y = y.reshape(-1, S)
    mean = share @ y
    off = y - mean
    axes = np.linalg.eigh((off * share[:, None]).T @ off)[1]
    off = off @ axes
    return total - 0.5 * S * np.log(2 * np.pi), inner[:S] + mean, (off * share[:, None]).T @ off, axes
