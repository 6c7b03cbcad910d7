"""Posterior moments on all cells of a line, as dense `(n, R)` arrays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference.line import Pairs
from girih.inference.model import Cells, Rows


class DenseMoments(NamedTuple):
    """Responsibilities, means of t and variances of a chunk of rows on each cell (S = 1)."""

    e0: Tensor  # (n, R)
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, pairs: Pairs) -> tuple[Tensor, DenseMoments]:
        """`log p(x)` of each row, and the moments of its posterior."""
        peak = pairs.log_joint.amax(1, keepdim=True)
        weight = (pairs.log_joint - peak).exp_()
        total = weight.sum(1, keepdim=True)
        # divided by their own sum, so that responsibilities add up to 1 however large |log p| is
        return pairs.log_highest + (peak + total.log())[:, 0], cls(weight / total, pairs.mean, pairs.variance)

    def features(self, cells: Cells) -> Tensor:
        """`E[h | x]`, `(n, H)`."""
        return self.e0 @ cells.value + (self.e0 * self.mean) @ cells.slope[:, :, 0]

    def moments(self, weight: Tensor) -> Tensor:
        """`sum_n g_n E[1_cell (t, 1)(t, 1)^T]`, `(R, 2, 2)`."""
        g0 = weight[:, None] * self.e0
        g1 = g0 * self.mean
        g2 = g1 * self.mean + g0 * self.variance
        m0, m1, m2 = g0.sum(0), g1.sum(0), g2.sum(0)
        return torch.stack((torch.stack((m2, m1), -1), torch.stack((m1, m0), -1)), -2)

    def rows_on_cells(self, weight: Tensor, y: Tensor) -> Tensor:
        """`sum_n g_n y_n E[1_cell (t, 1)^T]`, `(R, K, 2)`, for y `(n, K)`."""
        g0 = weight[:, None] * self.e0
        return torch.stack(((g0 * self.mean).mT @ y, g0.mT @ y), -1)

    def incomplete_pull(self, weight: Tensor, rows: Rows, cells: Cells) -> Tensor:
        """`sum_n g_n E[1_cell T_n^T (y - T_n h)(t, 1)^T]`, `(R, H, 2)`, for rows with their own T_n `(n, K, H)`."""
        reduced = rows.reduced
        start, direction = cells.value @ reduced.mT, cells.slope[:, :, 0] @ reduced.mT  # (n, R, K)
        g0 = weight[:, None] * self.e0
        g1 = g0 * self.mean
        g2 = g1 * self.mean + g0 * self.variance
        off = rows.y[:, None, :] - start
        on_one = g0[:, :, None] * off - g1[:, :, None] * direction
        on_t = g1[:, :, None] * off - g2[:, :, None] * direction
        parts = (torch.einsum("nrk,nkh->rh", on_t, reduced), torch.einsum("nrk,nkh->rh", on_one, reduced))
        return torch.stack(parts, -1)

    def feature_covariance(self, cells: Cells, mean: Tensor) -> Tensor:
        """`Cov[(h, 1) | x]` of each row, `(n, H + 1, H + 1)`, for the mean `(n, H + 1)`."""
        features = torch.nn.functional.pad(cells.value, (0, 1), value=1.0)
        slopes = torch.nn.functional.pad(cells.slope[:, :, 0], (0, 1))
        deviation = features + self.mean[:, :, None] * slopes - mean[:, None, :]
        spread = torch.einsum("nr,nrh,nrk->nhk", self.e0, deviation, deviation)
        return spread + torch.einsum("nr,rh,rk->nhk", self.e0 * self.variance, slopes, slopes)
