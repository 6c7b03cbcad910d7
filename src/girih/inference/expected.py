"""Expectations of `log p(x, z)` under a Gaussian q over the latents, exact piece by piece (S = 2, 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.inference.gaussians import pair_gaussians
from girih.inference.model import Model, Rows
from girih.inference.polytopes import geometry

_REACH = 10.0  # standard deviations of q; beyond them lie 1e-22 of it
_ENTRIES = 2**23


def expected_log_joint(model: Model, rows: Rows, mean: Tensor, factor: Tensor) -> Tensor:
    """`E_q[log p(x, z)] + S/2 log 2 pi + 1/2 log det prior`, `(n,)`, for `q = N(mean, factor factor^T)` of each row.

    With `v = F^-1 (u - m)` the standard normal of q, a piece adds its mass under q times the mean of the quadratic
    `base - |R t - c|^2 / 2` there, which the mass and two moments of v give.
    """
    g = geometry(model)
    root = torch.linalg.cholesky(model.prior)
    m = torch.linalg.solve_triangular(root, mean.mT, upper=False).mT
    F = torch.linalg.solve_triangular(root, factor, upper=False)
    reach = _REACH * F.norm(dim=2)
    out = torch.empty_like(rows.far2)
    for index in torch.arange(len(m)).split(max(1, _ENTRIES // g.pieces.count)):
        near = ((m + reach)[index, None] >= g.pieces.low) & ((m - reach)[index, None] <= g.pieces.high)
        row, piece = near.all(2).nonzero(as_tuple=True)
        row = index[row]
        inverse = torch.linalg.inv(F)[row]
        centre = (inverse @ (m[row] - g.origin[piece])[:, :, None])[:, :, 0]
        log_mass, v, spread = g.pieces.moments(piece, inverse, centre)
        kept = log_mass > -745.0
        row, piece, log_mass, v, spread, centre = (a[kept] for a in (row, piece, log_mass, v, spread, centre))
        p = pair_gaussians(model, rows, g.maps, g.slope, g.origin, row, piece)
        to_w = p.root @ F[row]
        w = (to_w @ (v + centre)[:, :, None])[:, :, 0] - p.centre
        square = w.square().sum(1) + ((to_w @ spread) * to_w).sum((1, 2))
        part = log_mass.exp() * (p.base - 0.5 * square)
        out[index] = out.new_zeros(len(out)).index_add(0, row, part)[index]
    return out
