"""Noticing that a module is no longer what it was: built otherwise, or with other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from girih._arrays import bare, copied
from girih.errors import ShapeError
from girih.networks.trace import Trace
from girih.networks.tracing import trace

_PLAIN = (bool, int, float, complex, str, tuple)


class Followed:
    """The trace of a module, made anew where the module is no longer built as it was.

    What is compared is the modules in it, their attributes (but for tensors, whose values a trace reads each time it
    is asked), their hooks, and the shapes and types of their parameters. What is not noticed: a change inside a list, a
    dict or an object that a module holds, or in the code of its `forward`.

    Args:
        net: any module that `girih.trace` supports.
    """

    def __init__(self, net: nn.Module | Trace) -> None:
        self.net = net
        self._trace: Trace | None = None
        self._parts: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the module alone, and trace it when they are asked."""
        return {"net": self.net, "_trace": None, "_parts": []}

    @property
    def trace(self) -> Trace:
        """The trace of the module as it is built now.

        Raises:
            ShapeError: it has another latent or data dimension than at first.
            UnsupportedLayerError: as `girih.trace`.
        """
        if isinstance(self.net, Trace):
            return self.net
        if self._trace is None or not _alike(_parts(self.net), self._parts):
            old, new = self._trace, trace(self.net)
            if old is not None and (old.latent_dim, old.output_dim) != (new.latent_dim, new.output_dim):
                raise ShapeError(
                    f"the network was changed from S = {old.latent_dim}, D = {old.output_dim} to S = {new.latent_dim}, "
                    f"D = {new.output_dim}, which this model was not made for; make a new one of it"
                )
            self._trace, self._parts = new, _parts(self.net)
        return self._trace


def _parts(net: nn.Module) -> list[Any]:
    """What a module is built of, flat; modules and functions are compared as objects."""
    found: list[Any] = []
    for module in net.modules():
        found += (module, type(module), *module._forward_pre_hooks.values(), *module._forward_hooks.values())
        found += [value for value in vars(module).values() if not isinstance(value, Tensor)]
        for group in (module._parameters, module._buffers):
            for name, tensor in group.items():
                found += (name, None) if tensor is None else (name, tensor.shape, tensor.dtype, tensor.device.type)
    return found


def _alike(new: list[Any], old: list[Any]) -> bool:
    return len(new) == len(old) and all(
        a is b or (isinstance(a, _PLAIN) and type(a) is type(b) and a == b) for a, b in zip(new, old, strict=True)
    )


class Snapshot:
    """Copies of tensors, to find out later whether their values have changed, in whatever way.

    Version counters do not count changes through `.data` or an array that shares the memory, so all values are
    compared; that costs far less than one evaluation of a model that they are the parameters of.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [copied(tensor) for tensor in tensors]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors have the values of the copies; NaN has none."""
        return len(tensors) == len(self._copies) and all(map(_same, tensors, self._copies))


def _same(tensor: Tensor, copy: Tensor) -> bool:
    tensor = bare(tensor)
    return tensor.dtype == copy.dtype and tensor.device == copy.device and torch.equal(tensor, copy)
