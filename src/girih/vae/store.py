"""A VAE as tensors and plain values, and back: what `girih.save` writes and `girih.load` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from girih.errors import ModelFileError, ParameterError
from girih.networks import trace
from girih.vae.cat import CatVAE
from girih.vae.cgbpef import CGBPEFVAE
from girih.vae.gauss import GaussVAE
from girih.vae.mixture import MixtureVAE
from girih.vae.model import VAE

# What each kind is built with, besides its networks and its likelihood; each name is an attribute too.
_OPTIONS: dict[type[VAE], tuple[str, ...]] = {
    GaussVAE: (),
    MixtureVAE: ("components",),
    CatVAE: ("categories", "temperature"),
    CGBPEFVAE: ("order", "levels", "basis", "temperature"),
}
_KINDS: dict[str, type[VAE]] = {kind.__name__: kind for kind in _OPTIONS}
_TYPES = {"float32": torch.float32, "float64": torch.float64}
_LARGEST_GRID = 1_000_000  # levels of a CG-BPEF; 101 are usual


def vae_parts(vae: VAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a VAE but those of its networks, and what it is built with as plain values.

    Raises:
        ModelFileError: it is of a class that girih does not know.
    """
    if type(vae) not in _OPTIONS:
        raise ModelFileError(
            f"cannot save a {type(vae).__name__}: of VAEs, {', '.join(_KINDS)} are known; keep vae.state_dict() and "
            "the code that builds it"
        )
    tensors, learned = {}, {}
    for name, value in {"log_noise": vae.log_noise, "prior": getattr(vae, "prior_coefficients", None)}.items():
        if value is not None:
            tensors[name], learned[name] = value, isinstance(value, nn.Parameter)
    config = {
        "vae": type(vae).__name__,
        "type": str(vae.dtype).removeprefix("torch."),
        "likelihood": vae.likelihood,
        "options": {name: getattr(vae, name) for name in _OPTIONS[type(vae)]},
        "learned": learned,
    }
    return tensors, config


def vae_from(tensors: Mapping[str, Tensor], config: Mapping[str, Any], decoder: nn.Module, encoder: nn.Module) -> VAE:
    """The VAE that `vae_parts` took apart, of its networks.

    Raises:
        KeyError, TypeError, ValueError: the parts do not fit together.
    """
    kind: Any = _KINDS[config["vae"]]
    number, learned = _TYPES[config["type"]], config["learned"]
    width = config["options"].get("categories", 1)
    _check_sizes(config["options"], sum(tensor.numel() for tensor in tensors.values()))
    options: dict[str, Any] = {**config["options"], "latent_dim": trace(decoder).latent_dim // width}
    if "prior" in tensors:
        options["learn_prior"] = learned["prior"]
    if "log_noise" in tensors:
        options["learn_noise"] = learned["log_noise"]
    vae: VAE = kind(decoder.to(number), encoder.to(number), likelihood=config["likelihood"], **options)
    with torch.no_grad():
        if vae.log_noise is not None:
            vae.log_noise.copy_(tensors["log_noise"])
        if isinstance(vae, CGBPEFVAE):
            vae.prior_coefficients.copy_(tensors["prior"])
    return vae


def _check_sizes(options: Mapping[str, Any], stored: int) -> None:
    """Refuse a family with larger tables than any that is trained, before they are made.

    Raises:
        ParameterError: it has.
    """
    for name in ("components", "categories", "order"):
        if options.get(name, 0) > stored:  # the encoder has a number for each at least
            raise ParameterError(f"{name}={options[name]} is more than the {stored} numbers that are stored")
    if options.get("levels", 0) > _LARGEST_GRID:
        raise ParameterError(f"levels={options['levels']} is more than {_LARGEST_GRID:,}")
