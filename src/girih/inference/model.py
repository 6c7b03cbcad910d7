"""Everything that the density of x depends on, and rows of data in the coordinates in which it is simple.

The noise is whitened, and the last affine map `L^-1 W = Q T` reduced to its K = min(D, H) directions, so nothing
grows with D after the products with Q: a row is `y = Q^T L^-1 (x - v)` and its distance from the range of W.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from girih.covariance import Covariance, Observed
from girih.inference.pieces import Pieces


class Intervals(NamedTuple):
    """Where the cells of a line lie, relative to their origins."""

    lower: Tensor  # (P,)
    upper: Tensor  # (P,)


class Cells(NamedTuple):
    """The convex pieces of the latent space with the hidden features on them, about an origin in each."""

    origin: Tensor  # (P, S)
    value: Tensor  # (P, H) hidden features at the origin
    slope: Tensor  # (P, H, S) their derivative in z
    region: Intervals | Pieces


@dataclass(frozen=True, eq=False)
class Model:
    """The parameters of a `DGN`, detached.

    Attributes:
        tol: the share of each p(x) that may be left out, for S = 2, 3; 0 leaves out nothing.
        bias_rest: what rounding took from the bias, `(D,)`, where that matters.
    """

    cells: Cells
    weight: Tensor  # (D, H) last affine map
    bias: Tensor  # (D,)
    noise: Covariance
    prior: Tensor  # (S, S) covariance of z
    tol: float = 0.0
    bias_rest: Tensor | None = None

    def without_bias(self, x: Tensor) -> Tensor:
        """`x - v`, `(n, D)`: with an offset that x and v share, the difference keeps the digits that x has."""
        difference = x - self.bias
        return difference if self.bias_rest is None else difference.sub_(self.bias_rest)

    @property
    def output_dim(self) -> int:
        """D."""
        return len(self.bias)

    @property
    def latent_dim(self) -> int:
        """S."""
        return len(self.prior)

    @cached_property
    def head(self) -> tuple[Tensor, Tensor]:
        """Q `(D, K)` and T `(K, H)` with `L^-1 W = Q T`, `L L^T` the noise."""
        return _factor(self.noise.whiten(self.weight))

    @cached_property
    def memory(self) -> dict[str, Any]:
        """What the exact computations want to find again at the next call."""
        return {}


def _factor(columns: Tensor) -> tuple[Tensor, Tensor]:
    """`L^-1 W = Q T` for `(..., D, H)`. Where Q would be square it is the identity: nothing is reduced, nor rounded."""
    D, H = columns.shape[-2:]
    if D <= H:
        return torch.eye(D, dtype=columns.dtype, device=columns.device).expand(*columns.shape[:-2], D, D), columns
    basis, reduced = torch.linalg.qr(columns)
    return basis, reduced


class Rows(NamedTuple):
    """A chunk of rows in whitened, reduced coordinates. Leading `n` axes are absent when nothing is missing."""

    x: Tensor  # (n, D), NaN where missing
    observed: Observed | None
    reduced: Tensor  # T: (K, H) or (n, K, H)
    y: Tensor  # (n, K)
    far2: Tensor  # (n,) squared whitened distance from the range of W
    constant: Tensor  # () or (n,): -1/2 log det(2 pi noise)

    @property
    def common(self) -> Tensor:
        """What log p(x, z) has in common for all z, `(n,)`: from this on, comparisons lose no digits to it."""
        return self.constant - 0.5 * self.far2

    def relative(self) -> Rows:
        """The rows with log-densities that are counted from `common`."""
        return self._replace(far2=torch.zeros_like(self.far2), constant=torch.zeros_like(self.constant))

    def take(self, index: Tensor) -> Rows:
        """Some of the rows."""
        if self.observed is None:
            return self._replace(x=self.x[index], y=self.y[index], far2=self.far2[index])
        parts = (self.reduced[index], self.y[index], self.far2[index], self.constant[index])
        return Rows(self.x[index], self.observed.take(index), *parts)


def reduce_complete(model: Model, x: Tensor) -> Rows:
    """Whiten and reduce rows without missing entries."""
    basis, reduced = model.head
    white = model.noise.whiten(model.without_bias(x).mT).mT
    y = white @ basis
    far2 = torch.linalg.vector_norm(torch.addmm(white, y, basis.mT, alpha=-1.0), dim=1).square_()
    return Rows(x, None, reduced, y, far2, model.noise.constant)


def reduce_incomplete(model: Model, x: Tensor) -> Rows:
    """Whiten and reduce rows that each have their own missing entries."""
    seen = ~torch.isnan(x)
    patterns, which = torch.unique(seen, dim=0, return_inverse=True)
    of_patterns = model.noise.restrict(patterns)
    basis, reduced = _factor(of_patterns.whiten(model.weight))
    basis, reduced, observed = basis[which], reduced[which], of_patterns.take(which)
    white = observed.whiten(torch.nan_to_num(model.without_bias(x))[:, :, None])
    y = basis.mT @ white
    far2 = (white - basis @ y).square().sum((1, 2))
    return Rows(x, observed, reduced, y[:, :, 0], far2, observed.constant)
