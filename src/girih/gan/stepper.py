"""One step of the game: a batch for the discriminator, and every so often a move of the generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from girih.errors import ParameterError
from girih.gan import losses
from girih.training.stepper import check_loss

if TYPE_CHECKING:
    from girih.gan.gan import GAN


class AdversarialStepper:
    """Steps of two Adam optimizers in turn, see `girih.training.stepper.Stepper`.

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
        gan, wasserstein = self._gan, self._gan.loss == "wasserstein"
        with torch.no_grad():
            fake = gan.generate(self._latents(batch))
        real_values, fake_values = gan.discriminate(batch), gan.discriminate(fake)
        if wasserstein:
            loss = losses.wasserstein_critic(real_values, fake_values)
            loss = loss + gan.gradient_penalty * losses.gradient_penalty(gan.discriminate, batch, fake)
        else:
            loss = losses.logistic_discriminator(real_values, fake_values)
        first = _move(loss, self._discriminator, self._moves, "discriminator's loss", step)
        if (step + 1) % self._every:
            return first, None
        values = gan.discriminate(gan.generate(self._latents(batch)))
        reply = losses.wasserstein_generator(values) if wasserstein else losses.logistic_generator(values)
        return first, _move(reply, self._generator, self._replies, "generator's loss", step)

    def _latents(self, batch: Tensor) -> Tensor:
        return torch.randn(len(batch), self._gan.latent_dim, dtype=batch.dtype, device=batch.device)


def _move(loss: Tensor, parameters: list[nn.Parameter], optimizer: Optimizer, name: str, step: int) -> float:
    """One step of one player; gradients of the other's parameters are not even computed."""
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
