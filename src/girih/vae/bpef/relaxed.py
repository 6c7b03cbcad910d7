"""`RelaxedBPEF`: the law of `z = y . zeta`, y from a Concrete distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from girih._arrays import as_tensor, check_finite
from girih.errors import ParameterError
from girih.inference.posterior import make_generator
from girih.vae.bpef import concrete
from girih.vae.bpef.checks import as_temperature
from girih.vae.bpef.polynomials import levels


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

    def __init__(self, logits: Any, temperature: Any, validate_args: bool | None = None) -> None:
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

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedBPEF:
        """The same distribution with a larger batch shape; nothing is copied."""
        logits = self.logits.expand(*torch.Size(batch_shape), self.logits.shape[-1])
        return RelaxedBPEF(logits, self.temperature, validate_args=self._validate_args)

    def rsample(self, sample_shape: Any = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of z, `(*sample_shape, *batch_shape)`, differentiable in the logits."""
        z = self.rsample_simplex(sample_shape, seed) @ self.levels
        return z.clamp(-1.0, 1.0)  # what sums of y are off by rounding

    def sample(self, sample_shape: Any = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of z without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, seed)

    def rsample_simplex(self, sample_shape: Any = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of y, `(*sample_shape, *batch_shape, R)`, differentiable in the logits."""
        generator = make_generator(seed, self.logits.device)
        return concrete.log_concrete(self.logits, self.temperature, tuple(sample_shape), generator).exp()

    def log_prob_simplex(self, y: Any) -> Tensor:
        """The log density of y, in nats, with respect to its first R - 1 coordinates; infinite where a y_r is 0.

        For y `(..., R)` on the simplex.
        """
        y = as_tensor(y, "y")
        if self._validate_args and not bool(constraints.simplex.check(y.detach()).all()):
            raise ParameterError("y must lie on the simplex: entries of 0 or more that sum to 1")
        return concrete.log_density(y.log(), self.logits, self.temperature)

    def log_prob(self, value: Any) -> Tensor:
        """Not available.

        Raises:
            NotImplementedError: always; the law of z is an integral over the simplex.
        """
        raise NotImplementedError("the density of z has no closed form; log_prob_simplex gives that of y")
