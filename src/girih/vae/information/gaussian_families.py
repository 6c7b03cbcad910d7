"""Gaussians as exponential families."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from girih._options import whole
from girih.errors import LatentDimensionError, ParameterError
from girih.vae.information.exponential_family import ExponentialFamily

_LOG_2PI = math.log(2.0 * math.pi)

# Points of a sum over z on a line.
_MOST_POINTS = 2e6


class NormalFamily(ExponentialFamily):
    r"""Gaussians on a line: `t(z) = (z, z^2)`, `c = (mean / v, -1 / (2 v))`, `eta = (mean, mean^2 + v)`, variance v.

        F(c) = mean^2 / (2 v) + log(2 pi v) / 2,    I(eta) = -log(2 pi e v) / 2

    `Product(NormalFamily(), S)` are those with a diagonal covariance.

    Example:
        >>> import torch
        >>> from girih.vae.information import NormalFamily
        >>> family = NormalFamily()
        >>> c = family.natural(torch.tensor([1.0, 5.0]))   # mean 1, variance 4
        >>> c, family.moments(c)
        (tensor([ 0.2500, -0.1250]), tensor([1., 5.]))
    """

    parameter_shape = (2,)

    def natural_of(self, mean: Tensor, deviation: Tensor) -> Tensor:
        """The natural parameters `(..., 2)` of a mean and a standard deviation."""
        precision = deviation.square().reciprocal()
        return torch.stack((mean * precision, -0.5 * precision), -1)

    def sufficient(self, z: Tensor) -> Tensor:
        """`(z, z^2)`."""
        return torch.stack((z, z.square()), -1)

    def log_partition(self, natural: Tensor) -> Tensor:
        """`-c_1^2 / (4 c_2) + log(-pi / c_2) / 2`."""
        first, second = natural.unbind(-1)
        return -first.square() / (4.0 * second) + 0.5 * (math.pi / -second).log()

    def moments(self, natural: Tensor) -> Tensor:
        """`(mean, mean^2 + variance)`."""
        mean, variance = self.mean_variance(natural)
        return torch.stack((mean, mean.square() + variance), -1)

    def mean_variance(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the variance, `(...)` each."""
        first, second = natural.unbind(-1)
        variance = -0.5 / second
        return first * variance, variance

    def natural(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """In closed form; the second moment must be larger than the mean squared."""
        mean, variance = moments[..., 0], self._variance(moments)
        return torch.stack((mean / variance, -0.5 / variance), -1)

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`-log(2 pi e v) / 2`."""
        return -0.5 * (self._variance(moments).log() + _LOG_2PI + 1.0)

    def information_of(self, natural: Tensor) -> Tensor:
        """`log(-c_2 / (pi e)) / 2`: of the variance alone."""
        return 0.5 * ((-natural[..., 1]).log() - math.log(math.pi) - 1.0)

    def log_densities(self, natural: Tensor, z: Tensor) -> Tensor:
        """From means and variances: no large terms cancel where variances are small."""
        mean, variance = self.mean_variance(natural)
        return -0.5 * ((z[:, None] - mean).square() / variance + variance.log() + _LOG_2PI)

    def support(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """The trapezoidal rule, in steps of a 16th of the smallest deviation, 12 deviations beyond the outer means."""
        mean, variance = (part.detach().double() for part in self.mean_variance(natural))
        reach = 12.0 * variance.sqrt()
        low, high = float((mean - reach).min()), float((mean + reach).max())
        step = float(variance.min()) ** 0.5 / 16.0
        if (high - low) / step > _MOST_POINTS:
            raise LatentDimensionError(
                f"the sum over z needs {(high - low) / step:.2g} points: the smallest deviation is {16.0 * step:.2g} "
                f"and the means spread over {high - low:.2g}; use mixture_compactness_sampled"
            )
        points = torch.arange(low, high, step, dtype=torch.float64)
        return points, torch.full_like(points, math.log(step))

    def distribution(self, natural: Tensor) -> Distribution:
        """`Normal`."""
        mean, variance = self.mean_variance(natural)
        return Normal(mean, variance.sqrt(), validate_args=False)

    def _variance(self, moments: Tensor) -> Tensor:
        variance = moments[..., 1] - moments[..., 0].square()
        if not bool((variance > 0).all()):
            low = float(variance.detach().min())
            raise ParameterError(
                f"moments (E[z], E[z^2]) of a Gaussian have a positive variance E[z^2] - E[z]^2; got {low:g}"
            )
        return variance

    def _check_domain(self, natural: Tensor) -> None:
        if not bool((natural[..., 1] < 0).all()):
            high = float(natural[..., 1].max())
            raise ParameterError(f"the second natural parameter of a Gaussian, -1 / (2 variance), is < 0; got {high:g}")


class GaussianFamily(ExponentialFamily):
    r"""Gaussians in S dimensions with a full covariance V: `t(z) = [z | z z^T]`, shape `(S, S + 1)`.

        c = [V^-1 mean | -V^-1 / 2],    eta = [mean | V + mean mean^T],    I(eta) = -log det(2 pi e V) / 2

    Args:
        latent_dim: S.

    Example:
        >>> import torch
        >>> from girih.vae.information import GaussianFamily
        >>> family = GaussianFamily(2)
        >>> c = family.natural_of(torch.ones(2), torch.eye(2))
        >>> family.divergence(c, family.natural_of(torch.zeros(2), torch.eye(2)))
        tensor(1.)
    """

    def __init__(self, latent_dim: int) -> None:
        size = whole(latent_dim, "latent_dim")
        self.parameter_shape = (size, size + 1)

    def natural_of(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """The natural parameters of means `(..., S)` and covariances `(..., S, S)`, positive definite."""
        factor = _factor(covariance)
        precision = torch.cholesky_inverse(factor)
        shift = torch.cholesky_solve(mean[..., None], factor)
        return torch.cat((shift, -0.5 * precision), -1)

    def mean_covariance(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """The means `(..., S)` and covariances `(..., S, S)`."""
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(self._precision(natural)))
        return (covariance @ natural[..., :1])[..., 0], covariance

    def sufficient(self, z: Tensor) -> Tensor:
        """`[z | z z^T]`."""
        return torch.cat((z[..., None], z[..., None] * z[..., None, :]), -1)

    def log_partition(self, natural: Tensor) -> Tensor:
        """`(mean^T V^-1 mean + log det(2 pi V)) / 2`."""
        mean, _ = self.mean_covariance(natural)
        size = self.parameter_shape[0]
        quadratic = (mean * natural[..., 0]).sum(-1)
        return 0.5 * (quadratic + size * _LOG_2PI - torch.logdet(self._precision(natural)))

    def moments(self, natural: Tensor) -> Tensor:
        """`[mean | V + mean mean^T]`."""
        mean, covariance = self.mean_covariance(natural)
        return torch.cat((mean[..., None], covariance + mean[..., None] * mean[..., None, :]), -1)

    def natural(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """In closed form; the covariance must be positive definite."""
        return self.natural_of(moments[..., 0], self._covariance(moments))

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`-log det(2 pi e V) / 2`."""
        factor = _factor(self._covariance(moments))
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -half_log_det - 0.5 * self.parameter_shape[0] * (_LOG_2PI + 1.0)

    def information_of(self, natural: Tensor) -> Tensor:
        """`log det(V^-1 / (2 pi e)) / 2`: of the covariance alone."""
        return 0.5 * (torch.logdet(self._precision(natural)) - self.parameter_shape[0] * (_LOG_2PI + 1.0))

    def log_densities(self, natural: Tensor, z: Tensor) -> Tensor:
        """From means and precisions: no large terms cancel where variances are small."""
        mean, _ = self.mean_covariance(natural)
        precision, gap = self._precision(natural), z[:, None] - mean
        quadratic = torch.einsum("bns,nst,bnt->bn", gap, precision, gap)
        return 0.5 * (torch.logdet(precision) - self.parameter_shape[0] * _LOG_2PI - quadratic)

    def distribution(self, natural: Tensor) -> Distribution:
        """`MultivariateNormal`."""
        mean, covariance = self.mean_covariance(natural)
        return MultivariateNormal(mean, covariance, validate_args=False)

    @staticmethod
    def _precision(natural: Tensor) -> Tensor:
        second = natural[..., 1:]
        return -(second + second.mT)

    @staticmethod
    def _covariance(moments: Tensor) -> Tensor:
        mean, second = moments[..., 0], moments[..., 1:]
        return 0.5 * (second + second.mT) - mean[..., None] * mean[..., None, :]

    def _check_domain(self, natural: Tensor) -> None:
        if bool((torch.linalg.cholesky_ex(self._precision(natural)).info > 0).any()):
            raise ParameterError(
                "the natural parameters of a Gaussian are [V^-1 mean | -V^-1 / 2]; here V^-1 is not positive definite"
            )


def _factor(covariance: Tensor) -> Tensor:
    """The Cholesky factor; refuses moments with no variance in some direction."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool((info > 0).any()):
        low = float(torch.linalg.eigvalsh(covariance.detach()).min())
        raise ParameterError(
            f"the covariance E[z z^T] - E[z] E[z]^T of a Gaussian must be positive definite; "
            f"its smallest eigenvalue is {low:g}"
        )
    return factor
