r"""The E-step as a fixed-size sum over rows.

With `h` the last hidden features, `t` the latent about the origin of its piece (a cell, or part of one) and
`e = x - W h - v` the residual under the current parameters (missing entries completed by their conditional mean),
every M-step and every gradient of `log p(x)` is a function of

    moments    sum_n  g_n E[1_piece (t, 1)(t, 1)^T]                 (P, S+1, S+1)
    pull       sum_n  g_n E[1_piece W^T noise^-1 e (t, 1)^T]        (P, H, S+1)
    outer      sum_n  g_n E[e (h, 1)^T]                             (D, H+1)
    features   sum_n  g_n E[(h, 1)(h, 1)^T]                         (H+1, H+1)
    scatter    sum_n  g_n E[e e^T], as far as the noise needs it (`Covariance.scatter`)
    latent     sum_n  g_n E[z z^T]                                  (S, S)

with row weights g. The sums add over batches, processes and machines. Residuals are taken under the current
parameters, so the statistics of a converged model are small numbers, not differences of large ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from girih.inference.model import Evidence, Model, Moments, Rows, chunks, log_prob_rounding


@dataclass
class Statistics:
    """Statistics are sums over rows; see the module's text. `a + b` joins two parts of a data set."""

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


def expect(model: Model, rows: Rows) -> tuple[Evidence, Moments]:
    """`log p(x)` of a chunk and the moments of its posteriors on each piece."""
    log_p, left_out, moments = model.cells.region.expect(model, rows)
    return Evidence(log_p, left_out, log_prob_rounding(model, rows, log_p)), moments


def evidence(model: Model, x: Tensor) -> Evidence:
    """`log p(x)` of each row (EM-DGN, eq. 5), and the bounds on what was left out and on rounding."""
    out = Evidence.empty(x)
    for index, rows in chunks(model, x):
        log_p, left_out = model.cells.region.log_prob(model, rows)
        out.put(index, Evidence(log_p, left_out, log_prob_rounding(model, rows, log_p)))
    return out


def accumulate(model: Model, x: Tensor, weight: Tensor) -> tuple[Evidence, Statistics]:
    """One E-step: `log p(x)` `(N,)` and the statistics of all rows with weights `(N,)`."""
    evidence = Evidence.empty(x)

    def put(index: Tensor, rows: Rows, log_p: Tensor, left_out: Tensor) -> None:
        evidence.put(index, Evidence(log_p, left_out, log_prob_rounding(model, rows, log_p)))

    return evidence, sufficient_statistics(model, x, weight, put)


def sufficient_statistics(
    model: Model, x: Tensor, weight: Tensor, put: Callable[[Tensor, Rows, Tensor, Tensor], None] | None = None
) -> Statistics:
    """The statistics alone of all rows; `put` is called with the place of each chunk, its rows, and what they give."""
    total: Statistics | None = None
    for index, rows in chunks(model, x):
        log_p, left_out, e = model.cells.region.expect(model, rows)
        if put is not None:
            put(index, rows, log_p, left_out)
        part = _chunk_statistics(model, rows, e, weight[index], log_p)
        total = part if total is None else total + part
    if total is None:
        raise AssertionError("an E-step needs at least one row")
    return total


def _chunk_statistics(model: Model, rows: Rows, e: Moments, weight: Tensor, log_p: Tensor) -> Statistics:
    cells = model.cells
    moments = e.moments(weight)
    columns = torch.cat((cells.slope, cells.value[:, :, None]), 2)  # h = columns (t, 1), (P, H, S + 1)
    # (h, 1) at the pseudo-points, (P (S + 1), H + 1)
    points = torch.nn.functional.pad(columns.mT, (0, 1))
    points[:, -1, -1] = 1.0
    weighted_points = (moments @ points).flatten(0, 1)
    second = points.flatten(0, 1).mT @ weighted_points
    mean_features = torch.nn.functional.pad(e.features(cells), (0, 1), value=1.0)  # E[(h, 1) | x], (n, H + 1)
    head = torch.cat((model.weight, model.bias[:, None]), 1)
    latent = _latent_moment(cells.origin, moments)

    if rows.observed is None:
        image = rows.reduced @ columns  # (P, K, S + 1)
        pull = rows.reduced.mT @ (e.rows_on_cells(weight, rows.y) - image @ moments)
        residual = torch.addmm(model.without_bias(rows.x), mean_features[:, :-1], model.weight.mT, alpha=-1.0)
        weighted = weight[:, None] * residual
        spread = second - mean_features.mT @ (weight[:, None] * mean_features)  # sum_n g_n Cov[(h, 1) | x]
        spread[-1], spread[:, -1] = 0.0, 0.0  # exactly: the bias, which may be large, must not meet rounding errors
        outer = weighted.mT @ mean_features - head @ spread
        scatter = model.noise.scatter((weighted, residual), ((head @ spread).mT, head.mT))
    else:
        pull = e.incomplete_pull(weight, rows, cells)
        outer, scatter = _incomplete(model, rows, e, weight, mean_features, head)
    return Statistics(weight.sum(), weight @ log_p, moments, pull, outer, second, scatter, latent)


def _latent_moment(origin: Tensor, moments: Tensor) -> Tensor:
    """`sum_n g_n E[z z^T]`, `z = origin + t`."""
    S = origin.shape[1]
    cross = torch.einsum("pi,pj->ij", origin, moments[:, :S, S])
    own = torch.einsum("p,pi,pj->ij", moments[:, S, S], origin, origin)
    return own + cross + cross.mT + moments[:, :S, :S].sum(0)


def _incomplete(
    model: Model, rows: Rows, e: Moments, weight: Tensor, mean_features: Tensor, head: Tensor
) -> tuple[Tensor, Tensor]:
    """`outer` and `scatter` when each row has its own missing entries."""
    if rows.observed is None:
        raise AssertionError("rows are complete")
    observed = rows.observed
    spread = e.feature_covariance(model.cells, mean_features)
    residual = torch.nan_to_num(model.without_bias(rows.x)) - mean_features[:, :-1] @ model.weight.mT
    completed = observed.complete(residual[:, :, None])[:, :, 0]
    gain = observed.complete(head.expand(len(weight), -1, -1))  # (n, D, H + 1)
    spread_gain = gain @ spread
    outer = (weight[:, None] * completed).mT @ mean_features - torch.einsum("n,ndh->dh", weight, spread_gain)
    means, spreads = (weight[:, None] * completed, completed), (weight[:, None, None] * spread_gain.mT, gain.mT)
    return outer, model.noise.scatter(means, spreads) + observed.conditional_covariance(weight)
