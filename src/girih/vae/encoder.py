"""Encoders: networks from x to the parameters of q(z | x)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from girih.errors import ParameterError, ShapeError
from girih.networks import Affine, Trace, mlp

NARROWEST = 32


def mirrored_widths(decoder: Trace) -> list[int]:
    """The hidden widths of a decoder from its output back to its input, each at least 32.

    An encoder has a harder task than the small generators that exact inference is used with: the posterior
    of a folded curve jumps from one branch to the other.

    Example:
        >>> import girih
        >>> from girih.vae.encoder import mirrored_widths
        >>> mirrored_widths(girih.trace(girih.mlp([1, 8, 64, 2])))
        [64, 32]
    """
    widths = [stage.out_features for stage in decoder.stages if isinstance(stage, Affine)][:-1]
    return [max(NARROWEST, width) for width in reversed(widths)] or [NARROWEST]


def mlp_encoder(output_dim: int, hidden: Sequence[int], outputs: int, seed: int | None = None) -> nn.Sequential:
    """A ReLU network in float64 from x `(N, D)` to the parameters of q `(N, outputs)`.

    The last layer starts at a tenth of its usual scale, so that training begins with every q(z | x) near the
    prior instead of with a draw of very narrow and very wide ones.

    Args:
        output_dim: D, the dimension of x.
        hidden: the widths of the hidden layers.
        outputs: how many parameters q has for each row.
        seed: makes the weights reproducible.

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


def check_encoder(encoder: nn.Module, output_dim: int, outputs: int) -> None:
    """Refuse an encoder that is not in float64 or does not give `(N, outputs)`, by trying it on two rows of 0."""
    check_float64(encoder, "encoder")
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    training = {module: module.training for module in encoder.modules()}
    encoder.eval()  # a trial must not move the running statistics of a normalisation layer
    try:
        with torch.no_grad():
            encoded = encoder(torch.zeros(2, output_dim, dtype=torch.float64, device=device))
    except RuntimeError as error:
        raise ShapeError(
            f"the encoder does not accept x of shape (N, {output_dim}) ({error}); "
            f"its input must be the data dimension D = {output_dim}"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    check_encoded(encoded, 2, outputs)


def check_encoded(encoded: Tensor, rows: int, outputs: int) -> None:
    """Refuse the output of an encoder that does not hold `outputs` numbers for each row."""
    shape = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
    if shape != (rows, outputs):
        raise ShapeError(
            f"the encoder gives {shape} for {rows} rows, but q(z | x) needs ({rows}, {outputs}): the mean and the log "
            f"standard deviation of each of the S = {outputs // 2} latents; change its last layer to {outputs} outputs"
        )


def check_float64(network: nn.Module, name: str) -> None:
    """Refuse a network with parameters in another precision: exact and sampled numbers must be of one model."""
    for path, parameter in network.named_parameters():
        if parameter.dtype != torch.float64:
            raise ParameterError(
                f"the {name} has {str(parameter.dtype).removeprefix('torch.')} parameters (first '{path}'); "
                f"girih computes in float64: call {name}.double() first"
            )
