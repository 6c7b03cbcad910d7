r"""`bracket`: bounds on `log p(x)` for a latent of any dimension, certified, or with a stated confidence.

Certified bounds come from boxes of latents (`cube`), from Gaussian envelopes of sets with given signs of units
(`branches`), and from Gaussians below the joint density (`minorants`); draws of the envelopes then tell with a stated
confidence what is left between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from girih._arrays import Rows
from girih._options import real, whole
from girih._progress import Progress
from girih._shown import Shown
from girih.bounds.branches import Branches
from girih.bounds.cube import Cube
from girih.bounds.minorants import log_mass_below
from girih.bounds.units import unit_count
from girih.covariance import Covariance
from girih.errors import ParameterError
from girih.inference import DGN
from girih.networks import Trace
from girih.sampling.annealing import estimates, modes_of
from girih.sampling.modes import find_modes
from girih.sampling.row import Model

_METHODS = "auto", "all", "boxes", "envelopes"
_EXACT = 3  # latents up to which the whole sum over cells is known
_PATIENT = 2.0  # seconds from which on there is time for annealing
_UNITS = 1024  # beyond which an envelope takes minutes
_LOOSE = 0.5  # nats by which boxes may be low, so that nothing else is tried
_REACH = 14.0  # nats by which envelopes may hold more, so that some of a million draws are kept


@dataclass(frozen=True, repr=False)
class Bracket(Shown):
    """A bracket holds `log p(x)` of each row between bounds; everything is in nats and `(N,)`.

    Attributes:
        lower: what log p(x) is at least, certified.
        upper: what it is at most, certified.
        estimate: of log p(x), within the bounds: by importance sampling from the modes that were found, by annealing
            where too few draws carry that and there are two seconds for a row, or by draws of the envelopes where these
            say more; exact for S <= 3.
        standard_error: of the estimate, about; infinite where fewer than thirty draws, or eight chains, carry it. It
            does not know of modes that nothing has met, unless it is that of the envelopes.
        boxes: how many boxes the bounds are sums over; 0 where the value is exact.
        confidence_lower: what it is at least, with the confidence that was asked for: the chance that it is wrong is no
            more than half of what that leaves. It is `lower` where no draws were kept.
        confidence_upper: what it is at most, in the same way.
        envelopes: how many envelopes the upper bound is a sum over; 0 where there are none.
    """

    lower: Tensor
    upper: Tensor
    estimate: Tensor
    standard_error: Tensor
    boxes: Tensor
    confidence_lower: Tensor
    confidence_upper: Tensor
    envelopes: Tensor

    @property
    def gap(self) -> Tensor:
        """`upper - lower`, `(N,)`."""
        return self.upper - self.lower

    @property
    def confidence_gap(self) -> Tensor:
        """`confidence_upper - confidence_lower`, `(N,)`."""
        return self.confidence_upper - self.confidence_lower

    def _facts(self) -> Mapping[str, str]:
        gap, confident = self.gap, self.confidence_gap
        return {
            "rows": f"{len(gap):,}",
            "mean lower": f"{float(self.lower.mean()):.4f}",
            "mean upper": f"{float(self.upper.mean()):.4f}",
            "median gap": f"{float(gap.median()):.2g} nats",
            "largest gap": f"{float(gap.max()):.2g} nats",
            "median confidence gap": f"{float(confident.median()):.2g} nats",
            "largest confidence gap": f"{float(confident.max()):.2g} nats",
        }


def bracket(
    net: nn.Module | Trace,
    x: Rows,
    noise: Covariance | Rows | float | None = None,
    prior: Rows | float | None = None,
    *,
    budget: float = 60.0,
    tol: float = 1e-3,
    confidence: float = 0.99,
    method: Literal["auto", "all", "boxes", "envelopes"] = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Bracket:
    r"""You get bounds on `log p(x)`, `z ~ N(0, prior)`, `x = g(z) + N(0, noise)`, for any latent dimension.

    Use it to know how far an ELBO, an importance-weighted bound or an annealed estimate of a decoder can be off, where
    S > 3 rules out the exact sum over cells. For S <= 3 that sum is returned, with its bounds on what was left out and
    on rounding.

    `lower` and `upper` are certified. `confidence_lower` and `confidence_upper` are binomial (Clopper-Pearson) bounds
    from draws of Gaussian envelopes that are certified to lie above the joint density everywhere: whatever modes the
    posterior has, log p(x) of a row is between them with the confidence that you ask for. Time goes evenly to the rows,
    and certified bounds only get closer with more of it: see docs/bracket.md for what is reached.

    Args:
        net: the generator g, any module that `girih.trace` takes, or a `girih.DGN`, which brings noise and prior.
        x: rows `(N, D)`; NaN where an entry is missing, which is marginalised.
        noise: variance of the noise: a number, `(D,)`, `(D, D)` or a `girih.Covariance`; 1 by default.
        prior: covariance of z; the identity by default.
        budget: seconds for all rows together.
        tol: a row ends early when its certified bounds are so close, nats.
        confidence: of `confidence_lower` and `confidence_upper`, for each row.
        method: "all" for boxes and envelopes at S <= 3, too, as a check; "boxes" or "envelopes" for one of them.
        seed: of the search for modes, of the estimate and of the draws.
        progress: show a bar.

    Returns:
        A `Bracket`: `lower`, `upper`, `confidence_lower`, `confidence_upper`, `estimate` and `standard_error`, `(N,)`
        each.

    Raises:
        ParameterError: an option is out of its domain; "envelopes" of a network with more than 1,024 units.
        GirihError: the errors of `girih.trace` and `girih.DGN` on generator, noise, prior and rows.

    Source:
        girih's own: linear relaxations as in the verification of networks (DeepZ), with Gaussian integrals over boxes;
        quadratic relaxations with Gaussian integrals over everything.

    Example:
        >>> import girih, torch
        >>> net = girih.mlp([8, 16, 12], seed=0)
        >>> b = girih.bracket(net, torch.zeros(1, 12), noise=0.1, budget=2.0)
        >>> bool(b.lower <= b.confidence_lower <= b.estimate), bool(b.estimate <= b.confidence_upper <= b.upper)
        (True, True)
    """
    seconds, close, seed = real(budget, "budget"), real(tol, "tol", positive=False), whole(seed, "seed", 0)
    if method not in _METHODS:
        raise ParameterError(f"method must be one of {', '.join(map(repr, _METHODS))}; got {method!r}")
    if not 0.5 <= real(confidence, "confidence") < 1.0:
        raise ParameterError(f"confidence must be at least 0.5 and below 1; got {confidence}")
    model = Model.of(net, noise, prior, "bounds are certified")
    rows = model.rows(x)
    if model.trace.latent_dim <= _EXACT and method == "auto":
        return _exact(net if isinstance(net, DGN) else model.dgn, rows)
    if method == "envelopes" and unit_count(model.trace) > _UNITS:
        raise ParameterError(
            f"envelopes are for networks with at most {_UNITS:,} units; this one has {unit_count(model.trace):,}; "
            "take method='boxes'"
        )
    plan = _Plan(method, close, confidence)
    bar = Progress("bracket", len(rows), show=progress)
    found, end = [], time.perf_counter() + seconds
    try:
        with torch.no_grad():
            for i, one in enumerate(rows):
                left = (end - time.perf_counter()) / (len(rows) - i)
                found.append(_of_row(model, one, left, plan, seed + i))
                bar.show(i + 1, f"gap {found[-1].confidence_upper - found[-1].confidence_lower:.3g} nats")
    finally:
        bar.close()
    columns = dict(zip(_Found._fields, torch.tensor(found, dtype=torch.float64).unbind(1), strict=True))
    return Bracket(**columns | {name: columns[name].long() for name in ("boxes", "envelopes")})


class _Plan(NamedTuple):
    """What is done for each row."""

    method: str
    close: float  # nats
    confidence: float


class _Found(NamedTuple):
    """The fields of a `Bracket`, of one row."""

    lower: float
    upper: float
    estimate: float
    standard_error: float
    boxes: int
    confidence_lower: float
    confidence_upper: float
    envelopes: int


def _exact(dgn: DGN, x: Tensor) -> Bracket:
    with torch.no_grad():
        found = dgn().evidence(x)
    lower = found.log_prob - found.rounding
    upper = found.log_prob + found.left_out.log1p() + found.rounding
    nothing = torch.zeros_like(lower)
    none = nothing.long()
    return Bracket(lower, upper, found.log_prob, nothing, none, lower, upper, none)


def _of_row(model: Model, x: Tensor, seconds: float, plan: _Plan, seed: int) -> _Found:
    """What is known of a row.

    A quarter of the time is for boxes, which may do; then one for envelopes, a sixth for what lies below, and half of
    the rest for draws of envelopes.
    """
    begun, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    first, second, third, end = (begun + part * seconds / 12.0 for part in (3.0, 6.0, 8.0, 12.0))
    reduced, *numbers = model.reduced(x[None])
    common, rounding = map(float, numbers)
    patient = seconds > _PATIENT
    modes = (modes_of if patient else find_modes)(reduced, generator)
    about = estimates(reduced, modes, generator, patient)
    guess, error, row = float(about.value), float(about.error), reduced.take(0)
    cube = None if plan.method == "envelopes" else Cube(row, modes[0])
    _halve(cube, plan.close, end if plan.method == "boxes" else first)
    lower, upper, sets, interval = -math.inf, 0.0, 0, (-math.inf, math.inf)
    if plan.method != "boxes" and (cube is None or cube.gap > plan.close) and unit_count(model.trace) <= _UNITS:
        tree = Branches(row, second)
        while time.perf_counter() < second and tree.split(second, guess):
            pass
        upper, sets = tree.upper, tree.count
        if cube is not None and cube.lower < guess - _LOOSE:
            lower = log_mass_below(tree.units, tree.y, modes[0].place[0], modes[0].slope[0], generator, third)
        if upper < guess + _REACH:
            kept = tree.draws(0.5 * (end - time.perf_counter()), generator)
            interval = kept.interval(plan.confidence)
            missed = not interval[0] <= guess <= interval[1]  # modes, where the draws found some
            if kept.error < error or (missed and math.isfinite(kept.error)):
                guess, error = kept.value, kept.error
        _halve(cube, plan.close, end)
    if cube is not None:
        lower, upper = max(lower, cube.lower), min(upper, cube.upper)
    lower, upper = lower - rounding, upper + rounding
    low, high = (min(max(part, lower), upper) for part in (interval[0] - rounding, interval[1] + rounding))
    guess, boxes = min(max(guess, low), high), 0 if cube is None else len(cube.boxes.lower)
    lower, upper, guess, low, high = (common + part for part in (lower, upper, guess, low, high))
    return _Found(lower, upper, guess, error, boxes, low, high, sets)


def _halve(cube: Cube | None, close: float, end: float) -> None:
    """Halve boxes until bounds are close, or it is time."""
    while cube is not None and cube.gap > close and time.perf_counter() < end and cube.can_go_on:
        cube.halve()
