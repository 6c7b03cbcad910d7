"""Tensors of a module that are not simply stored there: what hooks and parametrizations compute.

The hooks of `nn.utils.weight_norm`, `spectral_norm` and `prune` leave in `module.weight` what they computed before the
last forward pass, which is old once their parameters change. So it is computed here, each time it is read, and
gradients reach the parameters that it is computed from. Any other hook that changes tensors is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from girih.errors import ParameterError, UnsupportedLayerError

_KNOWN = (WeightNorm, SpectralNorm, BasePruningMethod)
_REMEDY = (
    "make the weights ordinary parameters (remove the hook), or compute them by torch.nn.utils.parametrize, which is "
    "followed"
)


def read(module: nn.Module, name: str) -> Any:
    """`module.name`, computed anew where a hook or a parametrization computes it.

    Raises:
        UnsupportedLayerError: spectral normalisation in training mode, which changes at each read.
    """
    if is_parametrized(module, name):
        for part in module.parametrizations[name]:  # type: ignore[index]
            if part.training and isinstance(part, parametrizations._SpectralNorm):
                _refuse_training(module, name)
        return getattr(module, name)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _KNOWN) and _target(hook) == name:
            return _computed(hook, module, name)
    return getattr(module, name)


def _target(hook: Any) -> str:
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name


def _computed(hook: Any, module: nn.Module, name: str) -> Any:
    others = [_target(other) for other in module._forward_pre_hooks.values() if isinstance(other, _KNOWN)]
    if any(other.startswith(f"{name}_") for other in others):
        raise UnsupportedLayerError(
            f"two hooks compute the {name} of a {type(module).__name__} one after the other; make one of them "
            "permanent (torch.nn.utils.prune.remove, remove_weight_norm, remove_spectral_norm)"
        )
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(module)
    if isinstance(hook, BasePruningMethod):
        return hook.apply_mask(module)
    if module.training:
        _refuse_training(module, name)
    return hook.compute_weight(module, do_power_iteration=False)


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
    """Whether `module.name` is neither a parameter or buffer nor computed by the class or by a hook that is known."""
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
