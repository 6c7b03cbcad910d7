"""A GAN as plain values beside its networks, and back: what `girih.save` writes and `girih.load` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from girih.gan.gan import GAN

_TYPES = {"float32": torch.float32, "float64": torch.float64}


def gan_config(gan: GAN) -> dict[str, Any]:
    """What a GAN is built with besides its networks."""
    number = str(gan.dtype).removeprefix("torch.")
    return {"type": number, "loss": gan.loss, "gradient_penalty": gan.gradient_penalty}


def gan_from(config: Mapping[str, Any], generator: nn.Module, discriminator: nn.Module) -> GAN:
    """The GAN of two networks that were loaded.

    Raises:
        KeyError, TypeError, ValueError: the parts do not fit together.
    """
    number = _TYPES[config["type"]]
    return GAN(
        generator.to(number),
        discriminator.to(number),
        loss=config["loss"],
        gradient_penalty=config["gradient_penalty"],
    )
