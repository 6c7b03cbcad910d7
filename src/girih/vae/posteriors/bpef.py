"""Coarse-grained bounded polynomial exponential families, with a prior of the same family that is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from girih._arrays import check_finite
from girih.vae.bpef import CoarseBPEF, levels, polynomials
from girih.vae.posteriors.base import Draws, Layout, PosteriorFamily, checked_temperature
from girih.vae.posteriors.relaxation import relaxed


def bpef_layout(order: int) -> Layout:
    """M coefficients for each latent."""
    return Layout(1, lambda S: S * order, lambda S: f"the M = {order} coefficients of each of the S = {S} latents")


class BPEFPosterior(PosteriorFamily):
    r"""`q(z_s = zeta_r | x) ∝ exp(sum_m b_sm t_m(zeta_r))` on R levels of [-1, 1], the prior alike with `a` for `b`.

        KL = sum_s (b_s - a_s) . E_q[t(z_s)] - F(b_s) + F(a_s)        (eq. 4, F the log-partition)

    Draws are `z_s = y_s . zeta` with y_s from the Concrete distribution at a temperature.

    Args:
        latent_dim: S.
        order: M, the degree of the polynomials.
        grid: R, the number of levels.
        basis: of the polynomials, "monomial" or "legendre".
        temperature: T of the draws.
        learn_prior: whether `a` is a parameter; it starts at 0, the uniform distribution, and stays there otherwise.
        like: the type and device of what the encoder gives.

    Raises:
        ParameterError: an option is out of its domain; M >= R - 1.

    Source:
        CG-BPEF, sections 3.2 to 3.4.

    Example:
        >>> import torch
        >>> from girih.vae.posteriors import BPEFPosterior
        >>> draws = BPEFPosterior(2, order=3, grid=21).draw(torch.ones(4, 6, dtype=torch.float64), samples=5)
        >>> draws.latents.shape, bool((draws.divergence > 0).all())
        (torch.Size([5, 4, 2]), True)
    """

    temperature: float
    zeta: Tensor
    table: Tensor
    prior_coefficients: Tensor

    def __init__(
        self,
        latent_dim: int,
        order: int,
        grid: int,
        basis: str = "monomial",
        temperature: float = 0.5,
        learn_prior: bool = True,
        like: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = latent_dim, torch.Size([latent_dim])
        self.order, self.levels, self.basis = order, grid, basis
        self.temperature, self.codes = checked_temperature(temperature), grid**latent_dim
        kind: dict[str, Any] = {} if like is None else {"dtype": like.dtype, "device": like.device}
        kind = {"dtype": torch.float64, **kind}
        zeros = torch.zeros(latent_dim, order, dtype=torch.float64)
        CoarseBPEF(zeros, grid, basis)  # refuses what makes no family
        points = levels(grid)
        self.register_buffer("zeta", points.to(**kind), persistent=False)
        self.register_buffer("table", polynomials(points, order, basis).mT.contiguous().to(**kind), persistent=False)
        if learn_prior:
            self.prior_coefficients = nn.Parameter(zeros.to(**kind))
        else:
            self.register_buffer("prior_coefficients", zeros.to(**kind))

    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """`y . zeta`, and eq. 4."""
        natural = encoded.reshape(-1, self.latent_dim, self.order)
        log_q = (natural @ self.table).log_softmax(-1)  # (N, S, R)
        log_p = (self.prior_coefficients @ self.table).log_softmax(-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum((1, 2))
        y = relaxed(log_q, self.temperature if temperature is None else temperature, samples, generator)
        return Draws(y @ self.zeta, divergence)

    def posterior(self, encoded: Tensor) -> Independent[CoarseBPEF]:
        """Event shape `(S,)`."""
        natural = encoded.double().reshape(-1, self.latent_dim, self.order)
        check_finite(natural.detach(), "the encoder's coefficients")
        return Independent(CoarseBPEF(natural, self.levels, self.basis), 1, validate_args=False)

    def prior(self, device: torch.device) -> Distribution:
        """The same family with the prior's coefficients."""
        natural = self.prior_coefficients.double()
        return Independent(CoarseBPEF(natural, self.levels, self.basis), 1, validate_args=False)

    def relaxed_prior(self, n: int, device: torch.device) -> Tensor:
        """`y . zeta` with y relaxed."""
        return relaxed(self.prior_coefficients @ self.table, self.temperature, n) @ self.zeta

    def extra_repr(self) -> str:
        """Shown by `print(vae)`."""
        return f"M={self.order}, R={self.levels}, basis={self.basis!r}"

    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """Equal steps over [-1, 1]."""
        return torch.linspace(-1.0, 1.0, count, dtype=torch.float64, device=device)

    def values(self, values: Tensor) -> Tensor:
        """Any numbers, `(K,)`: the decoder takes z beyond its bounds as well, which shows extreme cases."""
        return values.reshape(-1)
