r"""`bracket`: certified lower and upper bounds on `log p(x)` for a latent of any dimension.

The latent space is cut into boxes about a mode of the posterior, in coordinates along which it is nearly independent.
Each box adds between its lower and its upper bound (`boxes`); what lies outside all of them holds less than its prior
mass at the highest density there can be. The boxes with the largest gaps are halved, again and again, until time is up:
the sums of the bounds are certified at every moment, and the best of them so far are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from girih._arrays import Rows
from girih._options import real, whole
from girih._progress import Progress
from girih._shown import Shown
from girih.bounds.boxes import Target, log_outside
from girih.covariance import Covariance
from girih.errors import ParameterError
from girih.inference import DGN
from girih.networks import Trace
from girih.sampling.annealing import estimates, modes_of
from girih.sampling.modes import Modes, find_modes
from girih.sampling.row import Model, Row

_EXACT = 3  # latents up to which the whole sum over cells is known
_BATCH = 512  # boxes that are halved at once
_MOST = 2**20  # boxes of a row
_WORTH = 5.0  # nats: boxes whose gaps are this far below the largest one wait
_PATIENT = 2.0  # seconds from which on there is time for annealing
_SHELLS = 64.0, 32.0, 16.0, 8.0, 5.0, 3.0, 2.0, 1.0, 0.5  # deviations of the posterior
_BEYOND = 40.0  # nats below the mode that is left to what is outside all boxes


@dataclass(frozen=True, repr=False)
class Bracket(Shown):
    """A bracket holds `log p(x)` of each row between two certified bounds; everything is in nats and `(N,)`.

    Attributes:
        lower: what log p(x) is at least.
        upper: what it is at most.
        estimate: of log p(x), within the bounds: by importance sampling from the modes that were found, or by annealing
            where too few draws carry that and there are two seconds for a row; exact for S <= 3.
        standard_error: of the estimate, about; infinite where fewer than thirty draws, or eight chains, carry it. It
            does not know of modes that nothing has met.
        boxes: how many boxes the bounds are sums over; 0 where the value is exact.
    """

    lower: Tensor
    upper: Tensor
    estimate: Tensor
    standard_error: Tensor
    boxes: Tensor

    @property
    def gap(self) -> Tensor:
        """`upper - lower`, `(N,)`."""
        return self.upper - self.lower

    def _facts(self) -> Mapping[str, str]:
        gap = self.gap
        return {
            "rows": f"{len(gap):,}",
            "mean lower": f"{float(self.lower.mean()):.4f}",
            "mean upper": f"{float(self.upper.mean()):.4f}",
            "median gap": f"{float(gap.median()):.2g} nats",
            "largest gap": f"{float(gap.max()):.2g} nats",
        }


def bracket(
    net: nn.Module | Trace,
    x: Rows,
    noise: Covariance | Rows | float | None = None,
    prior: Rows | float | None = None,
    *,
    budget: float = 60.0,
    tol: float = 1e-3,
    method: Literal["auto", "boxes"] = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Bracket:
    r"""You get certified bounds on `log p(x)`, `z ~ N(0, prior)`, `x = g(z) + N(0, noise)`, for any latent dimension.

    Use it to know how far an ELBO, an importance-weighted bound or an annealed estimate of a decoder can be off, where
    S > 3 rules out the exact sum over cells. For S <= 3 that sum is returned, with its bounds on what was left out and
    on rounding.

    Time goes evenly to the rows, and bounds only get closer with more of it. The upper one costs much more than the
    lower one, since every place where mass might be has to be ruled out, and the boxes of one size are as many as a
    power of S: see docs/bracket.md for what is reached.

    Args:
        net: the generator g, any module that `girih.trace` takes, or a `girih.DGN`, which brings noise and prior.
        x: rows `(N, D)`; NaN where an entry is missing, which is marginalised.
        noise: variance of the noise: a number, `(D,)`, `(D, D)` or a `girih.Covariance`; 1 by default.
        prior: covariance of z; the identity by default.
        budget: seconds for all rows together.
        tol: a row ends early when its bounds are so close, nats.
        method: "boxes" for bounds by boxes at S <= 3, too, as a check.
        seed: of the search for modes and of the estimate.
        progress: show a bar.

    Returns:
        A `Bracket`: `lower`, `upper`, `estimate` and `standard_error`, `(N,)` each.

    Raises:
        ParameterError: an option is out of its domain.
        GirihError: the errors of `girih.trace` and `girih.DGN` on generator, noise, prior and rows.

    Source:
        girih's own: linear relaxations as in the verification of networks (DeepZ), with Gaussian integrals over boxes.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([4, 8, 6], seed=0)
        >>> b = girih.bracket(net, torch.zeros(1, 6), noise=0.5, budget=1.0)
        >>> bool(b.lower <= b.estimate), bool(b.estimate <= b.upper)
        (True, True)
    """
    seconds, close, seed = real(budget, "budget"), real(tol, "tol", positive=False), whole(seed, "seed", 0)
    if method not in ("auto", "boxes"):
        raise ParameterError(f"method must be 'auto' or 'boxes'; got {method!r}")
    model = Model.of(net, noise, prior, "bounds are certified")
    rows = model.rows(x)
    if model.trace.latent_dim <= _EXACT and method == "auto":
        return _exact(net if isinstance(net, DGN) else model.dgn, rows)
    bar = Progress("bracket", len(rows), show=progress)
    found, end = [], time.perf_counter() + seconds
    try:
        with torch.no_grad():
            for i, one in enumerate(rows):
                left = (end - time.perf_counter()) / (len(rows) - i)
                found.append(_of_row(model, one, left, close, seed + i))
                bar.show(i + 1, f"gap {found[-1][1] - found[-1][0]:.3g} nats")
    finally:
        bar.close()
    lower, upper, guess, error, boxes = torch.tensor(found, dtype=torch.float64).unbind(1)
    return Bracket(lower, upper, guess, error, boxes.long())


def _exact(dgn: DGN, x: Tensor) -> Bracket:
    with torch.no_grad():
        found = dgn().evidence(x)
    lower = found.log_prob - found.rounding
    upper = found.log_prob + found.left_out.log1p() + found.rounding
    nothing = torch.zeros_like(lower)
    return Bracket(lower, upper, found.log_prob, nothing, nothing.long())


def _of_row(model: Model, x: Tensor, seconds: float, close: float, seed: int) -> tuple[float, float, float, float, int]:
    """Lower and upper bound, estimate with its standard error, and the number of boxes."""
    begun, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    row, *numbers = model.reduced(x[None])
    patient, (common, rounding) = seconds > _PATIENT, map(float, numbers)
    modes = (modes_of if patient else find_modes)(row, generator)
    found = estimates(row, modes, generator, patient)
    guess, error = float(found.value), float(found.error)
    search = _Search(row.take(0), modes[0])
    while search.gap > close and time.perf_counter() - begun < seconds and search.can_go_on:
        search.halve()
    guess = min(max(guess, search.lower), search.upper)
    lower, upper = common + search.lower - rounding, common + search.upper + rounding
    return lower, upper, common + guess, error, len(search.boxes.lower)


class _Search:
    """The boxes of a row, and the best bounds so far, less what the row has in common."""

    def __init__(self, row: Row, modes: Modes) -> None:
        S, K = len(row.factor), len(row.y)
        mode, slope = modes.place[0], modes.slope[0]
        left, size, right = torch.linalg.svd(slope, full_matrices=True)
        size = torch.nn.functional.pad(size, (0, S - len(size)))
        padding = (0, 0, 0, max(0, S - K))  # coordinates without outputs, so that each side has one
        head = torch.nn.functional.pad(left.mT @ row.head, padding)
        y = torch.nn.functional.pad(left.mT @ row.y, padding[2:])
        self._target = Target(row.trace, row.factor @ right.mT, head, y)
        self._centre, self._deviation = right @ mode, (1.0 + size.square()).rsqrt()
        level = float(modes.energy[0]) - float(self._deviation.log().sum())
        radius = math.sqrt(2.0 * (level + _BEYOND))
        radius = max(radius, float(self._centre.abs().max()) + 1.0, 8.0)
        self._outside = log_outside(radius, S)
        self.boxes = self._target.bound(*self._shells(radius))
        self.lower, self.upper = -math.inf, math.inf
        self._sum()

    def _shells(self, radius: float) -> tuple[Tensor, Tensor]:
        """The cube, cut into shells about the mode, of which the innermost is a box."""
        low, high = torch.full_like(self._centre, -radius), torch.full_like(self._centre, radius)
        lows, highs = [], []
        for shell, j, side in product(_SHELLS, range(len(low)), (-1.0, 1.0)):
            cut = self._centre[j] + side * shell * self._deviation[j]
            if bool((low[j] < cut) & (cut < high[j])):
                lows.append(low.clone())
                highs.append(high.clone())
                outer, inner = (highs[-1], low) if side < 0.0 else (lows[-1], high)
                outer[j] = inner[j] = cut
        return torch.stack((*lows, low)), torch.stack((*highs, high))

    @property
    def gap(self) -> float:
        """Between the bounds, nats."""
        return self.upper - self.lower

    @property
    def can_go_on(self) -> bool:
        """Whether there is room for more boxes."""
        return len(self.boxes.lower) + _BATCH <= _MOST

    def _sum(self) -> None:
        lower = float(torch.logsumexp(self.boxes.lower, 0))
        upper = float(torch.logaddexp(torch.logsumexp(self.boxes.upper, 0), torch.tensor(self._outside).double()))
        self.lower, self.upper = max(self.lower, lower - 1e-12), min(self.upper, upper + 1e-12, 0.0)

    def halve(self) -> None:
        """Halve the boxes with the largest gaps, and those that seem to lack most below, which are not the same."""
        boxes = self.boxes
        gap = _less(boxes.upper, boxes.lower)
        lacks = _less(torch.minimum(boxes.about, boxes.upper), boxes.lower)
        chosen = torch.cat([_largest(gap), _largest(lacks)]).unique()
        some, each = boxes.take(chosen), torch.arange(len(chosen))
        low, high = torch.cat((some.low, some.low)), torch.cat((some.high, some.high))
        middle = 0.5 * (some.low + some.high)[each, some.side]
        high[each, some.side], low[each + len(each), some.side] = middle, middle
        kept = torch.ones(len(boxes.lower), dtype=torch.bool)
        kept[chosen] = False
        self.boxes = boxes.take(kept).joined(self._target.bound(low, high))
        self._sum()


def _less(a: Tensor, b: Tensor) -> Tensor:
    """`log(exp(a) - exp(b))`; -inf where that is not positive."""
    value = a + torch.log1p(-(b - a).exp().clamp(max=1.0))
    return value.nan_to_num(-math.inf, math.inf, -math.inf)  # a box without width holds nothing


def _largest(values: Tensor) -> Tensor:
    """Places of the largest values, half a batch, but for those far below the first."""
    found = values.topk(min(_BATCH // 2, len(values)))
    return found.indices[found.values > found.values[0] - _WORTH]
