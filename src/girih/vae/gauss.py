"""`GaussVAE`: a generator trained through a Gaussian encoder, with its exact likelihood at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from girih._arrays import as_rows, check_finite
from girih._options import whole
from girih.errors import LatentDimensionError, NoiseError, ParameterError
from girih.inference import DGN, DGNDistribution
from girih.inference.limits import check_latent_dim
from girih.networks import trace
from girih.training import ExactRecorder, TrainingRun, fit_gradient
from girih.vae.encoder import check_encoded, check_encoder, check_float64, mirrored_widths, mlp_encoder
from girih.vae.gaussians import divergence_from_prior, draw, gaussian_nll

# Rows per exact evaluation: bounds the (row, cell) pairs in memory.
_CHUNK = 20_000


class FreeEnergy(NamedTuple):
    """The two terms of a free energy, nats per row; their sum bounds `-log p(x)` from above on average."""

    divergence: Tensor  # (N,) KL(q(z | x) || p(z))
    reconstruction: Tensor  # (N,) estimate of -E_q[log p(x | z)]


class ExactBound(NamedTuple):
    """How far a VAE is from its own likelihood, nats per row, without sampling: `-nll = elbo + kl`."""

    nll: Tensor  # (N,) -log p(x)
    elbo: Tensor  # (N,)
    kl: Tensor  # (N,) KL(q(z | x) || p(z | x))


class GaussVAE(nn.Module):
    r"""A VAE with a diagonal Gaussian `q(z | x)`, the prior `N(0, I)` and isotropic Gaussian noise.

        free energy = KL(q(z | x) || N(0, I)) - E_q[log N(x; g(z), noise I)]  >=  -log p(x)

    The decoder g is piecewise affine, so the right-hand side, which a VAE never sees, is computed exactly by
    `girih.DGN`: calling the module gives the exact distribution of x, and `exact` the gap of the bound.

    Args:
        decoder: the generator g, `(N, S) -> (N, D)`, any module that `girih.trace` supports, in float64; kept by
            reference and trained in place.
        encoder: a float64 module from x `(N, D)` to `(N, 2 S)`, means and then log standard deviations. By
            default a ReLU network with the decoder's widths in reverse, each at least 32.
        hidden: widths of the default encoder's hidden layers, instead of the mirrored ones.
        noise: the initial noise *variance*. Start well below the variance of the data: from a noise as large as
            that, training tends to end where every q(z | x) is the prior and z is not used.
        learn_noise: train the noise along with the networks.
        seed: makes the default encoder's weights reproducible.

    Attributes:
        log_noise: log of the noise variance, `()`; a parameter if `learn_noise`, else a buffer.
        latent_dim: S.
        output_dim: D.

    Raises:
        UnsupportedLayerError: the decoder is not piecewise affine.
        ShapeError: the encoder does not take D numbers or give 2 S.
        NoiseError: the noise is not a positive number.
        ParameterError: a network is not in float64, a bad width, or both `encoder` and `hidden` are given.

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
    """

    def __init__(
        self,
        decoder: nn.Module,
        encoder: nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        noise: float = 1.0,
        learn_noise: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        traced = trace(decoder)
        check_float64(decoder, "decoder")
        self.latent_dim: int = traced.latent_dim
        self.output_dim: int = traced.output_dim
        outputs = 2 * self.latent_dim
        if encoder is None:
            widths = mirrored_widths(traced) if hidden is None else hidden
            encoder = mlp_encoder(self.output_dim, widths, outputs, seed).to(traced.device)
        elif hidden is not None:
            raise ParameterError("hidden sets the widths of the default encoder; leave it out when you pass an encoder")
        check_encoder(encoder, self.output_dim, outputs)
        self.decoder = decoder
        self.encoder = encoder
        log_noise = torch.tensor(_log_variance(noise), dtype=torch.float64, device=traced.device)
        self.log_noise: Tensor
        if learn_noise:
            self.log_noise = nn.Parameter(log_noise)
        else:
            self.register_buffer("log_noise", log_noise)

    @property
    def noise(self) -> Tensor:
        """The noise variance, `()`."""
        return self.log_noise.exp()

    def forward(self) -> DGNDistribution:
        """The exact distribution of x for the current parameters.

        Raises:
            LatentDimensionError: S is too large for exact inference.
        """
        return self.dgn()()

    def dgn(self) -> DGN:
        """The decoder as an exact density model, `girih.DGN` with the noise of this moment.

        The network is shared, the noise is a copy of its value now; gradients of the exact likelihood reach both.

        Raises:
            LatentDimensionError: S is too large for exact inference.
        """
        return DGN(self.decoder, noise=self.noise)

    def encode(self, x: Any) -> Independent[Normal]:
        """The approximate posteriors `q(z | x_n)`: batch shape `(N,)`, event shape `(S,)`.

        Args:
            x: `(N, D)`, complete: an encoder cannot read missing entries.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError.
        """
        mean, log_deviation = self._encoded(self._rows(x))
        deviation = log_deviation.exp()
        check_finite(mean.detach(), "the encoder's mean")
        check_finite(deviation.detach(), "the encoder's standard deviation")
        return Independent(Normal(mean, deviation, validate_args=False), 1, validate_args=False)

    def decode(self, z: Any) -> Tensor:
        """The generator, `g(z)`: `(N, S)` to `(N, D)`."""
        return self.decoder(as_rows(z, "z", self.latent_dim, "the latent dimension S", device=self.log_noise.device))

    def free_energy(self, x: Any, samples: int = 1, seed: int | None = None) -> Tensor:
        r"""An unbiased estimate of the negative ELBO of each row, `(N,)` nats, to be minimised.

            KL(q(z | x) || N(0, I)) - (1 / L) sum_l log N(x; g(z_l), noise I),   z_l = mean + deviation * e_l

        The divergence is in closed form; gradients reach the decoder, the encoder and the noise.

        Args:
            x: `(N, D)`, complete.
            samples: L, draws of z for each row.
            seed: makes the draws reproducible; torch's global generator otherwise.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.
            ParameterError: `samples` is not a positive whole number.

        Source:
            EM-DGN, eq. 3; Kingma & Welling (2014), eq. 10.
        """
        terms = self.free_energy_terms(x, samples, seed)
        return terms.divergence + terms.reconstruction

    def free_energy_terms(self, x: Any, samples: int = 1, seed: int | None = None) -> FreeEnergy:
        """The divergence and the reconstruction term of `free_energy`, `(N,)` each."""
        samples, rows = whole(samples, "samples"), self._rows(x)
        generator = None if seed is None else torch.Generator(rows.device).manual_seed(seed)
        return self._terms(rows, samples, generator)

    def _terms(self, rows: Tensor, samples: int, generator: torch.Generator | None = None) -> FreeEnergy:
        """`free_energy_terms` of checked rows: what one step of training costs."""
        mean, log_deviation = self._encoded(rows)
        z = draw(mean, log_deviation, samples, generator)
        decoded = self.decoder(z.reshape(-1, self.latent_dim)).reshape(samples, *rows.shape)
        reconstruction = gaussian_nll(rows, decoded, self.log_noise)
        return FreeEnergy(divergence_from_prior(mean, log_deviation), reconstruction.mean(0))

    def exact(self, x: Any) -> ExactBound:
        """`-log p(x)`, the ELBO and `KL(q(z | x) || p(z | x))` of each row in nats, exact: nothing is sampled.

        Args:
            x: `(N, D)`, complete.

        Returns:
            A named tuple `(nll, elbo, kl)`, `(N,)` each, with `-nll = elbo + kl`.

        Raises:
            LatentDimensionError: S is too large for exact inference.
            ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

        Source:
            EM-DGN, eq. 3 and Theorem 1; the curves of its figures 4, 5, 8 and 10.
        """
        rows = self._rows(x)
        parts = []
        with torch.no_grad():
            dgn = self.dgn()
            for part in rows.split(_CHUNK):
                posterior, q = dgn.posterior(part), self.encode(part)
                kl = posterior.kl(q)
                parts.append((-posterior.log_evidence, posterior.log_evidence - kl, kl))
        return ExactBound(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def fit(self, X: Any, *, samples: int = 1, **options: Any) -> TrainingRun:
        """Train by Adam on the free energy, and record the exact likelihood on the way.

        Args:
            X: `(N, D)`, complete.
            samples: L, draws of z for each row and step.
            **options: those of `girih.training.fit_gradient`: `lr`, `batch_size`, `max_epochs`, `patience`, `seed`,
                `record`, `record_every`, `progress`, `checkpoint`, `accelerator`. Unless `record` is given and where
                S allows it, the exact NLL, ELBO, KL and the noise are recorded every `record_every` steps.

        Returns:
            The `TrainingRun`: its curves, and why it ended. The module itself is trained in place.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: X is not a complete table with D columns, or the free energy
                became infinite.
            ParameterError: an option is out of its domain.

        Source:
            EM-DGN, section 4.3 and appendix J.

        Example:
            >>> import girih, torch
            >>> from girih.vae import GaussVAE
            >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), seed=0)
            >>> run = vae.fit(torch.randn(64, 2), lr=0.01, max_epochs=40, record_every=20, progress=False)
            >>> run.history["step"].tolist(), sorted(run.history)
            ([0, 20, 40], ['elbo', 'kl', 'loss', 'nll', 'noise', 'seconds', 'step'])
        """
        samples, rows = whole(samples, "samples"), self._rows(X)
        if options.get("record") is None and self._is_exact:
            options["record"] = ExactRecorder(rows, every=options.get("record_every", 100))
        options["settings"] = {"samples": samples, **(options.get("settings") or {})}

        def loss(model: GaussVAE, batch: Tensor) -> Tensor:
            terms = model._terms(batch, samples)
            return (terms.divergence + terms.reconstruction).mean()

        return fit_gradient(self, rows, loss=loss, **options)

    @property
    def _is_exact(self) -> bool:
        """Whether exact inference covers this latent dimension."""
        try:
            check_latent_dim(self.latent_dim)
        except LatentDimensionError:
            return False
        return True

    def _rows(self, x: Any) -> Tensor:
        return as_rows(x, "x", self.output_dim, "the data dimension D", device=self.log_noise.device)

    def _encoded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.encoder(rows)
        check_encoded(encoded, len(rows), 2 * self.latent_dim)
        mean, log_deviation = encoded.chunk(2, 1)
        return mean, log_deviation

    def extra_repr(self) -> str:
        """Shown by `print(vae)`."""
        return f"S={self.latent_dim}, D={self.output_dim}, noise={self.noise.item():.3g}"


def _log_variance(noise: Any) -> float:
    try:
        value = float(noise)
    except (TypeError, ValueError, RuntimeError):
        raise NoiseError(f"noise must be one number, the variance of the isotropic noise; got {noise!r}") from None
    if not (math.isfinite(value) and value > 0.0):
        raise NoiseError(f"noise must be a positive, finite variance; got {value:g}")
    return math.log(value)
