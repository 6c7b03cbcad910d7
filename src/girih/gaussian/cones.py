r"""Mass and moments of the standard normal over small polytopes, by Gauss-Legendre nodes in cones.

A bounded polytope is cut into cones from one of its vertices v to segments (S = 2) or triangles (S = 3) of its
boundary, `x = v + s p`, s in [0, 1], p on the base. Then `|x|^2 / 2 = |v|^2 / 2 + s v.p + s^2 |p|^2 / 2`, and where the
last two terms stay below 8 a dozen nodes for each dimension integrate `exp(-|x|^2 / 2)` to 1e-12. All terms are
positive, so nothing cancels, however small the mass.

Covariances are kept as square roots R, `C = R R^T`, which have the small deviation of a thin set that C itself loses.
Next to variances of 1 the entries of C are rounded to 1e-16, which is a hundredth of the variance of a slab 1e-7 thick;
in R the same rounding is 1e-9 of its deviation. So C is formed last, where it has to be, and the moments that a root is
taken of are formed in the set's own axes, in which a thin direction is a coordinate by itself.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih._devices import Constant, room
from girih.gaussian.tables import PolygonTable, PolyhedronTable, Table

# nodes for each dimension, and the exponent up to which they serve
_RULES = ((6, 0.15), (8, 0.8), (12, 4.0), (16, 8.0))
_LIMITS = Constant(torch.tensor([limit for _, limit in _RULES], dtype=torch.float64))
_NONE = len(_RULES)
_THIN = 1e-4  # ratio of variances below which a polytope is turned to its own axes
_CELLS = 1 << 17  # values of the integrand at a time


class Cones(NamedTuple):
    """These are the cones that polytopes are made of."""

    base: Tensor  # (C, S, S) corners of the bases relative to the apex: corner, then coordinate
    owner: Tensor  # (C,) the polytope of each cone
    apex: Tensor  # (n, S)
    rule: Tensor  # (n,) what `_served` says of each polytope


class Integrals(NamedTuple):
    """They are integrals of `exp(-v.y - |y|^2 / 2)` over a polytope, `y = x - v`."""

    zeroth: Tensor  # (n,)
    first: Tensor  # (n, S)
    second: Tensor  # (n, S, S)


def _exponent(vertex: Tensor, finite: Tensor, apex: Tensor) -> Tensor:
    """The largest size of `v.y + |y|^2 / 2`, about, for vertices `(n, K, S)` and an apex `(n, S)`."""
    y = torch.where(finite[..., None], vertex - apex[:, None], 0.0)
    return (y * apex[:, None]).sum(-1).abs().amax(-1) + 0.5 * y.square().sum(-1).amax(-1)


def _served(size: Tensor) -> Tensor:
    """The rule for each exponent, an index; `_NONE` where none serves."""
    return torch.bucketize(size, _LIMITS.on(size.device))


def cones_of(table: Table) -> tuple[Tensor, Cones]:
    """Find the sets that are small, an index `(m,)`, and the cones that they are made of."""
    return _polygon_cones(table.tail, table.head) if isinstance(table, PolygonTable) else _polyhedron_cones(table)


def _polygon_cones(tail: Tensor, head: Tensor) -> tuple[Tensor, Cones]:
    """A fan of triangles from a vertex."""
    finite = tail[..., 2] != 0
    bounded = (finite == (head[..., 2] != 0)).all(-1) & finite.any(-1)
    first = finite.to(torch.uint8).argmax(-1) if tail.shape[1] else bounded.long()
    rows = torch.arange(len(tail), device=tail.device)[bounded]
    tail, head, finite = tail[rows], head[rows, :, :2], finite[rows]
    apex = tail[torch.arange(len(rows), device=rows.device), first[rows], :2] if len(rows) else tail[:, 0, :2]
    rule = _served(_exponent(tail[..., :2], finite, apex))
    small = (rule < _NONE).nonzero()[:, 0]
    rows, apex, rule, finite = rows[small], apex[small], rule[small], finite[small]
    owner, place = finite.nonzero(as_tuple=True)
    base = torch.stack((tail[small, :, :2][owner, place], head[small][owner, place]), 1) - apex[owner, None]
    return rows, Cones(base, owner, apex, rule)


def _polyhedron_cones(faces: PolyhedronTable) -> tuple[Tensor, Cones]:
    """Cones from a vertex over the triangles of the faces."""
    empty = faces.offset.new_zeros(0, 3)
    if not faces.tail.shape[2]:
        none = torch.arange(0, device=empty.device)
        return none, Cones(empty[:, :, None] * empty[:, None], none, empty, none)
    finite = (faces.tail[..., 3] != 0) & faces.real[..., None]
    edged = finite.any(-1)
    whole = (finite == ((faces.head[..., 3] != 0) & faces.real[..., None])).all(-1) & (edged | ~faces.real)
    bounded = whole.all(-1) & edged.any(-1)
    rows = bounded.nonzero()[:, 0]
    tail, head, finite = faces.tail[rows, ..., :3], faces.head[rows, ..., :3], finite[rows]
    flat, seen = tail.flatten(1, 2), finite.flatten(1)
    every = torch.arange(len(rows), device=rows.device)
    apex = flat[every, seen.to(torch.uint8).argmax(-1)]
    rule = _served(_exponent(flat, seen, apex))
    small = (rule < _NONE).nonzero()[:, 0]
    rows, apex, rule, finite, tail, head = (part[small] for part in (rows, apex, rule, finite, tail, head))
    # each face as a fan of triangles from the tail of its first edge
    corner = tail.gather(2, finite.to(torch.uint8).argmax(-1)[..., None, None].expand(-1, -1, 1, 3))
    # faces through the apex and edges through the corner of the fan enclose nothing
    touching = (tail == apex[:, None, None]).all(-1) & finite
    kept = finite & ~touching.any(-1)[..., None] & (tail != corner).any(-1) & (head != corner).any(-1)
    owner, f, k = kept.nonzero(as_tuple=True)
    base = torch.stack((corner[owner, f, 0], tail[owner, f, k], head[owner, f, k]), 1) - apex[owner, None]
    return rows, Cones(base, owner, apex, rule)


def _integrate(cones: Cones) -> Integrals:
    """`Integrals` of polytopes that are made of cones."""
    base, owner, apex, rule = cones
    n, S = apex.shape
    out = Integrals(apex.new_zeros(n), apex.new_zeros(n, S), apex.new_zeros(n, S, S))
    height = torch.linalg.det(base).abs()
    used = height > 0
    of_cone = rule[owner]
    for k, (nodes, _) in enumerate(_RULES):
        for part in (used & (of_cone == k)).nonzero()[:, 0].split(max(1, room(_CELLS, base.device) // nodes**S)):
            if len(part):
                own = owner[part]
                for total, terms in zip(out, _cones(base[part], apex[own], height[part], nodes), strict=True):
                    total.index_add_(0, own, terms)
    return out


@cache
def _rule(nodes: int, S: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes s and the weights of `s^(S - 1 + k)`, places on the base as weights of its corners, and their weights."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = 0.5 + 0.5 * x, 0.5 * w
    powers = np.stack([w * x ** (S - 1 + k) for k in range(3)], 1)
    if S == 2:
        place, weight = np.stack((1.0 - x, x), 1), w
    else:
        a, b = (part.reshape(-1) for part in np.meshgrid(x, x, indexing="ij"))
        place, weight = np.stack((1.0 - a, a * (1.0 - b), a * b), 1), np.outer(w * x, w).reshape(-1)
    rule = (torch.as_tensor(part).to(device) for part in (x, powers, place, weight))
    return next(rule), next(rule), next(rule), next(rule)


def _cones(base: Tensor, apex: Tensor, height: Tensor, nodes: int) -> Integrals:
    s, powers, place, weight = _rule(nodes, base.shape[1], base.device)
    p = place @ base  # (C, M, S), points of the base
    slope, bend = (p @ apex[..., None])[..., 0], 0.5 * p.square().sum(-1)
    integrand = torch.addcmul(slope[..., None], bend[..., None], s).mul_(-s).exp_()
    along = (integrand.flatten(0, 1) @ powers).view(*slope.shape, 3)  # over s
    along = along * (weight[:, None] * height[:, None, None])
    zeroth, once, twice = along.unbind(-1)
    return Integrals(zeroth.sum(1), (once[:, None] @ p)[:, 0], (p * twice[..., None]).mT @ p)


def log_mass_of(cones: Cones) -> Tensor:
    """Log-mass `(n,)`."""
    return _log_mass(_integrate(cones), cones.apex)


def _log_mass(part: Integrals, apex: Tensor) -> Tensor:
    return part.zeroth.log() - 0.5 * apex.square().sum(-1) - 0.5 * apex.shape[1] * math.log(2.0 * math.pi)


def moments_of(cones: Cones) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mass `(n,)`, mean `(n, S)` and a root of the covariance `(n, S, S)`, that of thin ones in their own axes."""
    part = _integrate(cones)
    mean, covariance = _centred(part)
    axes = own_axes(covariance)
    variance = (axes.mT @ covariance @ axes).diagonal(dim1=1, dim2=2)
    root = square_root(covariance)
    thin = variance.amin(1) < _THIN * variance.amax(1)
    if thin.any():
        turn, number = axes[thin], thin.cumsum(0) - 1
        kept = thin[cones.owner]
        owner = number[cones.owner[kept]]
        turned = Cones(cones.base[kept] @ turn[owner], owner, (cones.apex[thin, None] @ turn)[:, 0], cones.rule[thin])
        own_mean, own_covariance = _centred(_integrate(turned))
        mean[thin] = (turn @ own_mean[:, :, None])[:, :, 0]
        root[thin] = turn @ square_root(own_covariance)
    return _log_mass(part, cones.apex), cones.apex + mean, root


def _centred(part: Integrals) -> tuple[Tensor, Tensor]:
    """Mean relative to the apex, and covariance."""
    safe = torch.where(part.zeroth > 0, part.zeroth, 1.0)
    mean = part.first / safe[:, None]
    return mean, part.second / safe[:, None, None] - mean[:, :, None] * mean[:, None, :]


def square_root(covariance: Tensor) -> Tensor:
    """The lower triangular root `(n, S, S)`, by Cholesky's method; a direction without variance has none."""
    S = covariance.shape[-1]
    out = torch.zeros_like(covariance)
    for j in range(S):
        rest = covariance[:, j:, j] - (out[:, j:, :j] * out[:, j : j + 1, :j]).sum(-1)
        pivot = rest[:, :1].clamp(min=0.0).sqrt()
        out[:, j:, j] = torch.where(pivot > 0, rest / torch.where(pivot > 0, pivot, 1.0), 0.0)
    return out


def own_axes(covariance: Tensor) -> Tensor:
    """Orthonormal principal axes, the columns of `(n, S, S)`, as far as a rounded covariance shows them."""
    covariance = torch.where(torch.isfinite(covariance), covariance, 0.0)
    if covariance.shape[-1] == 3:
        result: Tensor = torch.linalg.eigh(covariance).eigenvectors
        return result
    angle = 0.5 * torch.atan2(2.0 * covariance[:, 0, 1], covariance[:, 0, 0] - covariance[:, 1, 1])
    along = torch.stack((angle.cos(), angle.sin()), -1)
    return torch.stack((along, torch.stack((-along[:, 1], along[:, 0]), -1)), -1)
