"""What one gradient step is: of a single loss here, of two opponents in `girih.gan`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from girih.errors import NonFiniteError, ParameterError
from girih.training.optimizers import take_step

Loss = Callable[[Any, Tensor], Tensor]


class Stepper(Protocol):
    """Takes gradient steps; the loop around it saves the state of its optimizers and adds up its losses.

    Attributes:
        names: of the losses that `take` returns, first "loss".
        optimizers: whose state a checkpoint keeps.
    """

    @property
    def names(self) -> Sequence[str]:
        """Of the losses that `take` returns, first "loss"."""

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """Whose state a checkpoint keeps."""

    def take(self, batch: Tensor, step: int) -> Sequence[float | None]:
        """One step; returns the losses before it, `None` for one that this step has not computed.

        Nothing but the parameters, the optimizers, torch's random state and the arguments may decide what it does,
        so that a run can be resumed.

        Raises:
            NonFiniteError: a loss is NaN or infinite; its parameters stay as they are.
        """


class LossStepper:
    """One optimizer on one loss.

    Args:
        model: what the loss is of.
        loss: from the model and rows to a scalar, or to a number for each row.
        optimizer: of `make_optimizer`.
        before_step: called with the number of each step before it is taken.
    """

    names = ("loss",)

    def __init__(
        self, model: nn.Module, loss: Loss, optimizer: Optimizer, before_step: Callable[[int], None] | None = None
    ) -> None:
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._before_step = before_step
        self.optimizers = (optimizer,)

    def take(self, batch: Tensor, step: int) -> tuple[float]:
        """One step.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the model keeps the parameters that gave it.
            ParameterError: the loss has no gradient.
        """
        if self._before_step is not None:
            self._before_step(step)
        return (take_step(self._optimizer, partial(self._evaluate, batch, step)),)

    def _evaluate(self, batch: Tensor, step: int) -> Tensor:
        """The loss of a batch, a finite scalar."""
        loss = self._loss(self._model, batch)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise ParameterError("loss must return a tensor that depends on the parameters of the model")
        loss = loss.mean() if loss.ndim else loss
        check_loss(loss.item(), "loss", step, self._optimizer)
        return loss


def check_loss(value: float, name: str, step: int, optimizer: Optimizer) -> None:
    """Refuse a loss that is not finite.

    Raises:
        NonFiniteError: it is not; the message names the step.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the {name} became {value} at step {step + 1}; train with a smaller lr "
            f"(now {optimizer.param_groups[0]['lr']:g}), or scale the data to unit variance first"
        )


def check_parameters(model: nn.Module, steps: int, cause: Exception | None = None) -> None:
    """Refuse a model with a parameter that is not finite.

    Raises:
        NonFiniteError: it has one; the message names the first.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NonFiniteError(
                f"parameter '{name}' is not finite after step {steps}; train with a smaller lr"
            ) from cause
