"""Posteriors over a one-dimensional latent."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from girih.gaussian.interval import interval_moments, sample_anchored
from girih.inference.estep import chunks
from girih.inference.knots import Knots
from girih.inference.line import Pairs, left_out_bound, pair_up
from girih.inference.model import Intervals, Model
from girih.inference.posterior import Posterior
from girih.inference.rounding import MATTERS, lengths, of_posterior


class LinePosterior(Posterior):
    """`Posterior` for S = 1: every pair of a row and a cell, as dense `(N, R)` arrays."""

    def __init__(self, model: Model, x: Tensor) -> None:
        cells = model.cells
        assert isinstance(cells.region, Intervals)
        self._origin, self._region = cells.origin[:, 0], cells.region
        parts = [(index, rows, pair_up(model, rows)) for index, rows in chunks(model, x)]
        order = torch.cat([index for index, *_ in parts]).argsort()
        columns = zip(*(pairs for *_, pairs in parts), strict=True)
        self._pairs = p = Pairs(*(c[0] if len(c) == 1 else torch.cat(c)[order] for c in columns))
        log_mass = torch.logsumexp(p.log_joint, 1, keepdim=True)
        log_evidence = p.log_highest + log_mass[:, 0]
        self._log_peak = p.log_peak - log_mass  # log p(z | x) at the anchors
        self.log_weights = torch.log_softmax(p.log_joint, 1)
        # the anchors of the cells, and that of the best one, from which they are counted
        knots = Knots(self._region, self._origin)
        self._offset, self._best = knots.offsets(p.anchor, p.log_peak.argmax(1, keepdim=True))
        self._lengths = torch.cat([lengths(rows, log_evidence[index]) for index, rows, _ in parts])[order]
        super().__init__(model, log_evidence, left_out_bound(log_evidence, len(self._origin)))
        self._local, self._spread = p.local_mean, p.local_variance

    @cached_property
    def rounding(self) -> Tensor:
        """Bound in nats on what rounding changes in `log p(z | x)`, `(N,)`: see `girih.inference.rounding`."""
        p, model, cells = self._pairs, self._model, self._model.cells
        speed = torch.linalg.vector_norm(cells.slope[:, :, 0].abs() @ model.head[1].abs().mT, dim=1)
        matters = self.log_weights > math.log(MATTERS)
        path, z = Knots(self._region, self._origin).paths(speed, p.anchor), self._best + self._offset
        spread = torch.where(matters, path, -torch.inf).amax(1) - torch.where(matters, path, torch.inf).amin(1)
        pull = z.abs() * (p.tilt.abs() / p.deviation + z.abs() / model.prior[0, 0])
        return of_posterior(model, self._lengths, spread, torch.where(matters, pull, 0.0).amax(1))

    @property
    def _ends(self) -> list[Tensor]:
        """The ends of the cells about the anchors, in units of the deviations, `(N, R)` each."""
        return [(end - self._pairs.anchor) / self._pairs.deviation for end in self._region]

    @property
    def _weights(self) -> Tensor:
        return self.log_weights.exp()

    @property
    def _means(self) -> Tensor:
        """E[z | x, cell], counted from the best anchor, `(N, R)`."""
        return self._offset + self._pairs.deviation * self._local

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(N, 1)`."""
        return self._best + (self._weights * self._means).sum(1, keepdim=True)

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, 1, 1)`: the spread of the cells' means plus the spread inside the cells."""
        means = self._means
        away = means - (self._weights * means).sum(1, keepdim=True)
        inside = self._pairs.deviation.square() * self._spread
        return (self._weights * (away.square() + inside)).sum(1)[:, None, None]

    @property
    def mode(self) -> Tensor:
        """The z of highest posterior density, exact over all cells, `(N, 1)`."""
        return self._best

    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`."""
        expected = self._expected_log_density(self._local, self._spread)
        return -torch.where(torch.isfinite(self.log_weights), self._weights * expected, 0.0).sum(1)

    def _expected_log_density(self, u: Tensor, spread: Tensor) -> Tensor:
        """E[log p(z | x)] on each cell for a u with this mean about the anchor, and this variance."""
        return self._log_peak - u * self._pairs.tilt - 0.5 * (u.square() + spread)

    def _log_density(self, z: Tensor) -> Tensor:
        z = z[..., 0]
        cell = torch.searchsorted((self._origin + self._region.upper)[:-1], z.contiguous())
        shape = torch.broadcast_shapes(cell.shape, self.batch_shape)
        cell, z = cell.expand(shape), z.expand(shape)
        n = torch.arange(len(self.log_evidence), device=z.device).expand(shape)
        u = (z - self._best[n, 0] - self._offset[n, cell]) / self._pairs.deviation[n, cell]
        return self._log_peak[n, cell] - u * self._pairs.tilt[n, cell] - 0.5 * u.square()

    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` without the entries that round to 0 beside 1."""
        return self._weights.to_sparse_coo()

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        cell = torch.multinomial(self._weights, count, replacement=True, generator=generator).mT  # (count, N)
        n, p = torch.arange(cell.shape[1], device=cell.device).expand_as(cell), self._pairs
        below, above = self._ends
        u = sample_anchored(below[n, cell], above[n, cell], p.tilt[n, cell], generator)
        return self._best[:, 0] + (self._offset[n, cell] + u * p.deviation[n, cell])

    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor^2)`, `(N, 1)` and `(N, 1, 1)`."""
        deviation = factor[:, :, 0]
        shift = (self._origin - mean) / deviation
        lower, upper = self._region.lower / deviation + shift, self._region.upper / deviation + shift
        m = interval_moments(lower, upper)
        # q's mean on the cell about the anchor; exact at the cell's end when q lies beyond it
        at = torch.maximum(torch.minimum(mean - self._origin, self._region.upper), self._region.lower)
        local = ((at - self._pairs.anchor) + deviation * m.mean) / self._pairs.deviation
        density = self._expected_log_density(local, m.variance * (deviation / self._pairs.deviation).square())
        keep = m.log_mass > -745.0
        return torch.where(keep, m.log_mass.exp() * density, 0.0).sum(1)
