"""The small networks that give a coupling its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from zuko.nn import MLP

from girih._options import whole
from girih.errors import ParameterError


class Constant(nn.Module):
    """The same numbers for every input: what is left of a network that has nothing to look at."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-0.5, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """The numbers, `(..., outputs)`, for x `(..., anything)`."""
        return self.bias.expand(*x.shape[:-1], -1)


def network(inputs: int, start: Sequence[float], hidden: Sequence[int], spread: float = 1.0) -> nn.Module:
    """A ReLU network with random weights whose outputs lie around `start`; constants where there are no inputs.

    Args:
        inputs: how many numbers it sees.
        start: what its outputs begin near.
        hidden: widths of its hidden layers.
        spread: a factor on the weights of the last layer.
    """
    made: Any = MLP(inputs, len(start), hidden) if inputs else Constant(len(start))
    with torch.no_grad():
        for parameter in (made[-1] if inputs else made).parameters():
            parameter.mul_(spread)
        (made[-1] if inputs else made).bias.add_(torch.tensor(start))
    return made


def check_widths(hidden: int | Sequence[int]) -> tuple[int, ...]:
    """Widths of hidden layers; one number is one layer.

    Raises:
        ParameterError: a width is not a positive whole number.
    """
    if isinstance(hidden, int):
        hidden = (hidden,)
    try:
        widths = tuple(hidden)
    except TypeError:
        raise ParameterError(f"hidden_features must be widths of layers, e.g. (64, 64); got {hidden!r}") from None
    return tuple(whole(width, "each of hidden_features") for width in widths)
