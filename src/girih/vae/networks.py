"""The networks of a VAE: modules that a user gave, or dense ones made from widths, tried on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from girih._options import whole
from girih.errors import ParameterError, ShapeError, UnsupportedLayerError
from girih.networks import LinearStep, dense, make_generator, mlp, trace
from girih.training import Dimensions, dimensions, evaluating, number_type, tried
from girih.vae.families.base import Family

NARROWEST = 32


def mirrored_widths(decoder: nn.Module) -> list[int]:
    """The hidden widths of a decoder from its output back to its input, each at least 32.

    An encoder has a harder task than the small generators that exact inference is used with: the posterior
    of a folded curve jumps from one branch to the other.

    Example:
        >>> import girih
        >>> from girih.vae.networks import mirrored_widths
        >>> mirrored_widths(girih.mlp([1, 8, 64, 2]))
        [64, 32]
    """
    try:
        with evaluating(decoder):
            widths = [step.out_features for step in trace(decoder).steps if isinstance(step, LinearStep)]
    except UnsupportedLayerError:  # a decoder that is not piecewise affine: its dense layers tell the widths
        widths = [layer.out_features for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    return [max(NARROWEST, width) for width in reversed(widths[:-1])] or [NARROWEST]


def mlp_encoder(output_dim: int, hidden: Sequence[int], outputs: int, seed: int | None = None) -> nn.Sequential:
    """A ReLU network in float64 from x `(N, D)` to the parameters of q `(N, outputs)`.

    The last layer starts at a tenth of its usual scale, so that training begins with every q(z | x) near the
    prior instead of with a draw of very narrow and very wide ones.

    Args:
        output_dim: D, the dimension of x.
        hidden: the widths of the hidden layers.
        outputs: how many parameters q has for each row.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: a width below 1.

    Example:
        >>> from girih.vae.networks import mlp_encoder
        >>> [tuple(p.shape) for p in mlp_encoder(2, (32,), 2).parameters()]
        [(32, 2), (32,), (2, 32), (2,)]
    """
    network = mlp([output_dim, *hidden, outputs], activation="relu", seed=seed)
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.mul_(0.1)
    return network


def check_encoder(encoder: nn.Module, decoder: Dimensions, outputs: int, meaning: str) -> None:
    """Refuse an encoder in another type than the decoder, or that does not give `(N, outputs)`, by trying it.

    Args:
        encoder: what the user gave.
        decoder: what is known of the decoder.
        outputs: numbers that q needs for each row.
        meaning: of these numbers, for errors.

    Raises:
        ParameterError, ShapeError: it does not fit.
    """
    if not isinstance(encoder, nn.Module):
        raise ParameterError(f"the encoder must be a torch.nn.Module; got {type(encoder).__name__}")
    dtype, device = number_type(encoder, "encoder")
    if dtype != decoder.dtype and any(True for _ in encoder.parameters()):
        own, other = (str(kind).removeprefix("torch.") for kind in (dtype, decoder.dtype))
        call = "double" if decoder.dtype == torch.float64 else "float"
        raise ParameterError(f"the encoder has {own} parameters, the decoder {other}; call encoder.{call}() first")
    columns = decoder.output_dim
    takes = f"x of shape (N, {columns})"
    encoded = tried(encoder, "encoder", takes, "the data dimension D", columns, decoder.dtype, device)
    check_encoded(encoded, 2, outputs, meaning)


def check_encoded(encoded: object, rows: int, outputs: int, meaning: str) -> None:
    """Refuse the output of an encoder that does not hold `outputs` numbers for each row."""
    shape = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
    if shape != (rows, outputs):
        raise ShapeError(
            f"the encoder gives {shape} for {rows} rows, but q(z | x) needs ({rows}, {outputs}): {meaning}; "
            f"change its last layer to {outputs} outputs"
        )


class Networks(NamedTuple):
    """`Networks` are what a VAE is built from."""

    decoder: nn.Module
    encoder: nn.Module
    latent_dim: int  # S
    output_dim: int  # D
    like: torch.Tensor  # an empty tensor of their type, on their device


def make_networks(
    decoder: nn.Module | Sequence[int],
    encoder: nn.Module | None,
    hidden: Sequence[int] | None,
    family: Family,
    latent_dim: int | None,
    dtype: torch.dtype | None,
    seed: int | None,
) -> Networks:
    """A decoder and an encoder that fit each other, made from widths where they are not given, and tried.

    Args:
        decoder: a module, or the widths of a dense one from S to D.
        encoder: a module, or `None`.
        hidden: the widths of the encoder's hidden layers, where it is not given.
        family: of q(z | x), which says how many numbers go in and out.
        latent_dim: S, where the decoder does not tell.
        dtype: of networks made from widths.
        seed: of their weights.

    Raises:
        ParameterError, ShapeError, UnsupportedLayerError: they do not fit, as the message says.
    """
    generator = None
    if not isinstance(decoder, nn.Module):
        generator = make_generator(seed)
        latent_dim, decoder = _decoder(decoder, family.width, latent_dim, dtype, generator)
    elif dtype is not None:
        raise ParameterError("dtype is for networks made from widths; call decoder.float() or decoder.double() instead")
    inputs = None if latent_dim is None else whole(latent_dim, "latent_dim") * family.width
    found = dimensions(decoder, inputs, "decoder")
    latent_dim, rest = divmod(found.latent_dim, family.width)
    if rest:
        raise ShapeError(
            f"the decoder takes {found.latent_dim} numbers, which is no multiple of {family.width}, the numbers for "
            "each latent (its categories); change its first layer or the number of categories"
        )
    outputs = family.outputs(latent_dim)
    meaning = family.meaning(latent_dim)
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
