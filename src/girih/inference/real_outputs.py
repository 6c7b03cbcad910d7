"""Outputs that are eta plus noise that is not Gaussian, or is among columns of other kinds: see `outputs`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from girih._options import real
from girih.errors import ParameterError
from girih.inference.outputs import Observations, Output


class Normal(Output):
    """Its x are eta plus normal noise of standard deviation s, which is `noise`: for columns among others (`Mixed`).

    A `DGN` whose columns are all Gaussian has closed forms: `likelihood="gaussian"`, whose noise is a variance.
    """

    name = "normal"
    scaled = continuous = True
    support = "finite numbers"

    def supported(self, x: Tensor) -> Tensor:
        """All finite numbers."""
        return torch.isfinite(x)

    def constants(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """`-log(2 pi s^2) / 2`."""
        return -(_given(scale).log() + 0.5 * math.log(2.0 * math.pi)).expand_as(x)

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`-(x - eta)^2 / (2 s^2)`."""
        return rows.sum(-0.5 * ((rows.x - eta) / _given(scale)).square())

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`(x - eta) / s^2`."""
        return self._masked(rows, (rows.x - eta) / _given(scale).square())

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`1 / s^2`."""
        return self._masked(rows, _given(scale).square().reciprocal().expand_as(eta))

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """0."""
        return torch.zeros_like(rows.constant)

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """Eta."""
        return eta

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Eta plus noise."""
        return eta + _given(scale) * torch.randn(eta.shape, dtype=eta.dtype, device=eta.device, generator=generator)


class Laplace(Output):
    """Its x are eta plus Laplace noise: `log p = -|x - eta| / s - log(2 s)`, the scale s being `noise`."""

    name = "laplace"
    scaled = continuous = bent = True
    support = "finite numbers"

    def kinks(self, x: Tensor) -> Tensor:
        """X."""
        return x

    def supported(self, x: Tensor) -> Tensor:
        """All finite numbers."""
        return torch.isfinite(x)

    def constants(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """`-log(2 s)`."""
        return -(2.0 * _given(scale)).log().expand_as(x)

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`-|x - eta| / s`."""
        return rows.sum(-(rows.x - eta).abs() / _given(scale))

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """The sign of `x - eta`, over s."""
        slope = (rows.x - eta).sign() / _given(scale)
        return self._masked(rows, slope)

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """0 on both sides of the kink."""
        return torch.zeros_like(eta)

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """0."""
        return torch.zeros_like(rows.constant)

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """Eta."""
        return eta

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Eta plus noise."""
        u = torch.rand(eta.shape, dtype=eta.dtype, device=eta.device, generator=generator) - 0.5
        return eta - _given(scale) * u.sign() * torch.log1p(-2.0 * u.abs())


class StudentT(Output):
    """Its x are eta plus t-distributed noise of `df` degrees of freedom, the scale s being `noise`.

        log p = -(df + 1) / 2 log(1 + r^2 / df) + constant,    r = (x - eta) / s

    Args:
        df: degrees of freedom.
    """

    name = "student_t"
    scaled = continuous = True
    support = "finite numbers"

    def __init__(self, df: float = 4.0) -> None:
        self.df = real(df, "df")

    def options(self) -> dict[str, Any]:
        """The degrees of freedom."""
        return {"df": self.df}

    def supported(self, x: Tensor) -> Tensor:
        """All finite numbers."""
        return torch.isfinite(x)

    def constants(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """Of the normalised density."""
        v = self.df
        unit = math.lgamma(0.5 * (v + 1.0)) - math.lgamma(0.5 * v) - 0.5 * math.log(v * math.pi)
        return unit - _given(scale).log().expand_as(x)

    def log_density(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`-(df + 1) / 2 log(1 + r^2 / df)`."""
        r = (rows.x - eta) / _given(scale)
        return rows.sum(-0.5 * (self.df + 1.0) * torch.log1p(r.square() / self.df))

    def slope(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`(df + 1) r / (s (df + r^2))`."""
        r = (rows.x - eta) / _given(scale)
        slope = (self.df + 1.0) * r / (_given(scale) * (self.df + r.square()))
        return self._masked(rows, slope)

    def curvature(self, rows: Observations, eta: Tensor, scale: Tensor | None) -> Tensor:
        """`(df + 1) (df - r^2) / (s (df + r^2))^2`: positive within `sqrt(df)` scales of x."""
        s = _given(scale)
        square = ((rows.x - eta) / s).square()
        curvature = (self.df + 1.0) * (self.df - square) / (s * (self.df + square)).square()
        return self._masked(rows, curvature)

    def excess(self, scale: Tensor | None) -> Tensor | float:
        """`(df + 1) / (8 df s^2)`, at `r^2 = 3 df`."""
        return (self.df + 1.0) / (8.0 * self.df * _given(scale).square())

    def highest(self, rows: Observations, scale: Tensor | None) -> Tensor:
        """0."""
        return torch.zeros_like(rows.constant)

    def mean(self, eta: Tensor, scale: Tensor | None) -> Tensor:
        """Eta.

        Raises:
            ParameterError: `df` is 1 or less, where there is no mean.
        """
        if self.df <= 1.0:
            raise ParameterError(f"a t-distribution with df = {self.df:g} has no mean; use df > 1")
        return eta

    def sample(self, eta: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Eta plus noise."""
        normal = torch.randn(eta.shape, dtype=eta.dtype, device=eta.device, generator=generator)
        chi2 = 2.0 * torch._standard_gamma(torch.full_like(eta, 0.5 * self.df), generator=generator)
        return eta + _given(scale) * normal * (self.df / chi2).sqrt()


def _given(scale: Tensor | None) -> Tensor:
    if scale is None:
        raise AssertionError("this output has a scale")
    return scale
