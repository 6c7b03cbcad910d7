"""A second device for machines without a GPU: tensors that say that they are elsewhere, with their numbers on the CPU.

Torch's device type "lazy" has no backend in ordinary builds, and stands for a GPU here. Operations between it and the
CPU raise as they do with a GPU, NumPy cannot read it, and `elsewhere` tells what went from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "lazy"


class _There(torch.Tensor):
    """A tensor on the second device; `numbers` are on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> _There:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def tolist(self) -> Any:
        """The numbers, which go to the host."""
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("the second device is there inside `with elsewhere()` alone")


class _Made(TorchFunctionMode):
    """Tensors that are made of numbers: torch fills those itself, out of sight of the mode below."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        to = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and to is not None and torch.device(to).type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"}).to(to)
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[list[int]]:
    """Inside it, `tensor.to("lazy")` and what is computed from that are on the second device.

    It gives the sizes of what is copied between the two devices, both ways.
    """
    mode = _Moved()
    with _Made(), mode:
        yield mode.copies


class _Moved(TorchDispatchMode):
    """The operations of tensors there."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[int] = []

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given: list[Tensor] = []  # those in the arguments

        def numbers(value: Any) -> Any:
            given.append(value)
            return value.numbers if isinstance(value, _There) else value

        args, kwargs = _each(args, numbers), {name: _each(value, numbers) for name, value in kwargs.items()}
        there = any(isinstance(value, _There) for value in given)
        to = kwargs.get("device")
        if to is not None:
            to_there = torch.device(to).type == NAME
            if given and to_there != there:
                self.copies.append(given[0].numel())
            there = to_there
            kwargs["device"] = "cpu"
        elif there and any(not isinstance(value, _There) and value.ndim for value in given):
            raise RuntimeError(f"{func}: tensors on two devices")
        found = func(*args, **kwargs)
        if not there:
            return found
        # what is changed in place stays the same tensor
        known = {id(value.numbers): value for value in given if isinstance(value, _There)}
        return _each(found, lambda value: known[id(value)] if id(value) in known else _There(value))


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    """A function of the tensors in a value, which may be in lists."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(_each(part, function) for part in value)
    return value
