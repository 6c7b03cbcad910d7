r"""From the units of the data to those of a mixture, column by column, and back.

    y = (T(x) - centre) / spread,    T(x) = x  or  T(x) = asinh((x - origin) / unit)

The second is a logarithm for x far above the origin, on both sides of it for heavy tails, and is defined everywhere, so
that a fresh value below all earlier ones has a density too. Its inverse is a difference of exponentials, whose moments
under a Gaussian are closed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GAIN = 0.05  # nats a value by which a bent scale must be better for one Gaussian
_UNITS = (1.0, 0.3, 0.1)


@dataclass(frozen=True)
class Scales:
    """The units of D columns.

    Attributes:
        bent: `(D,)` booleans, whether T is the asinh.
        origin: `(D,)`.
        unit: `(D,)`.
        centre: `(D,)`.
        spread: `(D,)`.
    """

    bent: Tensor
    origin: Tensor
    unit: Tensor
    centre: Tensor
    spread: Tensor

    @staticmethod
    def learn(x: Tensor, weight: Tensor, width: Tensor, bend: bool) -> Scales:
        """The scales of rows `(N, D)`, NaN where missing, so that what is observed has mean 0 and variance 1.

        Args:
            x: the rows.
            weight: `(N,)`.
            width: `(D,)`, the rounding width of each column; no unit is below it.
            bend: whether columns may be bent; each is where that makes a Gaussian likelier.
        """
        D = x.shape[1]
        bent = torch.zeros(D, dtype=torch.bool)
        origin, unit, centre, spread = x.new_zeros(D), x.new_ones(D), x.new_zeros(D), x.new_ones(D)
        for j in range(D):
            seen = ~x[:, j].isnan()
            v, w = x[seen, j], weight[seen]
            if not len(v) or float(w.sum()) == 0.0:
                continue
            centre[j], spread[j] = _moments(v, w)
            if bend and len(v) >= 10:
                best = -float(spread[j].log()) + _GAIN
                for at, one in _candidates(v, float(width[j])):
                    y = ((v - at) / one).asinh()
                    m, s = _moments(y, w)
                    slope = -torch.hypot(v - at, v.new_tensor(one)).log()
                    gain = float((w * slope).sum() / w.sum() - s.log())
                    if gain > best:
                        best, bent[j], origin[j], unit[j], centre[j], spread[j] = gain, True, at, one, m, s
        return Scales(bent, origin, unit, centre, spread)

    def forward(self, x: Tensor) -> Tensor:
        """`y (..., D)`; NaN stays."""
        y = torch.where(self.bent, ((x - self.origin) / self.unit).asinh(), x)
        return (y - self.centre) / self.spread

    def inverse(self, y: Tensor) -> Tensor:
        """`x (..., D)`."""
        t = self.centre + self.spread * y
        return torch.where(self.bent, self.origin + self.unit * t.sinh(), t)

    def log_slope(self, x: Tensor) -> Tensor:
        """`log dy/dx (..., D)`, NaN where x is."""
        bent = -torch.hypot(x - self.origin, self.unit.expand_as(x)).log()
        return torch.where(self.bent, bent, 0.0 * x) - self.spread.log()


def _moments(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    mean = (w * v).sum() / w.sum()
    size = (v - mean).abs().max()
    if float(size) == 0.0:
        return mean, torch.ones_like(mean)
    squares = ((v - mean) / size).square()  # of numbers near 1: those of 1e-170 or 1e170 are no doubles
    return mean, size * ((w * squares).sum() / w.sum()).sqrt()


def _candidates(v: Tensor, width: float) -> list[tuple[float, float]]:
    """Origins and units to try: from the lower end, the upper end, and from the middle."""
    low, middle, high = (float(q) for q in torch.quantile(v, v.new_tensor([0.25, 0.5, 0.75])))
    least, most = float(v.min()), float(v.max())
    size = max(high - low, 0.1 * float(v.std()), width)
    start = 0.0 if least >= 0.0 else least
    out = [(middle, size * f) for f in (1.0, 0.5)]
    for end, distance in ((start, middle - start), (least, middle - least), (most, most - middle)):
        reach = max(distance, size)
        out += [(end, max(reach * f, width)) for f in _UNITS]
    return [(at, one) for at, one in out if one > 0.0]
