"""`CoarseBPEF` and `BPEF`: the polynomial exponential family on R levels of [-1, 1], and on the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints, register_kl

from girih._arrays import ArrayLike, as_tensor
from girih._options import whole
from girih.errors import ParameterError
from girih.inference.posterior import make_generator
from girih.vae.bpef.concrete import RelaxedBPEF
from girih.vae.bpef.exponential_polynomials import (
    as_coefficients,
    blocks,
    check_basis,
    check_order,
    evaluate,
    levels,
    log_masses,
    polynomials,
    rule_for,
    within,
)

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
        """The entropy in nats, `(...)`; it lies between 0 and log R."""
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
        """Tell which values are levels."""
        step = (value + 1.0) * (0.5 * (self.R - 1))
        nearest = step.round()
        return ((step - nearest).abs() <= _NEAR) & (nearest >= 0) & (nearest <= self.R - 1)


def grid(R: int, order: int, basis: str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The levels zeta `(R,)` and the statistics of each, `(R, M)`, float64; logits are `coefficients @ statistics.mT`.

    Example:
        >>> from girih.vae.bpef.distributions import grid
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


# Newton's steps with bisection: it converges in some six, bisection alone in 50.
_STEPS = 60
_ROUNDING = 2.0**-52


class BPEF(Distribution):
    r"""A density on [-1, 1] whose logarithm is a polynomial of order M.

        p(z) = exp(c . t(z) - F(c)),   F(c) = log of the integral of exp(c . t(z)) over [-1, 1]

    What `CoarseBPEF` tends to as R grows. An exponential family: the gradient of `log_partition` with respect to the
    coefficients is `moments`. Integrals are by Gauss-Legendre panels, fine enough for the narrowest peak that the
    coefficients allow; the error of F, of moments, the entropy and the cdf is below `1e-13 max(1, range)`, the range of
    `c . t(z)` over [-1, 1] in nats: that of rounding. It was tested against quadrature in 30 digits for M up to 20,
    ranges up to 2e5, peaks of width 2e-6, at the ends and two at a time.

    Args:
        coefficients: c, `(..., M)`, the natural parameters.
        basis: of the polynomials t, "monomial" or "legendre"; see `girih.vae.bpef.polynomials`.

    Attributes:
        coefficients: `(..., M)`, float64.
        log_partition: F, `(...)`.

    Raises:
        ParameterError: no coefficients, an unknown basis, or a density too narrow to be integrated.
        NonFiniteError: coefficients that are not finite.

    Source:
        Coarse Grained Exponential VAEs, eq. 2.

    Example:
        >>> import torch
        >>> from girih.vae.bpef import BPEF
        >>> q = BPEF(torch.tensor([4.0, -8.0]))  # N(1/4, 1/16), truncated
        >>> round(q.mean.item(), 4), round(q.cdf(torch.tensor(0.25)).item(), 4)
        (0.2489, 0.5007)
        >>> round(BPEF(torch.zeros(3)).entropy().item(), 12)  # uniform: log 2
        0.69314718056
    """

    _validate_args = __debug__  # torch's own default, which zuko switches off for everybody when it is imported
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"coefficients": constraints.real_vector}
    support = constraints.interval(-1.0, 1.0)

    def __init__(self, coefficients: ArrayLike, basis: str = "monomial", validate_args: bool | None = None) -> None:
        self.coefficients = as_coefficients(coefficients)
        self.basis = check_basis(basis)
        self._rule = rule_for(self.coefficients, self.basis)
        batch = self.coefficients.shape[:-1]
        self._log_masses = log_masses(self._flat(), self._rule).reshape(*batch, len(self._rule.edges) - 1)
        self.log_partition = torch.logsumexp(self._log_masses, -1)
        super().__init__(batch, torch.Size(), validate_args=validate_args)

    def log_prob(self, value: ArrayLike) -> Tensor:
        """log p(z) in nats; minus infinity outside [-1, 1]. Differentiable in z and the coefficients."""
        z = as_tensor(value, "value", self.coefficients.device)
        if self._validate_args:
            self._validate_sample(z)
        log_p = evaluate(self.coefficients, z, self.basis) - self.log_partition
        return torch.where(z.abs() <= 1.0, log_p, -torch.inf)

    @property
    def moments(self) -> Tensor:
        """The moment parameters E[t(z)], `(..., M)`."""
        return self.expectation(lambda z: polynomials(z, self.coefficients.shape[-1], self.basis))

    @property
    def mean(self) -> Tensor:
        """E[z], `(...)`."""
        return self.expectation(lambda z: z[:, None])[..., 0]

    @property
    def variance(self) -> Tensor:
        """Var[z], `(...)`."""
        return self._mean_of(lambda log_p, mean: (self._rule.nodes - mean[:, None]).square(), self.mean)

    def entropy(self) -> Tensor:
        """The differential entropy in nats, `(...)`; at most log 2."""
        return -self._mean_of(lambda log_p: log_p)

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """E[f(z)] of a smooth function, `(n,)` to `(n, k)`: `(..., k)`, by the panels that resolve the density."""
        values = function(self._rule.nodes)
        parts = [mass @ values for mass, *_ in self._nodes()]
        return torch.cat(parts).reshape(*self.batch_shape, values.shape[-1])

    def cdf(self, value: ArrayLike) -> Tensor:
        """P(z <= value); differentiable."""
        z = as_tensor(value, "value", self.coefficients.device)
        if self._validate_args:
            self._validate_sample(z)
        shape = torch.broadcast_shapes(z.shape, self.batch_shape)
        z = z.clamp(-1.0, 1.0).expand(shape)
        panel = torch.searchsorted(self._rule.edges[1:-1].contiguous(), z.detach().contiguous(), right=True)
        masses = self._masses(shape)
        before = self._look_up(masses.cumsum(-1) - masses, panel, shape)
        return (before + self._share(self._rule.edges[panel], z)).clamp(0.0, 1.0)

    def icdf(self, value: ArrayLike) -> Tensor:
        """The quantile z with P(<= z) = value, for values in [0, 1]; without gradients."""
        u = as_tensor(value, "value", self.coefficients.device)
        if not bool(((u >= 0.0) & (u <= 1.0)).all()):
            raise ParameterError("quantiles are of values from 0 to 1")
        with torch.no_grad():
            shape = torch.broadcast_shapes(u.shape, self.batch_shape)
            u, masses = u.expand(shape), self._masses(shape)
            ends = masses.cumsum(-1)
            found = torch.searchsorted(ends, self._by_distribution(u, shape)).clamp(max=ends.shape[-1] - 1)
            panel = found.mT.reshape(shape)
            rest = u - self._look_up(ends - masses, panel, shape)
            return self._solve(self._rule.edges[panel], self._rule.edges[panel + 1], rest)

    def sample(self, sample_shape: Sequence[int] = torch.Size(), seed: int | None = None) -> Tensor:
        """Exact draws by inversion, `(*sample_shape, *batch_shape)`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        like = self.log_partition
        generator = make_generator(seed, like.device)
        return self.icdf(torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator))

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> BPEF:
        """The same distribution with a larger batch shape; nothing is copied."""
        shape = torch.Size(batch_shape)
        new: BPEF = self._get_checked_instance(BPEF, _instance)
        new.coefficients, new.basis = self.coefficients.expand(*shape, -1), self.basis
        new._rule, new._log_masses = self._rule, self._log_masses.expand(*shape, -1)
        new.log_partition = self.log_partition.expand(shape)
        super(BPEF, new).__init__(shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _flat(self) -> Tensor:
        return self.coefficients.reshape(-1, self.coefficients.shape[-1])

    def _nodes(self, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Blocks of the rows of the batch: the mass at each node `(b, n)`, its log density `(b, n)`, and more rows."""
        rule = self._rule
        flat = [part.reshape(-1) for part in (self.log_partition, *rows)]
        start = 0
        for part in blocks(self._flat(), rule):
            log_partition, *others = (column[start : start + len(part)] for column in flat)
            log_p = part @ rule.statistics.mT - log_partition[:, None]
            # normalised here once more: F, being large, has lost digits that the masses still have
            yield torch.softmax(log_p + rule.log_weights, -1), log_p, *others
            start += len(part)

    def _mean_of(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """E[f(log p(z), ...)] of a function of the log density at the nodes, `(...)`."""
        parts = [(mass * function(log_p, *others)).sum(-1) for mass, log_p, *others in self._nodes(*rows)]
        return torch.cat(parts).reshape(self.batch_shape)

    def _masses(self, shape: torch.Size) -> Tensor:
        """The mass of each panel, `(B, P)`, for the B distributions of a batch that values of this shape ask for."""
        batch = shape[len(shape) - len(self.batch_shape) :]
        masses = torch.softmax(self._log_masses, -1)
        return masses.expand(*batch, -1).reshape(batch.numel(), masses.shape[-1])

    def _by_distribution(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Values `(..., *batch)` as `(B, n)`: those of one distribution in a row."""
        batch = shape[len(shape) - len(self.batch_shape) :].numel()
        return values.reshape(shape.numel() // max(1, batch), batch).mT.contiguous()

    def _look_up(self, table: Tensor, panel: Tensor, shape: torch.Size) -> Tensor:
        """The entry `(...)` of the table `(B, P)` for each panel `(...)`."""
        return table.gather(-1, self._by_distribution(panel, shape)).mT.reshape(shape)

    def _share(self, lower: Tensor, z: Tensor) -> Tensor:
        """P(lower < . < z) for z in the panel that starts at `lower`."""
        nodes, weights = within(lower, z)
        log_p = evaluate(self.coefficients[..., None, :], nodes, self.basis) - self.log_partition[..., None]
        return (weights * log_p.exp()).sum(-1)

    def _solve(self, lower: Tensor, upper: Tensor, rest: Tensor) -> Tensor:
        """The z in its panel with `_share(lower, z) = rest`: Newton's steps, halving where they leave the bracket."""
        start, low, high = lower, lower, upper
        z = 0.5 * (low + high)
        for _ in range(_STEPS):
            excess = self._share(start, z) - rest
            low, high = torch.where(excess < 0.0, z, low), torch.where(excess < 0.0, high, z)
            density = (evaluate(self.coefficients, z, self.basis) - self.log_partition).exp()
            newton = z - excess / density
            inside = (newton > low) & (newton < high)
            after = torch.where(inside, newton, 0.5 * (low + high))
            settled = ((after - z).abs() <= _ROUNDING * (upper - lower + z.abs())) | (excess.abs() <= _ROUNDING)
            if bool(settled.all()):
                return after
            z = after
        return z


@register_kl(BPEF, BPEF)
def continuous_divergence(q: BPEF, p: BPEF) -> Tensor:
    r"""KL(q || p) in nats: the integral of q (log q - log p), by the panels of q. Bases and orders may differ."""
    batch = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    q, p = q.expand(batch), p.expand(batch)
    nodes = q._rule.nodes
    statistics = polynomials(nodes, p.coefficients.shape[-1], p.basis)
    start, parts = 0, []
    for mass, log_q, log_partition in q._nodes(p.log_partition):
        rows = p._flat()[start : start + len(mass)]
        log_p = rows @ statistics.mT - log_partition[:, None]
        parts.append((mass * (log_q - log_p)).sum(-1))
        start += len(mass)
    return torch.cat(parts).reshape(batch)
