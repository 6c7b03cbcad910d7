r"""Differences between places on the line, counted along it from the limits of its cells, the *knots*.

Cells that meet at a knot have it in common. Where a row is a million deviations off, its posterior is a millionth wide,
and two anchors at one knot must be the same place and have the same image, to the last digit. So a place is a knot and
the way from it, and the images of the knots are sums of steps `a (upper - lower)` that start at the knot nearest to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.inference.model import Intervals


class Knots:
    """The limits of the cells of a line.

    Args:
        region: the cells, relative to their origins.
        origin: `(R,)`.
    """

    def __init__(self, region: Intervals, origin: Tensor) -> None:
        self.region, self.origin = region, origin
        # a line of one cell has none: its origin serves
        self.z = (origin + region.lower)[1:] if len(origin) > 1 else origin
        self._first = int(self.z.abs().argmin())

    def places(self, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """A knot for each anchor `(n, R)`, and the way from there: exactly 0 for anchors at an end of their cell."""
        cells = len(self.origin)
        if cells == 1:
            return torch.zeros_like(anchor, dtype=torch.long), anchor
        at_upper = anchor >= self.region.upper
        at_upper[:, 0] = True  # the first cell has no lower end
        knot = torch.arange(cells, device=anchor.device) - 1 + at_upper.long()
        return knot, anchor - torch.where(at_upper, self.region.upper, self.region.lower)

    def offsets(self, anchor: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """How far anchors `(n, R)` lie from that of the row's best cell `(n, 1)` in z, `(n, R)`, and its z `(n, 1)`."""
        knot, way = self.places(anchor)
        at, way_at = self.z[knot.gather(1, best)], way.gather(1, best)
        return (self.z[knot] - at) + (way - way_at), at + way_at

    def images(self, direction: Tensor) -> Tensor:
        """Images of the knots less that of the knot nearest to 0, for directions `(R, K)` or `(n, R, K)`."""
        if len(self.origin) == 1:
            return torch.zeros_like(direction)
        width = (self.region.upper - self.region.lower)[1:-1]
        steps = direction[..., 1:-1, :] * width[:, None]
        up, down = steps[..., self._first :, :], steps[..., : self._first, :]
        return torch.cat(
            (-down.flip(-2).cumsum(-2).flip(-2), torch.zeros_like(direction[..., :1, :]), up.cumsum(-2)), -2
        )

    def paths(self, speed: Tensor, anchor: Tensor) -> Tensor:
        """How long the ways of images to anchors `(n, R)` are, from a common point on, for the speeds `(R,)`."""
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
