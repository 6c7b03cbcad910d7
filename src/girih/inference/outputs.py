r"""Outputs other than Gaussian: what `p(x | z)` is, given the K numbers `eta = g(z)` that the network gives.

The integrals need four things of an output: its log-density, the slope and the curvature of that in eta, and how far
it is from concave. Missing entries of x (NaN) are left out of the sum over coordinates, which is to marginalise them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from girih._arrays import as_tensor
from girih._options import real, wholes
from girih.errors import NoiseError, ParameterError, ShapeError

_HUGE = 300.0  # the log of a rate


class Observations(NamedTuple):
    """Rows of x without what is missing, and the part of their log-densities that no eta changes."""

    x: Tensor  # (n, D), 0 where missing
    seen: Tensor | None  # (n, D), 1 where observed and 0 elsewhere; `None` where all is
    constant: Tensor  # (n,)

    def take(self, index: Tensor) -> Observations:
        """Some of the rows."""
        return Observations(self.x[index], None if self.seen is None else self.seen[index], self.constant[index])

    def between(self) -> Observations:
        """The rows with an axis for several eta each."""
        seen = None if self.seen is None else self.seen[:, None]
        return Observations(self.x[:, None], seen, self.constant[:, None])

    def sum(self, parts: Tensor) -> Tensor:
        """The sum of a number of each coordinate over those that are observed."""
        return parts.sum(-1) if self.seen is None else (parts * self.seen).sum(-1)


class Output(ABC):
    """It is a distribution of x given eta, with coordinates that are independent of each other given z.

    Attributes:
        name: as `likelihood=` of `girih.DGN` takes it.
        scaled: whether `noise` is a scale of it.
        continuous: whether `log p` has a derivative in x.
        bent: whether `log p` has a kink in some eta, see `kinks`.
        natural: whether complete rows have `log p = t(x) eta - B(eta)` up to their constants.
        nothing: an x with `t(x) = 0`, or as near as there is, of natural outputs.
        support: what entries of x must be, for messages.
    """

    name: ClassVar[str]
    scaled: bool = False
    continuous: bool = False
    bent: bool = False
    natural: ClassVar[bool] = False
    nothing: ClassVar[float] = 0.0
    support: ClassVar[str] = "what its columns can"

    def columns(self, size: int) -> int:
        """How many columns x has for `size` outputs of the network."""
        return size

    def options(self) -> dict[str, Any]:
        """What it was made with, as plain values."""
        return {}

    def scale(self, value: object, size: int, device: torch.device) -> Tensor | None:
        """The scale `()` or `(D,)` that a user gave as `noise`, or `None` where there is none.

        Raises:
            ParameterError: a noise, of outputs that have none.
            ShapeError, NoiseError: it is not a positive scale.
        """
        if not self.scaled:
            if value is not None:
                raise ParameterError(f'outputs with likelihood="{self.name}" have no noise; leave it out')
            return None
        scale = as_tensor(1.0 if value is None else value, "noise", device)
        if tuple(scale.shape) not in {(), (size,)}:
            raise ShapeError(f"noise must be a scale or ({size},) scales; got shape {tuple(scale.shape)}")
        if not ((scale > 0.0) & torch.isfinite(scale)).all():
            raise NoiseError("noise must be a positive scale")
        return scale

    def observe(self, x: Tensor, scale: Tensor | None) -> Observations:
        """Rows `(n, D)` with NaN where missing, checked.

        Raises:
            ParameterError: an entry is outside the support.
        """
        missing = torch.isnan(x)
        self.check(x, missing, 0)
        seen = None if not missing.any() else (~missing).to(x.dtype)
        rows = Observations(torch.nan_to_num(x), seen, x.new_zeros(len(x)))
        return rows._replace(constant=rows.sum(self.constants(rows.x, scale)))

    def check(self, x: Tensor, missing: Tensor, first: int) -> None:
        """Refuse entries outside the support, of rows whose columns are counted from `first`."""
        wrong = ~(missing | self.supported(x))
        if wrong.any():
            row, column = (int(i) for i in wrong.nonzero()[0])
            raise ParameterError(
                f'x must hold {self.support} for likelihood="{self.name}"; row {row}, column {first + column} holds '
                f"{x[row, column].item():g}"
            )

    @abstractmethod
    def supported(self, x: Tensor) -> Tensor:
        """Which entries can be."""

    def spread(self, seen: Tensor) -> Tensor:
        """A number of each column of x `(..., D)`, for each of the eta that it depends on, `(..., K)`."""
        return seen

    def _masked(self, rows: Observations, parts: Tensor) -> Tensor:
        """A number of each eta `(..., K)`, 0 where its column is missing."""
        return parts if rows.seen is None else parts * self.spread(rows.seen)

    def guess(self, x: Tensor) -> Tensor:
        """An eta for each entry under which it is likely, `(n, K)`, NaN where missing: where a fit may start."""
        return x

    def one_each(self, parts: Tensor) -> Tensor:
        """Of a number of each eta `(K,)` one for each column of x, `(D,)`."""
        return parts

    def kinks(self, x: Tensor) -> Tensor:
        """The eta at which the log-density of a row `(D,)` has kinks, NaN for none, `(K,)`."""
        return self.spread(torch.full_like(x, torch.nan))

    def constants(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """What no eta changes of the log-density of each entry, nats."""
        return torch.zeros_like(x)

    @abstractmethod
    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`log p(x | eta)` less the constant of the rows, nats, `(...,)` for x `(..., D)` and eta `(..., K)`."""

    @abstractmethod
    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """Its gradient in eta, `(..., K)`."""

    @abstractmethod
    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """Minus its second derivative in each eta, `(..., K)`."""

    def gram(self, rows: Observations, eta: Tensor, step: Tensor, scale: Tensor | None) -> Tensor:
        """Minus the second derivative along pairs of steps `(m, k, K)` at eta `(m, K)`: `(m, k, k)`."""
        result: Tensor = (step * self.curvature(rows, eta, scale).abs()[:, None]) @ step.mT
        return result

    def excess(self, scale: Tensor | None) -> Tensor | float:
        """The largest second derivative of the log-density in an eta, `()` or `(K,)`: 0 where it is concave."""
        return 0.0

    def statistic(self, x: Tensor) -> Tensor:
        """`t(x)`, `(n, K)`, of natural outputs."""
        return x

    @abstractmethod
    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """The largest `log_density` of each row over all eta, `(n,)`."""

    @abstractmethod
    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`E[x | eta]`, `(..., D)`."""

    @abstractmethod
    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Draws of x, `(n, D)`, for eta `(n, K)`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Output) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def _log_product(factors: Tensor) -> Tensor:
    """The log of the product over the last axis, of factors from 1 to 2: one log for a thousand of them."""
    return torch.stack([part.prod(-1) for part in factors.split(1000, -1)], -1).log().sum(-1)


class Bernoulli(Output):
    """Its x are 0 or 1, or shares between, and eta are logits: `log p = x eta - log(1 + exp(eta))`.

    For shares that is minus the cross-entropy, as binary pixels with grey values are usually trained.
    """

    name = "bernoulli"
    continuous = natural = True
    support = "numbers from 0 to 1"

    def supported(self, x: Tensor) -> Tensor:
        """From 0 to 1."""
        return (x >= 0.0) & (x <= 1.0)

    def guess(self, x: Tensor) -> Tensor:
        """The logit of a probability from 0.1 to 0.9."""
        return torch.logit(0.1 + 0.8 * x)

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`x eta - log(1 + exp(eta))`."""
        if rows.seen is not None:
            return rows.sum(rows.x * eta - eta.clamp(min=0.0)) - _log_product(rows.seen * eta.abs().neg().exp() + 1.0)
        linear: Tensor = (eta @ rows.x.mT)[..., 0] if eta.ndim == 3 else (rows.x * eta).sum(-1)
        return linear - eta.clamp(min=0.0).sum(-1) - _log_product(eta.abs().neg().exp() + 1.0)

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`x - sigmoid(eta)`."""
        slope = rows.x - torch.sigmoid(eta)
        return self._masked(rows, slope)

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`sigmoid(eta) sigmoid(-eta)`."""
        share = torch.sigmoid(eta)
        curvature = share * (1.0 - share)
        return self._masked(rows, curvature)

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """Minus the entropy of the shares."""
        return rows.sum(torch.xlogy(rows.x, rows.x) + torch.xlogy(1.0 - rows.x, 1.0 - rows.x))

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """Probabilities of 1."""
        return torch.sigmoid(eta)

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """0 or 1."""
        return torch.bernoulli(torch.sigmoid(eta), generator=generator)


class Categorical(Output):
    """Its x are whole numbers below the number of categories, and eta are the logits of all categories.

    Args:
        categories: of each column of x, so that the network has their sum as outputs; `None` for one column, of as
            many categories as the network has outputs.
    """

    name = "categorical"
    support = "whole numbers from 0 to one less than the number of categories"

    def __init__(self, categories: Sequence[int] | int | None = None) -> None:
        self.categories = None if categories is None else wholes(categories, "categories", 2)

    def options(self) -> dict[str, Any]:
        """The categories."""
        return {"categories": None if self.categories is None else list(self.categories)}

    def columns(self, size: int) -> int:
        """One for each group of outputs.

        Raises:
            ShapeError: the groups do not add up to the outputs.
        """
        if self.categories is None:
            self.categories = (size,)
        if sum(self.categories) != size:
            raise ShapeError(
                f"the categories add up to {sum(self.categories)} logits, and the network has {size} outputs"
            )
        return len(self.categories)

    def supported(self, x: Tensor) -> Tensor:
        """Whole numbers below those of the categories."""
        return (x >= 0.0) & (x < x.new_tensor(self._sizes)) & (x == x.floor())

    @property
    def _sizes(self) -> tuple[int, ...]:
        if self.categories is None:
            raise ParameterError("the categories are not known yet: call columns first")
        return self.categories

    def _at(self, rows: Observations) -> Tensor:
        """The place of each x among the logits."""
        first = torch.tensor(self._sizes, device=rows.x.device).cumsum(0) - rows.x.new_tensor(self._sizes).long()
        return rows.x.long() + first

    def _shares(self, eta: Tensor) -> Tensor:
        return torch.cat([part.softmax(-1) for part in eta.split(self._sizes, -1)], -1)

    def guess(self, x: Tensor) -> Tensor:
        """2 for the category that it is, 0 for others."""
        own = torch.cat([torch.arange(n, device=x.device) for n in self._sizes])
        of_each = self.spread(x)
        return of_each.where(torch.isnan(of_each), (2.0 * (of_each == own)).to(x.dtype))

    def one_each(self, parts: Tensor) -> Tensor:
        """That of its first category."""
        return torch.stack([part[0] for part in parts.split(self._sizes)])

    def spread(self, seen: Tensor) -> Tensor:
        """The number of its column, for each logit."""
        return seen.repeat_interleave(torch.tensor(self._sizes, device=seen.device), -1)

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`eta_x - log sum exp(eta)` of each column."""
        at = self._at(rows)
        chosen = eta.gather(-1, at.expand(*eta.shape[:-1], at.shape[-1]))
        total = torch.stack([part.logsumexp(-1) for part in eta.split(self._sizes, -1)], -1)
        return rows.sum(chosen - total)

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """1 at x, less the probabilities."""
        slope = -self._shares(eta)
        at = self._at(rows)
        slope = slope.scatter_add(-1, at.expand(*eta.shape[:-1], at.shape[-1]), torch.ones_like(slope))
        return self._masked(rows, slope)

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`p (1 - p)`."""
        share = self._shares(eta)
        return share * (1.0 - share)

    def gram(self, rows: Observations, eta: Tensor, step: Tensor, scale: Tensor | None) -> Tensor:
        """The covariance of the steps under the probabilities, added up over the columns."""
        share = self._shares(eta)
        means = [
            (part * p[:, None]).sum(-1, keepdim=True).expand_as(part)
            for part, p in zip(step.split(self._sizes, -1), share.split(self._sizes, -1), strict=True)
        ]
        weight = self._masked(rows, share)
        off = step - torch.cat(means, -1)
        result: Tensor = (off * weight[:, None]) @ off.mT
        return result

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """0."""
        return torch.zeros_like(rows.constant)

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """Refuse: categories have no mean.

        Raises:
            ParameterError: always.
        """
        raise ParameterError(
            "categories have no mean; draw them (dgn().sample), or compare the densities of all of them"
        )

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Categories."""
        parts = [torch.multinomial(part.softmax(-1), 1, generator=generator) for part in eta.split(self._sizes, -1)]
        return torch.cat(parts, 1).to(eta.dtype)


class Poisson(Output):
    """Its x are counts and eta are log-rates: `log p = x eta - exp(eta) - log x!`."""

    name = "poisson"
    natural = True
    support = "whole numbers from 0 on"

    def supported(self, x: Tensor) -> Tensor:
        """Counts."""
        return (x >= 0.0) & (x == x.floor()) & torch.isfinite(x)

    def constants(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """`-log x!`."""
        return -torch.lgamma(x + 1.0)

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`x eta - exp(eta)`; beyond rates of exp(300), where p is 0 in any case, a tangent of that."""
        return rows.sum(rows.x * eta - self._rate(eta) * (1.0 + (eta - _HUGE).clamp(min=0.0)))

    def guess(self, x: Tensor) -> Tensor:
        """The log of half a count more."""
        return (x + 0.5).log()

    @staticmethod
    def _rate(eta: Tensor) -> Tensor:
        return eta.clamp(max=_HUGE).exp()

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`x - exp(eta)`."""
        slope = rows.x - self._rate(eta)
        return self._masked(rows, slope)

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`exp(eta)`."""
        curvature = self._rate(eta)
        return self._masked(rows, curvature)

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """At the rate x."""
        return rows.sum(torch.xlogy(rows.x, rows.x) - rows.x)

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """The rates."""
        return eta.exp()

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Counts."""
        return torch.poisson(eta.exp(), generator=generator)


class NegativeBinomial(Output):
    """Its x are counts and eta the logs of their means: `x eta - (x + r) log(r + exp(eta)) + constant`.

    Args:
        total_count: r: the variance is `mean + mean^2 / r`.
    """

    name = "negative_binomial"
    support = "whole numbers from 0 on"

    def __init__(self, total_count: float) -> None:
        self.total_count = real(total_count, "total_count")

    def options(self) -> dict[str, Any]:
        """The total count."""
        return {"total_count": self.total_count}

    def supported(self, x: Tensor) -> Tensor:
        """Counts."""
        return (x >= 0.0) & (x == x.floor()) & torch.isfinite(x)

    def constants(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """`log binomial(x + r - 1, x)`, and what eta is counted from log r for."""
        r = self.total_count
        return torch.lgamma(x + r) - torch.lgamma(x + 1.0) - math.lgamma(r)

    def guess(self, x: Tensor) -> Tensor:
        """The log of half a count more."""
        return (x + 0.5).log()

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`x t - (x + r) log(1 + exp(t))`, `t = eta - log r`."""
        t = eta - math.log(self.total_count)
        return rows.sum(rows.x * t + (rows.x + self.total_count) * logsigmoid(-t))

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`x - (x + r) sigmoid(t)`."""
        slope = rows.x - (rows.x + self.total_count) * torch.sigmoid(eta - math.log(self.total_count))
        return self._masked(rows, slope)

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`(x + r) sigmoid(t) sigmoid(-t)`."""
        t = eta - math.log(self.total_count)
        curvature = (rows.x + self.total_count) * torch.sigmoid(t) * torch.sigmoid(-t)
        return self._masked(rows, curvature)

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """At the mean x."""
        x, r = rows.x, self.total_count
        return rows.sum(torch.xlogy(x, x / (x + r)) + r * torch.log(r / (x + r)))

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """The means."""
        return eta.exp()

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Counts: Poisson of a gamma rate."""
        shape = torch.full_like(eta, self.total_count)
        gamma = torch._standard_gamma(shape, generator=generator)
        return torch.poisson(gamma * eta.exp() / self.total_count, generator=generator)
