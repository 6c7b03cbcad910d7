"""Damped normal equations: what the hidden update solves, dense or by conjugate gradients."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn

from girih.em.penalty import WeightPrior, coordinate_descent
from girih.errors import ParameterError

# Share of the largest curvature added to all in the damping, so that parameters without any effect stay put.
_ISOTROPIC = 1e-6


class NormalSystem:
    """`(A + damping diag A) d = gradient` of all parameters before the head, plus the prior's part.

    Subclasses set the attributes and say how A multiplies a step.

    Attributes:
        current: the parameters, `(size,)`.
        penalised: which of them have a prior.
        gradient: of the exact log-likelihood, summed over rows.
        diagonal: of A, or an estimate of it.
        prior: on the weights, or `None`.
        dense: A `(size, size)` where it is small enough to be formed.
    """

    current: Tensor
    penalised: Tensor
    gradient: Tensor
    diagonal: Tensor
    prior: WeightPrior | None
    dense: Tensor | None
    _tolerance: ClassVar[float] = 1e-6
    _steps: ClassVar[int] = 200

    @property
    def size(self) -> int:
        """The number of parameters."""
        return len(self.current)

    def times(self, step: Tensor) -> Tensor:
        """A times a step, `(size,)`."""
        raise NotImplementedError

    def changes(self, step: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters, and by how much a step changes each."""
        raise NotImplementedError

    def direction(self, damping: float) -> Tensor:
        """The damped step of all parameters, `(size,)`; see `changes`."""
        if self.prior is not None and self.prior.family != "gaussian":
            return self._proximal(self._damped(damping))
        return self.solve(self.penalised_gradient, damping)

    @property
    def penalised_gradient(self) -> Tensor:
        """The gradient with that of a Gaussian prior."""
        ridge = self._ridge
        return self.gradient if ridge is None else self.gradient - ridge * self.current

    def solve(self, right: Tensor, damping: float) -> Tensor:
        """`(A + damping + ridge)^-1 right`."""
        damped, ridge = self._damped(damping), self._ridge
        damped = damped if ridge is None else damped + ridge
        if self.dense is not None:
            factor, info = torch.linalg.cholesky_ex(self.dense + torch.diag(damped))
            if not int(info):
                return torch.cholesky_solve(right[:, None], factor)[:, 0]
        return self._conjugate_gradients(right, damped)

    @property
    def _ridge(self) -> Tensor | None:
        if self.prior is None or self.prior.family != "gaussian":
            return None
        return self.penalised.to(self.gradient) / self.prior.scale**2

    def _damped(self, damping: float) -> Tensor:
        return damping * (self.diagonal + _ISOTROPIC * self.diagonal.max())

    def _conjugate_gradients(self, right: Tensor, damped: Tensor) -> Tensor:
        def times(v: np.ndarray) -> np.ndarray:
            step = torch.as_tensor(v.ravel()).to(right)
            return (self.times(step) + damped * step).cpu().numpy()

        shape = (self.size, self.size)
        scale = (self.diagonal + damped).clamp(min=torch.finfo(torch.float64).tiny).cpu().numpy()
        jacobi = LinearOperator(shape, matvec=lambda v: v.ravel() / scale, dtype=np.float64)
        operator = LinearOperator(shape, matvec=times, dtype=np.float64)
        step, _ = cg(operator, right.cpu().numpy(), M=jacobi, rtol=self._tolerance, maxiter=self._steps)
        return torch.as_tensor(step).to(right)

    def _proximal(self, damped: Tensor) -> Tensor:
        if self.dense is None or self.prior is None:
            raise ParameterError(
                f"a Laplace or uniform weight prior needs the normal matrix, and {self.size} hidden parameters are too "
                "many to form it; use a Gaussian weight prior"
            )
        one = torch.ones(1, dtype=torch.float64, device=self.gradient.device)
        matrix = self.dense + torch.diag(damped)
        step = coordinate_descent(matrix, self.gradient[None], self.current[None], self.penalised, self.prior, one)
        return step[0]
