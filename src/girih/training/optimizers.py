"""Adam and L-BFGS, and what one gradient step of each is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam, Optimizer

from girih.errors import NoiseError, NonFiniteError, ParameterError

OptimizerName = Literal["adam", "lbfgs"]

# Iterations of L-BFGS in one gradient step: each step evaluates its starting point anew, so one would waste a
# third of the work, and between steps a run can be saved, stopped and recorded.
_ITERATIONS = 10


def make_optimizer(name: str, parameters: list[nn.Parameter], lr: float, full_batch: bool) -> Optimizer:
    """An optimizer by name.

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
