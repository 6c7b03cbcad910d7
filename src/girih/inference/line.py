"""Exact inference over a one-dimensional latent: the moments of an E-step, posteriors, and expectations (S = 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.interval import interval_moments, sample_anchored
from girih.inference.line_pairs import Knots, Pairs, left_out_bound, pair_up
from girih.inference.model import (
    LEAST,
    MATTERS,
    AffinePieces,
    Expected,
    Model,
    Region,
    Rows,
    chunks,
    posterior_rounding,
)
from girih.inference.posterior import Posterior
from girih.networks import Trace
from girih.partition import Partition


class DenseMoments(NamedTuple):
    """They are responsibilities, means of t and variances of a chunk of rows on each cell (S = 1)."""

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

    def features(self, cells: AffinePieces) -> Tensor:
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

    def incomplete_pull(self, weight: Tensor, rows: Rows, cells: AffinePieces) -> Tensor:
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

    def feature_covariance(self, cells: AffinePieces, mean: Tensor) -> Tensor:
        """`Cov[(h, 1) | x]` of each row, `(n, H + 1, H + 1)`, for the mean `(n, H + 1)`."""
        features = torch.nn.functional.pad(cells.value, (0, 1), value=1.0)
        slopes = torch.nn.functional.pad(cells.slope[:, :, 0], (0, 1))
        deviation = features + self.mean[:, :, None] * slopes - mean[:, None, :]
        spread = torch.einsum("nr,nrh,nrk->nhk", self.e0, deviation, deviation)
        return spread + torch.einsum("nr,rh,rk->nhk", self.e0 * self.variance, slopes, slopes)


class LinePosterior(Posterior):
    """For S = 1 a `Posterior` holds every pair of a row and a cell, as dense `(N, R)` arrays."""

    def __init__(self, model: Model, knots: Knots, x: Tensor) -> None:
        self._model, self._knots = model, knots
        parts = [(index, rows, pair_up(model, rows, knots)) for index, rows in chunks(model, x)]
        order = torch.cat([index for index, *_ in parts]).argsort()
        columns = zip(*(pairs for *_, pairs in parts), strict=True)
        self._pairs = p = Pairs(*(c[0] if len(c) == 1 else torch.cat(c)[order] for c in columns))
        log_mass = torch.logsumexp(p.log_joint, 1, keepdim=True)
        log_evidence = p.log_highest + log_mass[:, 0]
        self._log_peak = p.log_peak - log_mass  # log p(z | x) at the anchors
        self.log_weights = torch.log_softmax(p.log_joint, 1)
        # the anchors of the cells, and that of the best one, from which they are counted
        self._offset, self._best = knots.offsets(p.anchor, p.log_peak.argmax(1, keepdim=True))
        self._lengths = torch.cat([rows.lengths(log_evidence[index]) for index, rows, _ in parts])[order]
        super().__init__(1, log_evidence, left_out_bound(log_evidence, len(knots.origin)))
        self._local, self._spread = p.local_mean, p.local_variance

    @cached_property
    def rounding(self) -> Tensor:
        """Bound in nats on what rounding changes in `log p(z | x)`, `(N,)`."""
        p, model, cells = self._pairs, self._model, self._model.cells
        speed = torch.linalg.vector_norm(cells.slope[:, :, 0].abs() @ model.head[1].abs().mT, dim=1)
        matters = self.log_weights > math.log(MATTERS)
        path, z = self._knots.paths(speed, p.anchor), self._best + self._offset
        spread = torch.where(matters, path, -torch.inf).amax(1) - torch.where(matters, path, torch.inf).amin(1)
        pull = z.abs() * (p.tilt.abs() / p.deviation + z.abs() / model.prior[0, 0])
        return posterior_rounding(model, self._lengths, spread, torch.where(matters, pull, 0.0).amax(1))

    @property
    def _ends(self) -> list[Tensor]:
        """The ends of the cells about the anchors, in units of the deviations, `(N, R)` each."""
        return [(end - self._pairs.anchor) / self._pairs.deviation for end in (self._knots.lower, self._knots.upper)]

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
        cell = torch.searchsorted((self._knots.origin + self._knots.upper)[:-1], z.contiguous())
        shape = torch.broadcast_shapes(cell.shape, self.batch_shape)
        cell, z = cell.expand(shape), z.expand(shape)
        n = torch.arange(len(self.log_evidence), device=z.device).expand(shape)
        u = (z - self._best[n, 0] - self._offset[n, cell]) / self._pairs.deviation[n, cell]
        return self._log_peak[n, cell] - u * self._pairs.tilt[n, cell] - 0.5 * u.square()

    def spans(self, depth: float) -> tuple[Tensor, Tensor]:
        """On each cell the ends of where `log p(z | x)` is within `depth` nats of its peak there, `(N, R)`."""
        p, knots = self._pairs, self._knots
        # from the anchor, u falls by depth nats within reach: (|tilt| + reach)^2 = tilt^2 + 2 depth
        reach = 2.0 * depth / ((p.tilt.square() + 2.0 * depth).sqrt() + p.tilt.abs())
        anchor, way = knots.origin + p.anchor, reach * p.deviation
        # where the centre lies inside the cell both sides fall; beyond an end only one does
        low = torch.maximum(anchor - way, knots.origin + knots.lower)
        return low, torch.minimum(anchor + way, knots.origin + knots.upper)

    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` without the entries that round to 0 beside 1."""
        result: Tensor = self._weights.to_sparse_coo()
        return result

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        cell = torch.multinomial(self._weights, count, replacement=True, generator=generator).mT  # (count, N)
        n, p = torch.arange(cell.shape[1], device=cell.device).expand_as(cell), self._pairs
        below, above = self._ends
        u = sample_anchored(below[n, cell], above[n, cell], p.tilt[n, cell], generator)
        return self._best[:, 0] + (self._offset[n, cell] + u * p.deviation[n, cell])

    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor^2)`, `(N, 1)` and `(N, 1, 1)`."""
        deviation = factor[:, :, 0]
        shift = (self._knots.origin - mean) / deviation
        lower, upper = self._knots.lower / deviation + shift, self._knots.upper / deviation + shift
        m = interval_moments(lower, upper)
        # q's mean on the cell about the anchor; exact at the cell's end when q lies beyond it
        at = torch.maximum(torch.minimum(mean - self._knots.origin, self._knots.upper), self._knots.lower)
        local = ((at - self._pairs.anchor) + deviation * m.mean) / self._pairs.deviation
        density = self._expected_log_density(local, m.variance * (deviation / self._pairs.deviation).square())
        keep = m.log_mass > LEAST
        return torch.where(keep, m.log_mass.exp() * density, 0.0).sum(1)


class Line(Region):
    """For S = 1 the region is made of intervals, each with every row.

    Args:
        part: a partition with S = 1.
        prior: not needed here.
        mean: of the prior, `(1,)`, from which latents are then counted; 0 by default.
    """

    def __init__(self, part: Partition, prior: Tensor, mean: Tensor | None = None) -> None:
        (lower, upper), origin = part.bounds, part.piece_origins[:, 0]
        self._knots = Knots(lower - origin, upper - origin, origin if mean is None else origin - mean)

    def entries(self, model: Model, complete: bool) -> int:
        """The images of all cells."""
        return len(self._knots.origin) * min(model.weight.shape)

    def log_prob(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor]:
        """`log p(x)`, and a bound on the share of the negligible pairs."""
        p = pair_up(model, rows, self._knots)
        log_p = p.log_highest + torch.logsumexp(p.log_joint, 1)
        return log_p, left_out_bound(log_p, len(self._knots.origin))

    def expect(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor, DenseMoments]:
        """The same, and the moments of the posteriors."""
        log_p, dense = DenseMoments.of(pair_up(model, rows, self._knots))
        return log_p, left_out_bound(log_p, len(self._knots.origin)), dense

    def posterior(self, model: Model, trace: Trace, x: Tensor) -> LinePosterior:
        """The posteriors of rows `(N, D)`."""
        return LinePosterior(model, self._knots, x)

    def average(self, model: Model, rows: Rows) -> Callable[[Tensor, Tensor, Tensor], Expected]:
        """`E_q[log p(x, z)]` and its derivatives, for Gaussians q."""
        return partial(_expected, pair_up(model, rows, self._knots), self._knots)


def _expected(p: Pairs, knots: Knots, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
    deviation = factor[:, :, 0]
    shift = (knots.origin - mean) / deviation
    m = interval_moments(knots.lower / deviation + shift, knots.upper / deviation + shift)
    mass = torch.where(m.log_mass > LEAST, m.log_mass.exp(), 0.0)
    u = m.anchor + m.mean
    # v = (t - anchor) / sd is where h = log p(x, z) = log_peak - tilt v - v^2 / 2
    scale = deviation / p.deviation[row]
    v = scale * (u - shift) - p.anchor[row] / p.deviation[row]
    tilted = p.tilt[row] + v
    height = p.log_highest[row, None] + p.log_peak[row]
    h = height - v * p.tilt[row] - 0.5 * (v.square() + scale.square() * m.variance)
    by_mean = -tilted / p.deviation[row]
    by_factor = -(tilted * u + scale * m.variance) / p.deviation[row]
    sums = [torch.where(mass > 0.0, mass * part, 0.0).sum(1) for part in (h, by_mean, by_factor)]
    return Expected(sums[0], sums[1][:, None], sums[2][:, None, None])
