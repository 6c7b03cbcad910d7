"""`VAE`: what is done with a variational autoencoder, whatever the family of q(z | x): training, pictures, log p(x)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from girih._options import whole
from girih.training import FitResult, Recorder, evaluating
from girih.vae.distribution import VAEDistribution, sample_rows
from girih.vae.fitting import fit_vae
from girih.vae.free_energy import FreeEnergyModel
from girih.vae.traversal import traversed


class VAE(FreeEnergyModel):
    """What all variational autoencoders can do; `GaussVAE`, `MixtureVAE`, `CatVAE` and `CGBPEFVAE` put one together."""

    def forward(self) -> Distribution:
        """The distribution of x for the current parameters, in evaluation mode.

        Its attribute `exact` says whether `log_prob` is exact, or an estimate by importance sampling; either way
        `log_prob_with_error(x, samples, seed)` gives a standard error as well.
        """
        return VAEDistribution(self)

    def reconstruct(self, x: Any) -> Tensor:
        """`E[x | z]` at the z that stands for each row, `(N, D)`, in evaluation mode.

        That z is the mean of q(z | x), or the most probable category, or the mean of the heaviest component.
        """
        with torch.no_grad(), evaluating(self):
            return self.decode(self.family.point(self.encode(x)))

    def embed(self, x: Any) -> tuple[Tensor, Tensor]:
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

    def traverse(self, start: Any, dimension: int, values: Any = None, count: int = 9) -> Tensor:
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
        return traversed(self, start, dimension, values, count)

    def fit(
        self,
        X: Any,
        *,
        samples: int = 1,
        steps: int = 10_000,
        max_epochs: int | None = None,
        batch_size: int | None = 100,
        lr: float = 1e-3,
        validation: Any = None,
        initial_temperature: float | None = None,
        divergence: str = "prior",
        **options: Any,
    ) -> FitResult:
        """Train by Adam on the free energy.

        Args:
            X: `(N, D)`, complete.
            samples: L, draws of z for each row and step.
            steps: gradient steps at most.
            max_epochs: passes over the data at most, instead of `steps`.
            batch_size: rows of a step; `None` for all.
            lr: Adam's step size.
            validation: held-out rows `(M, D)`, or a fraction of X, drawn with `seed`, that is held out of training.
                Their mean free energy, in evaluation mode, at the final temperature and with the same draws every
                time, is recorded as `held_out`; `patience` watches it, and the module is left at the record where it
                was lowest.
            initial_temperature: T at the first step, from where it falls exponentially to `temperature` over the first
                half of the run; by default 1, or the final one where that is higher. For discrete latents alone.
            divergence: "prior" for term 1, the divergence from p(z); "bound", for a prior that is learned, for the
                lower bound of Theorem 2 over each batch instead, which the best prior for that batch would reach.
                At each record the prior is set to the Bregman centroid of the posteriors of all training rows, which
                takes an evaluation of the encoder on all of them.
            **options: those of `girih.training.fit_gradient`: `optimizer`, `patience`, `min_improvement`, `monitor`,
                `keep_best`, `seed`, `record`, `record_every`, `progress`, `checkpoint`, `checkpoint_seconds`, `log`,
                `log_format`, `accelerator`. Recorded is the loss, and what `default_recorder` gives where no
                `record` is asked for.

        Returns:
            The `FitResult`: its curves, and why it ended. The module itself is trained in place.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: X is not a complete table with D columns, or the free energy
                became infinite.
            ParameterError: an option is out of its domain.

        Source:
            CG-BPEF, sections 3.3, 4 and 5; EM-DGN, section 4.3 and appendix J.
        """
        length = {"max_steps": whole(steps, "steps")} if max_epochs is None else {"max_epochs": max_epochs}
        options |= {"batch_size": batch_size, "lr": lr, **length}
        return fit_vae(self, X, samples, validation, initial_temperature, divergence, options)

    def default_recorder(self, rows: Tensor, every: int) -> Recorder | None:
        """What a run records where the user asks for nothing: the training loss alone."""
        return None
