"""Rows as samplers and bounds see them: latents are white, and so are outputs, reduced to the head's range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih.covariance import Covariance
from girih.errors import NoiseError, ParameterError
from girih.inference import DGN
from girih.inference.model import incomplete_rows, reduced_head
from girih.networks import Trace, trace


class Row(NamedTuple):
    """A row, or one for each point, with the generator in its coordinates."""

    trace: Trace
    factor: Tensor  # L (S, S), z = L u
    head: Tensor  # T (K, H), from the last hidden features; (n, K, H) where each row has its own missing entries
    y: Tensor  # (K,) or (n, K)

    def images(self, features: Tensor) -> Tensor:
        """`T h`, `(n, K)` or `(n, C, K)`, of hidden features, `(n, H)`, or `(n, C, H)` for C points of each row."""
        if self.head.ndim == 2 or features.ndim == 3:
            return features @ self.head.mT
        return (self.head @ features[:, :, None])[:, :, 0]

    def distance(self, u: Tensor) -> Tensor:
        """`|y - g|^2 / 2`, `(n,)` or `(n, C)`, at points `(n, S)`, or `(n, C, S)` for C points of each row."""
        features = self.trace.hidden_values((u @ self.factor.mT).reshape(-1, u.shape[-1]))
        y = self.y if u.ndim == 2 else self.y[:, None]
        return 0.5 * (y - self.images(features.reshape(*u.shape[:-1], -1))).square().sum(-1)

    def energy(self, u: Tensor) -> Tensor:
        """`(|y - g|^2 + |u|^2) / 2`, in the shapes of `distance`."""
        return self.distance(u) + 0.5 * u.square().sum(-1)

    def linear(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals `(n, K)` and slopes `(n, K, S)` of the cells of u."""
        z = u @ self.factor.mT
        jet = self.trace.hidden_jet(self.trace.pattern(z), z)
        return self.y - self.images(jet.value), self.head @ jet.slope @ self.factor

    def take(self, index: Tensor | int) -> Row:
        """Some of the rows, or one."""
        return self._replace(y=self.y[index], head=self.head if self.head.ndim == 2 else self.head[index])


_LEAST = 0.9  # of a pivot: exactly, none is below 1


def root_of(slope: Tensor, inverse_temperature: Tensor | float = 1.0) -> Tensor:
    """The lower root of `1 + b B^T B` for slopes `(..., K, S)`.

    Raises:
        NoiseError: the noise is so small beside them that rounding is larger than the 1.
    """
    eye = torch.eye(slope.shape[-1], dtype=slope.dtype)
    root: Tensor
    root, wrong = torch.linalg.cholesky_ex(eye + inverse_temperature * (slope.mT @ slope))
    if bool(wrong.any()) or bool((root.diagonal(dim1=-2, dim2=-1) < _LEAST).any()):
        raise too_small()
    return root


def too_small() -> NoiseError:
    """The error that a noise is too small."""
    return NoiseError(
        "the noise is so small beside the slopes of the generator that double precision cannot tell the prior of the "
        "latents from nothing; make the noise larger"
    )


class Model(NamedTuple):
    """A generator with Gaussian noise and prior, as it is now."""

    trace: Trace
    noise: Covariance
    factor: Tensor  # L (S, S) of the prior

    @staticmethod
    def of(net: nn.Module | Trace, noise: object, prior: object, what: str) -> Model:
        """The model that a user means; `what` is done with it, for messages.

        Raises:
            ParameterError: a `DGN` with a noise or a prior beside it, or with other outputs or another prior.
            GirihError: the errors of `girih.trace` and of covariances.
        """
        if isinstance(net, DGN):
            if noise is not None or prior is not None:
                raise ParameterError("a DGN has its own noise and prior; pass its net, or leave noise and prior out")
            if net.output is not None or net.latent_prior is not None:
                raise ParameterError(
                    f"{what} for Gaussian noise and a Gaussian prior; for other outputs and priors and S <= 3, "
                    "dgn().evidence(x) has log p(x) with its errors, and dgn.posterior(x) the posteriors"
                )
            traced, noise, prior = net.trace, net.noise_covariance.detached(), net.prior.detach()
        else:
            traced = net if isinstance(net, Trace) else trace(net)
        frozen = traced.frozen()
        covariance = Covariance.of(1.0 if noise is None else noise, frozen.output_dim).detached()
        factor = torch.linalg.cholesky(Covariance.prior(prior, frozen.latent_dim).detach())
        return Model(frozen, covariance, factor)

    @property
    def dgn(self) -> DGN:
        """The same as an exact density model."""
        return DGN(cast(nn.Module, self.trace), self.noise, self.factor @ self.factor.mT)

    def rows(self, x: object) -> Tensor:
        """Checked rows `(N, D)`, NaN where missing."""
        return as_rows(x, "x", self.trace.output_dim, "the output dimension D", allow_missing=True).detach()

    def reduced(self, x: Tensor) -> tuple[Row, Tensor, Tensor]:
        """Rows `(n, D)` with the same entries missing, what each log-density has in common for all latents, rounding.

        `log p(x, u) = common - energy(u) - S/2 log 2 pi`, with errors of `rounding` at most.
        """
        weight, bias = self.trace.head_parameters()
        seen = (~torch.isnan(x[0])).nonzero()[:, 0]
        if not len(seen):
            nothing = weight.new_zeros(len(x))
            empty = Row(self.trace, self.factor, weight.new_zeros(0, weight.shape[1]), weight.new_zeros(len(x), 0))
            return empty, nothing, nothing
        own = self.noise.marginal(seen.tolist()) if len(seen) < x.shape[1] else self.noise
        basis, head = reduced_head(own.whiten(weight[seen]))
        white = own.whiten((x - bias)[:, seen].mT).mT
        y = white @ basis
        far2 = (white - y @ basis.mT).square().sum(1)
        common = own.constant - 0.5 * far2
        roundoff = 2.0**-51 * (sum(weight.shape) + 10) * own.condition  # of white rows, relative
        size = 1.0 + common.abs() + far2 + y.square().sum(1)
        return Row(self.trace, self.factor, head, y), common, roundoff * size

    def each(self, x: Tensor) -> tuple[Row, Tensor]:
        """Rows `(n, D)`, each with its own missing entries, and what is common to all latents."""
        if not torch.isnan(x).any():
            return self.reduced(x)[:2]
        weight, bias = self.trace.head_parameters()
        rows = incomplete_rows(self.noise, weight, x, x - bias)
        return Row(self.trace, self.factor, rows.reduced, rows.y), rows.common

    def groups(self, x: Tensor, most: int) -> Iterator[tuple[Tensor, Row, Tensor]]:
        """Groups of at most so many rows with the same entries missing: their places, themselves, what is common."""
        patterns, which = torch.isnan(x).unique(dim=0, return_inverse=True)
        for k in range(len(patterns)):
            for places in (which == k).nonzero()[:, 0].split(most):
                row, common, _ = self.reduced(x[places])
                yield places, row, common
