"""The networks of a VAE, from what a user gave: modules, or the widths of dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from girih._options import whole
from girih.errors import ParameterError, ShapeError
from girih.networks import dense, make_generator
from girih.training import Dimensions, dimensions
from girih.vae.encoder import check_encoder, mirrored_widths, mlp_encoder
from girih.vae.posteriors import Layout


class Networks(NamedTuple):
    """What a VAE is built from."""

    decoder: nn.Module
    encoder: nn.Module
    latent_dim: int  # S
    output_dim: int  # D
    like: torch.Tensor  # an empty tensor of their type, on their device


def make_networks(
    decoder: nn.Module | Sequence[int],
    encoder: nn.Module | None,
    hidden: Sequence[int] | None,
    layout: Layout,
    latent_dim: int | None,
    dtype: torch.dtype | None,
    seed: int | None,
) -> Networks:
    """A decoder and an encoder that fit each other, made from widths where they are not given, and tried.

    Args:
        decoder: a module, or the widths of a dense one from S to D.
        encoder: a module, or `None`.
        hidden: the widths of the encoder's hidden layers, where it is not given.
        layout: how many numbers go in and out.
        latent_dim: S, where the decoder does not tell.
        dtype: of networks made from widths.
        seed: of their weights.

    Raises:
        ParameterError, ShapeError, UnsupportedLayerError: they do not fit, as the message says.
    """
    generator = None
    if not isinstance(decoder, nn.Module):
        generator = make_generator(seed)
        latent_dim, decoder = _decoder(decoder, layout.width, latent_dim, dtype, generator)
    elif dtype is not None:
        raise ParameterError("dtype is for networks made from widths; call decoder.float() or decoder.double() instead")
    inputs = None if latent_dim is None else whole(latent_dim, "latent_dim") * layout.width
    found = dimensions(decoder, inputs, "decoder")
    latent_dim, rest = divmod(found.latent_dim, layout.width)
    if rest:
        raise ShapeError(
            f"the decoder takes {found.latent_dim} numbers, which is no multiple of {layout.width}, the numbers for "
            "each latent (its categories); change its first layer or the number of categories"
        )
    outputs = layout.outputs(latent_dim)
    meaning = layout.meaning(latent_dim)
    if encoder is None:
        encoder = _encoder(decoder, hidden, found, outputs, seed, generator)
    elif hidden is not None:
        raise ParameterError("hidden sets the widths of the default encoder; leave it out when you pass an encoder")
    check_encoder(encoder, found, outputs, meaning)
    return Networks(
        decoder, encoder, latent_dim, found.output_dim, torch.empty(0, dtype=found.dtype, device=found.device)
    )


def _decoder(
    sizes: Sequence[int], width: int, latent_dim: int | None, dtype: torch.dtype | None, generator: torch.Generator
) -> tuple[int, nn.Sequential]:
    """S and a dense decoder of these widths; its first layer takes `width` numbers for each of the S latents."""
    if isinstance(sizes, str | bytes) or not hasattr(sizes, "__len__") or len(sizes) < 2:
        raise ParameterError(
            "the decoder must be a torch.nn.Module, or widths from S to D such as [20, 400, 784]; "
            f"got {sizes if hasattr(sizes, '__len__') else type(sizes).__name__}"
        )
    widths = [whole(size, "a width of the decoder") for size in sizes]
    if latent_dim is not None and latent_dim != widths[0]:
        raise ParameterError(f"latent_dim={latent_dim}, but the widths of the decoder begin with S = {widths[0]}")
    return widths[0], dense([widths[0] * width, *widths[1:]], torch.float64 if dtype is None else dtype, generator)


def _encoder(
    decoder: nn.Module,
    hidden: Sequence[int] | None,
    found: Dimensions,
    outputs: int,
    seed: int | None,
    generator: torch.Generator | None,
) -> nn.Module:
    """A dense encoder: drawn as the decoder was where that was made from widths."""
    widths = mirrored_widths(decoder) if hidden is None else hidden
    if generator is None:
        return mlp_encoder(found.output_dim, widths, outputs, seed).to(found.device, found.dtype)
    return dense([found.output_dim, *widths, outputs], found.dtype, generator)
