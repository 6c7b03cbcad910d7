"""`GaussVAE`: a generator trained through a Gaussian encoder, with its exact likelihood at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from girih.errors import LatentDimensionError, ParameterError, UnsupportedLayerError
from girih.inference import DGN
from girih.training import ExactRecorder, Recorder, evaluating
from girih.vae.distribution import ExactDistribution
from girih.vae.model import VAE
from girih.vae.networks import make_networks
from girih.vae.posteriors import GaussianPosterior
from girih.vae.posteriors.gaussian import gaussian_layout
from girih.vae.terms import ExactBound

# Rows per exact evaluation: bounds the (row, cell) pairs in memory.
_CHUNK = 20_000

# Rows times cells times hidden units up to which the exact likelihood is recorded unasked: a few seconds of work,
# beyond which a record takes longer than the steps between.
_RECORDED = 3e8


def exact_dgn(vae: VAE) -> DGN:
    """The decoder of a VAE with prior `N(0, I)` as an exact density model, with the noise of this moment.

    The network is shared, the noise is a copy of its value now; gradients of the exact likelihood reach both.

    Raises:
        ParameterError: the likelihood is not Gaussian.
        LatentDimensionError: S is too large for exact inference.
        UnsupportedLayerError: the decoder is not piecewise affine.
    """
    if vae.log_noise is None:
        raise ParameterError(
            f"exact inference needs Gaussian noise, and this VAE has likelihood={vae.likelihood!r}; "
            "`vae().log_prob_with_error(x)` estimates log p(x) by importance sampling"
        )
    with evaluating(vae.decoder):
        return DGN(vae.decoder, noise=vae.noise).keep_trace()  # that of evaluation, in training too


def distribution_of(vae: VAE, sampled: Distribution) -> Distribution:
    """The exact distribution of x where `exact_dgn` gives one, else the other."""
    try:
        return ExactDistribution(exact_dgn(vae))
    except (ParameterError, LatentDimensionError, UnsupportedLayerError):
        return sampled


class GaussVAE(VAE):
    r"""A VAE with a diagonal Gaussian `q(z | x)` and the prior `N(0, I)`.

        free energy = KL(q(z | x) || N(0, I)) - E_q[log N(x; g(z), noise I)]  >=  -log p(x)

    Where the decoder g is piecewise affine, the noise Gaussian and S at most 3, the right-hand side, which a VAE never
    sees, is computed exactly by `girih.DGN`: calling the module gives the exact distribution of x, and `exact` the
    gap of the bound. These are of the networks in evaluation mode, in float64 whatever the type of the parameters.

    Args:
        decoder: the generator g, `(N, S) -> (N, D)` or images, in float64 or float32; kept by reference and trained
            in place. Any module that `girih.trace` supports; others, with `latent_dim`, can be trained all the same.
            Or the widths of a dense one with ReLU from S to D, `[20, 400, 400, 784]`, with Glorot's initial weights.
        encoder: a module from x `(N, D)` to `(N, 2 S)`, means and then log standard deviations, in the decoder's
            type; `girih.networks.fc_encoder(D, 2 * S)` is one. By default a ReLU network with the decoder's
            widths in reverse, each at least 32.
        hidden: widths of the default encoder's hidden layers, instead of the mirrored ones.
        noise: the initial noise *variance* of a Gaussian likelihood. Start well below the variance of the data: from a
            noise as large as that, training tends to end where every q(z | x) is the prior and z is not used.
        learn_noise: train the noise along with the networks.
        seed: makes the weights of networks that are made here reproducible; without it they follow
            `torch.manual_seed`.
        latent_dim: S, for a decoder that is not piecewise affine. What is exact then raises `UnsupportedLayerError`.
        likelihood: "gaussian", or "bernoulli" for values in [0, 1], with the decoder's output as logits.
        dtype: of networks made from widths, float64 by default.

    Attributes:
        log_noise: log of the noise variance, `()`; a parameter if `learn_noise`, else a buffer.
        latent_dim: the dimension S of z.
        output_dim: the dimension D of x.

    Raises:
        UnsupportedLayerError: the decoder is not piecewise affine, and `latent_dim` is not given.
        ShapeError: the decoder does not take S numbers, or the encoder does not take D or give 2 S.
        NoiseError: the noise is not a positive number.
        ParameterError: networks of different types, a bad width, an unknown likelihood, or both `encoder` and
            `hidden` are given.

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
        layout = gaussian_layout()
        networks = make_networks(decoder, encoder, hidden, layout, latent_dim, dtype, seed)
        super().__init__(networks, GaussianPosterior(networks.latent_dim), layout, likelihood, noise, learn_noise)

    def forward(self) -> Distribution:
        """The distribution of x for the current parameters, in evaluation mode.

        Exact (`girih.inference.DGNDistribution`) for a piecewise-affine decoder with Gaussian noise and S at most 3;
        else `log_prob` is estimated by importance sampling. `exact` says which, and `log_prob_with_error(x, samples,
        seed)` gives a standard error with either.
        """
        return distribution_of(self, super().forward())

    def dgn(self) -> DGN:
        """The decoder as an exact density model, `girih.DGN` with the noise of this moment.

        The network is shared, the noise is a copy of its value now; gradients of the exact likelihood reach both.

        Raises:
            ParameterError: the likelihood is not Gaussian.
            LatentDimensionError: S is too large for exact inference.
            UnsupportedLayerError: the decoder is not piecewise affine.
        """
        return exact_dgn(self)

    def exact(self, x: Any) -> ExactBound:
        """`-log p(x)`, the ELBO and `KL(q(z | x) || p(z | x))` of each row in nats, exact: nothing is sampled.

        Args:
            x: `(N, D)`, complete.

        Returns:
            A named tuple `(nll, elbo, kl)`, `(N,)` each, with `-nll = elbo + kl`.

        Raises:
            LatentDimensionError: S is too large for exact inference.
            UnsupportedLayerError: the decoder is not piecewise affine.
            ParameterError: the likelihood is not Gaussian.
            ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

        Source:
            EM-DGN, eq. 3 and Theorem 1; the curves of its figures 4, 5, 8 and 10.
        """
        rows = self.rows(x)
        parts = []
        with torch.no_grad(), evaluating(self):
            dgn = self.dgn()
            for part in rows.split(_CHUNK):
                posterior, q = dgn.posterior(part), self.encode(part)
                assert isinstance(q, Independent)
                kl = posterior.kl(q)
                parts.append((-posterior.log_evidence, posterior.log_evidence - kl, kl))
        return ExactBound(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def default_recorder(self, rows: Tensor, every: int) -> Recorder | None:
        """The exact NLL, ELBO, KL and the noise, where a record takes no more than seconds.

        That is where the decoder is piecewise affine, S at most 3, and rows, cells and hidden units are few enough;
        for more, ask by `record=girih.training.ExactRecorder(rows)`.
        """
        try:
            units = self.dgn().trace.hidden_units
        except (ParameterError, LatentDimensionError, UnsupportedLayerError):
            return None
        cells = sum(math.comb(units, k) for k in range(self.latent_dim + 1))  # of hyperplanes in general position
        return ExactRecorder(rows, every=every) if len(rows) * cells * units <= _RECORDED else None
