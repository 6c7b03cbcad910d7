"""Encoders: networks from x to the parameters of q(z | x)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from girih.errors import ParameterError, ShapeError, UnsupportedLayerError
from girih.networks import LinearStep, mlp, trace
from girih.training import Dimensions, evaluating, number_type, tried

NARROWEST = 32


def mirrored_widths(decoder: nn.Module) -> list[int]:
    """The hidden widths of a decoder from its output back to its input, each at least 32.

    An encoder has a harder task than the small generators that exact inference is used with: the posterior
    of a folded curve jumps from one branch to the other.

    Example:
        >>> import girih
        >>> from girih.vae.encoder import mirrored_widths
        >>> mirrored_widths(girih.mlp([1, 8, 64, 2]))
        [64, 32]
    """
    try:
        with evaluating(decoder):
            chain = trace(decoder).chain
    except UnsupportedLayerError:  # a decoder that is not piecewise affine
        chain = None
    if chain is not None:
        widths = [step.out_features for step in chain if isinstance(step, LinearStep)]
    else:  # its dense layers tell the widths
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
        >>> from girih.vae.encoder import mlp_encoder
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


def check_encoded(encoded: Tensor, rows: int, outputs: int, meaning: str) -> None:
    """Refuse the output of an encoder that does not hold `outputs` numbers for each row."""
    shape = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
    if shape != (rows, outputs):
        raise ShapeError(
            f"the encoder gives {shape} for {rows} rows, but q(z | x) needs ({rows}, {outputs}): {meaning}; "
            f"change its last layer to {outputs} outputs"
        )
