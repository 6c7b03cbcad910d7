"""`Gap`: what `girih.vae.gap` reports."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution


class Gap(NamedTuple):
    """How far the bound of a VAE is from its likelihood, and why, nats per row, `(N,)` each.

    `bound - nll = gap = approximation + amortisation`. The best q is what descents from many starts found: its
    divergence, `approximation`, is that of a member of the family, and so never too small beyond `error`.
    """

    nll: Tensor  # -log p(x), exact
    bound: Tensor  # the negative ELBO of the encoder's q(z | x), exact: nothing is sampled
    gap: Tensor  # KL(q(z | x) || p(z | x)), what the bound loses
    approximation: Tensor  # the same of the best q of the family: what the family costs
    amortisation: Tensor  # the rest: what the encoder costs
    error: Tensor  # a bound, or for quadrature an estimate, of the error of any of these
    best: Distribution  # the best q of each row, of the kind that `encode` gives

    def mean(self) -> dict[str, float]:
        """The means over rows by name, and the largest error.

        Example:
            >>> import girih
            >>> from girih.vae import GaussVAE, gap
            >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
            >>> list(gap(vae, [[0.1, 0.2]]).mean())
            ['nll', 'bound', 'gap', 'approximation', 'amortisation', 'error']
        """
        numbers = {name: float(getattr(self, name).mean()) for name in self._fields[:5]}
        return numbers | {"error": float(self.error.max())}

    @staticmethod
    def of(nll: Tensor, own: Tensor, least: Tensor, error: Tensor, best: Distribution) -> Gap:
        """From the divergences of the encoder's q and of the best one found."""
        # a divergence is not negative: below 0 it is so by rounding, or by the error that is stated
        assert (least >= -10.0 * error - 1e-6 * (1.0 + nll.abs())).all()
        own = own.clamp(min=0.0)
        least = torch.minimum(least.clamp(min=0.0), own)
        return Gap(nll, nll + own, own, least, own - least, error, best)
