"""`CatVAE`: a VAE with categorical latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from girih._options import whole
from girih.vae.model import VAE
from girih.vae.networks import make_networks
from girih.vae.posteriors import CategoryPosterior
from girih.vae.posteriors.category import category_layout


class CatVAE(VAE):
    r"""A VAE with S categories of C values each as latents and a uniform prior.

        free energy = sum_s KL(q(z_s | x) || uniform) - E[log p(x | y)],   y_s ~ Concrete(q(z_s | x), T)

    For term 2 a category is relaxed to a point y_s of the simplex, `y_s = softmax((logits_s + Gumbel) / T)`, which is
    differentiable; term 1 is that of the categories. As a distribution over x, the model is that of hard codes.

    Args:
        decoder: a module from `(N, S * C)` to `(N, D)`: a one-hot code, or a point of the simplex, for one latent
            after the other. Or the widths of a dense one, from S, not S * C, to D: `[20, 400, 400, 784]`.
        encoder: a module from x `(N, D)` to logits `(N, S * C)`; by default the decoder's widths in reverse.
        hidden, noise, learn_noise, seed, likelihood, dtype: as for `GaussVAE`.
        latent_dim: S, where the decoder is a module that is not piecewise affine.
        categories: C.
        temperature: the final T; `fit` begins at a higher one.

    Raises:
        ShapeError: the decoder does not take a multiple of C numbers, or the encoder does not fit it.
        ParameterError: C below 2, a temperature that is not positive, or as for `GaussVAE`.
        NoiseError, UnsupportedLayerError: as for `GaussVAE`.

    Source:
        Jang, Gu & Poole, Categorical reparameterization with Gumbel-softmax (2017); CG-BPEF, Fig. 1b and section 4.

    Example:
        >>> import torch
        >>> from girih.vae import CatVAE
        >>> vae = CatVAE([2, 16, 4], categories=3, likelihood="bernoulli", seed=0)
        >>> x = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
        >>> vae.encode(x).mean.shape, vae.decode(vae.prior().sample((5,))).shape
        (torch.Size([1, 2, 3]), torch.Size([5, 4]))
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
        categories: int = 10,
        temperature: float = 0.5,
    ) -> None:
        layout = category_layout(whole(categories, "categories", 2))
        networks = make_networks(decoder, encoder, hidden, layout, latent_dim, dtype, seed)
        family = CategoryPosterior(networks.latent_dim, categories, temperature)
        super().__init__(networks, family, layout, likelihood, noise, learn_noise)

    @property
    def categories(self) -> int:
        """C."""
        assert isinstance(self.family, CategoryPosterior)
        return self.family.categories
