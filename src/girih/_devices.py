"""Where tensors are: what is given on two devices is refused, and chunks are as large as a device has room for."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.errors import DeviceError

_TEMPORARIES = 64  # arrays of a chunk's size, of 8 bytes an entry, that a step holds at once, or fewer


class Constant:
    """A constant is a table of numbers, such as the nodes of a rule, that goes to each device once."""

    def __init__(self, value: Tensor) -> None:
        self._copies = {value.device: value}

    def on(self, device: torch.device) -> Tensor:
        """The table on a device."""
        if device not in self._copies:
            self._copies[device] = next(iter(self._copies.values())).to(device)
        return self._copies[device]


def check_device(value: Tensor, name: str, device: torch.device | None) -> None:
    """Refuse a tensor on another device than `device`; a single number may be anywhere, as torch has it.

    Raises:
        DeviceError: with the call that moves it.
    """
    if device is None or value.device == device or not value.ndim:
        return
    raise DeviceError(
        f"{name} is on {value.device} and the parameters are on {device}; girih moves nothing between devices by "
        f"itself: pass {name}.to({str(device)!r}), or move the model"
    )


def room(entries: int, device: torch.device) -> int:
    """The entries of the largest temporary of a chunk: `entries`, which fit a cache, or what a GPU has room for.

    There each call costs as much as the arithmetic of a million entries, so chunks are as large as free memory lets.
    """
    if device.type != "cuda":
        return entries
    free, _ = torch.cuda.mem_get_info(device)
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(entries, (free + spare) // (8 * _TEMPORARIES))
