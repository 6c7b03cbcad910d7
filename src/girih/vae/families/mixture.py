"""Mixtures of diagonal Gaussians with a standard normal prior, and the mixture nearest to an exact posterior."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily

from girih._arrays import check_finite
from girih._options import whole
from girih.inference.posterior import Posterior
from girih.vae.families.base import Draws
from girih.vae.families.gaussian import Gaussians, NormalPrior, independent_normals, nearest_gaussians
from girih.vae.families.gaussian import starts_for as gaussian_starts
from girih.vae.latent_model import LatentModel, exact_model
from girih.vae.nearest.gaussian_averages import COARSE, FINE, MEDIUM, Joint, Rule, label_entropy
from girih.vae.nearest.search import Nearest, Search, Searcher, minimise

_LOG_2PI = math.log(2.0 * math.pi)
_HALF_LOG_2PI_E = 0.5 * math.log(2.0 * math.pi * math.e)
_FLOOR = -30.0  # the log of the smallest weight a start has


class Mixture(NormalPrior):
    r"""`sum_k w_k N(mean_k, diag(deviation_k^2))` against `N(0, I)`.

    Draws are stratified: L of each component, weighted by w_k. So nothing discrete is drawn, gradients reach the
    weights exactly, and the decoder runs K L times for each row. The divergence has no closed form; of

        KL = E_q[log q(z)] + S/2 log(2 pi) + E_q[|z|^2] / 2

    the last term is closed, and the first is the weighted mean over the draws, which is unbiased.

    Args:
        components: K.

    Raises:
        ParameterError: `components` below 1.

    Source:
        Morningstar et al., Automatic differentiation variational inference with mixtures (2021): stratified draws.

    Example:
        >>> import torch
        >>> from girih.vae import Mixture
        >>> draws = Mixture(3).over(2, torch.empty(0)).draw(torch.zeros(4, 15), samples=5)
        >>> draws.latents.shape, draws.weights.sum(0).round(decimals=4)
        (torch.Size([15, 4, 2]), tensor([1., 1., 1., 1.]))
    """

    name, posteriors = "mixture", "mixtures"
    options = counts = ("components",)

    def __init__(self, components: int = 3) -> None:
        super().__init__()
        self.components = whole(components, "components")

    def outputs(self, latent_dim: int) -> int:
        """K logits, then K means, then K log standard deviations of S latents each."""
        return self.components * (2 * latent_dim + 1)

    def meaning(self, latent_dim: int) -> str:
        """Name weights, means and deviations, for errors."""
        return (
            f"K = {self.components} logits of the components, then the means and the log standard deviations of the "
            f"S = {latent_dim} latents under each of them"
        )

    def parts(self, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights `(N, K)`, means and log standard deviations `(N, K, S)`."""
        K, size = self.components, self.components * self.latent_dim
        logits, mean, log_deviation = encoded.split((K, size, size), 1)
        shape = (-1, K, self.latent_dim)
        return logits.log_softmax(1), mean.reshape(shape), log_deviation.reshape(shape)

    def draw(
        self, encoded: Tensor, samples: int, generator: torch.Generator | None = None, temperature: float | None = None
    ) -> Draws:
        """L draws of each component, the components one after the other for every draw."""
        log_weights, mean, log_deviation = self.parts(encoded)
        count, K, S = mean.shape
        e = torch.randn((samples, *mean.shape), dtype=mean.dtype, device=mean.device, generator=generator)
        z = torch.addcmul(mean, log_deviation.exp(), e)  # (L, N, K, S)
        scaled = (z[:, :, :, None] - mean[:, None]) * torch.exp(-log_deviation)[:, None]  # (L, N, K, K', S)
        log_parts = -0.5 * scaled.square().sum(-1) - (log_deviation.sum(-1) + 0.5 * S * _LOG_2PI)[:, None]
        log_q = (log_parts + log_weights[:, None]).logsumexp(-1)  # (L, N, K)
        weights = log_weights.exp()
        squares = 0.5 * (mean.square() + (2.0 * log_deviation).exp()).sum(-1)  # (N, K)
        divergence = (weights * (log_q.mean(0) + squares)).sum(1) + 0.5 * S * _LOG_2PI
        latents = z.transpose(1, 2).reshape(samples * K, count, S)
        return Draws(latents, divergence, (weights.mT / samples).repeat(samples, 1))

    def posterior(self, encoded: Tensor) -> MixtureSameFamily:
        """The posterior has the event shape `(S,)`."""
        log_weights, mean, log_deviation = self.parts(encoded.double())
        deviation = log_deviation.exp()
        check_finite(log_weights.detach(), "the encoder's log weights")
        check_finite(mean.detach(), "the encoder's means")
        check_finite(deviation.detach(), "the encoder's standard deviations")
        return _mixtures(log_weights, mean, deviation)

    def point(self, q: Distribution) -> Tensor:
        """The mean of the heaviest component: that of the mixture may lie between its modes, where q has no mass."""
        assert isinstance(q, MixtureSameFamily)
        best = q.mixture_distribution.logits.argmax(-1)
        means = q.component_distribution.mean
        return means.gather(-2, best[..., None, None].expand(*best.shape, 1, means.shape[-1])).squeeze(-2)

    def extra_repr(self) -> str:
        """Shown by `print(vae)`."""
        return f"K={self.components}"

    def searcher(self, model: LatentModel, search: Search) -> Searcher:
        """Descents from the encoder's q and from the best single Gaussians; none is further away than one of them."""
        dgn = exact_model(model)

        def find(x: Tensor) -> Nearest:
            q, posterior, joint = model.encode(x), dgn.posterior(x), Joint(dgn, x)
            assert isinstance(q, MixtureSameFamily)
            encoder = _parts_of(q)
            row, heaviest = torch.arange(len(x)), encoder.log_weight[:, 0].argmax(1)
            about = encoder.mean[row, 0, heaviest], encoder.deviation[row, 0, heaviest]
            single, value = nearest_gaussians(joint, gaussian_starts(dgn, posterior, *about, search))
            one = single.pick(value.argmin(1, keepdim=True))
            where = starts_for(encoder, single, value + posterior.log_evidence[:, None], 2, search.seed)
            every = Mixtures.joined(encoder, nearest_mixture(joint, where), _repeated(one, self.components))
            divergence, quadrature = divergences(posterior, every)
            best = every.pick(divergence.argmin(1, keepdim=True))
            error = -torch.log1p(-posterior.left_out) + quadrature.amax(1)
            parameters = tuple(part[:, 0] for part in best)
            return Nearest(-posterior.log_evidence, divergence[:, 0], divergence.amin(1), error, parameters)

        return find

    def member(self, parameters: tuple[Tensor, ...], search: Search) -> Distribution:
        """Mixtures of log weights `(N, K)`, means and deviations `(N, K, S)`."""
        return _mixtures(*parameters)


def _mixtures(log_weight: Tensor, mean: Tensor, deviation: Tensor) -> MixtureSameFamily:
    weights = Categorical(logits=log_weight, validate_args=False)
    return MixtureSameFamily(weights, independent_normals(mean, deviation), validate_args=False)


def _parts_of(q: MixtureSameFamily) -> Mixtures:
    components = q.component_distribution
    assert isinstance(components, Independent)
    base = components.base_dist
    log_weight = torch.log_softmax(q.mixture_distribution.logits, 1)
    return Mixtures(log_weight[:, None], base.loc[:, None], base.scale[:, None])


def _repeated(one: Gaussians, components: int) -> Mixtures:
    """A Gaussian as a mixture of equal ones: no best mixture is further away than it."""
    N, S = len(one.mean), one.mean.shape[2]
    even = -torch.log(torch.full((N, 1, components), float(components), dtype=torch.float64))
    return Mixtures(
        even, one.mean[:, :, None].expand(N, 1, components, S), one.deviation[:, :, None].expand(N, 1, components, S)
    )


class Mixtures(NamedTuple):
    """T mixtures of K diagonal Gaussians for each of N rows."""

    log_weight: Tensor  # (N, T, K)
    mean: Tensor  # (N, T, K, S)
    deviation: Tensor  # (N, T, K, S)

    def pick(self, which: Tensor) -> Mixtures:
        """Some of those of each row, `which` `(N, T')`."""
        row = torch.arange(len(which), device=which.device)[:, None]
        return Mixtures(*(part[row, which] for part in self))

    @classmethod
    def joined(cls, *several: Mixtures) -> Mixtures:
        """All of several for the same rows."""
        return cls(*(torch.cat(column, 1) for column in zip(*several, strict=True)))


def divergences(posterior: Posterior, mixtures: Mixtures) -> tuple[Tensor, Tensor]:
    r"""`KL(q || p(z | x))` of mixtures in nats, `(N, T)`, and the error of its quadrature.

        KL = sum_k w_k [log w_k - H(q_k) - E_k log p(z | x)] + I

    The sum is exact, as for one Gaussian. The error is what two rules for I differ by.

    Source:
        EM-DGN, eq. 3, for the family that its conclusion recommends.
    """
    log_weight, mean, deviation = mixtures
    weight = log_weight.exp()
    T, K, S = mean.shape[1:]
    expected = torch.stack(
        [
            posterior.expected_log_prob(mean[:, t, k], torch.diag_embed(deviation[:, t, k]))
            for t in range(T)
            for k in range(K)
        ],
        1,
    ).reshape(*weight.shape)
    own = log_weight.clamp(min=-745.0) - deviation.log().sum(3) - S * _HALF_LOG_2PI_E
    flat = (log_weight.reshape(-1, K), mean.reshape(-1, K, S), deviation.reshape(-1, K, S))
    rough, labels = (label_entropy(*flat, rule).reshape(log_weight.shape[:2]) for rule in FINE[S])
    return (weight * (own - expected)).sum(2) + labels, (labels - rough).abs()


def starts_for(encoder: Mixtures, local: Gaussians, value: Tensor, draws: int, seed: int) -> Mixtures:
    r"""Choose where to look for the nearest mixture of each row.

    The encoder's, which comes first; the local optima of single Gaussians that lie apart, with the weights
    `w_k ~ exp(-KL_k)` that are best for components that do not overlap; the best single Gaussian, cut in K; and random
    ones of the local optima.

    Args:
        encoder: one for each row.
        local: T local optima for each row.
        value: their divergences, up to a number for each row, `(N, T)`.
        draws: how many random ones.
        seed: makes them reproducible.
    """
    N, _, K, _ = encoder.mean.shape
    mean, deviation = local.mean, local.deviation
    row = torch.arange(N, device=mean.device)
    order = value.argsort(1)
    chosen = [order[:, 0]]
    while len(chosen) < K:
        so_far = torch.stack(chosen, 1)
        near = (mean[:, :, None] - mean[row[:, None], so_far][:, None]).abs()
        near = near / torch.maximum(deviation[:, :, None], deviation[row[:, None], so_far][:, None])
        apart = (near.amax(3) > 1.0).all(2)
        chosen.append(torch.where(apart, value, torch.inf).argmin(1))  # the first of all where none lies apart
    generator = torch.Generator(mean.device).manual_seed(seed)
    random = [torch.randint(local.mean.shape[1], (N, K), generator=generator) for _ in range(draws)]
    shift = torch.linspace(-1.0, 1.0, K, dtype=mean.dtype) if K > 1 else mean.new_zeros(1)
    out = [encoder]
    for which in (torch.stack(chosen, 1), order[:, :1].expand(N, K), *random):
        m, d, v = mean[row[:, None], which], deviation[row[:, None], which], value[row[:, None], which]
        twice = (which[:, :, None] == which[:, None, :]).sum(2) > 1
        m = torch.where(twice[:, :, None], m + shift[:, None] * d, m)
        d = torch.where(twice[:, :, None], 0.8 * d, d)
        log_weight = torch.log_softmax(torch.log_softmax(-v, 1).clamp(min=_FLOOR), 1)
        out.append(Mixtures(log_weight[:, None], m[:, None], d[:, None]))
    return Mixtures.joined(*out)


def nearest_mixture(joint: Joint, starts: Mixtures) -> Mixtures:
    """The mixture of each row with the largest ELBO that descents from its starts find, `(N, 1)`.

    All descend with a coarse rule for the label entropy; the best two of them go on with a finer one, and the better
    one is what comes back.

    Args:
        joint: `log p(x, z)` of the rows.
        starts: `(N, T)` mixtures.
    """
    S = starts.mean.shape[3]
    found, _ = _descend(joint, starts, COARSE[S], 200)
    value = _negative_elbo(joint, found, MEDIUM[S])
    found, value = _descend(joint, found.pick(value.argsort(1)[:, :2]), MEDIUM[S], 60)
    return found.pick(value.argmin(1, keepdim=True))


def _negative_elbo(joint: Joint, mixtures: Mixtures, rule: Rule) -> Tensor:
    """`(N, T)` nats."""
    N, T, K, S = mixtures.mean.shape
    log_weight, mean, deviation = (part.flatten(0, 1) for part in mixtures)
    row = torch.arange(N, device=mean.device).repeat_interleave(T * K)
    value = joint.expect(row, mean.reshape(-1, S), torch.diag_embed(deviation).reshape(-1, S, S)).value
    own = log_weight - deviation.log().sum(2) - S * _HALF_LOG_2PI_E
    total = (log_weight.exp() * (own - value.reshape(-1, K))).sum(1) + label_entropy(log_weight, mean, deviation, rule)
    return total.reshape(N, T)


def _descend(joint: Joint, starts: Mixtures, rule: Rule, evaluations: int) -> tuple[Mixtures, Tensor]:
    """Local optima from every start `(N, T)` by a rule, and their negative ELBO."""
    N, T, K, S = starts.mean.shape
    B = N * T
    mean, deviation = starts.mean.reshape(B, K, S), starts.deviation.reshape(B, K, S)
    logits = starts.log_weight.reshape(B, K).clamp(min=_FLOOR)
    row = torch.arange(N, device=mean.device).repeat_interleave(T)

    def unpack(point: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, a, r = point.split((K, K * S, K * S), 1)
        a, r = a.reshape(-1, K, S), r.reshape(-1, K, S)
        log_weight = torch.log_softmax(logits[which] + w, 1)
        return log_weight, mean[which] + deviation[which] * a, deviation[which] * r.exp()

    def negative_elbo(point: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            log_weight, m, d = unpack(point, which)
            factor = torch.diag_embed(d.detach()).reshape(-1, S, S)
            e = joint.expect(row[which].repeat_interleave(K), m.detach().reshape(-1, S), factor)
            value = e.value.reshape(-1, K)
            slope = e.by_mean.reshape(-1, K, S), e.by_factor.diagonal(dim1=1, dim2=2).reshape(-1, K, S)
            # 0 with the gradient of the expectation
            carried = ((m - m.detach()) * slope[0] + (d - d.detach()) * slope[1]).sum(2)
            own = log_weight - d.log().sum(2) - S * _HALF_LOG_2PI_E
            total = (log_weight.exp() * (own - value - carried)).sum(1)
            total = total + label_entropy(log_weight, m, d, rule)
            (gradient,) = torch.autograd.grad(total.sum(), point)
        return total.detach(), gradient

    found = minimise(negative_elbo, mean.new_zeros(B, K * (1 + 2 * S)), 1e-5, gain=1e-7, evaluations=evaluations)
    parts = unpack(found.point, torch.arange(B, device=mean.device))
    return Mixtures(*(part.reshape(N, T, *part.shape[1:]) for part in parts)), found.value.reshape(N, T)
