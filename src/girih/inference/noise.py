"""Gaussian noise given as a scalar variance, `(D,)` variances or a `(D, D)` covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from girih._arrays import check_finite
from girih.errors import NoiseError, ShapeError


def check_noise(noise: Tensor, output_dim: int) -> None:
    """Refuse a noise that is not a positive definite covariance of the right size."""
    value = noise.detach()
    expected = {(), (output_dim,), (output_dim, output_dim)}
    if tuple(value.shape) not in expected:
        raise ShapeError(
            f"noise must be a scalar variance, ({output_dim},) variances or a ({output_dim}, {output_dim}) covariance "
            f"for D = {output_dim}; got shape {tuple(value.shape)}"
        )
    check_finite(value, "noise")
    _check_positive_definite(value, "noise")


def check_prior(prior: Tensor, latent_dim: int) -> None:
    """Refuse a prior that is not an `(S, S)` positive definite covariance."""
    value = prior.detach()
    if tuple(value.shape) != (latent_dim, latent_dim):
        raise ShapeError(
            f"prior must be an ({latent_dim}, {latent_dim}) covariance for S = {latent_dim}; "
            f"got shape {tuple(value.shape)}"
        )
    check_finite(value, "prior")
    _check_positive_definite(value, "prior")


def _check_positive_definite(value: Tensor, name: str) -> None:
    if value.ndim < 2:
        if not (value > 0).all():
            raise NoiseError(
                f"{name} must be a positive variance, got {value.min().item():g}; variances, not deviations"
            )
        return
    if not torch.allclose(value, value.mT, rtol=1e-10, atol=1e-12 * float(value.abs().max())):
        raise NoiseError(f"{name} must be a symmetric matrix; pass (C + C.T) / 2")
    if int(torch.linalg.cholesky_ex(value).info):
        smallest = float(torch.linalg.eigvalsh(value)[0])
        raise NoiseError(f"{name} must be positive definite; its smallest eigenvalue is {smallest:g}")


def log_det(noise: Tensor, output_dim: int) -> Tensor:
    """log det of the noise covariance."""
    if noise.ndim == 0:
        return output_dim * noise.log()
    if noise.ndim == 1:
        return noise.log().sum()
    return 2.0 * torch.linalg.cholesky(noise).diagonal().log().sum()


def whiten(noise: Tensor, columns: Tensor) -> Tensor:
    """`L^-1 M` for a matrix M `(D, M)`, where `L L^T` is the noise covariance."""
    if noise.ndim == 0:
        return columns / noise.sqrt()
    if noise.ndim == 1:
        return columns / noise.sqrt()[:, None]
    return torch.linalg.solve_triangular(torch.linalg.cholesky(noise), columns, upper=False)


def whiten_transposed(noise: Tensor, columns: Tensor) -> Tensor:
    """`L^-T M` for a matrix M `(D, M)`, where `L L^T` is the noise covariance."""
    if noise.ndim < 2:
        return whiten(noise, columns)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(noise).mT, columns, upper=True)


def solve(noise: Tensor, columns: Tensor) -> Tensor:
    """`noise^-1 M` for a matrix M `(D, M)`, or a batch of them."""
    if noise.ndim == 0:
        return columns / noise
    if noise.ndim == 1:
        return columns / noise[:, None]
    return torch.cholesky_solve(columns, torch.linalg.cholesky(noise))


def scale_samples(noise: Tensor, normal: Tensor) -> Tensor:
    """Turn standard normal rows `(..., D)` into noise."""
    if noise.ndim < 2:
        return normal * noise.sqrt()
    return normal @ torch.linalg.cholesky(noise).mT


def constant(noise: Tensor, output_dim: int) -> Tensor:
    """`-1/2 log det(2 pi noise)`."""
    return -0.5 * (output_dim * math.log(2.0 * math.pi) + log_det(noise, output_dim))


class Observed:
    """Noise seen through missing entries: one problem for each row, with missing coordinates switched off.

    Rows and columns of missing coordinates are replaced by those of the identity. The Cholesky factor then
    acts on the observed coordinates as the factor of their own covariance, so that all patterns of missing
    entries are handled in one batch.

    Args:
        noise: the noise of all D coordinates.
        mask: `(n, D)`, true where observed.
    """

    def __init__(self, noise: Tensor, mask: Tensor) -> None:
        self.noise, self.mask = noise, mask.to(torch.float64)
        self._factor: Tensor | None = None
        if noise.ndim == 2:
            both = self.mask[:, :, None] * self.mask[:, None, :]
            masked = noise * both + torch.diag_embed(1.0 - self.mask)
            self._factor = torch.linalg.cholesky(masked)

    def whiten(self, columns: Tensor) -> Tensor:
        """`L_n^-1 M_n` with zeros at missing coordinates, for M `(n, D, m)` or `(D, m)`."""
        masked = columns * self.mask[:, :, None]
        if self._factor is None:
            return whiten(self.noise, masked) if self.noise.ndim == 0 else masked / self.noise.sqrt()[:, None]
        return torch.linalg.solve_triangular(self._factor, masked, upper=False)

    @property
    def constant(self) -> Tensor:
        """`-1/2 log det(2 pi noise_oo)` of each row, `(n,)`."""
        count = self.mask.sum(1)
        if self._factor is None:
            log_variance = self.noise.log().expand(self.mask.shape[1])
            log_determinant = self.mask @ log_variance
        else:
            log_determinant = 2.0 * self._factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return -0.5 * (count * math.log(2.0 * math.pi) + log_determinant)

    def solve(self, columns: Tensor) -> Tensor:
        """`noise_oo^-1 M_{n, o}` with zeros at missing coordinates, for M `(n, D, m)`."""
        masked = columns * self.mask[:, :, None]
        if self._factor is None:
            return masked / (self.noise if self.noise.ndim == 0 else self.noise[:, None])
        return torch.cholesky_solve(masked, self._factor) * self.mask[:, :, None]

    def complete(self, columns: Tensor) -> Tensor:
        """Extend observed residuals to all D coordinates by their conditional mean given the observed ones.

        `M_n -> noise_{:, o} noise_oo^-1 M_{n, o}` for M `(n, D, m)`.
        """
        if self._factor is None:
            return columns * self.mask[:, :, None]
        return self.noise @ self.solve(columns)

    def conditional_covariance(self, weight: Tensor) -> Tensor:
        """`sum_n weight_n Cov[e | e_o]`: scalar trace, `(D,)` or `(D, D)`, in the shape of the noise."""
        missing = 1.0 - self.mask
        if self.noise.ndim == 0:
            return self.noise * (weight @ missing).sum()
        if self.noise.ndim == 1:
            return self.noise * (weight @ missing)
        explained = self.complete(self.noise.expand(len(self.mask), -1, -1))
        return torch.einsum("n,nij->ij", weight, self.noise - explained)
