"""Where the numbers of a step come from: tensors read live from a module, or constants.

A step reads its parameters each time it is asked, so a trace never goes stale when the module is trained,
and gradients reach the module's own parameters, those of hooks and parametrizations included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from girih._arrays import copied
from girih.networks.computed import read


@dataclass(frozen=True)
class Live:
    """The attribute `name` of a module, as it is when `value` is read."""

    module: nn.Module
    name: str

    @property
    def raw(self) -> Tensor:
        """The tensor in its own type, computed anew where a hook or a parametrization computes it."""
        return read(self.module, self.name)

    @property
    def value(self) -> Tensor:
        """The tensor in float64."""
        return self.raw.to(torch.float64)


@dataclass(frozen=True)
class Fixed:
    """A tensor that belongs to no module."""

    tensor: Tensor

    @property
    def raw(self) -> Tensor:
        """The tensor in its own type."""
        return self.tensor

    @property
    def value(self) -> Tensor:
        """The tensor in float64."""
        return self.tensor.to(torch.float64)


@dataclass(frozen=True)
class Derived:
    """A tensor computed from other sources, each time it is read: `weight.t()`, `softplus(scale)`."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def raw(self) -> Tensor:
        """The tensor in its own type."""
        keywords = {name: _read(value) for name, value in self.kwargs.items()}
        return self.function(*_read(self.args), **keywords)

    @property
    def value(self) -> Tensor:
        """The tensor in float64."""
        return self.raw.to(torch.float64)


Source = Live | Fixed | Derived


def leaves(value: Any) -> list[Source]:
    """The sources in a value: itself, or those in a tuple or list."""
    if isinstance(value, tuple | list):
        return [source for part in value for source in leaves(part)]
    return [value] if isinstance(value, Source) else []


def lives(value: Any) -> Iterator[Live]:
    """The tensors of modules that a source is computed from."""
    if isinstance(value, Live):
        yield value
    elif isinstance(value, Derived):
        yield from lives([*value.args, *value.kwargs.values()])
    elif isinstance(value, tuple | list):
        for part in value:
            yield from lives(part)


def frozen(value: Any) -> Any:
    """The same value with the numbers of now in the place of its sources."""
    if isinstance(value, Source):
        return Fixed(copied(value.value))
    return type(value)(frozen(part) for part in value) if isinstance(value, tuple | list) else value


def _read(value: Any) -> Any:
    if isinstance(value, Source):
        return value.raw
    if isinstance(value, tuple | list):
        return type(value)(_read(part) for part in value)
    return value


class Method:
    """A tensor method as a function that can be pickled: `Method("view")(h, 2, 3)` is `h.view(2, 3)`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the method of `value`."""
        return getattr(value, self.name)(*args, **kwargs)
