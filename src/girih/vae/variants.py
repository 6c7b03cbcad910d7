"""`GaussVAE`, `MixtureVAE`, `CatVAE` and `CGBPEFVAE`: a `VAE` with the options of its family; what is saved of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from girih.errors import ModelFileError, ParameterError
from girih.networks import trace
from girih.vae.families import Category, Gaussian, Mixture, Polynomial, family_class
from girih.vae.model import VAE


class GaussVAE(VAE):
    r"""A VAE with a diagonal Gaussian `q(z | x)` and the prior `N(0, I)`.

        free energy = KL(q(z | x) || N(0, I)) - E_q[log N(x; g(z), noise I)]  >=  -log p(x)

    Where the decoder g is piecewise affine, the noise Gaussian and S at most 3, the right-hand side, which a VAE never
    sees, is computed exactly by `girih.DGN`: calling the module gives the exact distribution of x, and `exact` the
    gap of the bound. These are of the networks in evaluation mode, in float64 whatever the type of the parameters.

    Args:
        decoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype: as for `VAE`.
        encoder: a module from x `(N, D)` to `(N, 2 S)`, means and then log standard deviations;
            `girih.networks.fc_encoder(D, 2 * S)` is one.

    Raises:
        ParameterError, ShapeError, NoiseError, UnsupportedLayerError: as for `VAE`.

    Source:
        EM-DGN, eq. 3 and section 4.3; Kingma & Welling, Auto-encoding variational Bayes (2014).

    Example:
        >>> import girih
        >>> from girih.vae import GaussVAE
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
        >>> x = vae().sample((4,))
        >>> bound = vae.exact(x)
        >>> bool(((bound.nll + bound.elbo + bound.kl).abs() < 1e-8).all())
        True
        >>> run = vae.fit(x, max_epochs=20, record_every=10, progress=False)
        >>> run.history["step"].tolist(), sorted(run.history)
        ([0, 10, 20], ['elbo', 'kl', 'loss', 'nll', 'noise', 'seconds', 'step'])
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
    ) -> None:
        super().__init__(decoder, Gaussian(), encoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype)


class MixtureVAE(VAE):
    r"""A VAE with `q(z | x) = sum_k w_k N(mean_k, diag(deviation_k^2))` and the prior `N(0, I)`.

    The posterior of a piecewise-affine generator is a mixture of truncated Gaussians, one for each cell, and where the
    generated curve folds back it has several modes, which one Gaussian cannot follow. Draws are stratified: L of each
    component, weighted by w_k, so a step decodes K L latents for each row.

    Args:
        decoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype: as for `VAE`.
        encoder: a module from x `(N, D)` to `(N, K (2 S + 1))`: K logits of the components, then their means
            `(K, S)`, then their log standard deviations `(K, S)`.
        components: K.

    Raises:
        ParameterError, ShapeError, NoiseError, UnsupportedLayerError: as for `VAE`; `components` below 1.

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
        family = Mixture(components)
        super().__init__(decoder, family, encoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype)

    @property
    def components(self) -> int:
        """The number of components K."""
        assert isinstance(self.family, Mixture)
        return self.family.components


class CatVAE(VAE):
    r"""A VAE with S categories of C values each as latents and a uniform prior.

        free energy = sum_s KL(q(z_s | x) || uniform) - E[log p(x | y)],   y_s ~ Concrete(q(z_s | x), T)

    For term 2 a category is relaxed to a point y_s of the simplex, `y_s = softmax((logits_s + Gumbel) / T)`, which is
    differentiable; term 1 is that of the categories. As a distribution over x, the model is that of hard codes.

    Args:
        decoder: a module from `(N, S * C)` to `(N, D)`: a one-hot code, or a point of the simplex, for one latent
            after the other. Or the widths of a dense one, from S, not S * C, to D: `[20, 400, 400, 784]`.
        encoder: a module from x `(N, D)` to logits `(N, S * C)`; by default the decoder's widths in reverse.
        hidden, noise, learn_noise, seed, likelihood, dtype: as for `VAE`.
        latent_dim: S, where the decoder is a module that is not piecewise affine.
        categories: C.
        temperature: the final T; `fit` begins at a higher one.

    Raises:
        ShapeError: the decoder does not take a multiple of C numbers, or the encoder does not fit it.
        ParameterError: C below 2, a temperature that is not positive, or as for `VAE`.
        NoiseError, UnsupportedLayerError: as for `VAE`.

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
        family = Category(categories, temperature)
        super().__init__(decoder, family, encoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype)

    @property
    def categories(self) -> int:
        """The number of categories C."""
        assert isinstance(self.family, Category)
        return self.family.categories


class CGBPEFVAE(VAE):
    r"""A VAE with latents in [-1, 1] whose log-density is a polynomial, for the posterior and for the prior.

        q(z_s = zeta_r | x) ∝ exp(sum_m b_sm(x) t_m(zeta_r)),   p(z_s = zeta_r) ∝ exp(sum_m a_sm t_m(zeta_r))
        free energy = KL(q || p) - E[log p(x | z)],   z_s = y_s . zeta,   y_s ~ Concrete(q(z_s | x), T)

    on the levels `zeta_r = (2 r - (R + 1)) / (R - 1)`. The KL of the levels (eq. 4) stands for term 1, and the prior
    is learned along. As a distribution over x, the model is that of z on the levels.

    Args:
        decoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype: as for `VAE`.
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
        ParameterError: M >= R - 1, a temperature that is not positive, an unknown basis, or as for `VAE`.
        ShapeError, NoiseError, UnsupportedLayerError: as for `VAE`.

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
        family = Polynomial(order, levels, basis, temperature, learn_prior)
        super().__init__(decoder, family, encoder, hidden, noise, learn_noise, seed, latent_dim, likelihood, dtype)

    @property
    def bpef(self) -> Polynomial:
        """The posterior family, with its order, levels and basis."""
        assert isinstance(self.family, Polynomial)
        return self.family

    @property
    def prior_coefficients(self) -> Tensor:
        """The coefficients a of the prior, `(S, M)`."""
        return self.bpef.prior_coefficients

    @property
    def order(self) -> int:
        """The degree M of the polynomials."""
        return self.bpef.order

    @property
    def levels(self) -> int:
        """The number of levels R."""
        return self.bpef.levels

    @property
    def basis(self) -> str:
        """The basis of the polynomials."""
        return self.bpef.basis


# The classes that girih builds, by the family that each of them is for.
_VARIANTS: dict[str, type[VAE]] = {"gaussian": GaussVAE, "mixture": MixtureVAE, "category": CatVAE, "bpef": CGBPEFVAE}
_CLASSES: dict[str, type[VAE]] = {kind.__name__: kind for kind in (*_VARIANTS.values(), VAE)}
_FAMILY_OF = {kind.__name__: name for name, kind in _VARIANTS.items()}
_TYPES = {"float32": torch.float32, "float64": torch.float64}


def vae_parts(vae: VAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a VAE but those of its networks, and what it is built with as plain values.

    Raises:
        ModelFileError: it is of a class or of a family that girih does not know.
    """
    if type(vae) not in _CLASSES.values():
        raise ModelFileError(
            f"cannot save a {type(vae).__name__}: of VAEs, {', '.join(_FAMILY_OF)} are known, and VAE itself; keep "
            "vae.state_dict() and the code that builds it"
        )
    family = vae.family
    try:
        known = family_class(getattr(family, "name", None)) is type(family)
    except ParameterError:
        known = False
    if not known:
        raise ModelFileError(
            f"cannot save a VAE of the family {type(family).__name__}, which is not registered: call "
            f"girih.vae.register_family({type(family).__name__}) here, and before girih.load"
        )
    tensors = dict(family.learned())
    if vae.log_noise is not None:
        tensors["log_noise"] = vae.log_noise
    config = {
        "vae": type(vae).__name__,
        "family": family.name,
        "type": str(vae.dtype).removeprefix("torch."),
        "likelihood": vae.likelihood,
        "latent_dim": vae.latent_dim,
        "options": {name: getattr(family, name) for name in family.options},
        "learned": {name: isinstance(value, nn.Parameter) for name, value in tensors.items()},
    }
    return tensors, config


def vae_from(tensors: Mapping[str, Tensor], config: Mapping[str, Any], decoder: nn.Module, encoder: nn.Module) -> VAE:
    """The VAE that `vae_parts` took apart, of its networks.

    Raises:
        KeyError, TypeError, ValueError: the parts do not fit together.
    """
    kind: Any = _CLASSES[config["vae"]]
    number, learned = _TYPES[config["type"]], config["learned"]
    options = dict(config["options"])
    if "prior" in learned:  # files of girih 0.1.0 have it here alone
        options["learn_prior"] = learned["prior"]
    stored = sum(tensor.numel() for tensor in tensors.values())
    family = family_class(config.get("family", _FAMILY_OF.get(config["vae"]))).restored(options, stored)
    latent_dim = config.get("latent_dim")
    if latent_dim is None:  # files of girih 0.1.0: their decoders are chains
        latent_dim = trace(decoder).latent_dim // family.width
    shared: dict[str, Any] = {
        "encoder": encoder.to(number),
        "latent_dim": latent_dim,
        "likelihood": config["likelihood"],
        "learn_noise": learned.get("log_noise", True),
    }
    net = decoder.to(number)
    vae: VAE = VAE(net, family, **shared) if kind is VAE else kind(net, **shared, **options)
    with torch.no_grad():
        if vae.log_noise is not None:
            vae.log_noise.copy_(tensors["log_noise"])
        for name, tensor in vae.family.learned().items():
            tensor.copy_(tensors[name])
    return vae
