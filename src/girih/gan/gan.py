"""`GAN`: a generator trained against a discriminator."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from girih._arrays import Rows, as_rows
from girih._options import real, whole
from girih.errors import ParameterError, ShapeError
from girih.gan import losses
from girih.gan.losses import LossName, check_loss_name
from girih.networks import fc_discriminator
from girih.training import (
    Accelerator,
    Batches,
    FitOptions,
    FitResult,
    LogFormat,
    Measure,
    Recorder,
    check_loss,
    dimensions,
    mean_loss,
    number_type,
    run_steps,
    split,
    tried,
    type_of,
    watching,
)

_HIDDEN = (1024, 512, 256)

# What the two games are usually played with: Adam's betas, and steps of the discriminator for one of the generator.
_BETAS = {"non_saturating": (0.5, 0.999), "wasserstein": (0.0, 0.9)}
_STEPS = {"non_saturating": 1, "wasserstein": 5}

_DEFAULTS = FitOptions(max_epochs=300, batch_size=100, lr=1e-4)


class GAN(nn.Module):
    r"""A generator g of latents `z ~ N(0, I)` and the discriminator d that it is trained against.

        non_saturating: d minimises E[softplus(-d(x))] + E[softplus(d(g(z)))], g minimises E[softplus(-d(g(z)))]
        wasserstein:    d minimises E[d(g(z))] - E[d(x)] + gradient_penalty * E[(|grad d(y)| - 1)^2],
                        g minimises -E[d(g(z))], with y between a row of data and a generated one

    A GAN has no noise, so its rows lie on the manifold `g(R^S)` and `p(x)` is 0 almost everywhere else. On the
    manifold its density is exact: `girih.geometry.density(gan.generator, x)`, with a `tolerance` of 1e-5 for rows that
    a float32 generator rounds.

    Args:
        generator: g, `(N, S) -> (N, D)` or images, float32 or float64; kept by reference and trained in place. It may
            hold dropout: in training mode each row is a draw of it.
        discriminator: d, `(N, D)` to one number for each row, in the generator's type. By default the one of MAS,
            appendix E, without its dropout for the Wasserstein loss.
        latent_dim: S, for a generator that `girih.trace` does not read.
        loss: the game, "non_saturating" or "wasserstein".
        gradient_penalty: weight of the penalty; of the Wasserstein loss only.
        hidden: widths of the default discriminator's hidden layers, instead of 1024, 512, 256.
        seed: makes the default discriminator's weights reproducible; without it they follow `torch.manual_seed`.

    Attributes:
        generator: the module g.
        discriminator: the module d.
        latent_dim: the dimension S of z.
        output_dim: the dimension D of x.

    Raises:
        UnsupportedLayerError: the generator cannot be traced, and `latent_dim` is not given.
        ShapeError: the generator or the discriminator does not give the shape that it should.
        ParameterError: an option is out of its domain, or the networks have different types of numbers.

    Source:
        Goodfellow et al., Generative adversarial nets (2014); Gulrajani et al., Improved training of Wasserstein
        GANs (2017); MAS, appendix E.

    Example:
        >>> import girih
        >>> from girih.gan import GAN
        >>> gan = GAN(girih.mlp([1, 8, 2], seed=0), hidden=(16,), seed=0)
        >>> gan.sample(3, seed=0).shape, gan.discriminate(gan.sample(3, seed=0)).shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        latent_dim: int | None = None,
        loss: LossName = "non_saturating",
        gradient_penalty: float = 10.0,
        hidden: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_loss_name(loss)
        self.loss: LossName = loss
        self.gradient_penalty = real(gradient_penalty, "gradient_penalty", positive=False)
        self.latent_dim, self.output_dim, dtype, device = dimensions(generator, latent_dim)
        if discriminator is None:
            discriminator = fc_discriminator(
                self.output_dim,
                _HIDDEN if hidden is None else hidden,
                dropout=0.3 if loss == "non_saturating" else 0.0,
                dtype=dtype,
                seed=seed,
            ).to(device)
        elif hidden is not None:
            raise ParameterError("hidden sets the widths of the default discriminator; leave it out when you pass one")
        _check_discriminator(discriminator, self.output_dim, dtype)
        self.generator = generator
        self.discriminator = discriminator

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters, and of the rows that are generated."""
        return type_of(self.generator, self.discriminator)

    @property
    def device(self) -> torch.device:
        """The device that holds the parameters."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def generate(self, z: Rows) -> Tensor:
        """The generator at latents `(N, S)`, `(N, D)`.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: z is not a table of S finite columns.
        """
        result: Tensor = self.generator(self._own(z, "z", self.latent_dim, "the latent dimension S")).flatten(1)
        return result

    def discriminate(self, x: Rows) -> Tensor:
        """Logits of "x is data", or the values of the critic, at rows `(N, D)`: `(N,)`.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: x is not a table of D finite columns.
        """
        x = self._own(x, "x", self.output_dim, "the data dimension D")
        result: Tensor = self.discriminator(x).reshape(len(x))
        return result

    def _own(self, rows: Rows, name: str, columns: int, meaning: str) -> Tensor:
        """Rows in the type of the networks; those that are in it already, as in every step, are not checked again."""
        dtype = self.dtype
        if isinstance(rows, Tensor) and rows.dtype == dtype and rows.ndim == 2 and rows.shape[1] == columns:
            return rows
        return as_rows(rows, name, columns, meaning, device=self.device).to(dtype)

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Rows `g(z)` of `z ~ N(0, I)`, `(n, D)`, without gradients; dropout acts in training mode only.

        Args:
            n: number of rows.
            seed: makes the latents reproducible; torch's global generator otherwise.
        """
        random = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        shape = (whole(n, "n"), self.latent_dim)
        with torch.no_grad():
            return self.generate(torch.randn(shape, dtype=self.dtype, device=self.device, generator=random))

    def fit(
        self,
        X: Rows,
        *,
        betas: tuple[float, float] | None = None,
        discriminator_steps: int | None = None,
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
        """Train both networks in place, by Adam.

        A step is one batch for the discriminator; the generator moves after every `discriminator_steps`-th of them.
        An epoch is one pass over the data. Nothing in the losses says that a GAN has converged: record a number
        that does, and watch it with `monitor`, if it shall stop by itself.

        Args:
            X: `(N, D)`, complete; cast to the generator's type.
            betas: Adam's; (0.5, 0.999) by default, (0, 0.9) for the Wasserstein loss.
            discriminator_steps: 1 by default, 5 for the Wasserstein loss.
            max_epochs: as all that follow, a field of `girih.FitOptions`, which says what it means; by default 300.
            max_steps: steps of the discriminator at most, instead.
            batch_size: by default 100 rows.
            lr: of both networks, by default 1e-4.
            validation: by default none. What is recorded as `held_out` is the loss of the discriminator; it is watched
                if `monitor="held_out"` says so.
            patience: by default `None`.
            min_improvement: by default 1e-4.
            monitor: what is watched.
            keep_best: leave both networks at their best record.
            seed: of rows and draws.
            record: what is measured.
            record_every: by default 100.
            progress: show a bar.
            checkpoint: a file to go on from.
            checkpoint_seconds: time between writes of it.
            settings: what else the numbers depend on.
            log: a folder.
            log_format: "csv" or "tensorboard".
            accelerator: "cpu", "gpu" or "auto".

        Returns:
            The `FitResult`; its history has `loss`, the mean loss of the discriminator since the record before, and
            `generator_loss`, beside what `record` measures.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: X is not a complete table with D columns, or a loss became NaN
                or infinite: the message names the step.
            ParameterError: an option is out of its domain, or the checkpoint is of another run.

        Source:
            MAS, appendix E: Adam with lr 1e-4, 300 epochs.

        Example:
            >>> import girih, torch
            >>> from girih.gan import GAN
            >>> gan = GAN(girih.mlp([1, 8, 2], seed=0), hidden=(16,), seed=0)
            >>> result = gan.fit(torch.randn(64, 2), batch_size=32, max_epochs=4, record_every=4, progress=False)
            >>> result.steps, sorted(result.history)
            (8, ['generator_loss', 'loss', 'seconds', 'step'])
        """
        options = FitOptions.among(locals()).filled(_DEFAULTS)
        pair = _check_betas(_BETAS[self.loss] if betas is None else betas)
        every = whole(_STEPS[self.loss] if discriminator_steps is None else discriminator_steps, "discriminator_steps")

        def checked(given: Rows) -> Tensor:
            return as_rows(given, "X", self.output_dim, "the data dimension D", device=self.device).detach()

        rows, held_out = split(checked(X), options.validation, options.seed, checked)
        known = {"gan": self.loss, "lr": options.lr, "betas": list(pair), "discriminator_steps": every}
        if self.loss == "wasserstein":
            known["gradient_penalty"] = self.gradient_penalty
        options = options.told_apart_by(known)
        if held_out is not None:
            watched = watching(
                options, held_out, mean_loss(lambda gan, batch: _discriminator_loss(gan, batch), self.dtype)
            )
            options = replace(watched, monitor=options.monitor, keep_best=options.keep_best)

        def build(batches: Batches) -> AdversarialStepper:
            return AdversarialStepper(self, options.lr, pair, every)

        return run_steps(self, rows, build, options, self.dtype)

    def extra_repr(self) -> str:
        """Shown by `print(gan)`."""
        return f"S={self.latent_dim}, D={self.output_dim}, loss={self.loss}"


def _check_discriminator(discriminator: nn.Module, output_dim: int, dtype: torch.dtype) -> None:
    """Refuse a discriminator of another type of numbers, or that does not give a number for each row of D columns."""
    if not isinstance(discriminator, nn.Module):
        raise ParameterError(f"the discriminator must be a torch.nn.Module; got {type(discriminator).__name__}")
    own, device = number_type(discriminator, "discriminator")
    if own != dtype:
        names = [str(kind).removeprefix("torch.") for kind in (own, dtype)]
        raise ParameterError(
            f"the discriminator has {names[0]} parameters, the generator {names[1]}; call discriminator.to({dtype})"
        )
    takes = f"x of shape (N, {output_dim})"
    values = tried(discriminator, "discriminator", takes, "the data dimension D", output_dim, dtype, device)
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if shape not in ((2,), (2, 1)):
        raise ShapeError(
            f"the discriminator gives {shape} for 2 rows; it must give one number for each, a logit: the difference "
            "of the two outputs, if it has two classes"
        )


def _check_betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise ParameterError(f"betas must be two numbers in [0, 1); got {betas!r}")
    first, second = (real(beta, "each of betas", positive=False) for beta in betas)
    if max(first, second) >= 1.0:
        raise ParameterError(f"betas must be two numbers in [0, 1); got {betas!r}")
    return first, second


class AdversarialStepper:
    """Steps of two Adam optimizers in turn, see `girih.training.Stepper`.

    Args:
        gan: the two networks and their loss.
        lr: step size of both.
        betas: of both.
        discriminator_steps: steps of the discriminator for each of the generator's.

    Raises:
        ParameterError: one of the networks has nothing to train.
    """

    names = ("loss", "generator_loss")

    def __init__(self, gan: GAN, lr: float, betas: tuple[float, float], discriminator_steps: int) -> None:
        self._gan, self._every = gan, discriminator_steps
        self._discriminator = _trainable(gan.discriminator, "discriminator")
        self._generator = _trainable(gan.generator, "generator")
        # one fused kernel for all parameters of a network
        self._moves = Adam(self._discriminator, lr=lr, betas=betas, fused=True)
        self._replies = Adam(self._generator, lr=lr, betas=betas, fused=True)
        self.optimizers: Sequence[Optimizer] = (self._moves, self._replies)

    def take(self, batch: Tensor, step: int) -> tuple[float, float | None]:
        """The discriminator learns from a batch; then, at every `discriminator_steps`-th step, the generator moves.

        Raises:
            NonFiniteError: a loss is NaN or infinite; its network keeps the parameters that gave it.
        """
        gan = self._gan
        loss = _discriminator_loss(gan, batch)
        first = _move(loss, self._discriminator, self._moves, "discriminator's loss", step)
        if (step + 1) % self._every:
            return first, None
        values = gan.discriminate(gan.generate(_latents(gan, batch)))
        reply = losses.wasserstein_generator if gan.loss == "wasserstein" else losses.logistic_generator
        return first, _move(reply(values), self._generator, self._replies, "generator's loss", step)


def _discriminator_loss(gan: GAN, batch: Tensor) -> Tensor:
    """The loss of the discriminator on a batch and as many generated rows, `()`."""
    with torch.no_grad():
        fake = gan.generate(_latents(gan, batch))
    real_values, fake_values = gan.discriminate(batch), gan.discriminate(fake)
    if gan.loss == "non_saturating":
        return losses.logistic_discriminator(real_values, fake_values)
    loss = losses.wasserstein_critic(real_values, fake_values)
    return loss + gan.gradient_penalty * losses.gradient_penalty(gan.discriminate, batch, fake)


def _latents(gan: GAN, batch: Tensor) -> Tensor:
    return torch.randn(len(batch), gan.latent_dim, dtype=batch.dtype, device=batch.device)


def _move(loss: Tensor, parameters: list[nn.Parameter], optimizer: Optimizer, name: str, step: int) -> float:
    """Takes a step of one player; gradients of the other's parameters are not even computed."""
    value = loss.item()
    check_loss(value, name, step, optimizer)
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    optimizer.step()
    return value


def _trainable(network: nn.Module, name: str) -> list[nn.Parameter]:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ParameterError(f"the {name} has no trainable parameters; set requires_grad on some")
    return parameters
