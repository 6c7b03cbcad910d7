"""`MixtureVAE`: a VAE whose posteriors are mixtures of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributions import Distribution

from girih._options import whole
from girih.inference import DGN
from girih.vae.gauss import distribution_of, exact_dgn
from girih.vae.model import VAE
from girih.vae.networks import make_networks
from girih.vae.posteriors import MixturePosterior
from girih.vae.posteriors.mixture import mixture_layout


class MixtureVAE(VAE):
    r"""A VAE with `q(z | x) = sum_k w_k N(mean_k, diag(deviation_k^2))` and the prior `N(0, I)`.

    The posterior of a piecewise-affine generator is a mixture of truncated Gaussians, one for each cell, and where the
    generated curve folds back it has several modes, which one Gaussian cannot follow. Draws are stratified: L of each
    component, weighted by w_k, so a step decodes K L latents for each row.

    Args:
        decoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype: as for `GaussVAE`.
        encoder: a module from x `(N, D)` to `(N, K (2 S + 1))`: K logits of the components, then their means
            `(K, S)`, then their log standard deviations `(K, S)`.
        components: K.

    Raises:
        ParameterError, ShapeError, NoiseError, UnsupportedLayerError: as for `GaussVAE`; `components` below 1.

    Source:
        EM-DGN, Proposition 2 and the advice after it, and section 4.3: favour multimodal posteriors.

    Example:
        >>> import girih
        >>> from girih.vae import MixtureVAE
        >>> vae = MixtureVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, components=3, seed=0)
        >>> x = vae().sample((4,))
        >>> vae.encode(x).mixture_distribution.probs.shape, vae.free_energy(x, seed=0).total.shape
        (torch.Size([4, 3]), torch.Size([4]))
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
        components: int = 3,
    ) -> None:
        layout = mixture_layout(whole(components, "components"))
        networks = make_networks(decoder, encoder, hidden, layout, latent_dim, dtype, seed)
        family = MixturePosterior(networks.latent_dim, components)
        super().__init__(networks, family, layout, likelihood, noise, learn_noise)

    @property
    def components(self) -> int:
        """K."""
        assert isinstance(self.family, MixturePosterior)
        return self.family.components

    def forward(self) -> Distribution:
        """The distribution of x for the current parameters, exact where that of `GaussVAE` is: p(x) is the same."""
        return distribution_of(self, super().forward())

    def dgn(self) -> DGN:
        """The decoder as an exact density model, as `GaussVAE.dgn`."""
        return exact_dgn(self)
