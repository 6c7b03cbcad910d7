"""`gap`: how far a VAE is from its exact posterior, split into what the family costs and what the encoder costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
)

from girih._arrays import as_rows
from girih._options import real, whole
from girih.errors import LatentDimensionError, ParameterError
from girih.inference import DGN
from girih.training import evaluating
from girih.vae.bpef import CoarseBPEF
from girih.vae.gaps import gaussian, mixture
from girih.vae.gaps.bounded import Measured, coarse_gap, continuous_gap
from girih.vae.gaps.expected import Joint
from girih.vae.gaps.gaussian import Gaussians
from girih.vae.gaps.mixture import Mixtures
from girih.vae.gaps.result import Gap

if TYPE_CHECKING:
    from girih.vae.model import VAE

_ROWS = 128  # at a time
_ENTRIES = 2**22  # of the largest table over rows and codes


def gap(
    vae: VAE,
    x: Any,
    *,
    starts: int = 6,
    seed: int = 0,
    tolerance: float = 1e-8,
    covariance: str = "diagonal",
    continuous: bool = False,
) -> Gap:
    r"""The exact NLL of each row, the exact bound, and how their difference comes about.

        bound - nll = KL(q(z | x) || p(z | x)) = min_q' KL(q' || p(z | x)) + the rest
                                                 approximation gap           amortisation gap

    with the minimum over the family of q, row by row: by BFGS from the encoder's q, the prior, the moments of the
    posterior, its mode and draws of it. The networks are in evaluation mode, in float64.

    - `GaussVAE`: everything is exact up to what the `DGN` leaves out, `error`.
    - `MixtureVAE`: the same, but for the label entropy of the mixture, a quadrature whose error is part of `error`.
      Its approximation gap is never above that of a single Gaussian.
    - `CatVAE` and `CGBPEFVAE`: a sum over all `C^S` or `R^S` codes; any likelihood, any decoder.
    - `CGBPEFVAE` with `continuous=True`: the coefficients of prior and q are those of densities on [-1, 1], and the
      truth is an integral over the cells of the decoder there, by cubature to `tolerance`; `error` says what was
      reached. The best q is searched for on a grid, with nodes 0.002, 0.008 and 0.06 apart for S = 1, 2 and 3: where
      posteriors are narrower, it may be missed, and `approximation` is then too large.

    Args:
        vae: with Gaussian noise and a piecewise-affine decoder with S up to 3; for codes, anything.
        x: `(N, D)`, complete.
        starts: draws of the posterior among the starts of the search.
        seed: of these draws.
        tolerance: of cubature, nats, times the size of log p(x) where that is above 1.
        covariance: "diagonal", or "full" for the best Gaussian of a `GaussVAE` among those with any covariance.
        continuous: see above.

    Returns:
        A `Gap`: `nll`, `bound`, `gap`, `approximation`, `amortisation`, `error`, `(N,)` each, and `best`, the best q.

    Raises:
        LatentDimensionError: S above 3, or too many codes.
        UnsupportedLayerError: the decoder is not piecewise affine.
        ParameterError: a Bernoulli likelihood with continuous latents, whose posterior is not known exactly; a family
            that is not covered; an option out of its domain.
        ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

    Source:
        EM-DGN, eq. 3 and section 4.3; Cremer, Li & Duvenaud, Inference suboptimality in variational autoencoders
        (2018), who have only estimates of both gaps.

    Example:
        >>> import girih, torch
        >>> from girih.vae import GaussVAE, gap
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
        >>> x = vae().sample((3,), seed=0)
        >>> found = gap(vae, x)
        >>> bool(((found.nll + vae().log_prob(x)).abs() < 1e-8).all()), bool((found.amortisation >= 0).all())
        (True, True)
    """
    starts, seed, tolerance = whole(starts, "starts", 0), whole(seed, "seed", 0), real(tolerance, "tolerance")
    if covariance not in ("diagonal", "full"):
        raise ParameterError(f"covariance must be 'diagonal' or 'full'; got {covariance!r}")
    rows = as_rows(x, "x", vae.output_dim, "the data dimension D")
    with torch.no_grad(), evaluating(vae):
        kind = _kind(vae.prior(), vae.encode(rows[:1]))
        if kind != "Gaussian" and covariance == "full":
            raise ParameterError(f"covariance='full' is for Gaussian posteriors, and those of this VAE are {kind}")
        if kind != "polynomial" and continuous:
            raise ParameterError(f"continuous=True is for a CGBPEFVAE; the posteriors of this VAE are {kind}")
        dgn = None if kind in ("categories", "polynomial") and not continuous else _exact_model(vae)
        count = _ROWS if dgn is not None else max(1, min(_ROWS, _ENTRIES // (vae.family.codes or 1)))
        parts = [
            _measure(vae, dgn, kind, part, starts, seed, tolerance, covariance == "full") for part in rows.split(count)
        ]
    nll, own, least, error = (torch.cat(column) for column in zip(*(part[:4] for part in parts), strict=True))
    return Gap.of(nll, own, least, error, _joined([part.best for part in parts]))


def _kind(prior: Distribution, q: Distribution) -> str:
    """What the latents are.

    Raises:
        ParameterError: they are not covered.
    """
    base = q.base_dist if isinstance(q, Independent) else q
    if isinstance(base, Normal):
        return "Gaussian"
    if isinstance(base, MixtureSameFamily):
        return "mixtures"
    if isinstance(base, OneHotCategorical):
        return "categories"
    if isinstance(base, CoarseBPEF):
        return "polynomial"
    raise ParameterError(
        "the exact gap is for Gaussian, mixture, categorical and polynomial posteriors; this VAE has "
        f"{type(q).__name__}"
    )


def _exact_model(vae: VAE) -> DGN:
    if vae.likelihood != "gaussian":
        raise ParameterError(
            f"the exact posterior of continuous latents needs a Gaussian likelihood, and this VAE has "
            f"{vae.likelihood!r}; CatVAE and CGBPEFVAE have codes that can be gone through for any likelihood"
        )
    if vae.latent_dim > 3:
        raise LatentDimensionError(
            f"the exact posterior is for S = 1, 2 and 3 latents, and this VAE has {vae.latent_dim}; "
            "vae().log_prob_with_error(x) estimates log p(x) by importance sampling"
        )
    return DGN(vae.decoder, noise=vae.noise.double())


def _measure(
    vae: VAE, dgn: DGN | None, kind: str, x: Tensor, draws: int, seed: int, tolerance: float, full: bool
) -> Measured:
    if dgn is None:
        return coarse_gap(vae, x, draws, seed)
    if kind == "polynomial":
        return continuous_gap(vae, dgn, x, draws, seed, tolerance)
    q, posterior = vae.encode(x), dgn.posterior(x)
    nll, joint = -posterior.log_evidence, Joint(dgn, x)
    error = -torch.log1p(-posterior.left_out)
    if kind == "Gaussian":
        assert isinstance(q, Independent)
        own = posterior.kl(q)
        where = gaussian.starts_for(dgn, posterior, q.base_dist.loc, q.base_dist.scale, draws, seed)
        found, value = gaussian.nearest_gaussians(joint, where, full)
        found = found.pick(value.argmin(1, keepdim=True))
        mean, factor = found.mean[:, 0], found.factor[:, 0]
        least = posterior.kl(MultivariateNormal(mean, scale_tril=factor, validate_args=False))
        worse = (least >= own)[:, None]
        mean = torch.where(worse, q.base_dist.loc, mean)
        factor = torch.where(worse[..., None], torch.diag_embed(q.base_dist.scale), factor)
        return Measured(nll, own, torch.minimum(least, own), error, _gaussian(mean, factor, full))
    assert isinstance(q, MixtureSameFamily)
    encoder = _mixture_of(q)
    heaviest = encoder.log_weight[:, 0].argmax(1)
    row = torch.arange(len(x))
    where = gaussian.starts_for(
        dgn, posterior, encoder.mean[row, 0, heaviest], encoder.deviation[row, 0, heaviest], draws, seed
    )
    single, value = gaussian.nearest_gaussians(joint, where)
    one = single.pick(value.argmin(1, keepdim=True))
    many = mixture.nearest_mixture(
        joint, mixture.starts_for(encoder, single, value + posterior.log_evidence[:, None], 2, seed)
    )
    K = encoder.log_weight.shape[2]
    every = Mixtures.joined(encoder, many, _repeated(one, K))
    divergence, quadrature = mixture.divergences(posterior, every)
    which = divergence.argmin(1, keepdim=True)
    best = every.pick(which)
    components = Independent(Normal(best.mean[:, 0], best.deviation[:, 0], validate_args=False), 1, validate_args=False)
    weights = Categorical(logits=best.log_weight[:, 0], validate_args=False)
    return Measured(
        nll,
        divergence[:, 0],
        divergence.amin(1),
        error + quadrature.amax(1),
        MixtureSameFamily(weights, components, validate_args=False),
    )


def _gaussian(mean: Tensor, factor: Tensor, full: bool) -> Distribution:
    if full:
        return MultivariateNormal(mean, scale_tril=factor, validate_args=False)
    return Independent(Normal(mean, factor.diagonal(dim1=1, dim2=2), validate_args=False), 1, validate_args=False)


def _mixture_of(q: MixtureSameFamily) -> Mixtures:
    components = q.component_distribution
    base: Any = components.base_dist if isinstance(components, Independent) else components
    log_weight = torch.log_softmax(q.mixture_distribution.logits, 1)
    return Mixtures(log_weight[:, None], base.loc[:, None], base.scale[:, None])


def _repeated(one: Gaussians, components: int) -> Mixtures:
    """A Gaussian as a mixture of equal ones: no best mixture is further away than it."""
    N, S = len(one.mean), one.mean.shape[2]
    even = -torch.log(torch.full((N, 1, components), float(components), dtype=torch.float64))
    return Mixtures(
        even, one.mean[:, :, None].expand(N, 1, components, S), one.deviation[:, :, None].expand(N, 1, components, S)
    )


def _joined(parts: list[Distribution]) -> Distribution:
    """One distribution of all rows."""
    first: Any = parts[0]
    if len(parts) == 1:
        return first
    every: list[Any] = list(parts)
    if isinstance(first, MultivariateNormal):
        return MultivariateNormal(
            torch.cat([q.loc for q in every]), scale_tril=torch.cat([q.scale_tril for q in every]), validate_args=False
        )
    if isinstance(first, MixtureSameFamily):
        bases = [q.component_distribution.base_dist for q in every]
        components = Normal(torch.cat([b.loc for b in bases]), torch.cat([b.scale for b in bases]), validate_args=False)
        weights = Categorical(torch.cat([q.mixture_distribution.probs for q in every]), validate_args=False)
        return MixtureSameFamily(weights, Independent(components, 1, validate_args=False), validate_args=False)
    bases = [q.base_dist for q in every]
    base = bases[0]
    joined: Distribution
    if isinstance(base, Normal):
        joined = Normal(torch.cat([b.loc for b in bases]), torch.cat([b.scale for b in bases]), validate_args=False)
    elif isinstance(base, OneHotCategorical):
        joined = OneHotCategorical(logits=torch.cat([b.logits for b in bases]), validate_args=False)
    elif isinstance(base, CoarseBPEF):
        joined = CoarseBPEF(torch.cat([b.coefficients for b in bases]), len(base.levels), base.basis)
    else:
        joined = type(base)(torch.cat([b.coefficients for b in bases]), base.basis)
    return Independent(joined, 1, validate_args=False)
