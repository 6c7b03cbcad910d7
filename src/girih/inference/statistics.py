r"""The E-step as a fixed-size sum over rows.

With `h` the last hidden features, `t` the latent about the origin of its cell and `e = x - W h - v` the
residual under the current parameters (missing entries completed by their conditional mean), every M-step
and every gradient of `log p(x)` is a function of

    moments    sum_n  g_n E[1_cell (t, 1)(t, 1)^T]                  (R, S+1, S+1)
    pull       sum_n  g_n E[1_cell W^T noise^-1 e (t, 1)^T]         (R, H, S+1)
    outer      sum_n  g_n E[e (h, 1)^T]                             (D, H+1)
    features   sum_n  g_n E[(h, 1)(h, 1)^T]                         (H+1, H+1)
    scatter    sum_n  g_n E[e e^T], in the shape of the noise
    latent     sum_n  g_n E[z z^T]                                  (S, S)

with row weights g. The sums add over batches, processes and machines. Residuals are taken under the current
parameters, so the statistics of a converged model are small numbers, not differences of large ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from girih.inference.line import Model, Pairs, Rows, chunks, pair_up


@dataclass
class Statistics:
    """Sums over rows; see the module's text. `a + b` joins two parts of a data set."""

    weight: Tensor  # () sum of g
    log_likelihood: Tensor  # () sum of g log p(x)
    moments: Tensor
    pull: Tensor
    outer: Tensor
    features: Tensor
    scatter: Tensor
    latent: Tensor

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


class _Expectations(NamedTuple):
    """Posterior moments of one chunk: responsibilities, means of t and variances on each pair."""

    e0: Tensor  # (n, R)
    mean: Tensor
    variance: Tensor


def expectations(pairs: Pairs) -> tuple[Tensor, _Expectations]:
    """`log p(x)` of each row, and the moments of its posterior on each cell."""
    peak = pairs.log_joint.amax(1, keepdim=True)
    weight = (pairs.log_joint - peak).exp_()
    total = weight.sum(1, keepdim=True)
    # divided by their own sum, so that responsibilities add up to 1 however large |log p| is
    return (peak + total.log())[:, 0], _Expectations(weight / total, pairs.mean, pairs.variance)


def accumulate(model: Model, x: Tensor, weight: Tensor) -> tuple[Tensor, Statistics]:
    """One E-step: `log p(x)` `(N,)` and the statistics of all rows with weights `(N,)`."""
    log_p = x.new_empty(len(x))
    total: Statistics | None = None
    for index, rows in chunks(model, x):
        pairs = pair_up(model, rows)
        log_p[index], e = expectations(pairs)
        part = _chunk_statistics(model, rows, e, weight[index], log_p[index])
        total = part if total is None else total + part
    if total is None:
        raise AssertionError("accumulate needs at least one row")
    return log_p, total


def _chunk_statistics(model: Model, rows: Rows, e: _Expectations, weight: Tensor, log_p: Tensor) -> Statistics:
    cells = model.cells
    g0 = weight[:, None] * e.e0
    g1 = g0 * e.mean
    g2 = g1 * e.mean + g0 * e.variance
    m0, m1, m2 = g0.sum(0), g1.sum(0), g2.sum(0)
    moments = torch.stack((torch.stack((m2, m1), -1), torch.stack((m1, m0), -1)), -2)

    features = torch.cat((cells.value, torch.ones_like(cells.origin)[:, None]), 1)  # (h, 1) at the origins
    slopes = torch.nn.functional.pad(cells.slope, (0, 1))
    mean_features = e.e0 @ features + (e.e0 * e.mean) @ slopes  # E[(h, 1) | x], (n, H + 1)
    cross = torch.einsum("rh,rk,r->hk", features, slopes, m1)
    second = (features.mT * m0) @ features + (slopes.mT * m2) @ slopes + cross + cross.mT
    head = torch.cat((model.weight, model.bias[:, None]), 1)

    origin = cells.origin
    latent = (origin.square() * m0 + 2 * origin * m1 + m2).sum()

    if rows.observed is None:
        start, direction = cells.value @ rows.reduced.mT, cells.slope @ rows.reduced.mT
        pull = torch.stack(
            (
                g1.mT @ rows.y - m1[:, None] * start - m2[:, None] * direction,
                g0.mT @ rows.y - m0[:, None] * start - m1[:, None] * direction,
            ),
            -1,
        )
        pull = rows.reduced.mT @ pull  # (R, H, 2)
        residual = rows.x - mean_features @ head.mT
        weighted = weight[:, None] * residual
        spread = second - mean_features.mT @ (weight[:, None] * mean_features)  # sum_n g_n Cov[(h, 1) | x]
        outer = weighted.mT @ mean_features - head @ spread
        if model.noise.ndim == 2:
            scatter = weighted.mT @ residual + head @ spread @ head.mT
        else:
            scatter = (weighted * residual).sum(0) + ((head @ spread) * head).sum(1)
            scatter = scatter.sum() if model.noise.ndim == 0 else scatter
    else:
        pull, outer, scatter = _incomplete(model, rows, e, weight, mean_features, head)
    return Statistics(weight.sum(), weight @ log_p, moments, pull, outer, second, scatter, latent.reshape(1, 1))


def _incomplete(
    model: Model, rows: Rows, e: _Expectations, weight: Tensor, mean_features: Tensor, head: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`pull`, `outer` and `scatter` when each row has its own missing entries."""
    if rows.observed is None:
        raise AssertionError("rows are complete")
    cells, observed = model.cells, rows.observed
    reduced = rows.reduced  # (n, K, H)
    start, direction = cells.value @ reduced.mT, cells.slope @ reduced.mT  # (n, R, K)
    g0 = weight[:, None] * e.e0
    g1 = g0 * e.mean
    g2 = g1 * e.mean + g0 * e.variance
    on_one = g0[:, :, None] * (rows.y[:, None, :] - start) - g1[:, :, None] * direction
    on_t = g1[:, :, None] * (rows.y[:, None, :] - start) - g2[:, :, None] * direction
    pull = torch.stack((torch.einsum("nrk,nkh->rh", on_t, reduced), torch.einsum("nrk,nkh->rh", on_one, reduced)), -1)

    # Cov[(h, 1) | x] of each row: between cells about the mean, and within cells along the line
    features = torch.nn.functional.pad(cells.value, (0, 1), value=1.0)
    slopes = torch.nn.functional.pad(cells.slope, (0, 1))
    deviation = features + e.mean[:, :, None] * slopes - mean_features[:, None, :]
    spread = torch.einsum("nr,nrh,nrk->nhk", e.e0, deviation, deviation)
    spread = spread + torch.einsum("nr,rh,rk->nhk", e.e0 * e.variance, slopes, slopes)

    residual = torch.nan_to_num(rows.x) - mean_features @ head.mT
    completed = observed.complete(residual[:, :, None])[:, :, 0]
    gain = observed.complete(head.expand(len(weight), -1, -1))  # (n, D, H + 1)
    spread_gain = gain @ spread
    outer = (weight[:, None] * completed).mT @ mean_features - torch.einsum("n,ndh->dh", weight, spread_gain)
    uncertain = observed.conditional_covariance(weight)
    if model.noise.ndim == 2:
        scatter = (weight[:, None] * completed).mT @ completed
        scatter = scatter + torch.einsum("n,ndh,neh->de", weight, spread_gain, gain) + uncertain
    else:
        scatter = weight @ completed.square() + torch.einsum("n,ndh,ndh->d", weight, spread_gain, gain)
        scatter = (scatter.sum() if model.noise.ndim == 0 else scatter) + uncertain
    return pull, outer, scatter
