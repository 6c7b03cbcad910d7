"""Simplices and quadrature on them: intervals, triangles and tetrahedra that make up the cells of a partition."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from scipy.spatial import Delaunay
from torch import Tensor

from girih.partition import Partition

_NODES = {1: 10, 2: 6, 3: 4}
_FLAT = 1e-14  # volumes of slivers between points on a sphere, which are rounding


def simplices_of(partition: Partition) -> tuple[Tensor, Tensor]:
    """The cells of a bounded partition cut into simplices: vertices `(P, S + 1, S)` and cells `(P,)`.

    Example:
        >>> import girih
        >>> from girih.vae.gaps.simplices import simplices_of, volumes
        >>> part = girih.Partition(girih.mlp([2, 8, 2], seed=0), domain=(-1.0, 1.0))
        >>> round(volumes(simplices_of(part)[0]).sum().item(), 9)
        4.0
    """
    if partition.latent_dim == 1:
        corners = torch.stack(partition.bounds, 1)[:, :, None]
        return corners, torch.arange(len(corners))
    parts, owner = [], []
    for cell in range(len(partition)):
        points = partition.vertices(cell)
        if partition.latent_dim == 2:
            index = torch.tensor([(0, k, k + 1) for k in range(1, len(points) - 1)]).reshape(-1, 3)
        else:
            index = torch.as_tensor(Delaunay(points.numpy()).simplices.astype(np.int64))
        parts.append(points[index])
        owner.append(torch.full((len(index),), cell))
    corners, cells = torch.cat(parts), torch.cat(owner)
    kept = volumes(corners) > _FLAT
    return corners[kept], cells[kept]


def volumes(corners: Tensor) -> Tensor:
    """Lengths, areas or volumes of simplices `(m, S + 1, S)`, `(m,)`."""
    S = corners.shape[2]
    return torch.linalg.det(corners[:, 1:] - corners[:, :1]).abs() / math.factorial(S)


def bisected(corners: Tensor) -> Tensor:
    """The two halves of each simplex, cut across its longest edge: `(2, m, S + 1, S)`."""
    m, count = corners.shape[:2]
    pairs = torch.combinations(torch.arange(count), 2)
    longest = pairs[(corners[:, pairs[:, 0]] - corners[:, pairs[:, 1]]).norm(dim=2).argmax(1)]
    row = torch.arange(m)
    middle = 0.5 * (corners[row, longest[:, 0]] + corners[row, longest[:, 1]])
    halves = corners.expand(2, *corners.shape).clone()
    halves[0, row, longest[:, 0]] = middle
    halves[1, row, longest[:, 1]] = middle
    return halves


@cache
def rule(S: int) -> tuple[Tensor, Tensor]:
    """Barycentric nodes `(Q, S + 1)` and weights `(Q,)` that sum to 1, by a collapsed Gauss-Legendre product.

    Source:
        Stroud, Approximate calculation of multiple integrals (1971), conical products.
    """
    x, w = np.polynomial.legendre.leggauss(_NODES[S])
    x, w = 0.5 * (1.0 + x), 0.5 * w
    grid = np.stack(np.meshgrid(*[x] * S, indexing="ij"), -1).reshape(-1, S)
    weight = np.stack(np.meshgrid(*[w] * S, indexing="ij"), -1).reshape(-1, S).prod(1) * math.factorial(S)
    left, nodes = np.ones(len(grid)), []
    for s in range(S):
        weight = weight * left ** (1 if s else 0)  # each collapsed direction scales those that follow it
        nodes.append(left * grid[:, s])
        left = left * (1.0 - grid[:, s])
    return torch.as_tensor(np.stack((left, *nodes), 1)), torch.as_tensor(weight)
