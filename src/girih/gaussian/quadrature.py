r"""Adaptive Gauss-Kronrod integration of many log-concave functions at once, in log space.

A *panel* is an interval of integration; panels that belong to one owner add up to its integral. Each panel is
integrated by the 31 Kronrod nodes, and by the 15 Gauss nodes among them. Where the two differ by more than 1e-11 of
the owner's integral the panel is cut in two; also where the integrand at its ends is not what the nodes let expect,
since both rules miss a layer at an end that is thinner than the distance to the first node. The Kronrod rule is exact
to degree 46 and the Gauss rule to 29, so an accepted panel's own error is far smaller than the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih._devices import Constant

LOG_TOLERANCE = math.log(1e-11)
ROUNDS = 64
PANELS = 64

# Nodes and weights of the rule on [-1, 1] for nodes >= 0; every second node, from 0 on, is a Gauss node.
_HALF_RULE = np.array(
    [
        [0.0, 0.10133000701479154902, 0.20257824192556127288],
        [0.10114206691871749903, 0.10076984552387559504, 0.0],
        [0.2011940939974345223, 0.099173598721791959332, 0.19843148532711157646],
        [0.29918000715316881217, 0.096642726983623678505, 0.0],
        [0.3941513470775633699, 0.093126598170825321225, 0.18616100001556221103],
        [0.48508186364023968069, 0.088564443056211770647, 0.0],
        [0.57097217260853884754, 0.083080502823133021038, 0.16626920581699393355],
        [0.65099674129741697053, 0.076849680757720378894, 0.0],
        [0.72441773136017004742, 0.06985412131872825871, 0.13957067792615431445],
        [0.79041850144246593297, 0.062009567800670640285, 0.0],
        [0.8482065834104272162, 0.053481524690928087265, 0.10715922046717193501],
        [0.89726453234408190088, 0.044589751324764876608, 0.0],
        [0.93727339240070590431, 0.035346360791375846222, 0.070366047488108124709],
        [0.96773907567913913426, 0.025460847326715320187, 0.0],
        [0.98799251802048542849, 0.015007947329316122538, 0.030753241996117268355],
        [0.99800229869339706029, 0.0053774798729233489878, 0.0],
    ]
)
_RULE = torch.as_tensor(np.concatenate((_HALF_RULE[:0:-1] * [-1.0, 1.0, 1.0], _HALF_RULE)))
# The ends of a panel come first and last, with weight 0: they only show what hides beyond the outermost nodes.
_RULE = torch.nn.functional.pad(_RULE, (0, 0, 1, 1))
_RULE[0, 0], _RULE[-1, 0] = -1.0, 1.0
NODES, WEIGHTS, BOTH = (Constant(part.clone()) for part in (_RULE[:, 0], _RULE[:, 1], _RULE[:, 1:]))


def _extrapolation() -> torch.Tensor:
    """Weights `(33, 2)` of the values at the inner nodes in the interpolating polynomial at the two ends."""
    x = _RULE[1:-1, 0].numpy()
    scale = np.prod(2.0 * (x[:, None] - x + np.eye(len(x))), 1) / 2.0  # barycentric
    out = np.zeros((len(x) + 2, 2))
    for column, end in enumerate((-1.0, 1.0)):
        terms = 1.0 / (scale * (end - x))
        out[1:-1, column] = terms / terms.sum()
    return torch.as_tensor(out)


ENDS = Constant(_extrapolation())
ROOM = 1.0 + float(_RULE[1, 0])


class Accepted(NamedTuple):
    """These are the `m` panels on which an integrand is resolved, in no order."""

    panel: Tensor  # (m,) the panel, of those given, that this one is part of
    middle: Tensor  # (m,)
    half: Tensor  # (m,) half the width
    call: Tensor  # (m,) its place among all panels at which the integrand was called, in order


def log_sum(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Logarithm of the sum of `exp(values)` of each owner, `(count,)`; -inf where there are none."""
    peak = values.new_full((count,), -torch.inf).scatter_reduce_(0, owner, values, "amax")
    safe = peak.clamp(min=torch.finfo(values.dtype).min)
    total = values.new_zeros(count).index_add_(0, owner, (values - safe[owner]).exp())
    return safe + total.log()


def integrate(
    lower: Tensor, upper: Tensor, owner: Tensor, count: int, log_f: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Accepted]:
    """Log-integrals `(count,)` of `exp(log_f)` over the panels of each owner, and the panels that were accepted.

    Args:
        lower: lower ends of the panels, `(m,)`.
        upper: upper ends, finite.
        owner: `(m,)`, values in `[0, count)`.
        count: the number of owners.
        log_f: called with the indices `(k,)` of panels and with points `(k, 33)` in them, `NODES`.
    """
    nodes, weights, both, ends = (part.on(lower.device) for part in (NODES, WEIGHTS, BOTH, ENDS))
    panel = torch.arange(len(owner), device=owner.device)
    middle, half = 0.5 * (lower + upper), 0.5 * (upper - lower)
    most = torch.bincount(owner, minlength=count) + PANELS
    done: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    calls = 0
    log_done = lower.new_full((count,), -torch.inf)
    for turn in range(ROUNDS):
        values = log_f(panel, torch.addcmul(middle[:, None], half[:, None], nodes))
        values = torch.where(torch.isnan(values) & (weights == 0.0), -torch.inf, values)  # an empty slice at an end
        peak = values.amax(1).clamp(min=torch.finfo(values.dtype).min)
        f = (values - peak[:, None]).exp()
        kronrod, gauss = (f @ both).unbind(1)
        hidden = ROOM * ((f @ ends)[:, 0] - f[:, 0]).abs() + ROOM * ((f @ ends)[:, 1] - f[:, -1]).abs()
        scale = peak + half.log()
        log_panel = scale + kronrod.log()
        total = torch.logaddexp(log_done, log_sum(log_panel, owner[panel], count))
        error = torch.maximum((kronrod - gauss).abs(), hidden)
        coarse = scale + error.log() > LOG_TOLERANCE + total[owner[panel]]
        coarse &= half > 1e-15 * middle.abs()
        # an analytic integrand never needs so many panels at once: what is left is rounding noise
        coarse &= torch.bincount(owner[panel[coarse]], minlength=count)[owner[panel]] <= most[owner[panel]]
        if turn == ROUNDS - 1:
            coarse[:] = False
        fine = ~coarse
        done.append((panel[fine], middle[fine], half[fine], calls + fine.nonzero()[:, 0]))
        calls += len(panel)
        log_done = torch.logaddexp(log_done, log_sum(log_panel[fine], owner[panel[fine]], count))
        if not coarse.any():
            break
        panel, middle, half = panel[coarse].repeat(2), middle[coarse], 0.5 * half[coarse]
        middle, half = torch.cat((middle - half, middle + half)), half.repeat(2)
    return log_done, Accepted(*(torch.cat(parts) for parts in zip(*done, strict=True)))
