"""A VAE as tensors and plain values, and back: what `girih.save` writes and `girih.load` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from girih.errors import ModelFileError, ParameterError
from girih.networks import trace
from girih.vae.families import family_class
from girih.vae.model import VAE
from girih.vae.variants import CGBPEFVAE, CatVAE, GaussVAE, MixtureVAE

# The classes that girih builds, by the family that each of them is for.
_VARIANTS: dict[str, type[VAE]] = {"gaussian": GaussVAE, "mixture": MixtureVAE, "category": CatVAE, "bpef": CGBPEFVAE}
_CLASSES: dict[str, type[VAE]] = {kind.__name__: kind for kind in (*_VARIANTS.values(), VAE)}
_FAMILY_OF = {kind.__name__: name for name, kind in _VARIANTS.items()}
_TYPES = {"float32": torch.float32, "float64": torch.float64}


def vae_parts(vae: VAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a VAE but those of its networks, and what it is built with as plain values.

    Raises:
        ModelFileError: it is of a class or of a family that girih does not know.
    """
    if type(vae) not in _CLASSES.values():
        raise ModelFileError(
            f"cannot save a {type(vae).__name__}: of VAEs, {', '.join(_FAMILY_OF)} are known, and VAE itself; keep "
            "vae.state_dict() and the code that builds it"
        )
    family = vae.family
    try:
        known = family_class(getattr(family, "name", None)) is type(family)
    except ParameterError:
        known = False
    if not known:
        raise ModelFileError(
            f"cannot save a VAE of the family {type(family).__name__}, which is not registered: call "
            f"girih.vae.register_family({type(family).__name__}) here, and before girih.load"
        )
    tensors = dict(family.learned())
    if vae.log_noise is not None:
        tensors["log_noise"] = vae.log_noise
    config = {
        "vae": type(vae).__name__,
        "family": family.name,
        "type": str(vae.dtype).removeprefix("torch."),
        "likelihood": vae.likelihood,
        "latent_dim": vae.latent_dim,
        "options": {name: getattr(family, name) for name in family.options},
        "learned": {name: isinstance(value, nn.Parameter) for name, value in tensors.items()},
    }
    return tensors, config


def vae_from(tensors: Mapping[str, Tensor], config: Mapping[str, Any], decoder: nn.Module, encoder: nn.Module) -> VAE:
    """The VAE that `vae_parts` took apart, of its networks.

    Raises:
        KeyError, TypeError, ValueError: the parts do not fit together.
    """
    kind: Any = _CLASSES[config["vae"]]
    number, learned = _TYPES[config["type"]], config["learned"]
    options = dict(config["options"])
    if "prior" in learned:  # files of girih 0.1.0 have it here alone
        options["learn_prior"] = learned["prior"]
    stored = sum(tensor.numel() for tensor in tensors.values())
    family = family_class(config.get("family", _FAMILY_OF.get(config["vae"]))).restored(options, stored)
    latent_dim = config.get("latent_dim")
    if latent_dim is None:  # files of girih 0.1.0: their decoders are chains
        latent_dim = trace(decoder).latent_dim // family.width
    shared: dict[str, Any] = {
        "encoder": encoder.to(number),
        "latent_dim": latent_dim,
        "likelihood": config["likelihood"],
        "learn_noise": learned.get("log_noise", True),
    }
    net = decoder.to(number)
    vae: VAE = VAE(net, family, **shared) if kind is VAE else kind(net, **shared, **options)
    with torch.no_grad():
        if vae.log_noise is not None:
            vae.log_noise.copy_(tensors["log_noise"])
        for name, tensor in vae.family.learned().items():
            tensor.copy_(tensors[name])
    return vae
