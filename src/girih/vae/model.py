"""`VAE`: a generator trained through an encoder; its family of q(z | x) says what is particular to it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from girih._arrays import ArrayLike, Rows, as_tensor, check_finite
from girih._deprecated import renamed
from girih._options import whole
from girih.errors import EmptyDataError, LatentDimensionError, ParameterError, ShapeError, UnsupportedLayerError
from girih.inference import DGN
from girih.training import (
    Accelerator,
    ExactRecorder,
    FitOptions,
    FitResult,
    LogFormat,
    Measure,
    OptimizerName,
    Recorder,
    evaluating,
)
from girih.vae.evidence import distribution_of, exact_dgn, sample_rows
from girih.vae.families import Family, family_named
from girih.vae.fitting import fit_vae
from girih.vae.free_energy import ExactBound, FreeEnergyModel
from girih.vae.networks import make_networks

# Rows per exact evaluation: bounds the (row, cell) pairs in memory.
_CHUNK = 20_000

# Rows times cells times hidden units up to which the exact likelihood is recorded unasked: a few seconds of work,
# beyond which a record takes longer than the steps between.
_RECORDED = 3e8


class VAE(FreeEnergyModel):
    r"""A variational autoencoder whose posteriors `q(z | x)` and prior `p(z)` are of a family of your choice.

        free energy = KL(q(z | x) || p(z)) - E_q[log p(x | z)]  >=  -log p(x)

    "gaussian" or `Gaussian()`: diagonal Gaussians, with the prior N(0, I). "mixture" or `Mixture(components=3)`:
    mixtures of them. "category" or `Category(categories=10)`: S categories of C values, with a uniform prior. "bpef" or
    `Polynomial(order=5, levels=101)`: exponentials of polynomials on R levels of [-1, 1], with a prior that is learned.

    `GaussVAE`, `MixtureVAE`, `CatVAE` and `CGBPEFVAE` are the same with the options of their family as arguments; a
    family of your own is a subclass of `Family`.

    Args:
        decoder: the generator g, `(N, S) -> (N, D)` or images, in float64 or float32; kept by reference and trained
            in place. Any module that `girih.trace` supports; others, with `latent_dim`, can be trained all the same.
            Or the widths of a dense one with ReLU from S to D, `[20, 400, 400, 784]`, with Glorot's initial weights.
            For categories it takes `(N, S * C)`.
        family: its name, or an object that holds its options.
        encoder: a module from x `(N, D)` to the numbers that the family needs, such as `(N, 2 S)`, in the decoder's
            type. By default a ReLU network with the decoder's widths in reverse, each at least 32.
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
        family: with its options, and its prior over the S latents.
        log_noise: log of the noise variance, `()`; a parameter if `learn_noise`, else a buffer; `None` without noise.
        latent_dim: the dimension S of z.
        output_dim: the dimension D of x.

    Raises:
        UnsupportedLayerError: the decoder is not piecewise affine, and `latent_dim` is not given.
        ShapeError: the decoder or the encoder does not fit S, D and the family.
        NoiseError: the noise is not a positive number.
        ParameterError: an unknown family or likelihood, networks of different types, a bad width, or both `encoder`
            and `hidden` are given.

    Source:
        CG-BPEF, eq. 1; EM-DGN, eq. 3; Kingma & Welling, Auto-encoding variational Bayes (2014).

    Example:
        >>> import girih
        >>> from girih.vae import VAE, Mixture
        >>> vae = VAE(girih.mlp([1, 8, 2], seed=0), Mixture(components=2), noise=0.1, seed=0)
        >>> x = vae().sample((4,))
        >>> vae().exact, vae.free_energy(x, seed=0).total.shape
        (True, torch.Size([4]))
    """

    def __init__(
        self,
        decoder: nn.Module | Sequence[int],
        family: str | Family = "gaussian",
        encoder: nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        noise: float = 1.0,
        learn_noise: bool = True,
        seed: int | None = None,
        latent_dim: int | None = None,
        likelihood: str = "gaussian",
        dtype: torch.dtype | None = None,
    ) -> None:
        chosen = family_named(family)
        networks = make_networks(decoder, encoder, hidden, chosen, latent_dim, dtype, seed)
        over = chosen.over(networks.latent_dim, networks.like)
        super().__init__(networks, over, likelihood, noise, learn_noise)

    def forward(self) -> Distribution:
        """The distribution of x for the current parameters, in evaluation mode.

        Exact (`girih.inference.DGNDistribution`) for the prior N(0, I), a piecewise-affine decoder, Gaussian noise and
        S at most 3; exact too where discrete latents have few codes; else `log_prob` is estimated by importance
        sampling. `exact` says which, and `log_prob_with_error(x, samples, seed)` gives a standard error with either.
        """
        return distribution_of(self)

    def dgn(self) -> DGN:
        """The decoder as an exact density model, `girih.DGN` with the likelihood, and the noise of this moment.

        The network is shared, the noise is a copy of its value now; gradients of the exact likelihood reach both.

        Raises:
            ParameterError: the prior is not N(0, I).
            LatentDimensionError: S is too large for exact inference.
            UnsupportedLayerError: the decoder is not piecewise affine.
        """
        return exact_dgn(self)

    def exact(self, x: ArrayLike) -> ExactBound:
        """`-log p(x)`, the ELBO and `KL(q(z | x) || p(z | x))` of each row in nats, exact: nothing is sampled.

        Args:
            x: `(N, D)`, complete.

        Returns:
            A named tuple `(nll, elbo, kl)`, `(N,)` each, with `-nll = elbo + kl`.

        Raises:
            LatentDimensionError: S is too large for exact inference.
            UnsupportedLayerError: the decoder is not piecewise affine.
            ParameterError: the posteriors are not Gaussian; `girih.vae.gap` covers other families.
            ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

        Source:
            EM-DGN, eq. 3 and Theorem 1; the curves of its figures 4, 5, 8 and 10.
        """
        if not self.family.closed_divergence:
            raise ParameterError(
                f"the divergence of {self.family.posteriors} from the exact posterior has no closed form; "
                "girih.vae.gap(vae, x) computes it where it can be had"
            )
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

    def reconstruct(self, x: ArrayLike) -> Tensor:
        """`E[x | z]` at the z that stands for each row, `(N, D)`, in evaluation mode.

        That z is the mean of q(z | x), or the most probable category, or the mean of the heaviest component.
        """
        with torch.no_grad(), evaluating(self):
            return self.decode(self.family.point(self.encode(x)))

    def embed(self, x: ArrayLike) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | x), each `(N, S)`, in evaluation mode.

        For categories `(N, S, C)`: the probabilities, and the deviations of the one-hot codes.
        """
        with torch.no_grad(), evaluating(self):
            return self.family.moments(self.encode(x))

    def sample(self, n: int, seed: int | None = None, mean: bool = False, relaxed: bool = False) -> Tensor:
        """Draws from the generative model, `(n, D)`, in evaluation mode: z from the prior, then x.

        Args:
            n: how many.
            seed: makes them reproducible; torch's global generator otherwise.
            mean: give `E[x | z]` instead of a draw of x, as pictures want it.
            relaxed: draw a discrete z as training does, by the Concrete relaxation; hard codes otherwise.
        """
        return sample_rows(self, whole(n, "n"), seed, mean, relaxed)

    def traverse(self, start: ArrayLike, dimension: int, values: ArrayLike | None = None, count: int = 9) -> Tensor:
        """`E[x | z]` as one latent is moved over its range and the others stay, `(N, K, D)`, in evaluation mode.

        Args:
            start: latents `(N, S)`, for categories `(N, S, C)`; or rows x `(N, D)`, whose latents are those that
                `reconstruct` uses. Where S = D, latents are meant.
            dimension: which latent, from 0.
            values: `(K,)` that it takes, for categories their numbers; by default quantiles of the prior from 2% to
                98%, all of [-1, 1], or all categories.
            count: K, where `values` is not given.

        Raises:
            ShapeError, ParameterError: the start is neither, or there is no such latent or value.
        """
        dimension, family = whole(dimension, "dimension", 0), self.family
        if dimension >= self.latent_dim:
            raise ParameterError(f"dimension must be a latent from 0 to {self.latent_dim - 1}; got {dimension}")
        with torch.no_grad(), evaluating(self):
            z = self._latents(start)
            if values is None:
                values = family.axis(dimension, whole(count, "count"), z.device)
            values = family.values(as_tensor(values, "values", z.device))
            if not len(values):
                raise EmptyDataError("values is empty; pass at least one value for the latent")
            check_finite(values, "values")
            moved = z[:, None].repeat(1, len(values), *(1 for _ in family.event_shape))
            moved[:, :, dimension] = values
            return self.decode(moved.flatten(0, 1)).reshape(len(z), len(values), self.output_dim)

    def _latents(self, start: ArrayLike) -> Tensor:
        """Latents `(N, *event)`, given or those of rows."""
        event = self.family.event_shape
        tensor = as_tensor(start, "start", self.device)
        if tensor.shape[-len(event) :] == event and tensor.ndim in (len(event), len(event) + 1):
            check_finite(tensor, "start")
            return tensor.reshape(-1, *event)
        if tensor.ndim in (1, 2) and tensor.shape[-1] == self.output_dim:
            return self.family.point(self.encode(tensor))
        raise ShapeError(
            f"start must be latents of shape (N, {', '.join(map(str, event))}) or rows of shape "
            f"(N, {self.output_dim}); got {tuple(tensor.shape)}"
        )

    @renamed({"steps": "max_steps"})
    def fit(
        self,
        X: Rows,
        *,
        samples: int = 1,
        initial_temperature: float | None = None,
        divergence: Literal["prior", "bound"] = "prior",
        kl_weight: float = 1.0,
        optimizer: OptimizerName = "adam",
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | Literal["auto"] | None = "auto",
        lr: float | None = None,
        validation: Rows | float | Literal["auto"] | None = "auto",
        patience: int | Literal["auto"] | None = "auto",
        min_improvement: float | None = None,
        monitor: str | None = None,
        keep_best: bool | None = None,
        seed: int | None = 0,
        record: Recorder | Measure | None = None,
        record_every: int | None = None,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 2.0,
        settings: Mapping[str, Any] | None = None,
        log: str | os.PathLike[str] | None = None,
        log_format: LogFormat = "csv",
        accelerator: Accelerator = "auto",
    ) -> FitResult:
        """Train on the free energy in place, by Adam unless another optimizer is asked for.

        Args:
            X: `(N, D)`, complete.
            samples: L, draws of z for each row and step.
            initial_temperature: T at the first step, from where it falls exponentially to `temperature` over the first
                half of the run; by default 1, or the final one where that is higher. For discrete latents alone.
            divergence: "prior" for term 1, the divergence from p(z); "bound", for a prior that is learned, for the
                lower bound of Theorem 2 over each batch instead, which the best prior for that batch would reach.
                At each record the prior is set to the Bregman centroid of the posteriors of all training rows, which
                takes an evaluation of the encoder on all of them.
            kl_weight: w of the loss `w * term 1 + term 2`, 0 or more: the strength of the regularisation, as in a
                beta-VAE. With w = 1 that is the free energy, a bound on `-log p(x)`; with another it is not. For a
                Gaussian likelihood whose noise is fixed, it trains as w = 1 with w times that noise. What is watched on
                held-out rows stays the free energy, so that it can choose w.
            optimizer: "adam", or "lbfgs" with all rows at once.
            max_epochs: as all that follow, a field of `girih.FitOptions`, which says what it means.
            max_steps: by default 10,000, where `max_epochs` is not given.
            batch_size: by default 100 rows.
            lr: by default 1e-3.
            validation: by default none. What is recorded as `held_out` and watched is the mean free energy of held-out
                rows, in evaluation mode, at the final temperature and with the same draws every time.
            patience: by default `None`.
            min_improvement: by default 1e-4.
            monitor: what is watched.
            keep_best: by default where rows are held out.
            seed: of rows and draws.
            record: what is measured; `default_recorder` says what is recorded beside the loss where it is not given.
            record_every: by default 100.
            progress: show a bar.
            checkpoint: a file to go on from.
            checkpoint_seconds: time between writes of it.
            settings: what else the numbers depend on.
            log: a folder.
            log_format: "csv" or "tensorboard".
            accelerator: "cpu", "gpu" or "auto".

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: X is not a complete table with D columns, or the free energy
                became infinite.
            ParameterError: an option is out of its domain, or the checkpoint is of another run.

        Source:
            CG-BPEF, sections 3.3, 3.4 (the weight of term 1), 4 and 5; EM-DGN, section 4.3 and appendix J; Higgins et
            al., beta-VAE (2017).

        Example:
            >>> import girih
            >>> from girih.vae import VAE
            >>> vae = VAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
            >>> result = vae.fit(vae().sample((50,)), max_steps=20, record_every=10, validation=0.2, progress=False)
            >>> result.steps, sorted(result.history)
            (20, ['elbo', 'held_out', 'kl', 'loss', 'nll', 'noise', 'seconds', 'step'])
        """
        options = FitOptions.among(locals())
        return fit_vae(self, X, samples, initial_temperature, divergence, kl_weight, optimizer, options)

    def default_recorder(self, rows: Tensor, every: int) -> Recorder | None:
        """The recorder where the user gives none: of the exact NLL, ELBO, KL and noise, where q and x | z are Gaussian.

        That is where a record takes no more than seconds: the decoder is piecewise affine, S at most 3, and rows,
        cells and hidden units are few enough; for more, ask by `record=girih.training.ExactRecorder(rows)`. Elsewhere
        the training loss alone.
        """
        if not self.family.closed_divergence or self.log_noise is None:
            return None
        try:
            units = self.dgn().trace.hidden_units
        except (ParameterError, LatentDimensionError, UnsupportedLayerError):
            return None
        cells = sum(math.comb(units, k) for k in range(self.latent_dim + 1))  # of hyperplanes in general position
        return ExactRecorder(rows, every=every) if len(rows) * cells * units <= _RECORDED else None
