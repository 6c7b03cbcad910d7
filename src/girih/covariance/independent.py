"""Covariances of coordinates that are independent: a variance that all share, or one for each."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.covariance.base import Covariance, Observed, Pair


class _Independent(Covariance):
    """A scalar and a diagonal covariance have this in common: products go coordinate by coordinate."""

    @property
    def value(self) -> Tensor:
        """The variance `()`, or the variances `(D,)`."""
        return self.tensors[0]

    @property
    def _column(self) -> Tensor:
        """Columns `(D, M)` are multiplied with this."""
        return self.value if self.kind == "scalar" else self.value[:, None]

    @property
    def matrix(self) -> Tensor:
        """C, `(D, D)`."""
        return torch.diag(self.variances)

    def times(self, columns: Tensor) -> Tensor:
        """`C M`, M `(D, M)`."""
        return self._column * columns

    def whiten(self, columns: Tensor) -> Tensor:
        """`L^-1 M`, M `(D, M)`."""
        return columns / self._column.sqrt()

    def whiten_transposed(self, columns: Tensor) -> Tensor:
        """`L^-T M`, M `(D, M)`."""
        return self.whiten(columns)

    def solve(self, columns: Tensor) -> Tensor:
        """`C^-1 M`, M `(D, M)` or a batch of them."""
        return columns / self._column

    def mahalanobis(self, scatter: Tensor) -> Tensor:
        """The sum of the entries over their variances."""
        return (scatter / self.value).sum()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of `N(0, C)`, `(count, D)`."""
        return self._normal(count, self.dim, generator) * self.value.sqrt()

    def restrict(self, mask: Tensor) -> Observed:
        """Rows with their own missing entries see this of it."""
        return _IndependentObserved(self, mask.to(torch.float64))

    def at_least(self, floor: Tensor) -> Covariance:
        """The covariance with its variances raised to the floor."""
        return self.with_tensors((torch.maximum(self.value, floor),))

    @property
    def coordinates(self) -> Tensor:
        """The logarithms of the variances."""
        return self.value.log().reshape(-1)

    def from_coordinates(self, vector: Tensor) -> Covariance:
        """The inverse of `coordinates`."""
        return self.with_tensors((vector.exp().reshape(self.value.shape),))


class Scalar(_Independent):
    """A scalar covariance is `v I`."""

    kind = "scalar"

    @property
    def name(self) -> str:
        """`DGNEstimator(noise=...)` knows this kind by this name."""
        return "isotropic"

    @property
    def variances(self) -> Tensor:
        """The diagonal of C, `(D,)`."""
        return self.value.expand(self.dim)

    @property
    def mean_variance(self) -> Tensor:
        """The variance, `()`."""
        return self.value

    @property
    def parameter_count(self) -> int:
        """The variance is one parameter."""
        return 1

    @property
    def log_det(self) -> Tensor:
        """`D log v`."""
        return self.dim * self.value.log()

    def marginal(self, columns: list[int]) -> Covariance:
        """Keep the variance, for fewer coordinates."""
        return Scalar(self.tensors, len(columns))

    def scatter(self, *pairs: Pair) -> Tensor:
        """The trace `()` of the sum of `a b^T`."""
        return Diagonal((self.variances,), self.dim).scatter(*pairs).sum()

    def m_step(self, scatter: Tensor, weight: Tensor, floor: Tensor) -> Covariance:
        """`scatter / (D weight)`, or the floor."""
        return self.with_tensors((scatter / (weight * self.dim),)).at_least(floor)

    def with_variances(self, variances: Tensor) -> Covariance:
        """The variance is their mean."""
        return self.with_tensors((variances.mean(),))

    def gradient(self, scatter: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The gradient is one in the variance: a number."""
        return (0.5 * (scatter / self.value - weight * self.dim) / self.value,)

    def units(self, scale: Tensor) -> tuple[Tensor, ...]:
        """The unit is the square of the scale that all coordinates share."""
        return (scale[0].square(),)

    def rescaled(self, scale: Tensor) -> Covariance:
        """A diagonal covariance if the scales differ."""
        if bool((scale == scale[0]).all()):
            return super().rescaled(scale)
        return Diagonal((self.value * scale.square(),), self.dim)

    def information(self, weight: Tensor) -> Tensor:
        """The coordinate is the logarithm of a variance of which D numbers a row tell."""
        return (0.5 * self.dim * weight).reshape(1)


class Diagonal(_Independent):
    """A diagonal covariance is `diag(v)`."""

    kind = "diagonal"

    @property
    def variances(self) -> Tensor:
        """The diagonal of C, `(D,)`."""
        return self.value

    @property
    def parameter_count(self) -> int:
        """There is one parameter for each coordinate."""
        return self.dim

    @property
    def log_det(self) -> Tensor:
        """The sum of the logarithms."""
        return self.value.log().sum()

    def marginal(self, columns: list[int]) -> Covariance:
        """Keep the variances of these coordinates."""
        return Diagonal((self.value[columns],), len(columns))

    def scatter(self, *pairs: Pair) -> Tensor:
        """The diagonal `(D,)` of the sum of `a b^T`."""
        return torch.stack([(a * b).reshape(-1, self.dim).sum(0) for a, b in pairs]).sum(0)

    def m_step(self, scatter: Tensor, weight: Tensor, floor: Tensor) -> Covariance:
        """`scatter / weight`, or the floor."""
        return self.with_tensors((scatter / weight,)).at_least(floor)

    def with_variances(self, variances: Tensor) -> Covariance:
        """The covariance has these variances."""
        return self.with_tensors((variances,))

    def gradient(self, scatter: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The gradient is one in each variance, `(D,)`."""
        return (0.5 * (scatter / self.value - weight) / self.value,)

    def units(self, scale: Tensor) -> tuple[Tensor, ...]:
        """The units are the squares of the scales, `(D,)`."""
        return (scale.square(),)

    def information(self, weight: Tensor) -> Tensor:
        """The coordinates are logarithms of variances, of each of which one number a row tells."""
        return (0.5 * weight).expand(self.dim)


class _IndependentObserved(Observed):
    def __init__(self, covariance: _Independent, mask: Tensor) -> None:
        self._covariance, self.mask = covariance, mask

    def take(self, index: Tensor) -> Observed:
        return _IndependentObserved(self._covariance, self.mask[index])

    def whiten(self, columns: Tensor) -> Tensor:
        return self._covariance.whiten(columns * self.mask[:, :, None])

    def solve(self, columns: Tensor) -> Tensor:
        return self._covariance.solve(columns * self.mask[:, :, None])

    def complete(self, columns: Tensor) -> Tensor:
        """Missing coordinates know nothing of the others."""
        return columns * self.mask[:, :, None]

    def conditional_covariance(self, weight: Tensor) -> Tensor:
        unseen = weight @ (1.0 - self.mask)
        return self._covariance.value * (unseen.sum() if self._covariance.kind == "scalar" else unseen)

    @property
    def log_det(self) -> Tensor:
        return self.mask @ self._covariance.variances.log()
