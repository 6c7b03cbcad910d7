r"""Every (row, cell) pair of a one-dimensional latent space as a truncated Gaussian.

The noise is whitened, and the last affine map `W = Q T` reduced to its K = min(D, H) directions, so nothing
grows with D after the products with Q. On a cell the hidden features run along a line
`T h = f + a t`, `t = z - origin`, and a row `y = Q^T (x - v)` is seen as its distance from that line and
its position along it:

    log p(x, z) = const - (far^2 + off^2 + (p - s t)^2 + z^2 / prior) / 2

with `far` the distance of x from the range of W, `off` the distance from the line inside that range, `p` the
position along it and `s = |a|`. Each term is computed as the square of a difference, never as a difference of
squares, so steep cells and small noise lose no digits. This is EM-DGN Theorem 1, rearranged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.interval import IntervalMoments, interval_log_k0, interval_moments
from girih.inference.noise import Observed, constant, whiten

_LOG_2PI = math.log(2.0 * math.pi)

# Pairs below exp(-50) of their row's largest cannot change the last bit of a sum over cells.
NEGLIGIBLE = -50.0

# Entries of the largest temporary array of one chunk of rows: 4 MB, which stays in cache.
_CHUNK = 2**19


class Cells(NamedTuple):
    """The cells of the line with the hidden features along them, about an origin in each cell."""

    origin: Tensor  # (R,)
    lower: Tensor  # (R,) relative to the origin
    upper: Tensor  # (R,)
    value: Tensor  # (R, H) hidden features at the origin
    slope: Tensor  # (R, H) their derivative in z


class Model(NamedTuple):
    """Everything that the density of x depends on, as tensors."""

    cells: Cells
    weight: Tensor  # (D, H) last affine map
    bias: Tensor  # (D,)
    noise: Tensor  # (), (D,) or (D, D)
    prior: Tensor  # () variance of z

    @property
    def output_dim(self) -> int:
        """D."""
        return len(self.bias)


class Rows(NamedTuple):
    """A chunk of rows in whitened, reduced coordinates. Leading `n` axes are absent when nothing is missing."""

    x: Tensor  # (n, D), NaN where missing
    observed: Observed | None
    reduced: Tensor  # T: (K, H) or (n, K, H)
    y: Tensor  # (n, K)
    far2: Tensor  # (n,) squared whitened distance from the range of W
    constant: Tensor  # () or (n,): -1/2 log det(2 pi noise)


class Pairs(NamedTuple):
    """Truncated Gaussians of n rows on R cells: with `u = (t - centre) / deviation`, anchored in the cell."""

    log_joint: Tensor  # (n, R) log p(x, z in cell)
    log_peak: Tensor  # (n, R) log p(x, z) at the anchor, the largest value on the cell
    log_k0: Tensor  # (n, R) see girih.gaussian.interval
    anchor: Tensor  # (n, R) point of the cell nearest to the centre, relative to the origin
    tilt: Tensor  # (n, R) u at the anchor: 0 when the centre is inside the cell
    deviation: Tensor  # (R,) or (n, R)
    lower: Tensor  # (n, R) u at the ends of the cell
    upper: Tensor  # (n, R)

    def moments(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of `t` and variance of z on the pairs where `keep`, 0 elsewhere, `(n, R)` each."""
        deviation = self.deviation.expand_as(keep)
        if keep.all():
            m: IntervalMoments = interval_moments(self.lower, self.upper)
            return self.anchor + deviation * m.mean, deviation.square() * m.variance
        flat = keep.flatten().nonzero()[:, 0]
        scale = deviation.flatten()[flat]
        m = interval_moments(self.lower.flatten()[flat], self.upper.flatten()[flat])
        mean, variance = torch.zeros_like(self.anchor), torch.zeros_like(self.anchor)
        mean.view(-1)[flat] = self.anchor.flatten()[flat] + scale * m.mean
        variance.view(-1)[flat] = scale.square() * m.variance
        return mean, variance


def reduce_rows(model: Model, x: Tensor, head: tuple[Tensor, Tensor] | None = None) -> Rows:
    """Whiten and reduce a chunk of rows; `head` is `reduce_head(model)`, used when nothing is missing."""
    missing = torch.isnan(x)
    if not missing.any():
        basis, reduced = head if head is not None else reduce_head(model)
        white = whiten(model.noise, (x - model.bias).mT).mT
        y = white @ basis
        far2 = (white - y @ basis.mT).square().sum(1)
        return Rows(x, None, reduced, y, far2, constant(model.noise, model.output_dim))
    patterns, which = torch.unique(~missing, dim=0, return_inverse=True)
    basis, reduced = torch.linalg.qr(Observed(model.noise, patterns).whiten(model.weight))
    basis, reduced = basis[which], reduced[which]
    observed = Observed(model.noise, ~missing)
    white = observed.whiten(torch.nan_to_num(x - model.bias)[:, :, None])
    y = basis.mT @ white
    far2 = (white - basis @ y).square().sum((1, 2))
    return Rows(x, observed, reduced, y[:, :, 0], far2, observed.constant)


def reduce_head(model: Model) -> tuple[Tensor, Tensor]:
    """Q `(D, K)` and T `(K, H)` with `L^-1 W = Q T`, `L L^T` the noise."""
    basis, reduced = torch.linalg.qr(whiten(model.noise, model.weight))
    return basis, reduced


def pair_up(model: Model, rows: Rows) -> Pairs:
    """The truncated Gaussian of every row on every cell."""
    cells, prior = model.cells, model.prior
    start = cells.value @ rows.reduced.mT  # (R, K) or (n, R, K)
    direction = cells.slope @ rows.reduced.mT
    speed2 = direction.square().sum(-1)
    speed = speed2.sqrt()
    unit = direction / torch.where(speed > 0, speed, 1.0)[..., None]
    gap = rows.y[:, None, :] - start
    position = (gap * unit).sum(-1)
    off2 = torch.addcmul(gap, position[..., None], unit, value=-1.0).square_().sum(-1)

    precision = speed2 + 1.0 / prior
    deviation = precision.rsqrt()
    centre = (speed * position - cells.origin / prior) / precision
    lower, upper = (cells.lower - centre) / deviation, (cells.upper - centre) / deviation
    log_k0 = interval_log_k0(lower, upper)
    anchor = torch.maximum(torch.minimum(centre, cells.upper), cells.lower)
    tilt = torch.maximum(torch.minimum(-torch.zeros_like(lower), upper), lower)
    energy = off2 + (position - speed * anchor).square() + (cells.origin + anchor).square() / prior
    log_peak = -0.5 * (energy + (rows.far2 - 2.0 * rows.constant)[:, None] + (_LOG_2PI + prior.log()))
    return Pairs(log_peak + log_k0 + deviation.log(), log_peak, log_k0, anchor, tilt, deviation, lower, upper)


def chunks(model: Model, x: Tensor) -> Iterator[tuple[Tensor, Rows]]:
    """Index and reduced rows of chunks that fit in cache: complete rows first, then rows with missing entries."""
    incomplete = torch.isnan(x).any(1)
    width = min(model.weight.shape)
    if not incomplete.any():
        size = max(1, _CHUNK // (len(model.cells.origin) * width))
        head = reduce_head(model)
        every = torch.arange(len(x), device=x.device)
        for index in every.split(size):
            yield index, reduce_rows(model, x if len(index) == len(x) else x[index], head)
        return
    size = max(1, _CHUNK // (len(model.cells.origin) * width))
    complete = (~incomplete).nonzero()[:, 0]
    if len(complete):
        head = reduce_head(model)
        for index in complete.split(size):
            yield index, reduce_rows(model, x[index], head)
    D = model.output_dim
    per_row = max(len(model.cells.origin) * width, D * (width + (D if model.noise.ndim == 2 else 1)))
    for index in incomplete.nonzero()[:, 0].split(max(1, 4 * _CHUNK // per_row)):
        yield index, reduce_rows(model, x[index])


def log_marginal(model: Model, x: Tensor) -> Tensor:
    """`log p(x)` of each row, `(N,)` (EM-DGN, eq. 5)."""
    out = x.new_empty(len(x))
    for index, rows in chunks(model, x):
        out[index] = torch.logsumexp(pair_up(model, rows).log_joint, 1)
    return out
