"""One gradient step: which rows it sees, and what it does with them, by Adam or L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam, Optimizer

from girih.errors import NoiseError, NonFiniteError, ParameterError

Loss = Callable[[Any, Tensor], Tensor]
OptimizerName = Literal["adam", "lbfgs"]

# Iterations of L-BFGS in one gradient step: each step evaluates its starting point anew, so one would waste a
# third of the work, and between steps a run can be saved, stopped and recorded.
_ITERATIONS = 10


class Batches:
    """They give each gradient step its rows, in passes over the data in a new random order each, or all every time.

    They are a function of the seed and the step alone, so that a run can be resumed.

    Args:
        count: N, the number of rows.
        size: rows of a batch, `None` for all; the last batch of a pass holds what is left.
        seed: of the orders.

    Example:
        >>> from girih.training import Batches
        >>> batches = Batches(5, 2, seed=0)
        >>> batches.per_pass, sorted(torch.cat([batches.index(step) for step in range(3)]).tolist())
        (3, [0, 1, 2, 3, 4])
    """

    def __init__(self, count: int, size: int | None, seed: int) -> None:
        self.count = count
        self.size = count if size is None else min(size, count)
        self.seed = seed
        self.per_pass = math.ceil(count / self.size)
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def full(self) -> bool:
        """True where every step sees all rows."""
        return self.per_pass == 1

    def index(self, step: int) -> Tensor:
        """The rows of a gradient step."""
        number, position = divmod(step, self.per_pass)
        if number != self._pass:
            # torch reads 32 bits of a seed: hash both numbers into them, or neighbouring runs would share orders
            mixed = int(np.random.SeedSequence([self.seed % 2**64, number]).generate_state(1)[0])
            self._order = torch.randperm(self.count, generator=torch.Generator().manual_seed(mixed))
            self._pass = number
        return self._order[position * self.size : (position + 1) * self.size]


class Stepper(Protocol):
    """A stepper takes gradient steps; the loop around it saves the state of its optimizers and adds up its losses.

    Attributes:
        names: of the losses that `take` returns, first "loss".
        optimizers: whose state a checkpoint keeps.
    """

    @property
    def names(self) -> Sequence[str]:
        """The names of the losses that `take` returns; the first is "loss"."""

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The optimizers whose state a checkpoint keeps."""

    def take(self, batch: Tensor, step: int) -> Sequence[float | None]:
        """One step; returns the losses before it, `None` for one that this step has not computed.

        Nothing but the parameters, the optimizers, torch's random state and the arguments may decide what it does,
        so that a run can be resumed.

        Raises:
            NonFiniteError: a loss is NaN or infinite; its parameters stay as they are.
        """


class LossStepper:
    """It takes the steps of one optimizer on one loss.

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
        """Take one step.

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


def make_optimizer(name: str, parameters: list[nn.Parameter], lr: float, full_batch: bool) -> Optimizer:
    """Make an optimizer by its name, for full batches or for others.

    Raises:
        ParameterError: an unknown name, or L-BFGS with mini-batches, whose noise its line search cannot tell from
            curvature.
    """
    if name == "adam":
        # one fused kernel for all parameters: the same update, at half the cost for small networks
        return Adam(parameters, lr=lr, fused=True)
    if name != "lbfgs":
        raise ParameterError(f"optimizer must be 'adam' or 'lbfgs'; got {name!r}")
    if not full_batch:
        raise ParameterError("optimizer='lbfgs' needs all rows in each step; leave batch_size out, or use 'adam'")
    return LBFGS(
        parameters,
        lr=lr,
        max_iter=_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )


def take_step(optimizer: Optimizer, evaluate: Callable[[], Tensor]) -> float:
    """One step; returns the loss before it. Errors of the loss come through, but not those of a line search.

    Args:
        optimizer: of `make_optimizer`.
        evaluate: the loss at the current parameters, finite, or an error.
    """
    optimizer.zero_grad()
    loss = evaluate()
    loss.backward()
    if not isinstance(optimizer, LBFGS):
        optimizer.step()
        return loss.item()
    first = True

    def closure() -> Tensor:
        nonlocal first
        if first:  # what has just been computed
            first = False
            return loss.detach()
        optimizer.zero_grad()
        try:
            value = evaluate()
        except (NonFiniteError, NoiseError):
            return _refuse(optimizer, loss)
        value.backward()
        return value.detach()

    optimizer.step(closure)
    return loss.item()


def _refuse(optimizer: Optimizer, like: Tensor) -> Tensor:
    """A trial step that went out of range: infinite, and with a gradient that makes the line search bisect."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, torch.nan)
    return torch.full_like(like.detach(), torch.inf)
