"""Expectations of `log p(z | x)` under a Gaussian q over the latents, exact piece by piece (S = 2, 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.inference.anchors import Anchors
from girih.inference.gaussians import maps_of_pairs
from girih.inference.model import Model, Rows
from girih.inference.polytopes import geometry

_REACH = 10.0  # standard deviations of q; beyond them lie 1e-22 of it
_ENTRIES = 2**23


def expected_log_ratio(model: Model, rows: Rows, anchors: Anchors, mean: Tensor, factor: Tensor) -> Tensor:
    """`E_q[log p(x, z)]` less `log p(x, z)` at the highest anchor, `(n,)`, for `q = N(mean, factor factor^T)`.

    With `v = F^-1 (u - m)` the standard normal of q, a piece adds its mass under q times the mean of a quadratic there:
    its value at the mean of q on the piece, less half the spread of `R t`.
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
        maps = maps_of_pairs(model, rows, g.maps, g.slope, g.origin, row, piece)
        to_w = maps.root @ F[row]
        image = maps.start + (maps.basis @ to_w @ (v + centre)[:, :, None])[:, :, 0]
        part = log_mass.exp() * (anchors.log_ratio(row, image) - 0.5 * ((to_w @ spread) * to_w).sum((1, 2)))
        out[index] = out.new_zeros(len(out)).index_add(0, row, part)[index]
    return out
