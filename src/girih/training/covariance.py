r"""A variance or covariance that gradient steps cannot make indefinite.

scalar, (D,):   floor + exp(theta)
(D, D):         diag(floor) + L L^T,   L lower triangular with diagonal exp(theta)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# How far above its floor a variance starts at least, as a share of the floor: at the floor itself theta is -inf.
_ABOVE = 1e-3


class Covariance(nn.Module):
    """A covariance in unconstrained coordinates, above a floor; calling it returns the matrix or the variances.

    Args:
        value: where it starts: `()`, `(D,)` or `(D, D)`, positive definite.
        floor: lower bound, `()` or `(D,)`; a full covariance keeps `value - diag(floor)` positive definite.

    Example:
        >>> import torch
        >>> from girih.training.covariance import Covariance
        >>> noise = Covariance(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), torch.tensor(0.01))
        >>> [[round(entry, 6) for entry in row] for row in noise().tolist()]
        [[2.0, 0.5], [0.5, 1.0]]
    """

    floor: Tensor

    def __init__(self, value: Tensor, floor: Tensor) -> None:
        super().__init__()
        value = value.detach().clone()
        self.register_buffer("floor", floor.to(value).expand(value.shape[:1]).clone())
        if value.ndim < 2:
            self.log = nn.Parameter(torch.maximum(value - self.floor, _ABOVE * self.floor).log())
            return
        lower = torch.linalg.cholesky(_above(value, self.floor))
        self.log = nn.Parameter(lower.diagonal().log())
        self.below = nn.Parameter(lower.tril(-1)[_below(lower)])

    def forward(self) -> Tensor:
        """The value, in the shape it was given."""
        if not hasattr(self, "below"):
            return self.floor + self.log.exp()
        lower = torch.diag_embed(self.log.exp())
        lower = lower.masked_scatter(_below(lower), self.below)
        return lower @ lower.mT + torch.diag_embed(self.floor)


def _below(matrix: Tensor) -> Tensor:
    """Which entries lie below the diagonal."""
    return torch.ones_like(matrix, dtype=torch.bool).tril(-1)


def _above(value: Tensor, floor: Tensor) -> Tensor:
    """`value - diag(floor)`, its eigenvalues in units of the floor raised to a little above 0."""
    if not floor.any():
        return value
    unit = floor.sqrt()
    values, vectors = torch.linalg.eigh(value / unit / unit[:, None])
    excess = (vectors * (values - 1.0).clamp(min=_ABOVE)) @ vectors.mT
    return excess * unit * unit[:, None]
