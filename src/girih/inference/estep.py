"""The E-step: `log p(x)` and posterior moments of chunks of rows, for every latent dimension."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from girih.inference.dense import DenseMoments
from girih.inference.line import left_out_bound, pair_up
from girih.inference.model import Intervals, Model, Rows, reduce_complete, reduce_incomplete
from girih.inference.polytopes import geometry, select_pairs
from girih.inference.rounding import of_log_prob
from girih.inference.sparse import SparseMoments, log_marginal

# Entries of the largest temporary array of one chunk of rows: 4 MB, which stays in cache.
_CHUNK = 2**19

Moments: TypeAlias = DenseMoments | SparseMoments


class _LogProb(NamedTuple):
    log_prob: Tensor  # (N,)
    left_out: Tensor  # (N,)


class Evidence(_LogProb):
    """`log p(x)` in nats and a bound on the relative error of p(x) by what was left out: a pair.

    Attributes:
        rounding: a bound on the error by rounding, nats, `(N,)`.
    """

    rounding: Tensor

    def __new__(cls, log_prob: Tensor, left_out: Tensor, rounding: Tensor) -> Evidence:
        """Both, and the bound beside them."""
        pair = super().__new__(cls, log_prob, left_out)
        pair.rounding = rounding
        return pair

    @classmethod
    def empty(cls, x: Tensor) -> Evidence:
        """Room for the rows of x `(N, D)`."""
        return cls(*(torch.empty_like(x[:, 0]) for _ in range(3)))

    def put(self, index: Tensor, part: Evidence) -> None:
        """Fill in some rows."""
        self.log_prob[index], self.left_out[index], self.rounding[index] = *part, part.rounding


def chunks(model: Model, x: Tensor) -> Iterator[tuple[Tensor, Rows]]:
    """Index and reduced rows of chunks: complete rows first, then rows with missing entries."""
    incomplete = torch.isnan(x).any(1)
    complete = (~incomplete).nonzero()[:, 0]
    if len(complete):
        for index in complete.split(max(1, _CHUNK // _entries(model))):
            yield index, reduce_complete(model, x if len(index) == len(x) else x[index])
    if len(complete) == len(x):
        return
    width = min(model.weight.shape)
    whitening = width + model.noise.width
    per_row = max(_entries(model), model.output_dim * whitening)
    for index in incomplete.nonzero()[:, 0].split(max(1, 4 * _CHUNK // per_row)):
        yield index, reduce_incomplete(model, x[index])


def _entries(model: Model) -> int:
    """Entries of the largest temporary for one row."""
    width = min(model.weight.shape)
    if isinstance(model.cells.region, Intervals):
        return len(model.cells.origin) * width
    pairs = len(model.cells.origin) if model.tol <= 0.0 else max(128, len(geometry(model).unbounded))
    return pairs * 4


def expect(model: Model, rows: Rows) -> tuple[Evidence, Moments]:
    """`log p(x)` of a chunk and the moments of its posteriors on each cell."""
    if isinstance(model.cells.region, Intervals):
        log_p, dense = DenseMoments.of(pair_up(model, rows))
        left_out = left_out_bound(log_p, len(model.cells.origin))
        return Evidence(log_p, left_out, of_log_prob(model, rows, log_p)), dense
    pairs = select_pairs(model, rows.relative())
    log_total, sparse = SparseMoments.of(model, rows, pairs)
    log_p, left_out = rows.common + log_total, (pairs.log_left_out - log_total).exp()
    return Evidence(log_p, left_out, of_log_prob(model, rows, log_p)), sparse


def evidence(model: Model, x: Tensor) -> Evidence:
    """`log p(x)` of each row (EM-DGN, eq. 5), and the bounds on what was left out and on rounding."""
    out = Evidence.empty(x)
    for index, rows in chunks(model, x):
        if isinstance(model.cells.region, Intervals):
            dense = pair_up(model, rows)
            log_p = dense.log_highest + torch.logsumexp(dense.log_joint, 1)
            left_out = left_out_bound(log_p, len(model.cells.origin))
        else:
            pairs = select_pairs(model, rows.relative())
            log_total = log_marginal(model, pairs)
            log_p, left_out = rows.common + log_total, (pairs.log_left_out - log_total).exp()
        out.put(index, Evidence(log_p, left_out, of_log_prob(model, rows, log_p)))
    return out
