"""The Concrete relaxation of categories and of levels: points of the simplex that can be differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from girih._arrays import ArrayLike, as_tensor, check_finite
from girih._options import real
from girih.errors import ParameterError
from girih.inference.posterior import make_generator
from girih.vae.bpef.exponential_polynomials import levels


def log_concrete(
    logits: Tensor, temperature: float, shape: tuple[int, ...] = (), generator: torch.Generator | None = None
) -> Tensor:
    r"""Draws of log y, y from the Concrete law with these logits, one for each row of them.

        log y = log_softmax((phi + g) / T),   g_r = -log(-log u_r),   u_r uniform on (0, 1)

    The arg max of y is r with probability softmax(phi)_r at every temperature.

    Args:
        logits: phi, `(..., R)`, normalised or not.
        temperature: T, not checked here.
        shape: leading axes of the draws.
        generator: torch's global generator by default.

    Returns:
        `(*shape, ..., R)`, differentiable in the logits; its `.exp()` sums to one.

    Source:
        Maddison, Mnih, Teh, *The Concrete distribution* (2017); Coarse Grained Exponential VAEs, section 3.2.

    Example:
        >>> import torch
        >>> from girih.vae.bpef.concrete import log_concrete
        >>> y = log_concrete(torch.zeros(3), 0.5, (4,), torch.Generator().manual_seed(0)).exp()
        >>> y.shape, bool(((y.sum(-1) - 1).abs() < 1e-6).all())
        (torch.Size([4, 3]), True)
    """
    return torch.log_softmax((logits + gumbel(logits, shape, generator)) / temperature, -1)


def log_concrete_with(
    largest: Tensor, logits: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draws of log y, y from the Concrete law given which of its entries is the largest.

        g_k + phi_k = t,   g_r + phi_r = -log(exp(-t) + exp(-phi_r - g'_r)) <= t,   t = log sum exp(phi) + g'

    with g' standard Gumbel numbers: the largest of them is drawn first, and the others below it.

    Args:
        largest: k, whole numbers `(...)`.
        logits: phi, `(..., R)`, normalised or not; broadcast against k.
        temperature: T, not checked here.
        generator: torch's global generator by default.

    Returns:
        `(..., R)`.

    Source:
        Maddison, Tarlow & Minka, *A* sampling* (2014), section 3 and appendix.

    Example:
        >>> import torch
        >>> from girih.vae.bpef.concrete import log_concrete_with
        >>> largest = torch.tensor([0, 2, 2, 1])
        >>> bool((log_concrete_with(largest, torch.zeros(3), 0.5).argmax(-1) == largest).all())
        True
    """
    logits = logits.log_softmax(-1).expand(*largest.shape, logits.shape[-1])
    top = gumbel(logits[..., :1], (), generator)
    below = -torch.logaddexp(-top, -logits - gumbel(logits, (), generator))
    return torch.log_softmax(below.scatter(-1, largest[..., None], top) / temperature, -1)


def gumbel(like: Tensor, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel numbers, `(*shape, *like.shape)`: minus the logarithm of exponential ones, which are never 0."""
    empty = torch.empty((*shape, *like.shape), dtype=like.dtype, device=like.device)
    return -empty.exponential_(generator=generator).log()


def log_density(log_y: Tensor, logits: Tensor, temperature: float) -> Tensor:
    r"""The log of the Concrete density at y, in nats, with respect to (y_1, ..., y_{R-1}).

        log (R-1)! + (R-1) log T + sum_r [phi_r - (T + 1) log y_r] - R log sum_r exp(phi_r - T log y_r)

    Taken at log y, so that a y too small for a float does no harm.

    Args:
        log_y: `(..., R)`.
        logits: phi, `(..., R)`.
        temperature: T.

    Returns:
        `(...,)`.

    Raises:
        ParameterError: the temperature is not positive.

    Source:
        Maddison, Mnih, Teh (2017), eq. 10.

    Example:
        >>> import torch
        >>> from girih.vae.bpef.concrete import log_density
        >>> centre = torch.full((3,), 1 / 3, dtype=torch.float64)
        >>> round(log_density(centre.log(), torch.zeros(3), 1.0).exp().item(), 6)
        2.0
    """
    T, R = as_temperature(temperature), logits.shape[-1]
    scale = math.lgamma(R) + (R - 1) * math.log(T)
    odds = logits - T * log_y
    return scale + (odds - log_y).sum(-1) - R * torch.logsumexp(odds, -1)


def relaxed(logits: Tensor, temperature: float, samples: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Draws from the Concrete distribution, differentiable in the logits.

        y_r = exp((logits_r + g_r) / T) / sum_r exp((logits_r + g_r) / T),   g_r ~ Gumbel(0, 1)

    The law of `torch.distributions.RelaxedOneHotCategorical`, without its checks. The Gumbel numbers are
    `-log(-log u)` of uniform u in [0, 1): torch's exponential numbers take ten times as long. Where u is 0, g is minus
    infinity and y_r is 0, which is what a number below all others gives; u is never 1.

    Args:
        logits: `(..., R)`, normalised or not.
        temperature: T > 0.
        samples: how many for each row of logits.
        generator: torch's global one by default.

    Returns:
        `(samples, ..., R)`, in the simplex.

    Source:
        CG-BPEF, section 3.2; Maddison, Mnih & Teh, The Concrete distribution (2017).

    Example:
        >>> import torch
        >>> from girih.vae.bpef.concrete import relaxed
        >>> y = relaxed(torch.zeros(2, 5), 0.5, samples=3)
        >>> y.shape, bool((y.sum(-1) - 1).abs().max() < 1e-6)
        (torch.Size([3, 2, 5]), True)
    """
    shape = (samples, *logits.shape)
    waiting = torch.rand(shape, dtype=logits.dtype, device=logits.device, generator=generator).log_().neg_()
    return torch.softmax((logits - waiting.log_()) / temperature, -1)


class RelaxedBPEF(Distribution):
    r"""Draws of `z = y^T zeta` in [-1, 1], differentiable in the logits: y is Concrete at temperature T.

        y = softmax((phi + g) / T),   z = sum_r y_r zeta_r

    As T goes to 0 the law of z goes to that on the levels, `probs = softmax(phi)`. At T > 0 it does not have the same
    mean or deviation: y averages over levels, which draws z inwards. The density of y is in closed form,
    `log_prob_simplex`; that of z is not, and `log_prob` raises.

    Args:
        logits: phi, `(..., R)`.
        temperature: T.

    Raises:
        ParameterError: the temperature is not positive, or there are fewer than 3 levels.
        NonFiniteError: logits that are not finite.

    Source:
        Coarse Grained Exponential VAEs, section 3.2.

    Example:
        >>> import torch
        >>> from girih.vae.bpef import CoarseBPEF
        >>> q = CoarseBPEF(torch.tensor([0.0, 3.0]), levels=11).relaxed(temperature=0.5)
        >>> z = q.rsample((1000,), seed=0)
        >>> z.shape, bool((z.abs() <= 1).all())
        (torch.Size([1000]), True)
    """

    _validate_args = __debug__  # torch's own default, which zuko switches off for everybody when it is imported
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"logits": constraints.real_vector}
    support = constraints.interval(-1.0, 1.0)
    has_rsample = True

    def __init__(self, logits: ArrayLike, temperature: float | Tensor, validate_args: bool | None = None) -> None:
        self.logits = as_tensor(logits, "logits")
        if self.logits.ndim == 0 or self.logits.shape[-1] < 3:
            raise ParameterError(f"logits must have shape (..., R) with R of 3 or more; got {tuple(self.logits.shape)}")
        check_finite(self.logits.detach(), "logits")
        self.temperature = as_temperature(temperature)
        super().__init__(self.logits.shape[:-1], torch.Size(), validate_args=validate_args)

    @property
    def levels(self) -> Tensor:
        """zeta, `(R,)`."""
        return levels(self.logits.shape[-1]).to(self.logits.device)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> RelaxedBPEF:
        """The same distribution with a larger batch shape; nothing is copied."""
        logits = self.logits.expand(*torch.Size(batch_shape), self.logits.shape[-1])
        return RelaxedBPEF(logits, self.temperature, validate_args=self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of z, `(*sample_shape, *batch_shape)`, differentiable in the logits."""
        z = self.rsample_simplex(sample_shape, seed) @ self.levels
        return z.clamp(-1.0, 1.0)  # what sums of y are off by rounding

    def sample(self, sample_shape: Sequence[int] = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of z without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, seed)

    def rsample_simplex(self, sample_shape: Sequence[int] = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of y, `(*sample_shape, *batch_shape, R)`, differentiable in the logits."""
        generator = make_generator(seed, self.logits.device)
        return log_concrete(self.logits, self.temperature, tuple(sample_shape), generator).exp()

    def log_prob_simplex(self, y: ArrayLike) -> Tensor:
        """The log density of y, in nats, with respect to its first R - 1 coordinates; infinite where a y_r is 0.

        For y `(..., R)` on the simplex.
        """
        y = as_tensor(y, "y")
        if self._validate_args and not bool(constraints.simplex.check(y.detach()).all()):
            raise ParameterError("y must lie on the simplex: entries of 0 or more that sum to 1")
        return log_density(y.log(), self.logits, self.temperature)

    def log_prob(self, value: ArrayLike) -> Tensor:
        """This density is not available.

        Raises:
            NotImplementedError: always; the law of z is an integral over the simplex.
        """
        raise NotImplementedError("the density of z has no closed form; log_prob_simplex gives that of y")


def as_temperature(temperature: float | Tensor) -> float:
    """A positive, finite temperature.

    Raises:
        ParameterError: it is not one.
    """
    if isinstance(temperature, Tensor) and temperature.numel() == 1:
        temperature = temperature.item()
    return real(temperature, "temperature")
