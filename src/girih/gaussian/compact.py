r"""Mass and moments of the standard normal over small polytopes, by Gauss-Legendre nodes in cones.

A bounded polytope is cut into cones from one of its vertices v to segments (S = 2) or triangles (S = 3) of its
boundary, `x = v + s p`, s in [0, 1], p on the base. Then `|x|^2 / 2 = |v|^2 / 2 + s v.p + s^2 |p|^2 / 2`, and where the
last two terms stay below 8 a dozen nodes for each dimension integrate `exp(-|x|^2 / 2)` to 1e-12. All terms are
positive, so nothing cancels, however small the mass.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih.gaussian.roots import own_axes, square_root

# nodes for each dimension, and the exponent up to which they serve
_RULES = ((6, 0.15), (8, 0.8), (12, 4.0), (16, 8.0))
NONE = len(_RULES)
_THIN = 1e-4  # ratio of variances below which a polytope is turned to its own axes
_CELLS = 1 << 17  # values of the integrand at a time


class Cones(NamedTuple):
    """Polytopes that are made of cones."""

    base: Tensor  # (C, S, S) corners of the bases relative to the apex: corner, then coordinate
    owner: Tensor  # (C,) the polytope of each cone
    apex: Tensor  # (n, S)
    rule: Tensor  # (n,) what `served` says of each polytope


class Integrals(NamedTuple):
    """Integrals of `exp(-v.y - |y|^2 / 2)` over a polytope, `y = x - v`."""

    zeroth: Tensor  # (n,)
    first: Tensor  # (n, S)
    second: Tensor  # (n, S, S)


def exponent(vertex: Tensor, finite: Tensor, apex: Tensor) -> Tensor:
    """The largest size of `v.y + |y|^2 / 2`, about, for vertices `(n, K, S)` and an apex `(n, S)`."""
    y = torch.where(finite[..., None], vertex - apex[:, None], 0.0)
    return (y * apex[:, None]).sum(-1).abs().amax(-1) + 0.5 * y.square().sum(-1).amax(-1)


def served(size: Tensor) -> Tensor:
    """The rule for each exponent, an index; `NONE` where none serves."""
    return torch.bucketize(size, size.new_tensor([limit for _, limit in _RULES]))


def integrate_cones(cones: Cones) -> Integrals:
    """`Integrals` of polytopes that are made of cones."""
    base, owner, apex, rule = cones
    n, S = apex.shape
    out = Integrals(apex.new_zeros(n), apex.new_zeros(n, S), apex.new_zeros(n, S, S))
    height = torch.linalg.det(base).abs()
    used = height > 0
    of_cone = rule[owner]
    for k, (nodes, _) in enumerate(_RULES):
        for part in (used & (of_cone == k)).nonzero()[:, 0].split(max(1, _CELLS // nodes**S)):
            if len(part):
                own = owner[part]
                for total, terms in zip(out, _cones(base[part], apex[own], height[part], nodes), strict=True):
                    total.index_add_(0, own, terms)
    return out


@cache
def _rule(nodes: int, S: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes s and the weights of `s^(S - 1 + k)`, places on the base as weights of its corners, and their weights."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = 0.5 + 0.5 * x, 0.5 * w
    powers = np.stack([w * x ** (S - 1 + k) for k in range(3)], 1)
    if S == 2:
        place, weight = np.stack((1.0 - x, x), 1), w
    else:
        a, b = (part.reshape(-1) for part in np.meshgrid(x, x, indexing="ij"))
        place, weight = np.stack((1.0 - a, a * (1.0 - b), a * b), 1), np.outer(w * x, w).reshape(-1)
    return torch.as_tensor(x), torch.as_tensor(powers), torch.as_tensor(place), torch.as_tensor(weight)


def _cones(base: Tensor, apex: Tensor, height: Tensor, nodes: int) -> Integrals:
    s, powers, place, weight = (part.to(base) for part in _rule(nodes, base.shape[1]))
    p = place @ base  # (C, M, S), points of the base
    slope, bend = (p @ apex[..., None])[..., 0], 0.5 * p.square().sum(-1)
    integrand = torch.addcmul(slope[..., None], bend[..., None], s).mul_(-s).exp_()
    along = (integrand.flatten(0, 1) @ powers).view(*slope.shape, 3)  # over s
    along = along * (weight[:, None] * height[:, None, None])
    zeroth, once, twice = along.unbind(-1)
    return Integrals(zeroth.sum(1), (once[:, None] @ p)[:, 0], (p * twice[..., None]).mT @ p)


def log_mass_of(cones: Cones) -> Tensor:
    """Log-mass `(n,)`."""
    return _log_mass(integrate_cones(cones), cones.apex)


def _log_mass(part: Integrals, apex: Tensor) -> Tensor:
    return part.zeroth.log() - 0.5 * apex.square().sum(-1) - 0.5 * apex.shape[1] * math.log(2.0 * math.pi)


def moments_of(cones: Cones) -> tuple[Tensor, Tensor, Tensor]:
    """Log-mass `(n,)`, mean `(n, S)` and a root of the covariance `(n, S, S)`, that of thin ones in their own axes."""
    part = integrate_cones(cones)
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
        own_mean, own_covariance = _centred(integrate_cones(turned))
        mean[thin] = (turn @ own_mean[:, :, None])[:, :, 0]
        root[thin] = turn @ square_root(own_covariance)
    return _log_mass(part, cones.apex), cones.apex + mean, root


def _centred(part: Integrals) -> tuple[Tensor, Tensor]:
    """Mean relative to the apex, and covariance."""
    safe = torch.where(part.zeroth > 0, part.zeroth, 1.0)
    mean = part.first / safe[:, None]
    return mean, part.second / safe[:, None, None] - mean[:, :, None] * mean[:, None, :]
