r"""Expectations of `log p(x, z)` under Gaussians over z, with their gradients: what a best Gaussian is found by.

On a cell `log p(x, z) = h(z)` is a quadratic, and h is continuous across cells, so with `z = m + F u`, u standard
normal,

    d E[h] / d m = E[grad h(z)],        d E[h] / d F = E[grad h(z) u^T],

need no more than the mass and two moments of u on each cell, as the expectation itself does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian import interval_moments
from girih.inference import DGN
from girih.inference.gaussians import pair_gaussians
from girih.inference.line import pair_up
from girih.inference.model import Intervals, reduce_complete
from girih.inference.polytopes import geometry

_LOG_2PI = math.log(2.0 * math.pi)
_REACH = 7.5  # standard deviations of q; beyond them lie 1e-13 of it
_ENTRIES = 2**22
_LEAST = -745.0  # the log of the smallest double


class Expected(NamedTuple):
    """`E_q[log p(x, z)]` of B Gaussians, and its derivatives."""

    value: Tensor  # (B,)
    by_mean: Tensor  # (B, S)
    by_factor: Tensor  # (B, S, S), of all entries; those of a triangular factor are the lower ones


class Joint:
    """`log p(x_n, z)` of N rows under a `DGN` whose prior is `N(0, I)`, ready to be averaged over Gaussians.

    Args:
        dgn: the decoder as an exact density model.
        x: complete rows `(N, D)`.

    Example:
        >>> import girih, torch
        >>> from girih.vae.nearest.gaussian_expectations import Joint
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.1)
        >>> x, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> q = torch.distributions.Normal(one, one)
        >>> value = Joint(dgn, x).expect(torch.tensor([0]), one, one[:, :, None]).value
        >>> bool((value + 1.4189385332046727 - dgn.elbo(x, q)).abs() < 1e-10)
        True
    """

    def __init__(self, dgn: DGN, x: Tensor) -> None:
        self._model = dgn.model()
        self._rows = reduce_complete(self._model, x)
        self._line = isinstance(self._model.cells.region, Intervals)
        self._pairs = pair_up(self._model, self._rows) if self._line else None

    def expect(self, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
        """Those under `N(mean, factor factor^T)`, `(B, S)` and `(B, S, S)`, each for the row `(B,)` named."""
        cells = len(self._model.cells.origin)
        part = self._on_line if self._line else self._on_pieces
        parts = [part(row[i], mean[i], factor[i]) for i in torch.arange(len(row)).split(max(1, _ENTRIES // cells))]
        return parts[0] if len(parts) == 1 else Expected(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _on_line(self, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
        p, region = self._pairs, self._model.cells.region
        assert p is not None and isinstance(region, Intervals)
        deviation = factor[:, :, 0]
        shift = (self._model.cells.origin[:, 0] - mean) / deviation
        m = interval_moments(region.lower / deviation + shift, region.upper / deviation + shift)
        mass = torch.where(m.log_mass > _LEAST, m.log_mass.exp(), 0.0)
        u = m.anchor + m.mean
        # v = (t - anchor) / sd is where h = log_peak - tilt v - v^2 / 2
        scale = deviation / p.deviation[row]
        v = scale * (u - shift) - p.anchor[row] / p.deviation[row]
        tilted = p.tilt[row] + v
        h = (
            p.log_highest[row, None]
            + p.log_peak[row]
            - v * p.tilt[row]
            - 0.5 * (v.square() + scale.square() * m.variance)
        )
        by_mean = -tilted / p.deviation[row]
        by_factor = -(tilted * u + scale * m.variance) / p.deviation[row]
        kept = mass > 0.0
        sums = [torch.where(kept, mass * part, 0.0).sum(1) for part in (h, by_mean, by_factor)]
        return Expected(sums[0], sums[1][:, None], sums[2][:, None, None])

    def _on_pieces(self, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
        model, g = self._model, geometry(self._model)
        reach = _REACH * factor.norm(dim=2)
        near = ((mean + reach)[:, None] >= g.pieces.low) & ((mean - reach)[:, None] <= g.pieces.high)
        which, piece = near.all(2).nonzero(as_tuple=True)
        inverse = torch.linalg.inv(factor)[which]
        centre = (inverse @ (mean[which] - g.origin[piece])[:, :, None])[:, :, 0]
        mass, first, second = g.pieces.raw_moments(piece, inverse, centre)
        p = pair_gaussians(model, self._rows, g.maps, g.slope, g.origin, row[which], piece)
        to_w = p.root @ factor[which]
        offset = (to_w @ centre[:, :, None])[:, :, 0] - p.centre
        # w = offset + to_w u is where h = base - |w|^2 / 2; sums of w, w u^T and |w|^2 over the piece
        w = mass[:, None] * offset + (to_w @ first[:, :, None])[:, :, 0]
        w_u = offset[:, :, None] * first[:, None, :] + to_w @ second
        square = (offset * w).sum(1) + (w_u * to_w).sum((1, 2))
        root = p.root.mT
        sums = (
            mass * p.base - 0.5 * square,
            -(root @ w[:, :, None])[:, :, 0],
            -(root @ w_u),
        )
        value, by_mean, by_factor = (
            part.new_zeros(len(row), *part.shape[1:]).index_add(0, which, part) for part in sums
        )
        S = model.latent_dim
        return Expected(value - 0.5 * S * _LOG_2PI, by_mean, by_factor)
