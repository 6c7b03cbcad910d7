"""Covariances without structure: a `(D, D)` matrix and its Cholesky factor."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from girih.covariance.base import Covariance, Observed, Pair
from girih.errors import NoiseError


class Full(Covariance):
    """A full covariance is any positive definite matrix."""

    kind = "full"

    @property
    def matrix(self) -> Tensor:
        """C, `(D, D)`."""
        return self.tensors[0]

    @cached_property
    def factor(self) -> Tensor:
        """L, lower triangular, `(D, D)`."""
        result: Tensor = torch.linalg.cholesky(self.matrix)
        return result

    def _check_definite(self, name: str) -> None:
        value = self.matrix.detach()
        if not torch.allclose(value, value.mT, rtol=1e-10, atol=1e-12 * float(value.abs().max())):
            raise NoiseError(f"{name} must be a symmetric matrix; pass (C + C.T) / 2")
        if int(torch.linalg.cholesky_ex(value).info):
            smallest = float(torch.linalg.eigvalsh(value)[0])
            raise NoiseError(f"{name} must be positive definite; its smallest eigenvalue is {smallest:g}")

    @property
    def variances(self) -> Tensor:
        """The diagonal of C, `(D,)`."""
        return self.matrix.diagonal()

    @property
    def parameter_count(self) -> int:
        """The matrix has `D (D + 1) / 2` free entries, those on and below the diagonal."""
        return self.dim * (self.dim + 1) // 2

    @property
    def width(self) -> int:
        """A row's own Cholesky factor has D numbers for each coordinate."""
        return self.dim

    @property
    def condition(self) -> float:
        """The entries before a variance explain so much of it at most: a Cholesky factor loses that in digits."""
        return float((self.variances / self.factor.diagonal().square()).max())

    @property
    def log_det(self) -> Tensor:
        """`log det C`, nats."""
        return 2.0 * self.factor.diagonal().log().sum()

    def eigen(self) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues `(D,)`, ascending, and eigenvectors `(D, D)`."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors

    def times(self, columns: Tensor) -> Tensor:
        """`C M`, M `(D, M)`."""
        return self.matrix @ columns

    def whiten(self, columns: Tensor) -> Tensor:
        """`L^-1 M`, M `(D, M)`."""
        result: Tensor = torch.linalg.solve_triangular(self.factor, columns, upper=False)
        return result

    def whiten_transposed(self, columns: Tensor) -> Tensor:
        """`L^-T M`, M `(D, M)`."""
        result: Tensor = torch.linalg.solve_triangular(self.factor.mT, columns, upper=True)
        return result

    def solve(self, columns: Tensor) -> Tensor:
        """`C^-1 M`, M `(D, M)` or a batch of them."""
        return torch.cholesky_solve(columns, self.factor)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of `N(0, C)`, `(count, D)`."""
        return self._normal(count, self.dim, generator) @ self.factor.mT

    def marginal(self, columns: list[int]) -> Covariance:
        """Keep the rows and columns of these coordinates."""
        return Full((self.matrix[columns][:, columns],), len(columns))

    def restrict(self, mask: Tensor) -> Observed:
        """Rows with their own missing entries see this of it."""
        mask = mask.to(torch.float64)
        masked = self.matrix * (mask[:, :, None] * mask[:, None, :]) + torch.diag_embed(1.0 - mask)
        return _FullObserved(self.matrix, mask, torch.linalg.cholesky(masked))

    def scatter(self, *pairs: Pair) -> Tensor:
        """The sum of `a b^T`, `(D, D)`, of which only the symmetric part counts."""
        return matrix_scatter(self.dim, pairs)

    def m_step(self, scatter: Tensor, weight: Tensor, floor: Tensor) -> Covariance:
        """`scatter / weight`, with its eigenvalues in units of the floor raised to 1: the bounded maximum."""
        return self.with_tensors((scatter / weight,)).at_least(floor)

    def at_least(self, floor: Tensor) -> Covariance:
        """The matrix with its eigenvalues in units of the floor raised to 1."""
        unit = floor.sqrt()[:, None] * floor.sqrt()
        values, vectors = torch.linalg.eigh(self.matrix / unit)
        return self.with_tensors((((vectors * values.clamp(min=1.0)) @ vectors.mT) * unit,))

    def with_variances(self, variances: Tensor) -> Covariance:
        """The matrix becomes diagonal."""
        return self.with_tensors((torch.diag(variances),))

    def gradient(self, scatter: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The gradient is one in the matrix: `(D, D)`, symmetric."""
        return (matrix_gradient(self, scatter, weight),)

    def units(self, scale: Tensor) -> tuple[Tensor, ...]:
        """The units are the products of the scales, `(D, D)`."""
        return (scale * scale[:, None],)

    @property
    def coordinates(self) -> Tensor:
        """`L = diag(exp a) (1 + strictly lower theta)` as a and theta."""
        scale = self.factor.diagonal()
        row, column = _below(self.dim, scale.device)
        return torch.cat((scale.log(), (self.factor / scale[:, None])[row, column]))

    def from_coordinates(self, vector: Tensor) -> Covariance:
        """The inverse of `coordinates`."""
        factor = torch.eye(self.dim, dtype=vector.dtype, device=vector.device)
        factor = factor.index_put(_below(self.dim, vector.device), vector[self.dim :])
        factor = vector[: self.dim].exp()[:, None] * factor
        return self.with_tensors((factor @ factor.mT,))

    def information(self, weight: Tensor) -> Tensor:
        """The coordinates are a and theta, of which complete rows tell about this much."""
        D = self.dim
        return torch.cat((2.0 * weight.expand(D), weight.expand(D * (D - 1) // 2)))


class _FullObserved(Observed):
    """The Cholesky factor acts on the observed coordinates as the factor of their own covariance."""

    def __init__(self, matrix: Tensor, mask: Tensor, factor: Tensor) -> None:
        self._matrix, self.mask, self._factor = matrix, mask, factor

    def take(self, index: Tensor) -> Observed:
        return _FullObserved(self._matrix, self.mask[index], self._factor[index])

    def whiten(self, columns: Tensor) -> Tensor:
        result: Tensor = torch.linalg.solve_triangular(self._factor, columns * self.mask[:, :, None], upper=False)
        return result

    def solve(self, columns: Tensor) -> Tensor:
        return torch.cholesky_solve(columns * self.mask[:, :, None], self._factor) * self.mask[:, :, None]

    def complete(self, columns: Tensor) -> Tensor:
        return self._matrix @ self.solve(columns)

    def conditional_covariance(self, weight: Tensor) -> Tensor:
        explained = self.complete(self._matrix.expand(len(self.mask), -1, -1))
        return torch.einsum("n,nij->ij", weight, self._matrix - explained)

    @property
    def log_det(self) -> Tensor:
        return 2.0 * self._factor.diagonal(dim1=1, dim2=2).log().sum(1)


def matrix_scatter(dim: int, pairs: tuple[Pair, ...]) -> Tensor:
    """The symmetric part of the sum of `a b^T` over the rows of all pairs, `(D, D)`."""
    total = torch.stack([a.reshape(-1, dim).mT @ b.reshape(-1, dim) for a, b in pairs]).sum(0)
    return 0.5 * (total + total.mT)


def matrix_gradient(covariance: Covariance, scatter: Tensor, weight: Tensor) -> Tensor:
    """`(C^-1 scatter C^-1 - weight C^-1) / 2`, `(D, D)`."""
    inverse = covariance.solve(torch.eye(covariance.dim, dtype=scatter.dtype, device=scatter.device))
    return 0.5 * (inverse @ scatter @ inverse - weight * inverse)


def _below(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    row, column = torch.tril_indices(size, size, -1, device=device)
    return row, column
