"""Mixtures of diagonal Gaussians as posteriors, with a standard normal prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from girih._arrays import check_finite
from girih.vae.posteriors.base import Draws, Layout, PosteriorFamily
from girih.vae.posteriors.gaussian import normal_axis, standard_normal

_LOG_2PI = math.log(2.0 * math.pi)


def mixture_layout(components: int) -> Layout:
    """K logits, then K means, then K log standard deviations of S latents each."""
    return Layout(
        1,
        lambda S: components * (2 * S + 1),
        lambda S: (
            f"K = {components} logits of the components, then the means and the log standard deviations of the "
            f"S = {S} latents under each of them"
        ),
    )


class MixturePosterior(PosteriorFamily):
    r"""`sum_k w_k N(mean_k, diag(deviation_k^2))` against `N(0, I)`.

    Draws are stratified: L of each component, weighted by w_k. So nothing discrete is drawn, gradients reach the
    weights exactly, and the decoder runs K L times for each row. The divergence has no closed form; of

        KL = E_q[log q(z)] + S/2 log(2 pi) + E_q[|z|^2] / 2

    the last term is closed, and the first is the weighted mean over the draws, which is unbiased.

    Args:
        latent_dim: S.
        components: K.

    Source:
        Morningstar et al., Automatic differentiation variational inference with mixtures (2021): stratified draws.

    Example:
        >>> import torch
        >>> from girih.vae.posteriors import MixturePosterior
        >>> draws = MixturePosterior(2, 3).draw(torch.zeros(4, 15), samples=5)
        >>> draws.latents.shape, draws.weights.sum(0).round(decimals=4)
        (torch.Size([15, 4, 2]), tensor([1., 1., 1., 1.]))
    """

    def __init__(self, latent_dim: int, components: int) -> None:
        super().__init__()
        self.latent_dim, self.event_shape = latent_dim, torch.Size([latent_dim])
        self.components = components

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
        """Event shape `(S,)`."""
        log_weights, mean, log_deviation = self.parts(encoded.double())
        deviation = log_deviation.exp()
        check_finite(log_weights.detach(), "the encoder's log weights")
        check_finite(mean.detach(), "the encoder's means")
        check_finite(deviation.detach(), "the encoder's standard deviations")
        parts = Independent(Normal(mean, deviation, validate_args=False), 1, validate_args=False)
        return MixtureSameFamily(Categorical(logits=log_weights, validate_args=False), parts, validate_args=False)

    def prior(self, device: torch.device) -> Distribution:
        """`N(0, I)`."""
        return standard_normal(self.latent_dim, device)

    def point(self, q: Distribution) -> Tensor:
        """The mean of the heaviest component: that of the mixture may lie between its modes, where q has no mass."""
        assert isinstance(q, MixtureSameFamily)
        best = q.mixture_distribution.logits.argmax(-1)
        means = q.component_distribution.mean
        return means.gather(-2, best[..., None, None].expand(*best.shape, 1, means.shape[-1])).squeeze(-2)

    def extra_repr(self) -> str:
        """Shown by `print(vae)`."""
        return f"K={self.components}"

    def axis(self, dimension: int, count: int, device: torch.device) -> Tensor:
        """Quantiles of the prior."""
        return normal_axis(count, device)

    def values(self, values: Tensor) -> Tensor:
        """Any numbers, `(K,)`."""
        return values.reshape(-1)
