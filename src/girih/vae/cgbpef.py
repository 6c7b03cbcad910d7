"""`CGBPEFVAE`: a VAE with coarse-grained bounded polynomial exponential posteriors and a learned prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from girih._options import whole
from girih.vae.model import VAE
from girih.vae.networks import make_networks
from girih.vae.posteriors import BPEFPosterior
from girih.vae.posteriors.bpef import bpef_layout


class CGBPEFVAE(VAE):
    r"""A VAE with latents in [-1, 1] whose log-density is a polynomial, for the posterior and for the prior.

        q(z_s = zeta_r | x) ∝ exp(sum_m b_sm(x) t_m(zeta_r)),   p(z_s = zeta_r) ∝ exp(sum_m a_sm t_m(zeta_r))
        free energy = KL(q || p) - E[log p(x | z)],   z_s = y_s . zeta,   y_s ~ Concrete(q(z_s | x), T)

    on the levels `zeta_r = (2 r - (R + 1)) / (R - 1)`. The KL of the levels (eq. 4) stands for term 1, and the prior
    is learned along. As a distribution over x, the model is that of z on the levels.

    Args:
        decoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype: as for `GaussVAE`.
        encoder: a module from x `(N, D)` to `(N, S * M)`, the coefficients b of one latent after the other.
        order: M, the degree of the polynomials.
        levels: R.
        basis: of the polynomials t: "monomial", as in the paper, or "legendre". Both give the same family, and differ
            by the way there: Adam's equal steps for all monomials, which are much alike, add up to large steps for
            the broad shape of q and small ones for its ripples, and that trains better. After 1,500 steps on 4,000
            digits (S = 20) the held-out free energy was 117.0 nats against 118.8 at M = 5, 118.7 against 123.7 at 15.
        temperature: the final T; `fit` begins at a higher one.
        learn_prior: train the prior; else it stays uniform.

    Attributes:
        prior_coefficients: a, `(S, M)`, a parameter if `learn_prior`.

    Raises:
        ParameterError: M >= R - 1, a temperature that is not positive, an unknown basis, or as for `GaussVAE`.
        ShapeError, NoiseError, UnsupportedLayerError: as for `GaussVAE`.

    Source:
        CG-BPEF, section 3 and Fig. 1c.

    Example:
        >>> import torch
        >>> from girih.vae import CGBPEFVAE
        >>> vae = CGBPEFVAE([2, 16, 4], order=5, levels=21, likelihood="bernoulli", seed=0)
        >>> x = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
        >>> vae.encode(x).mean.shape, bool(vae.prior().sample((5,)).abs().max() <= 1)
        (torch.Size([1, 2]), True)
    """

    def __init__(
        self,
        decoder: nn.Module | Sequence[int],
        encoder: nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        noise: float = 1.0,
        learn_noise: bool = True,
        seed: int | None = None,
        latent_dim: int | None = None,
        likelihood: str = "gaussian",
        dtype: torch.dtype | None = None,
        order: int = 5,
        levels: int = 101,
        basis: str = "monomial",
        temperature: float = 0.5,
        learn_prior: bool = True,
    ) -> None:
        layout = bpef_layout(whole(order, "order"))
        networks = make_networks(decoder, encoder, hidden, layout, latent_dim, dtype, seed)
        S, like = networks.latent_dim, networks.like
        family = BPEFPosterior(S, order, whole(levels, "levels", 3), basis, temperature, learn_prior, like)
        super().__init__(networks, family, layout, likelihood, noise, learn_noise)

    @property
    def bpef(self) -> BPEFPosterior:
        """The posterior family, with its order, levels and basis."""
        assert isinstance(self.family, BPEFPosterior)
        return self.family

    @property
    def prior_coefficients(self) -> Tensor:
        """The coefficients a of the prior, `(S, M)`."""
        return self.bpef.prior_coefficients

    @property
    def order(self) -> int:
        """M."""
        return self.bpef.order

    @property
    def levels(self) -> int:
        """R."""
        return self.bpef.levels

    @property
    def basis(self) -> str:
        """Of the polynomials."""
        return self.bpef.basis
