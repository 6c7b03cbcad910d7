"""Exponential families in both of their coordinate systems, natural parameters and moments: categories, Gaussians."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from girih._arrays import ArrayLike, as_tensor, check_finite
from girih._options import whole
from girih.errors import LatentDimensionError, ParameterError, ShapeError


class ExponentialFamily(ABC):
    r"""Distributions `p(z) = exp(<t(z), c> - F(c))` with natural parameters c.

        eta = E[t(z)] = F'(c),    I(eta) = <c, eta> - F(c) = -entropy,    c = I'(eta)

    F is convex in c and I in eta; the two maps are inverse to each other (Legendre). The base measure is 1 in every
    family here, so I is Shannon's information, in nats: of a density, or of probabilities where z takes finitely many
    values.

    Attributes:
        parameter_shape: of the natural parameters, and of the moments, of one distribution; batches come before it.

    Source:
        CG-BPEF, section 5 and Lemma 1 of its appendix B.
    """

    parameter_shape: tuple[int, ...]

    @abstractmethod
    def sufficient(self, z: Tensor) -> Tensor:
        """`t(z)`, the sufficient statistics: `(..., *parameter_shape)`."""

    @abstractmethod
    def log_partition(self, natural: Tensor) -> Tensor:
        """`F(c)`, nats: `(...)`."""

    @abstractmethod
    def moments(self, natural: Tensor) -> Tensor:
        """`eta = F'(c) = E[t(z)]`, in the shape of c."""

    @abstractmethod
    def natural(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`c = I'(eta)`, the natural parameters of the distribution with these moments; differentiable.

        Args:
            moments: eta, `(..., *parameter_shape)`.
            start: a guess of c, which saves time where there is no closed form.

        Raises:
            ParameterError: no distribution of the family has these moments.
        """

    @abstractmethod
    def distribution(self, natural: Tensor) -> Distribution:
        """The distributions themselves, for sampling and densities."""

    def log_densities(self, natural: Tensor, z: Tensor) -> Tensor:
        """`log p(z_b; c_k)` of every z `(B, ...)` under every c `(n, *parameter_shape)`: `(B, n)` nats."""
        return self.sufficient(z).flatten(1) @ natural.flatten(1).mT - self.log_partition(natural)

    def support(self, natural: Tensor) -> tuple[Tensor, Tensor] | None:
        """Points z and log weights `(K,)` that turn integrals of these `(n, ...)` densities and mixtures into sums.

        `None` where there are no such points.
        """
        return None

    def pairing(self, natural: Tensor, moments: Tensor) -> Tensor:
        """`<c, eta>`, the sum over the parameters: `(...)`."""
        return (natural * moments).sum(tuple(range(-len(self.parameter_shape), 0)))

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`I(eta)`, the negative entropy in nats, convex in eta: `(...)`; `start` as for `natural`."""
        natural = self.natural(moments, start)
        return self.pairing(natural, moments) - self.log_partition(natural)

    def information_of(self, natural: Tensor) -> Tensor:
        """The same as a function of c, which needs no inversion: `<c, F'(c)> - F(c)`."""
        return self.pairing(natural, self.moments(natural)) - self.log_partition(natural)

    def divergence(self, natural: Tensor, other: Tensor) -> Tensor:
        """`KL(p : q) = F(c_q) - F(c_p) - <c_q - c_p, eta_p>`, a Bregman divergence of F: nats, `(...)`.

        Args:
            natural: of p, `(..., *parameter_shape)`.
            other: of q, broadcast against it.
        """
        gap = self.pairing(other - natural, self.moments(natural))
        return self.log_partition(other) - self.log_partition(natural) - gap

    def check(self, natural: ArrayLike, batch: bool = False) -> Tensor:
        """Natural parameters as a tensor; with `batch`, of n >= 1 distributions `(n, *parameter_shape)`.

        Raises:
            ShapeError, NonFiniteError: they are not of this family's shape, or not finite.
            ParameterError: they are outside the family's domain.
        """
        tensor = natural if isinstance(natural, Tensor) else as_tensor(natural, "natural")
        size, expected = len(self.parameter_shape), ("n" if batch else "...", *self.parameter_shape)
        fits = tensor.ndim >= size and tuple(tensor.shape[tensor.ndim - size :]) == self.parameter_shape
        if not fits or (batch and (tensor.ndim != size + 1 or not len(tensor))):
            text = ", ".join(map(str, expected))
            raise ShapeError(f"natural must have shape ({text}), natural parameters last; got {tuple(tensor.shape)}")
        check_finite(tensor.detach().reshape(-1, 1), "natural")
        self._check_domain(tensor.detach())
        return tensor

    def _check_domain(self, natural: Tensor) -> None:  # noqa: B027  (most families refuse nothing)
        """Refuse finite natural parameters that belong to no distribution; all do in most families."""


class Product(ExponentialFamily):
    """Independent z_1, ..., z_S, each of one family: all of its functions are sums or stacks over them.

    Args:
        family: of each z_s; numbers or, for categories, one-hot vectors.
        count: S.

    Example:
        >>> import torch
        >>> from girih.vae.information import NormalFamily, Product
        >>> family = Product(NormalFamily(), 3)
        >>> family.information_of(torch.tensor([0.0, -0.5]).expand(3, 2))   # three standard Gaussians
        tensor(-4.2568)
    """

    def __init__(self, family: ExponentialFamily, count: int) -> None:
        self.family, self.count = family, whole(count, "count")
        if isinstance(family, Product):
            raise ParameterError("a product of products is a product: pass the inner family and the whole count")
        self.parameter_shape = (self.count, *family.parameter_shape)

    def sufficient(self, z: Tensor) -> Tensor:
        """`(t(z_1), ..., t(z_S))`."""
        return self.family.sufficient(z)

    def log_partition(self, natural: Tensor) -> Tensor:
        """The sum over the S factors."""
        return self.family.log_partition(natural).sum(-1)

    def moments(self, natural: Tensor) -> Tensor:
        """Stack those of each factor."""
        return self.family.moments(natural)

    def natural(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """Stack those of each factor."""
        return self.family.natural(moments, start)

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """The sum over the S factors."""
        return self.family.information(moments, start).sum(-1)

    def log_densities(self, natural: Tensor, z: Tensor) -> Tensor:
        """The sum over the S factors."""
        factors = (self.family.log_densities(natural[:, s], z[:, s]) for s in range(self.count))
        return torch.stack(list(factors)).sum(0)

    def distribution(self, natural: Tensor) -> Distribution:
        """Make a product of independent factors."""
        return Independent(self.family.distribution(natural), 1, validate_args=False)

    def _check_domain(self, natural: Tensor) -> None:
        self.family._check_domain(natural)


class CategoricalFamily(ExponentialFamily):
    """One-hot z among C categories: c are logits, eta probabilities.

    The logits are one too many: adding a number to all of them changes nothing. `natural` gives those with `F = 0`.

    Args:
        categories: C.

    Example:
        >>> import torch
        >>> from girih.vae.information import CategoricalFamily
        >>> family = CategoricalFamily(2)
        >>> family.moments(torch.zeros(2)), family.information(torch.tensor([0.5, 0.5]))
        (tensor([0.5000, 0.5000]), tensor(-0.6931))
    """

    def __init__(self, categories: int) -> None:
        self.parameter_shape = (whole(categories, "categories", 2),)

    def sufficient(self, z: Tensor) -> Tensor:
        """`z`, one-hot."""
        return z

    def log_partition(self, natural: Tensor) -> Tensor:
        """`log sum_c exp(logit_c)`."""
        return natural.logsumexp(-1)

    def moments(self, natural: Tensor) -> Tensor:
        """The moments are the probabilities, `(..., C)`."""
        return natural.softmax(-1)

    def natural(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`log eta`; every probability must be positive and their sum 1."""
        if not bool(((moments > 0).all(-1) & ((moments.sum(-1) - 1.0).abs() < 1e-6)).all()):
            low = float(moments.detach().min())
            raise ParameterError(
                f"moments of a categorical family are positive probabilities that sum to 1; the smallest is {low:g}"
            )
        return moments.log()

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`sum_c eta_c log eta_c`, with `0 log 0 = 0`."""
        result: Tensor = torch.special.xlogy(moments, moments).sum(-1)
        return result

    def distribution(self, natural: Tensor) -> Distribution:
        """Make a `OneHotCategorical` of the logits."""
        return torch.distributions.OneHotCategorical(logits=natural, validate_args=False)

    def support(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """The C one-hot vectors, each of weight 1."""
        size = self.parameter_shape[0]
        return torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)


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
        """Invert in closed form; the second moment must be larger than the mean squared."""
        mean, variance = moments[..., 0], self._variance(moments)
        return torch.stack((mean / variance, -0.5 / variance), -1)

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """`-log(2 pi e v) / 2`."""
        return -0.5 * (self._variance(moments).log() + _LOG_2PI + 1.0)

    def information_of(self, natural: Tensor) -> Tensor:
        """`log(-c_2 / (pi e)) / 2`: of the variance alone."""
        return 0.5 * ((-natural[..., 1]).log() - math.log(math.pi) - 1.0)

    def log_densities(self, natural: Tensor, z: Tensor) -> Tensor:
        """Compute them from means and variances: no large terms cancel where variances are small."""
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
        """Make a `Normal` of the natural parameters."""
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
        """Invert in closed form; the covariance must be positive definite."""
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
        """Compute them from means and precisions: no large terms cancel where variances are small."""
        mean, _ = self.mean_covariance(natural)
        precision, gap = self._precision(natural), z[:, None] - mean
        quadratic = torch.einsum("bns,nst,bnt->bn", gap, precision, gap)
        return 0.5 * (torch.logdet(precision) - self.parameter_shape[0] * _LOG_2PI - quadratic)

    def distribution(self, natural: Tensor) -> Distribution:
        """Make a `MultivariateNormal` of the natural parameters."""
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
