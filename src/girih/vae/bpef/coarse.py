"""`CoarseBPEF`: the polynomial exponential family on R levels of [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints, register_kl

from girih._arrays import ArrayLike, as_tensor
from girih._options import whole
from girih.errors import ParameterError
from girih.inference.posterior import make_generator
from girih.vae.bpef.concrete import RelaxedBPEF
from girih.vae.bpef.polynomials import as_coefficients, check_basis, check_order, levels, polynomials

# How far from a level a value may be, in steps between levels, and still be meant: the rounding of float32.
_NEAR = 1e-4


class CoarseBPEF(Distribution):
    r"""A distribution on R levels of [-1, 1] whose log-probabilities are a polynomial of order M.

        P(z = zeta_r) = exp(c . t(zeta_r) - F(c)),   F(c) = log sum_r exp(c . t(zeta_r))

    An exponential family: the gradient of `log_partition` with respect to the coefficients is `moments`. Everything is
    computed in float64, in log space, so coefficients of thousands do no harm.

    Args:
        coefficients: c, `(..., M)`, the natural parameters.
        levels: R.
        basis: of the polynomials t, "monomial" or "legendre"; see `girih.vae.bpef.polynomials`.

    Attributes:
        coefficients: `(..., M)`, float64.
        levels: zeta, `(R,)`.
        logits: log P(z = zeta_r), normalised, `(..., R)`.
        log_partition: F, `(...)`.

    Raises:
        ParameterError: M >= R - 1, R below 3, no coefficients, or an unknown basis.
        NonFiniteError: coefficients that are not finite.

    Source:
        Coarse Grained Exponential VAEs, sections 3.1 and 3.2.

    Example:
        >>> import torch
        >>> from girih.vae.bpef import CoarseBPEF
        >>> q = CoarseBPEF(torch.tensor([1.0, 2.0]), levels=5)
        >>> q.probs.numpy().round(3)
        array([0.099, 0.036, 0.036, 0.099, 0.73 ])
        >>> p = CoarseBPEF(torch.zeros(2), levels=5)
        >>> round(torch.distributions.kl_divergence(q, p).item(), 4)
        0.6814
    """

    _validate_args = __debug__  # torch's own default, which zuko switches off for everybody when it is imported
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"coefficients": constraints.real_vector}
    has_enumerate_support = True

    def __init__(
        self,
        coefficients: ArrayLike,
        levels: int = 101,
        basis: str = "monomial",
        validate_args: bool | None = None,
    ) -> None:
        self.coefficients = as_coefficients(coefficients)
        self.basis = check_basis(basis)
        order = self.coefficients.shape[-1]
        R = whole(levels, "levels", 3)
        check_order(order, R)
        self.levels, self.statistics = grid(R, order, self.basis, self.coefficients.device)
        exponents = self.coefficients @ self.statistics.mT
        self.log_partition = torch.logsumexp(exponents, -1)
        self.logits = exponents - self.log_partition[..., None]
        super().__init__(self.coefficients.shape[:-1], torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The R levels."""
        return OnLevels(len(self.levels))

    @property
    def probs(self) -> Tensor:
        """P(z = zeta_r), `(..., R)`."""
        return self.logits.exp()

    @property
    def moments(self) -> Tensor:
        """The moment parameters E[t(z)], `(..., M)`."""
        return self.probs @ self.statistics

    @property
    def mean(self) -> Tensor:
        """E[z], `(...)`."""
        return self.probs @ self.levels

    @property
    def variance(self) -> Tensor:
        """Var[z], `(...)`."""
        return (self.probs * (self.levels - self.mean[..., None]).square()).sum(-1)

    def entropy(self) -> Tensor:
        """In nats, `(...)`; between 0 and log R."""
        return -(self.probs * self.logits).sum(-1)

    def log_prob(self, value: ArrayLike) -> Tensor:
        """log P(z = value) in nats; minus infinity where the value is not a level."""
        value = as_tensor(value, "value", self.coefficients.device)
        if self._validate_args:
            self._validate_sample(value)
        R = len(self.levels)
        inside = OnLevels(R).check(value)
        index = torch.where(inside, (value.detach() + 1.0) * (0.5 * (R - 1)), 0.0).round().long()
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        logits = self.logits.expand(*shape, R)
        log_p = logits.gather(-1, index.expand(shape)[..., None])[..., 0]
        return torch.where(inside, log_p, -torch.inf)

    def sample(self, sample_shape: Sequence[int] = torch.Size(), seed: int | None = None) -> Tensor:
        """Exact draws of z, `(*sample_shape, *batch_shape)`: levels, each with its probability."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            if seed is None:
                index = Categorical(logits=self.logits, validate_args=False).sample(shape)
            else:
                flat = self.probs.reshape(-1, len(self.levels))
                generator = make_generator(seed, flat.device)
                index = flat.new_empty((shape.numel(), len(flat)), dtype=torch.long)
                if index.numel():
                    index = torch.multinomial(flat, shape.numel(), True, generator=generator).mT
                index = index.reshape(*shape, *self.batch_shape)
            return self.levels[index]

    def relaxed(self, temperature: float | Tensor) -> RelaxedBPEF:
        """The relaxation that training draws from, at a temperature above 0."""
        return RelaxedBPEF(self.logits, temperature, validate_args=self._validate_args)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels, `(R, *batch_shape)`, or `(R, 1, ..., 1)` if they are not to be expanded."""
        values = self.levels.reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> CoarseBPEF:
        """The same distribution with a larger batch shape; nothing is copied."""
        shape = torch.Size(batch_shape)
        new: CoarseBPEF = self._get_checked_instance(CoarseBPEF, _instance)
        new.coefficients = self.coefficients.expand(*shape, -1)
        new.basis, new.levels, new.statistics = self.basis, self.levels, self.statistics
        new.log_partition, new.logits = self.log_partition.expand(shape), self.logits.expand(*shape, -1)
        super(CoarseBPEF, new).__init__(shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new


class OnLevels(constraints.Constraint):
    """Values that are one of R levels of [-1, 1], up to the rounding of float32."""

    is_discrete = True
    event_dim = 0

    def __init__(self, R: int) -> None:
        self.R = R
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Where a value is a level."""
        step = (value + 1.0) * (0.5 * (self.R - 1))
        nearest = step.round()
        return ((step - nearest).abs() <= _NEAR) & (nearest >= 0) & (nearest <= self.R - 1)


def grid(R: int, order: int, basis: str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The levels zeta `(R,)` and the statistics of each, `(R, M)`, float64; logits are `coefficients @ statistics.mT`.

    Example:
        >>> from girih.vae.bpef.coarse import grid
        >>> [tuple(part.shape) for part in grid(11, 4, "legendre")]
        [(11,), (11, 4)]
    """
    zeta = levels(R).to(device)
    return zeta, polynomials(zeta, order, basis)


@register_kl(CoarseBPEF, CoarseBPEF)
def coarse_divergence(q: CoarseBPEF, p: CoarseBPEF) -> Tensor:
    r"""KL(q || p) in nats, exact: `sum_r q_r (log q_r - log p_r)`. Bases may differ, levels may not.

    Raises:
        ParameterError: the levels differ.

    Source:
        Coarse Grained Exponential VAEs, eq. 4.
    """
    if len(q.levels) != len(p.levels):
        raise ParameterError(f"both must have the same levels; got {len(q.levels)} and {len(p.levels)}")
    return (q.probs * (q.logits - p.logits)).sum(-1)
