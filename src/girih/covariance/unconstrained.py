r"""A covariance that gradient steps cannot make indefinite.

scalar, diagonal:   floor + exp(theta)
low rank:           F F^T + diag(floor + exp(theta))
full:               diag(floor) + L L^T,   L lower triangular with diagonal exp(theta)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from girih.covariance.base import Covariance

# How far above its floor a variance starts at least, as a share of the floor: at the floor itself theta is -inf.
_ABOVE = 1e-3


class Unconstrained(nn.Module):
    """It is a covariance in unconstrained coordinates above a floor, for optimisers; calling it returns the covariance.

    You would use it to train a noise or a prior by gradient steps of your own.

    Args:
        start: where it starts.
        floor: lower bound of the variances, `()` or `(D,)`; `C - diag(floor)` stays positive definite.

    Example:
        >>> import girih, torch
        >>> from girih.covariance import Unconstrained
        >>> noise = Unconstrained(girih.Covariance.full([[2.0, 0.5], [0.5, 1.0]]), torch.tensor(0.01))
        >>> [[round(entry, 6) for entry in row] for row in noise().matrix.tolist()]
        [[2.0, 0.5], [0.5, 1.0]]
    """

    floor: Tensor

    def __init__(self, start: Covariance, floor: Tensor) -> None:
        super().__init__()
        start = start.with_tensors(tuple(part.detach().clone() for part in start.tensors))
        value = start.tensors[0]
        self.register_buffer("floor", floor.to(value).expand(value.shape[:1]).clone())
        self._start = start.with_tensors(tuple(part.cpu() for part in start.tensors))
        if start.kind != "full":
            self.log = nn.Parameter(torch.maximum(value - self.floor, _ABOVE * self.floor).log())
            if start.kind == "low_rank":
                self.factor = nn.Parameter(start.tensors[1])
            return
        lower = torch.linalg.cholesky(_above(value, self.floor))
        self.log = nn.Parameter(lower.diagonal().log())
        self.below = nn.Parameter(lower.tril(-1)[_below(lower)])

    def forward(self) -> Covariance:
        """The covariance of this moment, of the kind that it started as."""
        if self._start.kind == "full":
            lower = torch.diag_embed(self.log.exp())
            lower = lower.masked_scatter(_below(lower), self.below)
            return self._start.with_tensors((lower @ lower.mT + torch.diag_embed(self.floor),))
        value = self.floor + self.log.exp()
        return self._start.with_tensors((value, self.factor) if self._start.kind == "low_rank" else (value,))


def _below(matrix: Tensor) -> Tensor:
    """True for entries that lie below the diagonal."""
    return torch.ones_like(matrix, dtype=torch.bool).tril(-1)


def _above(value: Tensor, floor: Tensor) -> Tensor:
    """`value - diag(floor)`, its eigenvalues in units of the floor raised to a little above 0."""
    if not floor.any():
        return value
    unit = floor.sqrt()
    values, vectors = torch.linalg.eigh(value / unit / unit[:, None])
    excess = (vectors * (values - 1.0).clamp(min=_ABOVE)) @ vectors.mT
    result: Tensor = excess * unit * unit[:, None]
    return result
