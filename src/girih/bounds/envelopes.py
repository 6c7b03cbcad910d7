r"""Gaussian envelopes of a posterior: upper bounds on what all latents with given signs of units add to p(x).

With `v = (u, r)`, white latents and units, a row has `p(x, u) = exp(-E) / (2 pi)^(S/2)`, less what all latents have in
common, and

    E = |y - A v|^2 / 2 + |u|^2 / 2,    r_i = max(a_i, 0),    a_i affine in v.

A unit has `r_i >= 0`, `d_i = r_i - a_i >= 0` and `r_i d_i = 0`. Where its sign is given, one of r_i and d_i is 0, which
makes r_i affine in the others, and the other one says where that is. For any multipliers q_i, and m_i, n_i >= 0,

    E >= min_r f(u, r),    f = E + sum_i q_i r_i d_i - m_i r_i - n_i d_i:

the true r are among those of the minimum, and the sum is not positive there. Now f is a quadratic
`v^T H v / 2 + c^T v + k`. Where H is positive definite, `exp(-min_r f)` is a Gaussian of u, and its integral is

    F = log int exp(-min_r f) (2 pi)^(-S/2) du = c^T H^-1 c / 2 - k - (log det H - log det H_rr) / 2.

F is convex: f is affine in the multipliers, so `max_r -f` is convex, and so is the log of an integral of exponentials.
Newton's method makes it small, with `-t log` of multipliers and of det H as barriers. Any point inside gives a bound.

Where an inequality `w u + b >= 0` holds on the whole set, only that half of the Gaussian counts, whatever multiplier f
has for it: both are true there. The half with the least mass is taken.

A sign adds at least what it would with the multipliers as they are: on `d_i = 0` the Gaussian has

    F - d^2 / (2 D H^-1 D^T) - log(D H^-1 D^T / D_r H_rr^-1 D_r^T) / 2,    d = D v + d_0 at its mean,

which tells beforehand what a unit is worth, for both of its signs.

Rounding: computed coefficients differ from true ones by less than rho times the sums of absolute values behind them, so
f by less than `e (|v|^2 + 1)` with a known e, and F by less than with `H - 2 e` for H. Where `e |H^-1| <= 1/8`
that is at most `2 e (tr H^-1 + tr H_rr^-1 + (1 + |v|)^2)` at the mean v. Cholesky's method is such a change of H, too.

Source:
    girih's own. Bounds on a network by `r_i d_i = 0` and multipliers: Raghunathan, Steinhardt and Liang, Semidefinite
    relaxations for certifying robustness to adversarial examples (2018).
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from girih.bounds.units import Units

_BARRIER = 1e-3  # t in the end: F is then within about t a multiplier of the least
_PATH = (1.0, 0.1, 0.01, _BARRIER)  # from afar; from further where F is larger than its barriers
_STEPS = 8, 40  # of Newton's method for each t: near a solution, and from afar
_HALVINGS = 12
_TRIALS = 40  # multipliers at which to begin
_ROUNDING = 2.0**-51
_TINY = torch.finfo(torch.float64).tiny


class Envelopes(NamedTuple):
    """Sets of latents, and Gaussians `exp(height - |s|^2 / 2)`, `u = mean + root s`, above `exp(-E)` on each."""

    sign: Tensor  # (B, n) int8: 1 and -1 where a unit is on and off, 0 where it may be both
    multipliers: Tensor  # (3, B, n): q, m, n
    log_mass: Tensor  # (B,) of the half-space; with room for rounding
    mean: Tensor  # (B, S)
    root: Tensor  # (B, S, S) lower
    height: Tensor  # (B,)
    wall: Tensor  # (B, S), of length 1: wall s >= least
    least: Tensor  # (B,), -inf where there is no half-space
    worth: Tensor  # (B, n) nats that a split by a unit gains about; -inf where its sign is given

    def take(self, index: Tensor) -> Envelopes:
        """Some of them."""
        return Envelopes(self.sign[index], self.multipliers[:, index], *(part[index] for part in self[2:]))

    def joined(self, other: Envelopes) -> Envelopes:
        """These and others."""
        multipliers = torch.cat((self.multipliers, other.multipliers), 1)
        rest = (torch.cat(parts) for parts in zip(self[2:], other[2:], strict=True))
        return Envelopes(torch.cat((self.sign, other.sign)), multipliers, *rest)

    def split(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Signs and multipliers of the halves where a unit of each `(B,)` is on, and then of those where it is off."""
        sign = self.sign.repeat(2, 1)
        sign[torch.arange(len(sign)), unit.repeat(2)] = torch.tensor([1, -1], dtype=torch.int8).repeat_interleave(
            len(unit)
        )
        return sign, self.multipliers.repeat(1, 2, 1)


def whole_space(units: Units, y: Tensor, end: float) -> Envelopes:
    """The envelope of all latents; Newton's method ends at the time `end`."""
    n, constant = len(units.bias), (units.weight == 0.0).all(1)
    sign = torch.where(constant, torch.where(units.bias > 0.0, 1, -1), 0).to(torch.int8)[None]
    forms = Forms.of(units, y, sign)
    start = torch.stack((0.05**units.depth, torch.full((n,), 0.1), torch.full((n,), 0.1))).double()[:, None]
    for _ in range(_TRIALS):
        solved = forms.at(start)
        if torch.isfinite(solved.log_mass).all():
            break
        start[0] *= 0.3 ** (1.0 + units.depth)  # later units couple to earlier ones, which must outweigh that
    else:
        return _prior(units, sign)
    far = math.ceil(math.log10(max(1.0, float(solved.log_mass) / max(n, 1))))
    for t in (*(10.0**k for k in range(far, 0, -1)), *_PATH) if n else ():
        start, solved = _newton(forms, sign, start, t, _STEPS[1], end)
    found = _envelopes(units, y, forms, sign, start, solved)
    if bool(found.log_mass <= 0.0):
        return found
    return _prior(units, sign)._replace(multipliers=start, worth=found.worth)  # it may be split all the same


def _prior(units: Units, sign: Tensor) -> Envelopes:
    """The envelope of all latents that needs nothing: E is at least half of `|u|^2`."""
    n, S = len(units.bias), units.dim
    zero = torch.zeros(1, dtype=torch.float64)
    return Envelopes(
        sign=sign,
        multipliers=zero.new_zeros(3, 1, n),
        log_mass=zero,
        mean=zero.new_zeros(1, S),
        root=torch.eye(S, dtype=torch.float64)[None],
        height=zero,
        wall=zero.new_zeros(1, S),
        least=torch.full_like(zero, -torch.inf),
        worth=torch.full((1, n), -torch.inf, dtype=torch.float64),
    )


def envelopes(
    units: Units,
    y: Tensor,
    sign: Tensor,
    multipliers: Tensor,
    end: float,
    *,
    barrier: float = _BARRIER,
    steps: int = _STEPS[0],
    enough: float = -math.inf,
) -> Envelopes:
    """The envelopes of sets of latents with signs `(B, n)`.

    From multipliers `(3, B, n)` by so many steps of Newton's method, which end where a log-mass is below `enough`.
    """
    forms = Forms.of(units, y, sign)
    return _envelopes(units, y, forms, sign, *_newton(forms, sign, multipliers, barrier, steps, end, enough))


class Solved(NamedTuple):
    """Quadratics with their multipliers; `log_mass` is infinite where H is not positive definite."""

    log_mass: Tensor  # (B,) F
    log_det: Tensor  # (B,) of H
    H: Tensor
    c: Tensor
    root: Tensor  # of H, lower
    inner: Tensor  # of H_rr

    def take(self, index: Tensor) -> Solved:
        """Some of them."""
        return Solved(*(part[index] for part in self))


class Forms(NamedTuple):
    """The quadratics E of sets of latents, and r and d, affine in v, without those r whose signs are given."""

    r: Tensor  # (B, n, S + n), of v
    r0: Tensor  # (B, n)
    d: Tensor
    d0: Tensor
    H: Tensor  # (B, S + n, S + n)
    c: Tensor  # (B, S + n)
    k: Tensor  # (B,)

    @property
    def dim(self) -> int:
        """The latent dimension S."""
        return self.r.shape[2] - self.r.shape[1]

    @staticmethod
    def of(units: Units, y: Tensor, sign: Tensor) -> Forms:
        """Those of sets with signs `(B, n)`."""
        S = units.dim
        r, r0, a, a0 = _rows(units.weight, units.bias, units.blocks, sign)
        image = units.head[:, S:] @ r
        image[:, :, :S] += units.head[:, :S]
        off = y - r0 @ units.head[:, S:].mT
        H = image.mT @ image
        H.diagonal(dim1=1, dim2=2)[:, :S] += 1.0
        H.diagonal(dim1=1, dim2=2)[:, S:] += (sign != 0).to(H.dtype)  # coordinates that nothing takes
        c = -(off[:, None] @ image)[:, 0]
        return Forms(r, r0, r - a, r0 - a0, H, c, 0.5 * off.square().sum(1))

    def take(self, index: Tensor) -> Forms:
        """Some of them."""
        return Forms(*(part[index] for part in self))

    def quadratic(self, multipliers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H `(B, d, d)`, c `(B, d)` and k `(B,)` of f at multipliers `(3, B, n)`."""
        q, m, n = multipliers
        product = (q[:, :, None] * self.r).mT @ self.d
        c = self.c + ((q * self.d0 - m)[:, None] @ self.r + (q * self.r0 - n)[:, None] @ self.d)[:, 0]
        k = self.k + (q * self.r0 * self.d0 - m * self.r0 - n * self.d0).sum(1)
        return self.H + product + product.mT, c, k

    def at(self, multipliers: Tensor) -> Solved:
        """F at multipliers `(3, B, n)`."""
        S, (H, c, k) = self.dim, self.quadratic(multipliers)
        root, wrong = torch.linalg.cholesky_ex(H)
        inner, also = torch.linalg.cholesky_ex(H[:, S:, S:])
        outside = (wrong > 0) | (also > 0)
        root, inner = (
            torch.where(outside[:, None, None], torch.eye(part.shape[1]).to(part), part) for part in (root, inner)
        )
        half = torch.linalg.solve_triangular(root, c[:, :, None], upper=False)[:, :, 0]
        log_det, log_inner = (2.0 * part.diagonal(dim1=1, dim2=2).log().sum(1) for part in (root, inner))
        log_mass = 0.5 * half.square().sum(1) - k - 0.5 * (log_det - log_inner)
        log_mass = torch.where(outside | ~torch.isfinite(log_mass), torch.inf, log_mass)
        return Solved(log_mass, log_det, H, c, root, inner)


def _rows(
    weight: Tensor, bias: Tensor, blocks: tuple[slice, ...], sign: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Units r and their values a as rows `(B, n, S + n)` of v and numbers `(B, n)`, where signs are given."""
    (B, n), width = sign.shape, weight.shape[1]
    S, each = width - n, torch.arange(n)
    r, a = weight.new_zeros(B, n, width), weight.new_zeros(B, n, width)
    r0, a0 = weight.new_zeros(B, n), weight.new_zeros(B, n)
    r[:, each, S + each] = (sign == 0).to(r.dtype)
    for block in blocks:
        before = weight[block, S : S + block.start]
        a[:, block] = before @ r[:, : block.start]
        a[:, block, :S] += weight[block, :S]
        a0[:, block] = r0[:, : block.start] @ before.mT + bias[block]
        on = (sign[:, block] > 0).to(r.dtype)
        r[:, block] += on[:, :, None] * a[:, block]
        r0[:, block] = on * a0[:, block]
    return r, r0, a, a0


class _Work(NamedTuple):
    """Which multipliers are at work, `(B, n)` each: q of free units, m where one may be on, n where it may be off."""

    q: Tensor
    m: Tensor
    n: Tensor

    @staticmethod
    def of(sign: Tensor) -> _Work:
        return _Work(sign == 0, sign >= 0, sign <= 0)

    def take(self, index: Tensor) -> _Work:
        return _Work(*(part[index] for part in self))

    def objective(self, solved: Solved, multipliers: Tensor, t: float) -> Tensor:
        """F with its barriers, `(B,)`; infinite outside of the domain."""
        inside = torch.stack((torch.where(self.m, multipliers[1], 1.0), torch.where(self.n, multipliers[2], 1.0)))
        logs = inside.clamp(min=_TINY).log().sum((0, 2))
        value = solved.log_mass - t * (solved.log_det + logs)
        return torch.where((inside <= 0.0).any(2).any(0) | torch.isinf(solved.log_mass), torch.inf, value)


def _newton(
    forms: Forms, sign: Tensor, multipliers: Tensor, t: float, steps: int, end: float, enough: float = -math.inf
) -> tuple[Tensor, Solved]:
    """Multipliers `(3, B, n)` at which F with barriers is least, about: from some in the domain, by descent; and F."""
    work = _Work.of(sign)
    multipliers = torch.where(torch.stack(work), multipliers, 0.0)
    going = torch.arange(len(sign))
    solved = forms.at(multipliers)
    for _ in range(steps):
        if not len(going) or time.perf_counter() > end:
            break
        own, at, now, active = forms.take(going), multipliers[:, going], solved.take(going), work.take(going)
        step, decrement = _step(own, active, now, at, t)
        found, value, better = _line(own, active, now, at, step, decrement, t)
        multipliers[:, going] = found
        for part, new in zip(solved, value, strict=True):
            part[going] = new
        going = going[better & (decrement > 0.1 * max(t, 0.02)) & (value.log_mass > enough)]
    return multipliers, solved


def _step(forms: Forms, work: _Work, solved: Solved, at: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Newton's step `(3, B, n)` and its decrement `(B,)`.

    With R and D the rows of r and d, J = (L; -R; -D) for `L_i = r_i D_i + d_i R_i` at the mean of v, the Hessian is
    `J H^-1 J^T + diag(X, t / m^2, t / n^2)`, products of n x n matrices being entrywise,

        X = (1 + 2 t) (R H^-1 R^T * D H^-1 D^T + R H^-1 D^T * D H^-1 R^T) - (the same with H_rr^-1).
    """
    S = forms.dim
    full, inner = torch.cholesky_inverse(solved.root), torch.cholesky_inverse(solved.inner)
    mean = -(full @ solved.c[:, :, None])
    r, d = (forms.r @ mean)[:, :, 0] + forms.r0, (forms.d @ mean)[:, :, 0] + forms.d0
    first, product = _products(forms.r, forms.d, full)
    first_inner, product_inner = _products(forms.r[:, :, S:], forms.d[:, :, S:], inner)
    free = work.q.to(r.dtype)
    X = ((1.0 + 2.0 * t) * product - product_inner) * free[:, :, None] * free[:, None]
    X.diagonal(dim1=1, dim2=2).add_(1.0 - free)
    at_m, at_n = torch.where(work.m, at[1], 1.0), torch.where(work.n, at[2], 1.0)
    gradient = torch.stack((
        -(r * d + (1.0 + 2.0 * t) * first - first_inner) * free,
        torch.where(work.m, r - t / at_m, 0.0),
        torch.where(work.n, d - t / at_n, 0.0),
    ))  # fmt: skip
    room_m, room_n = work.m * at_m.square() / t, work.n * at_n.square() / t
    L = (forms.r * d[:, :, None] + forms.d * r[:, :, None]) * free[:, :, None]
    # Woodbury's identity: only H + J^T diag^-1 J is factored
    solved_X = _solve(X, torch.cat((L, gradient[0][:, :, None]), 2))
    XL, Xg = solved_X[:, :, :-1], solved_X[:, :, -1]
    A = solved.H + L.mT @ XL + forms.r.mT @ (room_m[:, :, None] * forms.r) + forms.d.mT @ (room_n[:, :, None] * forms.d)
    lean = (L.mT @ Xg[:, :, None]) - forms.r.mT @ (room_m * gradient[1])[:, :, None]
    lean = lean - forms.d.mT @ (room_n * gradient[2])[:, :, None]
    w = torch.cholesky_solve(lean, torch.linalg.cholesky_ex(A)[0])
    step = torch.stack((
        (XL @ w)[:, :, 0] - Xg,
        -room_m * (gradient[1] + (forms.r @ w)[:, :, 0]),
        -room_n * (gradient[2] + (forms.d @ w)[:, :, 0]),
    ))  # fmt: skip
    return step, -(gradient * step).sum((0, 2))


def _products(r: Tensor, d: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of `R V D^T` `(B, n)`, and `R V R^T * D V D^T + R V D^T * D V R^T` `(B, n, n)`."""
    rv, dv = r @ inverse, d @ inverse
    rd = rv @ d.mT
    return rd.diagonal(dim1=1, dim2=2), (rv @ r.mT) * (dv @ d.mT) + rd * rd.mT


def _solve(X: Tensor, right: Tensor) -> Tensor:
    """`X^-1 right` for positive semidefinite X, scaled and with a ridge: the direction need not be exact."""
    scale = X.diagonal(dim1=1, dim2=2).clamp(min=_TINY).rsqrt()
    scaled = X * scale[:, :, None] * scale[:, None]
    for ridge in (1e-9, 1e-5, 1e-1):
        scaled.diagonal(dim1=1, dim2=2).add_(ridge)
        root, wrong = torch.linalg.cholesky_ex(scaled)
        if not wrong.any():
            break
    return torch.cholesky_solve(scale[:, :, None] * right, root) * scale[:, :, None]


def _line(
    forms: Forms, work: _Work, now: Solved, at: Tensor, step: Tensor, decrement: Tensor, t: float
) -> tuple[Tensor, Solved, Tensor]:
    """How far the step goes: new multipliers, F there, and where it got lower `(B,)`."""
    shrinking = torch.stack((work.m, work.n)) & (step[1:] < 0.0)
    most = torch.where(shrinking, -at[1:] / step[1:].clamp(max=-_TINY), torch.inf).amin((0, 2))
    length, before = (0.95 * most).clamp(max=1.0), work.objective(now, at, t)
    at, better = at.clone(), torch.zeros_like(before, dtype=torch.bool)
    value = Solved(*(part.clone() for part in now))
    for _ in range(_HALVINGS):
        left = (~better).nonzero()[:, 0]
        if not len(left):
            break
        tried = at[:, left] + length[left, None] * step[:, left]
        solved = forms.take(left).at(tried)
        good = work.take(left).objective(solved, tried, t) <= before[left] - 0.1 * length[left] * decrement[left]
        at[:, left[good]] = tried[:, good]
        for part, new in zip(value, solved, strict=True):
            part[left[good]] = new[good]
        better[left[good]] = True
        length[left] *= 0.4
    return at, value, better


def _envelopes(units: Units, y: Tensor, forms: Forms, sign: Tensor, multipliers: Tensor, solved: Solved) -> Envelopes:
    """What the multipliers give."""
    S = forms.dim
    full, inner = torch.cholesky_inverse(solved.root), torch.cholesky_inverse(solved.inner)
    mean = -(full @ solved.c[:, :, None])
    r, d = (forms.r @ mean)[:, :, 0] + forms.r0, (forms.d @ mean)[:, :, 0] + forms.d0
    root = torch.linalg.cholesky_ex(full[:, :S, :S])[0]
    on, off = sign > 0, sign < 0
    rows = torch.where(on[:, :, None], forms.r, forms.d)
    plane = (on | off) & (rows[:, :, S:] == 0.0).all(2)  # an inequality of u alone
    across = rows[:, :, :S] @ root
    length = torch.linalg.vector_norm(across, dim=2).clamp(min=_TINY)
    errors = Errors.of(units, y, sign, multipliers)
    doubt = errors.values * (1.0 + mean.abs().amax(1)) / length
    least = torch.where(plane, -torch.where(on, r, d) / length - doubt, -torch.inf)
    least, wall = _furthest(least, across / length[:, :, None])
    traces = full.diagonal(dim1=1, dim2=2).sum(1) + inner.diagonal(dim1=1, dim2=2).sum(1)
    room = errors.room(solved.log_mass, traces, mean[:, :, 0])
    height = solved.log_mass + room - root.diagonal(dim1=1, dim2=2).log().sum(1)
    log_mass = (
        solved.log_mass + room + torch.special.log_ndtr(-least + 1e-9 * (1.0 + least.abs().nan_to_num(0.0, 0.0, 0.0)))
    )
    worth = -torch.logaddexp(-_gain(forms.d, d, full, inner, S), -_gain(forms.r, r, full, inner, S))
    worth = torch.where((sign == 0) & torch.isfinite(log_mass)[:, None], worth, -torch.inf)
    return Envelopes(sign, multipliers, log_mass, mean[:, :S, 0], root, height, wall, least, worth)


def _furthest(least: Tensor, walls: Tensor) -> tuple[Tensor, Tensor]:
    """The wall with the least mass beyond it of each `(B,)`, `(B, S)`."""
    if not least.shape[1]:
        return least.new_full(least.shape[:1], -torch.inf), least.new_zeros(len(least), walls.shape[2])
    value, which = least.max(1)
    return value, walls[torch.arange(len(walls)), which]


def _gain(rows: Tensor, value: Tensor, full: Tensor, inner: Tensor, S: int) -> Tensor:
    """How much lower F is at least where each of these is 0, `(B, n)`."""
    spread = ((rows @ full) * rows).sum(2).clamp(min=_TINY)
    own = ((rows[:, :, S:] @ inner) * rows[:, :, S:]).sum(2).clamp(min=_TINY)
    return 0.5 * (value.square() / spread + (spread / own).log())


class Errors(NamedTuple):
    """What rounding can have done to quadratics f: `|df| <= moved (|v|^2 + 1) + shift`, and to their integrals."""

    moved: Tensor  # (B,)
    shift: Tensor  # (B,)
    values: Tensor  # (B, n), to r and d where no entry of v is above 1
    relative: float

    @staticmethod
    def of(units: Units, y: Tensor, sign: Tensor, multipliers: Tensor) -> Errors:
        """Those of forms with these signs `(B, n)` and multipliers `(3, B, n)`, by sums of absolute values."""
        # where all coefficients are positive, d is `r + a`, and the signs of y, m and n are such that nothing cancels
        forms = Forms.of(units.absolute, -y.abs(), sign)
        d, d0 = 2.0 * forms.r - forms.d, 2.0 * forms.r0 - forms.d0
        sums = multipliers.abs() * torch.tensor([1.0, -1.0, -1.0], dtype=y.dtype)[:, None, None]
        H, c, k = forms._replace(d=d, d0=d0).quadratic(sums)
        relative = _ROUNDING * (H.shape[1] + len(y) + 10) * (len(units.blocks) + 2)
        size = H.diagonal(dim1=1, dim2=2).sum(1) + torch.linalg.matrix_norm(H) + torch.linalg.vector_norm(c, dim=1)
        return Errors(relative * size, relative * k, relative * (1.0 + d.sum(2) + d0), relative)

    def room(self, log_mass: Tensor, spread: Tensor, mean: Tensor) -> Tensor:
        """How far a log-mass can be off, `(B,)`, by traces of inverses and the mean of v; infinite where f is flat."""
        room = 2.0 * self.moved * (spread + (1.0 + torch.linalg.vector_norm(mean, dim=1)).square())
        room = room + self.shift + self.relative * (1.0 + log_mass.abs() + spread.log().abs() * mean.shape[1])
        return torch.where(self.moved * spread <= 0.125, room, torch.inf)
