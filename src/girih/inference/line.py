r"""Every (row, cell) pair of a one-dimensional latent space as a truncated Gaussian.

In the reduced coordinates of `girih.inference.model` the hidden features of a cell run along a line
`T h = f + a t`, `t = z - origin`, and a row y is seen as its distance from that line and its position along it:

    log p(x, z) = const - (far^2 + off^2 + (p - s t)^2 + z^2 / prior) / 2

with `far` the distance of x from the range of W, `off` the distance from the line inside that range, `p` the
position along it and `s = |a|`. With c the centre of this Gaussian in t, `sd` its deviation and `u = (t - c) / sd`,

    (p - s t)^2 + z^2 / prior = (p + s origin)^2 / (1 + s^2 prior) + u^2,

so each term is the square of a difference, never a difference of squares, and steep cells and small noise lose no
digits. This is EM-DGN Theorem 1, rearranged. What a row has in common on all cells never enters the comparison of
cells: their peaks are counted from the highest one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from girih.gaussian.interval import anchored_moments
from girih.inference.knots import Knots, distant_peaks
from girih.inference.model import Intervals, Model, Rows

_LOG_2PI = math.log(2.0 * math.pi)

# Pairs below exp(-46) = 1e-20 of their row's mass cannot change the last bit of a sum over cells.
NEGLIGIBLE = 46.0

# Up to so many pairs, finding out which ones matter takes longer than integrating them all.
_FEW = 4096

# Squared distances above this are compared by differences: the last digits of this one are worth 1e-13 nats.
_DISTANT = 1e3


class Pairs(NamedTuple):
    """Truncated Gaussians of n rows on R cells: with `u = (t - centre) / deviation`, anchored in the cell.

    The integrals are there for the pairs that can matter; the others have less than exp(-46) of their row's mass.
    Logarithms are counted from those of the row's highest peak.
    """

    log_highest: Tensor  # (n,) log p(x, z) at the highest anchor
    log_peak: Tensor  # (n, R) log p(x, z) at the anchor, the largest value on the cell
    anchor: Tensor  # (n, R) point of the cell nearest to the centre, relative to the origin
    tilt: Tensor  # (n, R) u at the anchor: 0 when the centre is inside the cell
    deviation: Tensor  # (n, R)
    log_joint: Tensor  # (n, R) log p(x, z in cell), -inf where negligible
    mean: Tensor  # (n, R) E[t | x, cell], 0 where negligible
    variance: Tensor  # (n, R) Var[z | x, cell], 0 where negligible
    local_mean: Tensor  # (n, R) the same of u about the anchor
    local_variance: Tensor  # (n, R)


def pair_up(model: Model, rows: Rows) -> Pairs:
    """The truncated Gaussian of every row on every cell."""
    cells, prior = model.cells, model.prior[0, 0]
    region, origin = cells.region, cells.origin[:, 0]
    assert isinstance(region, Intervals)
    start = cells.value @ rows.reduced.mT  # (R, K) or (n, R, K)
    direction = cells.slope[:, :, 0] @ rows.reduced.mT
    speed2 = direction.square().sum(-1)
    speed = speed2.sqrt()
    unit = direction / torch.where(speed > 0, speed, 1.0)[..., None]
    off = rows.y[:, None, :] - start
    position = (off * unit).sum(-1)
    off = torch.addcmul(off, position[..., None], unit, value=-1.0)

    precision = speed2 + 1.0 / prior
    deviation = precision.rsqrt()
    centre = (speed * position - origin / prior) / precision
    anchor = centre.clamp(region.lower, region.upper)
    tilt = (anchor - centre) / deviation
    energy = torch.linalg.vector_norm(off, dim=-1).square_()
    energy += torch.addcmul(position, speed, origin).square_() / (1.0 + prior * speed2)
    energy += tilt.square()
    least = energy.amin(1)
    if least.isnan().any():  # a pair that overflowed counts as infinitely far
        energy = energy.nan_to_num(torch.inf, torch.inf)
        least = energy.amin(1)
    log_peak = 0.5 * (least[:, None] - energy)
    distant = (least > _DISTANT).nonzero()[:, 0]
    if len(distant):
        of = (start, direction) if direction.ndim == 2 else (start[distant], direction[distant])
        knots = Knots(region, origin)
        log_peak[distant] = distant_peaks(knots, rows.y[distant], *of, prior, anchor[distant], energy[distant])
    log_highest = rows.constant - 0.5 * (rows.far2 + least + _LOG_2PI + prior.log())
    return _integrate(log_highest, log_peak, anchor, tilt, deviation.expand_as(anchor), region)


def _integrate(
    log_highest: Tensor, log_peak: Tensor, anchor: Tensor, tilt: Tensor, deviation: Tensor, region: Intervals
) -> Pairs:
    """Integrals over the cells, for the pairs that can matter.

    With w the width of the cell in units of the deviation and c = |tilt|, the integral k0 lies between
    `exp(-1.5) min(w, 1 / (1 + c))` and `sqrt(2 pi) = exp(0.92)`: bounds that need no special function.
    """
    log_height = log_peak + deviation.log()
    kept: Any = slice(None)
    if anchor.numel() > _FEW:
        width = (region.upper - region.lower) / deviation
        least = torch.minimum(width, (1.0 + tilt.abs()).reciprocal_()).log_().add_(log_height)
        matters = (log_height > least.amax(1, keepdim=True) - (NEGLIGIBLE + 2.42)).view(-1).nonzero()[:, 0]
        if 2 * len(matters) < anchor.numel():  # with most pairs kept, picking them out costs more than it saves
            kept = matters

    def pick(part: Tensor) -> Tensor:
        return part.reshape(-1)[kept]

    scale, at = pick(deviation), pick(anchor)
    below, above = ((pick(end.expand_as(anchor)) - at) / scale for end in region)
    log_k0, local_mean, local_variance = anchored_moments(below, above, pick(tilt))
    integrals = anchor.new_zeros(5, anchor.numel())
    integrals[0] = -torch.inf
    # an overflowed pair, NaN, counts as infinitely improbable: a row of nothing else is refused by its -inf
    integrals[0, kept] = (pick(log_height) + log_k0).nan_to_num_(-torch.inf, torch.inf, -torch.inf)
    integrals[1, kept] = torch.addcmul(at, scale, local_mean)
    integrals[2, kept] = scale.square() * local_variance
    integrals[3, kept], integrals[4, kept] = local_mean, local_variance
    integrals = integrals.view(5, *anchor.shape)
    return Pairs(log_highest, log_peak, anchor, tilt, deviation, *integrals)


def left_out_bound(log_p: Tensor, cells: int) -> Tensor:
    """A bound on the share of each p(x) that the negligible pairs of a row hold."""
    return torch.full_like(log_p, cells * math.exp(-NEGLIGIBLE))
