"""Networks with Glorot's initial weights: dense ones of any widths, and the convolutions of the CG-BPEF paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from girih._options import whole
from girih.networks.drawing import check_dtype, make_generator


def draw_glorot(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights from `U(-1, 1) sqrt(6 / (fan_in + fan_out))`, in place, and put biases to 0.

    The fans of a convolution count the entries of its kernel.

    Source:
        Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks (2010), eq. 16.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.zero_()
                continue
            fans = sum(parameter.shape[:2]) * math.prod(parameter.shape[2:])
            bound = math.sqrt(6.0 / fans)
            drawn = torch.empty(parameter.shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)


def dense(sizes: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> nn.Sequential:
    """Affine layers with ReLU between them, with Glorot's weights.

    Args:
        sizes: widths from input to output.
        dtype: of the parameters.
        generator: that the weights are drawn by.

    Raises:
        ParameterError: a width below 1, or numbers that are neither float32 nor float64.

    Example:
        >>> import torch
        >>> from girih.networks import dense
        >>> net = dense([2, 8, 3], torch.float32, torch.Generator().manual_seed(0))
        >>> [type(layer).__name__ for layer in net], net[0].bias.abs().sum().item()
        (['Linear', 'ReLU', 'Linear'], 0.0)
    """
    check_dtype(dtype)
    sizes = [whole(size, "a width") for size in sizes]
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] if index else []
        layers.append(nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype))
    network = nn.Sequential(*layers)
    draw_glorot(network, generator)
    return network


def svhn_encoder(outputs: int, dtype: torch.dtype = torch.float64, seed: int | None = None) -> nn.Sequential:
    """The convolutional encoder of appendix E for grey images of 32 x 32, `(N, 1024)` to `(N, outputs)`.

    Convolutions of 32, 64 and 128 filters of 5 x 5 with ReLU, and 2 x 2 pooling after the first two, which gives 128
    features; then a dense layer. The paper does not say which pooling: this takes maxima.

    Args:
        outputs: numbers for each row: 2 S for `girih.vae.GaussVAE`, S * C for `CatVAE`, S * M for `CGBPEFVAE`.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        CG-BPEF, appendix E and section 4; weights as Glorot & Bengio (2010).

    Example:
        >>> import torch
        >>> from girih.networks import svhn_encoder
        >>> svhn_encoder(60, torch.float32, seed=0)(torch.zeros(3, 1024)).shape
        torch.Size([3, 60])
    """
    check_dtype(dtype)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 32, 32))]
    for channels, filters in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.utils.skip_init(nn.Conv2d, channels, filters, 5, dtype=dtype), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if filters < 128 else [nn.Flatten(1)]
    layers.append(nn.utils.skip_init(nn.Linear, 128, whole(outputs, "outputs"), dtype=dtype))
    network = nn.Sequential(*layers)
    draw_glorot(network, make_generator(seed))
    return network


def svhn_decoder(inputs: int, dtype: torch.dtype = torch.float64, seed: int | None = None) -> nn.Sequential:
    """The convolutional decoder of appendix E, `(N, inputs)` to grey images of 32 x 32 as rows `(N, 1024)`.

    A dense layer of 128 units with ReLU, then transposed convolutions of 64, 32, 16 filters with ReLU and 1 without,
    5 x 5 each, with strides 4, 2, 2, 2: images of 4 x 4, 8 x 8, 16 x 16, 32 x 32. One border of each is cut so that
    the size is the stride times that of the input, as the printed sizes ask.

    Args:
        inputs: the latent dimension S; S * C for `girih.vae.CatVAE`.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        CG-BPEF, appendix E; weights as Glorot & Bengio (2010).

    Example:
        >>> import torch
        >>> from girih.networks import svhn_decoder
        >>> svhn_decoder(20, torch.float32, seed=0)(torch.zeros(3, 20)).shape
        torch.Size([3, 1024])
    """
    check_dtype(dtype)
    layers: list[nn.Module] = [nn.utils.skip_init(nn.Linear, whole(inputs, "inputs"), 128, dtype=dtype), nn.ReLU()]
    layers.append(nn.Unflatten(1, (128, 1, 1)))
    for channels, filters, stride in ((128, 64, 4), (64, 32, 2), (32, 16, 2), (16, 1, 2)):
        # (m - 1) stride - 2 padding + 5 + output_padding = m stride
        padding = 1 if stride == 4 else 2
        layers.append(
            nn.utils.skip_init(
                nn.ConvTranspose2d,
                channels,
                filters,
                5,
                stride=stride,
                padding=padding,
                output_padding=1,
                dtype=dtype,
            )
        )
        layers.append(nn.ReLU() if filters > 1 else nn.Flatten(1))
    network = nn.Sequential(*layers)
    draw_glorot(network, make_generator(seed))
    return network
