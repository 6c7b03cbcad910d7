r"""Gaussians below the joint density of a row, about a mode: lower bounds on p(x).

Units that hardly ever bend near the mode get the sign that they have there; R are the latents at which all of these are
right, in the network where they are given. With E, r and d as in `envelopes`, multipliers q_i of the other units,
negative enough for f' to be concave in r, and m_i, n_i >= 0,

    E <= max_r f'(u, r) on R,    f' = E + sum_i q_i r_i d_i + m_i r_i + n_i d_i,

since the true r are among those of the maximum, and the sum is not negative there: f' is f with q, -m and -n, which are
all negative. The maximum is a quadratic of u, its `exp(-f')` a Gaussian of precision P and of the mass

    F = c^T H^-1 c / 2 - k - log det P / 2,    P = H_uu - H_ur H_rr^-1 H_ru,

and p(x) is at least what it has on R: all of it, less what it has where a given sign is wrong. The sets on which a unit
is the first one that is wrong are sets with given signs, and envelopes bound what a Gaussian has on each; it takes the
place of E. Adam's method makes F large; any multipliers give a bound.

Rounding is as in `envelopes`, with the spread of r at its maximum in the place of H^-1.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from girih.bounds.envelopes import Errors, Forms, envelopes, whole_space
from girih.bounds.units import Units, values_of
from girih.sampling.row import root_of

_DRAWS = 20_000
_SHARES = 0.03, 0.01, 0.001  # of draws beyond a bend, below which a unit gets its sign; one try each
_STEPS, _RATE = 400, 0.05
_TRIALS = 30
_BARRIER, _NEWTON = 2e-3, 40
_NOTHING = -14.0  # nats: less need not be known of what is wrong


def log_mass_below(
    units: Units, y: Tensor, mode: Tensor, slope: Tensor, generator: torch.Generator, end: float
) -> float:
    """What log p(x) is at least, less what the row has in common; nats, -inf where nothing was found by the time `end`.

    Args:
        units: with the head of the row.
        y: the row `(K,)`.
        mode: white latents `(S,)`.
        slope: of the outputs there, `(K, S)`.
        generator: of draws that choose units.
        end: the time at which to give up.
    """
    mean, root, best = mode, root_of(slope), -math.inf
    for share in _SHARES:
        u = mean + torch.randn(_DRAWS, units.dim, dtype=torch.float64, generator=generator) @ torch.linalg.inv(root)
        on = (values_of(units, u)[1] > 0.0).double().mean(0)
        sign = torch.where(on < share, -1, torch.where(on > 1.0 - share, 1, 0)).to(torch.int8)
        value, below = _of_signs(units, y, sign, end)
        if below is None or time.perf_counter() > end:  # what was cut short is left out: more time is never worse
            break
        best = max(best, value)
        mean, root = below.mean[: units.dim], below.root
    return best


class _Below(NamedTuple):
    """A Gaussian of u below the joint density, where given signs are right; r at its maximum is `ahead + follow u`."""

    log_mass: Tensor  # () F
    half: Tensor  # (S,) the mean of u is `-root^-T half`
    root: Tensor  # (S, S) of its precision, lower
    inner: Tensor  # (m, m) of the curvature in r, lower
    ahead: Tensor  # (m,)
    follow: Tensor  # (m, S)

    @property
    def mean(self) -> Tensor:
        """The mean of v, `(d,)`, r at its maximum."""
        u = -torch.linalg.solve_triangular(self.root.mT, self.half[:, None], upper=True)[:, 0]
        return torch.cat((u, self.ahead + self.follow @ u))

    @property
    def precision(self) -> Tensor:
        """That of u, `(S, S)`."""
        return self.root @ self.root.mT

    @property
    def spread(self) -> Tensor:
        """A bound on traces of inverses, `()`."""
        of_u, of_r = (torch.cholesky_inverse(root).trace() for root in (self.root, self.inner))
        return of_u * (1.0 + self.follow.square().sum()) + of_r


def _below(forms: Forms, multipliers: Tensor) -> _Below | None:
    """The Gaussian for multipliers `(3, 1, m)` of f; nothing where f is not concave in r, or not integrable."""
    S, (H, c, k) = forms.dim, (part[0] for part in forms.quadratic(multipliers))
    inner, wrong = torch.linalg.cholesky_ex(-H[S:, S:])
    if wrong:
        return None
    follow = torch.cholesky_solve(H[S:, :S], inner)
    ahead = torch.cholesky_solve(c[S:, None], inner)[:, 0]
    root, wrong = torch.linalg.cholesky_ex(H[:S, :S] + H[:S, S:] @ follow)
    if wrong:
        return None
    lean = c[:S] + follow.mT @ c[S:]
    half = torch.linalg.solve_triangular(root, lean[:, None], upper=False)[:, 0]
    log_mass = 0.5 * half.square().sum() - k - 0.5 * (c[S:] @ ahead) - root.diagonal().log().sum()
    return _Below(log_mass, half, root, inner, ahead, follow)


def _of_free(forms: Forms, free: Tensor) -> Forms:
    """The same without the units whose signs are given, which nothing depends on."""
    kept = torch.cat((torch.arange(forms.dim), forms.dim + free))
    r, d = forms.r[:, free][:, :, kept], forms.d[:, free][:, :, kept]
    return Forms(r, forms.r0[:, free], d, forms.d0[:, free], forms.H[:, kept][:, :, kept], forms.c[:, kept], forms.k)


def _of_signs(units: Units, y: Tensor, sign: Tensor, end: float) -> tuple[float, _Below | None]:
    """The bound where units have these signs `(n,)`, 0 for those that bend."""
    free = (sign == 0).nonzero()[:, 0]
    forms = _of_free(Forms.of(units, y, sign[None]), free)
    multipliers = _fitted(forms, len(units.blocks) - units.depth[free], end)
    below = None if multipliers is None else _below(forms, multipliers)
    if multipliers is None or below is None:
        return -math.inf, None
    every = torch.zeros(3, 1, len(sign), dtype=torch.float64)
    every[:, :, free] = multipliers
    room = Errors.of(units, y, sign[None], every).room(below.log_mass[None], below.spread[None], below.mean[None])
    log_wrong = _log_wrong(units, sign, below, end)
    right = math.log1p(-math.exp(log_wrong)) if log_wrong < 0.0 else -math.inf
    return float(below.log_mass - room) + right, below


def _fitted(forms: Forms, height: Tensor, end: float) -> Tensor | None:
    """Multipliers with a large F, all negative; blocks of units are the higher, the earlier they are."""
    size = forms.H[:, forms.dim :, forms.dim :].abs().sum(1).clamp(min=1e-2).log()
    nothing = torch.full_like(size, -2.0)
    for k in range(_TRIALS):  # later units couple to earlier ones, which must be the more concave
        x = torch.stack((size + 0.1 * k + 0.3 * k * height, nothing, nothing))
        if _below(forms, -x.exp()) is not None:
            break
    else:
        return None
    x.requires_grad_()
    optimiser = torch.optim.Adam([x], lr=_RATE)
    best, highest, last = x.detach().clone(), -math.inf, x.detach().clone()
    for _ in range(_STEPS if len(height) else 0):
        if time.perf_counter() > end:
            break
        with torch.enable_grad():
            found = _below(forms, -x.exp())
            if found is not None:
                optimiser.zero_grad()
                (-found.log_mass).backward()
        if found is None:  # out of the domain: from the last point, with shorter steps
            with torch.no_grad():
                x.copy_(last)
            optimiser.param_groups[0]["lr"] *= 0.5
            continue
        last = x.detach().clone()
        if found.log_mass.item() > highest:
            best, highest = last, found.log_mass.item()
        optimiser.step()
    return -best.exp()


def _log_wrong(units: Units, sign: Tensor, below: _Below, end: float) -> float:
    """The log of the share of the Gaussian at most where a given sign is wrong."""
    S, given = units.dim, sign.nonzero()[:, 0]
    if not len(given):
        return -math.inf
    spread = torch.linalg.inv(below.root).mT  # u = mean + spread s
    weight = units.weight.clone()
    weight[:, :S] = units.weight[:, :S] @ spread
    bias = units.bias + units.weight[:, :S] @ below.mean[:S]
    white = Units(weight, bias, units.blocks, weight.new_zeros(0, weight.shape[1]), weight.new_zeros(0))
    nothing = weight.new_zeros(0)
    start = whole_space(white, nothing, end)
    rows = sign.expand(len(given), -1).clone()
    each = torch.arange(len(sign))
    rows[each > given[:, None]] = 0
    rows[torch.arange(len(given)), given] *= -1
    multipliers = start.multipliers.expand(-1, len(given), -1).clone()
    found = envelopes(white, nothing, rows, multipliers, end, barrier=_BARRIER, steps=_NEWTON, enough=_NOTHING)
    return float(torch.logsumexp(found.log_mass, 0))
