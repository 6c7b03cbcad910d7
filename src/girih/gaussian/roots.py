r"""Square roots R of covariances, `C = R R^T`: they keep the small deviation of a thin set, which C itself loses.

Next to variances of 1 the entries of C are rounded to 1e-16, which is a hundredth of the variance of a slab 1e-7 thick;
in R the same rounding is 1e-9 of its deviation. So C is formed last, where it has to be, and the moments that a root is
taken of are formed in the set's own axes, in which a thin direction is a coordinate by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def square_root(covariance: Tensor) -> Tensor:
    """The lower triangular root `(n, S, S)`, by Cholesky's method; a direction without variance has none."""
    S = covariance.shape[-1]
    out = torch.zeros_like(covariance)
    for j in range(S):
        rest = covariance[:, j:, j] - (out[:, j:, :j] * out[:, j : j + 1, :j]).sum(-1)
        pivot = rest[:, :1].clamp(min=0.0).sqrt()
        out[:, j:, j] = torch.where(pivot > 0, rest / torch.where(pivot > 0, pivot, 1.0), 0.0)
    return out


def squared(root: Tensor) -> Tensor:
    """The covariance `R R^T`."""
    return root @ root.mT


def own_axes(covariance: Tensor) -> Tensor:
    """Orthonormal principal axes, the columns of `(n, S, S)`, as far as a rounded covariance shows them."""
    covariance = torch.where(torch.isfinite(covariance), covariance, 0.0)
    if covariance.shape[-1] == 3:
        result: Tensor = torch.linalg.eigh(covariance).eigenvectors
        return result
    angle = 0.5 * torch.atan2(2.0 * covariance[:, 0, 1], covariance[:, 0, 0] - covariance[:, 1, 1])
    along = torch.stack((angle.cos(), angle.sin()), -1)
    return torch.stack((along, torch.stack((-along[:, 1], along[:, 0]), -1)), -1)


def least_eigenvalue(covariance: Tensor) -> Tensor:
    """The smallest eigenvalue `(n,)` of matrices `(n, S, S)`."""
    if covariance.shape[-1] == 3:
        result: Tensor = torch.linalg.eigvalsh(torch.where(torch.isfinite(covariance), covariance, 0.0))[:, 0]
        return result
    trace = covariance[:, 0, 0] + covariance[:, 1, 1]  # without cancellation to speak of
    square = trace.square() - 4.0 * (covariance[:, 0, 0] * covariance[:, 1, 1] - covariance[:, 0, 1].square())
    return 0.5 * (trace - square.clamp(min=0.0).sqrt())
