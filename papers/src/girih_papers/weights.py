"""The weights of networks among the results of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from girih_papers.arrays import Array

_START = "weights."

Network = TypeVar("Network", bound=nn.Module)


def weights_of(net: nn.Module) -> dict[str, Array]:
    """The parameters of a network as arrays by name, in their own type."""
    return {f"{_START}{name}": value.detach().cpu().numpy().copy() for name, value in net.state_dict().items()}


def with_weights(net: Network, result: Mapping[str, Any]) -> Network:
    """The network with parameters that `weights_of` gave; in eval mode."""
    state = {
        name.removeprefix(_START): torch.as_tensor(value) for name, value in result.items() if name.startswith(_START)
    }
    net.load_state_dict(state)
    net.eval()
    return net
