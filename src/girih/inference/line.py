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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from girih.gaussian.interval import anchored_moments
from girih.inference.noise import Observed, constant, whiten

_LOG_2PI = math.log(2.0 * math.pi)

# Pairs below exp(-46) = 1e-20 of their row's mass cannot change the last bit of a sum over cells.
_NEGLIGIBLE = 46.0

# Up to so many pairs, finding out which ones matter takes longer than integrating them all.
_FEW = 4096

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
    """Truncated Gaussians of n rows on R cells: with `u = (t - centre) / deviation`, anchored in the cell.

    The integrals are there for the pairs that can matter; the others have less than exp(-46) of their row's mass.
    """

    log_peak: Tensor  # (n, R) log p(x, z) at the anchor, the largest value on the cell
    anchor: Tensor  # (n, R) point of the cell nearest to the centre, relative to the origin
    tilt: Tensor  # (n, R) u at the anchor: 0 when the centre is inside the cell
    deviation: Tensor  # (n, R)
    lower: Tensor  # (n, R) u at the ends of the cell
    upper: Tensor  # (n, R)
    log_joint: Tensor  # (n, R) log p(x, z in cell), -inf where negligible
    mean: Tensor  # (n, R) E[t | x, cell], 0 where negligible
    variance: Tensor  # (n, R) Var[z | x, cell], 0 where negligible


def reduce_complete(model: Model, x: Tensor, head: tuple[Tensor, Tensor]) -> Rows:
    """Whiten and reduce rows without missing entries; `head` is `reduce_head(model)`."""
    basis, reduced = head
    white = whiten(model.noise, (x - model.bias).mT).mT
    y = white @ basis
    far2 = torch.linalg.vector_norm(torch.addmm(white, y, basis.mT, alpha=-1.0), dim=1).square_()
    return Rows(x, None, reduced, y, far2, constant(model.noise, model.output_dim))


def reduce_incomplete(model: Model, x: Tensor) -> Rows:
    """Whiten and reduce rows that each have their own missing entries."""
    seen = ~torch.isnan(x)
    patterns, which = torch.unique(seen, dim=0, return_inverse=True)
    basis, reduced = torch.linalg.qr(Observed(model.noise, patterns).whiten(model.weight))
    basis, reduced = basis[which], reduced[which]
    observed = Observed(model.noise, seen)
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
    off = rows.y[:, None, :] - start
    position = (off * unit).sum(-1)
    off = torch.addcmul(off, position[..., None], unit, value=-1.0)

    precision = speed2 + 1.0 / prior
    deviation = precision.rsqrt()
    centre = (speed * position - cells.origin / prior) / precision
    lower, upper = (cells.lower - centre) / deviation, (cells.upper - centre) / deviation
    anchor = centre.clamp(cells.lower, cells.upper)
    tilt = torch.zeros_like(lower).clamp(lower, upper)
    energy = torch.linalg.vector_norm(off, dim=-1).square_()
    energy += torch.addcmul(position, speed, anchor, value=-1.0).square_()
    energy += (cells.origin + anchor).square_() / prior
    log_peak = -0.5 * energy + (rows.constant - 0.5 * (rows.far2 + _LOG_2PI + prior.log()))[:, None]
    return _integrate(log_peak, anchor, tilt, deviation.expand_as(anchor), lower, upper)


def _integrate(
    log_peak: Tensor, anchor: Tensor, tilt: Tensor, deviation: Tensor, lower: Tensor, upper: Tensor
) -> Pairs:
    """Integrals over the cells, for the pairs that can matter.

    With w the width of the cell in units of the deviation and c = |tilt|, the integral k0 lies between
    `exp(-1.5) min(w, 1 / (1 + c))` and `sqrt(2 pi) = exp(0.92)`: bounds that need no special function.
    """
    log_height = log_peak + deviation.log()
    kept: Any = slice(None)
    if anchor.numel() > _FEW:
        least = torch.minimum(upper - lower, (1.0 + tilt.abs()).reciprocal_()).log_().add_(log_height)
        matters = (log_height > least.amax(1, keepdim=True) - (_NEGLIGIBLE + 2.42)).view(-1).nonzero()[:, 0]
        if 2 * len(matters) < anchor.numel():  # with most pairs kept, picking them out costs more than it saves
            kept = matters

    def pick(part: Tensor) -> Tensor:
        return part.reshape(-1)[kept]

    log_k0, local_mean, local_variance = anchored_moments(pick(lower), pick(upper), pick(tilt))
    scale = pick(deviation)
    integrals = anchor.new_zeros(3, anchor.numel())
    integrals[0] = -torch.inf
    # an overflowed pair, NaN, counts as infinitely improbable: a row of nothing else is refused by its -inf
    integrals[0, kept] = (pick(log_height) + log_k0).nan_to_num_(-torch.inf, torch.inf, -torch.inf)
    integrals[1, kept] = torch.addcmul(pick(anchor), scale, local_mean)
    integrals[2, kept] = scale.square() * local_variance
    return Pairs(log_peak, anchor, tilt, deviation, lower, upper, *integrals.view(3, *anchor.shape))


def chunks(model: Model, x: Tensor) -> Iterator[tuple[Tensor, Rows]]:
    """Index and reduced rows of chunks that fit in cache: complete rows first, then rows with missing entries."""
    incomplete = torch.isnan(x).any(1)
    width, cells = min(model.weight.shape), len(model.cells.origin)
    complete = (~incomplete).nonzero()[:, 0]
    if len(complete):
        head = reduce_head(model)
        for index in complete.split(max(1, _CHUNK // (cells * width))):
            yield index, reduce_complete(model, x if len(index) == len(x) else x[index], head)
    if len(complete) == len(x):
        return
    whitening = width + (model.output_dim if model.noise.ndim == 2 else 1)
    per_row = max(cells * width, model.output_dim * whitening)
    for index in incomplete.nonzero()[:, 0].split(max(1, 4 * _CHUNK // per_row)):
        yield index, reduce_incomplete(model, x[index])


def log_marginal(model: Model, x: Tensor) -> Tensor:
    """`log p(x)` of each row, `(N,)` (EM-DGN, eq. 5)."""
    out = x.new_empty(len(x))
    for index, rows in chunks(model, x):
        out[index] = torch.logsumexp(pair_up(model, rows).log_joint, 1)
    return out
