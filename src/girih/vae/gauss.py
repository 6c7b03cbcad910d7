"""`GaussVAE`: a generator trained through a Gaussian encoder, with its exact likelihood at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from girih._arrays import as_rows, check_finite
from girih._options import whole
from girih.errors import LatentDimensionError, ParameterError, UnsupportedLayerError
from girih.inference import DGN, DGNDistribution
from girih.training import ExactRecorder, Recorder, TrainingRun, fit_gradient
from girih.training.checkpoint import digest
from girih.training.generators import dimensions, evaluating, type_of
from girih.training.held_out import split
from girih.vae.encoder import check_encoded, check_encoder, mirrored_widths, mlp_encoder
from girih.vae.gaussians import divergence_from_prior, draw, gaussian_nll, log_variance
from girih.vae.recorder import HeldOutRecorder
from girih.vae.terms import ExactBound, FreeEnergy

# Rows per exact evaluation: bounds the (row, cell) pairs in memory.
_CHUNK = 20_000

# Rows times cells times hidden units up to which the exact likelihood is recorded unasked: a few seconds of work,
# beyond which a record takes longer than the steps between.
_RECORDED = 3e8


class GaussVAE(nn.Module):
    r"""A VAE with a diagonal Gaussian `q(z | x)`, the prior `N(0, I)` and isotropic Gaussian noise.

        free energy = KL(q(z | x) || N(0, I)) - E_q[log N(x; g(z), noise I)]  >=  -log p(x)

    Where the decoder g is piecewise affine, the right-hand side, which a VAE never sees, is computed exactly by
    `girih.DGN`: calling the module gives the exact distribution of x, and `exact` the gap of the bound. These are
    of the networks in evaluation mode, in float64 whatever the type of the parameters.

    Args:
        decoder: the generator g, `(N, S) -> (N, D)` or images, in float64 or float32; kept by reference and trained
            in place. Any module that `girih.trace` supports; others, with `latent_dim`, can be trained all the same.
        encoder: a module from x `(N, D)` to `(N, 2 S)`, means and then log standard deviations, in the decoder's
            type; `girih.networks.fc_encoder(D, 2 * S)` is one. By default a ReLU network with the decoder's
            widths in reverse, each at least 32.
        hidden: widths of the default encoder's hidden layers, instead of the mirrored ones.
        noise: the initial noise *variance*. Start well below the variance of the data: from a noise as large as
            that, training tends to end where every q(z | x) is the prior and z is not used.
        learn_noise: train the noise along with the networks.
        seed: makes the default encoder's weights reproducible.
        latent_dim: S, for a decoder that is not piecewise affine. What is exact then raises `UnsupportedLayerError`.

    Attributes:
        log_noise: log of the noise variance, `()`; a parameter if `learn_noise`, else a buffer.
        latent_dim: the dimension S of z.
        output_dim: the dimension D of x.

    Raises:
        UnsupportedLayerError: the decoder is not piecewise affine, and `latent_dim` is not given.
        ShapeError: the decoder does not take S numbers, or the encoder does not take D or give 2 S.
        NoiseError: the noise is not a positive number.
        ParameterError: networks of different types, a bad width, or both `encoder` and `hidden` are given.

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
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        found = dimensions(decoder, latent_dim, "decoder")
        self.latent_dim, self.output_dim, dtype, device = found
        outputs = 2 * self.latent_dim
        if encoder is None:
            widths = mirrored_widths(decoder) if hidden is None else hidden
            encoder = mlp_encoder(self.output_dim, widths, outputs, seed).to(device, dtype)
        elif hidden is not None:
            raise ParameterError("hidden sets the widths of the default encoder; leave it out when you pass an encoder")
        check_encoder(encoder, found, outputs)
        self.decoder = decoder
        self.encoder = encoder
        log_noise = torch.tensor(log_variance(noise), dtype=torch.float64, device=device)
        self.log_noise: Tensor
        if learn_noise:
            self.log_noise = nn.Parameter(log_noise)
        else:
            self.register_buffer("log_noise", log_noise)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters of the networks."""
        return type_of(self.decoder, self.encoder)

    @property
    def noise(self) -> Tensor:
        """The noise variance, `()`."""
        return self.log_noise.exp()

    def forward(self) -> DGNDistribution:
        """The exact distribution of x for the current parameters.

        Raises:
            LatentDimensionError: S is too large for exact inference.
            UnsupportedLayerError: the decoder is not piecewise affine.
        """
        return self.dgn()()

    def dgn(self) -> DGN:
        """The decoder as an exact density model, `girih.DGN` with the noise of this moment.

        The network is shared, the noise is a copy of its value now; gradients of the exact likelihood reach both.

        Raises:
            LatentDimensionError: S is too large for exact inference.
            UnsupportedLayerError: the decoder is not piecewise affine.
        """
        with evaluating(self.decoder):
            return DGN(self.decoder, noise=self.noise)

    def encode(self, x: Any) -> Independent[Normal]:
        """The approximate posteriors `q(z | x_n)`, in float64: batch shape `(N,)`, event shape `(S,)`.

        Args:
            x: `(N, D)`, complete: an encoder cannot read missing entries.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError.
        """
        mean, log_deviation = self._encoded(self._rows(x).to(self.dtype))
        mean, deviation = mean.double(), log_deviation.double().exp()
        check_finite(mean.detach(), "the encoder's mean")
        check_finite(deviation.detach(), "the encoder's standard deviation")
        return Independent(Normal(mean, deviation, validate_args=False), 1, validate_args=False)

    def decode(self, z: Any) -> Tensor:
        """The generator, `g(z)`: `(N, S)` to `(N, D)`, in the type of its parameters."""
        rows = as_rows(z, "z", self.latent_dim, "the latent dimension S", device=self.log_noise.device)
        return self.decoder(rows.to(self.dtype)).flatten(1)

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
        samples, rows = whole(samples, "samples"), self._rows(x).to(self.dtype)
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
            UnsupportedLayerError: the decoder is not piecewise affine.
            ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

        Source:
            EM-DGN, eq. 3 and Theorem 1; the curves of its figures 4, 5, 8 and 10.
        """
        rows = self._rows(x)
        parts = []
        with torch.no_grad(), evaluating(self):
            dgn = self.dgn()
            for part in rows.split(_CHUNK):
                posterior, q = dgn.posterior(part), self.encode(part)
                kl = posterior.kl(q)
                parts.append((-posterior.log_evidence, posterior.log_evidence - kl, kl))
        return ExactBound(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def fit(self, X: Any, *, samples: int = 1, validation: Any = None, **options: Any) -> TrainingRun:
        """Train by Adam on the free energy, and record the exact likelihood on the way.

        Args:
            X: `(N, D)`, complete.
            samples: L, draws of z for each row and step.
            validation: held-out rows `(M, D)`, or a fraction of X, drawn with `seed`, that is held out of training.
                Their mean free energy, in evaluation mode and with the same draws every time, is recorded as
                `held_out`; `patience` watches it, and the module is left at the record where it was lowest.
            **options: those of `girih.training.fit_gradient`: `lr`, `batch_size`, `max_epochs`, `patience`, `monitor`,
                `keep_best`, `seed`, `record`, `record_every`, `progress`, `checkpoint`, `checkpoint_seconds`, `log`,
                `log_format`, `accelerator`. Unless `record` is given, the exact NLL, ELBO, KL and the noise are
                recorded every `record_every` steps where the decoder is piecewise affine, S is at most 3 and rows,
                cells and hidden units are few enough for a record to take seconds; for more, ask for it by
                `record=girih.training.ExactRecorder(rows)`.

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
        samples, seed = whole(samples, "samples"), whole(options.get("seed", 0), "seed", None)
        rows, held_out = split(self._rows(X), validation, seed, self._rows)
        options["settings"] = {"samples": samples, **(options.get("settings") or {})}
        recorder, every = options.get("record"), options.get("record_every", 100)
        if recorder is None and self._is_recorded(len(rows)):
            recorder = ExactRecorder(rows, every=every)
        if held_out is not None:
            inner = recorder if isinstance(recorder, Recorder) else Recorder(recorder, every=every)
            recorder = HeldOutRecorder(inner, held_out.to(self.dtype), samples)
            options = {"monitor": "held_out", "keep_best": True, **options}
            options["settings"]["held-out rows"] = digest(held_out)
        options["record"] = recorder

        def loss(model: GaussVAE, batch: Tensor) -> Tensor:
            terms = model._terms(batch, samples)
            return (terms.divergence + terms.reconstruction).mean()

        return fit_gradient(self, rows, loss=loss, dtype=self.dtype, **options)

    def _is_recorded(self, count: int) -> bool:
        """Whether exact inference covers this decoder, at a cost for so many rows that `fit` may take unasked."""
        try:
            units = self.dgn().trace.hidden_units
        except (LatentDimensionError, UnsupportedLayerError):
            return False
        cells = sum(math.comb(units, k) for k in range(self.latent_dim + 1))  # of hyperplanes in general position
        return count * cells * units <= _RECORDED

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
