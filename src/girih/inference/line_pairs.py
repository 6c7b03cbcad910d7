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
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from girih.gaussian.interval import anchored_moments
from girih.gaussian.prepared import compiled_form, serve
from girih.inference.model import Model, Rows

_LOG_2PI = math.log(2.0 * math.pi)

# Pairs below exp(-46) = 1e-20 of their row's mass cannot change the last bit of a sum over cells.
NEGLIGIBLE = 46.0

# The bounds of an integral that decide about it are so many nats apart.
_SLACK = 2.42

# Up to so many pairs, finding out which ones matter takes longer than integrating them all.
_FEW = 4096

# Squared distances above this are compared by differences: the last digits of this one are worth 1e-13 nats.
_DISTANT = 1e3

# Differences between places on the line are counted along it from the limits of its cells, the *knots*. Cells that meet
# at a knot have it in common. Where a row is a million deviations off, its posterior is a millionth wide, and two
# anchors at one knot must be the same place and have the same image, to the last digit. So a place is a knot and the
# way from it, and the images of the knots are sums of steps `a (upper - lower)` that start at the knot nearest to 0.


class Knots:
    """Knots are the limits of the cells of a line.

    Args:
        lower: the lower ends of the cells, relative to their origins, `(R,)`.
        upper: the upper ends.
        origin: `(R,)`.
    """

    def __init__(self, lower: Tensor, upper: Tensor, origin: Tensor) -> None:
        self.lower, self.upper, self.origin = lower, upper, origin
        # a line of one cell has none: its origin serves
        self.z = (origin + lower)[1:] if len(origin) > 1 else origin
        self._first = int(self.z.abs().argmin())

    def places(self, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """A knot for each anchor `(n, R)`, and the way from there: exactly 0 for anchors at knots of their cells."""
        cells = len(self.origin)
        if cells == 1:
            return torch.zeros_like(anchor, dtype=torch.long), anchor
        at_upper = anchor >= self.upper
        at_upper[:, 0], at_upper[:, -1] = True, False  # outer ends, of a box, are no knots
        knot = torch.arange(cells, device=anchor.device) - 1 + at_upper.long()
        return knot, anchor - torch.where(at_upper, self.upper, self.lower)

    def offsets(self, anchor: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """Give the distances in z of anchors `(n, R)` from that of the row's best cell `(n, 1)`, and its z `(n, 1)`."""
        knot, way = self.places(anchor)
        at, way_at = self.z[knot.gather(1, best)], way.gather(1, best)
        return (self.z[knot] - at) + (way - way_at), at + way_at

    def images(self, direction: Tensor) -> Tensor:
        """Images of the knots less that of the knot nearest to 0, for directions `(R, K)` or `(n, R, K)`."""
        if len(self.origin) == 1:
            return torch.zeros_like(direction)
        width = (self.upper - self.lower)[1:-1]
        steps = direction[..., 1:-1, :] * width[:, None]
        up, down = steps[..., self._first :, :], steps[..., : self._first, :]
        return torch.cat(
            (-down.flip(-2).cumsum(-2).flip(-2), torch.zeros_like(direction[..., :1, :]), up.cumsum(-2)), -2
        )

    def paths(self, speed: Tensor, anchor: Tensor) -> Tensor:
        """The ways of images to anchors `(n, R)` are so long, from a common point on, for the speeds `(R,)`."""
        knot, way = self.places(anchor)
        return self.images(speed[:, None])[:, 0][knot] + way * speed


def distant_peaks(
    knots: Knots, y: Tensor, start: Tensor, direction: Tensor, prior: Tensor, anchor: Tensor, energy: Tensor
) -> Tensor:
    r"""Log-densities at the anchors `(n, R)` of rows far off, counted from the highest one.

    With `g` the image of an anchor, `e = g - g_best`, `r = y - g_best` and `z` its place,

        |y - g|^2 + z^2 / prior = |r|^2 + z_best^2 / prior - e (2 r - e) + (z - z_best) (z + z_best) / prior,

    so their common part cancels before it is rounded. Where the residual is the shorter one of g and r, the sums of
    squares `energy (n, R)` have the smaller errors, and differences of these are returned.

    Args:
        knots: of the line.
        y: the rows, `(n, K)`.
        start: images of the origins, `(R, K)` or `(n, R, K)`.
        direction: of the cells, in the same shape.
        prior: the variance of z.
        anchor: relative to the origins.
        energy: twice the negative log-densities.
    """
    least, best = energy.min(1, keepdim=True)
    knot, way = knots.places(anchor)
    image = knots.images(direction)
    if direction.ndim == 2:
        image, at_best = image[knot], (start + direction * anchor[:, :, None])
    else:
        image, at_best = image.gather(1, knot[:, :, None].expand_as(direction)), start + direction * anchor[:, :, None]
    image = torch.addcmul(image, way[:, :, None], direction)
    pick = best[:, :, None].expand(-1, -1, y.shape[1])
    own, residual = image.gather(1, pick), y[:, None, :] - at_best.gather(1, pick)
    step = image - own
    offset, z = knots.offsets(anchor, best)
    by_steps = (step * (2.0 * residual - step)).sum(2) - offset * (2.0 * z + offset) / prior
    shorter = torch.linalg.vector_norm(residual, dim=2) * torch.linalg.vector_norm(own, dim=2) < least
    return 0.5 * torch.where(shorter, by_steps, least - energy)


class Pairs(NamedTuple):
    """Pairs of n rows and R cells are truncated Gaussians: with `u = (t - centre) / deviation`, anchored in the cell.

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


def pair_up(model: Model, rows: Rows, knots: Knots) -> Pairs:
    """The truncated Gaussian of every row on every cell."""
    cells, prior = model.cells, model.prior[0, 0]
    start = cells.value @ rows.reduced.mT  # (R, K) or (n, R, K)
    direction = cells.slope[:, :, 0] @ rows.reduced.mT
    deviation = (direction.square().sum(-1) + 1.0 / prior).rsqrt()
    fast = _fast(rows.y, start)
    if fast is None or direction.ndim == 3:
        anchor, tilt, energy = _peaks(rows.y, start, direction, prior, knots)
    else:
        anchor, tilt, energy = _compiled_peaks(fast, rows.y, start, direction, prior, knots)
    least = energy.amin(1)
    log_peak = 0.5 * (least[:, None] - energy)
    distant = (least > _DISTANT).nonzero()[:, 0]
    if len(distant):
        of = (start, direction) if direction.ndim == 2 else (start[distant], direction[distant])
        log_peak[distant] = distant_peaks(knots, rows.y[distant], *of, prior, anchor[distant], energy[distant])
    log_highest = rows.constant - 0.5 * (rows.far2 + least + _LOG_2PI + prior.log())
    deviation = deviation.expand_as(anchor)
    integrals = (_integrals if fast is None else partial(_compiled_integrals, fast))(
        log_peak, anchor, tilt, deviation, knots
    )
    return Pairs(log_highest, log_peak, anchor, tilt, deviation, *integrals)


def _fast(*tensors: Tensor) -> ModuleType | None:
    """The module of compiled code, where it takes such tensors."""
    return compiled_form("girih.inference.line_kernels") if all(map(serve, tensors)) else None


def _peaks(y: Tensor, start: Tensor, direction: Tensor, prior: Tensor, knots: Knots) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, tilts and energies of all pairs, `(n, R)` each."""
    speed2 = direction.square().sum(-1)
    speed = speed2.sqrt()
    unit = direction / torch.where(speed > 0, speed, 1.0)[..., None]
    off = y[:, None, :] - start
    position = (off * unit).sum(-1)
    off = torch.addcmul(off, position[..., None], unit, value=-1.0)

    precision = speed2 + 1.0 / prior
    centre = (speed * position - knots.origin / prior) / precision
    anchor = centre.clamp(knots.lower, knots.upper)
    tilt = (anchor - centre) / precision.rsqrt()
    energy = torch.linalg.vector_norm(off, dim=-1).square_()
    energy += torch.addcmul(position, speed, knots.origin).square_() / (1.0 + prior * speed2)
    energy += tilt.square()
    if energy.amin(1).isnan().any():  # a pair that overflowed counts as infinitely far
        energy = energy.nan_to_num(torch.inf, torch.inf)
    return anchor, tilt, energy


def _compiled_peaks(
    fast: ModuleType, y: Tensor, start: Tensor, direction: Tensor, prior: Tensor, knots: Knots
) -> tuple[Tensor, Tensor, Tensor]:
    """`_peaks` by compiled code, for rows without holes."""
    speed = direction.square().sum(-1).sqrt()
    unit = direction / torch.where(speed > 0, speed, 1.0)[:, None]
    lines = tuple(part.contiguous().numpy() for part in (start.mT, unit.mT, speed))
    ends = tuple(part.contiguous().numpy() for part in (knots.lower, knots.upper, knots.origin))
    found = fast.peaks(y.contiguous().numpy(), lines, ends, float(prior))
    anchor, tilt, energy = map(torch.from_numpy, found)
    return anchor, tilt, energy


def _compiled_integrals(
    fast: ModuleType, log_peak: Tensor, anchor: Tensor, tilt: Tensor, deviation: Tensor, knots: Knots
) -> Tensor:
    """`_integrals` by compiled code."""
    out = anchor.new_empty(5, *anchor.shape)
    place = tuple(part.contiguous().numpy() for part in (anchor, tilt, deviation))
    ends = knots.lower.contiguous().numpy(), knots.upper.contiguous().numpy()
    fast.integrate(log_peak.contiguous().numpy(), place, ends, NEGLIGIBLE + _SLACK, out.numpy())
    return out


def _integrals(log_peak: Tensor, anchor: Tensor, tilt: Tensor, deviation: Tensor, knots: Knots) -> Tensor:
    """`(5, n, R)`: the last five of `Pairs`, for the pairs that can matter.

    With w the width of the cell in units of the deviation and c = |tilt|, the integral k0 lies between
    `exp(-1.5) min(w, 1 / (1 + c))` and `sqrt(2 pi) = exp(0.92)`: bounds that need no special function.
    """
    log_height = log_peak + deviation.log()
    kept: Tensor | slice = slice(None)
    if anchor.numel() > _FEW:
        width = (knots.upper - knots.lower) / deviation
        least = torch.minimum(width, (1.0 + tilt.abs()).reciprocal_()).log_().add_(log_height)
        matters = (log_height > least.amax(1, keepdim=True) - (NEGLIGIBLE + _SLACK)).view(-1).nonzero()[:, 0]
        if 2 * len(matters) < anchor.numel():  # with most pairs kept, picking them out costs more than it saves
            kept = matters

    def pick(part: Tensor) -> Tensor:
        return part.reshape(-1)[kept]

    scale, at = pick(deviation), pick(anchor)
    below, above = ((pick(end.expand_as(anchor)) - at) / scale for end in (knots.lower, knots.upper))
    log_k0, local_mean, local_variance = anchored_moments(below, above, pick(tilt))
    integrals = anchor.new_zeros(5, anchor.numel())
    integrals[0] = -torch.inf
    # an overflowed pair, NaN, counts as infinitely improbable: a row of nothing else is refused by its -inf
    integrals[0, kept] = (pick(log_height) + log_k0).nan_to_num_(-torch.inf, torch.inf, -torch.inf)
    integrals[1, kept] = torch.addcmul(at, scale, local_mean)
    integrals[2, kept] = scale.square() * local_variance
    integrals[3, kept], integrals[4, kept] = local_mean, local_variance
    return integrals.view(5, *anchor.shape)


def left_out_bound(log_p: Tensor, cells: int) -> Tensor:
    """A bound on the share of each p(x) that the negligible pairs of a row hold."""
    return torch.full_like(log_p, cells * math.exp(-NEGLIGIBLE))
