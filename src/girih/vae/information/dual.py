"""From moments to natural parameters where there is no closed form: Newton's method on the convex dual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# Moments are met to this, absolutely: the statistics have absolute values of at most 1.
TOLERANCE = 1e-10

# Or to this, where only I is wanted: its error is of second order.
LOOSE = 1e-6

# What Newton's method aims at; it stops there, or where rounding stops it.
_AIM = 1e-12
_ITERATIONS = 500

# Natural parameters beyond which a row is given up: deviations of a thousandth of the interval.
_LARGEST = 1e7


class Potential(NamedTuple):
    """F and its first two derivatives at some c."""

    value: Tensor  # (B,)
    gradient: Tensor  # (B, M)
    hessian: Tensor  # (B, M, M)


Evaluate = Callable[[Tensor], Potential]


def maximise(evaluate: Evaluate, moments: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    r"""The c that maximises `<c, eta> - F(c)`, which is where `F'(c) = eta`: damped Newton steps, row by row.

    A step solves `(F'' + damping) step = eta - F'(c)`. It is taken if the objective rises or the gap
    `|eta - F'(c)|` falls (near the end rounding hides the rise); the damping falls after it, and rises otherwise.

    Args:
        evaluate: F, F' and F'' of any number of rows `(B, M)`.
        moments: eta, `(B, M)`.
        start: c to start from, `(B, M)`.

    Returns:
        c `(B, M)`, and the gap that is left in the worst of the M moments, `(B,)`.
    """
    c = start.clone()
    now = evaluate(c)
    value, gap, hessian = (c * moments).sum(-1) - now.value, moments - now.gradient, now.hessian
    damping, rows = torch.zeros_like(value), torch.arange(len(c), device=c.device)
    for _ in range(_ITERATIONS):
        size = c[rows].abs().amax(-1)
        rows = rows[(gap[rows].abs().amax(-1) > _AIM) & (damping[rows] < 1e6) & (size < _LARGEST)]
        if not len(rows):
            break
        step, solved = _step(hessian[rows], gap[rows], damping[rows])
        largest = 10.0 + c[rows].abs().amax(-1, keepdim=True)  # c may double, so that F stays within its quadrature
        step = step * (largest / step.abs().amax(-1, keepdim=True)).clamp_max(1.0)
        trial = torch.where(solved[:, None], c[rows] + step, c[rows])
        then = evaluate(trial)
        trial_value = (trial * moments[rows]).sum(-1) - then.value
        trial_gap = moments[rows] - then.gradient
        better = (trial_value > value[rows]) | (trial_gap.norm(dim=-1) < gap[rows].norm(dim=-1))
        better &= solved & torch.isfinite(trial_value)
        taken = rows[better]
        c[taken], value[taken], gap[taken] = trial[better], trial_value[better], trial_gap[better]
        hessian[taken] = then.hessian[better]
        lower, higher = damping[rows] * 0.1, (damping[rows] * 10.0).clamp_min(1e-12)
        damping[rows] = torch.where(better, torch.where(lower < 1e-13, 0.0, lower), higher)
    # one more step costs one evaluation, and where F'' is nearly singular it fixes the last digits of c
    step, solved = _step(hessian, gap, torch.zeros_like(value))
    last = c + torch.where(solved[:, None] & (step.abs() < 1e-3), step, 0.0)
    last_gap = moments - evaluate(last).gradient
    better = (last_gap.norm(dim=-1) <= gap.norm(dim=-1))[:, None]
    return torch.where(better, last, c), torch.where(better, last_gap, gap).abs().amax(-1)


def _step(hessian: Tensor, gap: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    eye = torch.eye(gap.shape[-1], dtype=gap.dtype, device=gap.device)
    factor, info = torch.linalg.cholesky_ex(hessian + damping[:, None, None] * eye)
    solved = info == 0
    factor = torch.where(solved[:, None, None], factor, eye)
    return torch.cholesky_solve(gap[..., None], factor)[..., 0], solved


class Dual(torch.autograd.Function):
    """`eta -> (I(eta), c(eta))`, differentiable as often as F: `dI = <c, d eta>`, `dc = F''(c)^-1 d eta`.

    Takes the moments `(B, M)`, a function that finds c, and the evaluation of F.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, moments: Tensor, find: Callable[[Tensor], Tensor], evaluate: Evaluate
    ) -> tuple[Tensor, Tensor]:
        """Find c, and from it I."""
        natural = find(moments)
        information = (natural * moments).sum(-1) - evaluate(natural).value
        ctx.evaluate = evaluate  # type: ignore[attr-defined]
        ctx.save_for_backward(natural)
        ctx.set_materialize_grads(False)
        return information, natural

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        """The two derivatives above."""
        by_information, by_natural = gradients
        (natural,) = ctx.saved_tensors
        total = None
        if by_information is not None:
            total = by_information[:, None] * natural
        if by_natural is not None:
            hessian = ctx.evaluate(natural).hessian
            solved = torch.linalg.solve(hessian, by_natural[..., None])[..., 0]
            total = solved if total is None else total + solved
        return total, None, None
