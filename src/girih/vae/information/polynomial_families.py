"""Bounded polynomial exponential families in both coordinates: Newton's method leads from moments to coefficients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributions import Distribution

from girih._options import whole
from girih.errors import ParameterError
from girih.vae.bpef import BPEF, CoarseBPEF, levels, polynomials, to_basis
from girih.vae.bpef.exponential_polynomials import rule_for
from girih.vae.information.exponential_families import ExponentialFamily

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


class PolynomialFamily(ExponentialFamily):
    """The two families share this: `t(z)` are the polynomials of degree 1 to M of z in [-1, 1].

    Whatever the basis of c and eta, moments are inverted in Legendre polynomials: there F'' is far from singular.

    Args:
        order: M.
        basis: "monomial" or "legendre".
    """

    def __init__(self, order: int, basis: str = "monomial") -> None:
        self.order, self.basis = whole(order, "order"), basis
        self.parameter_shape = (self.order,)
        # t_legendre = _constant + _change t_basis; the constants are the values at 0, where monomials vanish
        self._change = to_basis(torch.eye(self.order, dtype=torch.float64), "legendre", basis)
        zero = torch.zeros((), dtype=torch.float64)
        constant = polynomials(zero, self.order, "legendre") - self._change @ polynomials(zero, self.order, basis)
        self._constant = constant

    @abstractmethod
    def potential(self, natural: Tensor) -> Potential:
        """F and its derivatives in the Legendre basis, of `(B, M)`."""

    @abstractmethod
    def nodes(self) -> Tensor:
        """Points `(K,)` whose statistics span the moments that the family has."""

    def sufficient(self, z: Tensor) -> Tensor:
        """The polynomials `(..., M)`."""
        return polynomials(z, self.order, self.basis)

    def natural(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """Invert by Newton's method, to 1e-10 in every moment; differentiable.

        Raises:
            ParameterError: no distribution that gives mass to all of [-1, 1], or all levels, has these moments, or
                they lie so close to the boundary of such moments that rounding decides.
        """
        return to_basis(self._dual(moments, start, TOLERANCE)[1], "legendre", self.basis).to(moments.dtype)

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`I(eta)`, whose gradient is c: no derivative of the inversion is needed.

        Very close to the boundary Newton's method may stop up to 1e-6 away from the moments. As `<c, eta> - F(c)` is
        at most I for every c, what is returned is then a little too small.
        """
        return self._dual(moments, start, LOOSE)[0].to(moments.dtype)

    def metric(self, natural: Tensor) -> Tensor:
        """The Fisher information of c, `F''(c)`, the covariance of t: `(..., M, M)`."""
        legendre = to_basis(natural.double(), self.basis, "legendre")
        hessian = self.potential(legendre.reshape(-1, self.order)).hessian
        change = to_basis(torch.eye(self.order, dtype=torch.float64), self.basis, "legendre")
        return (change @ hessian @ change.mT).reshape(*natural.shape, self.order).to(natural.dtype)

    def _dual(self, moments: Tensor, start: Tensor | None, tolerance: float) -> tuple[Tensor, Tensor]:
        """I and the Legendre coefficients of moments in the family's own basis."""
        flat = (moments.double() @ self._change.mT + self._constant).reshape(-1, self.order)
        begin = torch.zeros_like(moments, dtype=torch.float64) if start is None else start.detach().double()
        begin = to_basis(begin, self.basis, "legendre").expand(moments.shape).reshape(-1, self.order)
        information, natural = Dual.apply(flat, partial(self._find, begin, tolerance), self.potential)
        return information.reshape(moments.shape[:-1]), natural.reshape(moments.shape)

    def _find(self, start: Tensor, tolerance: float, moments: Tensor) -> Tensor:
        natural, gap = maximise(self.potential, moments, start)
        missed = ~(gap <= tolerance)
        if bool(missed.any()):
            row = int(missed.nonzero()[0])
            self._refuse(row, moments[row], float(gap[row]))
        return natural

    def _refuse(self, row: int, moments: Tensor, gap: float) -> None:
        """Say why Newton's method failed: moments are of a distribution if they are a mean of the nodes' statistics.

        The linear program looks for the mean whose smallest weight is largest.
        """
        table = polynomials(self.nodes(), self.order, "legendre").numpy()
        count = len(table)
        equal = np.vstack((np.ones((1, count)), table.T))
        equal = np.hstack((equal, np.zeros((self.order + 1, 1))))
        least = np.hstack((-np.eye(count), np.ones((count, 1))))
        found = linprog(
            np.eye(count + 1)[-1] * -1.0,
            A_ub=least,
            b_ub=np.zeros(count),
            A_eq=equal,
            b_eq=np.concatenate(([1.0], moments.detach().numpy())),
            bounds=[(0.0, None)] * count + [(None, None)],
        )
        inside = found.status == 0 and found.x[-1] > 0.0
        why = (
            f"they are so close to the boundary that Newton's method stopped {gap:.1g} away from them: mix them with "
            "the moments of a broader distribution"
            if inside
            else "no distribution on [-1, 1] that gives every part of it some mass has them"
        )
        raise ParameterError(
            f"the moments of distribution {row} (of the batch laid out in a row) have no natural parameters: {why}"
        )


class CoarseFamily(PolynomialFamily):
    r"""The family on R levels, `p(zeta_r) = exp(sum_m c_m t_m(zeta_r) - F(c))`, as `girih.vae.bpef.CoarseBPEF` has it.

    Args:
        order: M, below R - 1.
        levels: R.
        basis: of t, "monomial" or "legendre".

    Example:
        >>> import torch
        >>> from girih.vae.information import CoarseFamily
        >>> family = CoarseFamily(2, levels=11)
        >>> c = family.natural(torch.tensor([0.3, 0.2], dtype=torch.float64))
        >>> torch.allclose(family.moments(c), torch.tensor([0.3, 0.2], dtype=torch.float64))
        True
    """

    def __init__(self, order: int, levels: int = 101, basis: str = "monomial") -> None:
        super().__init__(order, basis)
        self.levels = levels
        self.distribution(torch.zeros(self.order, dtype=torch.float64))  # its checks of M, R and the basis
        self._table = polynomials(self.nodes(), self.order, "legendre")

    def nodes(self) -> Tensor:
        """The levels."""
        return levels(self.levels)

    def support(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """The levels, each of weight 1."""
        return self.nodes(), torch.zeros(self.levels, dtype=torch.float64)

    def log_partition(self, natural: Tensor) -> Tensor:
        """`log sum_r exp(<c, t(zeta_r)>)`."""
        return self._logits(natural).logsumexp(-1)

    def moments(self, natural: Tensor) -> Tensor:
        """`E[t]`, a sum over the levels."""
        return self._logits(natural).softmax(-1) @ self._statistics(natural)

    def distribution(self, natural: Tensor) -> Distribution:
        """Make a `CoarseBPEF` of the natural parameters."""
        return CoarseBPEF(natural, self.levels, self.basis)

    def potential(self, natural: Tensor) -> Potential:
        """Sums over the levels."""
        return _sums(natural @ self._table.mT, self._table)

    def _statistics(self, natural: Tensor) -> Tensor:
        return polynomials(self.nodes(), self.order, self.basis).to(natural.dtype)

    def _logits(self, natural: Tensor) -> Tensor:
        return natural @ self._statistics(natural).mT


class BPEFFamily(PolynomialFamily):
    r"""The family of densities on [-1, 1], `p(z) = exp(sum_m c_m t_m(z) - F(c))`, as `girih.vae.bpef.BPEF` has it.

    Args:
        order: M.
        basis: of t, "monomial" or "legendre".

    Example:
        >>> import torch
        >>> from girih.vae.information import BPEFFamily
        >>> family = BPEFFamily(1)
        >>> c = family.natural(torch.tensor([0.0], dtype=torch.float64))   # mean 0: the uniform density
        >>> round(family.information(torch.tensor([0.0])).item(), 4), bool(c.abs() < 1e-9)   # -log(2)
        (-0.6931, True)
    """

    def nodes(self) -> Tensor:
        """The nodes of the quadrature of the uniform density."""
        return rule_for(torch.zeros(1, self.order, dtype=torch.float64), "legendre").nodes

    def support(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre panels that resolve each of the densities."""
        rule = rule_for(natural.double(), self.basis)
        return rule.nodes, rule.log_weights

    def log_partition(self, natural: Tensor) -> Tensor:
        """`log` of the integral of `exp(<c, t(z)>)`."""
        return BPEF(natural, self.basis).log_partition.to(natural.dtype)

    def moments(self, natural: Tensor) -> Tensor:
        """`E[t]`, by quadrature."""
        return BPEF(natural, self.basis).moments.to(natural.dtype)

    def distribution(self, natural: Tensor) -> Distribution:
        """Make a `BPEF` of the natural parameters."""
        return BPEF(natural, self.basis)

    def potential(self, natural: Tensor) -> Potential:
        """Integrals by panels fine enough for every row."""
        rule = rule_for(natural, "legendre")
        return _sums(natural @ rule.statistics.mT + rule.log_weights, rule.statistics)


def _sums(logits: Tensor, table: Tensor) -> Potential:
    """F and its derivatives from the weights of points, `(B, K)`, and their statistics, `(K, M)`."""
    p = logits.softmax(-1)
    mean = p @ table
    centred = table - mean[:, None]  # before squaring: a narrow density's variance must not cancel
    return Potential(logits.logsumexp(-1), mean, centred.mT @ (p[..., None] * centred))
