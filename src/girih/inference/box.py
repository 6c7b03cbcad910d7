r"""A uniform prior in closed form: a Gaussian one, so wide that it is constant on the box, and the box's cells alone.

With `tau = 1e5 r`, r the distance of the farthest corner from 0, the density of `N(0, tau^2 I)` on the box is

    (2 pi tau^2)^(-S/2) exp(-|z|^2 / (2 tau^2)),    and  |z|^2 / (2 tau^2) <= 5e-11,

so the integrals over the cells of the box are those of `Line` and `Polytopes`, less a constant, to a small part of
their error. Both take prior variances of any size, as all that they compare is in logarithms, or relative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from girih.inference.model import Model, Moments, Region, Rows
from girih.inference.posterior import Posterior
from girih.inference.priors import UniformPrior
from girih.networks import Trace
from girih.partition import Partition

_WIDE = 1e5


class Box(Region):
    """The latent space that a uniform prior leaves.

    Args:
        inner: makes the region of a partition and a Gaussian prior.
        part: the partition of the box.
        prior: uniform on it.

    Attributes:
        covariance: of the Gaussian prior, `tau^2 I`.
    """

    def __init__(self, inner: Callable[[Partition, Tensor], Region], part: Partition, prior: UniformPrior) -> None:
        variance = (_WIDE * prior.reach) ** 2
        self.covariance = variance * torch.eye(prior.dim, dtype=torch.float64, device=part.trace.device)
        self._inner, self._prior = inner(part, self.covariance), prior
        self._shift = 0.5 * prior.dim * math.log(2.0 * math.pi * variance) - prior.entropy()

    def entries(self, model: Model, complete: bool) -> int:
        """As of any prior."""
        return self._inner.entries(model, complete)

    def log_prob(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor]:
        """`log p(x)`, and a certified bound on the share that was left out."""
        log_p, left_out = self._inner.log_prob(model, rows)
        return log_p + self._shift, left_out

    def expect(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor, Moments]:
        """The same, and the moments of the posteriors."""
        log_p, left_out, moments = self._inner.expect(model, rows)
        return log_p + self._shift, left_out, moments

    def posterior(self, model: Model, trace: Trace, x: Tensor) -> Posterior:
        """The posteriors of rows `(N, D)`."""
        posterior = self._inner.posterior(model, trace, x)
        posterior.hold(self._prior, self._shift)
        return posterior
