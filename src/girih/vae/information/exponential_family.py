"""Exponential families in both of their coordinate systems, natural parameters and moments."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from girih._arrays import ArrayLike, as_tensor, check_finite
from girih._options import whole
from girih.errors import ParameterError, ShapeError


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
        """Those of each factor."""
        return self.family.moments(natural)

    def natural(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """Those of each factor."""
        return self.family.natural(moments, start)

    def information(self, moments: Tensor, start: Tensor | None = None) -> Tensor:
        """The sum over the S factors."""
        return self.family.information(moments, start).sum(-1)

    def log_densities(self, natural: Tensor, z: Tensor) -> Tensor:
        """The sum over the S factors."""
        factors = (self.family.log_densities(natural[:, s], z[:, s]) for s in range(self.count))
        return torch.stack(list(factors)).sum(0)

    def distribution(self, natural: Tensor) -> Distribution:
        """Independent factors."""
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
        """The probabilities."""
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
        """`OneHotCategorical`."""
        return torch.distributions.OneHotCategorical(logits=natural, validate_args=False)

    def support(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        """The C one-hot vectors, each of weight 1."""
        size = self.parameter_shape[0]
        return torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
