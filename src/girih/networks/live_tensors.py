"""Where the numbers of a step come from: tensors read live from a module, or constants.

A step reads its parameters each time it is asked, so a trace never goes stale when the module is trained, and gradients
reach the module's own parameters. The hooks of `nn.utils.weight_norm`, `spectral_norm` and `prune` leave in
`module.weight` what they computed before the last forward pass, which is old once their parameters change. So it is
computed here, each time it is read, as parametrizations do. Any other hook that changes tensors is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from girih._arrays import bare, copied
from girih.errors import ParameterError, UnsupportedLayerError

T = TypeVar("T")
Known: TypeAlias = WeightNorm | SpectralNorm | BasePruningMethod  # hooks whose result is computed here
_KNOWN = (WeightNorm, SpectralNorm, BasePruningMethod)
_REMEDY = (
    "make the weights ordinary parameters (remove the hook), or compute them by torch.nn.utils.parametrize, which is "
    "followed"
)


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
        result: Tensor = self.function(*map(_read, self.args), **keywords)
        return result

    @property
    def value(self) -> Tensor:
        """The tensor in float64."""
        return self.raw.to(torch.float64)


Source = Live | Fixed | Derived


def leaves(value: object) -> list[Source]:
    """The sources in a value: itself, or those in a tuple or list."""
    if isinstance(value, tuple | list):
        return [source for part in value for source in leaves(part)]
    return [value] if isinstance(value, Source) else []


def lives(value: object) -> Iterator[Live]:
    """The tensors of modules that a source is computed from."""
    if isinstance(value, Live):
        yield value
    elif isinstance(value, Derived):
        yield from lives([*value.args, *value.kwargs.values()])
    elif isinstance(value, tuple | list):
        for part in value:
            yield from lives(part)


def frozen(value: T) -> T:
    """The same value with the numbers of now in the place of its sources."""
    if isinstance(value, Source):
        return cast("T", Fixed(copied(value.value)))
    return type(value)(frozen(part) for part in value) if isinstance(value, tuple | list) else value


def _read(value: object) -> object:
    if isinstance(value, Source):
        return value.raw
    if isinstance(value, tuple | list):
        return type(value)(_read(part) for part in value)
    return value


class Method:
    """A tensor method as a function that can be pickled: `Method("view")(h, 2, 3)` is `h.view(2, 3)`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: object, *args: object, **kwargs: object) -> object:
        """Call the method of `value`."""
        return getattr(value, self.name)(*args, **kwargs)


class Snapshot:
    """Copies of tensors, to find out later whether their values have changed, in whatever way.

    Version counters do not count changes through `.data` or an array that shares the memory, so all values are
    compared; that costs far less than one evaluation of a model that they are the parameters of.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [copied(tensor) for tensor in tensors]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Tells whether the tensors have the values of the copies; NaN has none."""
        return len(tensors) == len(self._copies) and all(map(_same, tensors, self._copies))


def _same(tensor: Tensor, copy: Tensor) -> bool:
    tensor = bare(tensor)
    return tensor.dtype == copy.dtype and tensor.device == copy.device and torch.equal(tensor, copy)


def read(module: nn.Module, name: str) -> Tensor:
    """`module.name`, computed anew where a hook or a parametrization computes it.

    Raises:
        UnsupportedLayerError: spectral normalisation in training mode, which changes at each read.
    """
    if is_parametrized(module, name):
        for part in module.parametrizations[name]:  # type: ignore[index]
            if part.training and isinstance(part, parametrizations._SpectralNorm):
                _refuse_training(module, name)
    else:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _KNOWN) and _target(hook) == name:
                return _computed(hook, module, name)
    found: Tensor = getattr(module, name)
    return found


def _target(hook: Known) -> str:
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name


def _computed(hook: Known, module: nn.Module, name: str) -> Tensor:
    others = [_target(other) for other in module._forward_pre_hooks.values() if isinstance(other, _KNOWN)]
    if any(other.startswith(f"{name}_") for other in others):
        raise UnsupportedLayerError(
            f"two hooks compute the {name} of a {type(module).__name__} one after the other; make one of them "
            "permanent (torch.nn.utils.prune.remove, remove_weight_norm, remove_spectral_norm)"
        )
    found: Tensor
    if isinstance(hook, WeightNorm):
        found = hook.compute_weight(module)
    elif isinstance(hook, BasePruningMethod):
        found = hook.apply_mask(module)
    elif module.training:
        _refuse_training(module, name)
    else:
        found = hook.compute_weight(module, do_power_iteration=False)
    return found


def _refuse_training(module: nn.Module, name: str) -> NoReturn:
    raise UnsupportedLayerError(
        f"the {name} of a {type(module).__name__} under spectral normalisation changes each time it is read in "
        "training mode; call net.eval() first"
    )


def check_tensors(root: nn.Module) -> None:
    """Refuse parameters and buffers without values, or with complex ones.

    Raises:
        ParameterError: they are on the meta device.
        UnsupportedLayerError: they are complex, or of lazy layers that have not seen data.
    """
    for path, tensor in (*root.named_parameters(), *root.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UnsupportedLayerError(
                f"{type(root).__name__} has lazy layers that have no weights yet; call it once on a batch of latents"
            )
        if tensor.is_meta:
            raise ParameterError(
                f"'{path}' is on the meta device and has no values; call net.to_empty(device='cpu'), then load weights"
            )
        if tensor.is_complex():
            raise UnsupportedLayerError(
                f"'{path}' is complex ({tensor.dtype}), and generators are real; use real and imaginary parts as "
                "features of their own"
            )


def _other_hooks(root: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The hooks of a module and its parts that may do anything."""
    for path, module in root.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not isinstance(hook, _KNOWN):
                yield path or type(root).__name__, hook


def _is_plain(module: nn.Module, name: str) -> bool:
    """Tells whether `module.name` is no parameter or buffer, and not computed by the class or by a known hook."""
    known = any(isinstance(h, _KNOWN) and _target(h) == name for h in module._forward_pre_hooks.values())
    return not (known or name in module._parameters or name in module._buffers or hasattr(type(module), name))


@torch.no_grad()
def check_hooks(net: nn.Module, tensors: Sequence[tuple[nn.Module, str, str]], z: Tensor) -> None:
    """Refuse hooks that change the tensors that a generator is made of; hooks that only look on are fine.

    Found out by forward passes, one of them with other numbers: what a hook wrote into them, or put in their place.

    Args:
        net: the generator.
        tensors: module, name and path of each tensor that is read.
        z: latents for the forward pass.

    Raises:
        UnsupportedLayerError: names the hook, the tensor and the remedy.
    """
    hooks = list(_other_hooks(net))
    if not hooks:
        return

    def refuse(name: str) -> NoReturn:
        where, hook = hooks[0]
        what = getattr(hook, "__qualname__", type(hook).__name__)
        raise UnsupportedLayerError(
            f"the hook {what} of '{where}' computes {name}, which girih would not see change; {_REMEDY}"
        )

    own = (*net.named_parameters(), *net.named_buffers())
    others = {name: 1.5 * tensor + 10.0 for name, tensor in own if tensor.is_floating_point()}
    copies = {name: tensor.clone() for name, tensor in others.items()}
    plain = [(module, name, path) for module, name, path in tensors if _is_plain(module, name)]
    kept = [getattr(module, name) for module, name, _ in plain]
    try:
        for (module, name, path), tensor in zip(plain, kept, strict=True):
            others[f"the {name} of layer '{path}'"] = put = 1.5 * tensor + 10.0
            copies[f"the {name} of layer '{path}'"] = put.clone()
            setattr(module, name, put)
        functional_call(net, {name: others[name] for name, _ in own if name in others}, (z,))
        for module, name, path in plain:
            if getattr(module, name) is not others[f"the {name} of layer '{path}'"]:
                refuse(f"the {name} of layer '{path}'")
    finally:
        for (module, name, _), tensor in zip(plain, kept, strict=True):
            setattr(module, name, tensor)
    for name, tensor in others.items():
        if not torch.equal(tensor, copies[name]):
            refuse(name)
    before = [getattr(module, name) for module, name, _ in tensors if name in module._parameters]
    net(z)
    after = [
        (getattr(module, name), f"the {name} of layer '{p}'")
        for module, name, p in tensors
        if name in module._parameters
    ]
    for old, (new, what) in zip(before, after, strict=True):
        if new is not old:
            refuse(what)
