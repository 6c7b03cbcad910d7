"""Posteriors over a one-dimensional latent."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian import sample_truncated
from girih.gaussian.interval import interval_moments
from girih.inference.estep import chunks
from girih.inference.line import Pairs, left_out_bound, pair_up
from girih.inference.model import Intervals, Model
from girih.inference.posterior import Posterior


class LinePosterior(Posterior):
    """`Posterior` for S = 1: every pair of a row and a cell, as dense `(N, R)` arrays."""

    def __init__(self, model: Model, x: Tensor) -> None:
        cells = model.cells
        assert isinstance(cells.region, Intervals)
        self._origin, self._region = cells.origin[:, 0], cells.region
        parts = [(index, pair_up(model, rows)) for index, rows in chunks(model, x)]
        order = torch.cat([index for index, _ in parts]).argsort()
        columns = zip(*(pairs for _, pairs in parts), strict=True)
        self._pairs = Pairs(*(c[0] if len(c) == 1 else torch.cat(c)[order] for c in columns))
        log_evidence = torch.logsumexp(self._pairs.log_joint, 1)
        super().__init__(model, log_evidence, left_out_bound(log_evidence, len(self._origin)))
        # not log_joint - log_evidence, which adds up to 1 only within the rounding of |log p(x)|
        self.log_weights = torch.log_softmax(self._pairs.log_joint, 1)

    @property
    def _weights(self) -> Tensor:
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(N, 1)`."""
        return (self._weights * (self._origin + self._pairs.mean)).sum(1, keepdim=True)

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, 1, 1)`: the spread of the cells' means plus the spread inside the cells."""
        deviation = self._origin + self._pairs.mean - self.mean
        return (self._weights * (deviation.square() + self._pairs.variance)).sum(1)[:, None, None]

    @property
    def mode(self) -> Tensor:
        """The z of highest posterior density, exact over all cells, `(N, 1)`."""
        best = self._pairs.log_peak.argmax(1, keepdim=True)
        return self._origin[best] + self._pairs.anchor.gather(1, best)

    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`."""
        kept = torch.isfinite(self.log_weights)
        return -(self._weights * self._expected_log_density(self._pairs.mean, self._pairs.variance, kept)).sum(1)

    def _expected_log_density(self, mean: Tensor, variance: Tensor, keep: Tensor) -> Tensor:
        """E[log p(z | x)] on each cell for a z with this mean (of `t`) and variance there; 0 where not kept."""
        u = (mean - self._pairs.anchor) / self._pairs.deviation
        spread = variance / self._pairs.deviation.square()
        peak = self._pairs.log_peak - self.log_evidence[:, None]
        return torch.where(keep, peak - u * self._pairs.tilt - 0.5 * (u.square() + spread), 0.0)

    def _log_density(self, z: Tensor) -> Tensor:
        z = z[..., 0]
        cell = torch.searchsorted((self._origin + self._region.upper)[:-1], z.contiguous())
        shape = torch.broadcast_shapes(cell.shape, self.batch_shape)
        cell, z = cell.expand(shape), z.expand(shape)
        n = torch.arange(len(self.log_evidence), device=z.device).expand(shape)
        u = (z - self._origin[cell] - self._pairs.anchor[n, cell]) / self._pairs.deviation[n, cell]
        peak = self._pairs.log_peak[n, cell] - self.log_evidence
        return peak - u * self._pairs.tilt[n, cell] - 0.5 * u.square()

    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` without the entries that round to 0 beside 1."""
        return self._weights.to_sparse_coo()

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        cell = torch.multinomial(self._weights, count, replacement=True, generator=generator).mT  # (count, N)
        n = torch.arange(cell.shape[1], device=cell.device).expand_as(cell)
        lower, upper = self._pairs.lower[n, cell], self._pairs.upper[n, cell]
        u = sample_truncated(lower, upper, generator)
        tilt = self._pairs.tilt[n, cell]
        return self._origin[cell] + self._pairs.anchor[n, cell] + (u - tilt) * self._pairs.deviation[n, cell]

    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor^2)`, `(N, 1)` and `(N, 1, 1)`."""
        deviation = factor[:, :, 0]
        shift = (self._origin - mean) / deviation
        lower, upper = self._region.lower / deviation + shift, self._region.upper / deviation + shift
        m = interval_moments(lower, upper)
        # the mean of t under q, about the origin of the cell; exact at the cell's end when q lies beyond it
        at = torch.maximum(torch.minimum(mean - self._origin, self._region.upper), self._region.lower)
        local = at + deviation * m.mean
        keep = m.log_mass > -745.0
        density = self._expected_log_density(local, deviation.square() * m.variance, keep)
        return (m.log_mass.exp() * density).sum(1)
