"""A search for the nearest member of a family: what it is asked, what it finds, the descents that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Search(NamedTuple):
    """A `Search` says how `girih.vae.gap` looks for the member of a family that is nearest to a posterior."""

    draws: int  # of the posterior, among the starts
    seed: int
    tolerance: float  # of cubature, nats
    full: bool = False  # Gaussians with any covariance
    continuous: bool = False  # densities on [-1, 1] in place of levels


class Nearest(NamedTuple):
    """`Nearest` is what a search found, nats per row."""

    nll: Tensor  # (N,) -log p(x)
    own: Tensor  # (N,) KL(q(z | x) || p(z | x)) of the encoder's q
    least: Tensor  # (N,) that of the best q found
    error: Tensor  # (N,) of any of these
    best: tuple[Tensor, ...]  # parameters of the best q, rows first, as `Family.member` takes them
    annealed: Tensor | None = None  # (N,) where all is sampled: whether nll is from annealing; None where it is exact


# Checked rows `(N, D)` to what is found about them.
Searcher: TypeAlias = Callable[[Tensor], Nearest]


# Points `(b, d)` and the numbers of their problems `(b,)`, to values `(b,)` and gradients `(b, d)`.
Objective: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_SLOPE = 1e-4  # the share of the promised decrease that a step must reach (Armijo)
_ROUNDING = 1e-14  # a rise by less than this, relative, cannot be told from none
_SHORTEST = 1e-10


class Minimum(NamedTuple):
    """A `Minimum` says where the descents ended."""

    point: Tensor  # (B, d)
    value: Tensor  # (B,)
    slope: Tensor  # (B,) the largest entry of the gradient there


def minimise(
    objective: Objective,
    start: Tensor,
    tolerance: float = 1e-7,
    gain: float = 0.0,
    evaluations: int = 300,
    reach: float = 1.0,
) -> Minimum:
    r"""Descend from every start at once by BFGS; a local minimum of each of B problems with d unknowns.

        x <- x - t H g,    H the inverse Hessian that the gradients have shown so far

    A step that lowers the value too little is shortened. The value never rises, so what comes back is never worse
    than the start. Problems that have converged are left out of the evaluations that follow.

    Args:
        objective: values and gradients of some of the problems; NaN or infinite where a point is out of range.
        start: `(B, d)`.
        tolerance: the largest entry of a gradient that counts as 0.
        gain: a step that lowers the value by less gains nothing; three of them in a row end a descent.
        evaluations: the most of them for each problem.
        reach: the longest step in any coordinate.

    Source:
        Nocedal & Wright, Numerical Optimization (2006), chapter 6.

    Example:
        >>> import torch
        >>> from girih.vae.nearest.search import minimise
        >>> goal = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
        >>> def bowl(x, which):
        ...     away = x - goal[which]
        ...     return away.square().sum(1), 2.0 * away
        >>> bool((minimise(bowl, torch.zeros_like(goal)).point - goal).abs().max() < 1e-6)
        True
    """
    count, unknowns = start.shape
    eye = torch.eye(unknowns, dtype=start.dtype, device=start.device)
    x, every = start.clone(), torch.arange(count, device=start.device)
    f, g = objective(x, every)
    inverse = eye.repeat(count, 1, 1)
    fresh = torch.ones(count, dtype=torch.bool, device=start.device)  # the matrix knows nothing yet
    p, t = _bounded(-g, reach), torch.ones_like(f)
    still = torch.zeros_like(every)  # accepted steps in a row that gained nothing
    usable = torch.isfinite(f) & torch.isfinite(g).all(1)
    active = every[usable & (g.abs().amax(1) > tolerance)]
    for _ in range(evaluations):
        if not len(active):
            break
        at = x[active] + t[active, None] * p[active]
        value, gradient = objective(at, active)
        slope = (g[active] * p[active]).sum(1)
        rounding = _ROUNDING * (1.0 + f[active].abs())
        good = value <= f[active] + _SLOPE * t[active] * slope
        flat = (value <= f[active] + rounding) & (gradient.abs().amax(1) < g[active].abs().amax(1))
        good = (good | flat) & torch.isfinite(value) & torch.isfinite(gradient).all(1)
        # what was refused: the minimum of the parabola through two values and a slope
        no = active[~good]
        if len(no):
            drop = value[~good] - f[no] - t[no] * slope[~good]
            best = -0.5 * t[no] * slope[~good] / drop
            t[no] = t[no] * torch.where(torch.isfinite(best), best, 0.1).clamp(0.1, 0.5)
            short = t[no] * p[no].abs().amax(1) < _SHORTEST
            restart = no[short & ~fresh[no]]
            inverse[restart], fresh[restart], t[restart] = eye, True, 1.0
            p[restart] = _bounded(-g[restart], reach)
            still[no[short & fresh[no] & ~torch.isin(no, restart)]] = 3
        yes = active[good]
        if len(yes):
            step, change = at[good] - x[yes], gradient[good] - g[yes]
            gained = f[yes] - value[good] > gain + rounding[good]
            still[yes] = torch.where(gained, 0, still[yes] + 1)
            x[yes], f[yes], g[yes], t[yes] = at[good], value[good], gradient[good], 1.0
            inverse[yes], fresh[yes] = _updated(inverse[yes], fresh[yes], step, change)
            p[yes] = -(inverse[yes] @ g[yes, :, None])[:, :, 0]
            wrong = yes[(p[yes] * g[yes]).sum(1) >= 0.0]
            inverse[wrong], fresh[wrong], p[wrong] = eye, True, -g[wrong]
            p[yes] = _bounded(p[yes], reach)
        active = active[(g[active].abs().amax(1) > tolerance) & (still[active] < 3)]
    return Minimum(x, torch.where(usable, f, torch.inf), g.abs().amax(1))


def _updated(inverse: Tensor, fresh: Tensor, step: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """BFGS updates of inverse Hessians `(b, d, d)`; none where the curvature along the step is not positive."""
    curvature = (step * change).sum(1)
    convex = curvature > 1e-10 * step.norm(dim=1) * change.norm(dim=1)
    safe = torch.where(convex, curvature, 1.0)
    scale = safe / change.square().sum(1).clamp(min=torch.finfo(step.dtype).tiny)
    inverse = torch.where((fresh & convex)[:, None, None], scale[:, None, None] * inverse, inverse)
    moved = (inverse @ change[:, :, None])[:, :, 0]
    cross = step[:, :, None] * moved[:, None, :]
    weight = (1.0 + (change * moved).sum(1) / safe) / safe
    new = inverse - (cross + cross.mT) / safe[:, None, None]
    new = new + weight[:, None, None] * step[:, :, None] * step[:, None, :]
    return torch.where(convex[:, None, None], new, inverse), fresh & ~convex


def _bounded(step: Tensor, reach: float) -> Tensor:
    """Steps shortened to at most `reach` in any coordinate."""
    longest = step.abs().amax(1, keepdim=True)
    return step * (reach / longest.clamp(min=reach))
