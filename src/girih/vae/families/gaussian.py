"""Diagonal Gaussian posteriors with a standard normal prior, and the Gaussian nearest to an exact posterior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from girih._arrays import check_finite
from girih.inference import DGN
from girih.inference.model import MAX_LATENT_DIM
from girih.inference.posterior import Posterior, gaussian_entropy
from girih.vae.families.base import Draws, Family
from girih.vae.latent_model import LatentModel, exact_model
from girih.vae.nearest.gaussian_averages import Joint
from girih.vae.nearest.search import Nearest, Search, Searcher, minimise
from girih.vae.sampled_gap import factors, sampled_searcher


class NormalPrior(Family):
    """A family whose prior is N(0, I)."""

    normal_prior = True

    def prior(self, device: torch.device) -> Distribution:
        """`N(0, I)`."""
        zero = torch.zeros(self.latent_dim, dtype=torch.float64, device=device)
        return independent_normals(zero, torch.ones_like(zero))

    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """Quantiles of N(0, 1) at equal steps of probability, from 2% to 98%."""
        levels = torch.linspace(0.02, 0.98, count, dtype=torch.float64, device=device)
        result: Tensor = torch.special.ndtri(levels)
        return result


class Gaussian(NormalPrior):
    """`N(mean, diag(deviation^2))` against `N(0, I)`.

    Example:
        >>> import torch
        >>> from girih.vae import Gaussian
        >>> draws = Gaussian().over(2, torch.empty(0)).draw(torch.zeros(3, 4), samples=5)
        >>> draws.latents.shape, draws.divergence
        (torch.Size([5, 3, 2]), tensor([0., 0., 0.]))
    """

    name, posteriors = "gaussian", "Gaussian"
    searches = frozenset({"full"})
    closed_divergence = True

    def outputs(self, latent_dim: int) -> int:
        """Means, then log standard deviations."""
        return 2 * latent_dim

    def meaning(self, latent_dim: int) -> str:
        """Name means and deviations, for errors."""
        return f"the mean and the log standard deviation of each of the S = {latent_dim} latents"

    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """`mean + deviation * e`, and the divergence in closed form."""
        mean, log_deviation = encoded.chunk(2, 1)
        return Draws(
            reparametrised(mean, log_deviation, samples, generator), divergence_from_prior(mean, log_deviation)
        )

    def posterior(self, encoded: Tensor) -> Independent[Normal]:
        """The posterior has the event shape `(S,)`."""
        mean, log_deviation = encoded.double().chunk(2, 1)
        deviation = log_deviation.exp()
        check_finite(mean.detach(), "the encoder's mean")
        check_finite(deviation.detach(), "the encoder's standard deviation")
        return independent_normals(mean, deviation)

    def searcher(self, model: LatentModel, search: Search) -> Searcher:
        """Descents on exact expectations, from the encoder's q and from what the exact posterior shows.

        For S > 3 expectations are sampled.
        """
        if model.latent_dim > MAX_LATENT_DIM:
            return sampled_searcher(model, search)
        dgn = exact_model(model, gaussian=False)

        def find(x: Tensor) -> Nearest:
            q, posterior = model.encode(x), dgn.posterior(x)
            assert isinstance(q, Independent | MultivariateNormal)
            nll, own, encoded = -posterior.log_evidence, posterior.kl(q), factors(q)
            where = starts_for(dgn, posterior, encoded.mean, q.stddev, search)
            found, value = nearest_gaussians(Joint(dgn, x), where, search.full)
            found = found.pick(value.argmin(1, keepdim=True))
            if dgn.output is not None:
                found, _ = nearest_gaussians(Joint(dgn, x, quick=False), found, search.full)
            mean, factor = found.mean[:, 0], found.factor[:, 0]
            least = posterior.kl(MultivariateNormal(mean, scale_tril=factor, validate_args=False))
            worse = (least >= own)[:, None]
            mean = torch.where(worse, encoded.mean, mean)
            factor = torch.where(worse[..., None], encoded.factor, factor)
            error = -torch.log1p(-posterior.left_out)
            if dgn.output is not None:
                error = error + posterior.rounding  # that of the cubature
            return Nearest(nll, own, torch.minimum(least, own), error, (mean, factor))

        return find

    def member(self, parameters: tuple[Tensor, ...], search: Search) -> Distribution:
        """Gaussians of means `(N, S)` and factors `(N, S, S)`; independent coordinates unless `full`."""
        mean, factor = parameters
        if search.full:
            return MultivariateNormal(mean, scale_tril=factor, validate_args=False)
        return independent_normals(mean, factor.diagonal(dim1=1, dim2=2))


def independent_normals(mean: Tensor, deviation: Tensor) -> Independent[Normal]:
    """`N(mean, diag(deviation^2))`, `(..., S)` each."""
    return Independent(Normal(mean, deviation, validate_args=False), 1, validate_args=False)


def divergence_from_prior(mean: Tensor, log_deviation: Tensor) -> Tensor:
    r"""`KL(N(mean, diag(deviation^2)) || N(0, I))` in nats.

        sum_s (mean_s^2 + deviation_s^2 - 1) / 2 - log deviation_s

    Args:
        mean: `(N, S)`.
        log_deviation: `(N, S)`.

    Returns:
        `(N,)`, never negative up to rounding.

    Source:
        Kingma & Welling, Auto-encoding variational Bayes (2014), appendix B.

    Example:
        >>> import torch
        >>> from girih.vae.families.gaussian import divergence_from_prior
        >>> divergence_from_prior(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([1.])
    """
    return (0.5 * (mean.square() + torch.expm1(2.0 * log_deviation)) - log_deviation).sum(-1)


def reparametrised(
    mean: Tensor, log_deviation: Tensor, samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Reparameterised draws `mean + deviation * e`, `e ~ N(0, I)`, `(samples, N, S)`; gradients reach both."""
    shape = (samples, *mean.shape)
    e = torch.randn(shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return torch.addcmul(mean, log_deviation.exp(), e)


class Gaussians(NamedTuple):
    """T Gaussians for each of N rows."""

    mean: Tensor  # (N, T, S)
    factor: Tensor  # (N, T, S, S), lower triangular

    @property
    def deviation(self) -> Tensor:
        """The deviation of each coordinate, for factors that are diagonal, `(N, T, S)`."""
        return self.factor.diagonal(dim1=2, dim2=3)

    def pick(self, which: Tensor) -> Gaussians:
        """Some of those of each row, `which` `(N, T')`."""
        row = torch.arange(len(which), device=which.device)[:, None]
        return Gaussians(self.mean[row, which], self.factor[row, which])


def starts_for(dgn: DGN, posterior: Posterior, mean: Tensor, deviation: Tensor, search: Search) -> Gaussians:
    """Choose where to look for the nearest Gaussian of each row.

    The encoder's, which comes first; the prior; the one with the moments of the posterior; and about the mode and about
    draws of the posterior the Gaussian of the affine map there: a cell that holds much of the posterior is drawn often.

    Args:
        dgn: the exact density model.
        posterior: its posteriors of N rows.
        mean: the encoder's, `(N, S)`.
        deviation: the encoder's, `(N, S)`.
        search: how many draws of the posterior, and their seed.
    """
    count, S = mean.shape
    moments = posterior.variance.clamp(min=1e-12).sqrt()
    points = torch.cat((posterior.mode[:, None], posterior.sample((search.draws,), seed=search.seed).movedim(0, 1)), 1)
    precision = 1.0 + _curvature(dgn, points.reshape(-1, S)).reshape(count, search.draws + 1, S)
    means = torch.cat((mean[:, None], torch.zeros_like(mean)[:, None], posterior.mean[:, None], points), 1)
    deviations = torch.cat(
        (deviation[:, None], torch.ones_like(deviation)[:, None], moments[:, None], precision.rsqrt()), 1
    )
    return Gaussians(means.detach(), torch.diag_embed(deviations).detach())


def _curvature(dgn: DGN, z: Tensor) -> Tensor:
    """How fast `log p(x | z)` bends along each latent at z `(m, S)`, expected over x, about: `(m, S)`."""
    slope, start = dgn.trace.affine(z)
    if dgn.output is None:
        return slope.square().sum(1) / dgn.noise
    eta = (slope @ z[:, :, None])[:, :, 0] + start
    scale = dgn.noise if dgn.output.scaled else None
    rows = dgn.output.observe(dgn.output.mean(eta, scale), scale)
    return (dgn.output.curvature(rows, eta, scale).abs()[:, :, None] * slope.square()).sum(1)


def nearest_gaussians(joint: Joint, starts: Gaussians, full: bool = False) -> tuple[Gaussians, Tensor]:
    r"""Descend from every start to a Gaussian that maximises the exact ELBO.

        -ELBO(m, F) = -H(N(m, F F^T)) - E[log p(x, z)],      m = m_0 + F_0 a,  F = F_0 L

    Args:
        joint: `log p(x, z)` of the rows.
        starts: `(N, T)` Gaussians.
        full: any covariance; otherwise the factors stay diagonal, as those of the starts must be then.

    Returns:
        The Gaussians, and their negative ELBO `(N, T)` in nats.

    Source:
        EM-DGN, eq. 3; the approximation gap of Cremer et al., Inference suboptimality in VAEs (2018).
    """
    N, T, S = starts.mean.shape
    mean, factor = starts.mean.reshape(-1, S), starts.factor.reshape(-1, S, S)
    row = torch.arange(N, device=mean.device).repeat_interleave(T)
    below = torch.tril_indices(S, S, -1, device=mean.device) if full else torch.empty(2, 0, dtype=torch.long)

    def unpack(point: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, r, rest = point[:, :S], point[:, S : 2 * S], point[:, 2 * S :]
        L = torch.diag_embed(r.exp())
        L[:, below[0], below[1]] = rest
        F0 = factor[which]
        return mean[which] + (F0 @ a[:, :, None])[:, :, 0], F0 @ L, L

    def negative_elbo(point: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        m, F, L = unpack(point, which)
        e = joint.expect(row[which], m, F)
        back = factor[which].mT
        by_L = back @ e.by_factor
        gradient = torch.cat(
            (
                -(back @ e.by_mean[:, :, None])[:, :, 0],
                -by_L.diagonal(dim1=1, dim2=2) * L.diagonal(dim1=1, dim2=2) - 1.0,
                -by_L[:, below[0], below[1]],
            ),
            1,
        )
        return -gaussian_entropy(F) - e.value, gradient

    start = mean.new_zeros(N * T, 2 * S + below.shape[1])
    found = minimise(negative_elbo, start)
    m, F, _ = unpack(found.point, torch.arange(N * T, device=mean.device))
    return Gaussians(m.reshape(N, T, S), F.reshape(N, T, S, S)), found.value.reshape(N, T)
